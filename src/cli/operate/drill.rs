//! `duet drill`: something is really lost, or handed over, while a client writes; the report says how long nothing was acknowledged,
//! whether everything that was is there, and how each part of it took.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::nodes::{Nodes, Statuses};
use super::probe::{Probe, Seen};
use super::{Asked, show, to_json};
use crate::cli::Failure;
use crate::config::PairConfig;
use crate::config::units::parse_duration;
use crate::proto::duetpb::act_request::Action;
use crate::supervisor::pair::clock;
use crate::supervisor::pair::drill::AWAY_MAX;
use crate::supervisor::pair::history::{Entry, Takeover};
use crate::supervisor::pair::status::{NodeStatus, WitnessStatus};

/// Writes before and after, to have something to compare with.
const WRITES: usize = 50;
/// How long the first outcome may take: somebody answers again.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(60);
/// How long a node that is back may take to follow; a copy may be needed.
const BACK_DEADLINE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switchover,
    KillLeader,
    LoseFollower,
}

/// What came of a drill.
#[derive(Serialize)]
struct Report {
    drill: String,
    passed: bool,
    /// What it didn't pass for.
    failures: Vec<String>,
    acknowledged: usize,
    unknown: usize,
    lost: usize,
    /// The longest time without an acknowledgement.
    gap_ms: u64,
    /// What a write takes otherwise.
    typical_ms: f64,
    /// From the beginning until both were a pair again.
    paired_after_ms: Option<u64>,
    takeover: Option<Takeover>,
    /// What both nodes noted meanwhile.
    history: Vec<Entry>,
}

pub(super) async fn run(nodes: &Nodes, pair: &PairConfig, asked: &Asked) -> Result<(), Failure> {
    let (kind, name) = match asked.operand.as_deref() {
        Some("switchover") => (Kind::Switchover, "switchover"),
        Some("kill-leader") => (Kind::KillLeader, "kill-leader"),
        Some("lose-follower") => (Kind::LoseFollower, "lose-follower"),
        _ => return Err(Failure::usage("which one? write duet drill switchover, kill-leader or lose-follower")),
    };
    let away = parse_duration(asked.value("away").unwrap_or("5s")).map_err(Failure::usage)?;
    if away > AWAY_MAX {
        return Err(Failure::usage(format!("--away: at most {} s", AWAY_MAX.as_secs())));
    }
    let statuses = nodes.statuses().await;
    let leader = fit(&statuses).map_err(|why| Failure::serving(format!("no drill: {why}\n{}", nodes.table(&statuses))))?;
    let plan = plan(kind, nodes, leader, away);
    if !asked.is("yes") {
        return Err(Failure::usage(format!("{plan}\nTo do it: duet drill {name} --yes --config-file …")));
    }
    let quiet = asked.is("json");
    if !quiet {
        println!("pair \"{}\": {plan}", pair.cluster);
    }
    let report = drill(nodes, kind, name, leader, away, quiet).await?;
    if quiet {
        println!("{}", to_json(&report)?);
    } else {
        println!("\n{}", text(&report));
        print!("{}", nodes.table(&nodes.statuses().await));
    }
    if report.passed {
        Ok(())
    } else {
        Err(Failure::serving(format!("the drill was not passed: {}", report.failures.join("; "))))
    }
}

/// Which node leads, if the pair is as well as it can be.
fn fit(statuses: &Statuses) -> Result<usize, String> {
    let leads = |status: &NodeStatus| status.open && status.peer_ready;
    let leader = statuses.iter().position(|status| status.as_ref().is_ok_and(leads));
    let [Ok(one), Ok(other)] = statuses else { return Err("both nodes must answer".to_owned()) };
    let leader = leader.ok_or("no node leads with the other one ready to take over")?;
    let both = [one, other];
    let survives = &both[leader].survives;
    match () {
        () if both.iter().any(|status| status.mode.as_deref() != Some("PAIR")) => Err("the mode must be PAIR".to_owned()),
        () if both.iter().any(|status| !matches!(status.witness, WitnessStatus::Answers | WitnessStatus::Fence)) => {
            Err("the witness must answer both nodes".to_owned())
        }
        () if both.iter().any(|status| status.paused_for_ms.is_some()) => Err("failover is paused (duet resume)".to_owned()),
        () if !(survives.a && survives.b && survives.witness) => Err(survives.sentence.clone()),
        () => Ok(leader),
    }
}

