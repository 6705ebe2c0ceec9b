//! The engine's figures, by value: what is counted of a load of transactions, of watches, of proposals that wait and that fail, and what
//! is absent because nobody knows it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use duet::engine::{Engine, Error, Options, ReadRight, Role};
use duet::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, PutResponse, RangeRequest, RequestOp, ResponseHeader, TxnRequest, WatchCreateRequest,
};
use duet::storage::mem::{Fault, MemLog};
use duet::storage::{BoxFuture, Leader, Log, LogError, Reader, Writer};
use duet::telemetry::metrics::Metrics;
use duet::watch::{WatchRequests, WatchResponses};

/// Far beyond anything these tests wait for; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

struct Fixture {
    engine: Engine,
    log: MemLog,
    metrics: Metrics,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let (log, metrics) = (MemLog::default(), Metrics::unshared());
        let engine = Engine::start(options, Arc::new(log.clone()), metrics.clone());
        engine.active().await.expect("a log in memory can be acquired");
        Self { engine, log, metrics }
    }

    /// A figure of a scrape of now; `None` when it isn't there.
    fn figure(&self, name: &str) -> Option<f64> {
        figure(&self.engine, &self.metrics, name)
    }

    #[track_caller]
    fn shows(&self, figures: &[(&str, f64)]) {
        for (name, figure) in figures {
            assert_eq!(self.figure(name), Some(*figure), "{name}");
        }
    }

    async fn put(&self, key: &str, value: &str) {
        self.engine.put(put(key, value)).await.expect("a put succeeds");
    }

    async fn txn(&self, request: TxnRequest) -> bool {
        self.engine.txn(request).await.expect("a transaction is answered").succeeded
    }

    async fn watch(&self, key: &str, prev_kv: bool) -> (WatchRequests, WatchResponses) {
        let (requests, mut responses) = self.engine.watch().open(ResponseHeader::default());
        requests.create(WatchCreateRequest { key: bytes(key), prev_kv, ..Default::default() }).await;
        assert!(responses.next().await.unwrap().unwrap().created);
        (requests, responses)
    }

    /// Starts `count` puts of different keys at once, and waits until the engine has all of them in hand.
    async fn hang(&self, count: usize) -> Vec<PutTask> {
        let start = |n| {
            let engine = self.engine.clone();
            tokio::spawn(async move { engine.put(put(&format!("k{n}"), "v")).await })
        };
        let tasks: Vec<PutTask> = (0..count).map(start).collect();
        let pending = count as f64;
        until("all are pending", async || self.figure("etcd_server_proposals_pending") == Some(pending)).await;
        until("the queue is empty", async || self.engine.status().queued == 0).await;
        tasks
    }
}

type PutTask = tokio::task::JoinHandle<Result<PutResponse, Error>>;

fn figure(engine: &Engine, metrics: &Metrics, name: &str) -> Option<f64> {
    engine.refresh_metrics(false);
    let text = metrics.render();
    let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|(series, _)| series == name))?;
    Some(line.rsplit(' ').next().unwrap().parse().unwrap())
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

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

/// Kubernetes' way to change a key that it has seen at this revision; 0 to create it.
fn change(key: &str, seen: i64, operation: Request) -> TxnRequest {
    let compare = Compare {
        target: CompareTarget::Mod as i32,
        key: bytes(key),
        target_union: Some(TargetUnion::ModRevision(seen)),
        ..Default::default()
    };
    let get = RangeRequest { key: bytes(key), ..Default::default() };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(operation) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
    }
}

fn write(key: &str, seen: i64, value: &str) -> TxnRequest {
    change(key, seen, Request::RequestPut(put(key, value)))
}

fn remove(key: &str, seen: i64) -> TxnRequest {
    change(key, seen, Request::RequestDeleteRange(DeleteRangeRequest { key: bytes(key), ..Default::default() }))
}

#[tokio::test]
async fn a_load_of_kubernetes_transactions_is_counted_by_what_they_do_inside() {
    let fixture = Fixture::new().await;
    for n in 0..10 {
        assert!(fixture.txn(write(&format!("k{n}"), 0, "12345")).await, "created at revision {}", n + 2);
    }
    assert!(fixture.txn(write("k0", 2, "1234567890")).await);
    assert!(!fixture.txn(write("k1", 99, "conflict")).await);
    assert!(fixture.txn(remove("k9", 11)).await);
    fixture.shows(&[
        ("etcd_mvcc_put_total", 11.0),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", (10 * (2 + 5) + 2 + 10) as f64),
        ("etcd_mvcc_delete_total", 1.0),
        // A compare each, and the range after the conflict.
        ("etcd_mvcc_range_total", 14.0),
        // None did more than one thing in one transaction of the store.
        ("etcd_mvcc_txn_total", 0.0),
        ("etcd_debugging_mvcc_keys_total", 9.0),
        ("etcd_debugging_mvcc_current_revision", 13.0),
        ("etcd_debugging_mvcc_compact_revision", -1.0),
        ("etcd_server_proposals_committed_total", 13.0),
        ("etcd_server_proposals_applied_total", 13.0),
        ("etcd_server_proposals_failed_total", 0.0),
        ("etcd_server_proposals_pending", 0.0),
    ]);
}

