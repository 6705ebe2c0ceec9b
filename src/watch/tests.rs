//! The hub against the definition of a watch: what a watcher is sent is the history of its range from its start, whatever the client's
//! and the history's pace.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::hub::{Hub, Limits, NO_WATCH, Registration, StreamId};
use super::queue::Item;
use super::replay::{Replay, ReplayPlan};
use super::watcher::{WatchId, WatchOptions};
use crate::mvcc::{Event, RevisionEvents, Value, Version};
use crate::storage::LogRow;
use crate::types::{KeyRange, Rev, Revision};

const STREAMS: usize = 3;
const LIMITS: Limits =
    Limits { queue_entries: 6, queue_bytes: 4000, control_entries: 3, replay_watchers: 2, response_revisions: 3 };

/// One change: key, put or deletion, and where its previous value is (`None`: there was none).
type Change = (u8, bool, Option<bool>);

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Vec<Change>>),
    Jump(Vec<Vec<Change>>),
    Register { stream: usize, watch_id: WatchId, range: KeyRange, start: Start, options: WatchOptions },
    Cancel { stream: usize, watch_id: WatchId },
    RequestProgress(usize),
    Tick(usize),
    Take { stream: usize, max: usize },
    BeginReplay(usize),
    EndReplay { stream: usize, revisions: i64 },
    Compact(i64),
}

/// A start revision, seen from the current one.
#[derive(Clone, Copy, Debug)]
enum Start {
    Now,
    At(i64),
}

fn change() -> impl Strategy<Value = Change> {
    (b'a'..=b'e', prop::bool::weighted(0.7), prop_oneof![Just(None), Just(Some(true)), Just(Some(false))])
}

fn revisions() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 1..4), 1..6)
}

fn key() -> impl Strategy<Value = Bytes> {
    (b'a'..=b'f').prop_map(|letter| Bytes::from(vec![letter]))
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        key().prop_map(KeyRange::Key),
        key().prop_map(KeyRange::From),
        (key(), key()).prop_map(|(start, end)| KeyRange::Span(start, end)),
    ]
}

fn options() -> impl Strategy<Value = WatchOptions> {
    (prop::bool::weighted(0.2), prop::bool::weighted(0.2), any::<bool>(), any::<bool>()).prop_map(
        |(no_put, no_delete, prev_kv, progress_notify)| WatchOptions {
            no_put,
            no_delete,
            prev_kv,
            progress_notify,
            fragment: false,
        },
    )
}

fn start() -> impl Strategy<Value = Start> {
    prop_oneof![1 => Just(Start::Now), 3 => (-12..4i64).prop_map(Start::At)]
}

fn step() -> impl Strategy<Value = Step> {
    let stream = || 0..STREAMS;
    let id = || prop_oneof![2 => Just(0), 1 => -1..5i64];
    prop_oneof![
        6 => revisions().prop_map(Step::Publish),
        1 => revisions().prop_map(Step::Jump),
        5 => (stream(), id(), range(), start(), options()).prop_map(|(stream, watch_id, range, start, options)| {
            Step::Register { stream, watch_id, range, start, options }
        }),
        1 => (stream(), id()).prop_map(|(stream, watch_id)| Step::Cancel { stream, watch_id }),
        2 => stream().prop_map(Step::RequestProgress),
        1 => stream().prop_map(Step::Tick),
        6 => (stream(), 1..6usize).prop_map(|(stream, max)| Step::Take { stream, max }),
        4 => stream().prop_map(Step::BeginReplay),
        4 => (stream(), 1..6i64).prop_map(|(stream, revisions)| Step::EndReplay { stream, revisions }),
        1 => (0..8i64).prop_map(Step::Compact),
    ]
}

/// A watcher as its client sees it.
#[derive(Debug)]
struct Client {
    range: KeyRange,
    options: WatchOptions,
    /// The first revision that it must see.
    start: Revision,
    /// The start revision that it asked for.
    asked: Revision,
    /// Everything that it must see up to here has been sent.
    upto: Revision,
    sent_since_tick: bool,
}

#[derive(Default)]
struct ClientStream {
    id: StreamId,
    /// Registrations whose answer hasn't been taken yet, in order.
    asked: Vec<Asked>,
    watchers: BTreeMap<WatchId, Client>,
    plan: Option<ReplayPlan>,
}

