//! Leases.

use crate::script::*;
use crate::{ops, steps};

const MAX_TTL: i64 = 9_000_000_000;

pub fn cases() -> Vec<Case> {
    let mut cases = grants();
    cases.extend(lifetimes());
    cases.extend(keys());
    cases
}

fn grants() -> Vec<Case> {
    vec![
        case("a lease with a chosen id", steps![grant(42, 100), time_to_live(42, false)]),
        case(
            "a lease with an id that the server chooses",
            steps![
                grant(0, 100),
                time_to_live(auto_lease(0), true),
                put("a", "1").lease(auto_lease(0)),
                get("a"),
                revoke(auto_lease(0)),
                get("a")
            ],
        ),
        case(
            "server-chosen ids differ",
            steps![grant(0, 100), grant(0, 200), time_to_live(auto_lease(0), false), time_to_live(auto_lease(1), false)],
        ),
        case("a grant is no revision", steps![grant(1, 100), put("a", "1"), grant(2, 100), get("a")]),
        case(
            "a negative id is legal",
            steps![grant(-5, 100), put("a", "1").lease(-5), time_to_live(-5, true), leases(), revoke(-5), get("a")],
        ),
        case(
            "the smallest and the greatest id are legal",
            steps![grant(i64::MIN, 100), grant(i64::MAX, 200), leases(), revoke(i64::MIN), revoke(i64::MAX)],
        ),
        case("a used id is refused", steps![grant(7, 100), grant(7, 200), time_to_live(7, false)]),
        case("a used id is refused after a too large TTL", steps![grant(7, 100), grant(7, MAX_TTL + 1)]),
        case("an id is free after its revocation", steps![grant(7, 100), revoke(7), grant(7, 300), time_to_live(7, false)]),
        case(
            "a TTL below the minimum becomes the minimum",
            steps![grant(1, 1), grant(2, 0), grant(3, -1), grant(4, i64::MIN), grant(5, 2), grant(6, 3)],
        ),
        case(
            "the largest TTL passes, one more doesn't",
            steps![grant(1, MAX_TTL), grant(2, MAX_TTL + 1), grant(3, i64::MAX), time_to_live(1, false)],
        ),
        case("a grant's header is the current revision", steps![put("a", "1"), put("b", "1"), grant(3, 100)]),
    ]
}

fn lifetimes() -> Vec<Case> {
    vec![
        case(
            "TimeToLive of an unknown lease answers -1",
            steps![time_to_live(99, false), time_to_live(99, true), time_to_live(0, true)],
        ),
        case(
            "TimeToLive without keys shows none",
            steps![grant(7, 100), put("a", "1").lease(7), time_to_live(7, false), time_to_live(7, true)],
        ),
        case("KeepAlive answers the granted TTL", steps![grant(7, 100), keep_alive(&[7])]),
        case("KeepAlive of an unknown lease answers TTL 0", steps![keep_alive(&[99]), keep_alive(&[0])]),
        case("KeepAlive answers each request of its stream", steps![grant(7, 100), grant(8, 200), keep_alive(&[7, 8, 99, 7, 7])]),
        case("KeepAlive without requests ends", steps![keep_alive(&[])]),
        case("KeepAlive's header is the current revision", steps![grant(7, 100), put("a", "1"), put("b", "1"), keep_alive(&[7])]),
        case("KeepAlive after revocation answers TTL 0", steps![grant(7, 100), revoke(7), keep_alive(&[7])]),
        case("a revocation of an unknown lease is refused", steps![revoke(99), revoke(0), revoke(-1)]),
        case("a second revocation is refused", steps![grant(7, 100), revoke(7), revoke(7)]),
        case("LeaseLeases without leases is empty", steps![leases()]),
        case(
            "LeaseLeases is ordered by expiry",
            steps![grant(1, 300), grant(2, 100), grant(3, 200), leases(), keep_alive(&[2]), leases(), revoke(3), leases()],
        ),
        case(
            "an expired lease's keys are deleted in one revision",
            steps![
                grant(7, 1),
                put("b", "1").lease(7),
                put("a", "1").lease(7),
                put("c", "1"),
                open(0),
                watch(0, "a").to("z"),
                take(0, 1),
                take(0, 1),
                get_all(),
                time_to_live(7, true),
                keep_alive(&[7]),
                leases(),
                put("d", "1"),
            ],
        ),
        case(
            "an expired lease without keys is no revision",
            steps![
                put("x", "1"),
                grant(7, 2),
                grant(8, 2),
                put("a", "").lease(8),
                open(0),
                watch(0, "a"),
                take(0, 2),
                time_to_live(7, false),
                get("x")
            ],
        ),
    ]
}

fn keys() -> Vec<Case> {
    vec![
        case(
            "a revocation deletes its keys in one revision",
            steps![
                grant(7, 100),
                put("b", "1").lease(7),
                put("a", "1").lease(7),
                put("c", "1"),
                revoke(7),
                get_all(),
                put("d", "1")
            ],
        ),
        case("a revocation without keys is no revision", steps![put("a", "1"), grant(7, 100), revoke(7), get("a")]),
        case("a revocation's header is the new revision", steps![grant(7, 100), put("a", "1").lease(7), revoke(7)]),
        case(
            "a revocation leaves other leases' keys",
            steps![
                grant(7, 100),
                grant(8, 200),
                put("a", "1").lease(7),
                put("b", "1").lease(8),
                revoke(7),
                get_all(),
                time_to_live(8, true)
            ],
        ),
        case(
            "a key attached twice is listed once",
            steps![grant(7, 100), put("a", "1").lease(7), put("a", "2").lease(7), time_to_live(7, true)],
        ),
        case(
            "keys put in a transaction are attached",
            steps![
                grant(7, 100),
                txn(ops![put("a", "1").lease(7), put("b", "1").lease(7), txn(ops![put("c", "1").lease(7)])]),
                time_to_live(7, true),
                revoke(7),
                get_all()
            ],
        ),
        case(
            "a deleted key is detached, and stays so when made anew",
            steps![
                grant(7, 100),
                put("a", "1").lease(7),
                delete("a").to("z"),
                put("a", "2"),
                time_to_live(7, true),
                revoke(7),
                get("a")
            ],
        ),
        case(
            "a key put and deleted in one revision is detached",
            steps![
                grant(7, 100),
                txn(ops![txn(ops![put("a", "1").lease(7)]), txn(ops![delete("a")])]),
                time_to_live(7, true),
                revoke(7)
            ],
        ),
        case(
            "a compare sees the lease",
            steps![
                grant(7, 100),
                put("a", "1").lease(7),
                when([cmp(
                    "a",
                    duet::proto::etcdserverpb::compare::TargetUnion::Lease(7),
                    duet::proto::etcdserverpb::compare::CompareResult::Equal
                )])
                .then(ops![put("a", "2")]),
                get("a"),
                time_to_live(7, true),
            ],
        ),
        case(
            "keys with NUL and high bytes are attached",
            steps![
                grant(7, 100),
                put([0], "1").lease(7),
                put([0xff, 0], "1").lease(7),
                time_to_live(7, true),
                revoke(7),
                get_all()
            ],
        ),
        case(
            "an old pair shows the lease that it had",
            steps![grant(7, 100), put("a", "1").lease(7), put("a", "2"), get("a").rev(2), revoke(7), get("a").rev(2)],
        ),
    ]
}