#[tokio::test]
async fn reads_and_transactions_that_only_read_are_counted_and_are_no_proposals() {
    let fixture = Fixture::new().await;
    fixture.put("k", "v").await;
    let get = RangeRequest { key: bytes("k"), ..Default::default() };
    fixture.engine.range(&get).await.unwrap();
    let mut read = change("k", 2, Request::RequestRange(get.clone()));
    assert!(fixture.txn(read.clone()).await);
    read.compare.clear();
    assert!(fixture.txn(read).await);
    let future = RangeRequest { revision: 99, ..get };
    assert_eq!(fixture.engine.range(&future).await, Err(Error::FutureRevision));
    fixture.shows(&[
        // A range; a compare and a range; a range; one of a revision that doesn't exist.
        ("etcd_mvcc_range_total", 5.0),
        ("etcd_mvcc_txn_total", 1.0),
        ("etcd_mvcc_put_total", 1.0),
        ("etcd_server_proposals_committed_total", 1.0),
        (r#"etcd_server_request_duration_seconds_count{success="true",type="Range"}"#, 1.0),
        (r#"etcd_server_request_duration_seconds_count{success="false",type="Range"}"#, 1.0),
        (r#"etcd_server_request_duration_seconds_count{success="true",type="ReadonlyTxn"}"#, 2.0),
        (r#"etcd_server_request_duration_seconds_count{success="true",type="Put"}"#, 1.0),
    ]);
}

#[tokio::test]
async fn writes_that_hang_on_a_stalled_storage_are_pending_and_not_counted_as_done() {
    let fixture = Fixture::new().await;
    fixture.log.hold(true);
    let tasks = fixture.hang(100).await;
    fixture.shows(&[("etcd_mvcc_put_total", 0.0), ("etcd_server_proposals_committed_total", 0.0)]);
    fixture.log.hold(false);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    fixture.shows(&[
        ("etcd_server_proposals_pending", 0.0),
        ("etcd_server_proposals_committed_total", 100.0),
        ("etcd_mvcc_put_total", 100.0),
        ("etcd_server_proposals_failed_total", 0.0),
    ]);
}

#[tokio::test]
async fn every_write_that_a_lost_session_takes_along_has_failed_and_was_never_there() {
    let fixture = Fixture::new().await;
    fixture.log.hold(true);
    let tasks = fixture.hang(100).await;
    fixture.log.inject(Fault::LoseRequest);
    fixture.log.hold(false);
    for task in tasks {
        task.await.unwrap().unwrap_err();
    }
    until("the engine serves again", async || *fixture.engine.role().borrow() == Role::Active).await;
    fixture.shows(&[
        ("etcd_server_proposals_failed_total", 100.0),
        ("etcd_server_proposals_pending", 0.0),
        ("etcd_server_proposals_committed_total", 0.0),
        ("etcd_mvcc_put_total", 0.0),
        (r#"etcd_server_request_duration_seconds_count{success="false",type="Put"}"#, 100.0),
    ]);
}

#[tokio::test]
async fn a_refusal_is_a_proposal_that_was_committed_even_when_nothing_else_is_under_way() {
    let fixture = Fixture::with(Options { read_right: ReadRight::Exclusive, ..Options::default() }).await;
    refusals(&fixture).await;
    let fixture = Fixture::with(Options { read_right: ReadRight::Confirm, ..Options::default() }).await;
    refusals(&fixture).await;
}

async fn refusals(fixture: &Fixture) {
    let kept = PutRequest { ignore_lease: true, ..put("unknown", "v") };
    assert_eq!(fixture.engine.put(kept).await, Err(Error::KeyNotFound));
    let leased = PutRequest { lease: 7, ..put("k", "v") };
    assert_eq!(fixture.engine.put(leased).await, Err(Error::LeaseNotFound));
    assert_eq!(fixture.engine.compact(99, false).await, Err(Error::FutureRevision));
    assert_eq!(fixture.engine.lease_revoke(7).await, Err(Error::LeaseNotFound));
    assert!(!fixture.txn(write("k", 99, "v")).await);
    fixture.shows(&[
        ("etcd_server_proposals_committed_total", 5.0),
        ("etcd_server_proposals_applied_total", 5.0),
        ("etcd_server_proposals_failed_total", 0.0),
        // The look for the pair whose lease was to be kept; the compare, and the range of the other branch.
        ("etcd_mvcc_range_total", 3.0),
        ("etcd_mvcc_put_total", 0.0),
        ("etcd_debugging_lease_revoked_total", 0.0),
        (r#"etcd_server_request_duration_seconds_count{success="true",type="Put"}"#, 2.0),
        (r#"etcd_server_request_duration_seconds_count{success="true",type="Compaction"}"#, 1.0),
    ]);
}

#[tokio::test]
async fn a_write_that_takes_too_long_has_failed_and_may_be_committed_all_the_same() {
    let fixture = Fixture::with(Options { request_timeout: Duration::from_millis(50), ..Options::default() }).await;
    fixture.log.hold(true);
    assert_eq!(fixture.engine.put(put("k", "v")).await, Err(Error::Timeout));
    fixture.shows(&[("etcd_server_proposals_failed_total", 1.0), ("etcd_server_proposals_pending", 0.0)]);
    fixture.log.hold(false);
    until("it is committed", async || fixture.figure("etcd_server_proposals_committed_total") == Some(1.0)).await;
    fixture.shows(&[("etcd_mvcc_put_total", 1.0), ("etcd_server_proposals_failed_total", 1.0)]);
}

#[tokio::test]
async fn a_write_whose_client_goes_away_has_failed() {
    let fixture = Fixture::new().await;
    fixture.log.hold(true);
    let task = fixture.hang(1).await.remove(0);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    fixture.shows(&[("etcd_server_proposals_failed_total", 1.0), ("etcd_server_proposals_pending", 0.0)]);
    fixture.log.hold(false);
}

#[tokio::test]
async fn what_a_full_queue_turns_away_was_never_proposed() {
    let fixture = Fixture::with(Options { queue_bytes_max: 0, ..Options::default() }).await;
    fixture.log.hold(true);
    let task = fixture.hang(1).await.remove(0);
    assert_eq!(fixture.engine.put(put("k", "v")).await, Err(Error::TooManyRequests));
    fixture.shows(&[("etcd_server_proposals_failed_total", 0.0), ("etcd_server_proposals_pending", 1.0)]);
    fixture.log.hold(false);
    task.await.unwrap().unwrap();
    fixture.shows(&[(r#"etcd_server_request_duration_seconds_count{success="false",type="Put"}"#, 0.0)]);
}

#[tokio::test]
async fn a_revoked_lease_deletes_its_keys_one_by_one_in_one_transaction() {
    let fixture = Fixture::new().await;
    fixture.engine.lease_grant(7, 600).await.unwrap();
    fixture.engine.lease_grant(8, 600).await.unwrap();
    for key in ["a", "b", "c"] {
        fixture.engine.put(PutRequest { lease: 7, ..put(key, "v") }).await.unwrap();
    }
    fixture.shows(&[("duet_lease_active", 2.0)]);
    fixture.engine.lease_revoke(7).await.unwrap();
    fixture.shows(&[
        ("etcd_debugging_lease_granted_total", 2.0),
        ("etcd_debugging_lease_ttl_total_sum", 1200.0),
        ("etcd_debugging_lease_revoked_total", 1.0),
        ("etcd_debugging_server_lease_expired_total", 0.0),
        ("duet_lease_active", 1.0),
        ("etcd_mvcc_delete_total", 3.0),
        ("etcd_mvcc_txn_total", 1.0),
    ]);
}

#[tokio::test]
async fn a_lease_has_expired_once_however_often_its_revocation_is_tried() {
    let fixture = Fixture::with(Options { lease_ttl_min: 1, ..Options::default() }).await;
    fixture.engine.lease_grant(7, 1).await.unwrap();
    // The first revocation is lost; the next session tries it again.
    fixture.log.inject(Fault::LoseRequest);
    until("it is revoked", async || fixture.figure("duet_lease_active") == Some(0.0)).await;
    fixture.shows(&[
        ("etcd_debugging_server_lease_expired_total", 1.0),
        ("etcd_debugging_lease_revoked_total", 1.0),
        ("etcd_server_proposals_failed_total", 1.0),
        ("etcd_server_proposals_pending", 0.0),
    ]);
}

#[tokio::test]
async fn without_watchers_no_event_is_sent() {
    let fixture = Fixture::new().await;
    fixture.put("k", "v").await;
    fixture.shows(&[
        ("etcd_debugging_mvcc_events_total", 0.0),
        ("etcd_debugging_mvcc_pending_events_total", 0.0),
        ("etcd_debugging_mvcc_watch_stream_total", 0.0),
        ("etcd_debugging_mvcc_watcher_total", 0.0),
    ]);
}

#[tokio::test]
async fn an_event_counts_for_each_watcher_that_it_is_sent_to_and_is_pending_until_then() {
    let fixture = Fixture::new().await;
    let (_one, mut plain) = fixture.watch("k", false).await;
    let (_other, mut with_previous) = fixture.watch("k", true).await;
    fixture.put("k", "1").await;
    fixture.put("k", "2").await;
    fixture.put("elsewhere", "v").await;
    fixture.shows(&[
        ("etcd_debugging_mvcc_watch_stream_total", 2.0),
        ("etcd_debugging_mvcc_watcher_total", 2.0),
        ("etcd_debugging_mvcc_slow_watcher_total", 0.0),
        ("etcd_debugging_mvcc_pending_events_total", 4.0),
        ("etcd_debugging_mvcc_events_total", 0.0),
        ("etcd_mvcc_range_total", 0.0),
    ]);
    for _ in 0..2 {
        assert_eq!(plain.next().await.unwrap().unwrap().events.len(), 1);
        assert_eq!(with_previous.next().await.unwrap().unwrap().events.len(), 1);
    }
    fixture.shows(&[
        ("etcd_debugging_mvcc_pending_events_total", 0.0),
        ("etcd_debugging_mvcc_events_total", 4.0),
        // etcd looks for the previous pair of the second put.
        ("etcd_mvcc_range_total", 1.0),
    ]);
}

#[tokio::test]
async fn a_compaction_is_one_time_in_the_index_and_one_in_the_database_and_counts_the_rows_that_it_deletes() {
    let fixture = Fixture::with(Options { compaction_batch_keys: 1, ..Options::default() }).await;
    for n in 0..30 {
        fixture.put(&format!("k{}", n % 3), "v").await;
    }
    fixture.engine.compact(31, true).await.unwrap();
    until("it is counted", async || fixture.figure("etcd_debugging_mvcc_db_compaction_last") > Some(0.0)).await;
    fixture.shows(&[
        ("etcd_debugging_mvcc_db_compaction_keys_total", 27.0),
        ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds_count", 1.0),
        ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count", 1.0),
        ("etcd_debugging_mvcc_compact_revision", 31.0),
        ("duet_compaction_pending_revisions", 0.0),
    ]);
}

#[tokio::test]
async fn only_a_hash_of_the_key_space_that_is_computed_takes_time_under_its_name() {
    let fixture = Fixture::new().await;
    fixture.put("k", "v").await;
    fixture.engine.hash_kv(0).await.unwrap();
    fixture.engine.hash().await.unwrap();
    assert_eq!(fixture.engine.hash_kv(99).await, Err(Error::FutureRevision));
    fixture.shows(&[("etcd_mvcc_hash_rev_duration_seconds_count", 1.0)]);
}

/// A log whose writer is another process.
struct Taken(MemLog);

impl Log for Taken {
    fn acquire(&self, _: bool, _: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>> {
        Box::pin(std::future::pending())
    }

    fn leader(&self) -> BoxFuture<'_, Result<Option<Leader>, LogError>> {
        self.0.leader()
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.0.reader()
    }
}

#[tokio::test]
async fn a_replica_that_stands_by_tells_nothing_of_a_store_that_it_does_not_show() {
    let writer = Fixture::new().await;
    writer.put("k", "v").await;
    let metrics = Metrics::unshared();
    let standby = Engine::start(Options::default(), Arc::new(Taken(writer.log.clone())), metrics.clone());
    tokio::task::yield_now().await;
    let told = |name: &str| figure(&standby, &metrics, name);
    for name in [
        "etcd_debugging_mvcc_current_revision",
        "etcd_debugging_mvcc_compact_revision",
        "etcd_debugging_mvcc_keys_total",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_id",
        "duet_engine_epoch",
        "duet_engine_recovery_rows",
        "duet_engine_recovery_duration_seconds",
        "duet_lease_active",
        "duet_compaction_pending_revisions",
    ] {
        assert_eq!(told(name), None, "{name}");
        // The member's id is a label.
        let shown = writer.metrics.render().lines().any(|line| line.starts_with(name));
        assert!(shown || writer.figure(name).is_some(), "the writer tells {name}");
    }
    assert_eq!(told("etcd_server_is_leader"), Some(0.0));
    assert_eq!(told("etcd_server_has_leader"), Some(0.0));
    standby.refresh_metrics(true);
    assert!(metrics.render().contains("\netcd_server_has_leader 1\n"), "it forwards to one");
}
