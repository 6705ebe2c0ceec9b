//! `duet check`: what both nodes find when they look at themselves and at each other, and what only shows side by side. A node that
//! doesn't run is looked at from outside, as far as this machine is its machine: so it works before the first start, too.

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use super::nodes::{Nodes, in_words};
use super::{show, to_json};
use crate::check::node::Looked;
use crate::check::{Finding, Level, Subject, ports, reach_peer, reach_witness};
use crate::cli::Failure;
use crate::net::tls;
use crate::proto::duetpb::CheckRequest;
use crate::proto::duetpb::check_client::CheckClient;
use crate::supervisor::pair::clock;
use crate::supervisor::pair::status::NodeStatus;

/// A node measures its disk and waits for who doesn't answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// What ordinary time services keep is far less.
const SKEW_MS_MAX: u64 = 2000;
const PAIR: &str = "pair";
/// As monitoring systems know them: 0 all is well, 1 warnings, 2 something failed.
const WARNED: u8 = 1;
const FAILED: u8 = 2;

/// A finding, and what it is about.
#[derive(Serialize)]
struct Line {
    about: String,
    #[serde(flatten)]
    finding: Finding,
}

/// A node's answer, and how far its time of day is ahead of this machine's, in milliseconds.
struct Answer {
    looked: Looked,
    ahead_ms: i64,
}

pub(super) async fn run(subject: &Subject, json: bool) -> Result<(), Failure> {
    let mut lines = Vec::new();
    let mut add = |about: &str, found: Vec<Finding>| {
        lines.extend(found.into_iter().map(|finding| Line { about: about.to_owned(), finding }));
    };
    // Certificates that can't be used are found from outside.
    match Nodes::new(&subject.pair) {
        Err(_) => add(&format!("node {}", letter(subject)), subject.outside().await),
        Ok(nodes) => {
            let [here, there] = tokio::join!(ask(&nodes, 0), ask(&nodes, 1)).into();
            let (runs, about) = (here.is_ok(), nodes.names.map(|name| format!("node {name}")));
            match &here {
                Ok(answer) => add(&about[0], answer.looked.findings.clone()),
                Err(why) => add(&about[0], from_outside(subject, why).await),
            }
            match &there {
                Ok(answer) => add(&about[1], answer.looked.findings.clone()),
                Err(why) => {
                    let finding = Finding::fail("answers", why, format!("start duet node on {}", subject.pair.peer.host));
                    add(&about[1], vec![if runs { finding } else { at_most_warn(finding) }]);
                }
            }
            let answers: Vec<&Answer> = [&here, &there].into_iter().flatten().collect();
            if let [one, other] = answers[..] {
                add(PAIR, side_by_side(one, other));
            }
            add(PAIR, together(answers.iter().map(|answer| &answer.looked.status)));
        }
    }
    if json {
        println!("{}", to_json(&lines)?);
    } else {
        print!("{}", text(&lines));
    }
    match lines.iter().map(|line| line.finding.level).max() {
        None | Some(Level::Ok) => Ok(()),
        Some(Level::Warn) => Err(Failure::silent(WARNED)),
        Some(Level::Fail) => Err(Failure::silent(FAILED)),
    }
}

fn letter(subject: &Subject) -> char {
    crate::supervisor::pair::record::letter(subject.pair.node)
}

async fn ask(nodes: &Nodes, at: usize) -> Result<Answer, String> {
    let mut client = CheckClient::new(nodes.channels[at].clone());
    let answer = timeout(DEADLINE, client.check(CheckRequest {})).await.map_err(|_| "no answer".to_owned())?;
    let looked: Looked = serde_json::from_str(&answer.map_err(in_words)?.into_inner().json).map_err(|error| error.to_string())?;
    let now = clock::unix_ms().unwrap_or(0);
    let ahead_ms = i64::try_from(i128::from(looked.clock_ms) - i128::from(now)).unwrap_or(i64::MAX);
    Ok(Answer { looked, ahead_ms })
}

/// This node, which doesn't answer.
async fn from_outside(subject: &Subject, why: &str) -> Vec<Finding> {
    let mut found = vec![Finding::warn(
        "answers",
        format!("duet node doesn't answer here ({why}): looked at from outside"),
        "start it once nothing below fails",
    )];
    found.extend(subject.outside().await);
    found.extend(ports(subject));
    if let Ok(tls) = tls::client_config(&subject.pair.tls.config()) {
        let (peer, witness) = tokio::join!(reach_peer(&subject.pair, &tls), reach_witness(&subject.pair, &tls));
        // Somebody has to be started first.
        found.extend(peer.into_iter().chain(witness).map(at_most_warn));
    }
    found
}

fn at_most_warn(finding: Finding) -> Finding {
    Finding { level: finding.level.min(Level::Warn), ..finding }
}

