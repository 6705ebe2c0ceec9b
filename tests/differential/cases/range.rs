//! Range.

use crate::script::*;
use crate::steps;
use duet::proto::etcdserverpb::range_request::{SortOrder, SortTarget};

/// Five keys, with versions, values and revisions in different orders.
fn five() -> Vec<Step> {
    steps![put("c", "3"), put("a", "5"), put("e", "1"), put("b", "4"), put("d", "2"), put("a", "6"), put("c", "0"), put("c", "9"),]
}

/// The five keys, and these steps.
fn on_five(name: &str, steps: impl IntoIterator<Item = Step>) -> Case {
    let mut all = five();
    all.extend(steps);
    case(name, all)
}

pub fn cases() -> Vec<Case> {
    let mut cases = selection();
    cases.extend(revisions());
    cases.extend(sorting());
    cases.extend(filters());
    cases.push(ten_thousand());
    cases
}

/// A list of the size that Kubernetes asks for: whole, in pages at one revision while it changes, in other orders, counted.
fn ten_thousand() -> Case {
    let key = |number: u32| format!("list/{number:05}");
    let fill = (0..10_000).collect::<Vec<_>>();
    let mut all: Vec<Step> = fill
        .chunks(125)
        .map(|keys| {
            let value = |number: &u32| format!("{:>200}", number * 7 % 1009);
            txn(keys.iter().map(|number| put(key(*number), value(number)).into()).collect::<Vec<_>>()).into()
        })
        .collect();
    let list = || get("list/").prefix();
    all.extend(steps![list(), list().keys_only(), list().count_only(), list().limit(9999), list().limit(10_000)]);
    // Revision 81 is the last one so far.
    let mut from = 0;
    while from < 10_000 {
        all.extend(steps![get(key(from)).to("list0").limit(500).rev(81), put(key(from), "changed"), delete(key(from + 1))]);
        from += 500;
    }
    all.extend(steps![list(), list().sort((SortTarget::Mod, SortOrder::Descend)).limit(3), list().min_mod(82)]);
    fresh("10,000 keys: whole, in pages, sorted, counted", all)
}

