//! The space quota and its alarm.

use duet::proto::etcdserverpb as pb;
use tonic::{Code, Status};

use crate::support::{Server, assert_refused, b, key, put_op, range_op, success};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

async fn put(server: &Server, name: &str, bytes: usize) -> Result<(), Status> {
    let request = pb::PutRequest { key: b(name), value: b(&"x".repeat(bytes)), ..Default::default() };
    server.kv().put(request).await.map(drop)
}

/// A server that is over its quota.
async fn full() -> Server {
    let server = Server::with(|options, _| options.quota_bytes = 100_000).await;
    put(&server, "big", 90_000).await.unwrap();
    assert_refused(put(&server, "more", 20_000).await, Code::ResourceExhausted, NO_SPACE);
    server
}

#[tokio::test]
async fn a_write_over_the_quota_raises_the_alarm_which_then_stops_all_that_takes_room() {
    let server = full().await;
    let alarms = server.maintenance().alarm(pb::AlarmRequest::default()).await.unwrap().into_inner().alarms;
    assert_eq!(alarms, [pb::AlarmMember { member_id: server.engine.ids().1, alarm: pb::AlarmType::Nospace as i32 }]);
    assert_refused(put(&server, "tiny", 1).await, Code::ResourceExhausted, NO_SPACE);
    assert_refused(server.txn(success(vec![put_op("a", "")])).await, Code::ResourceExhausted, NO_SPACE);
    let grant = server.lease().lease_grant(pb::LeaseGrantRequest { id: 1, ttl: 60 }).await;
    assert_refused(grant, Code::ResourceExhausted, NO_SPACE);
}

#[tokio::test]
async fn what_makes_room_passes_the_quota() {
    let server = full().await;
    assert!(server.txn(success(vec![range_op(key("big"))])).await.is_ok());
    assert_eq!(server.delete("big", "").await.deleted, 1);
    assert!(server.compact(server.engine.revision()).await.is_ok());
}

#[tokio::test]
async fn writes_pass_again_when_there_is_room_and_the_alarm_is_disarmed() {
    let server = full().await;
    server.delete("big", "").await;
    server.compact(server.engine.revision()).await.unwrap();
    assert_refused(put(&server, "tiny", 1).await, Code::ResourceExhausted, NO_SPACE);
    let disarm = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Deactivate as i32,
        member_id: server.engine.ids().1,
        alarm: pb::AlarmType::Nospace as i32,
    };
    server.maintenance().alarm(disarm).await.unwrap();
    put(&server, "tiny", 1).await.unwrap();
}

#[tokio::test]
async fn the_quota_is_looked_at_before_fields_and_alarms_after_them() {
    let server = full().await;
    assert_refused(put(&server, "", 20_000).await, Code::ResourceExhausted, NO_SPACE);
    assert_refused(put(&server, "", 1).await, Code::InvalidArgument, "etcdserver: key is not provided");
}

#[tokio::test]
async fn status_shows_the_quota_and_minus_1_when_it_is_switched_off() {
    for (quota, shown) in [(8 << 30, 8 << 30), (0, -1)] {
        let server = Server::with(|_, config| config.quota_bytes = quota).await;
        let status = server.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.db_size_quota, shown);
    }
}
