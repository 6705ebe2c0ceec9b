//! What a node does before it knows its part.

use super::event::Note;
use super::register::{Mode, Register};
use super::state::{Phase, Third};
use super::step::Step;

impl Step {
    pub(super) fn boot(&mut self) {
        let Some(seen) = self.state.record.seen else { return self.begin() };
        if seen.owner != self.state.me() {
            return self.become_follower();
        }
        // An owner that hasn't heard anybody may have been replaced. It wouldn't harm anybody as a primary that waits for its peer,
        // but what it then wrote would have to be rewound. A peer whose disk was replaced can't tell.
        let peer_knows = self.state.peer.is_some_and(|peer| peer.heartbeat.seen.is_some());
        let confirmed = peer_knows || self.state.answer.is_some_and(|answer| self.state.believes(answer));
        if self.state.may_be_alone() || confirmed {
            self.become_leader();
            if self.state.phase == Phase::Leader {
                self.lead();
            }
        }
    }

    /// Begins the store, when everybody who could know of one has said that there is none.
    fn begin(&mut self) {
        let peer_is_new = self.state.peer.is_some_and(|peer| peer.heartbeat.seen.is_none());
        let witness_is_new =
            self.state.setup.third != Third::Witness || self.state.answer.is_some_and(|answer| answer.value.is_none());
        if self.state.setup.begins && peer_is_new && witness_is_new {
            let first = Register { version: 1, epoch: 1, owner: self.state.me(), mode: Mode::Solo };
            self.persist(|record| {
                record.seen = Some(first);
                record.complete = true;
            });
            self.note(Note::Began);
            self.become_leader();
            self.lead();
        }
    }
}
