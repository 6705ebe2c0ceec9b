//! A leader and a follower as engines in one process: what the follower has in memory, when it begins anew, and how it takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use duet::engine::replication::{Followed, FollowedStream, Leader, Position};
use duet::engine::{Engine, Options, ReadLease, ReadRight, Role};
use duet::mvcc::StoreOptions;
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, WatchCreateRequest,
};
use duet::proto::mvccpb::Event;
use duet::storage::mem::MemLog;
use duet::storage::{BoxFuture, Log, LogError, LogRow, Reader, Writer};
use duet::telemetry::metrics::Metrics;
use duet::watch::{WatchRequests, WatchResponses};
use futures_util::StreamExt;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;

/// Far beyond anything these tests wait for; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A log that may be written to only when the test says so.
struct Waiting {
    inner: MemLog,
    may: watch::Sender<bool>,
}

impl Log for Waiting {
    fn acquire(&self, wait: bool, advertise: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>> {
        Box::pin(async move {
            let _ = self.may.subscribe().wait_for(|may| *may).await;
            self.inner.acquire(wait, advertise).await
        })
    }

    fn leader(&self) -> BoxFuture<'_, Result<Option<duet::storage::Leader>, LogError>> {
        Box::pin(async { Ok(None) })
    }

    fn may_write(&self) -> bool {
        *self.may.borrow()
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.inner.reader()
    }
}

/// The way to whoever leads; the test decides who that is, and how fast it goes.
#[derive(Debug)]
struct Way {
    leader: watch::Sender<Option<Leading>>,
    /// While true, nothing arrives.
    held: watch::Sender<bool>,
}

#[derive(Clone)]
struct Leading(Engine);

impl std::fmt::Debug for Leading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leading")
    }
}

impl Leader for Way {
    fn follow(&self, position: Position) -> BoxFuture<'_, Result<FollowedStream, LogError>> {
        Box::pin(async move {
            let mut leaders = self.leader.subscribe();
            let leader = leaders.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            leaders.mark_unchanged();
            let state = (leader.0.lead(position), leaders, self.held.subscribe());
            let stream = futures_util::stream::unfold(state, |(mut messages, mut leaders, mut held)| async move {
                let message: Result<Followed, LogError> = tokio::select! {
                    message = messages.recv() => message?.map_err(|error| LogError::Unavailable(error.to_string())),
                    _ = leaders.changed() => return None,
                };
                held.wait_for(|held| !*held).await.unwrap();
                Some((message, (messages, leaders, held)))
            });
            Ok(stream.boxed())
        })
    }
}

/// A follower and its way to the leader.
struct Follower {
    engine: Engine,
    log: Arc<Waiting>,
    way: Arc<Way>,
    metrics: Metrics,
}

impl Follower {
    /// Over the leader's own log: a storage to which everything has been replicated.
    fn over(log: &MemLog, options: Options) -> Self {
        let log = Arc::new(Waiting { inner: log.clone(), may: watch::Sender::new(false) });
        let way = Arc::new(Way { leader: watch::Sender::new(None), held: watch::Sender::new(false) });
        let options = Options { leader: Some(Arc::clone(&way) as Arc<dyn Leader>), ..options };
        let metrics = Metrics::unshared();
        Self { engine: Engine::start(options, Arc::clone(&log) as Arc<dyn Log>, metrics.clone()), log, way, metrics }
    }

    /// The same, once it follows `leader`.
    async fn of(leader: &Engine, log: &MemLog) -> Self {
        let follower = Self::over(log, Options::default());
        follower.follow(leader);
        follower.reaches(Role::Following).await;
        follower
    }

    fn follow(&self, leader: &Engine) {
        self.way.leader.send_replace(Some(Leading(leader.clone())));
    }

    fn cut_off(&self) {
        self.way.leader.send_replace(None);
    }

    async fn reaches(&self, role: Role) {
        let mut roles = self.engine.role();
        let reached = tokio::time::timeout(PATIENCE, roles.wait_for(|now| *now == role)).await;
        drop(reached.unwrap_or_else(|_| panic!("it becomes {role:?}")));
    }

