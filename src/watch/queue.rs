//! A stream's outgoing queue: bounded in entries and in bytes.
//!
//! All responses of a stream pass through one queue, in order: that alone is why `created` precedes a watcher's events, why progress
//! follows everything that it speaks of, and why a replay continues where the live events ended.

use std::collections::VecDeque;
use std::sync::Arc;

use super::hub::Limits;
use super::watcher::{WatchId, WatchOptions, is_create};
use crate::mvcc::{Event, RevisionEvents};
use crate::types::Revision;

/// Some of a revision's events. It holds on to no others, so that a queue's bytes are what the queue keeps in memory.
#[derive(Clone, Debug)]
pub struct Picked(Arc<RevisionEvents>);

impl Picked {
    /// Those at `positions`, which ascend.
    pub(super) fn new(revision: &Arc<RevisionEvents>, positions: &[u32]) -> Self {
        if positions.len() == revision.events.len() {
            return Self(Arc::clone(revision));
        }
        let events = positions.iter().filter_map(|position| revision.events.get(*position as usize)).cloned().collect();
        Self(Arc::new(RevisionEvents { revision: revision.revision, events }))
    }

    /// The revision.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// The events, in sub-revision order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.0.events.iter()
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.0.events.len()
    }

    /// Never: what has no event isn't sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One response, before it is put into its wire form.
#[derive(Clone, Debug)]
pub enum Item {
    /// A watcher came into being.
    Created {
        /// Its id.
        watch_id: WatchId,
        /// The header's revision.
        revision: Revision,
    },
    /// A watcher was refused: created and cancelled in one, under id −1.
    Refused {
        /// The header's revision.
        revision: Revision,
        /// etcd's text.
        reason: String,
    },
    /// A watcher went away because its client asked for it.
    Canceled {
        /// Its id.
        watch_id: WatchId,
        /// The header's revision.
        revision: Revision,
    },
    /// A watcher went away because what it needs is compacted. The header's revision is 0 in etcd.
    Compacted {
        /// Its id.
        watch_id: WatchId,
        /// The compact revision.
        compact_revision: Revision,
    },
    /// Events of one revision, or of several from a replay; whole revisions.
    Events {
        /// The watcher's id.
        watch_id: WatchId,
        /// The header's revision: the events' own when live, the current one when replayed.
        revision: Revision,
        /// The events, ascending by revision. Not empty.
        picked: Vec<Picked>,
        /// What the watcher asked for.
        options: WatchOptions,
        /// The compact revision when the response was taken: previous pairs below it aren't sent, whether or not they are known.
        compacted: Revision,
    },
    /// Everything up to `revision` has been delivered.
    Progress {
        /// The watcher's id; −1 for all of the stream.
        watch_id: WatchId,
        /// The header's revision.
        revision: Revision,
    },
}

impl Item {
    fn is_control(&self) -> bool {
        matches!(self, Self::Created { .. } | Self::Refused { .. } | Self::Canceled { .. })
    }

    /// How many events it tells.
    pub(super) fn events(&self) -> usize {
        let Self::Events { picked, .. } = self else { return 0 };
        picked.iter().map(Picked::len).sum()
    }

    /// How many of them etcd would look for the previous pair of.
    pub(super) fn previous(&self) -> usize {
        match self {
            Self::Events { picked, options, .. } if options.prev_kv => {
                picked.iter().flat_map(Picked::events).filter(|event| !is_create(event)).count()
            }
            _ => 0,
        }
    }

    fn weight(&self) -> usize {
        let Self::Events { picked, .. } = self else { return size_of::<Self>() };
        size_of::<Self>() + picked.iter().map(|picked| picked.0.weight()).sum::<usize>()
    }
}

/// The queue. Control responses and replays enter unasked (whoever makes them looks first whether there is room); live events and
/// progress only when there is room.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: VecDeque<(usize, Item)>,
    bytes: usize,
    control: usize,
    events: usize,
}

impl Queue {
    pub fn push(&mut self, item: Item) {
        let weight = item.weight();
        self.bytes += weight;
        self.control += usize::from(item.is_control());
        self.events += item.events();
        self.items.push_back((weight, item));
    }

    /// Adds the item if there is room. A large item always fits in an empty queue.
    pub fn offer(&mut self, item: Item, limits: &Limits) -> bool {
        let room = self.items.len() < limits.queue_entries && self.bytes + item.weight() <= limits.queue_bytes;
        if room || self.items.is_empty() {
            self.push(item);
            return true;
        }
        false
    }

    pub fn pop(&mut self) -> Option<Item> {
        let (weight, item) = self.items.pop_front()?;
        self.bytes -= weight;
        self.control -= usize::from(item.is_control());
        self.events -= item.events();
        Some(item)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn events(&self) -> usize {
        self.events
    }

    /// Whether a client's next request can be answered without letting the queue grow.
    pub fn takes_control(&self, limits: &Limits) -> bool {
        self.control < limits.control_entries
    }

    /// Whether it holds all that it may.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.items.len() >= limits.queue_entries || self.bytes >= limits.queue_bytes
    }

    /// Whether a piece of history may be added: at most half full.
    pub fn takes_replay(&self, limits: &Limits) -> bool {
        self.items.len() <= limits.queue_entries / 2 && self.bytes <= limits.queue_bytes / 2
    }
}
