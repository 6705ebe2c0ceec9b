//! Cluster: one member, whose list reads and whose changes are refused as etcd's are.

use duet::proto::etcdserverpb as pb;
use tonic::Code;

use crate::support::{Server, assert_refused};

#[tokio::test]
async fn the_store_is_one_started_member_and_its_headers_show_no_revision() {
    let server = Server::with(|_, config| config.name = "duet-0".into()).await;
    for linearizable in [false, true] {
        let list = server.cluster().member_list(pb::MemberListRequest { linearizable }).await.unwrap().into_inner();
        let header = list.header.unwrap();
        assert_eq!((header.revision, header.member_id), (0, server.engine.ids().1));
        assert_eq!(list.members.len(), 1);
        let member = &list.members[0];
        assert_eq!((member.id, member.name.as_str(), member.is_learner), (server.engine.ids().1, "duet-0", false));
        assert!(!member.client_ur_ls.is_empty());
    }
}

#[tokio::test]
async fn membership_cannot_be_changed_over_the_api() {
    let server = Server::start().await;
    let own = server.engine.ids().1;
    let bad = pb::MemberAddRequest { peer_ur_ls: vec!["nowhere".into()], is_learner: false };
    let bad = server.cluster().member_add(bad).await;
    assert_refused(bad, Code::InvalidArgument, "etcdserver: given member URLs are invalid");
    let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://10.0.0.1:2380".into()], is_learner: false };
    assert_eq!(server.cluster().member_add(add).await.unwrap_err().code(), Code::Unimplemented);
    let promote = server.cluster().member_promote(pb::MemberPromoteRequest { id: own + 1 }).await;
    assert_refused(promote, Code::NotFound, "etcdserver: member not found");
    let promote = server.cluster().member_promote(pb::MemberPromoteRequest { id: own }).await;
    assert_refused(promote, Code::FailedPrecondition, "etcdserver: can only promote a learner member");
    let remove = server.cluster().member_remove(pb::MemberRemoveRequest { id: own + 1 }).await;
    assert_refused(remove, Code::NotFound, "etcdserver: member not found");
    let remove = server.cluster().member_remove(pb::MemberRemoveRequest { id: own }).await;
    let text = "etcdserver: re-configuration failed due to not enough started members";
    assert_refused(remove, Code::Unknown, text);
}