    /// Waits until it shows everything that `leader` does.
    async fn catches_up(&self, leader: &Engine) {
        until("the follower catches up", async || {
            let (here, there) = (self.engine.status(), leader.status());
            (here.revision, here.compacted) == (there.revision, there.compacted)
        })
        .await;
        assert_eq!(everything(&self.engine).await.kvs, everything(leader).await.kvs);
        assert_eq!(self.engine.hash_kv(0).await, leader.hash_kv(0).await);
    }

    async fn takes_over(&self) {
        self.log.may.send_replace(true);
        self.reaches(Role::Active).await;
    }
}

async fn leader(log: &MemLog, options: Options) -> Engine {
    let engine = Engine::start(options, Arc::new(log.clone()), Metrics::unshared());
    engine.active().await.expect("a log in memory can be acquired");
    engine
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

fn key_put(key: &str, value: &str, lease: i64) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), lease, ..PutRequest::default() }
}

async fn put(engine: &Engine, key: &str, value: &str) {
    engine.put(key_put(key, value, 0)).await.expect("a put succeeds");
}

/// A list of everything that is content with what the engine has.
async fn everything(engine: &Engine) -> RangeResponse {
    let all = Bytes::from_static(b"\0");
    let request = RangeRequest { key: all.clone(), range_end: all, serializable: true, ..RangeRequest::default() };
    engine.range(&request).await.expect("a serializable range succeeds")
}

async fn watch_from(engine: &Engine, start_revision: i64) -> (WatchRequests, WatchResponses) {
    let (requests, mut responses) = engine.watch().open(ResponseHeader::default());
    let all = Bytes::from_static(b"\0");
    requests
        .create(WatchCreateRequest { key: all.clone(), range_end: all, start_revision, prev_kv: true, ..Default::default() })
        .await;
    assert!(responses.next().await.unwrap().unwrap().created);
    (requests, responses)
}

/// The events up to a revision.
async fn events_to(responses: &mut WatchResponses, last: i64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|event| event.kv.as_ref().unwrap().mod_revision < last) {
        let next = tokio::time::timeout(PATIENCE, responses.next()).await.expect("events arrive");
        events.extend(next.expect("it goes on").expect("it goes on").events);
    }
    events
}

#[tokio::test]
async fn a_follower_shows_what_its_leader_has_published_and_what_it_publishes() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    for n in 0..50 {
        put(&leading, &format!("k{}", n % 7), &n.to_string()).await;
    }
    let follower = Follower::of(&leading, &log).await;
    follower.catches_up(&leading).await;
    assert_eq!(follower.engine.ids(), leading.ids());
    let (_requests, mut responses) = watch_from(&follower.engine, 2).await;
    for n in 50..100 {
        put(&leading, &format!("k{}", n % 7), &n.to_string()).await;
    }
    let events = events_to(&mut responses, 101).await;
    let revisions: Vec<i64> = events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions, (2..=101).collect::<Vec<_>>());
    follower.catches_up(&leading).await;
    assert!(follower.engine.put(key_put("k", "v", 0)).await.is_err(), "it is no writer");
}

#[tokio::test]
async fn a_takeover_reads_the_missing_tail_only_and_watches_go_on() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    leading.lease_grant(7, 600).await.unwrap();
    for n in 0..20 {
        leading.put(key_put(&format!("k{n}"), "v", 7)).await.unwrap();
    }
    let follower = Follower::of(&leading, &log).await;
    let (_requests, mut responses) = watch_from(&follower.engine, 0).await;
    put(&leading, "k1", "without a lease").await;
    follower.catches_up(&leading).await;
    follower.cut_off();
    for n in 0..3 {
        leading.put(key_put(&format!("tail{n}"), "v", 7)).await.unwrap();
    }
    follower.takes_over().await;
    assert_eq!(follower.metrics.engine.recovery_rows.get(), Some(3));
    put(&follower.engine, "after", "v").await;
    let revisions: Vec<i64> =
        events_to(&mut responses, 26).await.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions, (22..=26).collect::<Vec<_>>());
    let keys = follower.engine.lease_time_to_live(7, true).await.unwrap().expect("the lease goes on").keys;
    assert_eq!(keys.len(), 22, "all keys that hang on it, and not the one that was put without it: {keys:?}");
    follower.engine.lease_revoke(7).await.unwrap();
    assert_eq!(everything(&follower.engine).await.kvs.len(), 2);
}

