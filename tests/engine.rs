//! The engine over a log in memory that fails on demand: ordering, group commit, unknown outcomes, recovery.

use std::time::Duration;

use bytes::Bytes;
use duet::engine::{Engine, Error, Options, ReadRight, Role};
use duet::mvcc::StoreOptions;
use duet::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, PutResponse, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    WatchCreateRequest, WatchResponse,
};
use duet::sequencer::BatchCaps;
use duet::storage::mem::{Fault, MemLog};
use duet::telemetry::metrics::Metrics;
use duet::types::Rev;
use duet::watch::WatchResponses;

/// Far beyond anything these tests wait for; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

async fn engine_with(options: Options) -> (Engine, MemLog) {
    let log = MemLog::default();
    let engine = Engine::start(options, std::sync::Arc::new(log.clone()), Metrics::unshared());
    engine.active().await.expect("a log in memory can be acquired");
    (engine, log)
}

async fn engine() -> (Engine, MemLog) {
    engine_with(Options::default()).await
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

fn cas(key: &str, mod_revision: i64, value: &str) -> TxnRequest {
    TxnRequest {
        compare: vec![Compare {
            target: CompareTarget::Mod as i32,
            key: Bytes::copy_from_slice(key.as_bytes()),
            target_union: Some(TargetUnion::ModRevision(mod_revision)),
            ..Default::default()
        }],
        success: vec![RequestOp { request: Some(Request::RequestPut(put(key, value))) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(key_range(key))) }],
    }
}

fn key_range(key: &str) -> RangeRequest {
    RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

fn everything() -> RangeRequest {
    RangeRequest { key: Bytes::from_static(b"\0"), range_end: Bytes::from_static(b"\0"), ..Default::default() }
}

async fn value_of(engine: &Engine, key: &str) -> Option<String> {
    let response = engine.range(&key_range(key)).await.expect("a range succeeds");
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).expect("text"))
}

/// Waits for something that only other tasks can bring about.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

type PutTask = tokio::task::JoinHandle<Result<PutResponse, Error>>;

/// Starts `count` puts of different keys at once.
fn puts(engine: &Engine, count: usize) -> Vec<PutTask> {
    let start = |n| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.put(put(&format!("k{n}"), "v")).await })
    };
    (0..count).map(start).collect()
}

/// Waits until the writer has taken everything that was queued.
async fn all_taken(engine: &Engine) {
    until("all writes are in the engine's hands", async || {
        tokio::task::yield_now().await;
        engine.status().queued == 0
    })
    .await;
}

#[tokio::test]
async fn a_session_that_ends_while_nobody_writes_is_replaced_at_once() {
    let (engine, log) = engine().await;
    let before = engine.epoch();
    log.end_session();
    until("a new session, although nothing was asked", async || engine.epoch() > before).await;
    engine.put(put("k", "v")).await.expect("the first write after it knows nothing of it");
    assert_eq!(value_of(&engine, "k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn the_first_write_to_a_fresh_store_has_revision_two() {
    let (engine, _) = engine().await;
    assert_eq!(engine.revision(), 1);
    let response = engine.put(put("k", "v")).await.unwrap();
    assert_eq!(response.header.unwrap().revision, 2);
    assert_eq!(value_of(&engine, "k").await.as_deref(), Some("v"));
}

#[tokio::test]
async fn concurrent_writes_get_every_revision_exactly_once() {
    let (engine, log) = engine().await;
    let writes = (0..500).map(|n| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.put(put(&format!("k{}", n % 7), "v")).await.unwrap().header.unwrap().revision })
    });
    let mut revisions = futures_util::future::join_all(writes).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..502).collect::<Vec<_>>());
    assert!(log.rows().iter().map(|row| row.rev).eq((2..502).map(|main| Rev::new(main, 0))));
}

#[tokio::test]
async fn of_many_compare_and_swaps_of_one_revision_one_wins() {
    let (engine, _) = engine().await;
    let attempts = (0..64).map(|n| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.txn(cas("k", 0, &n.to_string())).await.unwrap().succeeded })
    });
    let outcomes = futures_util::future::join_all(attempts).await;
    assert_eq!(outcomes.into_iter().filter(|succeeded| *succeeded.as_ref().unwrap()).count(), 1);
}

#[tokio::test]
async fn what_is_not_durable_is_not_visible_not_even_through_a_failed_compare() {
    let (engine, log) = engine().await;
    log.hold(true);
    let write = tokio::spawn({
        let engine = engine.clone();
        async move { engine.put(put("k", "v")).await }
    });
    until("the write is on its way", async || engine.status().queued == 0).await;
    let compare = tokio::spawn({
        let engine = engine.clone();
        async move { engine.txn(cas("k", 0, "other")).await }
    });
    for _ in 0..50 {
        tokio::task::yield_now().await;
        assert_eq!(engine.range_published(&key_range("k"), duet::mvcc::CountMode::Total).await.unwrap().count, 0);
        assert!(!write.is_finished() && !compare.is_finished(), "nothing is answered before it is durable");
    }
    log.hold(false);
    assert_eq!(write.await.unwrap().unwrap().header.unwrap().revision, 2);
    assert!(!compare.await.unwrap().unwrap().succeeded, "the compare saw the write that was in flight");
}

