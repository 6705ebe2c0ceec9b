//! The batch being filled.

use std::collections::BTreeMap;

use crate::storage::{AlarmRow, Batch, LeaseRow, LogRow};
use crate::types::{LeaseId, Millis, Revision};

/// When a batch is full even though the writer is busy.
#[derive(Clone, Copy, Debug)]
pub struct BatchCaps {
    /// Rows, leases and alarms.
    pub rows_max: usize,
    /// Bytes of keys and values.
    pub bytes_max: usize,
}

impl Default for BatchCaps {
    fn default() -> Self {
        Self { rows_max: 1024, bytes_max: 4 << 20 }
    }
}

/// Changes that wait for the writer to be free.
#[derive(Debug, Default)]
pub struct OpenBatch {
    /// All but its leases.
    batch: Batch,
    /// What becomes of leases: stored, or removed.
    leases: BTreeMap<LeaseId, Option<LeaseRow>>,
    bytes: usize,
}

impl OpenBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.batch.is_empty()
    }

    /// Whether nothing more should be added.
    pub fn is_full(&self, caps: BatchCaps) -> bool {
        let Batch { rows, alarms_put, alarms_deleted, .. } = &self.batch;
        let changes = rows.len() + self.leases.len() + alarms_put.len() + alarms_deleted.len();
        changes >= caps.rows_max || self.bytes >= caps.bytes_max
    }

    /// Hands the batch over and begins a new one.
    pub fn take(&mut self) -> Batch {
        self.bytes = 0;
        let mut batch = std::mem::take(&mut self.batch);
        for (id, stored) in std::mem::take(&mut self.leases) {
            match stored {
                Some(row) => batch.leases_put.push(row),
                None => batch.leases_deleted.push(id),
            }
        }
        batch
    }

    /// Adds one transaction's rows.
    pub fn add_rows(&mut self, rows: Vec<LogRow>) {
        self.bytes += rows.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, bytes::Bytes::len)).sum::<usize>();
        self.batch.rows.extend(rows);
    }

    /// Stores a lease, new or changed.
    pub fn put_lease(&mut self, row: LeaseRow) {
        self.leases.insert(row.id, Some(row));
    }

    /// Removes a lease.
    pub fn delete_lease(&mut self, id: LeaseId) {
        self.leases.insert(id, None);
    }

    /// Sets the compact revision.
    pub fn compact(&mut self, revision: Revision) {
        self.batch.compacted = Some(revision);
    }

    /// Raises an alarm.
    pub fn put_alarm(&mut self, alarm: AlarmRow) {
        self.batch.alarms_deleted.retain(|other| *other != alarm);
        self.batch.alarms_put.push(alarm);
    }

    /// Disarms an alarm.
    pub fn delete_alarm(&mut self, alarm: AlarmRow) {
        self.batch.alarms_put.retain(|other| *other != alarm);
        self.batch.alarms_deleted.push(alarm);
    }

    /// Stores the lessor's clock with whatever else is written.
    pub fn set_lessor_clock(&mut self, now: Millis) {
        self.batch.lessor_clock = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_fill_a_batch_and_only_what_became_of_each_is_stored() {
        let caps = BatchCaps { rows_max: 3, ..BatchCaps::default() };
        let lease = |id, ttl| LeaseRow { id, ttl, expiry: None };
        let mut open = OpenBatch::default();
        assert!(open.is_empty());
        open.put_lease(lease(7, 10));
        open.put_lease(lease(7, 20));
        open.delete_lease(8);
        assert!(!open.is_empty() && !open.is_full(caps));
        open.put_lease(lease(9, 5));
        open.delete_lease(9);
        assert!(open.is_full(caps));
        let batch = open.take();
        assert_eq!((batch.leases_put, batch.leases_deleted), (vec![lease(7, 20)], vec![8, 9]));
        assert!(open.is_empty());
    }
}