struct Asked {
    current: Revision,
    refused: bool,
    range: KeyRange,
    options: WatchOptions,
    start: Revision,
}

struct World {
    hub: Hub,
    current: Revision,
    compacted: Revision,
    history: BTreeMap<Revision, Arc<RevisionEvents>>,
    streams: Vec<ClientStream>,
    progress_seen: usize,
}

impl World {
    fn new() -> Self {
        let mut hub = Hub::new(1, -1, LIMITS);
        let streams = (0..STREAMS).map(|_| ClientStream { id: hub.open(), ..ClientStream::default() }).collect();
        Self { hub, current: 1, compacted: -1, history: BTreeMap::new(), streams, progress_seen: 0 }
    }

    fn grow(&mut self, revisions: Vec<Vec<Change>>) -> Vec<Arc<RevisionEvents>> {
        let mut grown = Vec::new();
        for changes in revisions {
            self.current += 1;
            let events = (0..).zip(changes).map(|(sub, change)| event(Rev::new(self.current, sub), change)).collect();
            let revision = Arc::new(RevisionEvents { revision: self.current, events });
            self.history.insert(self.current, revision.clone());
            grown.push(revision);
        }
        grown
    }

    fn take_step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Publish(revisions) => {
                let grown = self.grow(revisions);
                self.hub.publish(&grown);
            }
            Step::Jump(revisions) => {
                self.grow(revisions);
                self.hub.jump(self.current);
            }
            Step::Register { stream, watch_id, range, start, options } => self.register(stream, watch_id, range, start, options),
            Step::Cancel { stream, watch_id } => {
                let id = self.streams[stream].id;
                if self.hub.takes_control(id) {
                    self.hub.cancel(id, watch_id);
                }
            }
            Step::RequestProgress(stream) => self.hub.request_progress(self.streams[stream].id),
            Step::Tick(stream) => self.hub.tick(self.streams[stream].id),
            Step::Take { stream, max } => {
                self.take(stream, max)?;
            }
            Step::BeginReplay(stream) => self.begin_replay(stream),
            Step::EndReplay { stream, revisions } => self.end_replay(stream, revisions)?,
            Step::Compact(behind) => {
                self.compacted = self.compacted.max(self.current - behind);
                self.hub.compact(self.compacted);
            }
        }
        self.check_bounds()
    }

    fn register(&mut self, stream: usize, watch_id: WatchId, range: KeyRange, start: Start, options: WatchOptions) {
        let state = &mut self.streams[stream];
        if !self.hub.takes_control(state.id) {
            return;
        }
        let start = match start {
            Start::Now => 0,
            Start::At(offset) => self.current + offset,
        };
        // A refusal for a duplicate id shows when the answer is taken.
        let refused = start < 0 || range.is_empty();
        state.asked.push(Asked { current: self.current, refused, range: range.clone(), options, start });
        self.hub.register(state.id, Registration { watch_id, range, start_revision: start, options });
    }

    fn begin_replay(&mut self, stream: usize) {
        let state = &mut self.streams[stream];
        if state.plan.is_none() {
            state.plan = self.hub.plan(state.id);
        }
    }

    /// History answers at the worst moment: after rows below the compact revision have been removed.
    fn end_replay(&mut self, stream: usize, revisions: i64) -> Result<(), TestCaseError> {
        let Some(plan) = self.streams[stream].plan.take() else { return Ok(()) };
        let next = (plan.from() + revisions).min(self.current + 1);
        let surviving = self.history.range(plan.from().max(self.compacted)..next.max(plan.from().max(self.compacted)));
        let revisions = surviving.map(|(_, revision)| wanted(revision, &plan)).filter(|revision| !revision.events.is_empty());
        let replay = Replay { revisions: revisions.map(Arc::new).collect(), next };
        let matched = plan.matched(&replay).map_err(|unusable| TestCaseError::fail(unusable.to_string()))?;
        self.hub.commit(&plan, matched);
        Ok(())
    }

    fn take(&mut self, stream: usize, max: usize) -> Result<bool, TestCaseError> {
        let items = self.hub.take(self.streams[stream].id, max);
        let any = !items.is_empty();
        for item in items {
            self.receive(stream, item)?;
        }
        Ok(any)
    }

    fn receive(&mut self, stream: usize, item: Item) -> Result<(), TestCaseError> {
        let state = &mut self.streams[stream];
        match item {
            Item::Created { watch_id, revision } => {
                let asked = state.asked.remove(0);
                prop_assert!(!asked.refused && revision == asked.current, "created at {}", revision);
                let start = if asked.start == 0 { revision + 1 } else { asked.start };
                let Asked { range, options, start: asked, .. } = asked;
                let client = Client { range, options, start, asked, upto: start - 1, sent_since_tick: false };
                prop_assert!(state.watchers.insert(watch_id, client).is_none(), "id {} was taken", watch_id);
            }
            Item::Refused { revision, reason } => {
                let asked = state.asked.remove(0);
                prop_assert_eq!(revision, asked.current);
                prop_assert!(asked.refused || reason == super::hub::DUPLICATE_ID);
            }
            Item::Canceled { watch_id, .. } => {
                prop_assert!(state.watchers.remove(&watch_id).is_some(), "an unknown id was answered");
            }
            Item::Compacted { watch_id, compact_revision } => {
                let client = &state.watchers[&watch_id];
                let behind = expected(&self.history, client, client.upto + 1, compact_revision - 1);
                // Only events that are gone justify it, or a start that is.
                prop_assert!(
                    client.start.max(client.upto + 1) < compact_revision,
                    "cancelled at {}: {:?}",
                    compact_revision,
                    behind
                );
            }
            Item::Events { watch_id, revision, picked, .. } => {
                let Some(client) = state.watchers.get_mut(&watch_id) else {
                    return Err(TestCaseError::fail("events of a watcher that isn't there"));
                };
                let sent: Vec<Rev> = picked.iter().flat_map(|picked| picked.events()).map(|event| event.row.rev).collect();
                prop_assert!(!sent.is_empty() && picked.len() <= LIMITS.response_revisions);
                let last = sent[sent.len() - 1].main;
                prop_assert_eq!(&sent, &expected(&self.history, client, client.upto + 1, last));
                prop_assert!(last <= revision && revision <= self.current);
                let lacks = |event: &Event| client.options.lacks_prev(event);
                prop_assert!(!picked.iter().flat_map(|picked| picked.events()).any(lacks), "a previous value is missing");
                client.upto = last;
                client.sent_since_tick = true;
            }
            Item::Progress { watch_id: NO_WATCH, revision } if !state.watchers.contains_key(&NO_WATCH) => {
                prop_assert!(!state.watchers.is_empty(), "progress of nobody");
                for client in state.watchers.values() {
                    check_progress(&self.history, client, revision)?;
                }
                self.progress_seen += 1;
            }
            // Id −1 may also be a watcher's own: then it speaks of that one at least.
            Item::Progress { watch_id, revision } => {
                let client = &state.watchers[&watch_id];
                check_progress(&self.history, client, revision)?;
            }
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), TestCaseError> {
        for stream in &self.streams {
            // Live events up to the limit, answers, one piece of history, one cancellation per compacted watcher.
            let replayed = LIMITS.queue_entries / 2 + LIMITS.replay_watchers * 5usize.div_ceil(LIMITS.response_revisions);
            let bound = LIMITS.queue_entries.max(replayed) + LIMITS.control_entries;
            let compacted = self.hub.compacted_watchers(stream.id).len();
            prop_assert!(self.hub.queue_len(stream.id) <= bound + compacted, "{} responses", self.hub.queue_len(stream.id));
        }
        Ok(())
    }

    /// Lets everybody read and catch up, then looks whether anything is missing.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        for stream in 0..STREAMS {
            let mut rounds = 0;
            loop {
                let took = self.take(stream, 4)?;
                self.begin_replay(stream);
                let replayed = self.streams[stream].plan.is_some();
                self.end_replay(stream, 5)?;
                if !took && !replayed && self.hub.stats().queued == self.queued_elsewhere(stream) {
                    break;
                }
                rounds += 1;
                prop_assert!(rounds < 2000, "a stream never settles");
            }
        }
        prop_assert_eq!(self.hub.stats().lagging, 0);
        for stream in &self.streams {
            prop_assert!(stream.asked.is_empty(), "a request wasn't answered");
        }
        Ok(())
    }

    fn queued_elsewhere(&self, stream: usize) -> usize {
        let all = self.hub.stats().queued;
        all - self.hub.queue_len(self.streams[stream].id)
    }

    fn check_complete(&self, cancelled: &[(usize, WatchId)]) -> Result<(), TestCaseError> {
        for (stream, state) in self.streams.iter().enumerate() {
            for (id, client) in &state.watchers {
                if !cancelled.contains(&(stream, *id)) {
                    let missing = expected(&self.history, client, client.upto + 1, self.current);
                    prop_assert!(missing.is_empty(), "watcher {} of stream {} never got {:?}", id, stream, missing);
                }
            }
        }
        Ok(())
    }
}

