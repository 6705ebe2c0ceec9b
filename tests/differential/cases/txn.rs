//! Transactions: compares, branches, nesting, the overlap rule and its holes, revisions inside.

use crate::script::*;
use crate::{ops, steps};
use duet::proto::etcdserverpb::Compare;
use duet::proto::etcdserverpb::compare::CompareResult::{self, Equal, Greater, Less, NotEqual};
use duet::proto::etcdserverpb::compare::TargetUnion::{self, CreateRevision, Lease, ModRevision, Value, Version};
use duet::proto::etcdserverpb::range_request::{SortOrder, SortTarget};

pub fn cases() -> Vec<Case> {
    let mut cases = compares();
    cases.extend(odd_compares());
    cases.extend(branches());
    cases.extend(revisions());
    cases.extend(nesting());
    cases.extend(overlaps());
    cases.extend(failures());
    cases
}

/// A transaction that only says which branch it took.
fn ask(compares: impl Into<Vec<Compare>>) -> Step {
    when(compares).into()
}

/// `a` has version 3, created at 2, last changed at 5, lease 7; `b` is plain.
fn known_state() -> Vec<Step> {
    steps![grant(7, 900), put("a", "m"), put("b", "n"), put("a", "m"), put("a", "m").lease(7)]
}

fn compares() -> Vec<Case> {
    type Target = (&'static str, fn(i64) -> TargetUnion, [i64; 3]);
    let targets: [Target; 5] = [
        ("version", Version, [2, 3, 4]),
        ("create revision", CreateRevision, [1, 2, 3]),
        ("mod revision", ModRevision, [4, 5, 6]),
        ("lease", Lease, [6, 7, 8]),
        ("value", |n| Value(b([(i64::from(b'l') + n) as u8])), [0, 1, 2]),
    ];
    let results = [(Equal, "equal"), (NotEqual, "not equal"), (Greater, "greater"), (Less, "less")];
    let mut cases = Vec::new();
    for (name, target, values) in targets {
        for (result, how) in results {
            let mut steps = known_state();
            steps.extend(values.map(|value| ask([cmp("a", target(value), result)])));
            // A missing key compares as zero, but never by value.
            steps.extend([-1, 0, 1].map(|value| ask([cmp("missing", target(value), result)])));
            cases.push(case(&format!("a compare of the {name}: {how}"), steps));
        }
    }
    cases
}

fn odd_compares() -> Vec<Case> {
    let all = |result: CompareResult, target| cmp_to("a", "z", target, result);
    let mut unknown_result = cmp("a", Version(1), Equal);
    unknown_result.result = 17;
    let mut unknown_target = cmp("a", Version(1), Equal);
    unknown_target.target = 17;
    let mut crossed = cmp("a", Version(3), Equal);
    crossed.target = 2;
    let mut bare = cmp("a", Version(0), Equal);
    bare.target_union = None;
    let mut bare_value = cmp("a", Value(b("")), Equal);
    bare_value.target_union = None;
    let with_state = |name: &str, more: Vec<Step>| {
        let mut steps = known_state();
        steps.extend(more);
        case(name, steps)
    };
    vec![
        with_state("an empty transaction succeeds and changes nothing", steps![when([]), get("a")]),
        with_state(
            "all compares must hold",
            steps![
                ask([cmp("a", Version(3), Equal), cmp("b", Version(1), Equal)]),
                ask([cmp("a", Version(3), Equal), cmp("b", Version(2), Equal)]),
                ask([cmp("a", Version(2), Equal), cmp("b", Version(1), Equal)]),
            ],
        ),
        with_state(
            "a compare over a range must hold for each key",
            steps![
                ask([all(Greater, Version(0))]),
                ask([all(Greater, Version(1))]),
                ask([all(Less, ModRevision(6))]),
                ask([all(Equal, Lease(0))]),
                ask([all(NotEqual, Value(b("x")))]),
                ask([all(Greater, Value(b("m")))]),
            ],
        ),
        with_state(
            "a compare over an empty range compares with zero",
            steps![
                ask([cmp_to("x", "z", Version(0), Equal)]),
                ask([cmp_to("x", "z", Version(0), Greater)]),
                ask([cmp_to("x", "z", CreateRevision(0), Equal)]),
                ask([cmp_to("x", "z", Value(b("")), Equal)]),
                ask([cmp_to("x", "z", Value(b("")), NotEqual)]),
            ],
        ),
        with_state("a compare over a reversed range compares with zero", steps![ask([cmp_to("z", "a", Version(0), Equal)])]),
        with_state(
            "a compare to NUL covers from the key on",
            steps![
                ask([cmp_to("b", [0], Version(1), Equal)]),
                ask([cmp_to("a", [0], Version(1), Equal)]),
                ask([cmp_to([0], [0], Version(0), Greater)]),
            ],
        ),
        with_state(
            "a value compare on a missing key is false whatever the operator",
            steps![
                ask([cmp("x", Value(b("")), Equal)]),
                ask([cmp("x", Value(b("")), NotEqual)]),
                ask([cmp("x", Value(b("a")), Less)]),
                ask([cmp("x", Value(b("")), Greater)]),
            ],
        ),
        with_state(
            "a value compare is bytewise",
            steps![
                put("v", [0xff, 0]),
                ask([cmp("v", Value(b([0xff])), Greater)]),
                ask([cmp("v", Value(b([0xff, 1])), Less)]),
                ask([cmp("v", Value(b("zzz")), Greater)]),
                put("v", ""),
                ask([cmp("v", Value(b("")), Equal)]),
                ask([cmp("v", Value(b([0])), Less)]),
            ],
        ),
        with_state(
            "an empty compare key is refused",
            steps![ask([cmp("", Version(0), Equal)]), ask([cmp_to("", "z", Version(0), Equal)])],
        ),
        with_state("an unknown compare operator always holds", steps![ask([unknown_result])]),
        with_state("an unknown compare target compares equal", steps![ask([unknown_target])]),
        with_state("a compare with another target's value compares with zero", steps![ask([crossed])]),
        with_state(
            "a compare without a value compares with zero",
            steps![
                ask([bare.clone()]),
                ask([Compare { key: b("x"), ..bare }]),
                ask([bare_value.clone()]),
                put("a", ""),
                ask([bare_value])
            ],
        ),
        with_state(
            "compares see a deleted key as missing",
            steps![
                delete("b"),
                ask([cmp("b", Version(0), Equal)]),
                ask([cmp("b", ModRevision(0), Equal)]),
                ask([cmp("b", Value(b("")), NotEqual)]),
            ],
        ),
        with_state(
            "negative numbers compare as such",
            steps![
                ask([cmp("a", ModRevision(-1), Greater)]),
                ask([cmp("x", ModRevision(-1), Greater)]),
                ask([cmp("x", Lease(-1), Less)])
            ],
        ),
    ]
}

fn branches() -> Vec<Case> {
    vec![
        case(
            "then is taken when all compares hold",
            steps![
                put("a", "1"),
                when([cmp("a", ModRevision(2), Equal)]).then(ops![put("a", "2"), get("a")]).or_else(ops![put("a", "3")]),
                get("a")
            ],
        ),
        case(
            "else is taken when one doesn't",
            steps![
                put("a", "1"),
                when([cmp("a", ModRevision(3), Equal)]).then(ops![put("a", "2")]).or_else(ops![
                    get("a"),
                    put("b", "3"),
                    delete("a")
                ]),
                get_all()
            ],
        ),
        case(
            "create if absent, as Kubernetes does",
            steps![
                when([cmp("a", ModRevision(0), Equal)]).then(ops![put("a", "1")]),
                when([cmp("a", ModRevision(0), Equal)]).then(ops![put("a", "2")]),
                get("a"),
            ],
        ),
        case(
            "update or get, as Kubernetes does",
            steps![
                put("a", "1"),
                when([cmp("a", ModRevision(2), Equal)]).then(ops![put("a", "2")]).or_else(ops![get("a")]),
                when([cmp("a", ModRevision(2), Equal)]).then(ops![put("a", "3")]).or_else(ops![get("a")]),
                get("a"),
            ],
        ),
        case(
            "delete or get, as Kubernetes does",
            steps![
                put("a", "1"),
                when([cmp("a", ModRevision(1), Equal)]).then(ops![delete("a")]).or_else(ops![get("a")]),
                when([cmp("a", ModRevision(2), Equal)]).then(ops![delete("a")]).or_else(ops![get("a")]),
                when([cmp("a", ModRevision(2), Equal)]).then(ops![delete("a")]).or_else(ops![get("a")]),
            ],
        ),
        case(
            "a transaction with reads alone changes nothing",
            steps![put("a", "1"), txn(ops![get("a"), get("b"), get_all().count_only()]), get("a")],
        ),
        case(
            "a range inside takes all options",
            steps![
                put("a", "1"),
                put("b", "2"),
                put("c", "3"),
                txn(ops![
                    get("a").to("z").limit(2),
                    get("a").to("z").keys_only(),
                    get("a").to("z").count_only(),
                    get("a").to("z").sort((SortTarget::Mod, SortOrder::Descend)).limit(1),
                    get("a").to("z").min_mod(3),
                    get("a").to("z").rev(2),
                    get("b").serializable()
                ]),
            ],
        ),
        case("the same range may be read twice", steps![put("a", "1"), txn(ops![get("a"), get("a")])]),
        case("put with prev_kv inside", steps![put("a", "1"), txn(ops![put("a", "2").prev_kv(), put("b", "1").prev_kv()])]),
        case(
            "delete with prev_kv inside",
            steps![put("a", "1"), put("b", "1"), txn(ops![delete("a").to("z").prev_kv()]), get_all()],
        ),
        case(
            "ignore_value and ignore_lease inside",
            steps![
                grant(7, 500),
                put("a", "1").lease(7),
                txn(ops![put("a", "").ignore_value().ignore_lease()]),
                get("a"),
                txn(ops![put("a", "5").ignore_lease()]),
                get("a"),
                txn(ops![put("a", "").ignore_value()]),
                get("a"),
                time_to_live(7, true),
            ],
        ),
        case(
            "a transaction attaches and detaches leases",
            steps![
                grant(7, 500),
                grant(8, 600),
                put("a", "1").lease(7),
                txn(ops![put("a", "2").lease(8), put("b", "1").lease(7)]),
                time_to_live(7, true),
                time_to_live(8, true),
                txn(ops![delete("a"), put("c", "1").lease(8)]),
                time_to_live(8, true),
            ],
        ),
    ]
}

fn revisions() -> Vec<Case> {
    vec![
        case(
            "a transaction is one revision",
            steps![txn(ops![put("a", "1"), put("b", "2"), put("c", "3")]), get_all(), put("d", "4")],
        ),
        case(
            "a transaction that deletes nothing is no revision",
            steps![put("a", "1"), txn(ops![delete("x"), get("a")]), get("a")],
        ),
        case(
            "inner headers stay at the old revision until the first write",
            steps![put("a", "1"), txn(ops![get("a"), delete("x"), put("b", "1"), get("a"), delete("x"), delete("a"), get("a")])],
        ),
        case(
            "reads see the writes before them",
            steps![put("a", "1"), txn(ops![get("a"), put("a", "2"), get("a"), get_all().count_only(), put("b", "1"), get_all()])],
        ),
        case(
            "reads see the deletions before them",
            steps![put("a", "1"), put("b", "1"), txn(ops![delete("a"), get("a"), get_all(), get("a").rev(2)])],
        ),
        case("a delete of nothing after a put carries the new revision", steps![txn(ops![put("a", "1"), delete("x")])]),
        case(
            "a read inside at the new revision is a future one",
            steps![put("a", "1"), txn(ops![put("a", "2"), get("a").rev(3)]), txn(ops![get("a").rev(3)]), get("a")],
        ),
        case(
            "a read inside at an old revision reads it",
            steps![put("a", "1"), put("a", "2"), txn(ops![put("a", "3"), get("a").rev(2), get("a").rev(3)])],
        ),
        case(
            "a read inside at the current revision doesn't see the write",
            steps![put("a", "1"), txn(ops![put("a", "2"), get("a").rev(2)])],
        ),
        fresh(
            "a negative revision inside works before the first compaction",
            steps![
                put("a", "1"),
                put("a", "2"),
                txn(ops![get("a").rev(-1)]),
                txn(ops![put("a", "3"), get("a").rev(-1)]),
                txn(ops![get("a").rev(-2)]),
                compact(3),
                txn(ops![get("a").rev(-1)]),
                get("a").rev(-1),
            ],
        ),
        case(
            "a compacted revision inside is refused",
            steps![
                put("a", "1"),
                put("a", "2"),
                put("a", "3"),
                compact(3),
                txn(ops![get("a").rev(2)]),
                txn(ops![get("a").rev(3)]),
                txn(ops![put("b", "1"), get("a").rev(2)]),
                get_all()
            ],
        ),
        case(
            "a transaction of one put over the same key again and again",
            steps![txn(ops![put("a", "1")]), txn(ops![put("a", "1")]), delete("a"), txn(ops![put("a", "1")]), get("a")],
        ),
        case(
            "create and version follow inside one transaction",
            steps![put("a", "1"), txn(ops![delete("a")]), txn(ops![put("a", "1"), get("a")]), get("a")],
        ),
        case(
            "the header of a read-only transaction is the current revision",
            steps![
                put("a", "1"),
                put("a", "2"),
                txn(ops![get("a").rev(2)]),
                when([cmp("a", Version(1), Equal)]).then(ops![put("a", "x")])
            ],
        ),
    ]
}

fn nesting() -> Vec<Case> {
    let deep = |levels: usize| {
        let mut inner = txn(ops![put("deep", "1"), get("deep")]);
        for _ in 0..levels {
            inner = txn(ops![inner]);
        }
        inner
    };
    vec![
        case(
            "a nested transaction takes its own branch",
            steps![
                put("a", "1"),
                when([cmp("a", Version(1), Equal)])
                    .then(ops![when([cmp("b", Version(0), Equal)]).then(ops![put("b", "1")]).or_else(ops![put("c", "1")])]),
                get_all(),
            ],
        ),
        case(
            "compares of nested transactions see the state before",
            steps![
                put("a", "1"),
                txn(ops![
                    put("a", "2"),
                    when([cmp("a", Value(b("1")), Equal)]).then(ops![put("saw", "before")]).or_else(ops![put("saw", "after")])
                ]),
                get_all(),
            ],
        ),
        case(
            "a nested header is empty",
            steps![put("a", "1"), txn(ops![txn(ops![get("a")]), txn(ops![put("b", "1")]), txn(ops![])])],
        ),
        case(
            "a nested transaction that changes nothing is no revision",
            steps![put("a", "1"), txn(ops![txn(ops![get("a")])]), txn(ops![txn(ops![delete("x")])]), get("a")],
        ),
        case(
            "nested writes share the revision",
            steps![txn(ops![put("a", "1"), txn(ops![put("b", "2"), txn(ops![put("c", "3")])]), put("d", "4")]), get_all()],
        ),
        case(
            "nested reads see earlier writes of the whole",
            steps![put("a", "1"), txn(ops![put("b", "1"), txn(ops![get_all(), put("c", "1")]), get_all()])],
        ),
        case(
            "several nested transactions take their branches by themselves",
            steps![
                put("a", "1"),
                txn(ops![
                    when([cmp("a", Version(1), Equal)])
                        .then(ops![when([cmp("a", Version(2), Equal)]).then(ops![put("x1", "")]).or_else(ops![put("x2", "")])])
                        .or_else(ops![put("x3", "")]),
                    when([cmp("a", Version(9), Equal)])
                        .then(ops![put("y1", "")])
                        .or_else(ops![when([]).then(ops![put("y2", "")]), put("y3", "")]),
                    when([cmp("z", Version(0), Equal)]).then(ops![put("z1", "")]),
                ]),
                get_all(),
            ],
        ),
        case("ten levels work", steps![deep(10), get_all()]),
        case(
            "128 nested transactions work, as many as there may be operations",
            steps![deep(126), get_all(), deep(127), get_all()],
        ),
        case("more levels than operations are too many operations", steps![deep(128), deep(200), deep(400), get_all()]),
        case("an empty key above too many levels is noticed first", steps![txn(ops![put("", ""), deep(300)])]),
        case(
            "a nest that protobuf doesn't decode is refused as such",
            steps![raw_nest(4_999), raw_nest(5_000), raw_nest(140_000), get_all()],
        ),
        case(
            "a nested future revision fails the whole",
            steps![put("a", "1"), txn(ops![put("b", "1"), txn(ops![get("a").rev(100)])]), get_all()],
        ),
        case(
            "a nested future revision in the branch not taken doesn't",
            steps![
                put("a", "1"),
                txn(ops![put("b", "1"), when([cmp("a", Version(9), Equal)]).then(ops![get("a").rev(100)])]),
                get_all()
            ],
        ),
        case(
            "an empty nested transaction",
            steps![txn(ops![txn(ops![])]), txn(ops![when([cmp("a", Version(1), Equal)])]), get_all()],
        ),
    ]
}

/// So many empty transactions, one in the other, as bytes: built from the inside out, because encoding them would recurse.
fn raw_nest(nested: usize) -> Step {
    let mut backwards = Vec::new();
    // RequestOp.request_txn in TxnRequest.success.
    for tag in [4, 2].repeat(nested) {
        let mut head = Vec::new();
        prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut head);
        prost::encoding::encode_varint(backwards.len() as u64, &mut head);
        backwards.extend(head.iter().rev());
    }
    backwards.reverse();
    Step::Call(Request::Raw("/etcdserverpb.KV/Txn", backwards))
}

