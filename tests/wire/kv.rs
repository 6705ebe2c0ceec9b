//! Keys, watches and leases.

use bytes::Bytes;
use duet::proto::etcdserverpb::{self as pb, compare, range_request, request_op, response_op, watch_create_request};
use duet::proto::mvccpb;
use etcd_client::*;

use crate::{Wire, exchange, header, kv, shows};

fn range_response() -> pb::RangeResponse {
    pb::RangeResponse { header: header(), kvs: vec![kv(), kv()], more: true, count: 4001 }
}

fn put_response() -> pb::PutResponse {
    pb::PutResponse { header: header(), prev_kv: Some(kv()) }
}

fn delete_response() -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse { header: header(), deleted: 4002, prev_kvs: vec![kv()] }
}

#[tokio::test]
async fn ranges_puts_deletes_and_compactions_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    let options = GetOptions::new()
        .with_range("end")
        .with_limit(1)
        .with_revision(2)
        .with_sort(SortTarget::Value, SortOrder::Descend)
        .with_serializable()
        .with_keys_only()
        .with_count_only()
        .with_min_mod_revision(3)
        .with_max_mod_revision(4)
        .with_min_create_revision(5)
        .with_max_create_revision(6);
    let request = pb::RangeRequest {
        key: "key".into(),
        range_end: "end".into(),
        limit: 1,
        revision: 2,
        sort_order: range_request::SortOrder::Descend as i32,
        sort_target: range_request::SortTarget::Value as i32,
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 3,
        max_mod_revision: 4,
        min_create_revision: 5,
        max_create_revision: 6,
    };
    exchange!(wire, "/etcdserverpb.KV/Range", range_response(), |c| c.get("key", Some(options)), request);
    let answer = pb::RangeStreamResponse { range_response: Some(range_response()) };
    let mut stream = wire.answers(&answer).kv_client().get_stream("key", None).await.unwrap();
    let request = pb::RangeRequest { key: "key".into(), ..Default::default() };
    wire.was_asked("/etcdserverpb.KV/RangeStream", &request);
    shows(&stream.message().await.unwrap().unwrap(), &range_response());
    let options = PutOptions::new().with_lease(7).with_prev_key().with_ignore_value().with_ignore_lease();
    let request = pb::PutRequest {
        key: "key".into(),
        value: "value".into(),
        lease: 7,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: true,
    };
    exchange!(wire, "/etcdserverpb.KV/Put", put_response(), |c| c.put("key", "value", Some(options)), request);
    let options = DeleteOptions::new().with_range("end").with_prev_key();
    let request = pb::DeleteRangeRequest { key: "key".into(), range_end: "end".into(), prev_kv: true };
    exchange!(wire, "/etcdserverpb.KV/DeleteRange", delete_response(), |c| c.delete("key", Some(options)), request);
    exchange!(
        wire,
        "/etcdserverpb.KV/Compact",
        pb::CompactionResponse { header: header() },
        |c| c.compact(9, Some(CompactionOptions::new().with_physical())),
        pb::CompactionRequest { revision: 9, physical: true }
    );
}

#[tokio::test]
async fn transactions_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    let compares = vec![
        Compare::version("k", CompareOp::Equal, 1).with_range("end"),
        Compare::create_revision("k", CompareOp::Greater, 2),
        Compare::mod_revision("k", CompareOp::Less, 3),
        Compare::value("k", CompareOp::NotEqual, "value"),
        Compare::lease("k", CompareOp::Equal, 4),
    ];
    let txn = Txn::new()
        .when(compares)
        .and_then(vec![TxnOp::get("g", None), TxnOp::put("p", "v", None)])
        .or_else(vec![TxnOp::delete("d", None), TxnOp::txn(Txn::new())]);
    let compare = |target: compare::CompareTarget, result: compare::CompareResult, union| pb::Compare {
        result: result as i32,
        target: target as i32,
        key: "k".into(),
        target_union: Some(union),
        range_end: Bytes::new(),
    };
    use compare::{CompareResult as R, CompareTarget as T, TargetUnion as U};
    let op = |request| pb::RequestOp { request: Some(request) };
    let request = pb::TxnRequest {
        compare: vec![
            pb::Compare { range_end: "end".into(), ..compare(T::Version, R::Equal, U::Version(1)) },
            compare(T::Create, R::Greater, U::CreateRevision(2)),
            compare(T::Mod, R::Less, U::ModRevision(3)),
            compare(T::Value, R::NotEqual, U::Value("value".into())),
            compare(T::Lease, R::Equal, U::Lease(4)),
        ],
        success: vec![
            op(request_op::Request::RequestRange(pb::RangeRequest { key: "g".into(), ..Default::default() })),
            op(request_op::Request::RequestPut(pb::PutRequest { key: "p".into(), value: "v".into(), ..Default::default() })),
        ],
        failure: vec![
            op(request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest { key: "d".into(), ..Default::default() })),
            op(request_op::Request::RequestTxn(pb::TxnRequest::default())),
        ],
    };
    let inner = pb::TxnResponse { header: header(), succeeded: true, responses: vec![] };
    let answer = pb::TxnResponse {
        header: header(),
        succeeded: true,
        responses: [
            response_op::Response::ResponseRange(range_response()),
            response_op::Response::ResponsePut(put_response()),
            response_op::Response::ResponseDeleteRange(delete_response()),
            response_op::Response::ResponseTxn(inner),
        ]
        .map(|response| pb::ResponseOp { response: Some(response) })
        .to_vec(),
    };
    exchange!(wire, "/etcdserverpb.KV/Txn", answer, |c| c.txn(txn), request);
}

