//! Users, roles, locks and elections, which Duet doesn't serve yet.

use duet::proto::etcdserverpb as pb;
use duet::proto::{authpb, v3electionpb, v3lockpb};
use etcd_client::*;

use crate::{Wire, exchange, header, kv, shows, strings};

#[tokio::test]
async fn users_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    exchange!(
        wire,
        "/etcdserverpb.Auth/AuthEnable",
        pb::AuthEnableResponse { header: header() },
        |c| c.auth_enable(),
        pb::AuthEnableRequest {}
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/AuthDisable",
        pb::AuthDisableResponse { header: header() },
        |c| c.auth_disable(),
        pb::AuthDisableRequest {}
    );
    let mut auth = wire.client.auth_client();
    exchange!(
        wire,
        "/etcdserverpb.Auth/Authenticate",
        pb::AuthenticateResponse { header: header(), token: "token".into() },
        |c| {
            drop(c);
            auth.authenticate("name".into(), "password".into())
        },
        pb::AuthenticateRequest { name: "name".into(), password: "password".into() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserAdd",
        pb::AuthUserAddResponse { header: header() },
        |c| c.user_add("name", "password", Some(UserAddOptions::new().with_no_pwd())),
        pb::AuthUserAddRequest {
            name: "name".into(),
            password: "password".into(),
            options: Some(authpb::UserAddOptions { no_password: true }),
            hashed_password: String::new()
        }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserGet",
        pb::AuthUserGetResponse { header: header(), roles: strings(&["r", "s"]) },
        |c| c.user_get("name"),
        pb::AuthUserGetRequest { name: "name".into() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserList",
        pb::AuthUserListResponse { header: header(), users: strings(&["u", "v"]) },
        |c| c.user_list(),
        pb::AuthUserListRequest {}
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserDelete",
        pb::AuthUserDeleteResponse { header: header() },
        |c| c.user_delete("name"),
        pb::AuthUserDeleteRequest { name: "name".into() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserChangePassword",
        pb::AuthUserChangePasswordResponse { header: header() },
        |c| c.user_change_password("name", "new"),
        pb::AuthUserChangePasswordRequest { name: "name".into(), password: "new".into(), hashed_password: String::new() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserGrantRole",
        pb::AuthUserGrantRoleResponse { header: header() },
        |c| c.user_grant_role("user", "role"),
        pb::AuthUserGrantRoleRequest { user: "user".into(), role: "role".into() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/UserRevokeRole",
        pb::AuthUserRevokeRoleResponse { header: header() },
        |c| c.user_revoke_role("user", "role"),
        pb::AuthUserRevokeRoleRequest { name: "user".into(), role: "role".into() }
    );
}

#[tokio::test]
async fn roles_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    exchange!(
        wire,
        "/etcdserverpb.Auth/RoleAdd",
        pb::AuthRoleAddResponse { header: header() },
        |c| c.role_add("role"),
        pb::AuthRoleAddRequest { name: "role".into() }
    );
    let permission = |kind: authpb::permission::Type| authpb::Permission {
        perm_type: kind as i32,
        key: "key".into(),
        range_end: "end".into(),
    };
    exchange!(
        wire,
        "/etcdserverpb.Auth/RoleGet",
        pb::AuthRoleGetResponse {
            header: header(),
            perm: vec![permission(authpb::permission::Type::Write), permission(authpb::permission::Type::Readwrite)]
        },
        |c| c.role_get("role"),
        pb::AuthRoleGetRequest { role: "role".into() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/RoleList",
        pb::AuthRoleListResponse { header: header(), roles: strings(&["r"]) },
        |c| c.role_list(),
        pb::AuthRoleListRequest {}
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/RoleDelete",
        pb::AuthRoleDeleteResponse { header: header() },
        |c| c.role_delete("role"),
        pb::AuthRoleDeleteRequest { role: "role".into() }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/RoleGrantPermission",
        pb::AuthRoleGrantPermissionResponse { header: header() },
        |c| c.role_grant_permission("role", Permission::read_write("key").with_range_end("end")),
        pb::AuthRoleGrantPermissionRequest { name: "role".into(), perm: Some(permission(authpb::permission::Type::Readwrite)) }
    );
    exchange!(
        wire,
        "/etcdserverpb.Auth/RoleRevokePermission",
        pb::AuthRoleRevokePermissionResponse { header: header() },
        |c| c.role_revoke_permission("role", "key", Some(RoleRevokePermissionOptions::new().with_range_end("end"))),
        pb::AuthRoleRevokePermissionRequest { role: "role".into(), key: "key".into(), range_end: "end".into() }
    );
}

#[tokio::test]
async fn locks_and_elections_are_the_same_on_the_wire() {
    let wire = Wire::new().await;
    exchange!(
        wire,
        "/v3lockpb.Lock/Lock",
        v3lockpb::LockResponse { header: header(), key: "key".into() },
        |c| c.lock("name", Some(LockOptions::new().with_lease(1))),
        v3lockpb::LockRequest { name: "name".into(), lease: 1 }
    );
    exchange!(
        wire,
        "/v3lockpb.Lock/Unlock",
        v3lockpb::UnlockResponse { header: header() },
        |c| c.unlock("key"),
        v3lockpb::UnlockRequest { key: "key".into() }
    );
    let leader = || v3electionpb::LeaderKey { name: "name".into(), key: "key".into(), rev: 1, lease: 2 };
    let client_leader = || LeaderKey::new().with_name("name").with_key("key").with_rev(1).with_lease(2);
    exchange!(
        wire,
        "/v3electionpb.Election/Campaign",
        v3electionpb::CampaignResponse { header: header(), leader: Some(leader()) },
        |c| c.campaign("name", "value", 3),
        v3electionpb::CampaignRequest { name: "name".into(), lease: 3, value: "value".into() }
    );
    exchange!(
        wire,
        "/v3electionpb.Election/Proclaim",
        v3electionpb::ProclaimResponse { header: header() },
        |c| c.proclaim("value", Some(ProclaimOptions::new().with_leader(client_leader()))),
        v3electionpb::ProclaimRequest { leader: Some(leader()), value: "value".into() }
    );
    let current = || v3electionpb::LeaderResponse { header: header(), kv: Some(kv()) };
    let of = || v3electionpb::LeaderRequest { name: "name".into() };
    exchange!(wire, "/v3electionpb.Election/Leader", current(), |c| c.leader("name"), of());
    let mut stream = wire.answers(&current()).observe("name").await.unwrap();
    wire.was_asked("/v3electionpb.Election/Observe", &of());
    shows(&stream.message().await.unwrap().unwrap(), &current());
    exchange!(
        wire,
        "/v3electionpb.Election/Resign",
        v3electionpb::ResignResponse { header: header() },
        |c| c.resign(Some(ResignOptions::new().with_leader(client_leader()))),
        v3electionpb::ResignRequest { leader: Some(leader()) }
    );
}
