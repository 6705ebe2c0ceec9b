//! Where the engine's figures come from.
//!
//! What is counted of a write is counted when it is decided for good, as in etcd, which counts what it applies; a write whose batch fails
//! was never there. What isn't known at the moment of a scrape is absent from it.

use std::sync::atomic::Ordering;

use super::answer::Answer;
use super::{Engine, Role, Shared};
use crate::mvcc::Operations;
use crate::sequencer::Command;
use crate::storage::Batch;
use crate::watch::{HubStats, Sent};

/// What is counted of a request once it is decided.
pub(super) struct Applied {
    operations: Operations,
    lease: Option<LeaseChange>,
}

enum LeaseChange {
    /// With this time to live, in seconds.
    Granted(i64),
    Revoked,
    /// Revoked because its time had run out.
    Expired,
}

impl Applied {
    /// Of a command that did these operations, and succeeded or was refused. The engine's own are revocations of expired leases.
    pub fn new(operations: Operations, command: &Command, succeeded: bool, is_own: bool) -> Self {
        let lease = match command {
            Command::LeaseGrant { ttl, .. } => Some(LeaseChange::Granted(*ttl)),
            Command::LeaseRevoke { .. } if is_own => Some(LeaseChange::Expired),
            Command::LeaseRevoke { .. } => Some(LeaseChange::Revoked),
            _ => None,
        };
        Self { operations, lease: lease.filter(|_| succeeded) }
    }
}

impl Engine {
    /// Sets every gauge to its present value, or hides it: called before the metrics are shown. `forwards` says whether requests that this
    /// process doesn't answer are forwarded to a writer.
    pub fn refresh_metrics(&self, forwards: bool) {
        let shared = &self.shared;
        let _refreshing = shared.refreshing.lock();
        let status = self.status();
        let role = shared.role.borrow().clone();
        let (is_current, serving) = (shared.is_current.load(Ordering::Acquire), role == Role::Active);
        // Decisions, leases and the database's sweep are the writer's, who remains it while he recovers.
        let is_writer = is_current && matches!(role, Role::Active | Role::Recovering);
        let metrics = &shared.metrics;
        metrics.server.has_leader.set(i64::from(serving || role == Role::Following || forwards));
        metrics.server.is_leader.set(i64::from(serving));
        metrics.server.set_server_id(shared.member_id.load(Ordering::Relaxed));
        metrics.server.quota_backend_bytes.set(super::shown_quota(shared.options.quota_bytes));
        metrics.server.proposals_committed_total.show_if(is_writer);
        metrics.server.proposals_applied_total.show_if(is_writer);
        metrics.engine.queue_depth.set(count(status.queued));
        metrics.engine.epoch.show(is_current.then_some(status.epoch));
        metrics.engine.storage_connected.set(i64::from(serving));
        metrics.mvcc.current_revision.show(is_current.then_some(status.revision));
        metrics.mvcc.compact_revision.show(is_current.then_some(status.compacted));
        metrics.mvcc.keys_total.show(is_current.then_some(count(status.keys)));
        metrics.mvcc.db_total_size_in_bytes.show(shared.disk_usage.known().filter(|_| is_current));
        metrics.mvcc.db_total_size_in_use_in_bytes.show(is_current.then_some(status.in_use_bytes));
        metrics.value_cache.bytes.set(count(status.resident_bytes));
        metrics.value_cache.limit_bytes.set(count(shared.options.store.value_budget));
        let knows_leases = is_writer && !shared.leases_stale.load(Ordering::Relaxed);
        metrics.lease.active.show(knows_leases.then(|| count(shared.lessor.lock().len())));
        let unswept = (status.compacted - *shared.swept.borrow()).max(0);
        metrics.compaction.pending_revisions.show(is_writer.then_some(unswept));
        {
            let store = shared.store.read();
            metrics.watch.ring_revisions.set(count(store.ring_len()));
            let evictions = store.evictions();
            let counted = metrics.value_cache.evictions_total.get();
            metrics.value_cache.evictions_total.inc_by(evictions.saturating_sub(counted));
        }
        let HubStats { streams, watchers, lagging, lag_revisions, pending_events, .. } = shared.hub.stats();
        metrics.watch.stream_total.set(count(streams));
        metrics.watch.watcher_total.set(count(watchers));
        metrics.watch.slow_watcher_total.set(count(lagging));
        metrics.watch.lag_revisions.set(lag_revisions);
        metrics.watch.pending_events_total.set(count(pending_events));
        let Sent { events, previous } = shared.hub.take_sent();
        metrics.watch.events_total.inc_by(events);
        metrics.mvcc.range_total.inc_by(previous);
    }
}

impl Shared {
    /// Counts requests that have been decided, if these have.
    pub(super) fn count_decided<'a>(&self, answers: impl IntoIterator<Item = &'a Answer>) {
        let metrics = &self.metrics;
        let (mut decided, mut operations) = (0, Operations::default());
        for answer in answers.into_iter().filter(|answer| answer.is_decided()) {
            decided += 1;
            operations += answer.applied.operations;
            match answer.applied.lease {
                Some(LeaseChange::Granted(ttl)) => {
                    metrics.lease.granted_total.inc();
                    metrics.lease.ttl_total.observe(ttl as f64);
                }
                Some(LeaseChange::Revoked) => metrics.lease.revoked_total.inc(),
                Some(LeaseChange::Expired) => {
                    metrics.lease.revoked_total.inc();
                    metrics.lease.expired_total.inc();
                }
                None => {}
            }
        }
        metrics.server.proposals_committed_total.add(decided);
        metrics.server.proposals_applied_total.add(decided);
        self.count_operations(operations);
    }

    pub(super) fn count_operations(&self, operations: Operations) {
        let Operations { ranges, puts, deletes, put_bytes, txns, .. } = operations;
        let mvcc = &self.metrics.mvcc;
        mvcc.range_total.inc_by(ranges);
        mvcc.put_total.inc_by(puts);
        mvcc.delete_total.inc_by(deletes);
        mvcc.total_put_size_in_bytes.add(i64::try_from(put_bytes).unwrap_or(i64::MAX));
        mvcc.txn_total.inc_by(txns);
    }

    /// Counts a batch that became durable, and the requests that it decides.
    pub(super) fn count_published(&self, batch: &Batch, answers: &[Answer], took: std::time::Duration) {
        let engine = &self.metrics.engine;
        engine.batch_operations.observe(answers.len() as f64);
        engine.batch_bytes.observe(batch.bytes() as f64);
        engine.commit_seconds.observe(took.as_secs_f64());
        self.count_decided(answers);
    }

    /// Counts how a recovery went.
    pub(super) fn count_recovery(&self, rows: usize, took: std::time::Duration) {
        let engine = &self.metrics.engine;
        engine.recoveries_total.inc();
        engine.recovery_rows.show(Some(count(rows)));
        engine.recovery_duration_seconds.show(Some(took.as_secs_f64()));
        self.metrics.server.leader_changes_seen_total.inc();
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
