//! The cluster and maintenance services.

use duet::proto::etcdserverpb as pb;
use etcd_client::*;

use crate::{Wire, exchange, header, shows, strings};

fn member() -> pb::Member {
    pb::Member {
        id: 3001,
        name: "name".into(),
        peer_ur_ls: vec!["peer".into()],
        client_ur_ls: vec!["client".into()],
        is_learner: true,
    }
}

#[tokio::test]
async fn the_cluster_service_is_the_same_on_the_wire() {
    let wire = Wire::new().await;
    let members = || vec![member(), member()];
    exchange!(
        wire,
        "/etcdserverpb.Cluster/MemberAdd",
        pb::MemberAddResponse { header: header(), member: Some(member()), members: members() },
        |c| c.member_add(["http://u", "http://v"], Some(MemberAddOptions::new().with_is_learner())),
        pb::MemberAddRequest { peer_ur_ls: strings(&["http://u", "http://v"]), is_learner: true }
    );
    exchange!(
        wire,
        "/etcdserverpb.Cluster/MemberRemove",
        pb::MemberRemoveResponse { header: header(), members: members() },
        |c| c.member_remove(1),
        pb::MemberRemoveRequest { id: 1 }
    );
    exchange!(
        wire,
        "/etcdserverpb.Cluster/MemberUpdate",
        pb::MemberUpdateResponse { header: header(), members: members() },
        |c| c.member_update(2, strings(&["u"])),
        pb::MemberUpdateRequest { id: 2, peer_ur_ls: strings(&["u"]) }
    );
    exchange!(
        wire,
        "/etcdserverpb.Cluster/MemberList",
        pb::MemberListResponse { header: header(), members: members() },
        |c| c.member_list(),
        pb::MemberListRequest { linearizable: false }
    );
    exchange!(
        wire,
        "/etcdserverpb.Cluster/MemberPromote",
        pb::MemberPromoteResponse { header: header(), members: members() },
        |c| c.member_promote(3),
        pb::MemberPromoteRequest { id: 3 }
    );
}

#[tokio::test]
async fn the_maintenance_service_is_the_same_on_the_wire() {
    let wire = Wire::new().await;
    let mut options = AlarmOptions::new();
    options.with_member(1);
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/Alarm",
        pb::AlarmResponse {
            header: header(),
            alarms: vec![pb::AlarmMember { member_id: 2, alarm: pb::AlarmType::Corrupt as i32 }]
        },
        |c| c.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(options)),
        pb::AlarmRequest {
            action: pb::alarm_request::AlarmAction::Activate as i32,
            member_id: 1,
            alarm: pb::AlarmType::Nospace as i32
        }
    );
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/Status",
        pb::StatusResponse {
            header: header(),
            version: "version".into(),
            db_size: 1,
            leader: 2,
            raft_index: 3,
            raft_term: 4,
            raft_applied_index: 5,
            errors: strings(&["error"]),
            db_size_in_use: 6,
            is_learner: true,
            storage_version: "storage".into(),
            db_size_quota: 7,
            downgrade_info: Some(pb::DowngradeInfo { enabled: true, target_version: "target".into() }),
        },
        |c| c.status(),
        pb::StatusRequest {}
    );
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/Defragment",
        pb::DefragmentResponse { header: header() },
        |c| c.defragment(),
        pb::DefragmentRequest {}
    );
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/Hash",
        pb::HashResponse { header: header(), hash: 1 },
        |c| c.hash(),
        pb::HashRequest {}
    );
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/HashKV",
        pb::HashKvResponse { header: header(), hash: 1, compact_revision: 2, hash_revision: 3 },
        |c| c.hash_kv(4),
        pb::HashKvRequest { revision: 4 }
    );
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/MoveLeader",
        pb::MoveLeaderResponse { header: header() },
        |c| c.move_leader(5),
        pb::MoveLeaderRequest { target_id: 5 }
    );
    let mut maintenance = wire.client.maintenance_client();
    exchange!(
        wire,
        "/etcdserverpb.Maintenance/Downgrade",
        pb::DowngradeResponse { header: header(), version: "version".into() },
        |c| {
            drop(c);
            maintenance.downgrade(DowngradeOptions::Enable("3.6".into()))
        },
        pb::DowngradeRequest { action: pb::downgrade_request::DowngradeAction::Enable as i32, version: "3.6".into() }
    );
    let answer = pb::SnapshotResponse { header: header(), remaining_bytes: 1, blob: "data".into(), version: "version".into() };
    let mut stream = wire.answers(&answer).snapshot().await.unwrap();
    wire.was_asked("/etcdserverpb.Maintenance/Snapshot", &pb::SnapshotRequest {});
    shows(&stream.message().await.unwrap().unwrap(), &answer);
}
