//! Watch: registration, ids, replay, filters, prev_kv, fragments, progress, cancellation.

use crate::script::*;
use crate::{ops, steps};
use duet::proto::etcdserverpb::watch_create_request::FilterType::{Nodelete, Noput};

pub fn cases() -> Vec<Case> {
    let mut cases = registration();
    cases.extend(ids());
    cases.extend(delivery());
    cases.extend(replay());
    cases.extend(filters());
    cases.extend(previous());
    cases.extend(progress_requests());
    cases.extend(cancellation());
    cases.extend(large());
    cases.extend(notifications());
    cases
}

/// Opens stream 0 and creates these watches on it.
fn watching(watches: Vec<Watch>) -> Vec<Step> {
    let n = watches.len();
    let mut steps = vec![open(0)];
    steps.extend(watches.into_iter().map(Step::from));
    steps.push(take(0, n));
    steps
}

/// A case that begins with these watches.
fn on_watches(name: &str, watches: Vec<Watch>, steps: impl IntoIterator<Item = Step>) -> Case {
    let mut all = watching(watches);
    all.extend(steps);
    case(name, all)
}

fn registration() -> Vec<Case> {
    vec![
        case(
            "created carries the current revision",
            steps![put("a", "1"), open(0), watch(0, "a"), take(0, 1), put("b", "1"), watch(0, "b"), take(0, 1)],
        ),
        on_watches("an empty key is NUL", vec![watch(0, "")], steps![put([0], "1"), take(0, 1), put("a", "1"), settle(0)]),
        on_watches(
            "an empty key with a range end watches from NUL",
            vec![watch(0, "").to("b")],
            steps![put([0], "1"), put("a", "1"), put("b", "1"), settle(0)],
        ),
        on_watches(
            "an empty key with a range end of NUL watches everything",
            vec![watch(0, "").to([0])],
            steps![put([0], "1"), put([0xff], "1"), delete([0]).to([0]), settle(0)],
        ),
        on_watches(
            "a range end of NUL watches from the key on",
            vec![watch(0, "b").to([0])],
            steps![put("a", "1"), put("b", "1"), put("zz", "1"), settle(0)],
        ),
        on_watches(
            "a range end is exclusive",
            vec![watch(0, "a").to("c")],
            steps![put("a", "1"), put([b'b', 0xff], "1"), put("c", "1"), settle(0)],
        ),
        case(
            "a key not before its range end is refused",
            steps![open(0), watch(0, "b").to("b"), take(0, 1), watch(0, "b").to("a"), take(0, 1), watch(0, "b"), take(0, 1)],
        ),
        case(
            "a key not before its range end is refused with an id too",
            steps![open(0), watch(0, "b").to("a").id(5), take(0, 1), watch(0, "b").id(5), take(0, 1)],
        ),
        case(
            "a negative start is refused as compacted",
            steps![
                open(0),
                watch(0, "a").from(-1),
                take(0, 1),
                watch(0, "a").from(i64::MIN).id(3),
                take(0, 1),
                watch(0, "a"),
                take(0, 1)
            ],
        ),
        case("a negative start is noticed before an empty range", steps![open(0), watch(0, "b").to("a").from(-1), take(0, 1)]),
        case(
            "an empty range is noticed before a duplicate id",
            steps![open(0), watch(0, "a").id(4), take(0, 1), watch(0, "b").to("a").id(4), take(0, 1)],
        ),
        on_watches(
            "several streams are independent",
            vec![watch(0, "a")],
            steps![open(1), watch(1, "b"), take(1, 1), put("a", "1"), put("b", "1"), take(0, 1), take(1, 1)],
        ),
        on_watches(
            "two watches on the same key both get the event",
            vec![watch(0, "a"), watch(0, "a")],
            steps![put("a", "1"), take(0, 2), delete("a"), take(0, 2)],
        ),
        on_watches(
            "overlapping ranges each get the event",
            vec![watch(0, "a"), watch(0, "a").to("c"), watch(0, [0]).to([0]), watch(0, "b")],
            steps![put("a", "1"), take(0, 3), put("b", "1"), take(0, 3), put("x", "1"), take(0, 1)],
        ),
        case(
            "a stream may be opened with metadata",
            steps![
                Step::Open(0, vec![("hasleader", b"true".to_vec()), ("client-api-version", b"3.6.0".to_vec())]),
                watch(0, "a"),
                take(0, 1),
                put("a", "1"),
                take(0, 1)
            ],
        ),
    ]
}

