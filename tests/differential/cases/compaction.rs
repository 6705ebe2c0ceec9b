//! Compaction and what it leaves.

use crate::script::*;
use crate::{ops, steps};

fn on_history(name: &str, steps: impl IntoIterator<Item = Step>) -> Case {
    let mut all = steps![put("a", "1"), put("b", "1"), put("a", "2"), delete("b"), put("a", "3"), put("c", "1")];
    all.extend(steps);
    case(name, all)
}

fn fresh_history(name: &str, steps: impl IntoIterator<Item = Step>) -> Case {
    Case { store: Store::Fresh(Vec::new()), ..on_history(name, steps) }
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        fresh(
            "Compact(0) succeeds once on a fresh store",
            steps![compact(0), compact(0), put("a", "1"), get("a").rev(1), compact(0)],
        ),
        fresh("Compact(1) on a fresh store", steps![compact(1), compact(1), compact(0), get("a"), get("a").rev(1)]),
        fresh("Compact(-1) on a fresh store", steps![compact(-1), compact(-2), compact(0), compact(0)]),
        fresh(
            "Compact(0) after writes",
            steps![
                put("a", "1"),
                put("a", "2"),
                compact(0),
                get("a").rev(2),
                get("a").rev(1),
                compact(0),
                compact(2),
                compact(0)
            ],
        ),
        on_history(
            "a read exactly at the compact revision is allowed",
            steps![compact(4), get("a").to("z").rev(4), get("a").to("z").rev(3), get("a").rev(2), get("a").to("z").rev(5)],
        ),
        on_history(
            "a revision that is compacted already is refused",
            steps![compact(4), compact(4), compact(3), compact(2), compact(5), get("a").rev(4)],
        ),
        on_history(
            "a future revision is refused",
            steps![compact(8), compact(i64::MAX), get("a").rev(2), compact(7), compact(7)],
        ),
        on_history("a negative revision is refused", steps![compact(4), compact(-1)]),
        on_history(
            "the current revision can be compacted",
            steps![compact(7), get_all(), get_all().rev(7), get_all().rev(6), put("d", "1"), get_all().rev(7)],
        ),
        on_history("the header is the current revision", steps![compact(3), put("x", "1"), compact(4)]),
        on_history("a compaction is no revision", steps![compact(3), put("x", "1")]),
        on_history(
            "a physical compaction answers the same",
            steps![compact_physical(4), compact_physical(4), compact_physical(9), get("a").to("z").rev(4), get("a").rev(3)],
        ),
        on_history(
            "current pairs stay, with their numbers",
            steps![compact_physical(7), get_all(), put("a", "4").prev_kv(), get("a"), get("b")],
        ),
        on_history("a key put after its compacted tombstone starts anew", steps![compact_physical(6), put("b", "2"), get("b")]),
        on_history(
            "counts at the compact revision are right",
            steps![
                compact_physical(5),
                get("a").to("z").rev(5).count_only(),
                get("a").to("z").rev(6).count_only(),
                get("a").to("z").rev(4).count_only()
            ],
        ),
        on_history(
            "keys_only at the compact revision is right",
            steps![compact_physical(5), get("a").to("z").rev(5).keys_only(), get("a").to("z").rev(4).keys_only()],
        ),
        on_history(
            "a compacted revision is noticed before the range is looked at",
            steps![compact(5), get("z").to("a").rev(3), get("nothing").rev(3)],
        ),
        on_history(
            "a compacted revision is refused with limit and sort too",
            steps![compact(5), get("a").to("z").rev(2).limit(1), get("a").to("z").rev(2).count_only()],
        ),
        on_history(
            "a negative revision reads the latest after a compaction",
            steps![compact(5), get("a").rev(-1), txn(ops![get("a").rev(-1)])],
        ),
        on_history(
            "a compaction of a compaction",
            (2..=7).flat_map(|rev| [compact(rev), get("a").to("z").rev(rev).into(), get("a").to("z").rev(rev - 1).into()]),
        ),
        on_history(
            "deleted keys are gone after their compaction",
            steps![delete("a").to([0]), compact_physical(8), get_all(), get_all().rev(8), put("a", "again"), get("a")],
        ),
        on_history(
            "leases survive a compaction",
            steps![
                grant(7, 500),
                put("l", "1").lease(7),
                put("l", "2").lease(7),
                compact_physical(9),
                time_to_live(7, true),
                revoke(7),
                get_all()
            ],
        ),
        on_history(
            "a transaction's revision is compacted as a whole",
            steps![
                txn(ops![put("x", "1"), put("y", "1"), delete("a")]),
                txn(ops![put("x", "2"), delete("y")]),
                compact_physical(9),
                get_all(),
                get_all().rev(9),
                get_all().rev(8)
            ],
        ),
        on_history(
            "a put and delete in one revision survive its compaction as deleted",
            steps![
                txn(ops![txn(ops![put("x", "1")]), txn(ops![delete("x")])]),
                compact_physical(8),
                get("x").rev(8),
                get("x"),
                put("x", "2"),
                get("x"),
            ],
        ),
        // The other way round, a delete and then a put, is no case: etcd 3.7.3 drops the pair and dies at the next read of it.
    ];
    cases.extend(hashes());
    cases.extend(watches());
    cases
}