/// As at etcd's members: whoever was told of a revision through a follower finds it there.
#[tokio::test]
async fn a_follower_says_when_it_shows_what_the_leader_has_told() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    let follower = Follower::of(&leading, &log).await;
    follower.way.held.send_replace(true);
    let told = leading.put(key_put("k", "v", 0)).await.unwrap().header.unwrap().revision;
    let mut shows = Box::pin(follower.engine.shows(told));
    assert!(tokio::time::timeout(Duration::from_millis(50), shows.as_mut()).await.is_err());
    follower.way.held.send_replace(false);
    shows.await;
    assert_eq!(follower.engine.revision(), told);
    // One that is behind for long holds nobody up for ever, nor one that doesn't follow.
    tokio::time::timeout(PATIENCE, follower.engine.shows(told + 1)).await.unwrap();
    tokio::time::timeout(PATIENCE, leading.shows(told + 1)).await.unwrap();
}

/// The clock of a process that led for long says nothing about the leases that another one has granted since.
#[tokio::test]
async fn a_lease_lives_its_time_when_the_leadership_goes_and_comes_back() {
    let log = MemLog::default();
    let first = Follower::over(&log, Options::default());
    first.takes_over().await;
    put(&first.engine, "k", "v").await;
    // Without a lease there is nothing that stores its clock.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = Follower::of(&first.engine, &log).await;
    first.log.may.send_replace(false);
    second.takes_over().await;
    assert!(first.engine.put(key_put("k", "lost", 0)).await.is_err());
    second.engine.lease_grant(7, 2).await.unwrap();
    second.engine.put(key_put("leased", "v", 7)).await.unwrap();
    first.follow(&second.engine);
    first.reaches(Role::Following).await;
    second.log.may.send_replace(false);
    first.takes_over().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = first.engine.lease_time_to_live(7, true).await.unwrap().expect("it has a second left, or less if it was renewed");
    assert!(left.ttl <= 2, "nor does it live longer by what the other process had counted: {left:?}");
    assert_eq!(left.keys, ["leased"]);
    until("it ends", async || first.engine.lease_time_to_live(7, false).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_leader_that_has_lost_its_leadership_follows_with_what_it_has() {
    let log = MemLog::default();
    let first = Follower::over(&log, Options::default());
    first.takes_over().await;
    put(&first.engine, "k", "1").await;
    let (_requests, mut responses) = watch_from(&first.engine, 2).await;
    let second = Follower::of(&first.engine, &log).await;
    first.log.may.send_replace(false);
    second.takes_over().await;
    // What it was about to write is refused by storage, and it finds out.
    assert!(first.engine.put(key_put("k", "lost", 0)).await.is_err());
    first.follow(&second.engine);
    first.reaches(Role::Following).await;
    put(&second.engine, "k", "2").await;
    assert_eq!(events_to(&mut responses, 3).await.len(), 2);
    first.catches_up(&second.engine).await;
}

#[tokio::test]
async fn what_the_leader_did_not_get_to_delete_is_deleted_by_its_follower_when_that_leads() {
    let log = MemLog::default();
    let slow = Options { compaction_batch_keys: 1, compaction_pause: Duration::from_secs(3600), ..Options::default() };
    let leading = leader(&log, slow).await;
    for n in 0..100 {
        put(&leading, &format!("k{}", n % 10), &n.to_string()).await;
    }
    let follower = Follower::of(&leading, &log).await;
    leading.compact(101, false).await.unwrap();
    follower.catches_up(&leading).await;
    let figures = &follower.metrics.compaction;
    let swept = || figures.index_pause_milliseconds.get_sample_count() == 1;
    until("the follower has swept its index", async || swept()).await;
    assert!(log.rows().len() > 50, "a follower deletes nothing");
    assert_eq!((figures.db_keys_total.get(), figures.db_total_milliseconds.get_sample_count()), (0, 0), "and counts nothing");
    follower.cut_off();
    follower.takes_over().await;
    until("the rows are gone", async || log.rows().len() == 10).await;
    until("they are counted", async || figures.db_keys_total.get() == 90).await;
    assert_eq!(everything(&follower.engine).await.kvs.len(), 10);
}

/// A follower's copy of everything, piece by piece: a compaction that sweeps meanwhile takes nothing of it, and so brings no key back.
#[tokio::test]
async fn a_copy_of_everything_is_of_one_moment() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    put(&leading, "deleted", "v").await;
    let value = "x".repeat(1 << 20);
    for n in 0..12 {
        put(&leading, &format!("k{n}"), &value).await;
    }
    leading.delete_range(DeleteRangeRequest { key: "deleted".into(), ..DeleteRangeRequest::default() }).await.unwrap();
    put(&leading, "newest", "v").await;
    let stored = log.rows();
    let mut messages = leading.lead(Position { cluster_id: 0, revision: 0, digest: None });
    let mut copied: Vec<LogRow> = Vec::new();
    loop {
        match messages.recv().await.unwrap().unwrap() {
            Followed::Began { whole, .. } => assert!(whole),
            Followed::Page { rows, .. } => {
                let first = copied.is_empty();
                copied.extend(rows);
                if first {
                    leading.compact(leading.revision(), true).await.unwrap();
                    assert_eq!(log.rows().len(), stored.len() - 2, "the deleted key's rows are gone");
                }
            }
            _ => break,
        }
    }
    assert_eq!(copied, stored);

    let follower = Follower::of(&leading, &log).await;
    follower.catches_up(&leading).await;
}

/// Rows go from a follower's storage when the leader deletes them, whatever the follower has heard.
#[tokio::test]
async fn a_watch_is_not_given_what_a_compaction_has_left_that_the_follower_has_not_heard_of() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    let both = |value: &str| {
        let put = |key| RequestOp { request: Some(Request::RequestPut(key_put(key, value, 0))) };
        TxnRequest { success: vec![put("a"), put("b")], ..TxnRequest::default() }
    };
    leading.txn(both("1")).await.unwrap();
    put(&leading, "a", "2").await;
    put(&leading, "c", "3").await;
    let small = StoreOptions { value_budget: 1 << 20, ring_budget: 1 };
    let follower = Follower::over(&log, Options { store: small, ..Options::default() });
    follower.follow(&leading);
    follower.reaches(Role::Following).await;
    follower.catches_up(&leading).await;
    follower.cut_off();
    leading.compact(leading.revision(), true).await.unwrap();
    let (_requests, mut responses) = watch_from(&follower.engine, 2).await;
    let early = tokio::time::timeout(Duration::from_millis(300), responses.next()).await;
    assert!(early.is_err(), "nothing is told before it is known what is missing: {early:?}");
    follower.follow(&leading);
    let answer = tokio::time::timeout(PATIENCE, responses.next()).await.expect("it is answered").unwrap().unwrap();
    assert!(answer.canceled && answer.compact_revision == leading.revision(), "{answer:?}");
}

