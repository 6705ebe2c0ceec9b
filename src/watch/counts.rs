//! Events on their last way, from a stream's queue to its client, counted as etcd's metrics count them (`storage/mvcc/metrics.go`,
//! `ReportEventReceived`): each as often as there are watchers that it is for.
//!
//! etcd also counts as sent what a stream leaves behind when it ends; here that was never sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::queue::Item;

/// What was sent, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Events.
    pub events: u64,
    /// Previous pairs that etcd looks for to send with events, found or not: a Range of its store each.
    pub previous: u64,
}

/// Of all streams.
#[derive(Default)]
pub(super) struct Counts {
    /// Taken from a queue and not sent yet.
    taken: AtomicUsize,
    events: AtomicU64,
    previous: AtomicU64,
}

impl Counts {
    /// Events that were taken from a queue and not sent yet.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// What was sent since the last call.
    pub fn take_sent(&self) -> Sent {
        Sent { events: self.events.swap(0, Ordering::Relaxed), previous: self.previous.swap(0, Ordering::Relaxed) }
    }

    /// A stream takes these from its queue.
    pub fn takes(&self, items: &[Item]) {
        self.taken.fetch_add(items.iter().map(Item::events).sum(), Ordering::Relaxed);
    }

    /// A stream sends one of those that it has taken.
    pub fn sends(&self, item: &Item) {
        let events = item.events();
        if events > 0 {
            self.taken.fetch_sub(events, Ordering::Relaxed);
            self.events.fetch_add(events as u64, Ordering::Relaxed);
            self.previous.fetch_add(item.previous() as u64, Ordering::Relaxed);
        }
    }

    /// A stream ends with these in its hands.
    pub fn drops(&self, items: &VecDeque<Item>) {
        self.taken.fetch_sub(items.iter().map(Item::events).sum(), Ordering::Relaxed);
    }
}
