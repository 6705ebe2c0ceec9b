//! Where the engine's figures come from.

use std::sync::atomic::Ordering;

use super::{Engine, Role, Shared};
use crate::sequencer::{Command, Reply};
use crate::storage::Batch;
use crate::watch::HubStats;

impl Engine {
    /// Sets every gauge to its present value: called before the metrics are shown.
    pub fn refresh_metrics(&self) {
        let shared = &self.shared;
        let status = self.status();
        let role = shared.role.borrow().clone();
        let metrics = &shared.metrics;
        let serving = matches!(role, Role::Active);
        metrics.server.has_leader.set(i64::from(matches!(role, Role::Active | Role::Following)));
        metrics.server.is_leader.set(i64::from(serving));
        metrics.server.quota_backend_bytes.set(super::shown_quota(shared.options.quota_bytes));
        metrics.server.proposals_pending.set(count(status.queued));
        metrics.engine.queue_depth.set(count(status.queued));
        metrics.engine.epoch.set(status.epoch);
        metrics.engine.storage_connected.set(i64::from(serving));
        metrics.mvcc.current_revision.set(status.revision);
        metrics.mvcc.compact_revision.set(status.compacted);
        metrics.mvcc.db_total_size_in_bytes.set(status.disk_bytes);
        metrics.mvcc.db_total_size_in_use_in_bytes.set(status.in_use_bytes);
        metrics.value_cache.bytes.set(count(status.resident_bytes));
        metrics.value_cache.limit_bytes.set(count(shared.options.store.value_budget));
        metrics.lease.active.set(count(shared.lessor.lock().len()));
        metrics.compaction.pending_revisions.set((status.compacted - *shared.swept.borrow()).max(0));
        {
            let store = shared.store.read();
            metrics.mvcc.keys_total.set(count(store.indexed_key_count()));
            metrics.watch.ring_revisions.set(count(store.ring_len()));
            let evictions = store.evictions();
            let counted = metrics.value_cache.evictions_total.get();
            metrics.value_cache.evictions_total.inc_by(evictions.saturating_sub(counted));
        }
        let HubStats { streams, watchers, lagging, lag_revisions, queued, .. } = shared.hub.stats();
        metrics.watch.stream_total.set(count(streams));
        metrics.watch.watcher_total.set(count(watchers));
        metrics.watch.slow_watcher_total.set(count(lagging));
        metrics.watch.lag_revisions.set(lag_revisions);
        metrics.watch.pending_events_total.set(count(queued));
    }
}

impl Shared {
    /// Counts a command that was accepted.
    pub(super) fn count_accepted(&self, command: &Command, reply: &Reply) {
        let metrics = &self.metrics;
        match (command, reply) {
            (Command::Put(put), _) => {
                metrics.mvcc.put_total.inc();
                metrics.mvcc.total_put_size_in_bytes.add(count(put.key.len() + put.value.len()));
            }
            (Command::DeleteRange(_), _) => metrics.mvcc.delete_total.inc(),
            (Command::Txn(_), _) => metrics.mvcc.txn_total.inc(),
            (Command::LeaseGrant { ttl, .. }, _) => {
                metrics.lease.granted_total.inc();
                metrics.lease.ttl_total.observe(*ttl as f64);
            }
            (Command::LeaseRevoke { .. }, _) => metrics.lease.revoked_total.inc(),
            _ => {}
        }
    }

    /// Counts a batch that became durable.
    pub(super) fn count_published(&self, batch: &Batch, answers: usize, took: std::time::Duration) {
        let engine = &self.metrics.engine;
        engine.batch_operations.observe(answers as f64);
        engine.batch_bytes.observe(batch.bytes() as f64);
        engine.commit_seconds.observe(took.as_secs_f64());
        let committed = count(answers);
        self.metrics.server.proposals_committed_total.add(committed);
        self.metrics.server.proposals_applied_total.add(committed);
        self.metrics.watch.events_total.inc_by(batch.rows.len() as u64);
    }

    /// Counts how a recovery went.
    pub(super) fn count_recovery(&self, rows: usize, took: std::time::Duration) {
        let engine = &self.metrics.engine;
        engine.recoveries_total.inc();
        engine.recovery_rows.set(count(rows));
        engine.recovery_duration_seconds.set(took.as_secs_f64());
        self.metrics.server.leader_changes_seen_total.inc();
        self.metrics.server.set_server_id(self.member_id.load(Ordering::Relaxed));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
