//! What a scrape shows after requests over the wire. The differential suite compares such figures with a live etcd's at the end of each of its
//! scripts (`tests/differential/figures.rs`).

use duet::proto::etcdserverpb as pb;
use pb::compare::{CompareTarget, TargetUnion};
use pb::watch_request::RequestUnion;
use tonic::Code;

use crate::support::{Server, assert_refused, b, key, put_op, range_op, soon, success};

/// The figures of a scrape.
struct Scrape(String);

impl Server {
    fn scrape(&self) -> Scrape {
        self.engine.refresh_metrics(false);
        Scrape(self.metrics.render())
    }
}

impl Scrape {
    #[track_caller]
    fn shows(&self, figures: &[&str]) {
        for figure in figures {
            assert!(self.0.lines().any(|line| line == *figure), "no {figure} in\n{}", self.0);
        }
    }
}

/// Changes a key that was last changed at this revision, as Kubernetes does.
fn update(name: &str, seen: i64, value: &str) -> pb::TxnRequest {
    let compare = pb::Compare {
        target: CompareTarget::Mod as i32,
        key: b(name),
        target_union: Some(TargetUnion::ModRevision(seen)),
        ..Default::default()
    };
    pb::TxnRequest { compare: vec![compare], success: vec![put_op(name, value)], failure: vec![range_op(key(name))] }
}

#[tokio::test]
async fn a_control_planes_load_shows_in_etcds_figures() {
    let server = Server::start().await;
    for n in 0..8 {
        assert!(server.txn(update(&format!("pod-{n}"), 0, "created")).await.unwrap().succeeded);
    }
    assert!(server.txn(update("pod-0", 2, "updated")).await.unwrap().succeeded);
    assert!(!server.txn(update("pod-0", 2, "conflict")).await.unwrap().succeeded);
    server.range(key("pod-0")).await.unwrap();
    server.compact(9).await.unwrap();
    server.scrape().shows(&[
        "etcd_mvcc_put_total 9",
        "etcd_mvcc_delete_total 0",
        // A compare each, the range after the conflict, the Range, and the compaction.
        "etcd_mvcc_range_total 13",
        "etcd_mvcc_txn_total 0",
        "etcd_debugging_mvcc_total_put_size_in_bytes 108",
        "etcd_debugging_mvcc_keys_total 8",
        "etcd_debugging_mvcc_current_revision 10",
        "etcd_debugging_mvcc_compact_revision 9",
        "etcd_server_proposals_committed_total 11",
        "etcd_server_proposals_applied_total 11",
        "etcd_server_proposals_pending 0",
        "etcd_server_proposals_failed_total 0",
        "etcd_server_leader_changes_seen_total 1",
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 1",
        r#"etcd_server_id{server_id="aa"} 1"#,
        r#"etcd_server_request_duration_seconds_count{success="true",type="Txn"} 10"#,
        r#"etcd_server_request_duration_seconds_count{success="true",type="Range"} 1"#,
        r#"etcd_server_request_duration_seconds_count{success="true",type="Compaction"} 1"#,
    ]);
}

#[tokio::test]
async fn many_operations_in_one_transaction_count_each() {
    let server = Server::start().await;
    server.txn(success(vec![put_op("a", "1"), put_op("b", "22"), range_op(key("a"))])).await.unwrap();
    server.delete("a", "c").await;
    server.scrape().shows(&[
        "etcd_mvcc_put_total 2",
        "etcd_debugging_mvcc_total_put_size_in_bytes 5",
        "etcd_mvcc_range_total 2",
        "etcd_mvcc_delete_total 1",
        "etcd_mvcc_txn_total 2",
        "etcd_debugging_mvcc_keys_total 0",
    ]);
}

#[tokio::test]
async fn what_is_refused_is_a_request_that_succeeded_in_being_decided() {
    let server = Server::start().await;
    let leased = pb::PutRequest { key: b("a"), lease: 7, ..Default::default() };
    assert_refused(server.kv().put(leased).await, Code::NotFound, "etcdserver: requested lease not found");
    let unnamed = pb::PutRequest::default();
    assert_refused(server.kv().put(unnamed).await, Code::InvalidArgument, "etcdserver: key is not provided");
    server.scrape().shows(&[
        "etcd_server_proposals_committed_total 1",
        "etcd_server_proposals_failed_total 0",
        r#"etcd_server_request_duration_seconds_count{success="true",type="Put"} 1"#,
        r#"etcd_server_request_duration_seconds_count{success="false",type="Put"} 0"#,
        "etcd_mvcc_put_total 0",
    ]);
}

#[tokio::test]
async fn events_show_when_they_are_sent_and_not_when_they_are_written() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.scrape().shows(&["etcd_debugging_mvcc_events_total 0", "etcd_debugging_mvcc_watcher_total 0"]);
    let create = |prev_kv| {
        let create = pb::WatchCreateRequest { key: b("a"), prev_kv, ..Default::default() };
        pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    };
    let (requests, receiver) = tokio::sync::mpsc::channel(2);
    requests.send(create(false)).await.unwrap();
    requests.send(create(true)).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut responses = server.watch().watch(stream).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(soon("a watcher", responses.message()).await.unwrap().unwrap().created);
    }
    server.put("a", "2").await;
    server.put("elsewhere", "2").await;
    for _ in 0..2 {
        assert_eq!(soon("an event", responses.message()).await.unwrap().unwrap().events.len(), 1);
    }
    server.scrape().shows(&[
        "etcd_debugging_mvcc_events_total 2",
        "etcd_debugging_mvcc_pending_events_total 0",
        "etcd_debugging_mvcc_watch_stream_total 1",
        "etcd_debugging_mvcc_watcher_total 2",
        // For the watcher that wants previous pairs.
        "etcd_mvcc_range_total 1",
    ]);
}
