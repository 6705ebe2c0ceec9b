//! KV over the wire.

use duet::proto::etcdserverpb as pb;
use duet::proto::nested::NESTED_MAX;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request as Op;
use pb::response_op::Response as Answer;
use tonic::Code;

use crate::support::{Server, assert_refused, b, key, prefix, put_op, range_op, success};

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

#[tokio::test]
async fn a_fresh_store_is_at_revision_1_and_every_header_is_complete() {
    let server = Server::start().await;
    let header = server.range(key("a")).await.unwrap().header.unwrap();
    assert_eq!(header.revision, 1);
    assert_eq!((header.cluster_id, header.member_id), server.engine.ids());
    assert_ne!(header.member_id, 0);
    assert_eq!(header.raft_term, server.engine.epoch() as u64);
}

#[tokio::test]
async fn each_write_is_one_revision_and_its_header_shows_it() {
    let server = Server::start().await;
    assert_eq!(server.put("a", "1").await, 2);
    assert_eq!(server.put("a", "2").await, 3);
    let deleted = server.delete("a", "").await;
    assert_eq!((deleted.deleted, deleted.header.unwrap().revision), (1, 4));
    let nothing = server.delete("a", "").await;
    assert_eq!((nothing.deleted, nothing.header.unwrap().revision), (0, 4));
}

#[tokio::test]
async fn a_historical_read_shows_the_current_revision_in_its_header() {
    let server = Server::start().await;
    server.put("a", "old").await;
    server.put("a", "new").await;
    let response = server.range(pb::RangeRequest { revision: 2, ..key("a") }).await.unwrap();
    assert_eq!(response.kvs[0].value, b("old"));
    assert_eq!(response.header.unwrap().revision, 3);
}

#[tokio::test]
async fn revisions_beyond_either_end_of_history_are_out_of_range() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    server.compact(3).await.unwrap();
    assert_refused(server.range(pb::RangeRequest { revision: 2, ..key("a") }).await, Code::OutOfRange, COMPACTED);
    assert_refused(server.range(pb::RangeRequest { revision: 4, ..key("a") }).await, Code::OutOfRange, FUTURE);
    assert!(server.range(pb::RangeRequest { revision: 3, ..key("a") }).await.is_ok(), "the compact revision itself is readable");
    assert_refused(server.compact(3).await, Code::OutOfRange, COMPACTED);
    assert_refused(server.compact(9).await, Code::OutOfRange, FUTURE);
}

#[tokio::test]
async fn field_errors_have_etcds_codes_and_texts() {
    let server = Server::start().await;
    assert_refused(server.range(key("")).await, Code::InvalidArgument, "etcdserver: key is not provided");
    let unknown_order = pb::RangeRequest { sort_order: 7, ..key("a") };
    assert_refused(server.range(unknown_order).await, Code::InvalidArgument, "etcdserver: invalid sort option");
    let put = pb::PutRequest { key: b("a"), value: b("v"), ignore_value: true, ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::InvalidArgument, "etcdserver: value is provided");
    let put = pb::PutRequest { key: b("a"), lease: 5, ignore_lease: true, ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::InvalidArgument, "etcdserver: lease is provided");
    let put = pb::PutRequest { key: b("a"), ignore_value: true, ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::InvalidArgument, "etcdserver: key not found");
    let put = pb::PutRequest { key: b("a"), lease: 5, ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::NotFound, "etcdserver: requested lease not found");
    let twice = success(vec![put_op("a", ""), put_op("a", "")]);
    assert_refused(server.txn(twice).await, Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
    let too_many = success((0..129).map(|i| put_op(&format!("{i}"), "")).collect());
    assert_refused(server.txn(too_many).await, Code::InvalidArgument, "etcdserver: too many operations in txn request");
    assert_eq!(server.engine.revision(), 1, "nothing was changed by what was refused");
}

#[tokio::test]
async fn a_write_over_1_5_mib_is_too_large_and_a_read_only_transaction_is_not() {
    let server = Server::start().await;
    let value = "x".repeat(3 << 19);
    let put = pb::PutRequest { key: b("a"), value: b(&value), ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::InvalidArgument, "etcdserver: request is too large");
    let long_key = "k".repeat((3 << 19) + 1000);
    let read_only = success(vec![range_op(key(&long_key))]);
    assert!(server.txn(read_only).await.is_ok());
    let delete = pb::DeleteRangeRequest { key: b(&long_key), ..Default::default() };
    assert_refused(server.kv().delete_range(delete).await, Code::InvalidArgument, "etcdserver: request is too large");
}

#[tokio::test]
async fn fields_are_checked_before_the_size() {
    let server = Server::start().await;
    let put = pb::PutRequest { key: b(""), value: b(&"x".repeat(3 << 19)), ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::InvalidArgument, "etcdserver: key is not provided");
}

#[tokio::test]
async fn kubernetes_create_update_and_delete_behave_as_compare_and_swap() {
    let server = Server::start().await;
    let at = |revision| pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: b("/registry/pods/a"),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    let put = |revision, value: &str| pb::TxnRequest {
        compare: vec![at(revision)],
        success: vec![put_op("/registry/pods/a", value)],
        failure: vec![range_op(key("/registry/pods/a"))],
    };
    let created = server.txn(put(0, "v1")).await.unwrap();
    assert!(created.succeeded);
    assert_eq!(created.header.unwrap().revision, 2);
    let stale = server.txn(put(0, "v2")).await.unwrap();
    assert!(!stale.succeeded);
    assert_eq!(stale.header.unwrap().revision, 2, "a failed compare changes nothing");
    let Some(Answer::ResponseRange(range)) = &stale.responses[0].response else { panic!("a range's answer") };
    assert_eq!(range.kvs[0].value, b("v1"));
    let inner = range.header.unwrap();
    assert_eq!((inner.revision, inner.cluster_id, inner.member_id), (2, 0, 0), "inner headers show only the revision");
    assert!(server.txn(put(2, "v2")).await.unwrap().succeeded);
    let kv = &server.range(key("/registry/pods/a")).await.unwrap().kvs[0];
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
}

#[tokio::test]
async fn a_limited_list_says_that_there_is_more_and_counts_everything() {
    let server = Server::start().await;
    for i in 0..5 {
        server.put(&format!("k{i}"), "v").await;
    }
    let first = server.range(pb::RangeRequest { limit: 2, ..prefix("k") }).await.unwrap();
    assert_eq!((first.kvs.len(), first.more, first.count), (2, true, 5));
    let counted = server.range(pb::RangeRequest { count_only: true, limit: 2, ..prefix("k") }).await.unwrap();
    assert_eq!((counted.kvs.len(), counted.more, counted.count), (0, false, 5));
    let keys = server.range(pb::RangeRequest { keys_only: true, ..prefix("k") }).await.unwrap();
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty()));
}

