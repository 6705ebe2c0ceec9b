//! The maintenance service.

use crate::script::*;
use crate::{ops, steps};
use duet::proto::etcdserverpb::alarm_request::AlarmAction::{Activate, Deactivate, Get as Show};
use duet::proto::etcdserverpb::*;

fn call(request: Request) -> Step {
    Step::Call(request)
}

fn move_leader(target_id: u64) -> Step {
    call(Request::MoveLeader(MoveLeaderRequest { target_id }))
}

fn downgrade(action: i32, version: &str) -> Step {
    call(Request::Downgrade(DowngradeRequest { action, version: version.to_owned() }))
}

fn no_space(name: &str, steps: Vec<Step>) -> Case {
    let mut all = steps![grant(7, 500), put("a", "1").lease(7), put("b", "1"), alarm(Activate, 1, AlarmType::Nospace)];
    all.extend(steps);
    case(name, all)
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("Status", steps![status(), put("a", "1"), status()]),
        case("Defragment has no header", steps![put("a", "1"), call(Request::Defragment(DefragmentRequest {})), get("a")]),
        case("Hash has a header", steps![put("a", "1"), call(Request::Hash(HashRequest {}))]),
        case(
            "HashKV's header, revision and errors",
            steps![
                put("a", "1"),
                put("a", "2"),
                hash_kv(0),
                hash_kv(2),
                hash_kv(100),
                hash_kv(i64::MAX),
                compact(3),
                hash_kv(2),
                hash_kv(3)
            ],
        ),
        case("MoveLeader to the leader itself does nothing", steps![move_leader(1)]),
        case("MoveLeader to an unknown member is refused", steps![move_leader(99), move_leader(0)]),
        case(
            "Downgrade refuses a bad version",
            steps![downgrade(0, ""), downgrade(0, "x"), downgrade(1, "3"), downgrade(1, "not a version")],
        ),
        case(
            "Downgrade refuses a version that is too far",
            steps![downgrade(0, "3.2"), downgrade(1, "2.3"), downgrade(0, "4.0")],
        ),
        case("an unknown Downgrade action is refused", steps![downgrade(9, "3.6")]),
    ];
    cases.extend(alarms());
    cases
}

fn alarms() -> Vec<Case> {
    vec![
        case("no alarms at first", steps![alarm(Show, 0, AlarmType::None), alarm(Show, 0, AlarmType::Nospace)]),
        case(
            "an alarm is shown until it is disarmed",
            steps![
                alarm(Activate, 1, AlarmType::Nospace),
                alarm(Show, 0, AlarmType::None),
                alarm(Show, 0, AlarmType::Nospace),
                alarm(Show, 0, AlarmType::Corrupt),
                status(),
                alarm(Deactivate, 1, AlarmType::Nospace),
                alarm(Show, 0, AlarmType::None),
                status(),
            ],
        ),
        case(
            "an alarm activated twice",
            steps![
                alarm(Activate, 1, AlarmType::Nospace),
                alarm(Activate, 1, AlarmType::Nospace),
                alarm(Show, 0, AlarmType::None),
                alarm(Deactivate, 1, AlarmType::Nospace),
                alarm(Deactivate, 1, AlarmType::Nospace)
            ],
        ),
        case(
            "activating and deactivating no alarm",
            steps![alarm(Activate, 1, AlarmType::None), alarm(Deactivate, 1, AlarmType::None), alarm(Show, 1, AlarmType::None)],
        ),
        case(
            "the alarm of another member",
            steps![
                alarm(Activate, 77, AlarmType::Nospace),
                alarm(Show, 0, AlarmType::None),
                put("a", "1"),
                alarm(Deactivate, 1, AlarmType::Nospace),
                put("a", "1"),
                alarm(Deactivate, 77, AlarmType::Nospace),
                put("a", "1")
            ],
        ),
        case(
            "an alarm of member 0",
            steps![
                alarm(Activate, 0, AlarmType::Nospace),
                alarm(Show, 0, AlarmType::None),
                put("a", "1"),
                alarm(Deactivate, 0, AlarmType::Nospace),
                put("a", "1")
            ],
        ),
        no_space("NOSPACE blocks puts", steps![put("a", "2"), put("c", ""), get_all()]),
        no_space(
            "NOSPACE blocks transactions that put, in either branch",
            steps![
                txn(ops![put("c", "")]),
                when([]).or_else(ops![put("c", "")]),
                txn(ops![get("a")]),
                txn(ops![delete("b")]),
                txn(ops![txn(ops![put("c", "")])]),
                txn(ops![txn(ops![delete("a")])]),
                get_all(),
            ],
        ),
        no_space("NOSPACE blocks grants", steps![grant(8, 100), grant(0, 100), leases()]),
        no_space("NOSPACE lets deletes and compactions pass", steps![delete("b"), compact(3), get_all()]),
        no_space(
            "NOSPACE lets revocations and keep-alives pass",
            steps![keep_alive(&[7]), time_to_live(7, true), revoke(7), get_all()],
        ),
        no_space(
            "NOSPACE and the order of checks",
            steps![
                put("", "1"),
                put("a", "1").ignore_value(),
                put("a", "1").lease(99),
                put("x", "").ignore_value(),
                put("a", vec![0u8; 1_600_000]),
                txn(ops![put("a", ""), put("a", "")]),
                txn(ops![put("a", "").lease(99)]),
                grant(7, 100),
                grant(9, i64::MAX)
            ],
        ),
        no_space(
            "NOSPACE is over when it is disarmed",
            steps![put("a", "2"), alarm(Deactivate, 1, AlarmType::Nospace), put("a", "2"), grant(8, 100)],
        ),
        no_space(
            "NOSPACE lets watches run",
            steps![open(0), watch(0, "b"), take(0, 1), delete("b"), take(0, 1), alarm(Deactivate, 1, AlarmType::Nospace)],
        ),
        fresh(
            "NOSPACE survives a restart",
            steps![
                put("a", "1"),
                alarm(Activate, 1, AlarmType::Nospace),
                Step::Restart,
                alarm(Show, 0, AlarmType::None),
                put("a", "2"),
                alarm(Deactivate, 1, AlarmType::Nospace),
                put("a", "2"),
                get("a")
            ],
        ),
    ]
}