fn overlaps() -> Vec<Case> {
    let refused_or_not = |name: &str, steps: Vec<Step>| {
        let mut all = steps![put("a", "0"), put("b", "0"), put("c", "0")];
        all.extend(steps);
        all.push(get_all().into());
        case(name, all)
    };
    vec![
        refused_or_not("two puts of a key are refused", steps![txn(ops![put("a", "1"), put("a", "2")])]),
        refused_or_not(
            "a put and a delete of the key are refused",
            steps![txn(ops![put("a", "1"), delete("a")]), txn(ops![delete("a"), put("a", "1")])],
        ),
        refused_or_not(
            "a put inside a deleted range is refused",
            steps![txn(ops![delete("a").to("c"), put("b", "1")]), txn(ops![put("b", "1"), delete("a").to("c")])],
        ),
        refused_or_not("a put at the end of a deleted range passes", steps![txn(ops![delete("a").to("c"), put("c", "1")])]),
        refused_or_not("a put beside a deleted range passes", steps![txn(ops![delete("b").to("c"), put("a", "1")])]),
        refused_or_not("overlapping deletes pass", steps![txn(ops![delete("a").to("c"), delete("b").to("z"), delete("b")])]),
        refused_or_not("a put beside a delete to NUL passes", steps![txn(ops![delete("a").to([0]), put("b", "1")])]),
        refused_or_not("a put before a delete to NUL passes", steps![txn(ops![put("b", "1"), delete("a").to([0])])]),
        refused_or_not(
            "a put beside a delete of everything passes",
            steps![txn(ops![delete([0]).to([0]), put("b", "1"), get_all()])],
        ),
        refused_or_not(
            "a put of NUL beside a delete of everything",
            steps![txn(ops![delete([0]).to([0]), put([0], "1"), get_all()])],
        ),
        refused_or_not("a put beside a reversed delete passes", steps![txn(ops![delete("c").to("a"), put("b", "1")])]),
        refused_or_not("puts in both branches are fine", steps![when([]).then(ops![put("a", "1")]).or_else(ops![put("a", "2")])]),
        refused_or_not(
            "duplicates in the branch not taken are refused",
            steps![when([]).then(ops![put("x", "1")]).or_else(ops![put("a", "1"), put("a", "2")])],
        ),
        refused_or_not(
            "nested then and else may share keys",
            steps![txn(ops![when([]).then(ops![put("a", "1")]).or_else(ops![put("a", "2")])])],
        ),
        refused_or_not(
            "a put and a nested put of the key are refused",
            steps![txn(ops![put("a", "1"), txn(ops![put("a", "2")])]), txn(ops![txn(ops![put("a", "2")]), put("a", "1")])],
        ),
        refused_or_not(
            "a put and a put in a nested else are refused",
            steps![txn(ops![put("a", "1"), when([]).or_else(ops![put("a", "2")])])],
        ),
        refused_or_not(
            "sibling nested puts of a key are refused",
            steps![txn(ops![txn(ops![put("a", "1")]), txn(ops![put("a", "2")])])],
        ),
        refused_or_not(
            "a nested else after a sibling's put of the key",
            steps![
                txn(ops![txn(ops![put("a", "1")]), when([]).or_else(ops![put("a", "2")])]),
                txn(ops![when([]).or_else(ops![put("a", "1")]), when([]).then(ops![]).or_else(ops![put("a", "2")])])
            ],
        ),
        refused_or_not(
            "a nested put and then a nested delete pass",
            steps![txn(ops![txn(ops![put("a", "1")]), txn(ops![delete("a")])])],
        ),
        refused_or_not(
            "a nested delete and then a nested put are refused",
            steps![txn(ops![txn(ops![delete("a")]), txn(ops![put("a", "1")])])],
        ),
        refused_or_not(
            "a delete and a nested put are refused",
            steps![
                txn(ops![delete("a").to("c"), txn(ops![put("b", "1")])]),
                txn(ops![txn(ops![put("b", "1")]), delete("a").to("c")])
            ],
        ),
        refused_or_not(
            "a put and a nested delete are refused",
            steps![txn(ops![put("a", "1"), txn(ops![delete("a")])]), txn(ops![txn(ops![delete("a").to("c")]), put("b", "1")])],
        ),
        refused_or_not(
            "a nested delete to NUL and a put",
            steps![
                txn(ops![txn(ops![delete("a").to([0])]), put("b", "1")]),
                txn(ops![txn(ops![delete([0]).to([0])]), put("b", "2")])
            ],
        ),
        refused_or_not(
            "deletes of two nested branches count together",
            steps![txn(ops![when([]).then(ops![delete("a")]).or_else(ops![delete("b")]), put("b", "1")])],
        ),
        refused_or_not(
            "three levels are checked",
            steps![
                txn(ops![put("a", "1"), txn(ops![txn(ops![put("a", "2")])])]),
                txn(ops![delete("a"), txn(ops![txn(ops![put("a", "2")])])])
            ],
        ),
        refused_or_not(
            "a put and a delete of one key in one revision are two events",
            steps![
                open(0),
                watch(0, "a").prefix().prev_kv(),
                take(0, 1),
                txn(ops![txn(ops![put("a", "1")]), txn(ops![delete("a")])]),
                take(0, 1),
                delete("b"),
                txn(ops![delete("b").to([0]), put("b", "1")]),
                settle(0),
                get("b"),
            ],
        ),
        refused_or_not(
            "a key put after a delete of everything starts anew",
            steps![put("b", "1"), txn(ops![delete([0]).to([0]), put("b", "2")]), get("b"), get("b").rev(5), get("b").rev(6)],
        ),
        refused_or_not(
            "a key put before a delete of everything is gone",
            steps![txn(ops![put("b", "2"), put("n", "1"), delete([0]).to([0]), get_all()]), get("n"), put("n", "2")],
        ),
        refused_or_not(
            "a key put and deleted by prev_kv deletes",
            steps![txn(ops![put("b", "2"), delete("a").to([0]).prev_kv()])],
        ),
        refused_or_not(
            "a read of what is also put and deleted is fine",
            steps![txn(ops![get("a"), put("a", "1"), get("a").to("z"), delete("c")])],
        ),
        refused_or_not(
            "the overlap is noticed before a future revision",
            steps![txn(ops![get("a").rev(100), put("a", "1"), put("a", "2")])],
        ),
        refused_or_not("an empty key is noticed before the overlap", steps![txn(ops![put("a", "1"), put("a", "2"), get("")])]),
    ]
}

