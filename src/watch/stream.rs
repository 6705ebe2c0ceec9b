//! The I/O half of watch: what a Watch RPC talks to.
//!
//! One RPC is one stream with two ends: [`WatchRequests`] takes what the client asks, [`WatchResponses`] yields what it is sent, as
//! finished messages. Whoever drives [`WatchResponses::next`] also drives the replays of that stream's lagging watchers, so a client
//! that doesn't read costs nothing but its bounded queue, and holds up nobody else.
//!
//! Errors of history are tried again for a while; then the stream ends with Unavailable, and the client resumes from the last revision
//! that it saw. No event is ever skipped.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_immediate;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};

use super::counts::{Counts, Sent};
use super::hub::{Hub, HubStats, Limits, Registration, StreamId};
use super::queue::Item;
use super::replay::{Matched, Replay, ReplayPlan};
use super::watcher::{WatchId, WatchOptions};
use super::wire;
use crate::mvcc::RevisionEvents;
use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use crate::storage::BoxFuture;
use crate::types::{KeyRange, Revision};

/// Where past events come from: the memory ring, else storage. The engine implements it.
pub trait History: Send + Sync {
    /// Reads published revisions from `plan.from()` on, ascending, about `max_bytes` of them but at least one revision; see
    /// [`Replay`] for what must be in it. Revisions without an event that [`ReplayPlan::wants`] may be left out, as long as `next`
    /// says how far the search went; previous values need be in memory only where [`ReplayPlan::wants_prev`] says so, and an event
    /// whose revision − 1 is below the compact revision may have no previous version.
    ///
    /// Rows may vanish by compaction while they are read: look at the compact revision *after* reading, and answer
    /// [`HistoryError::Compacted`] if it is above `plan.from()`.
    fn replay(&self, plan: Arc<ReplayPlan>, max_bytes: usize) -> BoxFuture<'_, Result<Replay, HistoryError>>;
}

/// Why history couldn't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The first revision asked for is below this compact revision.
    #[error("history before revision {0} is compacted")]
    Compacted(Revision),
    /// A later try may succeed.
    #[error("{0}")]
    Unavailable(String),
}

/// What a watch stream is allowed, and how often it reports progress.
#[derive(Clone, Copy, Debug)]
pub struct WatchConfig {
    /// What one stream may hold on to.
    pub limits: Limits,
    /// How much history one read asks for, in bytes. A replay's response is cut after that much, where etcd goes on to a thousand
    /// revisions whatever they weigh.
    pub replay_bytes: usize,
    /// How long one read of history may take.
    pub replay_timeout: Duration,
    /// How long history may be unreadable before streams that need it end.
    pub replay_patience: Duration,
    /// The size from which on a response is split for watchers that allow it: etcd's max-request-bytes plus 512 KiB.
    pub fragment_bytes: usize,
    /// etcd's watch-progress-notify-interval, at least 100 ms; each stream adds up to a tenth at random.
    pub progress_interval: Duration,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            replay_bytes: 4 << 20,
            replay_timeout: Duration::from_secs(10),
            replay_patience: Duration::from_secs(30),
            fragment_bytes: (1536 + 512) << 10,
            progress_interval: Duration::from_secs(600),
        }
    }
}

/// The end of a stream: gRPC code Unavailable with this text, after which clients resume by themselves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Ended(pub String);

/// The hub with its tasks: cheap to clone.
#[derive(Clone)]
pub struct WatchHub {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    history: Arc<dyn History>,
    config: WatchConfig,
    counts: Counts,
}

struct Inner {
    hub: Hub,
    ends: BTreeMap<StreamId, Arc<Ends>>,
}

/// What the two ends of a stream and the hub share.
#[derive(Default)]
struct Ends {
    /// There is something to take.
    work: Notify,
    /// There may be room for an answer to a request.
    room: Notify,
    ended: Mutex<Option<Ended>>,
}