fn hashes() -> Vec<Case> {
    let every = || (0..=8).map(hash_kv).collect::<Vec<_>>();
    // etcd remembers the hash that a compaction came by until it restarts; the last but two case is about that.
    let then = |steps: Vec<Step>| steps.into_iter().chain([hash_kv(0), Step::Restart]).chain(every());
    let long = (0..60u8).flat_map(|i| {
        let key = [b'k', i % 7];
        if i % 5 == 4 { steps![delete(key)] } else { steps![put(key, [i])] }
    });
    vec![
        fresh("HashKV of an empty store", steps![hash_kv(0), hash_kv(1), hash_kv(2), hash_kv(-1)]),
        fresh_history("HashKV of every revision", every()),
        fresh_history("HashKV after a compaction", then(steps![compact_physical(4)])),
        fresh_history("HashKV after a compaction at a tombstone", then(steps![compact_physical(5)])),
        fresh_history("HashKV after a compaction just past a tombstone", then(steps![compact_physical(6)])),
        fresh_history("HashKV after a compaction of everything", then(steps![compact_physical(7)])),
        fresh_history("HashKV after two compactions", then(steps![compact_physical(3), compact_physical(6)])),
        fresh_history(
            "HashKV after writes since a compaction",
            then(steps![compact_physical(6), put("a", "9"), delete("c"), put("b", "7"), hash_kv(9), hash_kv(10)]),
        ),
        fresh(
            "HashKV with leases, NUL and empty values",
            steps![
                grant(7, 500),
                put([0], "").lease(7),
                put([0, 0xff], "1"),
                put([0], "2").lease(-7),
                put([0], "3"),
                hash_kv(0),
                hash_kv(2),
                hash_kv(3),
                compact_physical(3),
                hash_kv(0),
                revoke(7),
                hash_kv(0)
            ],
        ),
        fresh(
            "HashKV with transactions of many events",
            steps![
                txn(ops![put("a", "1"), put("b", "1"), put("c", "1")]),
                txn(ops![delete("a").to("c"), put("d", "")]),
                txn(ops![txn(ops![put("a", "5")]), txn(ops![delete("a")])]),
                hash_kv(0),
                hash_kv(2),
                hash_kv(3),
                hash_kv(4),
                compact_physical(3),
                hash_kv(0),
                put("e", "1"),
                hash_kv(4),
                compact_physical(4),
                hash_kv(0),
                hash_kv(5),
            ],
        ),
        fresh(
            "HashKV with a delete of everything and a put in one revision",
            steps![
                put("a", "1"),
                put("d", "1"),
                txn(ops![delete([0]).to([0]), put("d", "6")]),
                hash_kv(0),
                hash_kv(2),
                hash_kv(3),
                put("d", "7"),
                hash_kv(4),
                hash_kv(5)
            ],
        ),
        fresh(
            "HashKV of a longer history, compacted step by step",
            long.chain([
                hash_kv(0),
                compact_physical(11),
                hash_kv(0),
                hash_kv(30),
                compact_physical(30),
                hash_kv(0),
                hash_kv(31),
                compact_physical(58),
                hash_kv(0),
            ])
            .collect::<Vec<_>>(),
        ),
        fresh(
            "HashKV at the compact revision is remembered from the compaction",
            steps![
                put("a", "1"),
                put("a", "2"),
                put("a", "3"),
                compact_physical(3),
                hash_kv(3),
                put("a", "4"),
                compact_physical(5),
                hash_kv(5),
                hash_kv(3)
            ],
        ),
        fresh(
            "HashKV remembers the hashes of the last ten compactions",
            (0..14)
                .flat_map(|n| {
                    let last = 3 * n + 4;
                    steps![
                        put("a", "1"),
                        delete("a"),
                        put(format!("k{n}"), "v"),
                        compact_physical(last - n % 3),
                        hash_kv(last - n % 3)
                    ]
                })
                .chain((1..=44).map(hash_kv))
                .collect::<Vec<_>>(),
        ),
        fresh(
            "HashKV after a restart",
            steps![
                grant(7, 5000),
                put("a", "1").lease(7),
                put("b", "2"),
                delete("b"),
                put("a", "3"),
                compact_physical(4),
                hash_kv(0),
                Step::Restart,
                hash_kv(0),
                hash_kv(5),
                get_all(),
                time_to_live(7, true),
                put("a", "4"),
                hash_kv(0)
            ],
        ),
        fresh(
            "a restart changes nothing that can be read",
            steps![
                put("a", "1"),
                put("b", "1"),
                put("a", "2"),
                delete("b"),
                grant(9, 5000),
                put("l", "x").lease(9),
                compact(3),
                Step::Restart,
                get_all(),
                get_all().rev(3),
                get_all().rev(2),
                get("a").rev(4),
                put("a", "3").prev_kv(),
                leases(),
                time_to_live(9, true),
                revoke(9),
                get_all(),
            ],
        ),
    ]
}

