//! Hosts: a machine each for two nodes, the witness and the client, in one network (tests/common/network.rs).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use duet::supervisor::pair::history::Takeover;
use duet::supervisor::pair::status::NodeStatus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::load::Load;
use crate::network::{Network, address};

const WITNESS: usize = 2;
const CLIENT: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// Which changes there have been.
pub struct Register {
    pub version: u64,
    pub epoch: i64,
}

/// See the module.
pub struct Cluster {
    duet: PathBuf,
    nodes: [Option<Child>; 3],
    frozen: Vec<Pid>,
    dir: TempDir,
    network: Network,
}

impl Cluster {
    /// Makes the hosts and starts a pair on them.
    pub fn start(duet: &Path) -> Self {
        let network = Network::new(4);
        let dir = tempfile::Builder::new().prefix("duet-failover-").tempdir().unwrap();
        let open: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        let init = Command::new(duet)
            .args(["init", "--cluster", "bench", "--client-tls=false", "--in-place", "--a", &address(0), "--b", &address(1)])
            .args(["--witness", &address(WITNESS), "--out"])
            .arg(dir.path().join("pair"))
            .stdout(Stdio::null())
            .status();
        assert!(init.unwrap().success());
        let mut cluster = Self { duet: duet.to_path_buf(), nodes: [None, None, None], frozen: Vec::new(), dir, network };
        for host in [WITNESS, 0, 1] {
            cluster.start_host(host);
        }
        cluster
    }

    /// Writes to both nodes, from the client's machine.
    pub fn load(&self) -> Load {
        let urls = [0, 1].map(|node| format!("http://{}:2379", address(node)));
        Load::start(urls.to_vec(), self.network.door(CLIENT))
    }

    fn file(&self, host: usize) -> PathBuf {
        let (part, name) = [("a", "duet.toml"), ("b", "duet.toml"), ("witness", "witness.toml")][host];
        self.dir.path().join("pair").join(part).join(name)
    }