impl Shared {
    /// Does something under the hub's lock, and after it wakes the streams that have got something to do.
    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock();
        let result = work(&mut inner);
        let wakes = inner.hub.take_wakes();
        let woken: Vec<Arc<Ends>> = wakes.iter().filter_map(|stream| inner.ends.get(stream).cloned()).collect();
        drop(inner);
        woken.iter().for_each(|ends| ends.work.notify_one());
        result
    }
}

impl Inner {
    /// Forgets every stream; their ends are to be told.
    fn close_all(&mut self) -> BTreeMap<StreamId, Arc<Ends>> {
        let ends = std::mem::take(&mut self.ends);
        ends.keys().for_each(|stream| self.hub.close(*stream));
        ends
    }
}

fn tell_ended(ends: BTreeMap<StreamId, Arc<Ends>>, text: &str) {
    for ends in ends.values() {
        *ends.ended.lock() = Some(Ended(text.to_owned()));
        ends.work.notify_one();
        ends.room.notify_waiters();
    }
}

impl WatchHub {
    /// A hub over a store at `current`, whose compact revision is `compacted` (−1 for none).
    pub fn new(current: Revision, compacted: Revision, history: Arc<dyn History>, config: WatchConfig) -> Self {
        let inner = Inner { hub: Hub::new(current, compacted, config.limits), ends: BTreeMap::new() };
        Self { shared: Arc::new(Shared { inner: Mutex::new(inner), history, config, counts: Counts::default() }) }
    }

    /// Runs `publish`, which makes the store show some new revisions and answers their events, and hands these out: both under the
    /// hub's lock, so that whoever has read a revision and then registers is registered behind it. Locks are taken in this order: hub,
    /// then store.
    pub fn publish(&self, publish: impl FnOnce() -> Vec<Arc<RevisionEvents>>) {
        self.shared.with(|inner| {
            let revisions = publish();
            inner.hub.publish(&revisions);
        });
    }

    /// Runs `publish`, which makes the store show the revision that it answers (or stay), without handing out events: watchers find
    /// them in history. For a reload that brings more than should be kept in memory.
    pub fn jump(&self, publish: impl FnOnce() -> Revision) {
        self.shared.with(|inner| {
            let current = publish();
            inner.hub.jump(current);
        });
    }

    /// Ends every open stream, as [`WatchHub::end_streams`] does, and runs `publish`, which puts another history in the store's place and
    /// answers its revision and compact revision.
    pub fn reset(&self, text: &str, publish: impl FnOnce() -> (Revision, Revision)) {
        let ended = self.shared.with(|inner| {
            let ended = inner.close_all();
            let (current, compacted) = publish();
            inner.hub.reset(current, compacted);
            ended
        });
        tell_ended(ended, text);
    }

    /// Raises the compact revision; call it before anything is removed.
    pub fn compact(&self, revision: Revision) {
        self.shared.with(|inner| inner.hub.compact(revision));
    }

    /// The published revision.
    pub fn current(&self) -> Revision {
        self.shared.inner.lock().hub.current()
    }

    /// Figures for metrics.
    pub fn stats(&self) -> HubStats {
        let mut stats = self.shared.inner.lock().hub.stats();
        stats.pending_events += self.shared.counts.taken();
        stats
    }

    /// What was sent since the last call.
    pub fn take_sent(&self) -> Sent {
        self.shared.counts.take_sent()
    }

    /// Ends every open stream with Unavailable and this text (a role change, a shutdown). Streams opened later aren't touched.
    pub fn end_streams(&self, text: &str) {
        tell_ended(self.shared.with(Inner::close_all), text);
    }

    /// Opens a stream. `header` gives the cluster id, member id and term that all its responses carry.
    pub fn open(&self, header: ResponseHeader) -> (WatchRequests, WatchResponses) {
        let ends = Arc::new(Ends::default());
        let stream = self.shared.with(|inner| {
            let stream = inner.hub.open();
            inner.ends.insert(stream, ends.clone());
            stream
        });
        let requests = WatchRequests { shared: self.shared.clone(), ends: ends.clone(), stream };
        let responses = WatchResponses {
            shared: self.shared.clone(),
            ends,
            stream,
            header,
            taken: VecDeque::new(),
            ready: VecDeque::new(),
            replay: None,
            progress: progress_ticks(self.shared.config.progress_interval),
            finished: false,
        };
        (requests, responses)
    }
}

