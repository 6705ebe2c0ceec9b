//! One watcher: what it wants, and how far it has come.

use crate::mvcc::{Event, Value};
use crate::types::{KeyRange, Revision};

/// A watcher's number within its stream, as clients see it. Any number is legal; 0 in a request asks the server to choose.
pub type WatchId = i64;

/// What a watcher asked for beside its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
    /// Each event carries the pair that it replaced.
    pub prev_kv: bool,
    /// Periodic progress responses.
    pub progress_notify: bool,
    /// A large response may be split.
    pub fragment: bool,
}

/// How a watcher gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Everything up to the hub's revision is delivered or in the stream's queue; what is published goes straight there.
    Synced,
    /// Everything below `cursor` is delivered or in the queue; the rest comes from history.
    Lagging {
        /// The next revision that the watcher needs.
        cursor: Revision,
    },
    /// Cancelled because its cursor was compacted. As in etcd the id stays taken, and the stream gets no manual progress, until the
    /// client cancels it.
    Compacted,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pub range: KeyRange,
    /// Nothing below is delivered, and no progress before it is reached.
    pub start_revision: Revision,
    pub options: WatchOptions,
    pub state: State,
    /// Whether the next periodic progress is wanted: not if events were sent since the last one.
    pub progress_due: bool,
    /// Distinguishes this watcher from a later one under the same id.
    pub generation: u64,
}

impl Watcher {
    /// etcd's condition for progress: synced, and its start is not in the future.
    pub fn may_progress(&self, current: Revision) -> bool {
        self.state == State::Synced && current >= self.start_revision
    }

    /// How many revisions it has to read from history before it is synced.
    pub fn behind(&self, current: Revision) -> Revision {
        match self.state {
            State::Lagging { cursor } => (current + 1 - cursor).max(0),
            State::Synced | State::Compacted => 0,
        }
    }
}

impl WatchOptions {
    /// Whether the filters let the event through.
    pub(super) fn lets_through(self, event: &Event) -> bool {
        if event.row.value.is_some() { !self.no_put } else { !self.no_delete }
    }

    /// Whether the event's previous pair belongs in a response to this watcher.
    pub(super) fn needs_prev(self, event: &Event) -> bool {
        self.prev_kv && event.prev.is_some() && !is_create(event)
    }

    /// Whether the event can't be sent from memory to this watcher because its previous value is not there.
    pub(super) fn lacks_prev(self, event: &Event) -> bool {
        self.needs_prev(event) && event.prev.as_ref().is_some_and(|prev| matches!(prev.value, Value::Evicted(_)))
    }
}

/// Whether the event is a put that created its key: etcd sends no previous pair with those, even when the same transaction deleted
/// the key before.
pub(super) fn is_create(event: &Event) -> bool {
    event.row.value.is_some() && event.row.create_revision == event.row.rev.main
}
