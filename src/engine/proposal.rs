//! What etcd's metrics know as proposals: requests on their way through the one writer (`etcdserver/v3_server.go`,
//! `processInternalRaftRequestOnce`).
//!
//! A client's proposal is pending while its answer is waited for, wherever the request is meanwhile; one of the engine's own until it has
//! been decided or dropped. Whether it was committed is counted elsewhere: that may come to pass after its client was told that it took too
//! long, and then it has both failed and been committed, as in etcd.

use std::time::Instant;

use super::Error;
use crate::sequencer::Command;
use crate::telemetry::metrics::{Metrics, RequestKind};

/// One that is pending. When it is dropped without an end, whoever waited for it went away, or the session that had it in hand.
pub(super) struct Proposal {
    metrics: Metrics,
    kind: Option<RequestKind>,
    begun: Instant,
    fate: Fate,
}

enum Fate {
    /// Answered, if only to be refused on its own merits.
    Answered,
    /// Not answered.
    Failed,
    /// Turned away at the door.
    NotProposed,
}

impl Proposal {
    pub fn begin(metrics: &Metrics, command: &Command) -> Self {
        metrics.server.proposals_pending.inc();
        Self { metrics: metrics.clone(), kind: kind(command), begun: Instant::now(), fate: Fate::Failed }
    }

    /// It was none.
    pub fn withdraw(mut self) {
        self.fate = Fate::NotProposed;
    }

    pub fn end<T>(mut self, outcome: &Result<T, Error>) {
        self.fate = match outcome {
            Err(Error::TooManyRequests | Error::Stopped) => Fate::NotProposed,
            outcome if is_decided(outcome) => Fate::Answered,
            _ => Fate::Failed,
        };
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        let server = &self.metrics.server;
        server.proposals_pending.dec();
        let answered = match self.fate {
            Fate::NotProposed => return,
            Fate::Answered => true,
            Fate::Failed => false,
        };
        server.proposals_failed_total.inc_by(u64::from(!answered));
        if let Some(kind) = self.kind {
            server.request_seconds(kind, answered).observe(self.begun.elapsed().as_secs_f64());
        }
    }
}

/// Whether the writer has decided a request, be it by refusing it for what it asks: to etcd that is a proposal that was committed.
pub(super) fn is_decided<T>(outcome: &Result<T, Error>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(error) => match error {
            Error::Compacted | Error::FutureRevision | Error::LeaseNotFound | Error::LeaseExists | Error::KeyNotFound => true,
            // Of the writer's answers this one means that the disk is full; the quota is looked at before.
            Error::NoSpace
            | Error::TooManyRequests
            | Error::Timeout
            | Error::NotApplied
            | Error::NoLeader
            | Error::Stopped
            | Error::Storage(_) => false,
        },
    }
}

/// What etcd would propose; it notes a lease's first renewal nowhere.
fn kind(command: &Command) -> Option<RequestKind> {
    Some(match command {
        Command::Put(_) => RequestKind::Put,
        Command::DeleteRange(_) => RequestKind::DeleteRange,
        Command::Txn(_) => RequestKind::Txn,
        Command::LeaseGrant { .. } => RequestKind::LeaseGrant,
        Command::LeaseRevoke { .. } => RequestKind::LeaseRevoke,
        Command::LeaseRenewed { .. } => return None,
        Command::Compact { .. } => RequestKind::Compaction,
        Command::AlarmActivate(_) | Command::AlarmDeactivate(_) => RequestKind::Alarm,
    })
}
