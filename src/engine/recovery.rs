//! Reading what storage really has: everything at the first session, only the tail at later ones.

use std::time::Instant;

use super::publish::publish;
use super::seen::{Seen, Sought};
use super::{Shared, replication};
use crate::mvcc::{ReadView, Store, digest};
use crate::storage::{AlarmRow, Batch, LogError, LogRow, Meta, Writer};
use crate::types::Revision;

use std::sync::atomic::Ordering;

/// Brings the published state up to what storage has.
///
/// # Errors
/// `Unusable` when storage isn't the store that this process served before, or has lost what was published, here or, as far as
/// somebody remembers, elsewhere.
pub(super) async fn recover(shared: &Shared, writer: &mut dyn Writer) -> Result<(), LogError> {
    let begun = Instant::now();
    let meta = writer.meta().clone();
    let seen = match &shared.options.recall {
        Some(recall) => {
            let examined = recall.examine(meta.cluster_id, last_revision(&meta), shared.seen(), meta.wrote_before.clone());
            match examined.await {
                Ok(seen) => seen,
                Err(why) => {
                    // Somebody else may have written meanwhile, over a session that this one's has given way to.
                    writer.confirm().await?;
                    return Err(LogError::Unusable(why));
                }
            }
        }
        None => None,
    };
    check_identity(shared, &meta)?;
    let (published, compacted) = {
        let store = shared.store.read();
        (store.current(), store.compacted())
    };
    let lost = last_revision(&meta) < published;
    // Leases are counted on from the stored clock, and not while this takes its time. If this process stored it, its own has gone on
    // since; if somebody else has written meanwhile, its own says nothing about leases, and memory nothing about what became of them.
    if shared.led.load(Ordering::Relaxed) + 1 == meta.epoch {
        shared.clock.set(meta.lessor_clock);
    } else {
        shared.clock.reset(meta.lessor_clock);
        shared.leases_stale.store(true, Ordering::Relaxed);
    }
    let first = shared.cluster_id.load(Ordering::Relaxed) == 0;
    let tail = if first || lost || meta.compacted > published {
        None
    } else {
        recover_tail(shared, writer, &meta, (published, compacted), seen).await?
    };
    let rows = match tail {
        Some(rows) => rows,
        None => {
            // Others may have the numbers of the revisions that were lost.
            let lost = lost || !first && meta.compacted <= published;
            if lost && !shared.options.read_right.may_lose_published() {
                return Err(nothing_may_be_lost(shared, &meta, published, seen));
            }
            recover_all(shared, writer, &meta, seen, lost).await?
        }
    };
    if shared.leases_stale.swap(false, Ordering::Relaxed) {
        restore_leases(shared, &meta);
    }
    shared.clock.start();
    *shared.alarms.lock() = meta.alarms.iter().copied().collect::<std::collections::BTreeSet<AlarmRow>>();
    shared.cluster_id.store(meta.cluster_id, Ordering::Relaxed);
    shared.member_id.store(meta.member_id, Ordering::Relaxed);
    shared.epoch.store(meta.epoch, Ordering::Relaxed);
    shared.led.store(meta.epoch, Ordering::Relaxed);
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

fn last_revision(meta: &Meta) -> Revision {
    meta.last_revision.unwrap_or(1).max(meta.compacted).max(1)
}

fn nothing_may_be_lost(shared: &Shared, meta: &Meta, published: Revision, seen: Option<Seen>) -> LogError {
    if let (Some(recall), Some(seen)) = (&shared.options.recall, seen) {
        return LogError::Unusable(recall.differs(seen));
    }
    let last = last_revision(meta);
    LogError::Unusable(format!(
        "the database has lost committed revisions: it ends at revision {last}, but revision {published} had been committed and \
         shown to clients. It was probably failed over to a replica without synchronous replication, or restored from a backup. \
         Serving it would make clients' caches disagree with the store, so it is refused. Bring the newer database back, or, to \
         accept the loss, restart this process and every client of it (API servers relist)."
    ))
}

/// Builds the store anew from every row, among which `seen` must be; if something was `lost`, in the place of what clients have seen.
async fn recover_all(
    shared: &Shared,
    writer: &mut dyn Writer,
    meta: &Meta,
    seen: Option<Seen>,
    lost: bool,
) -> Result<usize, LogError> {
    let mut store = Store::new(shared.options.store);
    let mut sought = Sought::new(seen, meta.compacted);
    let mut hole = None;
    let mut count = 0;
    writer
        .recover(0, &mut |rows: Vec<LogRow>| {
            count += rows.len();
            if let Some(sought) = &mut sought {
                sought.pass(&rows);
            }
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
    if let (Some(recall), Some(missing)) = (&shared.options.recall, sought.filter(|sought| !sought.is_found())) {
        return Err(LogError::Unusable(recall.differs(missing.seen)));
    }
    store.finish_restore(meta.compacted, 1);
    if lost {
        tracing::error!(
            had = shared.store.read().current(),
            last = store.current(),
            "revisions that clients have seen are gone, as an operator has accepted; restart the clients of this pair (API servers relist)"
        );
        replication::replace(shared, store);
    } else {
        shared.hub.jump(|| {
            let revision = store.current();
            *shared.store.write() = store;
            revision
        });
        shared.hub.compact(meta.compacted);
    }
    shared.swept.send_replace(-1);
    shared.leases_stale.store(true, Ordering::Relaxed);
    Ok(count)
}

/// Begins with the leases that are stored, and the keys that hang on them.
fn restore_leases(shared: &Shared, meta: &Meta) {
    let store = shared.store.read();
    let mut lessor = shared.lessor.lock();
    lessor.restore(&meta.leases, shared.clock.now());
    for (key, version) in store.live_keys().filter(|(_, version)| version.lease != 0) {
        lessor.attach(version.lease, key.clone());
    }
}

/// Publishes what storage has beyond the published revision, as if it had just been committed; how many rows. `None`, with nothing
/// published, when storage has other rows under that revision, or under the one that was `seen`.
async fn recover_tail(
    shared: &Shared,
    writer: &mut dyn Writer,
    meta: &Meta,
    (published, compacted): (Revision, Revision),
    seen: Option<Seen>,
) -> Result<Option<usize>, LogError> {
    let known = shared.store.read().digest().filter(|_| published > meta.compacted);
    let after = if known.is_some() { published - 1 } else { published };
    let known = known.map(|digest| (published, digest));
    let sought = Sought::new(seen.filter(|seen| seen.revision > published), meta.compacted);
    let mut tail = Tail { shared, known, sought, waiting: Vec::new(), differs: false, rows: 0 };
    // First the leases: the rows may attach keys to new ones.
    shared.lessor.lock().reconcile(&meta.leases, shared.clock.now());
    let mut carried: Vec<LogRow> = Vec::new();
    writer
        .recover(after, &mut |rows: Vec<LogRow>| {
            carried.extend(rows);
            // The last revision of a chunk may go on in the next one.
            let last = carried.last().map_or(0, |row| row.rev.main);
            let whole = carried.partition_point(|row| row.rev.main < last);
            tail.take(carried.drain(..whole).collect());
        })
        .await?;
    tail.take(carried);
    if tail.differs || tail.known.is_some() || tail.sought.is_some() {
        return Ok(None);
    }
    if meta.compacted > compacted {
        publish(shared, &Batch { compacted: Some(meta.compacted), ..Batch::default() });
    }
    Ok(Some(tail.rows))
}

/// Publishes what is read back after a revision, once it is known to be that revision's continuation.
struct Tail<'a> {
    shared: &'a Shared,
    /// The published revision and its digest, which the first rows must have.
    known: Option<(Revision, u32)>,
    /// A later revision that clients have been shown elsewhere; until it has passed by, what comes waits.
    sought: Option<Sought>,
    waiting: Vec<Vec<LogRow>>,
    differs: bool,
    /// How many were published.
    rows: usize,
}

impl Tail<'_> {
    /// Takes in whole revisions.
    fn take(&mut self, mut rows: Vec<LogRow>) {
        let Some(last) = rows.last().map(|row| row.rev.main).filter(|_| !self.differs) else { return };
        if let Some((revision, known)) = self.known.take() {
            let stored: Vec<LogRow> = rows.drain(..rows.partition_point(|row| row.rev.main <= revision)).collect();
            self.differs = digest(&stored) != Some(known);
        }
        if let Some(sought) = &mut self.sought {
            sought.pass(&rows);
            self.differs |= last >= sought.seen.revision && !sought.is_found();
        }
        self.waiting.push(rows);
        if self.differs || self.sought.as_ref().is_some_and(|sought| last < sought.seen.revision) {
            return;
        }
        self.sought = None;
        for rows in self.waiting.drain(..).filter(|rows| !rows.is_empty()) {
            self.rows += rows.len();
            publish(self.shared, &Batch { rows, ..Batch::default() });
        }
    }
}
