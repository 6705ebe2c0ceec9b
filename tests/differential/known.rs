//! Where Duet differs from etcd for a reason. The list is kept true: an entry that doesn't differ any more fails.

use anyhow::Result;

use crate::play::play;
use crate::report::Report;
use crate::script::{Case, Request, Step};
use crate::server::{Program, Server};

/// Cases by area and name, and why they differ.
const DIFFERENCES: [(&str, &str, &str); 1] = [(
    "watch",
    "a replay over 4 MiB comes in one response",
    "a replay is bounded, so that no watcher makes the server hold a thousand revisions at once; no revision is split",
)];

/// Services that Duet doesn't have yet: they answer Unimplemented, whatever they are asked.
const UNIMPLEMENTED: [&str; 25] = [
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/AuthDisable",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/UserDelete",
    "/etcdserverpb.Auth/UserChangePassword",
    "/etcdserverpb.Auth/UserGrantRole",
    "/etcdserverpb.Auth/UserRevokeRole",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleList",
    "/etcdserverpb.Auth/RoleDelete",
    "/etcdserverpb.Auth/RoleGrantPermission",
    "/etcdserverpb.Auth/RoleRevokePermission",
    "/v3lockpb.Lock/Lock",
    "/v3lockpb.Lock/Unlock",
    "/v3electionpb.Election/Campaign",
    "/v3electionpb.Election/Proclaim",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
    "/v3electionpb.Election/Resign",
    "/etcdserverpb.Maintenance/Snapshot",
];

/// Why `case` is expected to differ, if it is.
pub fn difference(case: &Case) -> Option<&'static str> {
    if Program::subject() == Program::Etcd {
        return None;
    }
    DIFFERENCES.iter().find(|(area, name, _)| *area == case.area && *name == case.name).map(|(_, _, reason)| *reason)
}

/// Checks that the services that aren't there say so.
pub async fn unimplemented(subject: &mut Server, report: &mut Report) -> Result<()> {
    if Program::subject() == Program::Etcd {
        return Ok(());
    }
    for path in UNIMPLEMENTED {
        let step = Step::Call(Request::Raw(path, Vec::new()));
        let transcript = play(subject, &[step], false, None).await?;
        let answer = &transcript.0[0].answer;
        let problem = (!answer.starts_with("error Unimplemented")).then(|| format!("  {answer}"));
        report.outcome(&format!("not there yet: {path} answers Unimplemented"), problem);
    }
    Ok(())
}