/// The receiving end of a Watch RPC. Its methods wait while the client leaves too many answers unread; drop the future to give up.
/// Dropping this end leaves the watchers running, as in etcd.
pub struct WatchRequests {
    shared: Arc<Shared>,
    ends: Arc<Ends>,
    stream: StreamId,
}

impl WatchRequests {
    /// Creates a watcher, or refuses it with etcd's text: either is answered on the other end. Permissions are checked before, but
    /// after a negative start revision, which is refused here.
    pub async fn create(&self, request: WatchCreateRequest) {
        let registration = registration(request);
        self.answer(|hub, stream| hub.register(stream, registration)).await;
    }

    /// Answers a create request with `created` and `canceled` in one, under id −1, with this reason.
    pub async fn refuse(&self, reason: &str) {
        self.answer(|hub, stream| hub.refuse(stream, reason.to_owned())).await;
    }

    /// Cancels a watcher. An unknown id gets no answer.
    pub async fn cancel(&self, watch_id: WatchId) {
        self.answer(|hub, stream| hub.cancel(stream, watch_id)).await;
    }

    /// Answers with one progress response, id −1, if all watchers of the stream are synced; else not at all.
    pub fn request_progress(&self) {
        self.shared.with(|inner| inner.hub.request_progress(self.stream));
    }

    async fn answer(&self, act: impl FnOnce(&mut Hub, StreamId)) {
        let mut act = Some(act);
        loop {
            let room = self.ends.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let done = self.shared.with(|inner| {
                let takes = inner.hub.takes_control(self.stream);
                if takes && let Some(act) = act.take() {
                    act(&mut inner.hub, self.stream);
                }
                takes
            });
            if done {
                return;
            }
            room.await;
        }
    }
}

/// The sending end of a Watch RPC. Dropping it closes the stream and forgets its watchers.
pub struct WatchResponses {
    shared: Arc<Shared>,
    ends: Arc<Ends>,
    stream: StreamId,
    header: ResponseHeader,
    /// Taken from the queue, not yet on the wire: a few at a time, so that the hub's lock isn't taken for each.
    taken: VecDeque<Item>,
    /// The parts of one response.
    ready: VecDeque<WatchResponse>,
    replay: Option<BoxFuture<'static, Outcome>>,
    progress: Interval,
    finished: bool,
}

/// A replay's plan and what came of it.
type Outcome = (Arc<ReplayPlan>, Result<Matched, HistoryError>);

/// How many responses are taken from the queue at once.
const TAKEN_MAX: usize = 16;

