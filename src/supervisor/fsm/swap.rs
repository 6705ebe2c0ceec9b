//! Compare-and-swaps on the witness's register: at most one under way, sent again until its outcome is known.
//!
//! Sending one again is harmless: it names the version that it replaces, so it is written once at most.

use super::event::{Action, SwapOutcome};
use super::register::{Answer, Register};
use super::state::Pending;
use super::step::Step;

impl Step {
    pub(super) fn ask(&mut self) {
        self.state.asked_at = Some(self.now);
        self.actions.push(Action::Ask);
    }

    pub(super) fn swap(&mut self, instance: u64, expected: u64, new: Register) {
        self.state.pending = Some(Pending { instance, expected, new, sent_at: self.now });
        self.actions.push(Action::Swap { instance, expected, new });
    }

    pub(super) fn swap_again(&mut self) {
        let again = self.state.setup.timing.swap_again;
        if let Some(pending) = self.state.pending.as_mut().filter(|pending| self.now >= pending.sent_at + again) {
            pending.sent_at = self.now;
            let Pending { instance, expected, new, .. } = *pending;
            self.actions.push(Action::Swap { instance, expected, new });
        }
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        self.state.answer = Some(answer);
        self.state.answered_at = self.now;
        if let Some(value) = answer.value.filter(|_| self.state.believes(answer)) {
            self.adopt(value, Some(answer.instance));
        }
    }

    pub(super) fn swapped(&mut self, new: Register, outcome: SwapOutcome) {
        let ours = self.state.pending.filter(|pending| pending.new == new);
        match outcome {
            SwapOutcome::Applied { instance } if self.state.fences() => self.fenced(instance, new),
            SwapOutcome::Applied { instance } => {
                if ours.is_some() {
                    self.state.pending = None;
                }
                self.state.answer = Some(Answer { instance, value: Some(new) });
                self.state.answered_at = self.now;
                self.adopt(new, Some(instance));
            }
            SwapOutcome::Refused(answer) => {
                if ours.is_some() {
                    self.state.pending = None;
                }
                self.answered(answer);
                self.bury_intent(answer);
            }
            // It stays pending, and is sent again in its time.
            SwapOutcome::Unknown => {}
        }
    }

    /// An intent whose base has been replaced by something else can't be written any more, by no copy of it.
    fn bury_intent(&mut self, answer: Answer) {
        let dead = self.state.record.intent.is_some_and(|intent| {
            self.state.record.instance == Some(answer.instance)
                && answer.version() > intent.base
                && answer.version() < intent.new.version
        });
        if dead {
            self.persist(|record| record.intent = None);
        }
    }
}
