//! What the peer of the register's owner does.

use super::event::{Goal, Note, Postgres};
use super::register::{Mode, Register};
use super::state::{Phase, State, Third};
use super::step::Step;

/// How many versions an operator's decision is ahead of all that this node knows.
const FORCED_AHEAD: u64 = 1 << 32;

impl State {
    /// Whether this node's copy may become the store: the register says that both have everything, and this copy is whole.
    pub fn may_take_over(&self) -> bool {
        let paired = self.record.seen.is_some_and(|seen| seen.mode == Mode::Pair && seen.owner != self.me());
        paired && self.record.complete && matches!(self.postgres, Postgres::Standby { consistent: true, .. })
    }

    /// Whether the owner has given up its lease and asks this node to take over.
    fn is_asked_to_take_over(&self, now: u64) -> bool {
        let timing = self.setup.timing;
        // What a witness refuses isn't asked for again at once.
        let again_too_soon = self.took_over_at.is_some_and(|at| now < at + timing.swap_again);
        !again_too_soon && self.hears_peer(timing.solo_after, now) && self.peer.is_some_and(|peer| peer.heartbeat.released)
    }

    /// Whether the peer is heard, and leads: it is anything but off.
    pub fn peer_certainly_leads(&self, now: u64) -> bool {
        self.hears_peer(self.setup.timing.takeover_after, now) && self.peer.is_some_and(|peer| peer.heartbeat.leading)
    }

    /// Whether the leader has been silent for so long that it must be taken for lost.
    fn misses_leader(&self, now: u64) -> bool {
        let timing = self.setup.timing;
        let delay = if let Third::Fence { delay } = self.setup.third { delay } else { 0 };
        let silent = match self.peer {
            Some(peer) => now >= peer.heard_at.max(self.forgiven_at) + timing.takeover_after + delay,
            None => now >= self.forgiven_at + timing.boot_patience + delay,
        };
        silent && !self.receives(now) && !self.took_over_lately(now) && now >= self.promised_until
    }

    /// Whether data keeps coming: a sign of the leader's life, whatever happened to the heartbeats.
    pub fn receives(&self, now: u64) -> bool {
        self.advanced_at.is_some_and(|at| now < at + 3 * self.setup.timing.heartbeat)
    }

    /// Whether it is too soon for this node to take over again unasked.
    pub fn took_over_lately(&self, now: u64) -> bool {
        self.took_over_at.is_some_and(|at| now < at + self.setup.timing.backoff)
    }
}

impl Step {
    pub(super) fn follow(&mut self) {
        self.pursue(Goal::Standby { rebuild: !self.state.record.complete });
        if self.state.pending.is_some() || !self.state.may_take_over() {
            return;
        }
        if self.state.fences() {
            // A leader that is there gives its right away by itself.
            if self.state.may_fence() && self.state.paused_until.is_none() && self.state.misses_leader(self.now) {
                let new = self.takeover();
                self.fence(new);
            }
            return;
        }
        // What an operator asks for is done during a pause, too.
        let paused = self.state.paused_until.is_some();
        let planned = self.state.peer.is_some_and(|peer| peer.heartbeat.handing_over);
        let (Some(instance), Some(seen)) = (self.state.record.instance, self.state.record.seen) else { return };
        let asked = self.state.is_asked_to_take_over(self.now) && self.now >= self.state.promised_until && (planned || !paused);
        if asked || !paused && self.state.misses_leader(self.now) {
            let new = self.takeover();
            self.swap(instance, seen.version, new);
            self.send = true;
        }
    }

    /// What a takeover asks for. Always the version after the one that it replaces, however often it is asked for: the owner's agreements skip
    /// that one, so that a request that was forgotten and arrives late is older than any of them.
    fn takeover(&mut self) -> Register {
        let version = self.state.record.version() + 1;
        // One that is refused is asked for again and again: that is told from time to time.
        if self.state.takeover_asked != version || !self.state.took_over_lately(self.now) {
            self.note(Note::TakesOver);
            self.state.took_over_at = Some(self.now);
        }
        self.state.takeover_asked = version;
        // From here on nothing is promised any more: it may be decided at any moment.
        self.state.granted = None;
        Register { version, epoch: self.epoch() + 1, owner: self.state.me(), mode: Mode::Solo }
    }

    /// The operator says that the peer is off and what it had acknowledged may be lost.
    pub(super) fn take_over_by_force(&mut self) {
        // An owner that waits for somebody to confirm that it is one does nothing by itself either.
        let leads = self.state.is_owner() && self.state.phase != Phase::Boot;
        if leads || !self.state.record.complete || self.state.peer_certainly_leads(self.now) {
            return;
        }
        let epoch = self.epoch() + 1;
        // Newer than whatever the peer has reached without having been heard: when it comes back, it is the one that follows.
        let version = self.next_version() + FORCED_AHEAD;
        self.state.issued = version;
        let new = Register { version, epoch, owner: self.state.me(), mode: Mode::Solo };
        self.note(Note::Forced);
        self.adopt(new, None);
    }
}
