//! Streams as the façade uses them, over a history in memory that can fail and stall.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;

use super::hub_tests::put;
use super::*;
use crate::mvcc::{RevisionEvents, Value, Version};
use crate::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use crate::proto::mvccpb::KeyValue;
use crate::storage::BoxFuture;
use crate::types::{Rev, Revision};

/// History in memory. Each read takes one permit.
struct Past {
    revisions: Mutex<BTreeMap<Revision, Arc<RevisionEvents>>>,
    compacted: Mutex<Revision>,
    failures: AtomicUsize,
    reads: AtomicUsize,
    permits: Semaphore,
    revisions_per_read: usize,
}

impl History for Past {
    fn replay(&self, plan: Arc<ReplayPlan>, _: usize) -> BoxFuture<'_, Result<Replay, HistoryError>> {
        Box::pin(async move {
            self.permits.acquire().await.expect("never closed").forget();
            self.reads.fetch_add(1, Ordering::Relaxed);
            if self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                return Err(HistoryError::Unavailable("the database is away".into()));
            }
            let compacted = *self.compacted.lock();
            if plan.from() < compacted {
                return Err(HistoryError::Compacted(compacted));
            }
            let past = self.revisions.lock();
            let revisions: Vec<_> =
                past.range(plan.from()..).take(self.revisions_per_read).map(|(_, revision)| revision.clone()).collect();
            let next = revisions.last().map_or(plan.from(), |revision| revision.revision + 1);
            Ok(Replay { revisions, next })
        })
    }
}

struct Fixture {
    past: Arc<Past>,
    hub: WatchHub,
    current: Revision,
}

impl Fixture {
    fn new(config: WatchConfig) -> Self {
        let past = Arc::new(Past {
            revisions: Mutex::default(),
            compacted: Mutex::new(-1),
            failures: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            permits: Semaphore::new(Semaphore::MAX_PERMITS),
            revisions_per_read: 2,
        });
        Self { hub: WatchHub::new(1, -1, past.clone(), config), past, current: 1 }
    }