fn selection() -> Vec<Case> {
    vec![
        case("a fresh key isn't there", steps![get("a")]),
        case("an empty key is refused", steps![get("")]),
        case("an empty key is refused even with a range end", steps![get("").to("z")]),
        on_five("a key without a range end is that key alone", steps![get("c")]),
        on_five("the range end is exclusive", steps![get("a").to("c"), get("b").to("c"), get("c").to("c")]),
        on_five("a reversed range is empty", steps![get("c").to("a"), get("c").to("a").count_only()]),
        on_five("a range end of NUL means from the key on", steps![get("c").to([0]), get("zzz").to([0])]),
        on_five("a key and a range end of NUL mean everything", steps![get([0]).to([0])]),
        on_five("a key of NUL alone is only that key", steps![get([0])]),
        on_five("a prefix is a range to its successor", steps![put("ca", "x"), put("cb", "y"), get("c").prefix()]),
        case(
            "keys with NUL, high and non-UTF-8 bytes sort bytewise",
            steps![
                put([0xff, 0xfe], "1"),
                put([0xc3, 0x28], "2"),
                put([0], "3"),
                put([0, 0], "4"),
                put([b'a', 0], "5"),
                put("a", "6"),
                put([b'a', 0, 1], "7"),
                put([0xff], "8"),
                get([0]).to([0]),
                get("a").to([b'a', 0, 1]),
                get([0xff]).prefix(),
                get([0]).to([0, 1]),
                get([b'a', 0]),
            ],
        ),
        case("a range end of two NULs is a plain end", steps![put([0], "1"), put([0, 0], "2"), get([0]).to([0, 0])]),
        case("an empty value is there", steps![put("a", ""), get("a"), get("a").keys_only(), get("a").count_only()]),
        on_five(
            "a limit cuts and says more",
            steps![get("a").to("z").limit(2), get("a").to("z").limit(5), get("a").to("z").limit(6), get("a").to("z").limit(4)],
        ),
        on_five("a limit of one on one key says no more", steps![get("a").limit(1)]),
        on_five("a negative limit is none", steps![get("a").to("z").limit(-1), get("a").to("z").limit(i64::MIN)]),
        on_five("the greatest limit is none", steps![get("a").to("z").limit(i64::MAX), get("a").to("z").limit(i64::MAX - 1)]),
        on_five("count ignores the limit", steps![get("a").to("z").limit(1), get("b").to([0]).limit(1)]),
        on_five(
            "count_only counts and shows no pairs",
            steps![get("a").to("z").count_only(), get("x").count_only(), get("a").count_only(), get_all().count_only()],
        ),
        on_five(
            "count_only ignores limit and filters",
            steps![
                get("a").to("z").count_only().limit(2),
                get("a").to("z").count_only().min_mod(6),
                get("a").to("z").count_only().max_create(3).limit(1)
            ],
        ),
        on_five("count_only wins over keys_only", steps![get("a").to("z").count_only().keys_only()]),
        on_five("keys_only omits values", steps![get("a").to("z").keys_only(), get("a").keys_only()]),
        on_five(
            "keys_only with a limit says more",
            steps![get("a").to("z").keys_only().limit(2), get("a").to("z").keys_only().limit(5)],
        ),
        on_five("keys_only of nothing", steps![get("x").to("z").keys_only(), get("x").keys_only()]),
        case(
            "keys_only omits the lease",
            steps![
                grant(7, 1000),
                put("a", "1").lease(7),
                get("a").keys_only(),
                get("a").keys_only().sort((SortTarget::Value, SortOrder::Ascend)),
                get("a")
            ],
        ),
        on_five(
            "serializable reads are the same on one node",
            steps![get("a").to("z").serializable(), get("a").serializable().rev(2)],
        ),
        on_five("a range past all keys is empty", steps![get("f").to("z"), get("f").to([0])]),
        on_five(
            "paging with the last key and NUL covers everything once",
            steps![get("a").to("z").limit(2), get([b'b', 0]).to("z").limit(2).rev(9), get([b'd', 0]).to("z").limit(2).rev(9)],
        ),
    ]
}

fn revisions() -> Vec<Case> {
    vec![
        on_five("the header carries the current revision", steps![get("a"), get("nothing"), get("a").rev(3)]),
        on_five("every revision of a key can be read", (1..=9).map(|rev| get("a").to("z").rev(rev).into())),
        on_five("a key is absent before its first revision", steps![get("e").rev(3), get("e").rev(4)]),
        on_five("a revision past the current one is a future revision", steps![get("a").rev(10), get("a").rev(i64::MAX)]),
        on_five(
            "count_only at a future revision is refused too",
            steps![get("a").rev(10).count_only(), get("a").to("z").rev(11).keys_only()],
        ),
        on_five("a negative revision reads the latest", steps![get("a").rev(-1), get("a").to("z").rev(i64::MIN)]),
        on_five(
            "a deleted key can be read before its deletion",
            steps![
                delete("c"),
                get("c"),
                get("c").rev(9),
                get("c").rev(10),
                get("a").to("z").rev(9).count_only(),
                get("a").to("z").count_only()
            ],
        ),
        on_five(
            "a deleted key starts anew",
            steps![delete("c"), put("c", "new"), get("c"), get("c").rev(9), get("c").rev(10), get("c").rev(11)],
        ),
        on_five("version, create and mod revision follow the puts", steps![get("c"), put("c", "x"), get("c"), get("c").rev(2)]),
        on_five(
            "a count at an old revision is that revision's",
            (1..=9).map(|rev| get("a").to("z").rev(rev).count_only().into()),
        ),
        on_five(
            "keys_only at an old revision shows that revision's numbers",
            (1..=9).map(|rev| get("a").to("z").rev(rev).keys_only().into()),
        ),
    ]
}