#[tokio::test]
async fn watches_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    let event = |kind: mvccpb::event::EventType| mvccpb::Event { r#type: kind as i32, kv: Some(kv()), prev_kv: Some(kv()) };
    let answer = pb::WatchResponse {
        header: header(),
        watch_id: 5001,
        created: true,
        canceled: true,
        compact_revision: 5002,
        cancel_reason: "reason".into(),
        fragment: true,
        events: vec![event(mvccpb::event::EventType::Put), event(mvccpb::event::EventType::Delete)],
    };
    let options = WatchOptions::new()
        .with_range("end")
        .with_start_revision(1)
        .with_progress_notify()
        .with_filters(vec![WatchFilterType::NoPut, WatchFilterType::NoDelete])
        .with_prev_key()
        .with_watch_id(2)
        .with_fragment();
    let mut client = wire.answers(&answer);
    let mut stream = client.watch("key", Some(options)).await.unwrap();
    let response = stream.message().await.unwrap().unwrap();
    shows(&response, &answer);
    let create = pb::WatchCreateRequest {
        key: "key".into(),
        range_end: "end".into(),
        start_revision: 1,
        progress_notify: true,
        filters: vec![watch_create_request::FilterType::Noput as i32, watch_create_request::FilterType::Nodelete as i32],
        prev_kv: true,
        watch_id: 2,
        fragment: true,
    };
    let request_union = Some(pb::watch_request::RequestUnion::CreateRequest(create));
    wire.was_asked("/etcdserverpb.Watch/Watch", &pb::WatchRequest { request_union });
}

#[tokio::test]
async fn leases_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    exchange!(
        wire,
        "/etcdserverpb.Lease/LeaseGrant",
        pb::LeaseGrantResponse { header: header(), id: 1, ttl: 2, error: "error".into() },
        |c| c.lease_grant(3, Some(LeaseGrantOptions::new().with_id(4))),
        pb::LeaseGrantRequest { ttl: 3, id: 4 }
    );
    exchange!(
        wire,
        "/etcdserverpb.Lease/LeaseRevoke",
        pb::LeaseRevokeResponse { header: header() },
        |c| c.lease_revoke(5),
        pb::LeaseRevokeRequest { id: 5 }
    );
    exchange!(
        wire,
        "/etcdserverpb.Lease/LeaseTimeToLive",
        pb::LeaseTimeToLiveResponse { header: header(), id: 1, ttl: 2, granted_ttl: 3, keys: vec!["k".into(), "l".into()] },
        |c| c.lease_time_to_live(6, Some(LeaseTimeToLiveOptions::new().with_keys())),
        pb::LeaseTimeToLiveRequest { id: 6, keys: true }
    );
    exchange!(
        wire,
        "/etcdserverpb.Lease/LeaseLeases",
        pb::LeaseLeasesResponse { header: header(), leases: vec![pb::LeaseStatus { id: 7 }, pb::LeaseStatus { id: 8 }] },
        |c| c.leases(),
        pb::LeaseLeasesRequest {}
    );
    let answer = pb::LeaseKeepAliveResponse { header: header(), id: 9, ttl: 10 };
    let mut client = wire.answers(&answer);
    let (_keeper, mut stream) = client.lease_keep_alive(9).await.unwrap();
    wire.was_asked("/etcdserverpb.Lease/LeaseKeepAlive", &pb::LeaseKeepAliveRequest { id: 9 });
    // The client takes the first answer for itself to see whether the lease is there.
    if let Some(response) = stream.message().await.unwrap() {
        shows(&response, &answer);
    }
}
