//! The one step in which a durable batch becomes visible.

use std::sync::atomic::Ordering;

use super::Shared;
use crate::mvcc::ReadView;
use crate::storage::Batch;
use crate::types::Revision;

/// Makes a durable batch visible: to readers, to the lessor, to watchers, as one step. Answers the published revision.
pub(super) fn publish(shared: &Shared, batch: &Batch) -> Revision {
    let mut revision = 0;
    shared.hub.publish(|| {
        let mut store = shared.store.write();
        let events = store.apply(batch);
        revision = store.current();
        drop(store);
        shared.lessor.lock().apply(batch, shared.clock.now());
        events
    });
    if let Some(compacted) = batch.compacted {
        shared.hub.compact(compacted);
    }
    if !(batch.alarms_put.is_empty() && batch.alarms_deleted.is_empty()) {
        let mut alarms = shared.alarms.lock();
        alarms.extend(&batch.alarms_put);
        alarms.retain(|alarm| !batch.alarms_deleted.contains(alarm));
    }
    shared.batches.fetch_add(1, Ordering::Relaxed);
    revision
}
