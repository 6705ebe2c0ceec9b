//! The order of things: evaluates each command against committed and in-flight state, assigns the next revision and fills the open
//! batch.
//!
//! Pure: the engine's writer task drives it and tells it what time it is. Staged state (the overlay, the newest revision, which leases
//! exist) runs ahead of the published store; when a batch's outcome becomes unknown the engine throws the sequencer away and builds
//! a new one from what storage really has.
//!
//! Invariants: revisions are handed out one by one without gaps; whatever depends on a staged change is answered only after that
//! change is published (the engine keeps the order); a batch never passes its caps by more than its last command.

mod batch;
mod command;

pub use batch::{BatchCaps, OpenBatch};
pub use command::{Command, Failure, Reply, first_key};

use std::collections::BTreeSet;

use crate::lease::Lessor;
use crate::mvcc::{EvalError, Evaluator, Layered, LeaseLookup, Loaded, Operations, Overlay, ReadView, Store};
use crate::storage::{AlarmRow, LeaseRow};
use crate::types::{LeaseId, Millis, Revision};

/// The staged state and the batch being filled.
#[derive(Debug)]
pub struct Sequencer {
    staged: Overlay,
    current: Revision,
    compacted: Revision,
    leases: BTreeSet<LeaseId>,
    open: OpenBatch,
}

impl LeaseLookup for BTreeSet<LeaseId> {
    fn exists(&self, id: LeaseId) -> bool {
        self.contains(&id)
    }
}

impl Sequencer {
    /// Nothing staged over `store`; `leases` are the ids that exist.
    pub fn new(store: &Store, leases: impl IntoIterator<Item = LeaseId>) -> Self {
        Self {
            staged: Overlay::default(),
            current: store.current(),
            compacted: store.compacted(),
            leases: leases.into_iter().collect(),
            open: OpenBatch::default(),
        }
    }

    /// The newest revision handed out.
    pub fn current(&self) -> Revision {
        self.current
    }

    /// The batch being filled.
    pub fn open(&mut self) -> &mut OpenBatch {
        &mut self.open
    }

    /// Takes what `published` covers out of the staged state: the store has it now.
    pub fn published(&mut self, published: Revision) {
        self.staged.published(published);
    }

    /// Evaluates a command against `store` with everything staged over it. On success its changes, if any, are staged and stand in
    /// the open batch. What etcd's metrics count of it is added to `operations`, also of a command that is refused.
    ///
    /// # Errors
    /// The refusal to be given to the client, or [`Failure::NeedValues`]: load them and call again, with other `operations`. Nothing is
    /// staged then.
    pub fn evaluate(
        &mut self,
        command: &Command,
        store: &Store,
        lessor: &Lessor,
        loaded: &Loaded,
        now: Millis,
        operations: &mut Operations,
    ) -> Result<Reply, Failure> {
        let view = Layered { base: store, over: &self.staged, current: self.current, compacted: self.compacted };
        let evaluator = Evaluator::new(&view, &self.leases, loaded).counting(operations);
        let (rows, reply) = match command {
            Command::Put(request) => {
                let done = evaluator.put(request)?;
                (done.rows, Reply::Put(done.response))
            }
            Command::DeleteRange(request) => {
                let done = evaluator.delete_range(request)?;
                (done.rows, Reply::DeleteRange(done.response))
            }
            Command::Txn(request) => {
                let done = evaluator.txn(request)?;
                (done.rows, Reply::Txn(done.response))
            }
            Command::LeaseRevoke { id } => {
                if !self.leases.contains(id) {
                    return Err(Failure::LeaseNotFound);
                }
                let done = evaluator.delete_keys(attached_keys(lessor, &self.staged, &view, *id));
                self.leases.remove(id);
                self.open.delete_lease(*id);
                (done.rows, Reply::Revision(done.response))
            }
            Command::LeaseGrant { id, ttl } => return self.grant(*id, *ttl, now),
            Command::LeaseRenewed { id, ttl } => return self.renewed(*id, *ttl),
            Command::Compact { revision } => {
                let compacted = self.compact(*revision)?;
                operations.range();
                return Ok(compacted);
            }
            Command::AlarmActivate(alarm) => return Ok(self.alarm(*alarm, true)),
            Command::AlarmDeactivate(alarm) => return Ok(self.alarm(*alarm, false)),
        };
        if let Some(last) = rows.last() {
            self.current = last.rev.main;
            rows.iter().for_each(|row| self.staged.push(row));
            self.open.add_rows(rows);
        }
        Ok(reply)
    }

    fn grant(&mut self, id: LeaseId, ttl: i64, now: Millis) -> Result<Reply, Failure> {
        if !self.leases.insert(id) {
            return Err(Failure::LeaseExists);
        }
        let lifetime = Millis::try_from(ttl).unwrap_or(0).saturating_mul(1000);
        self.open.put_lease(LeaseRow { id, ttl, expiry: Some(now.saturating_add(lifetime)) });
        // The expiry says nothing without the time that it is counted from, which isn't stored while there are no leases.
        self.open.set_lessor_clock(now);
        Ok(Reply::Revision(self.current))
    }

    fn renewed(&mut self, id: LeaseId, ttl: i64) -> Result<Reply, Failure> {
        if !self.leases.contains(&id) {
            return Err(Failure::LeaseNotFound);
        }
        self.open.put_lease(LeaseRow { id, ttl, expiry: None });
        Ok(Reply::Revision(self.current))
    }

    fn compact(&mut self, revision: Revision) -> Result<Reply, Failure> {
        if revision <= self.compacted {
            return Err(Failure::Compacted);
        }
        if revision > self.current {
            return Err(Failure::FutureRevision);
        }
        self.compacted = revision;
        self.open.compact(revision);
        Ok(Reply::Revision(self.current))
    }

    fn alarm(&mut self, alarm: AlarmRow, raise: bool) -> Reply {
        if raise {
            self.open.put_alarm(alarm);
        } else {
            self.open.delete_alarm(alarm);
        }
        Reply::Revision(self.current)
    }
}

/// The keys attached to a lease, staged changes included, sorted: a key belongs to the lease that its newest version names.
fn attached_keys(lessor: &Lessor, staged: &Overlay, view: &dyn ReadView, id: LeaseId) -> BTreeSet<bytes::Bytes> {
    let published = lessor.keys(id);
    let in_flight = staged.latest().filter(|(_, version)| version.lease == id).map(|(key, _)| key.clone());
    published
        .into_iter()
        .chain(in_flight)
        .filter(|key| view.live(key, Revision::MAX).is_some_and(|(_, version)| version.lease == id))
        .collect()
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::NeedValues(revs) => Self::NeedValues(revs),
            EvalError::Compacted => Self::Compacted,
            EvalError::FutureRevision => Self::FutureRevision,
            EvalError::LeaseNotFound => Self::LeaseNotFound,
            EvalError::KeyNotFound => Self::KeyNotFound,
        }
    }
}
