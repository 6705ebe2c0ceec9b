//! Reading what storage really has: everything at the first session, only the tail at later ones.

use std::time::Instant;

use super::{Shared, writer};
use crate::mvcc::{ReadView, Store};
use crate::storage::{AlarmRow, Batch, LogError, LogRow, Meta, Writer};
use crate::types::Revision;

use std::sync::atomic::Ordering;

/// Brings the published state up to what storage has.
///
/// # Errors
/// `Unusable` when storage isn't the store that this process served before, or has lost what was published.
pub(super) async fn recover(shared: &Shared, writer: &mut dyn Writer) -> Result<(), LogError> {
    let begun = Instant::now();
    let meta = writer.meta().clone();
    check_identity(shared, &meta)?;
    let (published, compacted) = {
        let store = shared.store.read();
        (store.current(), store.compacted())
    };
    check_nothing_lost(&meta, published)?;
    // Leases are counted on from the later of two clocks, the stored one and this process's own, and not while this takes its time.
    shared.clock.set(meta.lessor_clock);
    let first = shared.cluster_id.load(Ordering::Relaxed) == 0;
    let rows = if first || meta.compacted > published {
        recover_all(shared, writer, &meta).await?
    } else {
        recover_tail(shared, writer, &meta, published, compacted).await?
    };
    shared.clock.start();
    *shared.alarms.lock() = meta.alarms.iter().copied().collect::<std::collections::BTreeSet<AlarmRow>>();
    shared.cluster_id.store(meta.cluster_id, Ordering::Relaxed);
    shared.member_id.store(meta.member_id, Ordering::Relaxed);
    shared.epoch.store(meta.epoch, Ordering::Relaxed);
    let revision = shared.store.read().current();
    shared.count_recovery(rows, begun.elapsed());
    tracing::info!(rows, revision, compacted = meta.compacted, epoch = meta.epoch, took = ?begun.elapsed(), "recovered");
    Ok(())
}

fn check_identity(shared: &Shared, meta: &Meta) -> Result<(), LogError> {
    let known = shared.cluster_id.load(Ordering::Relaxed);
    if known == 0 || known == meta.cluster_id {
        return Ok(());
    }
    Err(LogError::Unusable(format!(
        "the database now holds another store (cluster id {:x}, was {known:x}): somebody replaced it. Clients of this process have \
         seen the old one, so the new one is not served to them. If the change was intended, restart this process.",
        meta.cluster_id
    )))
}

fn check_nothing_lost(meta: &Meta, published: Revision) -> Result<(), LogError> {
    let last = meta.last_revision.unwrap_or(1).max(meta.compacted).max(1);
    if last >= published {
        return Ok(());
    }
    Err(LogError::Unusable(format!(
        "the database has lost committed revisions: it ends at revision {last}, but revision {published} had been committed and \
         shown to clients. It was probably failed over to a replica without synchronous replication, or restored from a backup. \
         Serving it would make clients' caches disagree with the store, so it is refused. Bring the newer database back, or, to \
         accept the loss, restart this process and every client of it (API servers relist)."
    )))
}

/// Builds the store anew from every row.
async fn recover_all(shared: &Shared, writer: &mut dyn Writer, meta: &Meta) -> Result<usize, LogError> {
    let mut store = Store::new(shared.options.store);
    let mut hole = None;
    let mut count = 0;
    writer
        .recover(0, &mut |rows: Vec<LogRow>| {
            count += rows.len();
            if hole.is_none() {
                hole = store.restore(&rows, meta.compacted).err();
            }
        })
        .await?;
    if let Some(revision) = hole {
        return Err(LogError::Unusable(format!(
            "the log in the database has a hole at revision {revision}: rows were removed by something other than Duet. Restore the \
             table duet.log from a backup."
        )));
    }
    store.finish_restore(meta.compacted);
    let mut lessor = shared.lessor.lock();
    lessor.restore(&meta.leases, shared.clock.now());
    for (key, version) in store.live_keys().filter(|(_, version)| version.lease != 0) {
        lessor.attach(version.lease, key.clone());
    }
    drop(lessor);
    shared.hub.jump(|| {
        let revision = store.current();
        *shared.store.write() = store;
        revision
    });
    shared.hub.compact(meta.compacted);
    shared.swept.send_replace(-1);
    Ok(count)
}

/// Publishes what storage has beyond the published revision, as if it had just been committed.
async fn recover_tail(
    shared: &Shared,
    writer: &mut dyn Writer,
    meta: &Meta,
    published: Revision,
    compacted: Revision,
) -> Result<usize, LogError> {
    // First the leases: the rows may attach keys to new ones.
    shared.lessor.lock().reconcile(&meta.leases, shared.clock.now());
    let mut carried: Vec<LogRow> = Vec::new();
    let mut count = 0;
    writer
        .recover(published, &mut |rows: Vec<LogRow>| {
            count += rows.len();
            carried.extend(rows);
            // The last revision of a chunk may go on in the next one.
            let last = carried.last().map_or(0, |row| row.rev.main);
            let whole = carried.partition_point(|row| row.rev.main < last);
            let rows: Vec<LogRow> = carried.drain(..whole).collect();
            writer::publish(shared, &Batch { rows, ..Batch::default() });
        })
        .await?;
    writer::publish(shared, &Batch { rows: carried, ..Batch::default() });
    if meta.compacted > compacted {
        writer::publish(shared, &Batch { compacted: Some(meta.compacted), ..Batch::default() });
    }
    Ok(count)
}