#[tokio::test]
async fn writes_that_wait_are_committed_in_few_batches() {
    let (engine, log) = engine().await;
    log.hold(true);
    let writes = puts(&engine, 300);
    all_taken(&engine).await;
    log.hold(false);
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert!(log.appends() < 30, "300 writes took {} batches", log.appends());
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_reported_unknown_and_then_visible() {
    let (engine, log) = engine().await;
    engine.put(put("before", "v")).await.unwrap();
    log.inject(Fault::LoseAnswer);
    assert_eq!(engine.put(put("k", "v")).await, Err(Error::Timeout));
    until("the engine has recovered", async || value_of(&engine, "k").await.is_some()).await;
    let next = engine.put(put("after", "v")).await.unwrap();
    assert_eq!(next.header.unwrap().revision, 4, "revisions go on without a gap");
}

#[tokio::test]
async fn a_write_whose_request_was_lost_is_reported_unknown_and_leaves_no_gap() {
    let (engine, log) = engine().await;
    log.inject(Fault::LoseRequest);
    assert_eq!(engine.put(put("k", "v")).await, Err(Error::Timeout));
    until("the engine serves again", async || *engine.role().borrow() == Role::Active).await;
    assert_eq!(engine.put(put("after", "v")).await.unwrap().header.unwrap().revision, 2);
    assert_eq!(value_of(&engine, "k").await, None);
}

#[tokio::test]
async fn a_refused_batch_takes_everything_behind_it_along_as_certainly_not_applied() {
    let (engine, log) = engine().await;
    log.hold(true);
    log.inject(Fault::Refuse);
    let writes = puts(&engine, 50);
    all_taken(&engine).await;
    log.hold(false);
    for write in writes {
        assert_eq!(write.await.unwrap(), Err(Error::NotApplied));
    }
    until("the engine serves again", async || *engine.role().borrow() == Role::Active).await;
    assert_eq!(engine.put(put("after", "v")).await.unwrap().header.unwrap().revision, 2);
}

#[tokio::test]
async fn a_full_disk_is_reported_as_no_space() {
    let (engine, log) = engine().await;
    log.inject(Fault::Full);
    assert_eq!(engine.put(put("k", "v")).await, Err(Error::NoSpace));
}

#[tokio::test]
async fn a_store_that_lost_published_revisions_is_refused_with_an_explanation() {
    let (engine, log) = engine().await;
    for n in 0..5 {
        engine.put(put("k", &n.to_string())).await.unwrap();
    }
    log.truncate(4);
    log.inject(Fault::LoseRequest);
    let _ = engine.put(put("k", "x")).await;
    let mut role = engine.role();
    let failed = role.wait_for(|role| matches!(role, Role::Failed(_))).await.unwrap().clone();
    let Role::Failed(why) = failed else { unreachable!() };
    assert!(why.contains("lost committed revisions") && why.contains("revision 4") && why.contains("revision 6"), "{why}");
    assert_eq!(engine.put(put("k", "y")).await, Err(Error::NoLeader));
}

#[tokio::test]
async fn another_store_in_the_same_place_is_refused() {
    let (engine, log) = engine().await;
    engine.put(put("k", "v")).await.unwrap();
    log.replace_identity(0xD2);
    log.inject(Fault::LoseRequest);
    let _ = engine.put(put("k", "x")).await;
    let mut role = engine.role();
    let failed = role.wait_for(|role| matches!(role, Role::Failed(_))).await.unwrap().clone();
    let Role::Failed(why) = failed else { unreachable!() };
    assert!(why.contains("another store"), "{why}");
}

#[tokio::test]
async fn a_request_that_the_writer_does_not_get_to_times_out() {
    let (engine, log) = engine_with(Options { request_timeout: Duration::from_millis(50), ..Options::default() }).await;
    log.hold(true);
    assert_eq!(engine.put(put("k", "v")).await, Err(Error::Timeout));
    log.hold(false);
    until("the write that timed out is applied in the end", async || value_of(&engine, "k").await.is_some()).await;
}

#[tokio::test]
async fn a_request_that_the_writer_has_not_taken_in_hand_is_withdrawn_after_the_hold() {
    let options = Options {
        hold: Some(Duration::from_millis(100)),
        request_timeout: Duration::from_millis(300),
        pipeline_depth: 1,
        batch: BatchCaps { rows_max: 1, ..BatchCaps::default() },
        ..Options::default()
    };
    let (engine, log) = engine_with(options).await;
    log.hold(true);
    let write = |key| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.put(put(key, "v")).await })
    };
    let pause = || tokio::time::sleep(Duration::from_millis(50));
    let sent = write("sent");
    pause().await;
    let staged = write("staged");
    pause().await;
    assert_eq!(write("waiting").await.unwrap(), Err(Error::NotApplied));
    assert_eq!((sent.await.unwrap(), staged.await.unwrap()), (Err(Error::Timeout), Err(Error::Timeout)));
    log.hold(false);
    engine.put(put("later", "v")).await.unwrap();
    let keys: Vec<Bytes> = engine.range(&everything()).await.unwrap().kvs.into_iter().map(|kv| kv.key).collect();
    assert_eq!(keys, ["later", "sent", "staged"]);
}