fn ids() -> Vec<Case> {
    vec![
        case("automatic ids count from 0", steps![open(0), watch(0, "a"), watch(0, "b"), watch(0, "c"), take(0, 3)]),
        case(
            "automatic ids start anew on each stream",
            steps![open(0), watch(0, "a"), take(0, 1), open(1), watch(1, "a"), take(1, 1)],
        ),
        case("an id may be chosen", steps![open(0), watch(0, "a").id(42), take(0, 1), put("a", "1"), take(0, 1)]),
        case(
            "a negative id may be chosen",
            steps![open(0), watch(0, "a").id(-5), take(0, 1), put("a", "1"), take(0, 1), cancel(0, -5), take(0, 1)],
        ),
        case(
            "an automatic id steps over chosen ones",
            steps![
                open(0),
                watch(0, "a").id(1),
                take(0, 1),
                watch(0, "b"),
                take(0, 1),
                watch(0, "c"),
                take(0, 1),
                watch(0, "d"),
                take(0, 1)
            ],
        ),
        case(
            "a duplicate id is refused",
            steps![
                open(0),
                watch(0, "a").id(7),
                take(0, 1),
                watch(0, "b").id(7),
                take(0, 1),
                put("a", "1"),
                take(0, 1),
                put("b", "1"),
                settle(0)
            ],
        ),
        case(
            "an automatic id can be a duplicate of a chosen one",
            steps![open(0), watch(0, "a"), watch(0, "b"), take(0, 2), watch(0, "c").id(1), take(0, 1)],
        ),
        case(
            "a cancelled id is free again",
            steps![
                open(0),
                watch(0, "a").id(7),
                take(0, 1),
                cancel(0, 7),
                take(0, 1),
                watch(0, "b").id(7),
                take(0, 1),
                put("b", "1"),
                take(0, 1)
            ],
        ),
        case(
            "automatic ids aren't reused",
            steps![open(0), watch(0, "a"), watch(0, "b"), take(0, 2), cancel(0, 0), take(0, 1), watch(0, "c"), take(0, 1)],
        ),
        case(
            "a refused creation takes no id",
            steps![open(0), watch(0, "b").to("a"), take(0, 1), watch(0, "c").from(-1), take(0, 1), watch(0, "a"), take(0, 1)],
        ),
        case("the id -1 may be chosen", steps![open(0), watch(0, "a").id(-1), take(0, 1), put("a", "1"), settle(0)]),
    ]
}

