//! Past events for watchers that lag: from the memory ring, else from storage.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::mvcc::{Event, Loaded, ReadView, RevisionEvents, Store, Value};
use crate::storage::{BoxFuture, Log, LogRow};
use crate::types::{Rev, Revision};
use crate::watch::{History, HistoryError, Replay, ReplayPlan};

/// The revision that a store has before its first write. A watch may start there: an election's observers do.
const EMPTY_STORE: Revision = 1;

/// The store's own past.
pub(super) struct StoreHistory {
    pub store: Arc<RwLock<Store>>,
    pub log: Arc<dyn Log>,
}

/// A piece of history as it was found; previous values may be missing.
struct Found {
    revisions: Vec<RevisionEvents>,
    next: Revision,
}

impl History for StoreHistory {
    fn replay(&self, plan: Arc<ReplayPlan>, max_bytes: usize) -> BoxFuture<'_, Result<Replay, HistoryError>> {
        Box::pin(async move {
            let current = self.store.read().current();
            let from = plan.from();
            if from > current {
                return Ok(Replay { revisions: Vec::new(), next: from });
            }
            let mut found = match self.in_ring(&plan, current, max_bytes) {
                Some(found) => found,
                None => self.in_storage(&plan, current, max_bytes).await?,
            };
            self.fill_prev(&plan, &mut found.revisions).await?;
            self.check_compaction(from)?;
            Ok(Replay { revisions: found.revisions.into_iter().map(Arc::new).collect(), next: found.next })
        })
    }
}

impl StoreHistory {
    /// Rows may have vanished while they were read: then what was read isn't everything.
    fn check_compaction(&self, from: Revision) -> Result<(), HistoryError> {
        let compacted = self.store.read().compacted();
        if compacted > from { Err(HistoryError::Compacted(compacted)) } else { Ok(()) }
    }

    fn in_ring(&self, plan: &ReplayPlan, current: Revision, max_bytes: usize) -> Option<Found> {
        let store = self.store.read();
        let mut revisions = Vec::new();
        let mut bytes = 0;
        let mut next = current + 1;
        for events in store.ring_from(plan.from())?.take_while(|events| events.revision <= current) {
            if bytes >= max_bytes {
                next = events.revision;
                break;
            }
            let wanted: Vec<Event> = events.events.iter().filter(|event| plan.wants(&event.row.key)).cloned().collect();
            if !wanted.is_empty() {
                let kept = RevisionEvents { revision: events.revision, events: wanted };
                bytes += kept.weight();
                revisions.push(kept);
            }
        }
        Some(Found { revisions, next })
    }

    async fn in_storage(&self, plan: &ReplayPlan, current: Revision, max_bytes: usize) -> Result<Found, HistoryError> {
        let from = plan.from();
        let page = self.log.reader().rows(from, current, max_bytes).await.map_err(unavailable)?;
        self.check_compaction(from)?;
        if page.compacted > from {
            // A follower's storage may hear of a compaction, and of what it deletes, before memory does.
            return Err(HistoryError::Unavailable(format!("revision {from} is being compacted")));
        }
        let last = page.rows.last().map_or(from - 1, |row| row.rev.main);
        let mut next = if page.more { last + 1 } else { current + 1 };
        check_gapless(&page.rows, from, next)?;
        let store = self.store.read();
        let mut revisions = Vec::new();
        // The page is bounded by its rows; the previous values of deletes, which are read next, are as large as values get.
        let mut bytes = 0;
        for rows in page.rows.chunk_by(|left, right| left.rev.main == right.rev.main) {
            let revision = rows[0].rev.main;
            if bytes >= max_bytes {
                next = revision;
                break;
            }
            let events: Vec<Event> =
                rows.iter().filter(|row| plan.wants(&row.key)).map(|row| event_of(&store, plan, row.clone())).collect();
            if !events.is_empty() {
                let kept = RevisionEvents { revision, events };
                bytes += kept.weight();
                revisions.push(kept);
            }
        }
        Ok(Found { revisions, next })
    }

    /// Reads back the previous values that are needed and not in memory.
    async fn fill_prev(&self, plan: &ReplayPlan, revisions: &mut [RevisionEvents]) -> Result<(), HistoryError> {
        let evicted = |event: &Event| match &event.prev {
            Some(prev) if matches!(prev.value, Value::Evicted(_)) && plan.wants_prev(&event.row.key) => Some(prev.rev),
            _ => None,
        };
        let missing: Vec<Rev> = revisions.iter().flat_map(|revision| &revision.events).filter_map(evicted).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let values = self.log.reader().values(missing.clone()).await.map_err(unavailable)?;
        let loaded: Loaded = missing.into_iter().zip(values).filter_map(|(rev, value)| Some((rev, value?))).collect();
        for event in revisions.iter_mut().flat_map(|revision| &mut revision.events) {
            let Some(rev) = evicted(event) else { continue };
            match (loaded.get(&rev), &mut event.prev) {
                (Some(value), Some(prev)) => prev.value = Value::Resident(value.clone()),
                // The version was compacted away meanwhile: etcd then shows no previous key-value either.
                _ => event.prev = None,
            }
        }
        Ok(())
    }
}

fn event_of(store: &Store, plan: &ReplayPlan, row: LogRow) -> Event {
    let before = row.rev.main - 1;
    let prev = if plan.wants_prev(&row.key) && before >= store.compacted() {
        store.live(&row.key, before).map(|(_, version)| version.clone())
    } else {
        None
    };
    Event { row, prev }
}

/// Every revision of `from..next` has at least one row, except that of the empty store, with which no write began; anything else
/// means that storage didn't tell everything.
fn check_gapless(rows: &[LogRow], from: Revision, next: Revision) -> Result<(), HistoryError> {
    let mut expected = from.max(EMPTY_STORE + 1);
    for rows in rows.chunk_by(|left, right| left.rev.main == right.rev.main) {
        if rows[0].rev.main != expected {
            break;
        }
        expected += 1;
    }
    if expected == next { Ok(()) } else { Err(HistoryError::Unavailable(format!("the log has no revision {expected}"))) }
}

fn unavailable(error: crate::storage::LogError) -> HistoryError {
    HistoryError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_of_the_empty_store_needs_no_row() {
        assert!(check_gapless(&[], EMPTY_STORE, EMPTY_STORE + 1).is_ok());
    }

    #[test]
    fn any_other_revision_without_a_row_is_a_hole() {
        let error = check_gapless(&[], EMPTY_STORE, EMPTY_STORE + 2).expect_err("revision 2 has no row");
        assert!(error.to_string().contains("no revision 2"), "{error}");
        assert!(check_gapless(&[], 7, 8).is_err());
    }
}
