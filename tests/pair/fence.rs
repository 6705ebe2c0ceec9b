//! A fencing device in the place of a witness: a program that kills everything of the other node.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::common::{scratch, script};
use crate::load;
use crate::pair::{A, B, Pair};
use crate::{assert_sound, seed};

/// Puts a node off: its guardian, its Duet, its PostgreSQL. Fails while there is a file `broken`.
const SCRIPT: &str = r#"cd "$(dirname "$0")" || exit 1
echo "$1" >> called
[ -e broken ] && { echo 'the device is broken' >&2; exit 1; }
pid=$(cat "$1.pid")
data=$(cat "$1.data")
postmaster=$(head -n 1 "$data/postgres/postmaster.pid" 2>/dev/null)
for parent in $pid $postmaster; do
    pids="$pids $parent $(cat "/proc/$parent/task/$parent/children" 2>/dev/null)"
done
kill -KILL $pids 2>/dev/null
for pid in $pids; do
    while kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do sleep 0.05; done
done
exit 0
"#;

/// A pair without a witness, and its device.
struct Fenced {
    pair: Pair,
    device: TempDir,
}

impl Fenced {
    async fn start() -> Self {
        let (mut pair, device) = (Pair::begin(false), scratch());
        let program = device.path().join("put-off");
        script(&program, SCRIPT);
        for (flags, letter) in pair.flags.iter_mut().zip(['a', 'b']) {
            *flags = vec![format!("--fence-command={}", program.display()), "--fence-delay=1s".to_owned()];
            std::fs::write(device.path().join("called"), "").unwrap();
            std::fs::write(device.path().join(format!("{letter}.pid")), "").unwrap();
        }
        for (node, letter) in [(A, 'a'), (B, 'b')] {
            std::fs::write(device.path().join(format!("{letter}.data")), pair.data(node).display().to_string()).unwrap();
        }
        let mut fenced = Self { pair, device };
        fenced.start_node(A);
        fenced.start_node(B);
        fenced.pair.until_paired().await;
        fenced
    }

    fn start_node(&mut self, node: usize) {
        self.pair.start_node(node);
        let pid = self.pair.node(node).child.id();
        std::fs::write(self.device.path().join(format!("{}.pid", ['a', 'b'][node])), pid.to_string()).unwrap();
    }

    fn broken(&self) -> PathBuf {
        self.device.path().join("broken")
    }

    /// Whose machines were to be put off.
    fn called(&self) -> String {
        read(&self.device.path().join("called"))
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fencing_device_a_lost_leader_is_replaced_once_it_is_certainly_off() {
    let (mut fenced, seed) = (Fenced::start().await, seed());
    let mut load = load(&fenced.pair, seed);
    load.progress(100).await;
    let leader = fenced.pair.until_paired().await;
    std::fs::write(fenced.broken(), "").unwrap();
    fenced.pair.lose(leader);
    fenced.pair.node(1 - leader).line("it is tried again while the peer isn't heard");
    let statuses = fenced.pair.statuses(1 - leader).await;
    assert!(statuses.iter().all(|one| !one.open), "nobody leads while it isn't certain that the other one is off: {statuses:#?}");
    std::fs::remove_file(fenced.broken()).unwrap();
    fenced.pair.until_open(1 - leader).await;
    load.progress(50).await;
    fenced.start_node(leader);
    assert_eq!(fenced.pair.until_paired().await, 1 - leader, "who is back follows");
    load.progress(50).await;
    assert_sound(&fenced.pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_is_put_off_and_a_lost_follower_too() {
    let (mut fenced, seed) = (Fenced::start().await, seed());
    let mut load = load(&fenced.pair, seed);
    load.progress(100).await;
    let leader = fenced.pair.until_paired().await;
    fenced.pair.pause(leader);
    fenced.pair.node(leader).ended();
    fenced.pair.nodes[leader] = None;
    fenced.pair.until_open(1 - leader).await;
    load.progress(50).await;
    fenced.start_node(leader);
    assert_eq!(fenced.pair.until_paired().await, 1 - leader);
    let before = fenced.called().len();
    fenced.pair.lose(leader);
    fenced.pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    assert!(fenced.called().len() > before, "the leader goes on alone once the follower is certainly off");
    load.progress(50).await;
    fenced.start_node(leader);
    assert_eq!(fenced.pair.until_paired().await, 1 - leader);
    assert_sound(&fenced.pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_agreed_puts_nobody_off() {
    let (mut fenced, seed) = (Fenced::start().await, seed());
    let leader = fenced.pair.until_paired().await;
    let mut load = load(&fenced.pair, seed);
    load.progress(50).await;
    // A switchover, a PostgreSQL that is killed, a maintenance, a node that is stopped, and one that is started again: the peer is heard, or
    // has said that it goes.
    fenced.pair.operate(leader, &["switchover"]).await.expect("it is possible");
    load.progress(50).await;
    assert_eq!(fenced.pair.until_paired().await, 1 - leader);
    let postmaster = nix::unistd::Pid::from_raw(fenced.pair.database(1 - leader).postmaster());
    nix::sys::signal::kill(postmaster, Signal::SIGKILL).unwrap();
    fenced.pair.until_open(leader).await;
    load.progress(50).await;
    assert_eq!(fenced.pair.until_paired().await, leader);
    fenced.pair.operate(1 - leader, &["maintenance"]).await.unwrap();
    fenced.pair.node(1 - leader).signal(Signal::SIGTERM);
    fenced.pair.node(1 - leader).ended();
    load.progress(50).await;
    fenced.start_node(1 - leader);
    fenced.pair.operate(leader, &["maintenance", "--end"]).await.unwrap();
    assert_eq!(fenced.pair.until_paired().await, leader);
    load.progress(50).await;
    fenced.pair.node(1 - leader).signal(Signal::SIGTERM);
    fenced.pair.node(1 - leader).ended();
    fenced.pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    load.progress(50).await;
    fenced.start_node(1 - leader);
    assert_eq!(fenced.pair.until_paired().await, leader);
    assert_eq!(fenced.called(), "", "nobody was put off");
    assert_sound(&fenced.pair, load, seed).await;
}
