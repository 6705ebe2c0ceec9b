//! Who watches what, and how far each has come. The engine keeps the hub under one lock.
//!
//! A watcher is a cursor. It is either *synced*: everything up to the hub's revision is delivered or queued, and what is published
//! next goes straight to its stream's queue; or *lagging*: its stream's own task brings it forward from history, a bounded piece at a
//! time, and makes it synced again under the lock when it has reached the hub's revision. Registering places the cursor in the same
//! critical section that decides between the two, so nothing falls between.
//!
//! Invariants: a watcher gets each event of its range from its start revision on, once, in order, all of a revision together; a
//! progress revision is queued behind everything that it speaks of; publishing never waits, and a full queue makes its watchers
//! lagging, never shorter; what a stream that isn't read holds on to is bounded by [`Limits`].
//!
//! Doesn't read history, doesn't know the time, doesn't wake anybody: it says who is to be woken.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::interval::IntervalIndex;
use super::queue::{Item, Picked, Queue};
use super::replay::{Lagging, Matched, ReplayPlan};
use super::watcher::{State, WatchId, WatchOptions, Watcher};
use crate::mvcc::RevisionEvents;
use crate::types::{KeyRange, Revision};

/// A stream's number; never reused.
pub type StreamId = u64;

/// The id under which etcd refuses watchers and answers manual progress.
pub const NO_WATCH: WatchId = -1;

/// etcd's text for a watcher of an empty range.
pub const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
/// etcd's text for an id that the stream has already.
pub const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
/// etcd's text for a negative start revision.
pub const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

/// How much one stream may hold on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Responses in a queue, beyond which live events make their watchers lagging.
    pub queue_entries: usize,
    /// Bytes of events in a queue, likewise.
    pub queue_bytes: usize,
    /// Answers to the client's requests in a queue, beyond which its next request waits.
    pub control_entries: usize,
    /// Watchers that one replay serves.
    pub replay_watchers: usize,
    /// Revisions in one response (etcd's `watchBatchMaxRevs`).
    pub response_revisions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { queue_entries: 1024, queue_bytes: 4 << 20, control_entries: 16, replay_watchers: 64, response_revisions: 1000 }
    }
}

/// What a client asks of a new watcher.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The id that the client chose; 0 to let the server choose.
    pub watch_id: WatchId,
    /// The keys.
    pub range: KeyRange,
    /// The first revision to deliver; 0 for what comes next.
    pub start_revision: Revision,
    /// The rest.
    pub options: WatchOptions,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Open streams.
    pub streams: usize,
    /// Watchers; those that a compaction has ended are there, as in etcd, until their clients cancel them.
    pub watchers: usize,
    /// Those of them that lag.
    pub lagging: usize,
    /// How many revisions the one that lags most is behind.
    pub lag_revisions: Revision,
    /// Responses in all queues.
    pub queued: usize,
    /// Bytes of events in all queues.
    pub queued_bytes: usize,
    /// Events in all queues, and taken from there but not sent yet.
    pub pending_events: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    stream: StreamId,
    watch: WatchId,
}

#[derive(Debug, Default)]
struct Stream {
    queue: Queue,
    watchers: BTreeMap<WatchId, Watcher>,
    next_id: WatchId,
    /// How many watchers lag.
    lagging: usize,
    /// The watcher that the last replay began with: the next one begins with another, so that one that is far behind doesn't hold up
    /// the others.
    turn: WatchId,
    /// Whether the stream's task waits to be woken.
    idle: bool,
}

/// All streams and their watchers.
#[derive(Debug)]
pub struct Hub {
    current: Revision,
    compacted: Revision,
    limits: Limits,
    streams: BTreeMap<StreamId, Stream>,
    synced: IntervalIndex<Target>,
    next_stream: StreamId,
    next_generation: u64,
    wakes: Vec<StreamId>,
}

impl Hub {
    /// A hub over a store whose published revision is `current` and whose compact revision is `compacted`.
    pub fn new(current: Revision, compacted: Revision, limits: Limits) -> Self {
        Self {
            current,
            compacted,
            limits,
            streams: BTreeMap::new(),
            synced: IntervalIndex::default(),
            next_stream: 0,
            next_generation: 0,
            wakes: Vec::new(),
        }
    }

    /// The published revision.
    pub fn current(&self) -> Revision {
        self.current
    }

    /// Opens a stream.
    pub fn open(&mut self) -> StreamId {
        self.next_stream += 1;
        self.streams.insert(self.next_stream, Stream::default());
        self.next_stream
    }

