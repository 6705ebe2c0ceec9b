//! The background half of a compaction: takes unreachable versions out of the index and their rows out of storage, a few at a time.
//!
//! A crash may end it anywhere: the compact revision is stored before anything is removed, and recovery begins the sweep anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Role, Shared};
use crate::mvcc::ReadView;
use crate::storage::LogError;
use crate::types::{Rev, Revision};

use std::sync::atomic::Ordering;

/// How many rows are deleted by one statement.
const ROWS_PER_DELETE: usize = 1000;
/// The pause before a failed deletion is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Sweeps whenever the compact revision has moved, until the engine is stopped.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.compaction.notified() => {}
        }
        delete_left_over(&shared).await;
        let target = shared.store.read().compacted();
        if target > *shared.swept.borrow() || *shared.swept.borrow() < 0 {
            sweep(&shared).await;
        }
    }
}

/// Deletes what this process left to another writer, which may not have got to it.
async fn delete_left_over(shared: &Shared) {
    while *shared.role.borrow() == Role::Active
        && let history = shared.unswept.history()
        && let Some((target, rows)) = shared.unswept.take()
    {
        for rows in rows.chunks(ROWS_PER_DELETE) {
            if delete(shared, history, target, rows).await == Fate::Unknown {
                return;
            }
        }
        shared.unswept.put_down();
        // Followers are told of no sweep before.
        shared.swept.send_modify(|_| {});
    }
}

async fn sweep(shared: &Shared) {
    let begun = Instant::now();
    let (instance, target) = {
        let store = shared.store.read();
        (store.instance(), store.compacted())
    };
    shared.hash_compaction(target).await;
    let mut next: Option<Bytes> = None;
    let mut removed = 0;
    let mut in_index = Duration::ZERO;
    let mut deleted_here = true;
    loop {
        let held = Instant::now();
        let (step, history) = {
            let mut store = shared.store.write();
            if store.instance() != instance {
                // Another store has taken its place, which is swept from its beginning: whoever put it there has asked for that.
                return;
            }
            (store.sweep(next.as_ref(), shared.options.compaction_batch_keys), shared.unswept.history())
        };
        in_index += held.elapsed();
        removed += step.removed.len();
        for rows in step.removed.chunks(ROWS_PER_DELETE) {
            match delete(shared, history, target, rows).await {
                Fate::Deleted => {}
                Fate::Left => deleted_here = false,
                Fate::Unknown => return,
            }
        }
        next = step.next;
        if next.is_none() {
            break;
        }
        if shared.stop.is_cancelled() {
            return;
        }
        if !step.removed.is_empty() {
            tokio::time::sleep(shared.options.compaction_pause).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    if target >= 0 {
        {
            // Held, so that whoever puts another store in its place says so after this.
            let store = shared.store.read();
            if store.instance() != instance {
                return;
            }
            shared.swept.send_replace(target);
        }
        let compaction = &shared.metrics.compaction;
        compaction.index_pause_milliseconds.observe(in_index.as_secs_f64() * 1000.0);
        if deleted_here && *shared.role.borrow() == Role::Active {
            compaction.db_total_milliseconds.observe(begun.elapsed().saturating_sub(in_index).as_secs_f64() * 1000.0);
            let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            compaction.db_last.set(i64::try_from(unix.as_secs()).unwrap_or(0));
        }
        tracing::info!(revision = target, rows = removed, took = ?begun.elapsed(), "finished compaction");
    }
}

/// What became of rows that had to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Deleted,
    /// To the leader, or to a history that isn't any more.
    Left,
    /// The engine stopped meanwhile.
    Unknown,
}

/// Deletes rows, again and again until it succeeds: the index no longer knows them. A follower leaves them to its leader, whose deletions
/// reach its own storage, and remembers them in case that it becomes the writer before.
async fn delete(shared: &Shared, history: u64, target: Revision, rows: &[Rev]) -> Fate {
    let reader = shared.log.reader();
    loop {
        let role = shared.role.borrow().clone();
        if shared.options.leader.is_some() && matches!(role, Role::Standby | Role::Following) {
            shared.unswept.add(history, target, rows);
            return Fate::Left;
        }
        if shared.unswept.history() != history {
            // The same places in history are others' now.
            return Fate::Left;
        }
        if role == Role::Active {
            let epoch = shared.epoch.load(Ordering::Relaxed);
            let began = Instant::now();
            let deleted = reader.delete(epoch, rows.to_vec()).await;
            shared.metrics.compaction.db_pause_milliseconds.observe(began.elapsed().as_secs_f64() * 1000.0);
            match deleted {
                Ok(()) => {
                    shared.metrics.compaction.db_keys_total.inc_by(rows.len() as u64);
                    return Fate::Deleted;
                }
                Err(LogError::Deposed(_)) => {}
                Err(error) => tracing::warn!(%error, rows = rows.len(), "could not delete compacted rows; trying again"),
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return Fate::Unknown,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
