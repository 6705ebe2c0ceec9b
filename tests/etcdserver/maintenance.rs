//! Maintenance over the wire.

use duet::proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;
use tonic::Code;

use crate::support::{Server, assert_refused, b};

async fn alarm(server: &Server, action: AlarmAction, member_id: u64, alarm: pb::AlarmType) -> Vec<(u64, i32)> {
    let request = pb::AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 };
    let answer = server.maintenance().alarm(request).await.unwrap().into_inner();
    answer.alarms.into_iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect()
}

#[tokio::test]
async fn status_shows_a_version_that_kubernetes_trusts_and_this_member_as_leader() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let status = server.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.version, "3.7.3");
    assert_eq!(status.storage_version, "3.7.0");
    assert_eq!(status.leader, server.engine.ids().1);
    assert_eq!(status.header.unwrap().revision, 2);
    assert_eq!(status.db_size_quota, 2 << 30);
    assert_eq!(status.raft_term, server.engine.epoch() as u64);
    assert!(status.errors.is_empty());
    assert!(status.db_size_in_use > 0);
}

#[tokio::test]
async fn alarms_can_be_raised_listed_and_disarmed() {
    let server = Server::start().await;
    assert_eq!(alarm(&server, AlarmAction::Get, 0, pb::AlarmType::None).await, []);
    assert_eq!(alarm(&server, AlarmAction::Activate, 5, pb::AlarmType::None).await, [], "no kind, no alarm");
    let raised = [(5, pb::AlarmType::Nospace as i32)];
    assert_eq!(alarm(&server, AlarmAction::Activate, 5, pb::AlarmType::Nospace).await, raised);
    assert_eq!(alarm(&server, AlarmAction::Activate, 5, pb::AlarmType::Nospace).await, raised);
    assert_eq!(alarm(&server, AlarmAction::Get, 0, pb::AlarmType::None).await, raised);
    assert_eq!(alarm(&server, AlarmAction::Get, 0, pb::AlarmType::Corrupt).await, []);
    let status = server.maintenance().status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["memberID:5 alarm:NOSPACE"]);
    assert_eq!(alarm(&server, AlarmAction::Deactivate, 6, pb::AlarmType::Nospace).await, []);
    assert_eq!(alarm(&server, AlarmAction::Deactivate, 5, pb::AlarmType::Nospace).await, raised);
    assert_eq!(alarm(&server, AlarmAction::Get, 0, pb::AlarmType::None).await, []);
}

#[tokio::test]
async fn a_corrupt_alarm_stops_writes_and_not_reads() {
    let server = Server::start().await;
    alarm(&server, AlarmAction::Activate, 5, pb::AlarmType::Corrupt).await;
    let put = pb::PutRequest { key: b("a"), ..Default::default() };
    assert_refused(server.kv().put(put).await, Code::DataLoss, "etcdserver: corrupt cluster");
    let delete = pb::DeleteRangeRequest { key: b("a"), ..Default::default() };
    assert_refused(server.kv().delete_range(delete).await, Code::DataLoss, "etcdserver: corrupt cluster");
    assert!(server.range(crate::support::key("a")).await.is_ok());
}

#[tokio::test]
async fn hashes_tell_what_they_cover_and_differ_when_the_data_does() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    let at = |revision| pb::HashKvRequest { revision };
    let first = server.maintenance().hash_kv(at(2)).await.unwrap().into_inner();
    let second = server.maintenance().hash_kv(at(0)).await.unwrap().into_inner();
    assert_eq!((first.hash_revision, first.compact_revision, first.header.unwrap().revision), (2, -1, 3));
    assert_eq!(second.hash_revision, 3);
    assert_ne!(first.hash, second.hash);
    let whole = server.maintenance().hash(pb::HashRequest {}).await.unwrap().into_inner();
    assert_eq!(whole.hash, second.hash);
    let future = server.maintenance().hash_kv(at(4)).await;
    assert_refused(future, Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
    let nothing = server.maintenance().hash_kv(at(-1)).await.unwrap().into_inner();
    assert_eq!((nothing.hash, nothing.hash_revision), (1_084_519_789, -1), "etcd's hash of no rows");
    server.compact(3).await.unwrap();
    let compacted = server.maintenance().hash_kv(at(2)).await;
    assert_refused(compacted, Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
}

#[tokio::test]
async fn defragment_and_move_leader_have_no_header() {
    let server = Server::start().await;
    let own = server.engine.ids().1;
    assert!(server.maintenance().defragment(pb::DefragmentRequest {}).await.unwrap().into_inner().header.is_none());
    let stays = server.maintenance().move_leader(pb::MoveLeaderRequest { target_id: own }).await.unwrap().into_inner();
    assert!(stays.header.is_none());
    let elsewhere = server.maintenance().move_leader(pb::MoveLeaderRequest { target_id: own + 1 }).await;
    assert_refused(elsewhere, Code::FailedPrecondition, "etcdserver: bad leader transferee");
}

#[tokio::test]
async fn a_downgrade_can_be_validated_for_the_release_before_and_never_begun() {
    let server = Server::start().await;
    let ask = async |action: DowngradeAction, version: &str| {
        let request = pb::DowngradeRequest { action: action as i32, version: version.into() };
        server.maintenance().downgrade(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(ask(DowngradeAction::Validate, "3.6").await.unwrap().version, "3.7");
    assert_eq!(ask(DowngradeAction::Cancel, "").await.unwrap().version, "3.7");
    let text = "etcdserver: invalid downgrade target version";
    assert_refused(ask(DowngradeAction::Validate, "3.5.0").await, Code::InvalidArgument, text);
    let text = "etcdserver: wrong downgrade target version format";
    assert_refused(ask(DowngradeAction::Enable, "three").await, Code::InvalidArgument, text);
    assert_eq!(ask(DowngradeAction::Enable, "3.6").await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn what_does_not_exist_yet_is_unimplemented() {
    let server = Server::start().await;
    let snapshot = server.maintenance().snapshot(pb::SnapshotRequest {}).await;
    assert_eq!(snapshot.unwrap_err().code(), Code::Unimplemented);
    let mut auth = pb::auth_client::AuthClient::new(server.channel());
    assert_eq!(auth.auth_status(pb::AuthStatusRequest {}).await.unwrap_err().code(), Code::Unimplemented);
    let mut lock = duet::proto::v3lockpb::lock_client::LockClient::new(server.channel());
    assert_eq!(lock.lock(duet::proto::v3lockpb::LockRequest::default()).await.unwrap_err().code(), Code::Unimplemented);
}
