//! What the register's owner does.

use super::event::{Goal, Note, Postgres, Sync};
use super::register::{Intent, Mode, Register};
use super::state::{State, Third};
use super::step::Step;
use crate::types::Epoch;

impl State {
    /// Whether the peer is of no use for replication: unheard, or without a grant for too long, or not streaming, or in maintenance.
    pub fn peer_is_lost(&self, now: u64) -> bool {
        let timing = self.setup.timing;
        let led_since = self.released_at.unwrap_or(self.started_at);
        let deaf = now >= self.granted_sent_at.max(self.forgiven_at).max(led_since) + timing.solo_after;
        deaf || self.peer_confirms_nothing(now) || self.peer_away_until.is_some()
    }

    /// Whether the peer has been waited for for too long.
    fn peer_confirms_nothing(&self, now: u64) -> bool {
        let since = self.unconfirmed_since.map(|since| since.max(self.forgiven_at));
        since.is_some_and(|since| now >= since + self.setup.timing.stream_grace)
    }

    /// Whether the witness answers, with something that can be believed.
    pub fn witness_is_usable(&self, now: u64) -> bool {
        self.hears_witness(now) && self.answer.is_some_and(|answer| self.believes(answer))
    }

    /// Whether the witness has had its time to answer, and hasn't, or can't be believed; true when there is none.
    fn witness_is_lost(&self, now: u64) -> bool {
        let patience = self.setup.timing.witness_lost;
        let silent = now >= self.answered_at.max(self.forgiven_at) + patience;
        // The peer may tell what the witness has before the witness does: an answer that is behind is given the time to catch up.
        let behind = self.answer.is_some_and(|answer| self.record.instance == Some(answer.instance));
        let catches_up = behind && now < self.adopted_at.max(self.forgiven_at) + patience;
        match self.setup.third {
            Third::Nobody => true,
            Third::Witness => silent || (self.answer.is_some() && !self.witness_is_usable(now) && !catches_up),
            // It has nothing to be asked for.
            Third::Fence { .. } => false,
        }
    }
}

impl Step {
    pub(super) fn lead(&mut self) {
        self.end_handover();
        if self.releases() {
            // For as long as the peer is asked, and may do it late: no grant from before counts after that, and its silence meanwhile isn't loss.
            self.state.lease_until = 0;
            self.state.released_at = Some(self.now);
        }
        self.run_postgres();
        self.open();
        self.make_room();
        if self.give_by_fence() {
            return;
        }
        if self.state.handover.is_some() {
            return self.abdicate();
        }
        match self.state.mode() {
            Some(Mode::Pair) => self.lead_pair(),
            Some(Mode::Solo) => self.lead_solo(),
            Some(Mode::Asym) => self.lead_asym(),
            None => {}
        }
        self.run_postgres();
    }

    /// Whether it asks the peer to take over: for a switchover, because its own PostgreSQL has ended and the peer is faster, or because
    /// its data is gone and the peer has everything.
    pub(super) fn releases(&self) -> bool {
        let state = &self.state;
        // The peer is given the first turn, unless it has no room. As long as PostgreSQL doesn't even start, the peer is asked again from
        // time to time, whatever room it has, and however long it may be since it received anything: in PAIR it has everything.
        let (since, turn) = (self.now.saturating_sub(state.down_since), state.setup.timing.handover);
        let asks = if since < 2 * turn {
            since < turn && state.peer_has_room() && state.peer_is_ready(self.now)
        } else {
            let can = state.peer_is_ready(self.now) || state.peer_is_able(self.now);
            since % (2 * turn) < turn && state.postgres == Postgres::Down && can
        };
        let ended = !state.opened && !matches!(state.postgres, Postgres::Primary(_)) && state.paused_until.is_none() && asks;
        state.is_owner() && state.mode() == Some(Mode::Pair) && (state.has_released() || ended || !state.record.complete)
    }

    fn run_postgres(&mut self) {
        if self.releases() && !self.state.has_released() {
            return self.pursue(Goal::Stopped);
        }
        let sync = self.state.mode() != Some(Mode::Solo) || self.wants_to_pair();
        self.pursue(Goal::Primary { sync });
    }

    /// Whether an owner that is alone should wait for its peer: once that has caught up, and for as long as it confirms.
    fn wants_to_pair(&mut self) -> bool {
        let useful = self.state.peer_is_ready(self.now) && !self.state.peer_is_lost(self.now);
        if self.state.peer_confirms_nothing(self.now) {
            self.state.pair_again_at = self.now + self.state.setup.timing.backoff;
        }
        let waits = self.state.goal == Goal::Primary { sync: true };
        let caught_up = self.state.postgres == Postgres::Primary(Sync::Off { caught_up: true });
        useful && (waits || caught_up && self.now >= self.state.pair_again_at)
    }

