//! `duet maintenance`: a node is taken out, so that its machine can be stopped and changed, and the other one goes on alone, knowing
//! why: nothing waits for the node when it goes, and no alert fires. It ends by itself, so that nobody forgets it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::nodes::{Nodes, Statuses};
use super::{Asked, OUTCOME_DEADLINE};
use crate::cli::Failure;
use crate::config::units::{format_duration, parse_duration};
use crate::proto::duetpb::act_request::Action;
use crate::supervisor::pair::admin::PAUSE_MAX_SECONDS;

pub(super) async fn run(nodes: &Nodes, asked: &Asked) -> Result<(), Failure> {
    let out = match asked.operand.as_deref() {
        None => 0,
        Some(letter) => nodes
            .names
            .iter()
            .position(|name| letter.eq_ignore_ascii_case(&name.to_string()))
            .ok_or_else(|| Failure::usage(format!("\"{letter}\" is no node; write a or b")))?,
    };
    if asked.is("end") {
        return end(nodes, asked.operand.is_some().then_some(out)).await;
    }
    let lasts = parse_duration(asked.value("for").unwrap_or("4h")).map_err(Failure::usage)?;
    if !(1..=PAUSE_MAX_SECONDS).contains(&lasts.as_secs()) {
        return Err(Failure::usage("--for: a maintenance lasts from a second to a day"));
    }
    begin(nodes, out, lasts).await
}

async fn begin(nodes: &Nodes, out: usize, lasts: Duration) -> Result<(), Failure> {
    let (name, other) = (nodes.names[out], nodes.names[1 - out]);
    println!("node {name} is taken out for {} at most; node {other} goes on alone", format_duration(lasts));
    if nodes.find("leader").await? == out {
        nodes.hand_over(out).await?;
        // A rewind that is cut short would cost a whole copy.
        let (_, in_step) = nodes.until_in_step(super::FOLLOWS_DEADLINE, |doing| println!("{doing}")).await;
        if !in_step {
            println!("node {name} doesn't follow yet; going on");
        }
    }
    let asked = nodes.act(1 - out, Action::PeerAway, lasts.as_secs()).await;
    println!("node {other}: {}", asked.map_err(|why| Failure::serving(format!("node {other} refuses: {why}")))?);
    let began = Instant::now();
    while began.elapsed() < OUTCOME_DEADLINE {
        if nodes.status_of(1 - out).await.is_ok_and(|status| status.open && status.mode.as_deref() == Some("SOLO")) {
            print!("{}", nodes.table(&nodes.statuses().await));
            println!(
                "\nThe machine of node {name} can be stopped now. When it is back: duet maintenance --end. (A restart of node {other}'s \
                 Duet ends it, too.)"
            );
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    // It isn't safe to stop the machine: nothing is to happen later that nobody waits for any more.
    let undone = nodes.act(1 - out, Action::PeerBack, 0).await.is_ok();
    let undone = if undone { "; the maintenance was called off" } else { "" };
    let text = format!("node {other} could not get the right to go on alone{undone}; duet explain tells why");
    Err(Failure::serving(text))
}

async fn end(nodes: &Nodes, out: Option<usize>) -> Result<(), Failure> {
    let statuses = nodes.statuses().await;
    let Some(alone) = alone(&statuses) else {
        return Err(Failure::serving("no node is in maintenance"));
    };
    if out == Some(alone) {
        let name = nodes.names[alone];
        return Err(Failure::usage(format!("node {name} leads; it is the other one that is in maintenance")));
    }
    let other = nodes.names[alone];
    println!("node {} comes back", nodes.names[1 - alone]);
    let said = nodes.act(alone, Action::PeerBack, 0).await;
    println!("node {other}: {}", said.map_err(|why| Failure::serving(format!("node {other} refuses: {why}")))?);
    nodes.wait_for_follower().await
}

/// Which node goes on alone because the other one is in maintenance.
fn alone(statuses: &Statuses) -> Option<usize> {
    statuses.iter().position(|status| status.as_ref().is_ok_and(|status| status.peer_away_for_ms.is_some()))
}
