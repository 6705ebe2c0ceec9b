//! What must not make anybody take over: short pauses of Duet, a node that hardly gets its processor, packets that get lost. For minutes.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::Event;
use crate::hosts::Cluster;
use crate::load::Load;

const PAUSE: Duration = Duration::from_millis(300);
const LOST_PACKETS: f64 = 0.05;
/// Processes without an end beside a node's own, all of which share half a core.
const BURNERS: usize = 4;
const CGROUP: &str = "/sys/fs/cgroup/cpu/duet-bench";
const PERIOD_US: u32 = 100_000;
const QUOTA_US: u32 = PERIOD_US / 2;

/// Disturbs a pair under load for so long; prints what clients noticed, and how often the lead and the mode changed. Whether the leader stayed.
pub fn run(cluster: &mut Cluster, disturbance: Event, long: Duration, rng: &mut SmallRng) -> bool {
    let leader = cluster.until_paired();
    let load = cluster.load();
    load.run_until(Instant::now() + Duration::from_secs(2));
    let before = cluster.register();
    let began = Instant::now();
    match disturbance {
        Event::Pauses => {
            while began.elapsed() < long {
                pause(cluster, rng.random_range(0..2));
                load.run_until(Instant::now() + Duration::from_millis(rng.random_range(100..2000)));
            }
        }
        Event::LeaderStarved => starve(cluster, leader, &load, long),
        Event::FollowerStarved => starve(cluster, 1 - leader, &load, long),
        Event::PacketLoss => {
            cluster.lose_packets(Some(LOST_PACKETS));
            load.run_until(began + long);
            cluster.lose_packets(None);
        }
        _ => unreachable!("{disturbance:?} is a loss"),
    }
    let (_, gap) = load.finish(began, began);
    cluster.until_paired();
    let after = cluster.register();
    println!(
        "{disturbance:?} for {long:?}: {} changes of the leader, {} of the mode; {gap}",
        after.epoch - before.epoch,
        after.version - before.version
    );
    after.epoch == before.epoch
}

fn pause(cluster: &Cluster, node: usize) {
    let duets = cluster.children(node);
    let send = |signal| {
        for pid in &duets {
            let _ = kill(*pid, signal);
        }
    };
    send(Signal::SIGSTOP);
    std::thread::sleep(PAUSE);
    send(Signal::SIGCONT);
}

fn starve(cluster: &Cluster, node: usize, load: &Load, long: Duration) {
    let starved = Starved::begin(&cluster.everything(node));
    load.run_until(Instant::now() + long);
    drop(starved);
}

/// A control group with a small share of the processor.
struct Starved {
    burners: Vec<Child>,
}

impl Starved {
    fn begin(pids: &[Pid]) -> Self {
        let group = PathBuf::from(CGROUP);
        fs::create_dir_all(&group).expect("control groups (v1) with the CPU controller");
        fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string()).unwrap();
        fs::write(group.join("cpu.cfs_quota_us"), QUOTA_US.to_string()).unwrap();
        let burn = || Command::new("sh").args(["-c", "while :; do :; done"]).stdin(Stdio::null()).spawn().unwrap();
        let burners: Vec<Child> = (0..BURNERS).map(|_| burn()).collect();
        let all = burners.iter().map(|child| child.id().to_string()).chain(pids.iter().map(Pid::to_string));
        for pid in all {
            // One that has ended meanwhile.
            let _ = fs::write(group.join("cgroup.procs"), pid);
        }
        Self { burners }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        for burner in &mut self.burners {
            let _ = burner.kill();
            let _ = burner.wait();
        }
        let group = PathBuf::from(CGROUP);
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write("/sys/fs/cgroup/cpu/cgroup.procs", pid);
        }
        let _ = fs::remove_dir(group);
    }
}