#[tokio::test]
async fn compact_0_succeeds_once_on_a_fresh_store() {
    let server = Server::start().await;
    let request = pb::CompactionRequest { revision: 0, physical: false };
    assert_eq!(server.kv().compact(request).await.unwrap().into_inner().header.unwrap().revision, 1);
    assert_refused(server.kv().compact(request).await, Code::OutOfRange, COMPACTED);
}

#[tokio::test]
async fn a_write_whose_outcome_is_unknown_is_never_given_the_text_after_which_clients_send_it_again() {
    let server = Server::start().await;
    server.log.inject(duet::storage::mem::Fault::LoseAnswer);
    let put = pb::PutRequest { key: b("a"), value: b("v"), ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::Unavailable, "etcdserver: request timed out");
    let kvs = server.range(key("a")).await.unwrap().kvs;
    assert_eq!(kvs.len(), 1, "it had been applied after all");
}

#[tokio::test]
async fn a_write_that_was_certainly_not_applied_is_given_that_text() {
    let server = Server::start().await;
    server.log.inject(duet::storage::mem::Fault::Refuse);
    let put = pb::PutRequest { key: b("a"), value: b("v"), ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::Unavailable, "there is no connection available");
    assert!(server.range(key("a")).await.unwrap().kvs.is_empty());
}

#[tokio::test]
async fn transactions_nest_as_deep_as_operations_last() {
    let server = Server::with(|_, config| config.max_txn_ops = 1000).await;
    let nest = |levels: u32| {
        let innermost = success(vec![put_op("deep", &levels.to_string())]);
        (0..levels).fold(innermost, |inner, _| success(vec![pb::RequestOp { request: Some(Op::RequestTxn(inner)) }]))
    };
    let mut response = server.kv().txn(nest(NESTED_MAX)).await.expect("it nests as deep as it may").into_inner();
    for _ in 0..NESTED_MAX {
        match response.responses.remove(0).response {
            Some(Answer::ResponseTxn(nested)) => response = nested,
            other => panic!("a nested transaction is answered by a nested answer, not {other:?}"),
        }
    }
    assert!(matches!(response.responses[0].response, Some(Answer::ResponsePut(_))));
    let refusal = "etcdserver: too many operations in txn request";
    assert_refused(server.kv().txn(nest(NESTED_MAX + 1)).await, Code::InvalidArgument, refusal);
    assert_eq!(server.range(key("deep")).await.unwrap().kvs[0].value, b(&NESTED_MAX.to_string()));
}
