//! A fencing device in the place of a witness: a command that answers once the peer's machine is certainly off.
//!
//! There is no register that could be asked, so both nodes' records hold it. What the owner wants is agreed with a peer that is heard (PAIR,
//! and SOLO with a peer that is there and of no use); alone, either may take the right to go on for itself once it has put the other's
//! machine off. Three rules keep that sound:
//!
//! - Only a node that the peer has heard since it started may do that: whoever was put off comes back as somebody whom nobody has heard,
//!   and what was decided meanwhile comes before everything that it may do.
//! - What the command says counts only while nothing was heard of the peer since it was given: a peer that is heard has come back.
//! - Each command has a number of its own, so that the answer to one that counts for nothing isn't taken for another's.

use super::event::Note;
use super::register::{Mode, Register};
use super::state::{Phase, State, Third};
use super::step::Step;

impl State {
    /// Whether a fencing device is what decides.
    pub fn fences(&self) -> bool {
        matches!(self.setup.third, Third::Fence { .. })
    }

    /// Whether this node may put the peer's machine off, to go on alone.
    pub fn may_fence(&self) -> bool {
        self.fences() && self.known_to_peer && self.mode() == Some(Mode::Pair)
    }
}

impl Step {
    /// Puts the peer's machine off; `new` holds once that is certain.
    pub(super) fn fence(&mut self, new: Register) {
        self.state.fenced += 1;
        let (ticket, expected) = (self.state.fenced, self.state.record.version());
        self.note(Note::Fences);
        self.swap(ticket, expected, new);
        self.send = true;
    }

    /// The peer was heard: whatever was to put it off has come to nothing, or it has come back since.
    pub(super) fn unfence(&mut self) {
        if self.state.fences() {
            self.state.pending = None;
        }
    }

    /// The command's answer.
    pub(super) fn fenced(&mut self, ticket: u64, new: Register) {
        if self.state.pending.is_some_and(|pending| pending.instance == ticket && pending.new == new) {
            self.state.pending = None;
            self.adopt(new, None);
        }
    }

    /// What an owner in PAIR does.
    pub(super) fn lead_pair_by_fence(&mut self) {
        if !self.state.peer_is_lost(self.now) || self.releases() {
            // What it may have agreed to comes back with its next heartbeat.
            self.state.proposal = self.state.record.intent.map(|intent| intent.new);
            return;
        }
        if self.state.hears_peer(self.state.setup.timing.solo_after, self.now) {
            // It is there, and of no use: it needn't be put off, only asked.
            self.propose(Mode::Solo);
        } else if self.state.may_fence()
            && self.state.pending.is_none()
            && !self.state.hears_peer(self.state.setup.timing.witness_lost, self.now)
        {
            // A process that is started again is back sooner: its machine isn't put off for that.
            self.state.proposal = None;
            let solo = self.value(Mode::Solo);
            self.note_lost_peer();
            self.fence(solo);
        }
    }

    /// Asks the peer to be a pair; from here on, behaves as if it had agreed.
    pub(super) fn pair_by_agreement(&mut self) {
        let base = self.state.record.version();
        let new = self.unused(Mode::Pair);
        self.persist(|record| record.intent = Some(super::register::Intent { new, base }));
        self.state.proposal = Some(new);
        self.send = true;
    }

    /// Asks the peer to agree to something else than PAIR.
    pub(super) fn propose(&mut self, mode: Mode) {
        if self.state.proposal.is_none_or(|proposal| proposal.mode != mode) {
            self.state.proposal = Some(self.unused(mode));
            self.send = true;
        }
    }

    /// An owner that has stopped using its lease gives its right to the peer, which has everything; whether it did.
    pub(super) fn give_by_fence(&mut self) -> bool {
        let paired = self.state.record.seen.is_some_and(|seen| seen.mode == Mode::Pair) && self.state.record.intent.is_none();
        // Heard just now: whoever is given the right and isn't there any more leaves nobody who may go on.
        let there = self.state.hears_peer(2 * self.state.setup.timing.heartbeat, self.now);
        let gives = self.state.fences() && paired && there && self.releases() && self.state.peer_is_ready(self.now);
        if gives {
            self.give();
        }
        gives
    }

    /// A follower gives up its right to take over. The next version may be that of a right that it is just being given.
    pub(super) fn leave(&mut self) {
        let follows = self.state.phase == Phase::Follower && self.state.pending.is_none();
        let paired = self.state.record.seen.filter(|seen| seen.mode == Mode::Pair && seen.owner != self.state.me());
        if let Some(seen) = paired.filter(|_| self.state.fences() && follows) {
            self.state.leaving = true;
            self.adopt(Register { version: seen.version + 2, mode: Mode::Solo, ..seen }, None);
        }
    }

    /// A value whose version no takeover has, whichever may be under way: those have the next one.
    fn unused(&mut self, mode: Mode) -> Register {
        let value = Register { version: self.next_version() + 1, ..self.value(mode) };
        self.state.issued = value.version;
        value
    }
}