#[tokio::test]
async fn a_full_queue_refuses_instead_of_growing() {
    let options = Options {
        queue_requests_max: 8,
        pipeline_depth: 1,
        batch: BatchCaps { rows_max: 1, ..BatchCaps::default() },
        ..Options::default()
    };
    let (engine, log) = engine_with(options).await;
    log.hold(true);
    let writes = puts(&engine, 64);
    until("some are refused", async || writes.iter().filter(|write| write.is_finished()).count() > 0).await;
    log.hold(false);
    let mut refused = 0;
    for write in writes {
        match write.await.unwrap() {
            Ok(_) => {}
            Err(Error::TooManyRequests) => refused += 1,
            Err(other) => panic!("unexpected: {other}"),
        }
    }
    assert!(refused > 0);
    assert_eq!(engine.revision(), 1 + 64 - refused, "refused means not applied");
}

#[tokio::test]
async fn values_beyond_the_budget_are_read_back() {
    let store = StoreOptions { value_budget: 100, ring_budget: 100 };
    let (engine, _) = engine_with(Options { store, ..Options::default() }).await;
    for n in 0..50 {
        engine.put(put(&format!("k{n:02}"), &format!("a value of some length, number {n}"))).await.unwrap();
    }
    assert!(engine.status().resident_bytes <= 100);
    let list = engine.range(&everything()).await.unwrap();
    assert_eq!(list.kvs.len(), 50);
    assert!(list.kvs.iter().enumerate().all(|(n, kv)| kv.value == format!("a value of some length, number {n}")));
    let first = engine.put(PutRequest { prev_kv: true, ..put("k00", "new") }).await.unwrap();
    assert_eq!(first.prev_kv.unwrap().value, "a value of some length, number 0");
    assert_eq!(engine.hash_kv(0).await.unwrap().hash_revision, 52);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_list_shows_one_revision_while_writes_and_compactions_go_on() {
    let (engine, _) = engine().await;
    for n in 0..50 {
        let puts = (0..50).map(|m| RequestOp { request: Some(Request::RequestPut(put(&format!("k{n:02}{m:02}"), "v"))) });
        engine.txn(TxnRequest { success: puts.collect(), ..Default::default() }).await.unwrap();
    }
    // The first and the last key always change together.
    let writer = tokio::spawn({
        let engine = engine.clone();
        async move {
            for n in 0.. {
                let puts = ["a", "z"].map(|key| RequestOp { request: Some(Request::RequestPut(put(key, &n.to_string()))) });
                let done = engine.txn(TxnRequest { success: puts.into(), ..Default::default() }).await.unwrap();
                if n % 10 == 0 {
                    engine.compact(done.header.unwrap().revision, false).await.unwrap();
                }
            }
        }
    });
    until("the writer writes", async || value_of(&engine, "z").await.is_some()).await;
    let mut overtaken = 0;
    let begun = tokio::time::Instant::now();
    while overtaken < 5 {
        assert!(begun.elapsed() < PATIENCE, "writes hardly go on while lists are collected: {overtaken} lists overtaken");
        let list = engine.range(&everything()).await.unwrap();
        let (first, last) = (list.kvs.first().unwrap(), list.kvs.last().unwrap());
        assert_eq!(
            (first.key.as_ref(), last.key.as_ref(), list.kvs.len(), list.count),
            (b"a".as_ref(), b"z".as_ref(), 2502, 2502)
        );
        assert_eq!((&first.value, first.mod_revision), (&last.value, last.mod_revision));
        let revision = list.header.unwrap().revision;
        assert!(first.mod_revision <= revision && revision <= engine.revision());
        overtaken += usize::from(engine.revision() > revision);
    }
    writer.abort();
}

#[tokio::test]
async fn a_physical_compaction_returns_when_the_rows_are_gone() {
    let (engine, log) = engine().await;
    for n in 0..20 {
        engine.put(put("k", &n.to_string())).await.unwrap();
    }
    engine.compact(21, true).await.unwrap();
    assert_eq!(log.rows().len(), 1);
    assert_eq!(engine.compact(21, true).await, Err(Error::Compacted));
    assert_eq!(engine.compact(22, true).await, Err(Error::FutureRevision));
    assert_eq!(engine.range(&RangeRequest { revision: 20, ..key_range("k") }).await.err(), Some(Error::Compacted));
}

#[tokio::test]
async fn the_hash_of_a_restarted_engine_is_the_live_one() {
    let (engine, log) = engine().await;
    for n in 0..200 {
        engine.put(put(&format!("k{}", n % 17), &n.to_string())).await.unwrap();
        if n % 31 == 0 {
            let delete = DeleteRangeRequest { key: Bytes::from(format!("k{}", n % 5)), ..Default::default() };
            engine.delete_range(delete).await.unwrap();
        }
    }
    engine.compact(100, false).await.unwrap();
    let live = engine.hash_kv(0).await.unwrap();
    engine.stop().await;
    let again = Engine::start(Options::default(), std::sync::Arc::new(log), Metrics::unshared());
    again.active().await.unwrap();
    assert_eq!(again.hash_kv(0).await.unwrap(), live);
}

async fn next(responses: &mut WatchResponses) -> WatchResponse {
    let next = tokio::time::timeout(PATIENCE, responses.next()).await.expect("a response comes");
    next.expect("the stream is open").expect("the stream is healthy")
}

#[tokio::test]
async fn a_watcher_sees_every_revision_once_across_lost_sessions() {
    let (engine, log) = engine().await;
    let (requests, mut responses) = engine.watch().open(ResponseHeader::default());
    requests
        .create(WatchCreateRequest { key: Bytes::from_static(b"k"), range_end: Bytes::from_static(b"l"), ..Default::default() })
        .await;
    assert!(next(&mut responses).await.created);
    let writer = tokio::spawn({
        let (engine, log) = (engine.clone(), log.clone());
        async move {
            for n in 0..300 {
                match n % 60 {
                    20 => log.inject(Fault::LoseAnswer),
                    40 => log.inject(Fault::LoseRequest),
                    _ => {}
                }
                let _ = engine.put(put(&format!("k{n}"), "v")).await;
            }
            engine.put(put("k-last", "v")).await.expect("the last write is applied").header.unwrap().revision
        }
    });
    let mut seen = Vec::new();
    loop {
        let response = next(&mut responses).await;
        seen.extend(response.events.iter().map(|event| event.kv.clone().unwrap().mod_revision));
        if response.events.iter().any(|event| event.kv.as_ref().unwrap().key == "k-last") {
            break;
        }
    }
    let last = writer.await.unwrap();
    assert_eq!(seen, (2..=last).collect::<Vec<_>>());
    assert!(log.rows().iter().map(|row| row.rev.main).eq(2..=last));
}

#[tokio::test]
async fn a_watch_from_the_past_reads_storage_when_memory_forgot() {
    let store = StoreOptions { value_budget: 64, ring_budget: 256 };
    let (engine, _) = engine_with(Options { store, ..Options::default() }).await;
    for n in 0..100 {
        engine.put(put(&format!("k{}", n % 10), &format!("value number {n}"))).await.unwrap();
    }
    let (requests, mut responses) = engine.watch().open(ResponseHeader::default());
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"k"),
        range_end: Bytes::from_static(b"l"),
        start_revision: 2,
        prev_kv: true,
        ..Default::default()
    };
    requests.create(create).await;
    assert!(next(&mut responses).await.created);
    let mut events = Vec::new();
    while events.len() < 100 {
        events.extend(next(&mut responses).await.events);
    }
    for (n, event) in events.iter().enumerate() {
        let kv = event.kv.as_ref().unwrap();
        assert_eq!((kv.mod_revision, kv.value.as_ref()), (n as i64 + 2, format!("value number {n}").as_bytes()));
        let prev = event.prev_kv.as_ref().map(|kv| kv.value.clone());
        assert_eq!(prev, n.checked_sub(10).map(|before| Bytes::from(format!("value number {before}"))));
    }
}

#[tokio::test]
async fn a_confirmed_read_sees_what_was_acknowledged_before_it() {
    let (engine, _) = engine_with(Options { read_right: ReadRight::Confirm, ..Options::default() }).await;
    for n in 0..100 {
        engine.put(put("k", &n.to_string())).await.unwrap();
        assert_eq!(value_of(&engine, "k").await, Some(n.to_string()));
    }
}

#[tokio::test]
async fn a_stopped_engine_refuses_and_says_so() {
    let (engine, _) = engine().await;
    engine.stop().await;
    assert_eq!(engine.put(put("k", "v")).await, Err(Error::Stopped));
    assert_eq!(engine.range(&everything()).await, Err(Error::Stopped));
}