    /// Forgets a stream with all its watchers.
    pub fn close(&mut self, stream: StreamId) {
        let Some(gone) = self.streams.remove(&stream) else { return };
        for (watch, watcher) in &gone.watchers {
            self.synced.remove(&watcher.range, Target { stream, watch: *watch });
        }
    }

    /// The streams whose tasks have something to do since they found nothing.
    pub fn take_wakes(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.wakes)
    }

    /// Whether the stream can take an answer to another request of its client. A stream that is gone takes anything and forgets it.
    pub fn takes_control(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_none_or(|stream| stream.queue.takes_control(&self.limits))
    }

    /// Adds a watcher and queues its `created`, or the refusal.
    pub fn register(&mut self, stream: StreamId, registration: Registration) {
        let Registration { watch_id, range, start_revision, options } = registration;
        if start_revision < 0 {
            return self.refuse(stream, COMPACTED.to_owned());
        }
        if range.is_empty() {
            return self.refuse(stream, EMPTY_RANGE.to_owned());
        }
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(watch) = state.pick_id(watch_id) else { return self.refuse(stream, DUPLICATE_ID.to_owned()) };
        let synced = start_revision == 0 || start_revision > self.current;
        let cursor = start_revision;
        self.next_generation += 1;
        let watcher = Watcher {
            range,
            start_revision,
            options,
            state: if synced { State::Synced } else { State::Lagging { cursor } },
            progress_due: true,
            generation: self.next_generation,
        };
        if synced {
            self.synced.insert(&watcher.range, Target { stream, watch });
        } else {
            state.lagging += 1;
        }
        state.watchers.insert(watch, watcher);
        self.queue(stream, Item::Created { watch_id: watch, revision: self.current });
    }

    /// Queues the refusal of a watcher.
    pub fn refuse(&mut self, stream: StreamId, reason: String) {
        self.queue(stream, Item::Refused { revision: self.current, reason });
    }

    /// Removes a watcher and queues the answer; an unknown id gets none. What is queued for the watcher is still delivered before it.
    pub fn cancel(&mut self, stream: StreamId, watch: WatchId) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        let Some(watcher) = state.watchers.remove(&watch) else { return };
        match watcher.state {
            State::Synced => {
                self.synced.remove(&watcher.range, Target { stream, watch });
            }
            State::Lagging { .. } => state.lagging -= 1,
            State::Compacted => {}
        }
        self.queue(stream, Item::Canceled { watch_id: watch, revision: self.current });
    }

    /// Queues one progress response for the whole stream, if all of its watchers are synced and have reached their start, and there
    /// is at least one, and there is room. Otherwise nothing happens, as in etcd.
    pub fn request_progress(&mut self, stream: StreamId) {
        let current = self.current;
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if !state.watchers.is_empty() && state.watchers.values().all(|watcher| watcher.may_progress(current)) {
            state.queue.offer(Item::Progress { watch_id: NO_WATCH, revision: current }, &self.limits);
            self.wake(stream);
        }
    }

    /// The stream's periodic progress: one response for each watcher that asked for it, is synced, and had no event since last time.
    pub fn tick(&mut self, stream: StreamId) {
        let current = self.current;
        let Some(state) = self.streams.get_mut(&stream) else { return };
        for (watch, watcher) in state.watchers.iter_mut().filter(|(_, watcher)| watcher.options.progress_notify) {
            if watcher.progress_due && watcher.may_progress(current) {
                state.queue.offer(Item::Progress { watch_id: *watch, revision: current }, &self.limits);
            }
            watcher.progress_due = true;
        }
        self.wake(stream);
    }

    /// Hands out what has been published. The revisions follow the hub's own without a gap: a gap would be a lost event.
    pub fn publish(&mut self, revisions: &[Arc<RevisionEvents>]) {
        for revision in revisions {
            assert_eq!(revision.revision, self.current + 1, "published revisions are gapless");
            self.publish_one(revision);
            self.current = revision.revision;
        }
    }

    fn publish_one(&mut self, revision: &Arc<RevisionEvents>) {
        if let [event] = revision.events.as_slice() {
            let mut targets = Vec::new();
            self.synced.stab(&event.row.key, |target| targets.push(target));
            for target in targets {
                self.deliver(target, revision, &[0]);
            }
            return;
        }
        let mut targets: BTreeMap<Target, Vec<u32>> = BTreeMap::new();
        for (position, event) in (0u32..).zip(&revision.events) {
            self.synced.stab(&event.row.key, |target| targets.entry(target).or_default().push(position));
        }
        for (target, positions) in targets {
            self.deliver(target, revision, &positions);
        }
    }

    /// Queues a revision's events, given by position, for a synced watcher in whose range they are; or makes it lagging.
    fn deliver(&mut self, target: Target, revision: &Arc<RevisionEvents>, positions: &[u32]) {
        let Some(stream) = self.streams.get_mut(&target.stream) else { return };
        let Some(watcher) = stream.watchers.get_mut(&target.watch) else { return };
        if revision.revision < watcher.start_revision {
            return;
        }
        let options = watcher.options;
        let event_at = |position: &u32| &revision.events[*position as usize];
        let positions: Vec<u32> = positions.iter().copied().filter(|at| options.lets_through(event_at(at))).collect();
        if positions.is_empty() {
            return;
        }
        let item = Item::Events {
            watch_id: target.watch,
            revision: revision.revision,
            picked: vec![Picked::new(revision, &positions)],
            options,
            compacted: self.compacted,
        };
        let lacking = positions.iter().any(|at| options.lacks_prev(event_at(at)));
        if lacking || !stream.queue.offer(item, &self.limits) {
            watcher.state = State::Lagging { cursor: revision.revision };
            stream.lagging += 1;
            self.synced.remove(&watcher.range, target);
        }
        self.wake(target.stream);
    }

    /// Says that revisions up to `current` were published without passing through here (they are in history). Watchers that were
    /// synced read them from there.
    pub fn jump(&mut self, current: Revision) {
        assert!(current >= self.current, "the published revision never goes back");
        let missed = self.current + 1;
        self.current = current;
        let mut woken = Vec::new();
        for (id, stream) in &mut self.streams {
            for (watch, watcher) in &mut stream.watchers {
                let cursor = missed.max(watcher.start_revision);
                if watcher.state == State::Synced && cursor <= current {
                    watcher.state = State::Lagging { cursor };
                    stream.lagging += 1;
                    self.synced.remove(&watcher.range, Target { stream: *id, watch: *watch });
                }
            }
            woken.push(*id);
        }
        woken.into_iter().for_each(|stream| self.wake(stream));
    }

    /// Begins anew over another history; streams don't outlive the one that they were about.
    pub fn reset(&mut self, current: Revision, compacted: Revision) {
        debug_assert!(self.streams.is_empty(), "streams are ended before");
        self.current = current;
        self.compacted = compacted;
    }

    /// Raises the compact revision. Must be called before any row is removed from history, so that a replay that may lack rows is
    /// noticed when it is committed.
    pub fn compact(&mut self, revision: Revision) {
        self.compacted = self.compacted.max(revision);
    }

    /// Takes up to `max` responses from the stream's queue. When there is nothing, the stream is woken by whatever comes next.
    pub fn take(&mut self, stream: StreamId, max: usize) -> Vec<Item> {
        let Some(state) = self.streams.get_mut(&stream) else { return Vec::new() };
        let mut items: Vec<Item> = std::iter::from_fn(|| state.queue.pop()).take(max).collect();
        for item in &mut items {
            let Item::Events { watch_id, compacted, .. } = item else { continue };
            *compacted = self.compacted;
            if let Some(watcher) = state.watchers.get_mut(watch_id) {
                watcher.progress_due = false;
            }
        }
        state.idle = items.is_empty();
        items
    }

    /// What the stream's task should read from history now; `None` when nobody lags or the queue has no room for it. Watchers whose
    /// cursor is compacted are cancelled on the way.
    pub fn plan(&mut self, stream: StreamId) -> Option<ReplayPlan> {
        let compacted = self.compacted;
        let state = self.streams.get_mut(&stream)?;
        if state.lagging == 0 || !state.queue.takes_replay(&self.limits) {
            return None;
        }
        state.cancel_compacted(compacted);
        let plan = state.plan(stream, self.limits.replay_watchers);
        if !state.queue.is_empty() {
            self.wake(stream);
        }
        plan
    }

    /// Queues what a plan's watchers get, moves their cursors behind it, and makes those synced that have reached the present.
    pub fn commit(&mut self, plan: &ReplayPlan, matched: Matched) {
        let (current, compacted) = (self.current, self.compacted);
        let Some(stream) = self.streams.get_mut(&plan.stream) else { return };
        let Matched { next, mut picked } = matched;
        let mut advanced = false;
        for (position, planned) in plan.watchers.iter().enumerate() {
            let picked = picked.remove(&position).unwrap_or_default();
            let Some(watcher) = stream.watchers.get_mut(&planned.id) else { continue };
            // Another watcher by the same name, or one whose events may be gone from what was read: the next plan cancels that.
            if watcher.generation != planned.generation || planned.cursor < compacted {
                continue;
            }
            debug_assert_eq!(watcher.state, State::Lagging { cursor: planned.cursor }, "only a commit moves a lagging cursor");
            // One piece of history for many watchers is as many times as large: those that it doesn't fit for stay where they are and
            // are in the next plan. The first gets it in any case, so that there is progress.
            if advanced && stream.queue.is_full(&self.limits) {
                continue;
            }
            advanced = true;
            for picked in picked.chunks(self.limits.response_revisions) {
                let (picked, options) = (picked.to_vec(), watcher.options);
                stream.queue.push(Item::Events { watch_id: planned.id, revision: current, picked, options, compacted });
            }
            let cursor = next.max(planned.cursor);
            if cursor > current {
                watcher.state = State::Synced;
                stream.lagging -= 1;
                self.synced.insert(&watcher.range, Target { stream: plan.stream, watch: planned.id });
            } else {
                watcher.state = State::Lagging { cursor };
            }
        }
        self.wake(plan.stream);
    }

    /// Figures for metrics; looks at every watcher.
    pub fn stats(&self) -> HubStats {
        let mut stats = HubStats { streams: self.streams.len(), ..HubStats::default() };
        for stream in self.streams.values() {
            stats.watchers += stream.watchers.len();
            stats.lagging += stream.lagging;
            let behind = stream.watchers.values().map(|watcher| watcher.behind(self.current)).max();
            stats.lag_revisions = stats.lag_revisions.max(behind.unwrap_or(0));
            stats.queued += stream.queue.len();
            stats.queued_bytes += stream.queue.bytes();
            stats.pending_events += stream.queue.events();
        }
        stats
    }

    /// How many responses wait in a stream's queue.
    #[cfg(test)]
    pub(super) fn queue_len(&self, stream: StreamId) -> usize {
        self.streams.get(&stream).map_or(0, |stream| stream.queue.len())
    }

    /// The watchers that were cancelled by compaction and whose ids are still taken.
    #[cfg(test)]
    pub(super) fn compacted_watchers(&self, stream: StreamId) -> Vec<WatchId> {
        let watchers = self.streams.get(&stream).into_iter().flat_map(|stream| &stream.watchers);
        watchers.filter(|(_, watcher)| watcher.state == State::Compacted).map(|(id, _)| *id).collect()
    }

    fn queue(&mut self, stream: StreamId, item: Item) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        state.queue.push(item);
        self.wake(stream);
    }

    fn wake(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get_mut(&stream)
            && state.idle
        {
            state.idle = false;
            self.wakes.push(stream);
        }
    }
}

