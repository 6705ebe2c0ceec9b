//! `duet pair kill`: pulls the plug of one node of the pair that `duet pair` runs, and tells how the other one goes on.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::operate::Nodes;
use super::{Failure, load};
use crate::supervisor::pair::drill::descendants;
use crate::supervisor::pair::status::NodeStatus;

/// Between two looks at the survivor.
const LOOK: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// Kills `which` (`leader`, `follower`, `a` or `b`) of the pair in `dir`.
///
/// # Errors
/// Exit code 64 when there is no pair in `dir`, 1 when it doesn't run, or is in no state to lose a node.
pub(super) fn run(dir: &Path, which: &str) -> Result<(), Failure> {
    let config = |node: &str| dir.join(node).join("duet.toml");
    if !config("a").exists() {
        return Err(Failure::usage(format!("{}: there is no pair; duet pair makes and runs one", dir.display())));
    }
    let flags = [format!("--config-file={}", config("a").display())];
    let Some(loaded) = load::load(&flags, "duet pair kill")? else { return Ok(()) };
    let pair = loaded.config.pair.ok_or_else(|| Failure::usage(format!("{}: not a pair's configuration", dir.display())))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::serving(format!("can't start: {error}")))?;
    runtime.block_on(async { pull(dir, which, &Nodes::new(&pair)?).await })
}

async fn pull(dir: &Path, which: &str, nodes: &Nodes) -> Result<(), Failure> {
    let statuses = nodes.statuses().await;
    let is = |status: &Result<NodeStatus, String>| match which {
        "leader" | "follower" => status.as_ref().is_ok_and(|status| status.role == which),
        name => status.as_ref().is_ok_and(|status| status.node.eq_ignore_ascii_case(&name.chars().next().unwrap_or('?'))),
    };
    let victim = statuses.iter().position(is).ok_or_else(|| {
        Failure::serving(format!("there is no node {which} to kill; is duet pair running?\n{}", nodes.table(&statuses)))
    })?;
    let (victim_name, survivor_name) = (nodes.names[victim], nodes.names[1 - victim]);
    let led = statuses[victim].as_ref().is_ok_and(|status| status.role == "leader");
    let survives = statuses.iter().flatten().find(|status| status.open).is_some_and(|status| match victim_name {
        'A' => status.survives.a,
        _ => status.survives.b,
    });
    if !survives {
        return Err(Failure::serving(format!(
            "at this moment the pair can't lose node {victim_name}; wait until it can:\n{}",
            nodes.table(&statuses)
        )));
    }
    let file = dir.join(victim_name.to_ascii_lowercase().to_string()).join("duet.toml");
    let pids = family(&file);
    if pids.is_empty() {
        return Err(Failure::serving(format!("no process runs with {}", file.display())));
    }
    // Stopped first, so that none of them does anything about the end of another.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &pids {
            // One that has ended meanwhile is what was wanted.
            let _ = kill(*pid, signal);
        }
    }
    let began = Instant::now();
    println!("node {victim_name}: killed {} processes, its PostgreSQL among them", pids.len());
    let goes_on = |status: &NodeStatus| status.open && (led || status.mode.as_deref() != Some("PAIR"));
    while !nodes.status_of(1 - victim).await.is_ok_and(|status| goes_on(&status)) {
        if began.elapsed() > PATIENCE {
            return Err(Failure::serving(format!("node {survivor_name} doesn't go on; duet explain tells why")));
        }
        sleep(LOOK).await;
    }
    let took = began.elapsed().as_millis();
    println!("node {survivor_name}: {} after {took} ms\n", if led { "leads" } else { "goes on alone" });
    print!("{}", nodes.table(&nodes.statuses().await));
    Ok(())
}

/// The process that runs with this configuration, and all that it has started, directly or not.
fn family(config: &Path) -> Vec<Pid> {
    let config = config.as_os_str().as_encoded_bytes();
    let runs_it = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"node"[..]) && words.contains(&config)
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // A guardian and what it guards have the same words.
    let mut found: Vec<Pid> = numbers.filter(runs_it).map(Pid::from_raw).collect();
    found.extend(found.clone().into_iter().flat_map(descendants));
    found.sort();
    found.dedup();
    found
}