fn event(rev: Rev, (key, put, prev): Change) -> Event {
    let value = |resident: bool| if resident { Value::Resident(Bytes::from_static(b"before")) } else { Value::Evicted(6) };
    let version = |value| Version { rev: Rev::new(rev.main - 1, 0), create_revision: 1, version: 3, lease: 0, value };
    let row = LogRow {
        rev,
        key: Bytes::from(vec![key]),
        value: put.then(|| Bytes::from_static(b"after")),
        create_revision: i64::from(put),
        version: i64::from(put) * 4,
        lease: 0,
    };
    Event { row, prev: prev.map(value).map(version) }
}

/// What history answers: the wanted events, with previous values where they are wanted.
fn wanted(revision: &RevisionEvents, plan: &ReplayPlan) -> RevisionEvents {
    let mut events: Vec<Event> = revision.events.iter().filter(|event| plan.wants(&event.row.key)).cloned().collect();
    for event in events.iter_mut().filter(|event| plan.wants_prev(&event.row.key)) {
        if let Some(prev) = &mut event.prev {
            prev.value = Value::Resident(Bytes::from_static(b"before"));
        }
    }
    RevisionEvents { revision: revision.revision, events }
}

/// What the client must be sent of `from..=to`.
fn expected(history: &BTreeMap<Revision, Arc<RevisionEvents>>, client: &Client, from: Revision, to: Revision) -> Vec<Rev> {
    let from = from.max(client.start);
    let events =
        history.range(from..=to.max(from)).filter(|(revision, _)| **revision <= to).flat_map(|(_, revision)| &revision.events);
    let wanted = events.filter(|event| client.range.contains(&event.row.key)).filter(|event| {
        let dropped = if event.row.value.is_some() { client.options.no_put } else { client.options.no_delete };
        !dropped
    });
    wanted.map(|event| event.row.rev).collect()
}