fn delivery() -> Vec<Case> {
    let all = || vec![watch(0, [0]).to([0])];
    vec![
        on_watches("a put is one response", all(), steps![put("a", "1"), take(0, 1), put("a", "2"), take(0, 1)]),
        on_watches(
            "a delete event carries key and mod revision only",
            all(),
            steps![put("a", "1"), take(0, 1), delete("a"), take(0, 1)],
        ),
        on_watches("a deletion of nothing is no event", all(), steps![delete("a"), put("b", "1"), take(0, 1)]),
        on_watches(
            "a transaction's events come together, in order",
            all(),
            steps![put("c", "1"), take(0, 1), txn(ops![put("b", "1"), delete("c"), put("a", "1")]), take(0, 1)],
        ),
        on_watches(
            "a watch gets only its own events of a transaction",
            vec![watch(0, "b").to("d")],
            steps![txn(ops![put("b", "1"), put("a", "1"), put("c", "1"), put("d", "1")]), take(0, 1)],
        ),
        on_watches(
            "a range deletion is one response in key order",
            all(),
            steps![put("b", "1"), put("a", "1"), put("c", "1"), take(0, 3), delete("a").to("z"), take(0, 1)],
        ),
        on_watches(
            "a revoked lease's deletions are one response, sorted",
            all(),
            steps![
                grant(7, 500),
                put("c", "1").lease(7),
                put("a", "1").lease(7),
                put("b", "1").lease(7),
                take(0, 3),
                revoke(7),
                take(0, 1)
            ],
        ),
        on_watches("a put with a lease shows it", all(), steps![grant(7, 500), put("a", "1").lease(7), take(0, 1)]),
        on_watches(
            "ignore_value shows the value",
            all(),
            steps![put("a", "1"), take(0, 1), put("a", "").ignore_value(), take(0, 1)],
        ),
        on_watches(
            "nested transactions are one response",
            all(),
            steps![txn(ops![put("a", "1"), txn(ops![put("b", "1"), txn(ops![put("c", "1")])]), put("d", "1")]), take(0, 1)],
        ),
        on_watches(
            "a failed compare is no event",
            all(),
            steps![
                when([cmp(
                    "x",
                    duet::proto::etcdserverpb::compare::TargetUnion::Version(1),
                    duet::proto::etcdserverpb::compare::CompareResult::Equal
                )])
                .then(ops![put("a", "1")]),
                put("b", "1"),
                take(0, 1)
            ],
        ),
        on_watches("a compaction is no event", all(), steps![put("a", "1"), take(0, 1), compact(2), put("b", "1"), take(0, 1)]),
        on_watches(
            "keys with NUL and high bytes are told apart",
            vec![watch(0, [b'a', 0]), watch(0, [0xff]).prefix()],
            steps![put("a", "1"), put([b'a', 0], "2"), put([b'a', 0, 0], "3"), put([0xff, 0xff], "4"), settle(0)],
        ),
        on_watches(
            "closing the sending side leaves the watches running",
            all(),
            steps![Step::CloseSend(0), put("a", "1"), take(0, 1), delete("a"), take(0, 1)],
        ),
        on_watches(
            "many events in a row arrive one by one, in order",
            all(),
            (0..50u8).map(|i| put([b'k', i % 3], [i]).into()).chain([take(0, 50)]),
        ),
    ]
}

fn replay() -> Vec<Case> {
    let history = |name: &str, steps: Vec<Step>| {
        let mut all = steps![put("a", "1"), put("b", "1"), put("a", "2"), delete("a"), put("a", "3"), put("c", "1")];
        all.extend(steps);
        case(name, all)
    };
    vec![
        history("a replay from a past revision is one response", steps![open(0), watch(0, "a").from(2), take(0, 2)]),
        history("a replay includes its start revision", steps![open(0), watch(0, "a").from(4), take(0, 2)]),
        history("a replay carries the current revision", steps![open(0), watch(0, "b").from(2), take(0, 2)]),
        history("a replay of everything", steps![open(0), watch(0, [0]).to([0]).from(2), take(0, 2)]),
        history("a replay from the first revision", steps![open(0), watch(0, "a").from(1), take(0, 2)]),
        history(
            "a replay without events sends nothing",
            steps![open(0), watch(0, "x").from(2), take(0, 1), settle(0), put("x", "1"), take(0, 1)],
        ),
        history("a start at the current revision replays it", steps![open(0), watch(0, "c").from(7), take(0, 2)]),
        history(
            "a start just past the current revision waits",
            steps![open(0), watch(0, "c").from(8), take(0, 1), put("c", "2"), take(0, 1)],
        ),
        history("a start of 0 replays nothing", steps![open(0), watch(0, "c"), take(0, 1), settle(0)]),
        history(
            "a future start gets no event before it is reached",
            steps![
                open(0),
                watch(0, "a").from(10),
                take(0, 1),
                put("a", "4"),
                put("a", "5"),
                put("a", "6"),
                take(0, 1),
                put("a", "7"),
                take(0, 1)
            ],
        ),
        history(
            "a future start far away stays silent",
            steps![open(0), watch(0, "a").from(i64::MAX), take(0, 1), put("a", "4"), settle(0)],
        ),
        history(
            "replay goes on with new events",
            steps![open(0), watch(0, "a").from(3), take(0, 2), put("a", "4"), take(0, 1), delete("a"), take(0, 1)],
        ),
        history(
            "several replays on one stream",
            steps![open(0), watch(0, "a").from(2), watch(0, "a").from(5), watch(0, "b").from(3), take(0, 6)],
        ),
        history(
            "a replay of a transaction is in order",
            steps![txn(ops![put("z", "1"), put("a", "9"), delete("b")]), open(0), watch(0, [0]).to([0]).from(8), take(0, 2)],
        ),
        history("a chosen id and a replay", steps![open(0), watch(0, "a").from(2).id(99), take(0, 2)]),
        case("a replay of more than a thousand revisions is complete and in order", {
            let mut steps: Vec<Step> = (0..1100u32).map(|i| put(format!("k{}", i % 7), i.to_be_bytes()).into()).collect();
            steps.extend(steps![open(0), watch(0, "k").prefix().from(2), settle(0)]);
            steps
        }),
    ]
}