    fn publish(&mut self, keys: &[&'static str]) {
        self.current += 1;
        let revision = put(self.current, keys);
        self.hub.publish(|| {
            self.past.revisions.lock().insert(revision.revision, revision.clone());
            vec![revision]
        });
    }

    fn open(&self) -> (WatchRequests, WatchResponses) {
        self.hub.open(ResponseHeader { cluster_id: 11, member_id: 22, revision: 0, raft_term: 3 })
    }
}

fn request(key: &'static str, start_revision: Revision) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from_static(key.as_bytes()), start_revision, ..Default::default() }
}

async fn next(responses: &mut WatchResponses) -> WatchResponse {
    let response = tokio::time::timeout(Duration::from_secs(60), responses.next()).await.expect("a response comes");
    response.expect("the stream goes on").expect("the stream is well")
}

/// Revisions of the events, after checking that the response is one of events.
fn revisions(response: &WatchResponse) -> Vec<Revision> {
    assert!(!response.created && !response.canceled && !response.events.is_empty(), "{response:?}");
    response.events.iter().map(|event| event.kv.as_ref().expect("an event has its pair").mod_revision).collect()
}

#[tokio::test(start_paused = true)]
async fn a_stream_sends_created_then_the_past_then_the_present() {
    let mut fixture = Fixture::new(WatchConfig::default());
    (0..5).for_each(|_| fixture.publish(&["a"]));
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 2)).await;
    let created = next(&mut responses).await;
    assert!(created.created && created.watch_id == 0);
    let header = ResponseHeader { cluster_id: 11, member_id: 22, revision: 6, raft_term: 3 };
    assert_eq!(created.header, Some(header));
    assert_eq!(revisions(&next(&mut responses).await), [2, 3]);
    assert_eq!(revisions(&next(&mut responses).await), [4, 5]);
    fixture.publish(&["a"]);
    let mut rest = Vec::new();
    while rest.len() < 2 {
        rest.extend(revisions(&next(&mut responses).await));
    }
    assert_eq!(rest, [6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_loses_nothing_and_holds_up_nobody() {
    let limits = Limits { queue_entries: 4, ..Limits::default() };
    let mut fixture = Fixture::new(WatchConfig { limits, ..WatchConfig::default() });
    let (slow, mut slow_responses) = fixture.open();
    let (quick, mut quick_responses) = fixture.open();
    slow.create(request("a", 0)).await;
    quick.create(request("a", 0)).await;
    assert!(next(&mut quick_responses).await.created);
    for _ in 0..100 {
        fixture.publish(&["a"]);
        assert_eq!(revisions(&next(&mut quick_responses).await), [fixture.current]);
    }
    assert_eq!((fixture.hub.stats().lagging, fixture.hub.stats().queued), (1, 4));
    assert!(next(&mut slow_responses).await.created);
    let mut seen = Vec::new();
    while seen.len() < 100 {
        seen.extend(revisions(&next(&mut slow_responses).await));
    }
    assert_eq!(seen, (2..=101).collect::<Vec<Revision>>());
    assert_eq!(fixture.hub.stats().lagging, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_live_events_still_brings_its_lagging_watchers_forward() {
    let mut fixture = Fixture::new(WatchConfig::default());
    (0..20).for_each(|_| fixture.publish(&["a"]));
    let (requests, mut responses) = fixture.open();
    requests.create(request("live", 0)).await;
    requests.create(request("a", 2)).await;
    assert!(next(&mut responses).await.created);
    assert!(next(&mut responses).await.created);
    let mut replayed = Vec::new();
    // There is always a live event to send.
    for _ in 0..100 {
        fixture.publish(&["live"]);
        let response = next(&mut responses).await;
        if response.watch_id == 1 {
            replayed.extend(revisions(&response));
        }
    }
    assert_eq!(replayed, (2..=21).collect::<Vec<Revision>>());
}

#[tokio::test(start_paused = true)]
async fn a_history_that_stalls_does_not_hold_up_the_synced_watchers_of_the_stream() {
    let mut fixture = Fixture::new(WatchConfig::default());
    fixture.publish(&["a"]);
    fixture.past.permits.forget_permits(Semaphore::MAX_PERMITS);
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 2)).await;
    requests.create(request("live", 0)).await;
    assert!(next(&mut responses).await.created);
    assert!(next(&mut responses).await.created);
    fixture.publish(&["live"]);
    let live = next(&mut responses).await;
    assert_eq!((live.watch_id, revisions(&live)), (1, vec![3]));
    fixture.past.permits.add_permits(10);
    let late = next(&mut responses).await;
    assert_eq!((late.watch_id, revisions(&late)), (0, vec![2]));
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_history_is_tried_again() {
    let mut fixture = Fixture::new(WatchConfig::default());
    fixture.publish(&["a"]);
    fixture.past.failures.store(5, Ordering::Relaxed);
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 2)).await;
    assert!(next(&mut responses).await.created);
    assert_eq!(revisions(&next(&mut responses).await), [2]);
    assert_eq!(fixture.past.reads.load(Ordering::Relaxed), 6);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_stays_unreadable_ends_the_stream_instead_of_skipping() {
    let mut fixture = Fixture::new(WatchConfig::default());
    fixture.publish(&["a"]);
    fixture.past.failures.store(usize::MAX, Ordering::Relaxed);
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 2)).await;
    assert!(next(&mut responses).await.created);
    let ended = responses.next().await.expect("the end has a reason").expect_err("it is an error");
    assert!(ended.0.contains("the database is away"), "{ended}");
    assert!(responses.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_history_that_never_answers_ends_the_stream_too() {
    let mut fixture = Fixture::new(WatchConfig::default());
    fixture.publish(&["a"]);
    fixture.past.permits.forget_permits(Semaphore::MAX_PERMITS);
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 2)).await;
    assert!(next(&mut responses).await.created);
    assert!(responses.next().await.expect("the end has a reason").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_compacted_start_is_created_then_cancelled_with_the_compact_revision_and_header_revision_zero() {
    let mut fixture = Fixture::new(WatchConfig::default());
    (0..5).for_each(|_| fixture.publish(&["a"]));
    // The store knows first; the hub learns of it from the failing read.
    *fixture.past.compacted.lock() = 4;
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 3)).await;
    assert!(next(&mut responses).await.created);
    let canceled = next(&mut responses).await;
    assert!(canceled.canceled && !canceled.created && canceled.cancel_reason.is_empty());
    assert_eq!((canceled.compact_revision, canceled.header.map(|header| header.revision)), (4, Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_negative_start_is_created_and_cancelled_in_one_under_id_minus_one() {
    let fixture = Fixture::new(WatchConfig::default());
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", -1)).await;
    let refused = next(&mut responses).await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1 && refused.compact_revision == 0);
    assert_eq!(refused.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test(start_paused = true)]
async fn progress_comes_every_interval_to_those_who_asked_and_had_no_events() {
    let interval = Duration::from_secs(5);
    let mut fixture = Fixture::new(WatchConfig { progress_interval: interval, ..WatchConfig::default() });
    let (requests, mut responses) = fixture.open();
    requests.create(WatchCreateRequest { progress_notify: true, ..request("a", 0) }).await;
    requests.create(request("b", 0)).await;
    assert!(next(&mut responses).await.created);
    assert!(next(&mut responses).await.created);
    let began = tokio::time::Instant::now();
    let progress = next(&mut responses).await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.header.map(|header| header.revision)), (0, 0, Some(1)));
    assert!((interval..=interval.mul_f64(1.1)).contains(&began.elapsed()));
    fixture.publish(&["a"]);
    assert_eq!(revisions(&next(&mut responses).await), [2]);
    let progress = next(&mut responses).await;
    assert_eq!(progress.header.map(|header| header.revision), Some(2));
    assert!(began.elapsed() >= 3 * interval, "the tick after an event is skipped");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_without_reading_is_held_back_until_it_reads() {
    let fixture = Fixture::new(WatchConfig::default());
    let (requests, mut responses) = fixture.open();
    for _ in 0..Limits::default().control_entries {
        requests.create(request("a", 0)).await;
    }
    let one_more = requests.create(request("a", 0));
    tokio::pin!(one_more);
    assert!(futures_util::poll!(one_more.as_mut()).is_pending());
    assert!(next(&mut responses).await.created);
    assert!(futures_util::poll!(one_more.as_mut()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_back_is_let_go_when_the_stream_is_closed() {
    let fixture = Fixture::new(WatchConfig::default());
    let (requests, responses) = fixture.open();
    for _ in 0..Limits::default().control_entries {
        requests.create(request("a", 0)).await;
    }
    let one_more = requests.create(request("a", 0));
    tokio::pin!(one_more);
    assert!(futures_util::poll!(one_more.as_mut()).is_pending());
    drop(responses);
    assert!(futures_util::poll!(one_more.as_mut()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watcher_gets_its_progress_beside_a_busy_one() {
    let interval = Duration::from_secs(5);
    let mut fixture = Fixture::new(WatchConfig { progress_interval: interval, ..WatchConfig::default() });
    let (requests, mut responses) = fixture.open();
    requests.create(WatchCreateRequest { progress_notify: true, ..request("quiet", 0) }).await;
    requests.create(request("busy", 0)).await;
    assert!(next(&mut responses).await.created);
    assert!(next(&mut responses).await.created);
    let mut progress = 0;
    for _ in 0..120 {
        fixture.publish(&["busy"]);
        tokio::time::advance(Duration::from_millis(500)).await;
        let response = next(&mut responses).await;
        progress += usize::from(response.watch_id == 0);
    }
    // Twelve at the shortest period; each comes somewhat late behind the events before it.
    assert!((8..=12).contains(&progress), "{progress} in 60 s");
}

#[tokio::test(start_paused = true)]
async fn a_previous_pair_is_sent_unless_it_is_compacted() {
    let fixture = Fixture::new(WatchConfig::default());
    let (requests, mut responses) = fixture.open();
    requests.create(WatchCreateRequest { prev_kv: true, ..request("a", 0) }).await;
    requests.create(request("a", 0)).await;
    let revisions = [2, 3, 4].map(|revision| {
        let mut revision = RevisionEvents::clone(&put(revision, &["a"]));
        let event = &mut revision.events[0];
        (event.row.create_revision, event.row.version) = (1, 7);
        let rev = Rev::new(revision.revision - 1, 0);
        let value = Value::Resident(Bytes::from_static(b"before"));
        event.prev = Some(Version { rev, create_revision: 1, version: 6, lease: 9, value });
        Arc::new(revision)
    });
    fixture.hub.publish(|| revisions.to_vec());
    fixture.hub.compact(3);
    assert!(next(&mut responses).await.created);
    assert!(next(&mut responses).await.created);
    let mut previous = Vec::new();
    for _ in 0..6 {
        let response = next(&mut responses).await;
        previous.push((response.watch_id, response.events[0].prev_kv.clone()));
    }
    let pair = KeyValue {
        key: Bytes::from_static(b"a"),
        create_revision: 1,
        mod_revision: 3,
        version: 6,
        value: Bytes::from_static(b"before"),
        lease: 9,
    };
    assert_eq!(previous, [(0, None), (1, None), (0, None), (1, None), (0, Some(pair)), (1, None)]);
}

#[tokio::test(start_paused = true)]
async fn ending_all_streams_tells_each_why_and_spares_later_ones() {
    let fixture = Fixture::new(WatchConfig::default());
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 0)).await;
    assert!(next(&mut responses).await.created);
    let waiting = tokio::spawn(async move { responses.next().await });
    tokio::task::yield_now().await;
    fixture.hub.end_streams("etcdserver: no leader");
    assert_eq!(waiting.await.expect("no panic"), Some(Err(Ended("etcdserver: no leader".into()))));
    requests.create(request("a", 0)).await;
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 0)).await;
    assert!(next(&mut responses).await.created);
    assert_eq!(fixture.hub.stats().streams, 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_sending_side_forgets_the_stream_and_the_receiving_side_does_not() {
    let mut fixture = Fixture::new(WatchConfig::default());
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 0)).await;
    assert!(next(&mut responses).await.created);
    drop(requests);
    fixture.publish(&["a"]);
    assert_eq!(revisions(&next(&mut responses).await), [2]);
    drop(responses);
    assert_eq!(fixture.hub.stats(), HubStats::default());
}

#[tokio::test(start_paused = true)]
async fn a_large_revision_is_split_only_for_those_who_allow_it() {
    let fragment_bytes = 200;
    let mut fixture = Fixture::new(WatchConfig { fragment_bytes, ..WatchConfig::default() });
    let (requests, mut responses) = fixture.open();
    let all = WatchCreateRequest { range_end: Bytes::from_static(&[0]), ..request("a", 0) };
    requests.create(all.clone()).await;
    requests.create(WatchCreateRequest { fragment: true, ..all }).await;
    assert!(next(&mut responses).await.created);
    assert!(next(&mut responses).await.created);
    fixture.publish(&["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]);
    let whole = next(&mut responses).await;
    assert!(whole.events.len() == 12 && !whole.fragment && whole.encoded_len() > fragment_bytes);
    let mut parts = Vec::new();
    loop {
        let part = next(&mut responses).await;
        assert!(part.watch_id == 1 && part.encoded_len() < fragment_bytes && part.header == whole.header);
        let last = !part.fragment;
        parts.extend(part.events);
        if last {
            break;
        }
    }
    assert_eq!(parts, whole.events);
}

#[tokio::test(start_paused = true)]
async fn an_event_larger_than_a_fragment_is_sent_alone() {
    let mut fixture = Fixture::new(WatchConfig { fragment_bytes: 10, ..WatchConfig::default() });
    let (requests, mut responses) = fixture.open();
    let all = WatchCreateRequest { range_end: Bytes::from_static(&[0]), fragment: true, ..request("a", 0) };
    requests.create(all).await;
    assert!(next(&mut responses).await.created);
    fixture.publish(&["a", "b"]);
    let (first, second) = (next(&mut responses).await, next(&mut responses).await);
    assert_eq!((first.events.len(), first.fragment, second.events.len(), second.fragment), (1, true, 1, false));
}

/// A client that reads at a pace of its own and checks that nothing is missing, doubled or out of order.
async fn read_all(mut responses: WatchResponses, watchers: usize, from: Vec<Revision>, last: Revision, mut rng: SmallRng) {
    let mut upto = from;
    while upto.iter().any(|upto| *upto <= last) {
        let response = next(&mut responses).await;
        if response.created {
            continue;
        }
        let id = usize::try_from(response.watch_id).expect("ids are small");
        assert!(id < watchers);
        for revision in revisions(&response) {
            assert_eq!(revision, upto[id], "watcher {id}");
            upto[id] += 1;
        }
        if rng.random_ratio(1, 20) {
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..2000))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_between_publishers_readers_and_replays() {
    const LAST: Revision = 3000;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let limits = Limits { queue_entries: 16, ..Limits::default() };
    let mut fixture = Fixture::new(WatchConfig { limits, ..WatchConfig::default() });
    let mut readers = Vec::new();
    for _ in 0..LAST - 1 {
        if readers.len() < 24 && rng.random_ratio(1, 40) {
            let (requests, responses) = fixture.open();
            let from: Vec<Revision> = (0..rng.random_range(1..4)).map(|_| rng.random_range(2..=fixture.current + 1)).collect();
            for start in &from {
                requests.create(request("a", *start)).await;
            }
            let rng = SmallRng::seed_from_u64(rng.random());
            readers.push(tokio::spawn(read_all(responses, from.len(), from, LAST, rng)));
        }
        fixture.publish(&["a"]);
        if rng.random_ratio(1, 10) {
            tokio::task::yield_now().await;
        }
    }
    assert!(!readers.is_empty());
    for reader in readers {
        reader.await.expect("the reader saw everything");
    }
    assert_eq!(fixture.hub.stats(), HubStats::default());
}

#[tokio::test(start_paused = true)]
async fn events_count_as_sent_when_they_are_and_as_pending_until_then() {
    let mut fixture = Fixture::new(WatchConfig::default());
    let (requests, mut responses) = fixture.open();
    requests.create(request("a", 0)).await;
    requests.create(WatchCreateRequest { prev_kv: true, ..request("a", 0) }).await;
    assert!(next(&mut responses).await.created && next(&mut responses).await.created);
    fixture.publish(&["a"]);
    fixture.publish(&["elsewhere"]);
    fixture.publish(&["a"]);
    assert_eq!(fixture.hub.stats().pending_events, 4, "two events for two watchers");
    assert_eq!(fixture.hub.take_sent(), Sent::default());
    next(&mut responses).await;
    assert_eq!(fixture.hub.stats().pending_events, 3, "the others may be out of the queue, but they aren't sent");
    for _ in 0..3 {
        next(&mut responses).await;
    }
    assert_eq!(fixture.hub.stats().pending_events, 0);
    assert_eq!(fixture.hub.take_sent(), Sent { events: 4, previous: 0 }, "a key's first put has no previous pair to look for");
    assert_eq!(fixture.hub.take_sent(), Sent::default(), "each is told once");
    fixture.publish(&["a"]);
    fixture.publish(&["a"]);
    next(&mut responses).await;
    drop(responses);
    assert_eq!(fixture.hub.stats(), HubStats::default(), "what wasn't sent goes with its stream");
    assert_eq!(fixture.hub.take_sent().events, 1);
}