fn check_progress(
    history: &BTreeMap<Revision, Arc<RevisionEvents>>,
    client: &Client,
    revision: Revision,
) -> Result<(), TestCaseError> {
    prop_assert!(revision >= client.asked, "progress before the start");
    let missing = expected(history, client, client.upto + 1, revision);
    prop_assert!(missing.is_empty(), "progress at {} is ahead of {:?}", revision, missing);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn a_watcher_gets_the_history_of_its_range_once_in_order_under_any_pace(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.take_step(step)?;
        }
        world.settle()?;
        let cancelled: Vec<(usize, WatchId)> = (0..STREAMS)
            .flat_map(|stream| world.hub.compacted_watchers(world.streams[stream].id).into_iter().map(move |id| (stream, id)))
            .collect();
        world.check_complete(&cancelled)?;
        // All are synced now: progress is answered wherever it may be.
        for stream in 0..STREAMS {
            let state = &world.streams[stream];
            let answered = !state.watchers.is_empty()
                && state.watchers.values().all(|client| client.asked <= world.current)
                && !state.watchers.contains_key(&NO_WATCH)
                && !cancelled.iter().any(|(of, _)| *of == stream);
            let before = world.progress_seen;
            world.hub.request_progress(world.streams[stream].id);
            while world.take(stream, 4)? {}
            if !world.streams[stream].watchers.contains_key(&NO_WATCH) {
                prop_assert_eq!(world.progress_seen - before, usize::from(answered));
            }
        }
    }
}
