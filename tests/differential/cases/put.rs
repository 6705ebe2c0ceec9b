//! Put.

use crate::script::*;
use crate::steps;

pub fn cases() -> Vec<Case> {
    vec![
        case("the first put is revision 2", steps![put("a", "1"), get("a")]),
        case("every put is one revision more", steps![put("a", "1"), put("a", "1"), put("b", ""), get_all()]),
        case("prev_kv of a new key is absent", steps![put("a", "1").prev_kv()]),
        case(
            "prev_kv is the whole pair before",
            steps![grant(7, 500), put("a", "1").lease(7), put("a", "2").prev_kv(), put("a", "3").prev_kv()],
        ),
        case("prev_kv after a deletion is absent", steps![put("a", "1"), delete("a"), put("a", "2").prev_kv(), get("a")]),
        case(
            "prev_kv survives the compaction of its revision as long as it is current",
            steps![put("a", "1"), put("b", "1"), compact(3), put("a", "2").prev_kv()],
        ),
        case("an empty key is refused", steps![put("", "x"), get_all()]),
        case("an empty value is a value", steps![put("a", ""), put("a", "").prev_kv(), get("a")]),
        case("ignore_value keeps the value", steps![put("a", "1"), put("a", "").ignore_value(), get("a")]),
        case("ignore_value returns the previous pair when asked", steps![put("a", "1"), put("a", "").ignore_value().prev_kv()]),
        case("ignore_value of a missing key is refused", steps![put("a", "").ignore_value(), get_all()]),
        case("ignore_value of a deleted key is refused", steps![put("a", "1"), delete("a"), put("a", "").ignore_value()]),
        case("ignore_value with a value is refused", steps![put("a", "1"), put("a", "2").ignore_value(), get("a")]),
        case("ignore_value with a value is refused after an empty key", steps![put("", "2").ignore_value()]),
        case(
            "ignore_value detaches the lease unless that is ignored too",
            steps![
                grant(7, 500),
                put("a", "1").lease(7),
                put("a", "").ignore_value(),
                get("a"),
                time_to_live(7, true),
                put("b", "1").lease(7),
                put("b", "").ignore_value().ignore_lease(),
                get("b"),
                time_to_live(7, true),
            ],
        ),
        case(
            "ignore_lease keeps the lease",
            steps![grant(7, 500), put("a", "1").lease(7), put("a", "2").ignore_lease(), get("a"), time_to_live(7, true)],
        ),
        case("ignore_lease of a key without one keeps none", steps![put("a", "1"), put("a", "2").ignore_lease(), get("a")]),
        case("ignore_lease of a missing key is refused", steps![put("a", "1").ignore_lease(), get_all()]),
        case(
            "ignore_lease with a lease is refused",
            steps![grant(7, 500), put("a", "1"), put("a", "2").lease(7).ignore_lease(), get("a")],
        ),
        case(
            "ignore_lease with a lease is refused even when the lease is unknown",
            steps![put("a", "2").lease(99).ignore_lease()],
        ),
        case(
            "ignore_value with a value is refused before ignore_lease with a lease",
            steps![put("a", "2").lease(99).ignore_lease().ignore_value()],
        ),
        case(
            "a lease that isn't there is refused",
            steps![put("a", "1").lease(99), get_all(), put("b", "2"), put("b", "3").lease(-1), get("b")],
        ),
        case("a missing lease is noticed before a missing key", steps![put("a", "").lease(99).ignore_value()]),
        case(
            "a put moves the key to another lease",
            steps![
                grant(7, 500),
                grant(8, 600),
                put("a", "1").lease(7),
                put("a", "2").lease(8),
                time_to_live(7, true),
                time_to_live(8, true),
                revoke(7),
                get("a"),
                revoke(8),
                get("a"),
            ],
        ),
        case(
            "a put without a lease detaches the key",
            steps![grant(7, 500), put("a", "1").lease(7), put("a", "2"), time_to_live(7, true), revoke(7), get("a")],
        ),
        case(
            "a put with the same lease stays attached",
            steps![grant(7, 500), put("a", "1").lease(7), put("a", "2").lease(7), time_to_live(7, true), revoke(7), get("a")],
        ),
        case("keys may be long", steps![put("k".repeat(5000), "1"), get("k".repeat(5000)), get("k").prefix().keys_only()]),
        case("a value may hold any bytes", steps![put("a", (0..=255u8).collect::<Vec<_>>()), get("a")]),
        case(
            "a put after a deletion has version 1 again",
            steps![put("a", "1"), put("a", "2"), delete("a"), put("a", "3"), get("a")],
        ),
        case(
            "a put of a negative lease id works",
            steps![grant(-7, 500), put("a", "1").lease(-7), get("a"), time_to_live(-7, true)],
        ),
    ]
}