fn filters() -> Vec<Case> {
    let all = |filters: &[_]| vec![watch(0, [0]).to([0]).without(filters)];
    vec![
        on_watches(
            "NOPUT leaves puts out",
            all(&[Noput]),
            steps![put("a", "1"), delete("a"), take(0, 1), put("b", "1"), settle(0)],
        ),
        on_watches(
            "NODELETE leaves deletes out",
            all(&[Nodelete]),
            steps![put("a", "1"), take(0, 1), delete("a"), put("b", "1"), take(0, 1)],
        ),
        on_watches("both filters leave everything out", all(&[Noput, Nodelete]), steps![put("a", "1"), delete("a"), settle(0)]),
        on_watches("a filter twice is that filter", all(&[Noput, Noput]), steps![put("a", "1"), delete("a"), take(0, 1)]),
        on_watches(
            "a transaction is filtered event by event",
            all(&[Nodelete]),
            steps![put("a", "1"), take(0, 1), txn(ops![put("b", "1"), delete("a"), put("c", "1")]), take(0, 1)],
        ),
        on_watches(
            "an unknown filter filters nothing",
            vec![watch(0, [0]).to([0]).filter_numbers(&[7, -1])],
            steps![put("a", "1"), delete("a"), take(0, 2)],
        ),
        case(
            "filters apply to a replay",
            steps![
                put("a", "1"),
                delete("a"),
                put("a", "2"),
                delete("a"),
                open(0),
                watch(0, "a").from(2).without(&[Noput]),
                watch(0, "a").from(2).without(&[Nodelete]),
                take(0, 4)
            ],
        ),
        case(
            "a replay that is filtered out sends nothing",
            steps![
                put("a", "1"),
                put("a", "2"),
                open(0),
                watch(0, "a").from(2).without(&[Noput]),
                take(0, 1),
                settle(0),
                delete("a"),
                take(0, 1)
            ],
        ),
        on_watches(
            "a filtered event still makes progress",
            all(&[Noput]),
            steps![put("a", "1"), put("a", "2"), progress(0), take(0, 1)],
        ),
    ]
}

fn previous() -> Vec<Case> {
    let all = || vec![watch(0, [0]).to([0]).prev_kv()];
    vec![
        on_watches("prev_kv of a created key is absent", all(), steps![put("a", "1"), take(0, 1)]),
        on_watches(
            "prev_kv of a changed key is the pair before",
            all(),
            steps![grant(7, 500), put("a", "1").lease(7), put("a", "2"), put("a", "3"), take(0, 3)],
        ),
        on_watches(
            "prev_kv of a deleted key is the pair before",
            all(),
            steps![put("a", "1"), put("a", "2"), delete("a"), take(0, 3)],
        ),
        on_watches("prev_kv of a key made anew is absent", all(), steps![put("a", "1"), delete("a"), put("a", "2"), take(0, 3)]),
        on_watches("prev_kv of a range deletion", all(), steps![put("a", "1"), put("b", "2"), delete("a").to("z"), take(0, 3)]),
        on_watches(
            "prev_kv only for the watch that asked",
            vec![watch(0, "a"), watch(0, "a").prev_kv()],
            steps![put("a", "1"), take(0, 2), put("a", "2"), take(0, 2), delete("a"), take(0, 2)],
        ),
        case(
            "prev_kv of a replay",
            steps![
                put("a", "1"),
                put("a", "2"),
                delete("a"),
                put("a", "3"),
                put("a", "4"),
                open(0),
                watch(0, "a").from(3).prev_kv(),
                take(0, 2)
            ],
        ),
        on_watches(
            "prev_kv with filters",
            vec![watch(0, "a").prev_kv().without(&[Noput])],
            steps![put("a", "1"), put("a", "2"), delete("a"), take(0, 1)],
        ),
        on_watches("prev_kv of an empty value", all(), steps![put("a", ""), put("a", "x"), take(0, 2)]),
        on_watches(
            "prev_kv of a put and delete in one revision is the state before both",
            all(),
            steps![put("a", "1"), take(0, 1), txn(ops![txn(ops![put("a", "2")]), txn(ops![delete("a")])]), take(0, 1)],
        ),
        on_watches(
            "prev_kv of a key put and deleted in one revision that wasn't there",
            all(),
            steps![put("b", "1"), take(0, 1), txn(ops![txn(ops![put("a", "2")]), txn(ops![delete("a")])]), take(0, 1)],
        ),
        on_watches(
            "prev_kv of a delete of everything and a put",
            all(),
            steps![
                put("a", "1"),
                take(0, 1),
                txn(ops![delete([0]).to([0]), put("a", "2")]),
                take(0, 1),
                put("a", "3"),
                take(0, 1)
            ],
        ),
    ]
}

