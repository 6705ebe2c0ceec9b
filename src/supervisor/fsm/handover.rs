//! How the leadership is given to the peer while both are there: an operator's switchover, and what a leader does by itself when its own
//! disk is full or stands still and the peer's isn't.

use super::event::{Action, Note};
use super::register::Mode;
use super::state::{Handover, Phase, State};
use super::step::Step;

impl State {
    /// Whether the leadership can be given to the peer at this moment.
    fn can_hand_over(&self, now: u64) -> bool {
        self.opened
            && self.phase == Phase::Leader
            && self.handover.is_none()
            && self.peer_away_until.is_none()
            && self.mode() != Some(Mode::Solo)
            && self.record.intent.is_none()
            && (self.may_be_alone() || self.fences() || self.witness_is_usable(now))
            && self.peer_is_synchronous(now)
    }

    /// Whether the leader may give it away without having been asked.
    fn may_hand_over_unasked(&self, now: u64) -> bool {
        self.can_hand_over(now) && self.paused_until.is_none() && now >= self.hands_over_again_at
    }

    /// Whether the peer's disk is no reason to leave the leadership here: a node without room isn't promoted while there is a better one.
    pub fn peer_has_room(&self) -> bool {
        self.short_of_disk || !self.peer_is_short()
    }

    fn peer_is_short(&self) -> bool {
        self.peer.is_some_and(|peer| peer.heartbeat.short_of_disk)
    }
}

impl Step {
    /// An operator's switchover.
    pub(super) fn switch_over(&mut self) {
        if self.state.can_hand_over(self.now) {
            self.begin_handover(Note::HandsOver);
        }
    }

    /// PostgreSQL's disk takes nothing any more, and the peer has all that it took. Requests that are under way can't be waited for: they
    /// are answered as unknown when the peer has taken over.
    pub(super) fn stalled(&mut self) {
        if self.state.handover.is_none() && self.state.may_hand_over_unasked(self.now) {
            self.begin_handover(Note::DiskStalls);
        }
        self.drained();
    }

    /// Gives the leadership away when there is no room here, and there is at the peer's.
    pub(super) fn make_room(&mut self) {
        if self.state.short_of_disk && !self.state.peer_is_short() && self.state.may_hand_over_unasked(self.now) {
            self.begin_handover(Note::HandsOverFullDisk);
        }
    }

    fn begin_handover(&mut self, why: Note) {
        self.state.handover = Some(Handover { since: self.now, drained: false });
        self.note(why);
        self.actions.push(Action::Drain);
    }

    /// Nothing is under way any more, or nothing that can be waited for: from here on the lease isn't used.
    pub(super) fn drained(&mut self) {
        if let Some(handover) = self.state.handover.as_mut().filter(|handover| !handover.drained) {
            handover.drained = true;
            self.state.released_at = Some(self.now);
            self.state.lease_until = 0;
            self.send = true;
        }
    }

    /// Ends a handover that the peer doesn't take up in time.
    pub(super) fn end_handover(&mut self) {
        let timing = self.state.setup.timing;
        if self.state.handover.is_some_and(|handover| self.now >= handover.since + 2 * timing.handover) {
            self.state.handover = None;
            self.state.hands_over_again_at = self.now + timing.backoff;
            self.note(Note::HandoverFailed);
            self.actions.push(Action::Undrain);
            self.send = true;
        }
    }

    /// Without a witness the owner gives its right to the peer by itself.
    pub(super) fn abdicate(&mut self) {
        if self.state.has_released() && self.state.may_be_alone() && self.state.peer_is_synchronous(self.now) {
            self.give();
        }
    }

    /// The peer is the owner from here on.
    pub(super) fn give(&mut self) {
        let mut gift = self.value(Mode::Solo);
        gift.owner = self.state.me().peer();
        gift.epoch += 1;
        self.adopt(gift, None);
    }
}