impl Stream {
    /// The id of a new watcher; `None` if the asked-for one is taken.
    fn pick_id(&mut self, asked: WatchId) -> Option<WatchId> {
        if asked != 0 {
            return (!self.watchers.contains_key(&asked)).then_some(asked);
        }
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    fn cancel_compacted(&mut self, compacted: Revision) {
        for (id, watcher) in &mut self.watchers {
            if matches!(watcher.state, State::Lagging { cursor } if cursor < compacted) {
                watcher.state = State::Compacted;
                self.lagging -= 1;
                self.queue.push(Item::Compacted { watch_id: *id, compact_revision: compacted });
            }
        }
    }

    /// A replay that begins at the cursor of the next lagging watcher in turn, and serves others that are at or after it.
    fn plan(&mut self, stream: StreamId, max_watchers: usize) -> Option<ReplayPlan> {
        let lagging = |(id, watcher): (&WatchId, &Watcher)| match watcher.state {
            State::Lagging { cursor } => Some((*id, cursor)),
            State::Synced | State::Compacted => None,
        };
        let later = self.watchers.range((std::ops::Bound::Excluded(self.turn), std::ops::Bound::Unbounded)).find_map(lagging);
        let (turn, from) = later.or_else(|| self.watchers.iter().find_map(lagging))?;
        self.turn = turn;
        let others = self.watchers.iter().filter(|(id, _)| **id != turn);
        let watchers = self.watchers.get_key_value(&turn).into_iter().chain(others).filter_map(|(id, watcher)| {
            let State::Lagging { cursor } = watcher.state else { return None };
            let Watcher { range, options, generation, .. } = watcher;
            (cursor >= from).then(|| Lagging {
                id: *id,
                generation: *generation,
                cursor,
                range: range.clone(),
                options: *options,
            })
        });
        Some(ReplayPlan::new(stream, from, watchers.take(max_watchers).collect()))
    }
}
