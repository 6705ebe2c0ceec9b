//! A pair as programs, on a machine each, and a client that knows the virtual IP alone.

use std::process::Stdio;
use std::time::Instant;

use duet::supervisor::pair::status::NodeStatus;
use duet::supervisor::pair::virtual_ip::Hold;
use etcd_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::process::{PATIENCE, Process, duet, family};
use crate::common::scratch;
use crate::network::{INTERFACE, Network, address};
use crate::{can_make_machines, has, until};

const WITNESS: usize = 2;
const CLIENT: usize = 3;
const IP: &str = "10.77.0.20/24";
const URL: &str = "http://10.77.0.20:2379";

struct Pair {
    machines: [Option<Process>; 3],
    dir: TempDir,
    network: Network,
}

impl Pair {
    fn start() -> Self {
        let (network, dir) = (Network::new(4), scratch());
        let init = std::process::Command::new(duet())
            .args(["init", "--cluster", "vip", "--client-tls=false", "--in-place", "--a", &address(0), "--b", &address(1)])
            .args(["--witness", &address(WITNESS), "--virtual-ip", IP, "--virtual-ip-interface", INTERFACE, "--out"])
            .arg(dir.path().join("pair"))
            .stdout(Stdio::null())
            .status();
        assert!(init.unwrap().success());
        let mut pair = Self { machines: [None, None, None], dir, network };
        for machine in [WITNESS, 0, 1] {
            pair.start_machine(machine);
        }
        pair
    }

    fn config(&self, machine: usize) -> std::path::PathBuf {
        let file = ["a/duet.toml", "b/duet.toml", "witness/witness.toml"][machine];
        self.dir.path().join("pair").join(file)
    }

    fn start_machine(&mut self, machine: usize) {
        let mut command = self.network.command(machine, duet());
        let flags: &[&str] = if machine == WITNESS { &["witness"] } else { &["node", "--pg-shared-buffers=32MiB"] };
        command.args(flags).arg("--config-file").arg(self.config(machine));
        self.machines[machine] = Some(Process::spawn(command));
    }

    fn process(&mut self, machine: usize) -> &mut Process {
        self.machines[machine].as_mut().expect("it runs")
    }

    /// The process that a node's guardian guards.
    fn guarded(&mut self, machine: usize) -> Pid {
        let parent = self.process(machine).child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().expect("it has a child").parse().unwrap())
    }

    fn statuses(&self) -> Vec<NodeStatus> {
        let from = if self.machines[0].is_some() { 0 } else { 1 };
        let mut status = self.network.command(from, duet());
        let output = status.args(["status", "--json", "--config-file"]).arg(self.config(from)).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until both nodes have everything, and the one that leads has the address; which one.
    fn until_settled(&self) -> usize {
        let began = Instant::now();
        loop {
            let all = self.statuses();
            let paired = all.len() == 2 && all.iter().all(|one| one.mode.as_deref() == Some("PAIR"));
            let leader = all.iter().find(|one| one.open && one.survives.a && one.survives.b).filter(|_| paired);
            let holds = |one: &NodeStatus| one.virtual_ip.as_ref().is_some_and(|ip| ip.state == Hold::Held);
            if let Some(leader) = leader.filter(|leader| holds(leader)) {
                let leader = usize::from(leader.node == 'B');
                assert!(has(&self.network, leader, IP) && !has(&self.network, 1 - leader, IP), "{all:#?}");
                return leader;
            }
            assert!(began.elapsed() < PATIENCE, "the pair doesn't settle: {all:#?}");
            std::thread::sleep(crate::LOOK);
        }
    }

    /// The machine is gone: its network at once, and with it everything that ran there.
    fn lose(&mut self, machine: usize) {
        self.network.plug(machine, false);
        let guarded = self.guarded(machine);
        let postmaster = std::fs::read_to_string(self.config(machine).with_file_name("data/postgres/postmaster.pid")).unwrap();
        let postmaster: i32 = postmaster.lines().next().unwrap().trim().parse().unwrap();
        self.process(machine).signal(Signal::SIGKILL);
        for pid in family(postmaster).into_iter().chain([guarded]) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.machines[machine].take().expect("it runs").ended();
    }
}

/// Writes through the virtual IP until one write is acknowledged; with a connection that may be new.
async fn write(client: &mut Client, text: &str) {
    let began = Instant::now();
    while let Err(error) = client.put("k", text, None).await {
        assert!(began.elapsed() < PATIENCE, "{text}: {error}");
        tokio::time::sleep(crate::LOOK).await;
    }
    let answer = client.get("k", None).await.unwrap();
    assert_eq!(answer.kvs()[0].value(), text.as_bytes());
}

#[test]
fn a_client_that_knows_this_address_alone_goes_on_whatever_befalls_the_leader() {
    if !can_make_machines() {
        return;
    }
    let mut pair = Pair::start();
    let mut leader = pair.until_settled();
    let runtime = pair.network.runtime(CLIENT);
    let connect = Client::connect([URL], None);
    let client = runtime.block_on(runtime.spawn(connect)).unwrap().unwrap();
    let write = |text: &'static str| {
        let mut client = client.clone();
        runtime.block_on(runtime.spawn(async move { write(&mut client, text).await })).unwrap();
    };
    write("first");
    let mut status = pair.network.command(leader, duet());
    let said = status.args(["status", "--config-file"]).arg(pair.config(leader)).output().unwrap();
    let (said, letter) = (String::from_utf8_lossy(&said.stdout).into_owned(), ['A', 'B'][leader]);
    assert!(said.contains(&format!("Node {letter} has the virtual IP {IP} on {INTERFACE}.")), "{said}");

    // It hands over.
    let mut switchover = pair.network.command(leader, duet());
    assert!(switchover.args(["switchover", "--config-file"]).arg(pair.config(leader)).status().unwrap().success());
    write("after a switchover");
    assert_eq!(pair.until_settled(), 1 - leader);
    leader = 1 - leader;

    // Its process is killed: what that can't do any more, the guardian does.
    kill(pair.guarded(leader), Signal::SIGKILL).unwrap();
    pair.process(leader).line("gave up the virtual IP for the Duet that has ended");
    write("after a kill");
    leader = pair.until_settled();

    // It stands still.
    kill(pair.guarded(leader), Signal::SIGSTOP).unwrap();
    pair.process(leader).line("stands still");
    pair.process(leader).line("gave up the virtual IP for the Duet that has ended");
    write("after a freeze");
    assert_eq!(pair.until_settled(), 1 - leader);
    leader = 1 - leader;

    // All of the machine is lost. What was left on it is removed when it is back.
    pair.lose(leader);
    write("after a loss");
    pair.network.ip(leader, &format!("addr replace {IP} dev {INTERFACE}"));
    pair.start_machine(leader);
    pair.process(leader).line("gave up the virtual IP");
    pair.network.plug(leader, true);
    assert_eq!(pair.until_settled(), 1 - leader);
    leader = 1 - leader;

    // It is stopped.
    pair.process(leader).signal(Signal::SIGTERM);
    pair.process(leader).ended();
    assert!(!has(&pair.network, leader, IP));
    write("after a stop");
    until("at the other", || has(&pair.network, 1 - leader, IP));
}
