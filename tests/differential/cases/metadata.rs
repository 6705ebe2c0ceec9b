//! Metadata, health, and what isn't there.

use crate::script::*;
use crate::steps;

fn raw(path: &'static str, body: &[u8]) -> Step {
    Step::Call(Request::Raw(path, body.to_vec()))
}

pub fn cases() -> Vec<Case> {
    let leader: &[(&'static str, &[u8])] = &[("hasleader", b"true")];
    vec![
        case(
            "require-leader passes while there is a leader",
            steps![with(leader, put("a", "1")), with(leader, get("a")), with(leader, delete("a"))],
        ),
        case(
            "require-leader with another value means nothing",
            steps![with(&[("hasleader", b"false")], put("a", "1")), with(&[("hasleader", b"")], get("a"))],
        ),
        case(
            "any client-api-version is fine",
            steps![
                with(&[("client-api-version", b"3.6")], get("a")),
                with(&[("client-api-version", b"nonsense")], put("a", "1")),
                with(&[("client-api-version", b"")], get("a"))
            ],
        ),
        case(
            "a client-api-version that isn't UTF-8 is refused",
            steps![
                with(&[("client-api-version", b"\xff\xfe")], get("a")),
                with(&[("client-api-version", b"\xff")], put("a", "1")),
                get("a")
            ],
        ),
        case(
            "an unneeded token means nothing",
            steps![with(&[("token", b"abc.1")], put("a", "1")), with(&[("authorization", b"Bearer abc")], get("a"))],
        ),
        case("the health service serves", steps![raw("/grpc.health.v1.Health/Check", b"")]),
        case("the health service knows no other services", steps![raw("/grpc.health.v1.Health/Check", b"\x0a\x07nothing")]),
        case("the health service lists the whole server", steps![raw("/grpc.health.v1.Health/List", b"")]),
        case("a request that isn't protobuf is refused", steps![raw("/etcdserverpb.KV/Range", b"\xff\xff\xff")]),
        case(
            "an empty request is a request with defaults",
            steps![
                raw("/etcdserverpb.KV/Range", b""),
                raw("/etcdserverpb.KV/Txn", b""),
                raw("/etcdserverpb.Maintenance/Status", b""),
                raw("/etcdserverpb.Lease/LeaseLeases", b"")
            ],
        ),
        case("unknown fields are ignored", steps![raw("/etcdserverpb.KV/Put", b"\x0a\x01a\x12\x01b\xfa\x3f\x03xyz"), get("a")]),
        case("an unknown method isn't there", steps![raw("/etcdserverpb.KV/Rearrange", b"")]),
        case("an unknown service isn't there", steps![raw("/etcdserverpb.Poetry/Write", b"")]),
    ]
}