const TARGETS: [(SortTarget, &str); 5] = [
    (SortTarget::Key, "key"),
    (SortTarget::Version, "version"),
    (SortTarget::Create, "create revision"),
    (SortTarget::Mod, "mod revision"),
    (SortTarget::Value, "value"),
];

const ORDERS: [(SortOrder, &str); 3] =
    [(SortOrder::None, "in no given order"), (SortOrder::Ascend, "ascending"), (SortOrder::Descend, "descending")];

fn sorting() -> Vec<Case> {
    let mut cases = Vec::new();
    for (target, of) in TARGETS {
        for (order, how) in ORDERS {
            let all = || get("a").to("z").sort((target, order));
            cases.push(on_five(&format!("sorted by {of} {how}"), steps![all(), all().rev(5), all().keys_only()]));
            cases.push(on_five(&format!("sorted by {of} {how} with a limit"), (1..=5).map(|limit| all().limit(limit).into())));
            cases.push(on_five(
                &format!("sorted by {of} {how} with filters and a limit"),
                steps![
                    all().min_mod(4).limit(2),
                    all().max_create(5).limit(2),
                    all().min_create(3).max_mod(7).limit(1),
                    all().min_mod(100).limit(1)
                ],
            ));
        }
    }
    cases.extend([
        on_five("an unknown sort order is refused", steps![get("a").sort_numbers((0, 3)), get("a").sort_numbers((0, -1))]),
        on_five("an unknown sort target is refused", steps![get("a").sort_numbers((5, 0)), get("a").sort_numbers((-1, 1))]),
        on_five("an unknown sort order is refused after an empty key", steps![get("").sort_numbers((0, 9))]),
        on_five("an unknown sort order is refused before a future revision", steps![get("a").sort_numbers((0, 9)).rev(100)]),
        on_five(
            "equal sort keys keep the order of keys",
            steps![
                get("a").to("z").sort((SortTarget::Version, SortOrder::Ascend)),
                get("a").to("z").sort((SortTarget::Version, SortOrder::Descend)),
            ],
        ),
        on_five(
            "count with a sort is still the range's",
            steps![get("a").to("z").sort((SortTarget::Mod, SortOrder::Descend)).limit(1)],
        ),
    ]);
    cases
}

fn filters() -> Vec<Case> {
    let all = || get("a").to("z");
    vec![
        on_five("min_mod_revision is inclusive", steps![all().min_mod(6), all().min_mod(7), all().min_mod(10)]),
        on_five("max_mod_revision is inclusive", steps![all().max_mod(6), all().max_mod(5), all().max_mod(1)]),
        on_five("min_create_revision is inclusive", steps![all().min_create(4), all().min_create(6), all().min_create(7)]),
        on_five("max_create_revision is inclusive", steps![all().max_create(4), all().max_create(1)]),
        on_five(
            "filters combine",
            steps![all().min_mod(4).max_mod(7), all().min_create(3).max_create(5).min_mod(6), all().min_mod(7).max_mod(6)],
        ),
        on_five(
            "count is before filters, more after them",
            steps![all().min_mod(6).limit(1), all().min_mod(9).limit(1), all().max_mod(5).limit(2)],
        ),
        on_five(
            "a limit counts what the filters leave",
            steps![all().min_mod(6).limit(2), all().min_mod(6).limit(3), all().min_mod(6).limit(4)],
        ),
        on_five(
            "negative filters filter too",
            steps![all().max_mod(-1), all().min_mod(-1), all().max_create(-5), all().min_create(-5).limit(2)],
        ),
        on_five("filters apply to keys_only", steps![all().min_mod(6).keys_only(), all().max_create(4).keys_only().limit(1)]),
        on_five("filters apply at old revisions", steps![all().rev(6).min_mod(4), all().rev(5).max_create(3)]),
        on_five("filters apply to a single key", steps![get("a").min_mod(8), get("a").max_mod(3)]),
    ]
}
