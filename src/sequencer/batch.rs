//! The batch being filled.

use crate::storage::{AlarmRow, Batch, LeaseRow, LogRow};
use crate::types::{LeaseId, Millis, Revision};

/// When a batch is full even though the writer is busy.
#[derive(Clone, Copy, Debug)]
pub struct BatchCaps {
    /// Rows.
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
    batch: Batch,
    bytes: usize,
}

impl OpenBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Whether nothing more should be added.
    pub fn is_full(&self, caps: BatchCaps) -> bool {
        self.batch.rows.len() >= caps.rows_max || self.bytes >= caps.bytes_max
    }

    /// Hands the batch over and begins a new one.
    pub fn take(&mut self) -> Batch {
        self.bytes = 0;
        std::mem::take(&mut self.batch)
    }

    /// Adds one transaction's rows.
    pub fn add_rows(&mut self, rows: Vec<LogRow>) {
        self.bytes += rows.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, bytes::Bytes::len)).sum::<usize>();
        self.batch.rows.extend(rows);
    }

    /// Stores a lease, new or changed.
    pub fn put_lease(&mut self, row: LeaseRow) {
        self.batch.leases_put.retain(|other| other.id != row.id);
        self.batch.leases_deleted.retain(|id| *id != row.id);
        self.batch.leases_put.push(row);
    }

    /// Removes a lease.
    pub fn delete_lease(&mut self, id: LeaseId) {
        self.batch.leases_put.retain(|row| row.id != id);
        self.batch.leases_deleted.push(id);
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