fn watches() -> Vec<Case> {
    vec![
        on_history(
            "a watch from the compact revision gets everything from it",
            steps![compact_physical(5), open(0), watch(0, "a").to("z").from(5), take(0, 2)],
        ),
        on_history(
            "a tombstone at the compact revision is still delivered",
            steps![compact_physical(5), open(0), watch(0, "b").from(5), take(0, 2)],
        ),
        on_history(
            "a watch from below the compact revision is cancelled",
            steps![compact(5), open(0), watch(0, "a").from(4), take(0, 2), watch(0, "a").from(1), take(0, 2), settle(0)],
        ),
        on_history(
            "prev_kv that is compacted is absent",
            steps![put("a", "4"), compact_physical(8), put("a", "5"), open(0), watch(0, "a").from(8).prev_kv(), take(0, 2)],
        ),
        on_history(
            "prev_kv just above the compact revision is there",
            steps![put("a", "4"), put("a", "5"), compact_physical(8), open(0), watch(0, "a").from(9).prev_kv(), take(0, 2)],
        ),
        on_history(
            "a synced watch isn't disturbed by a compaction",
            steps![open(0), watch(0, "a").prev_kv(), take(0, 1), compact(7), put("a", "4"), take(0, 1)],
        ),
        on_history(
            "a watch whose start was compacted leaves others alone",
            steps![compact(5), open(0), watch(0, "a"), take(0, 1), watch(0, "a").from(2), take(0, 2), put("a", "x"), take(0, 1)],
        ),
        on_history(
            "an id of a watch cancelled for compaction",
            steps![
                compact(5),
                open(0),
                watch(0, "a").from(2).id(7),
                take(0, 2),
                watch(0, "a").id(7),
                take(0, 1),
                cancel(0, 7),
                settle(0)
            ],
        ),
        on_history(
            "an automatic id after a watch cancelled for compaction",
            steps![compact(5), open(0), watch(0, "a").from(2), take(0, 2), watch(0, "a"), take(0, 1), put("a", "z"), take(0, 1)],
        ),
        on_history(
            "progress after a watch was cancelled for compaction",
            steps![
                compact(5),
                open(0),
                watch(0, "a").from(2),
                take(0, 2),
                progress(0),
                settle(0),
                watch(0, "a"),
                take(0, 1),
                progress(0),
                settle(0)
            ],
        ),
    ]
}
