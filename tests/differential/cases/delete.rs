//! DeleteRange.

use crate::script::*;
use crate::steps;

fn on_abc(name: &str, steps: impl IntoIterator<Item = Step>) -> Case {
    let mut all = steps![put("a", "1"), put("b", "2"), put("c", "3"), put("b", "4")];
    all.extend(steps);
    case(name, all)
}

pub fn cases() -> Vec<Case> {
    vec![
        on_abc("a deletion is one revision", steps![delete("a"), get_all(), get("a").rev(5), get("a").rev(6)]),
        on_abc("a deletion of nothing is no revision", steps![delete("x"), delete("x").to("z"), get("a")]),
        on_abc("a deletion of a range is one revision", steps![delete("a").to("c"), get_all(), put("d", "1")]),
        on_abc("a reversed range deletes nothing", steps![delete("c").to("a"), get_all()]),
        on_abc("an empty range deletes nothing", steps![delete("a").to("a"), get_all()]),
        on_abc("a range end of NUL deletes from the key on", steps![delete("b").to([0]), get_all()]),
        on_abc("a key and a range end of NUL delete everything", steps![delete([0]).to([0]), get_all(), put("a", "9"), get("a")]),
        on_abc("prev_kv returns what was deleted, in key order", steps![delete("a").to("z").prev_kv()]),
        on_abc("prev_kv of nothing is empty", steps![delete("x").prev_kv(), delete("x").to("z").prev_kv()]),
        on_abc("prev_kv of a single key", steps![delete("b").prev_kv(), delete("b").prev_kv()]),
        on_abc("an empty key is refused", steps![delete(""), delete("").to("z"), get_all().count_only()]),
        on_abc("deleting twice deletes once", steps![delete("a"), delete("a"), get("b")]),
        case(
            "a deletion detaches keys from their lease",
            steps![
                grant(7, 500),
                put("a", "1").lease(7),
                put("b", "1").lease(7),
                delete("a"),
                time_to_live(7, true),
                put("a", "2"),
                revoke(7),
                get_all(),
            ],
        ),
        case("prev_kv of a deletion carries the lease", steps![grant(7, 500), put("a", "1").lease(7), delete("a").prev_kv()]),
        case(
            "keys with NUL bytes are deleted exactly",
            steps![
                put("a", "1"),
                put([b'a', 0], "2"),
                put([b'a', 0, 0], "3"),
                delete([b'a', 0]),
                get_all(),
                delete("a").to([b'a', 0, 0]).prev_kv(),
                get_all(),
            ],
        ),
        case(
            "a prefix of high bytes is deleted",
            steps![put([0xff, 1], "1"), put([0xff, 0xff], "2"), put("a", "3"), delete([0xff]).prefix().prev_kv(), get_all()],
        ),
        case("a fresh store deletes nothing", steps![delete("a"), delete([0]).to([0]), get("a")]),
    ]
}
