//! What this process may do at this moment, as the state machine sees it.
//!
//! Everybody who acknowledges a write or answers a linearizable read asks here, with the clock of that moment: a process that was
//! stopped in between finds its lease run out. The driver is the only one who changes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::watch;

use super::clock;
use crate::supervisor::fsm::{Phase, State};
use crate::types::{Epoch, Millis};

/// The rights of a moment. Times are on the boot-time clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// This node is the register's owner: if nobody serves now, it will.
    pub owns: bool,
    /// Open, from `not_before` on: what PostgreSQL shows is safe, and what it commits may be acknowledged.
    pub open: bool,
    /// A promise of this node's own, not to take over, lasts until then.
    pub not_before: Millis,
    /// Linearizable reads are answered until then; `Millis::MAX` without the need of a lease.
    pub read_until: Millis,
    /// The epoch that the pair is in.
    pub epoch: Epoch,
    /// The epoch that an operator has begun by accepting the loss of data; 0 if none was.
    pub lossy: Epoch,
}

impl Rights {
    /// What `state` allows.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let read_until = if state.may_be_alone() { Millis::MAX } else { state.lease_until };
        Self {
            owns: state.is_owner() && state.phase == Phase::Leader,
            // The promise is asked for with the clock of the moment that it is needed in.
            open: state.may_acknowledge(Millis::MAX),
            not_before: state.promised_until,
            read_until,
            epoch: state.record.seen.map_or(0, |seen| seen.epoch),
            lossy: 0,
        }
    }

    /// What both allow: the gate while actions are done that lead from one to the other.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            owns: self.owns && other.owns,
            open: self.open && other.open,
            not_before: self.not_before.max(other.not_before),
            read_until: self.read_until.min(other.read_until),
            epoch: self.epoch.max(other.epoch),
            lossy: self.lossy.max(other.lossy),
        }
    }

    /// Whether a commit may be acknowledged, and a session for writing be opened, at `now`.
    #[must_use]
    pub fn may_acknowledge(&self, now: Millis) -> bool {
        self.open && now >= self.not_before
    }

    /// Whether what is published may be shown as the newest at `now`.
    #[must_use]
    pub fn may_read(&self, now: Millis) -> bool {
        self.may_acknowledge(now) && now < self.read_until
    }
}

/// The gate; clones share it. Closed before the driver opens it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    rights: watch::Sender<Rights>,
    /// The epoch in which the present session for writing began.
    session: AtomicI64,
}

impl Gate {
    /// Changes the rights; for the driver alone.
    pub(super) fn set(&self, rights: Rights) {
        self.0.rights.send_if_modified(|present| {
            let rights = Rights { lossy: present.lossy, ..rights };
            let changed = *present != rights;
            *present = rights;
            changed
        });
    }

    /// Remembers that an operator has accepted, by beginning this epoch, that what was shown to clients may be gone.
    pub(super) fn accept_loss(&self, epoch: Epoch) {
        self.0.rights.send_modify(|rights| rights.lossy = epoch);
    }

    /// From here on the store in memory is what a session shows that began in `epoch`: the rights of another one say nothing of it.
    pub(super) fn begin_session(&self, epoch: Epoch) {
        self.0.session.store(epoch, Ordering::Release);
    }

    /// Whether the present epoch began that way.
    #[must_use]
    pub fn may_lose_published(&self) -> bool {
        let rights = self.rights();
        rights.lossy != 0 && rights.lossy == rights.epoch
    }

    /// The rights of now.
    #[must_use]
    pub fn rights(&self) -> Rights {
        *self.0.rights.borrow()
    }

    /// Follows the rights.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Rights> {
        self.0.rights.subscribe()
    }

    /// Whether what the present session has committed may be acknowledged now.
    #[must_use]
    pub fn may_acknowledge(&self) -> bool {
        self.rights_of_session().is_some_and(|rights| rights.may_acknowledge(clock::now()))
    }

    /// Whether what the present session has published may be shown as the newest now.
    #[must_use]
    pub fn may_read(&self) -> bool {
        self.rights_of_session().is_some_and(|rights| rights.may_read(clock::now()))
    }

    /// None, when the pair has gone on to another epoch since the session began: a writer that stood still while the other node led, and this
    /// one does once more, has yet to read what was written meanwhile.
    fn rights_of_session(&self) -> Option<Rights> {
        let rights = self.rights();
        (rights.epoch == self.0.session.load(Ordering::Acquire)).then_some(rights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Rights = Rights { owns: true, open: true, not_before: 100, read_until: 500, epoch: 1, lossy: 0 };

    #[test]
    fn a_lease_that_ran_out_stops_reads_and_not_acknowledgements() {
        assert!(!OPEN.may_acknowledge(99) && !OPEN.may_read(99), "its own promise still holds");
        assert!(OPEN.may_acknowledge(100) && OPEN.may_read(499));
        assert!(OPEN.may_acknowledge(500) && !OPEN.may_read(500));
    }

    #[test]
    fn on_the_way_only_what_both_allow_is_allowed() {
        let shut = Rights { open: false, read_until: 300, ..OPEN };
        assert!(!OPEN.and(shut).may_acknowledge(200) && !shut.and(OPEN).may_acknowledge(200));
        let shorter = Rights { read_until: 300, ..OPEN };
        assert!(OPEN.and(shorter).may_read(299) && !OPEN.and(shorter).may_read(300));
    }

    #[test]
    fn who_leads_once_more_shows_nothing_of_the_session_before() {
        let forever = |epoch| Rights { not_before: 0, read_until: Millis::MAX, epoch, ..OPEN };
        let gate = Gate::default();
        gate.set(forever(5));
        assert!(!gate.may_read() && !gate.may_acknowledge(), "no session has begun");
        gate.begin_session(5);
        assert!(gate.may_read() && gate.may_acknowledge());
        gate.set(Rights { open: false, ..forever(6) });
        gate.set(forever(7));
        assert!(!gate.may_read() && !gate.may_acknowledge(), "the other one has written in between");
        gate.begin_session(7);
        assert!(gate.may_read() && gate.may_acknowledge());
    }
}
