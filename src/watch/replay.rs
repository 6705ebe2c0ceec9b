//! Bringing lagging watchers forward: what to read from history, and who gets what of it.
//!
//! The plan is made and its result is committed under the hub's lock; the reading and matching between the two is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hub::StreamId;
use super::interval::IntervalIndex;
use super::queue::Picked;
use super::watcher::{WatchId, WatchOptions};
use crate::mvcc::RevisionEvents;
use crate::types::{KeyRange, Revision};

/// A piece of history that some lagging watchers of one stream need.
#[derive(Debug)]
pub struct ReplayPlan {
    pub(super) stream: StreamId,
    pub(super) from: Revision,
    pub(super) watchers: Vec<Lagging>,
    index: IntervalIndex<usize>,
}

/// A lagging watcher as it was when the plan was made.
#[derive(Debug)]
pub(super) struct Lagging {
    pub id: WatchId,
    pub generation: u64,
    pub cursor: Revision,
    pub range: KeyRange,
    pub options: WatchOptions,
}

/// A piece of history.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Every revision in `from..next`, ascending, gapless where it has events that the plan wants.
    pub revisions: Vec<Arc<RevisionEvents>>,
    /// The first revision that isn't covered: everything in `from..next` is here.
    pub next: Revision,
}

/// What each of a plan's watchers gets of a piece of history.
#[derive(Debug)]
pub struct Matched {
    pub(super) next: Revision,
    /// By the watcher's position in the plan; whoever gets nothing is absent.
    pub(super) picked: BTreeMap<usize, Vec<Picked>>,
}

/// A piece of history that can't be used; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnusableReplay(String);

impl ReplayPlan {
    pub(super) fn new(stream: StreamId, from: Revision, watchers: Vec<Lagging>) -> Self {
        let mut index = IntervalIndex::default();
        for (position, watcher) in watchers.iter().enumerate() {
            index.insert(&watcher.range, position);
        }
        Self { stream, from, watchers, index }
    }

    /// The first revision to read.
    pub fn from(&self) -> Revision {
        self.from
    }

    /// Whether events of this key are needed. Others may be left out of the replay.
    pub fn wants(&self, key: &[u8]) -> bool {
        self.index.contains(key)
    }

    /// Whether an event of this key must have its previous value in memory, if it has a previous version.
    pub fn wants_prev(&self, key: &[u8]) -> bool {
        let mut wanted = false;
        self.index.stab(key, |position| wanted |= self.watchers[position].options.prev_kv);
        wanted
    }

    /// Finds what each watcher gets. Refuses a replay that isn't what the plan asked for: handing it on would lose events.
    pub fn matched(&self, replay: &Replay) -> Result<Matched, UnusableReplay> {
        if replay.next <= self.from {
            return Err(UnusableReplay(format!("history has nothing at revision {}", self.from)));
        }
        let mut picked: BTreeMap<usize, Vec<Picked>> = BTreeMap::new();
        let mut last = self.from - 1;
        for revision in &replay.revisions {
            if revision.revision <= last || revision.revision >= replay.next {
                return Err(UnusableReplay(format!("history answered revision {} out of order", revision.revision)));
            }
            last = revision.revision;
            for (position, positions) in self.matched_revision(revision)? {
                picked.entry(position).or_default().push(Picked::new(revision, &positions));
            }
        }
        Ok(Matched { next: replay.next, picked })
    }

    fn matched_revision(&self, revision: &RevisionEvents) -> Result<BTreeMap<usize, Vec<u32>>, UnusableReplay> {
        let mut matched: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        let mut lacking = None;
        for (at, event) in (0u32..).zip(&revision.events) {
            self.index.stab(&event.row.key, |position| {
                let watcher = &self.watchers[position];
                if revision.revision < watcher.cursor || !watcher.options.lets_through(event) {
                    return;
                }
                if watcher.options.lacks_prev(event) {
                    lacking = Some(event.row.rev);
                }
                matched.entry(position).or_default().push(at);
            });
        }
        match lacking {
            Some(rev) => Err(UnusableReplay(format!("history answered {}.{} without its previous value", rev.main, rev.sub))),
            None => Ok(matched),
        }
    }
}