impl WatchResponses {
    /// The next response; then, once, the end's reason; then `None`. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Result<WatchResponse, Ended>> {
        loop {
            if self.finished {
                return None;
            }
            if let Some(response) = self.ready.pop_front() {
                return Some(Ok(response));
            }
            if let Some(item) = self.taken.pop_front() {
                self.shared.counts.sends(&item);
                self.ready = wire::responses(item, self.header, self.shared.config.fragment_bytes);
                continue;
            }
            if let Err(ended) = self.refill().await {
                self.finished = true;
                return Some(Err(ended));
            }
        }
    }

    /// Takes what is queued, keeps the replay and the progress ticks going, and waits if there was nothing.
    async fn refill(&mut self) -> Result<(), Ended> {
        if let Some(ended) = self.ends.ended.lock().clone() {
            return Err(ended);
        }
        if poll_immediate(self.progress.tick()).await.is_some() {
            self.shared.with(|inner| inner.hub.tick(self.stream));
        }
        self.take();
        if !self.taken.is_empty() {
            // A stream that always has live events must not starve its lagging watchers.
            if let Some(replay) = &mut self.replay
                && let Some((plan, outcome)) = poll_immediate(replay).await
            {
                self.replayed(&plan, outcome)?;
            }
            return Ok(());
        }
        let outcome = tokio::select! {
            () = self.ends.work.notified() => None,
            _ = self.progress.tick() => {
                self.shared.with(|inner| inner.hub.tick(self.stream));
                None
            }
            Some(outcome) = some(&mut self.replay) => Some(outcome),
        };
        match outcome {
            Some((plan, outcome)) => self.replayed(&plan, outcome),
            None => Ok(()),
        }
    }

    fn take(&mut self) {
        let may_plan = self.replay.is_none();
        let (items, plan) = self.shared.with(|inner| {
            let items = inner.hub.take(self.stream, TAKEN_MAX);
            (items, if may_plan { inner.hub.plan(self.stream) } else { None })
        });
        if !items.is_empty() {
            self.ends.room.notify_waiters();
        }
        self.shared.counts.takes(&items);
        self.taken.extend(items);
        if let Some(plan) = plan {
            self.replay = Some(Box::pin(replay(self.shared.clone(), Arc::new(plan))));
        }
    }

    fn replayed(&mut self, plan: &ReplayPlan, outcome: Result<Matched, HistoryError>) -> Result<(), Ended> {
        self.replay = None;
        match outcome {
            Ok(matched) => self.shared.with(|inner| inner.hub.commit(plan, matched)),
            // The next plan cancels the watchers that this concerns.
            Err(HistoryError::Compacted(revision)) => self.shared.with(|inner| inner.hub.compact(revision)),
            Err(HistoryError::Unavailable(text)) => {
                tracing::warn!(from = plan.from(), %text, "ending a watch stream: history can't be read");
                return Err(Ended(format!("etcdserver: the history that the watch needs can't be read: {text}")));
            }
        }
        Ok(())
    }
}

impl Drop for WatchResponses {
    fn drop(&mut self) {
        self.shared.counts.drops(&self.taken);
        self.shared.with(|inner| {
            inner.hub.close(self.stream);
            inner.ends.remove(&self.stream);
        });
        self.ends.room.notify_waiters();
    }
}

/// What the future answers, if there is one.
async fn some<T>(future: &mut Option<BoxFuture<'static, T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}

/// Reads a piece of history and finds what each watcher gets. Tries again for a bounded time.
async fn replay(shared: Arc<Shared>, plan: Arc<ReplayPlan>) -> Outcome {
    const PAUSE_MIN: Duration = Duration::from_millis(20);
    const PAUSE_MAX: Duration = Duration::from_secs(1);
    let WatchConfig { replay_bytes, replay_timeout, replay_patience, .. } = shared.config;
    let began = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let read = timeout(replay_timeout, shared.history.replay(plan.clone(), replay_bytes)).await;
        let error = match read {
            Ok(Ok(replay)) => match plan.matched(&replay) {
                Ok(matched) => return (plan, Ok(matched)),
                Err(unusable) => unusable.to_string(),
            },
            Ok(Err(HistoryError::Compacted(revision))) if revision > plan.from() => {
                return (plan, Err(HistoryError::Compacted(revision)));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {replay_timeout:?}"),
        };
        if began.elapsed() + pause > replay_patience {
            return (plan, Err(HistoryError::Unavailable(error)));
        }
        tracing::debug!(from = plan.from(), %error, "reading watch history again");
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// etcd draws one period per stream, so that streams opened together don't report together.
fn progress_ticks(interval: Duration) -> Interval {
    const MIN: Duration = Duration::from_millis(100);
    let interval = interval.max(MIN);
    let drawn = RandomState::new().hash_one(0) % 1000;
    let period = interval + interval.mul_f64(drawn as f64 / 10_000.0);
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn registration(request: WatchCreateRequest) -> Registration {
    // An empty key stands for the smallest one.
    let key = if request.key.is_empty() { Bytes::from_static(&[0]) } else { request.key };
    Registration {
        watch_id: request.watch_id,
        range: KeyRange::new(key, request.range_end),
        start_revision: request.start_revision,
        options: WatchOptions {
            no_put: request.filters.contains(&(FilterType::Noput as i32)),
            no_delete: request.filters.contains(&(FilterType::Nodelete as i32)),
            prev_kv: request.prev_kv,
            progress_notify: request.progress_notify,
            fragment: request.fragment,
        },
    }
}
