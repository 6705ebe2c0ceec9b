//! How long a pair takes to answer again: two nodes, a witness and a client, each a network namespace, joined by a bridge in one of its own;
//! an open loop of writes to both nodes; one thing lost at a time, at a jittered moment; many times.
//!
//!     cargo bench --bench failover -- --runs 30 machine-lost
//!
//! Needs root and `ip`. Prints, for each event, the distribution of the time from the event to the first acknowledged write that was sent
//! after it, the longest gap between acknowledged writes, and what each takeover says of its own phases. Then what must not make anybody take
//! over, for `--minutes` each (needs `iptables`, and control groups, version 1). It touches nothing outside of its namespaces but one
//! control group, and removes them when it ends, however it ends.

mod disturb;
mod hosts;
mod load;
#[path = "../../tests/common/network.rs"]
mod network;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use rand::{RngExt, SeedableRng};

use hosts::Cluster;
use load::{Gap, Load};

/// What is to be lost, or to disturb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Event {
    /// All processes of the leader's machine, and its network.
    MachineLost,
    /// The leader's postmaster, with kill -9.
    PostgresKilled,
    /// The leader's Duet, with kill -9, started again after 100 ms as systemd does.
    DuetKilled,
    /// All of the leader's PostgreSQL, stopped.
    PostgresFrozen,
    /// The follower's machine.
    StandbyLost,
    /// The link between the nodes; both see the witness.
    Partition,
    /// The witness.
    WitnessLost,
    /// Nothing: the leader hands over.
    Switchover,
    /// Nothing: either node's Duet stands still for 300 ms, then goes on for up to two seconds, again and again.
    Pauses,
    /// Nothing: the leader's machine has half a core, and four other processes that want it.
    LeaderStarved,
    /// Nothing: the same of the follower's.
    FollowerStarved,
    /// Nothing but a twentieth of the packets between nodes and witness.
    PacketLoss,
}

impl Event {
    /// Nothing is lost.
    fn only_disturbs(self) -> bool {
        matches!(self, Self::Pauses | Self::LeaderStarved | Self::FollowerStarved | Self::PacketLoss)
    }
}

#[derive(Parser)]
struct Options {
    /// The events; all of them by default.
    events: Vec<Event>,
    /// How often each.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// How long each disturbance.
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// For the moments; printed.
    #[arg(long)]
    seed: Option<u64>,
    /// The program; default: the release build beside this one.
    #[arg(long)]
    duet: Option<PathBuf>,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one run showed.
struct Run {
    first_ack: Duration,
    gap: Gap,
    phases: Option<String>,
}

fn main() {
    let options = Options::parse();
    let duet = options.duet.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_duet")));
    let seed = options.seed.unwrap_or_else(rand::random);
    println!("seed {seed}, {} runs each, {}", options.runs, duet.display());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let all: Vec<Event> = <Event as clap::ValueEnum>::value_variants().to_vec();
    let events = if options.events.is_empty() { all } else { options.events.clone() };
    let mut cluster = Cluster::start(&duet);
    for event in events {
        if event.only_disturbs() {
            disturb::run(&mut cluster, event, Duration::from_secs_f64(options.minutes * 60.0), &mut rng);
            continue;
        }
        let mut runs = Vec::new();
        for _ in 0..options.runs {
            runs.push(run(&mut cluster, event, &mut rng));
        }
        report(event, &runs);
    }
}

fn run(cluster: &mut Cluster, event: Event, rng: &mut rand::rngs::SmallRng) -> Run {
    let leader = cluster.until_paired();
    let load = Load::start(cluster);
    // Anywhere within a lease's length.
    std::thread::sleep(Duration::from_millis(1500 + rng.random_range(0..800)));
    let began = Instant::now();
    match event {
        Event::MachineLost => cluster.lose(leader),
        Event::PostgresKilled => cluster.kill_postgres(leader),
        Event::DuetKilled => cluster.kill_duet(leader),
        Event::PostgresFrozen => cluster.freeze_postgres(leader),
        Event::StandbyLost => cluster.lose(1 - leader),
        Event::Partition => cluster.cut(),
        Event::WitnessLost => cluster.lose_witness(),
        Event::Switchover => cluster.switch_over(leader),
        Event::Pauses | Event::LeaderStarved | Event::FollowerStarved | Event::PacketLoss => unreachable!("these lose nothing"),
    }
    let effective = Instant::now();
    load.run_until(effective + Duration::from_secs(4));
    let (first_ack, gap) = load.finish(began, effective);
    let phases = cluster.last_takeover(began);
    cluster.heal();
    println!("{event:?}: first acknowledged after {first_ack:?}, {gap}; {}", phases.as_deref().unwrap_or("no takeover"));
    Run { first_ack, gap, phases }
}

fn report(event: Event, runs: &[Run]) {
    let sorted = |of: &dyn Fn(&Run) -> Duration| {
        let mut values: Vec<Duration> = runs.iter().map(of).collect();
        values.sort();
        values
    };
    let first = sorted(&|run| run.first_ack);
    let gaps = sorted(&|run| run.gap.longest);
    let failed: usize = runs.iter().map(|run| run.gap.failed).sum();
    let takeovers = runs.iter().filter(|run| run.phases.is_some()).count();
    let ms = |values: &[Duration], part: f64| values[((values.len() - 1) as f64 * part).round() as usize].as_millis();
    println!(
        "| {event:?} | {} | {} / {} / {} | {} / {} / {} | {failed} | {takeovers} |",
        runs.len(),
        ms(&first, 0.0),
        ms(&first, 0.5),
        ms(&first, 1.0),
        ms(&gaps, 0.0),
        ms(&gaps, 0.5),
        ms(&gaps, 1.0),
    );
}