fn progress_requests() -> Vec<Case> {
    vec![
        on_watches(
            "a progress request is answered once, for all watches, with id -1",
            vec![watch(0, "a"), watch(0, "b")],
            steps![put("x", "1"), put("x", "2"), progress(0), take(0, 1), settle(0)],
        ),
        on_watches(
            "each progress request is answered",
            vec![watch(0, "a")],
            steps![progress(0), take(0, 1), progress(0), take(0, 1), put("x", "1"), progress(0), take(0, 1)],
        ),
        case(
            "a progress request without watches isn't answered",
            steps![open(0), progress(0), settle(0), watch(0, "a"), take(0, 1), settle(0)],
        ),
        on_watches(
            "a progress request after the last watch was cancelled isn't answered",
            vec![watch(0, "a")],
            steps![cancel(0, 0), take(0, 1), progress(0), settle(0)],
        ),
        on_watches(
            "a progress request with a future watch isn't answered",
            vec![watch(0, "a"), watch(0, "b").from(1000)],
            steps![progress(0), settle(0)],
        ),
        on_watches(
            "a progress request with a future watch that was reached is answered",
            vec![watch(0, "b").from(3)],
            steps![progress(0), settle(0), progress(0), take(0, 1)],
        ),
        on_watches(
            "progress comes after the events before it",
            vec![watch(0, "a")],
            steps![put("a", "1"), put("a", "2"), put("b", "1"), progress(0), take(0, 2), take(0, 1)],
        ),
        on_watches(
            "progress of one stream is no other's",
            vec![watch(0, "a")],
            steps![open(1), watch(1, "a"), take(1, 1), progress(0), take(0, 1), settle(1)],
        ),
        case(
            "progress after a replay",
            steps![put("a", "1"), put("b", "1"), open(0), watch(0, "a").from(2), take(0, 2), settle(0), progress(0), take(0, 1)],
        ),
        case("progress with a chosen id is for -1", steps![open(0), watch(0, "a").id(5), take(0, 1), progress(0), take(0, 1)]),
    ]
}

fn cancellation() -> Vec<Case> {
    vec![
        on_watches(
            "a cancel is answered",
            vec![watch(0, "a")],
            steps![put("x", "1"), cancel(0, 0), take(0, 1), put("a", "1"), settle(0)],
        ),
        on_watches(
            "a cancel of an unknown id isn't answered",
            vec![watch(0, "a")],
            steps![cancel(0, 5), settle(0), put("a", "1"), take(0, 1)],
        ),
        on_watches(
            "a second cancel isn't answered",
            vec![watch(0, "a")],
            steps![cancel(0, 0), take(0, 1), cancel(0, 0), settle(0)],
        ),
        on_watches(
            "a cancel leaves other watches alone",
            vec![watch(0, "a"), watch(0, "a")],
            steps![cancel(0, 0), take(0, 1), put("a", "1"), take(0, 1)],
        ),
        on_watches("a cancel of a future watch", vec![watch(0, "a").from(100)], steps![cancel(0, 0), take(0, 1)]),
        case("a cancel without watches isn't answered", steps![open(0), cancel(0, 0), settle(0)]),
        case(
            "dropping a stream and opening another",
            steps![
                open(0),
                watch(0, "a"),
                take(0, 1),
                Step::Drop(0),
                open(0),
                watch(0, "a"),
                take(0, 1),
                put("a", "1"),
                take(0, 1)
            ],
        ),
    ]
}