    fn log(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("host-{host}.log"))
    }

    fn start_host(&mut self, host: usize) {
        let command = if host == WITNESS { "witness" } else { "node" };
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log(host)).unwrap();
        let mut run = self.network.command(host, &self.duet);
        run.arg(command).arg("--config-file").arg(self.file(host));
        let child = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.nodes[host] = Some(child);
    }

    fn statuses(&self) -> Vec<NodeStatus> {
        let from = if self.nodes[0].is_some() { 0 } else { 1 };
        let mut run = self.network.command(from, &self.duet);
        run.args(["status", "--json", "--config-file"]).arg(self.file(from));
        let output = run.output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until both nodes have everything; who leads.
    pub fn until_paired(&self) -> usize {
        let began = Instant::now();
        loop {
            let statuses = self.statuses();
            let paired = statuses.len() == 2 && statuses.iter().all(|one| one.mode.as_deref() == Some("PAIR"));
            if let Some(leader) = statuses.iter().find(|one| one.open && one.survives.a && one.survives.b).filter(|_| paired) {
                return usize::from(leader.node == 'B');
            }
            assert!(began.elapsed() < PATIENCE, "no pair: {statuses:#?}, logs in {}", self.dir.path().display());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The register as the nodes know it.
    pub fn register(&self) -> Register {
        let statuses = self.statuses();
        let newest = statuses.iter().max_by_key(|status| status.register_version).expect("a node answers");
        Register { version: newest.register_version, epoch: newest.epoch }
    }

    fn postmaster(&self, node: usize) -> Option<i32> {
        let data = self.file(node).parent()?.join("data/postgres/postmaster.pid");
        fs::read_to_string(data).ok()?.lines().next()?.trim().parse().ok()
    }

    fn postgres(&self, node: usize) -> Vec<Pid> {
        let Some(postmaster) = self.postmaster(node) else { return Vec::new() };
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(postmaster).chain(children).map(Pid::from_raw).collect()
    }

    fn pid(&self, host: usize) -> Pid {
        let child = self.nodes[host].as_ref().expect("it runs");
        Pid::from_raw(i32::try_from(child.id()).unwrap())
    }

    /// The Duet that a guardian watches.
    pub fn children(&self, host: usize) -> Vec<Pid> {
        let parent = self.pid(host);
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
    }

    /// All processes of a node.
    pub fn everything(&self, node: usize) -> Vec<Pid> {
        [vec![self.pid(node)], self.children(node), self.postgres(node)].concat()
    }

    fn reap(&mut self, host: usize) {
        let mut child = self.nodes[host].take().expect("it runs");
        child.wait().unwrap();
    }

    /// The machine is gone: its network at once, and with it everything that ran there. The moment from which it was.
    pub fn lose(&mut self, node: usize) -> Instant {
        self.network.plug(node, false);
        let gone = Instant::now();
        for pid in self.everything(node) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        self.reap(node);
        gone
    }

    pub fn kill_postgres(&mut self, node: usize) {
        kill(Pid::from_raw(self.postmaster(node).unwrap()), Signal::SIGKILL).unwrap();
    }

    /// The guardian and what it guards, started again a little later. The moment from which they were dead.
    pub fn kill_duet(&mut self, node: usize) -> Instant {
        for pid in self.children(node).into_iter().chain([self.pid(node)]) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let dead = Instant::now();
        self.reap(node);
        std::thread::sleep(Duration::from_millis(100));
        self.start_host(node);
        dead
    }

    pub fn freeze_postgres(&mut self, node: usize) {
        self.freeze(self.postgres(node));
    }

    /// What the guardian watches; the guardian itself goes on.
    pub fn freeze_duet(&mut self, node: usize) {
        self.freeze(self.children(node));
    }

    fn freeze(&mut self, pids: Vec<Pid>) {
        for pid in &pids {
            let _ = kill(*pid, Signal::SIGSTOP);
        }
        self.frozen = pids;
    }

    /// Nothing passes between the two nodes; both see everybody else.
    pub fn cut(&mut self) {
        for (from, to) in [(0, 1), (1, 0)] {
            self.network.ip(from, &format!("route add blackhole {}", address(to)));
        }
    }

    /// So large a part of what nodes and witness send to each other gets lost, or nothing any more.
    pub fn lose_packets(&self, part: Option<f64>) {
        for to in 0..=WITNESS {
            let table = |args: &str| {
                let done = self.network.command(to, "iptables").args(args.split_whitespace()).status();
                assert!(done.unwrap().success(), "iptables {args}");
            };
            table("-F INPUT");
            for from in (0..=WITNESS).filter(|from| *from != to) {
                if let Some(part) = part {
                    let from = address(from);
                    table(&format!("-A INPUT -s {from} -m statistic --mode random --probability {part} -j DROP"));
                }
            }
        }
    }

    pub fn lose_witness(&mut self) {
        self.network.plug(WITNESS, false);
    }

    pub fn switch_over(&mut self, leader: usize) {
        let mut run = self.network.command(leader, &self.duet);
        run.args(["switchover", "--config-file"]).arg(self.file(leader));
        assert!(run.stdout(Stdio::null()).status().unwrap().success());
    }

    /// What the survivor says of a takeover since `began`.
    pub fn last_takeover(&self, began: Instant) -> Option<Takeover> {
        let age = u64::try_from(began.elapsed().as_millis()).unwrap();
        let now = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
        let statuses = self.statuses();
        let entries =
            statuses.into_iter().filter_map(|status| status.last_takeover).filter(|entry| entry.at_ms + age + 100 >= now);
        entries.max_by_key(|entry| entry.at_ms)?.takeover
    }

    /// Undoes whatever was done.
    pub fn heal(&mut self) {
        for pid in self.frozen.drain(..) {
            let _ = kill(pid, Signal::SIGCONT);
        }
        for (from, to) in [(0, 1), (1, 0)] {
            self.network.try_ip(from, &format!("route del blackhole {}", address(to)));
        }
        for host in [0, 1, WITNESS] {
            self.network.plug(host, true);
            if self.nodes[host].is_none() {
                self.start_host(host);
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in [0, 1, WITNESS] {
                let log = fs::read_to_string(self.log(host)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- host {host}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
        for pid in &self.frozen {
            let _ = kill(*pid, Signal::SIGCONT);
        }
        for host in [0, 1, WITNESS] {
            if self.nodes[host].is_some() {
                let _ = kill(self.pid(host), Signal::SIGTERM);
            }
        }
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}
