//! Limits, and the order in which requests are checked.

use crate::script::*;
use crate::{ops, steps};
use duet::proto::etcdserverpb::RequestOp;
use duet::proto::etcdserverpb::compare::CompareResult::Equal;
use duet::proto::etcdserverpb::compare::TargetUnion::Version;

/// So many puts of different keys.
fn puts(n: usize) -> Vec<RequestOp> {
    (0..n).map(|i| put(format!("p{i:03}"), "").into()).collect()
}

fn gets(n: usize) -> Vec<RequestOp> {
    (0..n).map(|i| get(format!("p{i:03}")).into()).collect()
}

fn compares(n: usize) -> If {
    when((0..n).map(|i| cmp(format!("p{i:03}"), Version(0), Equal)).collect::<Vec<_>>())
}

fn bytes(n: usize) -> Vec<u8> {
    vec![b'v'; n]
}

pub fn cases() -> Vec<Case> {
    let mut cases = operations();
    cases.extend(sizes());
    cases.extend(order());
    cases
}

fn operations() -> Vec<Case> {
    vec![
        case("128 operations pass", steps![txn(puts(128)), get_all().count_only()]),
        case("129 operations are too many", steps![txn(puts(129)), get_all().count_only()]),
        case("129 reads are too many", steps![txn(gets(129)), txn(gets(128))]),
        case("129 compares are too many", steps![compares(129), compares(128)]),
        case(
            "129 operations in the branch not taken are too many",
            steps![when([]).or_else(puts(129)), when([]).or_else(puts(128))],
        ),
        case("compares, then and else are counted each for itself", steps![compares(128).then(puts(128)).or_else(gets(128))]),
        case(
            "a nested transaction has what its parent left",
            steps![
                txn([vec![txn(puts(127)).into()], vec![]].concat()),
                txn(ops![txn(puts(128))]),
                txn([gets(27), ops![txn(puts(100))]].concat()),
                txn([gets(27), ops![txn(puts(101))]].concat()),
            ],
        ),
        case(
            "a parent's compares count against the nested ones",
            steps![compares(100).then(ops![txn(puts(28))]), compares(100).then(ops![txn(puts(29))])],
        ),
        case("sibling nested transactions don't add up", steps![txn(ops![txn(gets(120)), txn(gets(120)), txn(gets(120))])]),
        case(
            "the branch not taken of a nested transaction counts",
            steps![txn(ops![when([]).or_else(puts(128))]), txn(ops![when([]).or_else(puts(127))])],
        ),
        case(
            "a transaction full of nested ones leaves them nothing",
            steps![
                txn((0..128).map(|_| txn(ops![]).into()).collect::<Vec<RequestOp>>()),
                txn((0..128).map(|_| txn(ops![get("a")]).into()).collect::<Vec<RequestOp>>()),
            ],
        ),
        case("too many operations are noticed before an empty key", steps![txn([puts(128), ops![put("", "")]].concat())]),
        case(
            "too many nested operations are noticed in order",
            steps![txn(ops![put("", ""), txn(puts(128))]), txn(ops![txn(puts(128)), put("", "")])],
        ),
        flags(
            "--max-txn-ops counts",
            &["--max-txn-ops=5"],
            steps![txn(puts(5)), txn(puts(6)), txn(ops![txn(puts(4))]), txn(ops![txn(puts(5))])],
        ),
    ]
}

fn sizes() -> Vec<Case> {
    const LIMIT: usize = 3 * 512 * 1024;
    vec![
        case("a put well below 1.5 MiB passes", steps![put("a", bytes(LIMIT - 200)), get("a").count_only()]),
        case("a put just above 1.5 MiB is too large", steps![put("a", bytes(LIMIT + 1)), get("a")]),
        case("a put of 1.5 MiB of value is too large with its envelope", steps![put("a", bytes(LIMIT)), get("a")]),
        case("a key counts too", steps![put(bytes(800_000), bytes(800_000)), get_all().count_only()]),
        case(
            "a transaction of writes above 1.5 MiB is too large",
            steps![txn(ops![put("a", bytes(800_000)), put("b", bytes(800_000))]), get_all().count_only()],
        ),
        case(
            "a compare's value counts too",
            steps![
                when([cmp("a", duet::proto::etcdserverpb::compare::TargetUnion::Value(b(bytes(800_000))), Equal)])
                    .then(ops![put("b", bytes(800_000))])
            ],
        ),
        case(
            "the branch not taken counts too",
            steps![when([]).then(ops![put("a", bytes(800_000))]).or_else(ops![put("b", bytes(800_000))])],
        ),
        case(
            "a read-only transaction escapes the limit",
            steps![
                when([cmp("a", duet::proto::etcdserverpb::compare::TargetUnion::Value(b(bytes(LIMIT + 1000))), Equal)])
                    .then(ops![get("a")])
                    .or_else(ops![get("b")])
            ],
        ),
        case("a delete of a key above 1.5 MiB is too large", steps![delete(bytes(LIMIT + 1))]),
        case("a read of a key above 1.5 MiB passes", steps![get(bytes(LIMIT + 1))]),
        case("above 2 MiB gRPC refuses", steps![put("a", bytes(2 * 1024 * 1024 + 1)), get("a")]),
        case("above 2 MiB gRPC refuses reads too", steps![get(bytes(2 * 1024 * 1024 + 1))]),
        case(
            "an answer of many megabytes comes whole",
            steps![
                put("a", bytes(1_500_000)),
                put("b", bytes(1_500_000)),
                put("c", bytes(1_500_000)),
                put("d", bytes(1_500_000)),
                get_all(),
                txn(ops![get_all(), get_all()]),
            ],
        ),
        flags(
            "--max-request-bytes counts",
            &["--max-request-bytes=2000"],
            steps![put("a", bytes(1900)), put("a", bytes(2001)), put("a", bytes(400_000)), put("a", bytes(600_000))],
        ),
    ]
}

fn order() -> Vec<Case> {
    let big = || bytes(1_600_000);
    vec![
        case("an empty key is noticed before the size", steps![put("", big())]),
        case("ignore_value with a value is noticed before the size", steps![put("a", big()).ignore_value()]),
        case("the size is noticed before a missing lease", steps![put("a", big()).lease(99)]),
        case("the size is noticed before a missing key", steps![put("a", big()).ignore_lease()]),
        case("the overlap is noticed before the size", steps![txn(ops![put("a", bytes(800_000)), put("a", bytes(800_000))])]),
        case("too many operations are noticed before the overlap", steps![txn([puts(128), puts(1)].concat())]),
        case("the size is noticed before a future revision", steps![txn(ops![put("a", big()), get("a").rev(1000)])]),
        case(
            "an empty compare key is noticed before an empty operation",
            steps![when([cmp("", Version(0), Equal)]).then([empty_op()])],
        ),
        case(
            "then is checked before else",
            steps![
                when([]).then([empty_op()]).or_else(ops![put("", "")]),
                when([]).then(ops![put("", "")]).or_else([empty_op()])
            ],
        ),
        case(
            "then's overlap is checked before else's",
            steps![when([]).then(ops![put("a", ""), put("a", "")]).or_else(ops![put("b", ""), delete("b")])],
        ),
        case(
            "fields of else are checked before the overlap of then",
            steps![when([]).then(ops![put("a", ""), put("a", "")]).or_else(ops![put("", "")])],
        ),
        case("a sort option is noticed before the revision", steps![txn(ops![get("a").sort_numbers((0, 7)).rev(1000)])]),
    ]
}