    /// Opens when nothing that PostgreSQL shows can be taken back: the peer has it, or the peer doesn't count.
    fn open(&mut self) {
        let Postgres::Primary(sync) = self.state.postgres else { return };
        let off = matches!(sync, Sync::Off { .. });
        if off && self.state.mode() != Some(Mode::Solo) && self.state.opened {
            self.state.opened = false;
            self.note(Note::Tampered);
        }
        let safe = sync == Sync::Confirmed || self.state.may_be_alone();
        if !self.state.opened && safe && (!off || self.state.mode() == Some(Mode::Solo)) {
            self.state.opened = true;
            self.note(Note::Opened);
            self.send = true;
        }
    }

    fn lead_pair(&mut self) {
        let now = self.now;
        if self.state.fences() {
            return self.lead_pair_by_fence();
        }
        if self.state.peer_is_lost(now) && !self.releases() {
            let asked = self.state.pending.is_some_and(|pending| pending.new.mode == Mode::Solo);
            if let Some(answer) = self.state.answer.filter(|answer| !asked && self.state.believes(*answer)) {
                let new = self.value(Mode::Solo);
                self.note_lost_peer();
                self.swap(answer.instance, answer.version(), new);
            }
            // A peer that grants nothing, because it has asked a witness that nobody hears, can still agree.
            if self.state.witness_is_lost(now) {
                self.propose_asym();
            }
        } else if self.state.witness_is_lost(now) {
            self.propose_asym();
        } else if let Some(intent) = self.state.record.intent
            && let Some(answer) = self.state.answer
            && self.state.pending.is_none()
            && self.state.peer_is_synchronous(now)
        {
            // An earlier process sent it, and never heard what came of it.
            self.swap(answer.instance, intent.base, intent.new);
        }
    }

    fn lead_solo(&mut self) {
        if !self.state.peer_is_lost(self.now) && self.state.peer_is_synchronous(self.now) {
            return self.pair();
        }
        self.state.proposal = None;
        // The witness may have missed what was decided without it.
        let Some(answer) = self.state.answer.filter(|_| self.state.hears_witness(self.now)) else { return };
        if answer.value != self.state.record.seen && self.state.pending.is_none() {
            let new = self.value(Mode::Solo);
            self.swap(answer.instance, answer.version(), new);
        }
    }

    fn lead_asym(&mut self) {
        if self.state.peer_is_lost(self.now) {
            let solo = self.value(Mode::Solo);
            self.note_lost_peer();
            self.adopt(solo, None);
        } else if self.state.peer_is_synchronous(self.now) && (self.state.fences() || self.state.hears_witness(self.now)) {
            self.pair();
        }
    }

    /// A peer in maintenance isn't lost.
    pub(super) fn note_lost_peer(&mut self) {
        if self.state.peer_away_until.is_none() {
            self.note(Note::PeerLost);
        }
    }

    /// Asks for PAIR; from here on, behaves as if it held. Only an owner that may be alone does this: what the witness says doesn't
    /// matter to it then.
    fn pair(&mut self) {
        debug_assert!(self.state.may_be_alone(), "PAIR is asked for by an owner that could go on alone");
        if self.state.fences() {
            if self.state.goal == (Goal::Primary { sync: true }) {
                self.pair_by_agreement();
            }
            return;
        }
        if !self.state.hears_witness(self.now) {
            if self.state.witness_is_lost(self.now) && self.state.mode() == Some(Mode::Solo) {
                self.propose_asym();
            }
            return;
        }
        if self.state.goal != (Goal::Primary { sync: true }) {
            return;
        }
        let Some(answer) = self.state.answer.filter(|_| self.state.pending.is_none()) else { return };
        let new = self.value(Mode::Pair);
        self.state.proposal = None;
        self.persist(|record| {
            record.instance = Some(answer.instance);
            record.intent = Some(Intent { new, base: answer.version() });
        });
        self.swap(answer.instance, answer.version(), new);
        self.send = true;
    }

    /// Asks the peer to agree that only this node goes on alone. It agrees by showing the value as its own newest.
    fn propose_asym(&mut self) {
        if self.state.proposal.is_none() && self.state.peer_is_synchronous(self.now) {
            // The next version may be a takeover's that is under way.
            let proposal = Register { version: self.next_version() + 1, ..self.value(Mode::Asym) };
            self.state.issued = proposal.version;
            self.state.proposal = Some(proposal);
            self.send = true;
        }
    }

    /// A new value in the present epoch.
    pub(super) fn value(&mut self, mode: Mode) -> Register {
        Register { version: self.next_version(), epoch: self.epoch(), owner: self.state.me(), mode }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.state.record.seen.map_or(0, |seen| seen.epoch)
    }
}