/// As a machine does that is suspended for a while.
#[tokio::test]
async fn a_follower_that_stood_still_follows_on() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    let follower = Follower::over(&log, Options::default());
    follower.follow(&leading);
    for n in 0..3 {
        follower.reaches(Role::Following).await;
        std::thread::sleep(Duration::from_millis(2100));
        put(&leading, "k", &n.to_string()).await;
        follower.catches_up(&leading).await;
    }
    follower.reaches(Role::Following).await;
}

#[tokio::test]
async fn a_follower_that_reads_slowly_holds_up_nobody_and_catches_up() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    let small = StoreOptions { value_budget: 1 << 20, ring_budget: 1 << 20 };
    let follower = Follower::over(&log, Options { store: small, ..Options::default() });
    follower.follow(&leading);
    follower.reaches(Role::Following).await;
    follower.way.held.send_replace(true);
    let value = "x".repeat(1 << 20);
    for n in 0..64 {
        put(&leading, &format!("k{n}"), &value).await;
    }
    follower.way.held.send_replace(false);
    follower.catches_up(&leading).await;
}

#[tokio::test]
async fn a_history_that_is_not_the_leaders_is_given_up() {
    for newer in [0, 1, 3] {
        let log = MemLog::default();
        let first = leader(&log, Options::default()).await;
        let follower = Follower::of(&first, &log).await;
        for n in 0..8 {
            put(&first, "k", &n.to_string()).await;
        }
        follower.catches_up(&first).await;
        let (_requests, mut responses) = watch_from(&follower.engine, 0).await;
        follower.cut_off();
        first.stop().await;
        // Revision 9 is lost, and what takes its place is another one.
        log.truncate(8);
        let second = leader(&log, Options::default()).await;
        for n in 0..newer {
            put(&second, "k", &format!("other {n}")).await;
        }
        follower.follow(&second);
        let ended = tokio::time::timeout(PATIENCE, responses.next()).await.expect("the watch ends");
        assert!(ended.unwrap().is_err(), "what it was about isn't so any more");
        follower.catches_up(&second).await;
        put(&second, "k", "goes on").await;
        follower.catches_up(&second).await;
    }
}