/// What shows only when both are looked at.
fn side_by_side(one: &Answer, other: &Answer) -> Vec<Finding> {
    let status = |answer: &'_ Answer| (answer.looked.status.version.clone(), answer.looked.status.details.version.clone());
    let ((duet, postgres), (other_duet, other_postgres)) = (status(one), status(other));
    let skew = one.ahead_ms.abs_diff(other.ahead_ms);
    vec![
        same("Duet", &duet, &other_duet, "install the same on both: duet maintenance takes one out at a time"),
        same("PostgreSQL", &postgres, &other_postgres, "install the same minor on both; a major only by a new store"),
        if skew > SKEW_MS_MAX {
            let text = format!("the nodes' times of day are {} ms apart", skew);
            Finding::warn(
                "clocks",
                text,
                "run a time service on both: no failover rests on it, but certificates and the history do",
            )
        } else {
            Finding::ok("clocks", format!("the nodes' times of day are within {SKEW_MS_MAX} ms of each other"))
        },
    ]
}

fn same(what: &str, one: &str, other: &str, fix: &str) -> Finding {
    const CHECK: &str = "versions";
    let major = |version: &str| version.split('.').next().map(str::to_owned);
    match one == other {
        true => Finding::ok(CHECK, format!("both nodes have {what} {one}")),
        // PostgreSQL replicates only within a major version.
        false if what == "PostgreSQL" && major(one) != major(other) => {
            Finding::fail(CHECK, format!("{what} is {one} on one node and {other} on the other"), fix)
        }
        false => Finding::warn(CHECK, format!("{what} is {one} on one node and {other} on the other"), fix),
    }
}

/// What the pair is at this moment; nothing, when no node runs.
fn together<'a>(statuses: impl Iterator<Item = &'a NodeStatus>) -> Vec<Finding> {
    const CHECK: &str = "survives";
    let statuses: Vec<&NodeStatus> = statuses.collect();
    let Some(best) = statuses.iter().max_by_key(|status| (status.open, status.epoch)) else { return Vec::new() };
    let sentence = &best.survives.sentence;
    if !best.open {
        return vec![Finding::fail(
            CHECK,
            format!("nobody answers requests. {sentence}"),
            "duet explain tells what is waited for",
        )];
    }
    let survives = &best.survives;
    let mut found = vec![if survives.a && survives.b && survives.witness {
        Finding::ok(CHECK, sentence)
    } else if best.peer_away_for_ms.is_some() {
        Finding::warn(CHECK, sentence, "duet maintenance --end, when the machine is back")
    } else {
        Finding::warn(CHECK, sentence, "see what fails above; duet explain tells what is waited for")
    }];
    if let Some(paused) = statuses.iter().filter_map(|status| status.paused_for_ms).max() {
        found.push(Finding::warn("paused", format!("failover is paused for another {}", show::duration(paused)), "duet resume"));
    }
    found
}

fn text(lines: &[Line]) -> String {
    let (mut out, mut about) = (String::new(), "");
    for line in lines {
        if line.about != about {
            about = &line.about;
            out.push_str(&format!("{about}\n"));
        }
        let Finding { check, level, text, fix } = &line.finding;
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        out.push_str(&format!("  {level:5} {check:12} {text}\n"));
        if let Some(fix) = fix {
            out.push_str(&format!("{:20}-> {fix}\n", ""));
        }
    }
    let count = |level| lines.iter().filter(|line| line.finding.level == level).count();
    let (ok, warned, failed) = (count(Level::Ok), count(Level::Warn), count(Level::Fail));
    out.push_str(&format!("\n{} checks: {ok} ok, {warned} to be seen to, {failed} failed\n", lines.len()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minors_may_differ_for_a_while_and_majors_of_postgresql_may_not() {
        let level = |what, one, other| same(what, one, other, "").level;
        assert_eq!(level("PostgreSQL", "17.5", "17.5"), Level::Ok);
        assert_eq!(level("PostgreSQL", "17.5", "17.6"), Level::Warn);
        assert_eq!(level("PostgreSQL", "16.9", "17.5"), Level::Fail);
        assert_eq!(level("Duet", "0.1.0", "1.0.0"), Level::Warn);
    }

    #[test]
    fn each_finding_stands_below_what_it_is_about_with_the_way_out() {
        let line = |about: &str, finding| Line { about: about.to_owned(), finding };
        let lines = [
            line("node A", Finding::ok("disk", "good")),
            line("node A", Finding::fail("key", "bad", "do this")),
            line("pair", Finding::warn("clocks", "so so", "do that")),
        ];
        let expected = "node A\n  ok    disk         good\n  FAIL  key          bad\n                    -> do this\npair\n  warn  clocks       so \
                        so\n                    -> do that\n\n3 checks: 1 ok, 1 to be seen to, 1 failed\n";
        assert_eq!(text(&lines), expected);
        assert_eq!(
            serde_json::to_string(&lines[1]).unwrap(),
            r#"{"about":"node A","check":"key","level":"fail","text":"bad","fix":"do this"}"#
        );
    }
}