fn failures() -> Vec<Case> {
    vec![
        case(
            "an empty operation is refused",
            steps![txn([empty_op()]), when([]).or_else([empty_op()]), txn(ops![put("a", "1"), txn([empty_op()])]), get_all()],
        ),
        case(
            "an empty key inside is refused",
            steps![
                txn(ops![put("", "1")]),
                txn(ops![get("")]),
                txn(ops![delete("")]),
                when([]).or_else(ops![put("", "1")]),
                txn(ops![txn(ops![delete("")])])
            ],
        ),
        case(
            "an unknown sort order inside is refused",
            steps![txn(ops![get("a").sort_numbers((0, 9))]), when([]).or_else(ops![get("a").sort_numbers((9, 0))])],
        ),
        case(
            "ignore_value with a value inside is refused",
            steps![put("a", "1"), txn(ops![put("a", "x").ignore_value()]), when([]).or_else(ops![put("a", "x").ignore_value()])],
        ),
        case(
            "ignore_lease with a lease inside is refused",
            steps![put("a", "1"), txn(ops![put("a", "x").ignore_lease().lease(5)])],
        ),
        case(
            "a missing key under ignore_value fails the whole",
            steps![txn(ops![put("b", "1"), put("a", "").ignore_value()]), get_all(), put("c", "1")],
        ),
        case(
            "a missing key under ignore_value in the branch not taken doesn't",
            steps![when([]).then(ops![put("b", "1")]).or_else(ops![put("a", "").ignore_value()]), get_all()],
        ),
        case("a missing lease fails the whole", steps![txn(ops![put("b", "1"), put("a", "1").lease(99)]), get_all()]),
        case(
            "a missing lease in the branch not taken doesn't",
            steps![when([]).then(ops![put("b", "1")]).or_else(ops![put("a", "1").lease(99)]), get_all()],
        ),
        case("a future revision fails the whole", steps![txn(ops![put("b", "1"), get("a").rev(100)]), get_all()]),
        case(
            "a future revision in the branch not taken doesn't",
            steps![when([]).then(ops![put("b", "1")]).or_else(ops![get("a").rev(100)]), get_all()],
        ),
        case(
            "the first operation at fault decides the error",
            steps![
                txn(ops![get("a").rev(100), put("a", "1").lease(99), put("b", "").ignore_value()]),
                txn(ops![put("a", "1").lease(99), get("a").rev(100)]),
                txn(ops![put("b", "").ignore_value(), get("a").rev(100), put("a", "1").lease(99)]),
                txn(ops![txn(ops![put("b", "").ignore_value()]), get("a").rev(100)]),
            ],
        ),
        case("a missing lease is noticed before a missing key inside", steps![txn(ops![put("a", "").lease(99).ignore_value()])]),
        case(
            "ignore_value looks at the state before the transaction",
            steps![
                txn(ops![put("b", "1"), txn(ops![put("a", "").ignore_value()])]),
                put("a", "1"),
                txn(ops![txn(ops![delete("a")]), get("a")]),
                get_all()
            ],
        ),
        case(
            "the first malformed operation decides the error",
            steps![
                txn(ops![put("a", "x").ignore_value(), get("")]),
                txn(ops![get(""), put("a", "x").ignore_value()]),
                when([cmp("", Version(0), Equal)]).then(ops![put("a", "x").ignore_value()]),
                when([]).then(ops![put("a", "x").ignore_value()]).or_else(ops![get("")])
            ],
        ),
        case(
            "a failed transaction leaves no trace in leases",
            steps![grant(7, 500), txn(ops![put("a", "1").lease(7), get("a").rev(100)]), time_to_live(7, true), get_all()],
        ),
        case(
            "a failed transaction sends no events",
            steps![
                open(0),
                watch(0, [0]).to([0]),
                take(0, 1),
                txn(ops![put("a", "1"), get("a").rev(100)]),
                put("b", "1"),
                take(0, 1)
            ],
        ),
    ]
}
