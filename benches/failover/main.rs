//! How long a pair takes to answer again: two nodes, a witness and a client, each a network namespace, joined by a bridge in one of its own;
//! an open loop of writes to both nodes; one thing lost at a time, at a jittered moment; many times.
//!
//!     cargo bench --bench failover -- --runs 30 machine-lost
//!
//! With `--etcd PROGRAM`, three members of etcd lose their leader's machine in turn with the pair. Needs root and `ip`. Prints, for each event, the distribution of the time from the event to the first acknowledged write that was sent
//! after it, the longest gap between acknowledged writes, and what each takeover says of its own phases. Then what must not make anybody take
//! over, for `--minutes` each. It fails when an acknowledged write is lost, a revision is used twice, a switchover fails a request, or somebody
//! takes over in a disturbance (needs `iptables`, and control groups, version 1). It touches nothing outside of its namespaces but one
//! control group, and removes them when it ends, however it ends.

mod disturb;
mod etcd;
mod hosts;
mod load;
#[path = "../../tests/common/network.rs"]
mod network;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use duet::supervisor::pair::history::Takeover;
use rand::{RngExt, SeedableRng};

use etcd::Etcd;
use hosts::Cluster;
use load::{Gap, Load};

/// What is to be lost, or to disturb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Event {
    /// All processes of the leader's machine, and its network.
    MachineLost,
    /// The leader's postmaster, with kill -9.
    PostgresKilled,
    /// The leader's Duet and its guardian, with kill -9, started again after 100 ms as systemd does.
    DuetKilled,
    /// The leader's Duet, stopped; its guardian is to find out.
    DuetFrozen,
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
    /// etcd's program: three members of it lose their leader's machine in turn with the pair.
    #[arg(long, env = "ETCD_BIN")]
    etcd: Option<PathBuf>,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one run showed.
struct Run {
    first_ack: Duration,
    gap: Gap,
    takeover: Option<Takeover>,
}

fn main() {
    let options = Options::parse();
    let duet = options.duet.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_duet")));
    let seed = options.seed.unwrap_or_else(rand::random);
    println!("seed {seed}, {} runs each, {}", options.runs, duet.display());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let all: Vec<Event> = <Event as clap::ValueEnum>::value_variants().to_vec();
    let events = if options.events.is_empty() { all } else { options.events.clone() };
    let mut etcd = options.etcd.as_deref().map(Etcd::start);
    let mut cluster = Cluster::start(&duet);
    println!(
        "| event | runs | first | gap | failed | takeovers | detect | decide | promote | open | serve |, ms: best / median / worst"
    );
    let mut wrong = false;
    for event in events {
        if event.only_disturbs() {
            let stayed = disturb::run(&mut cluster, event, Duration::from_secs_f64(options.minutes * 60.0), &mut rng);
            wrong |= !stayed;
            continue;
        }
        let mut beside = etcd.as_mut().filter(|_| event == Event::MachineLost);
        let (mut runs, mut of_etcd) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            runs.push(run(&mut cluster, event, &mut rng));
            if let Some(etcd) = &mut beside {
                of_etcd.push(run_etcd(etcd, &mut rng));
            }
        }
        report(&format!("{event:?}"), &runs);
        wrong |= event == Event::Switchover && runs.iter().any(|run| run.gap.failed > 0);
        if beside.is_some() {
            report("MachineLost, etcd", &of_etcd);
        }
    }
    drop((cluster, etcd));
    if wrong {
        eprintln!("a request failed in a switchover, or somebody took over without a reason: see above");
        std::process::exit(1);
    }
}

/// Lets the load run alone for a while that ends anywhere within a lease's length.
fn settle(load: &Load, rng: &mut rand::rngs::SmallRng) {
    load.run_until(Instant::now() + Duration::from_millis(1500 + rng.random_range(0..800)));
}

/// How long the load goes on after the event.
const AFTERWARDS: Duration = Duration::from_secs(4);

fn run_etcd(etcd: &mut Etcd, rng: &mut rand::rngs::SmallRng) -> Run {
    let leader = etcd.until_led();
    let load = etcd.load();
    settle(&load, rng);
    let began = Instant::now();
    let effective = etcd.lose(leader);
    load.run_until(Instant::now() + AFTERWARDS);
    let (first_ack, gap) = load.finish(began, effective);
    etcd.heal();
    println!("MachineLost, etcd: first acknowledged after {first_ack:?}, {gap}");
    Run { first_ack, gap, takeover: None }
}

fn run(cluster: &mut Cluster, event: Event, rng: &mut rand::rngs::SmallRng) -> Run {
    let leader = cluster.until_paired();
    let load = cluster.load();
    settle(&load, rng);
    let began = Instant::now();
    let mut effective = None;
    match event {
        Event::MachineLost => effective = Some(cluster.lose(leader)),
        Event::PostgresKilled => cluster.kill_postgres(leader),
        Event::DuetKilled => effective = Some(cluster.kill_duet(leader)),
        Event::DuetFrozen => cluster.freeze_duet(leader),
        Event::PostgresFrozen => cluster.freeze_postgres(leader),
        Event::StandbyLost => effective = Some(cluster.lose(1 - leader)),
        Event::Partition => cluster.cut(),
        Event::WitnessLost => cluster.lose_witness(),
        Event::Switchover => cluster.switch_over(leader),
        Event::Pauses | Event::LeaderStarved | Event::FollowerStarved | Event::PacketLoss => unreachable!("these lose nothing"),
    }
    // A switchover's command ends when both are a pair again.
    let effective = if event == Event::Switchover { began } else { effective.unwrap_or_else(Instant::now) };
    load.run_until(Instant::now() + AFTERWARDS);
    let (first_ack, gap) = load.finish(began, effective);
    let takeover = cluster.last_takeover(began);
    cluster.heal();
    let phases = takeover.map(|takeover| takeover.phases().map(|(phase, ms)| format!("{phase} {ms}")).join(", "));
    println!("{event:?}: first acknowledged after {first_ack:?}, {gap}; {}", phases.as_deref().unwrap_or("no takeover"));
    Run { first_ack, gap, takeover }
}

/// A line of a Markdown table: the event, its runs, then best / median / worst in milliseconds of the first acknowledgement and the longest
/// gap, how many writes failed, how many takeovers there were, and the same three of each of their phases.
fn report(event: &str, runs: &[Run]) {
    let failed: usize = runs.iter().map(|run| run.gap.failed).sum();
    let takeovers: Vec<Takeover> = runs.iter().filter_map(|run| run.takeover).collect();
    let first = spread(runs.iter().map(|run| run.first_ack.as_millis()));
    let gap = spread(runs.iter().map(|run| run.gap.longest.as_millis()));
    let phases = (0..Takeover::default().phases().len())
        .map(|at| spread(takeovers.iter().map(|takeover| u128::from(takeover.phases()[at].1))))
        .collect::<Vec<_>>()
        .join(" | ");
    println!("| {event} | {} | {first} | {gap} | {failed} | {} | {phases} |", runs.len(), takeovers.len());
}

fn spread(values: impl Iterator<Item = u128>) -> String {
    let mut values: Vec<u128> = values.collect();
    values.sort_unstable();
    let (Some(best), Some(worst)) = (values.first(), values.last()) else { return "–".into() };
    format!("{best} / {} / {worst}", values[(values.len() - 1) / 2])
}