fn plan(kind: Kind, nodes: &Nodes, leader: usize, away: Duration) -> String {
    let (leads, follows) = (nodes.names[leader], nodes.names[1 - leader]);
    let done = match kind {
        Kind::Switchover => format!("node {leads} hands over to node {follows}"),
        Kind::KillLeader => {
            format!("all processes of node {leads}, which leads, are killed, and stay away for {} s", away.as_secs())
        }
        Kind::LoseFollower => {
            format!("all processes of node {follows}, which follows, are killed, and stay away for {} s", away.as_secs())
        }
    };
    format!("{done}, while a client writes below /duet/drill/ (which is cleared afterwards)")
}

async fn drill(nodes: &Nodes, kind: Kind, name: &str, leader: usize, away: Duration, quiet: bool) -> Result<Report, Failure> {
    let say = |text: String| {
        if !quiet {
            println!("{text}");
        }
    };
    let (before, _) = nodes.history().await;
    let run = clock::unix_ms().unwrap_or(0);
    let mut probe = Probe::begin(nodes.channels.clone(), leader, run).await?;
    if !probe.acknowledged(WRITES, OUTCOME_DEADLINE).await {
        let _ = probe.end(leader).await;
        return Err(Failure::serving("writes aren't acknowledged; nothing was done"));
    }
    let mut failures = Vec::new();
    let began = Instant::now();
    let (at, action, seconds) = match kind {
        Kind::Switchover => (leader, Action::Switchover, 0),
        Kind::KillLeader => (leader, Action::Die, away.as_secs()),
        Kind::LoseFollower => (1 - leader, Action::Die, away.as_secs()),
    };
    match nodes.act(at, action, seconds).await {
        Ok(text) => say(format!("node {}: {text}", nodes.names[at])),
        Err(why) => {
            let _ = probe.end(leader).await;
            return Err(Failure::serving(format!("node {} refuses: {why}; nothing was done", nodes.names[at])));
        }
    }
    let successor = if kind == Kind::LoseFollower { leader } else { 1 - leader };
    let goes_on = |status: &NodeStatus| status.open && (kind != Kind::LoseFollower || status.mode.as_deref() == Some("SOLO"));
    let mut moved = false;
    while !moved && began.elapsed() < OUTCOME_DEADLINE {
        moved = nodes.status_of(successor).await.is_ok_and(|status| goes_on(&status));
        sleep(LOOK).await;
    }
    let does = if kind == Kind::LoseFollower { "goes on alone" } else { "leads" };
    if moved {
        say(format!("node {} {does}", nodes.names[successor]));
    } else {
        failures.push(format!("node {} never {does}", nodes.names[successor]));
    }
    let (statuses, in_step) = nodes.until_in_step(BACK_DEADLINE + away, &say).await;
    let paired = in_step && statuses.iter().flatten().all(|status| status.mode.as_deref() == Some("PAIR"));
    let paired_after_ms = paired.then(|| millis(began.elapsed()));
    if !paired {
        failures.push("both nodes are no pair again yet: what looks after the killed one must start it".to_owned());
    }
    if !probe.acknowledged(WRITES, OUTCOME_DEADLINE).await {
        failures.push("writes aren't acknowledged any more".to_owned());
    }
    let Seen { acknowledged, unknown, lost, gap, typical } = probe.end(successor).await?;
    if !lost.is_empty() {
        failures.push(format!("{} acknowledged writes are gone", lost.len()));
    }
    let (mut history, _) = nodes.history().await;
    history.retain(|entry| !before.contains(entry));
    Ok(Report {
        drill: name.to_owned(),
        passed: failures.is_empty(),
        failures,
        acknowledged,
        unknown,
        lost: lost.len(),
        gap_ms: millis(gap),
        typical_ms: typical.as_secs_f64() * 1000.0,
        paired_after_ms,
        takeover: history.iter().rev().find_map(|entry| entry.takeover),
        history,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn text(report: &Report) -> String {
    let mut out = format!("drill {}: {}\n", report.drill, if report.passed { "passed" } else { "NOT PASSED" });
    for failure in &report.failures {
        let _ = writeln!(out, "  {failure}"); // a String can't fail
    }
    let _ =
        writeln!(out, "  without an acknowledgement  {} ms at most (a write takes {:.1} ms)", report.gap_ms, report.typical_ms);
    let _ = writeln!(
        out,
        "  writes                      {} acknowledged, {} of them lost; {} of unknown outcome",
        report.acknowledged, report.lost, report.unknown
    );
    if let Some(takeover) = report.takeover {
        let phases: Vec<String> = takeover.phases().iter().map(|(phase, ms)| format!("{phase} {ms}")).collect();
        let _ = writeln!(out, "  takeover, by phase in ms    {}", phases.join(", "));
    }
    if let Some(after) = report.paired_after_ms {
        let _ = writeln!(out, "  a pair again                after {:.1} s", after as f64 / 1000.0);
    }
    for entry in &report.history {
        let _ = writeln!(out, "  {}", show::entry(entry));
    }
    out
}