struct Accepting(AtomicBool);

impl ReadLease for Accepting {
    fn may_read(&self) -> bool {
        true
    }

    fn may_acknowledge(&self) -> bool {
        true
    }

    fn may_lose_published(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn what_was_shown_may_be_lost_only_when_somebody_has_accepted_that() {
    for (accepted, replaced) in [(true, 0), (false, 0), (true, 4), (false, 4), (true, 9), (false, 9)] {
        let log = MemLog::default();
        let leading = leader(&log, Options::default()).await;
        let right = ReadRight::Lease(Arc::new(Accepting(AtomicBool::new(accepted))));
        let follower = Follower::over(&log, Options { read_right: right, ..Options::default() });
        follower.follow(&leading);
        follower.reaches(Role::Following).await;
        for n in 0..8 {
            put(&leading, "k", &n.to_string()).await;
        }
        follower.catches_up(&leading).await;
        let (_requests, mut responses) = watch_from(&follower.engine, 0).await;
        follower.cut_off();
        leading.stop().await;
        log.truncate(5);
        if replaced > 0 {
            // What was lost has been replaced meanwhile, so that its numbers are there.
            let other = leader(&log, Options::default()).await;
            for n in 0..replaced {
                put(&other, "k", &format!("other {n}")).await;
            }
            other.stop().await;
        }
        follower.log.may.send_replace(true);
        if accepted {
            follower.reaches(Role::Active).await;
            assert_eq!(follower.engine.revision(), 5 + replaced);
            let stored = log.rows().last().unwrap().value.clone().unwrap();
            assert_eq!(everything(&follower.engine).await.kvs[0].value, stored);
            put(&follower.engine, "k", "goes on").await;
        } else {
            until("it gives up", async || matches!(*follower.engine.role().borrow(), Role::Failed(_))).await;
        }
        assert!(responses.next().await.unwrap().is_err(), "watches end");
    }
}

/// Writes, compactions and lost streams in any order: the follower has what the leader has, and its watches see what the leader's see.
#[tokio::test]
async fn whatever_happens_to_the_stream_the_follower_has_what_the_leader_has() {
    let seed: u64 = std::env::var("DUET_FOLLOWER_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("DUET_FOLLOWER_SEED={seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for _ in 0..20 {
        let store = StoreOptions { value_budget: rng.random_range(1..400), ring_budget: rng.random_range(1..2000) };
        let options = || Options { store, compaction_batch_keys: 3, compaction_pause: Duration::ZERO, ..Options::default() };
        let log = MemLog::default();
        let leading = leader(&log, options()).await;
        let follower = Follower::over(&log, options());
        follower.follow(&leading);
        follower.reaches(Role::Following).await;
        let mut watches = [watch_from(&leading, 2).await, watch_from(&follower.engine, 2).await];
        for step in 0..150 {
            let key = format!("k{}", rng.random_range(0..9));
            match rng.random_range(0..100) {
                0..70 => put(&leading, &key, &format!("{step} {}", "x".repeat(rng.random_range(0..40)))).await,
                70..80 => {
                    let request = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
                    drop(leading.delete_range(request).await.unwrap());
                }
                80..90 => follower.cut_off(),
                90..98 => follower.follow(&leading),
                _ if step > 100 => {
                    // Both watches have seen everything by then, so that neither is cancelled.
                    let last = leading.revision();
                    follower.follow(&leading);
                    follower.catches_up(&leading).await;
                    compare(&mut watches, last).await;
                    let _ = leading.compact(last - rng.random_range(0..3), false).await;
                    put(&leading, "k0", "after").await;
                }
                _ => {}
            }
        }
        put(&leading, "k0", "last").await;
        follower.follow(&leading);
        follower.catches_up(&leading).await;
        compare(&mut watches, leading.revision()).await;
        put(&leading, "k0", "tail").await;
        follower.takes_over().await;
        assert_eq!(follower.engine.hash_kv(0).await.unwrap().hash, leading.hash_kv(0).await.unwrap().hash);
    }
}

async fn compare(watches: &mut [(WatchRequests, WatchResponses); 2], last: i64) {
    let [(_, leaders), (_, followers)] = watches;
    let seen = events_to(leaders, last).await;
    assert_eq!(events_to(followers, last).await, seen);
}

/// A figure of a scrape; `None` when it isn't there.
fn figure(engine: &Engine, metrics: &Metrics, name: &str) -> Option<f64> {
    engine.refresh_metrics(false);
    let text = metrics.render();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
    Some(line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_follower_tells_what_it_has_itself_and_is_silent_about_what_only_the_leader_knows() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    leading.lease_grant(7, 600).await.unwrap();
    for n in 0..20 {
        leading.put(key_put(&format!("k{n}"), "v", 7)).await.unwrap();
    }
    leading.compact(10, true).await.unwrap();
    let follower = Follower::over(&log, Options::default());
    let told = |name: &str| figure(&follower.engine, &follower.metrics, name);
    let size = "etcd_mvcc_db_total_size_in_bytes";
    let own = [
        ("etcd_debugging_mvcc_current_revision", 21.0),
        ("etcd_debugging_mvcc_compact_revision", 10.0),
        ("etcd_debugging_mvcc_keys_total", 20.0),
        ("duet_engine_epoch", 1.0),
    ];
    let leaders = [
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "duet_lease_active",
        "duet_compaction_pending_revisions",
    ];
    let absent = |names: &[&str]| names.iter().for_each(|name| assert_eq!(told(name), None, "{name}"));
    absent(&own.map(|(name, _)| name));
    absent(&leaders);
    absent(&[size, "etcd_server_id"]);

    follower.follow(&leading);
    follower.reaches(Role::Following).await;
    follower.catches_up(&leading).await;
    for (name, figure) in own {
        assert_eq!(told(name), Some(figure), "{name}");
    }
    absent(&leaders);
    let stored = log.reader().disk_usage().await.unwrap().total as f64;
    until("the size of the follower's own storage is known", async || told(size) == Some(stored)).await;
    assert_eq!(told("etcd_server_id"), Some(1.0));
    assert_eq!(told("etcd_server_leader_changes_seen_total"), Some(1.0), "it has seen one leader");

    follower.cut_off();
    follower.reaches(Role::Standby).await;
    absent(&own.map(|(name, _)| name));
    until("nor does it go on telling its size", async || told(size).is_none()).await;
    follower.takes_over().await;
    assert_eq!(told("etcd_server_proposals_committed_total"), Some(0.0));
    assert_eq!(told("duet_lease_active"), Some(1.0));
    assert_eq!(told("etcd_server_leader_changes_seen_total"), Some(2.0));
}

#[tokio::test]
async fn a_followers_events_are_those_that_its_own_watchers_are_sent() {
    let log = MemLog::default();
    let leading = leader(&log, Options::default()).await;
    let follower = Follower::of(&leading, &log).await;
    put(&leading, "unwatched", "v").await;
    follower.catches_up(&leading).await;
    let events = || figure(&follower.engine, &follower.metrics, "etcd_debugging_mvcc_events_total");
    assert_eq!(events(), Some(0.0));
    let (_requests, mut responses) = watch_from(&follower.engine, 0).await;
    put(&leading, "watched", "v").await;
    events_to(&mut responses, 3).await;
    assert_eq!(events(), Some(1.0));
}