fn large() -> Vec<Case> {
    let value = |fill: u8| vec![fill; 900_000];
    let four = || steps![put("a", value(1)), put("b", value(2)), put("c", value(3)), put("d", value(4))];
    let then = |more: Vec<Step>| {
        let mut steps = four();
        steps.extend(more);
        steps
    };
    vec![
        case(
            "a replay over 2 MiB comes whole unless fragment is set",
            then(steps![open(0), watch(0, "a").to("z").from(2), take(0, 2)]),
        ),
        case(
            "a replay over 2 MiB comes in fragments if asked for",
            then(steps![open(0), watch(0, "a").to("z").from(2).fragment(), take(0, 3)]),
        ),
        case(
            "a replay over 4 MiB comes in one response",
            then(steps![put("e", value(5)), put("f", value(6)), open(0), watch(0, "a").to("z").from(2), take(0, 2)]),
        ),
        case(
            "a small replay isn't fragmented",
            steps![put("a", "1"), put("a", "2"), open(0), watch(0, "a").from(2).fragment(), take(0, 2)],
        ),
        case(
            "a single large event isn't fragmented",
            steps![
                open(0),
                watch(0, "a").fragment().prev_kv(),
                take(0, 1),
                put("a", vec![1u8; 1_400_000]),
                take(0, 1),
                put("a", vec![2u8; 1_400_000]),
                take(0, 1)
            ],
        ),
        case(
            "a large transaction with prev_kv is fragmented",
            steps![
                put("a", value(1)),
                put("b", value(2)),
                open(0),
                watch(0, "a").to("z").prev_kv().fragment(),
                take(0, 1),
                txn(ops![put("a", vec![3u8; 700_000]), put("b", vec![4u8; 700_000])]),
                take(0, 2),
            ],
        ),
        case(
            "a large transaction with prev_kv comes whole without fragment",
            steps![
                put("a", value(1)),
                put("b", value(2)),
                open(0),
                watch(0, "a").to("z").prev_kv(),
                take(0, 1),
                txn(ops![put("a", vec![3u8; 700_000]), put("b", vec![4u8; 700_000])]),
                take(0, 1),
            ],
        ),
        case(
            "keys of a megabyte work",
            steps![
                put(vec![b'k'; 1_000_000], "1"),
                get("k").prefix().keys_only(),
                open(0),
                watch(0, "k").prefix().from(2),
                take(0, 2),
                delete("k").prefix(),
                take(0, 1)
            ],
        ),
    ]
}

fn notifications() -> Vec<Case> {
    const OFTEN: &[&str] = &["--watch-progress-notify-interval=150ms"];
    vec![
        flags(
            "progress_notify sends progress by itself",
            OFTEN,
            steps![put("x", "1"), open(0), watch(0, "a").notify(), take(0, 3), Step::Drop(0)],
        ),
        flags(
            "without progress_notify there is none",
            OFTEN,
            steps![open(0), watch(0, "a").notify(), open(1), watch(1, "a"), take(1, 1), take(0, 4), Step::Drop(0), settle(1)],
        ),
        flags(
            "each watch that asked gets its own progress",
            OFTEN,
            steps![
                open(0),
                watch(0, "a").notify().id(5),
                watch(0, "b").notify().id(6),
                watch(0, "c").id(7),
                take(0, 5),
                Step::Drop(0)
            ],
        ),
        flags(
            "a future watch gets no progress by itself",
            OFTEN,
            steps![
                open(0),
                watch(0, "a").notify().from(100),
                open(1),
                watch(1, "a").notify(),
                take(0, 1),
                take(1, 4),
                Step::Drop(1),
                settle(0)
            ],
        ),
    ]
}
