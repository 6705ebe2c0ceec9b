//! The cluster service, of a single member.

use crate::script::*;
use crate::steps;
use duet::proto::etcdserverpb::*;

fn call(request: Request) -> Step {
    Step::Call(request)
}

fn member_list(linearizable: bool) -> Step {
    call(Request::MemberList(MemberListRequest { linearizable }))
}

fn member_add(urls: &[&str], is_learner: bool) -> Step {
    call(Request::MemberAdd(MemberAddRequest { peer_ur_ls: urls.iter().map(|&url| url.to_owned()).collect(), is_learner }))
}

fn member_update(id: u64, urls: &[&str]) -> Step {
    call(Request::MemberUpdate(MemberUpdateRequest { id, peer_ur_ls: urls.iter().map(|&url| url.to_owned()).collect() }))
}

pub fn cases() -> Vec<Case> {
    vec![
        case("MemberList shows the one member, at revision 0", steps![put("a", "1"), member_list(false), member_list(true)]),
        case(
            "MemberAdd refuses bad URLs",
            steps![
                member_add(&[], false),
                member_add(&["nonsense"], false),
                member_add(&["ftp://127.0.0.1:1"], false),
                member_add(&["http://127.0.0.1"], true),
                member_add(&["http://127.0.0.1:1/path"], false)
            ],
        ),
        case(
            "MemberRemove of an unknown member is refused",
            steps![
                call(Request::MemberRemove(MemberRemoveRequest { id: 99 })),
                call(Request::MemberRemove(MemberRemoveRequest { id: 0 }))
            ],
        ),
        case("MemberUpdate of an unknown member is refused", steps![member_update(99, &["http://127.0.0.1:1"])]),
        case(
            "MemberPromote of an unknown member is refused",
            steps![call(Request::MemberPromote(MemberPromoteRequest { id: 99 }))],
        ),
        case("MemberPromote of a voting member is refused", steps![call(Request::MemberPromote(MemberPromoteRequest { id: 1 }))]),
    ]
}
