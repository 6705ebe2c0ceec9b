//! Proves that the suite can fail: a subject whose answers are falsified must be told from the reference, and a script that shows it must
//! be shrunk to what it takes.

use anyhow::Result;
use duet::proto::etcdserverpb::TxnRequest;

use crate::report::Report;
use crate::script::*;
use crate::server::Pair;
use crate::shrink::shrink;
use crate::{ops, steps};

/// Falsifies one answer of the subject; the step tells which.
pub type Fault = fn(&Step, &mut String);

/// What a fault is, and the fault.
const FAULTS: [(&str, Fault); 10] = [
    ("a header that is one revision ahead", |_, answer| *answer = answer.replace("revision: 6,", "revision: 7,")),
    ("a lost pair", |_, answer| *answer = answer.replacen("KeyValue { key: b\"b\"", "", 1)),
    ("a wrong count", |_, answer| *answer = answer.replace("count: 2", "count: 3")),
    ("a forgotten more", |_, answer| *answer = answer.replace("more: true", "more: false")),
    ("another error text", |_, answer| *answer = answer.replace("future revision", "revision of the future")),
    ("another error code", |_, answer| *answer = answer.replace("OutOfRange", "InvalidArgument")),
    ("a lost watch event", |step, answer| {
        if matches!(step, Step::Settle(_)) {
            *answer = answer.lines().skip(1).collect::<Vec<_>>().join("\n");
        }
    }),
    ("events in another order", |step, answer| {
        if matches!(step, Step::Settle(_)) {
            *answer = answer.lines().rev().collect::<Vec<_>>().join("\n");
        }
    }),
    ("a figure that is not counted", |step, answer| {
        if matches!(step, Step::Figures) {
            *answer = answer.replace("etcd_mvcc_put_total", "etcd_mvcc_puts_total");
        }
    }),
    ("no answer", |step, answer| {
        if matches!(step, Step::Take(..)) {
            answer.clear();
        }
    }),
];

fn sample() -> Case {
    case(
        "a bit of everything",
        steps![
            open(0),
            watch(0, "a").to("z"),
            take(0, 1),
            put("a", "1"),
            put("b", "2"),
            get("a").to("z").limit(1),
            get("a").to("z"),
            get("a").rev(100),
            put("a", "3"),
            delete("b"),
            put("c", "4"),
            get("a").to("z"),
            settle(0),
        ],
    )
}

/// Runs the checks.
pub async fn run(pair: &mut Pair, report: &mut Report) -> Result<()> {
    let unchanged = crate::compare(pair, &sample()).await?;
    report.outcome("self-check: unchanged answers are equal", unchanged);
    for (what, fault) in FAULTS {
        pair.fault = Some(fault);
        let difference = crate::compare(pair, &sample()).await?;
        pair.fault = None;
        let problem = difference.is_none().then(|| "  it isn't noticed".to_owned());
        report.outcome(&format!("self-check: {what} is noticed"), problem);
    }
    shrinking(pair, report).await
}

/// A fault that shows only where a nested transaction deleted something, in the middle of forty other steps.
async fn shrinking(pair: &mut Pair, report: &mut Report) -> Result<()> {
    let others = |from: u8| (from..from + 20).map(|i| Step::from(put([b'k', i], "x")));
    let mut script: Vec<Step> = others(0).collect();
    script.push(txn(ops![get("k"), put("x", "1"), txn(ops![put("y", "1"), delete([b'k', 3]), get("k")])]).into());
    script.extend(others(20));
    pair.fault = Some(|_, answer| {
        if answer.contains("TxnResponse") {
            *answer = answer.replace("deleted: 1", "deleted: 2");
        }
    });
    let shrunk = shrink(pair, case("a deletion among puts", script), "it is planted").await;
    pair.fault = None;
    let left = shrunk?.case.steps;
    let needed = [
        Step::from(put([b'k', 3], "x")),
        Step::Call(Request::Txn(TxnRequest { success: ops![txn(ops![delete([b'k', 3])])], ..Default::default() })),
    ];
    let problem = (left != needed).then(|| format!("  {left:?} is left"));
    report.outcome("self-check: a script is shrunk to the steps that it takes", problem);
    Ok(())
}
