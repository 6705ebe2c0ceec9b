//! Two nodes and a witness on this machine, as `duet init` makes them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use duet::supervisor::pair::status::NodeStatus;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::peers::free_ports;
use crate::common::process::{PATIENCE, Process, duet, family};
use crate::common::scratch;
use crate::postgres::Database;

/// Between two looks at a status, which gives no event to a test.
const LOOK: Duration = Duration::from_millis(20);

pub const A: usize = 0;
pub const B: usize = 1;
const LETTERS: [char; 2] = ['a', 'b'];

/// See the module. Processes that run are stopped when the test ends.
pub struct Pair {
    client_ports: [u16; 2],
    pg_ports: [u16; 2],
    guarded: bool,
    /// What each node runs.
    pub programs: [PathBuf; 2],
    /// What the witness runs.
    pub witness_program: PathBuf,
    /// Further flags of each node.
    pub flags: [Vec<String>; 2],
    /// What else is in its environment.
    pub environment: [Vec<(String, PathBuf)>; 2],
    // In this order: the witness is there until the nodes have ended, and the files until everything has.
    /// Those that run.
    pub nodes: [Option<Process>; 2],
    witness: Option<Process>,
    dir: TempDir,
}

impl Pair {
    /// Makes the pair and starts all of it; waits until both nodes have everything.
    pub async fn start() -> Self {
        Self::begin(true).started().await
    }

    /// As [`Pair::start`], without guardians.
    pub async fn start_unguarded() -> Self {
        Self { guarded: false, ..Self::begin(true) }.started().await
    }

    /// Starts all of it, and waits until both nodes have everything.
    pub async fn started(self) -> Self {
        let mut pair = self;
        pair.start_witness();
        pair.start_node(A);
        pair.start_node(B);
        pair.until_paired().await;
        pair
    }

    /// Makes the pair's configuration, with or without a witness. Starts nothing.
    pub fn begin(witness: bool) -> Self {
        Self::begin_with(witness.then_some("127.0.0.1"))
    }

    /// As [`Pair::begin`], with this witness.
    pub fn begin_with(witness: Option<&str>) -> Self {
        Self::begin_of(duet(), witness)
    }

    /// As [`Pair::begin_with`], made and run by this program.
    pub fn begin_of(program: PathBuf, witness: Option<&str>) -> Self {
        let dir = scratch();
        let [ca, cb, pa, pb, ga, gb, w] = free_ports::<7>();
        let mut init = Command::new(&program);
        init.args(["init", "--cluster", "test", "--a", "127.0.0.1", "--b", "127.0.0.1", "--client-tls=false", "--in-place"])
            .args([
                "--client-port",
                &format!("{ca},{cb}"),
                "--peer-port",
                &format!("{pa},{pb}"),
                "--pg-port",
                &format!("{ga},{gb}"),
            ])
            .arg("--out")
            .arg(dir.path().join("pair"));
        if let Some(witness) = witness {
            init.args(["--witness", witness, "--witness-port", &w.to_string()]);
        }
        let output = init.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self {
            client_ports: [ca, cb],
            pg_ports: [ga, gb],
            guarded: true,
            programs: [program.clone(), program.clone()],
            witness_program: program,
            flags: [Vec::new(), Vec::new()],
            environment: [Vec::new(), Vec::new()],
            nodes: [None, None],
            witness: None,
            dir,
        }
    }

    /// What clients connect to: A's URL, then B's.
    pub fn urls(&self) -> Vec<String> {
        self.client_ports.iter().map(|port| format!("http://127.0.0.1:{port}")).collect()
    }

    pub fn config(&self, node: usize) -> PathBuf {
        self.dir.path().join("pair").join(LETTERS[node].to_string()).join("duet.toml")
    }

    pub fn witness_config(&self) -> PathBuf {
        self.dir.path().join("pair/witness/witness.toml")
    }

    pub fn data(&self, node: usize) -> PathBuf {
        self.config(node).parent().unwrap().join("data")
    }

    pub fn database(&self, node: usize) -> Database {
        Database::of_node(&self.data(node), self.pg_ports[node])
    }

    pub fn start_witness(&mut self) {
        let config = self.witness_config();
        let args = ["witness".to_owned(), "--config-file".to_owned(), config.display().to_string()];
        let mut witness = Process::start(&self.witness_program, &args);
        witness.line("the witness is ready");
        self.witness = Some(witness);
    }

    pub fn kill_witness(&mut self) {
        let mut witness = self.witness.take().expect("it runs");
        witness.signal(Signal::SIGKILL);
        witness.ended();
    }

    pub fn witness(&mut self) -> &mut Process {
        self.witness.as_mut().expect("it runs")
    }

    pub fn start_node(&mut self, node: usize) {
        let config = self.config(node).display().to_string();
        let guardian = if self.guarded { "true" } else { "false" };
        let args = ["node", "--config-file", &config, "--pg-shared-buffers=32MiB", &format!("--guardian={guardian}")];
        let args: Vec<String> = args.into_iter().map(str::to_owned).chain(self.flags[node].clone()).collect();
        let mut command = Command::new(&self.programs[node]);
        command.args(args).envs(self.environment[node].iter().map(|(name, value)| (name, value)));
        self.nodes[node] = Some(Process::spawn(command));
    }

    pub fn node(&mut self, node: usize) -> &mut Process {
        self.nodes[node].as_mut().expect("it runs")
    }

    /// The machine is gone, with everything that ran on it.
    pub fn lose(&mut self, node: usize) {
        // PostgreSQL's first: with Duet gone nobody starts it again, and nothing may outlive the machine.
        let mut duet = self.nodes[node].take().expect("it runs");
        let parent = duet.child.id();
        let guarded = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let guarded = guarded.split_whitespace().next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        duet.signal(Signal::SIGSTOP);
        if let Some(pid) = guarded {
            let _ = kill(pid, Signal::SIGSTOP);
        }
        for pid in self.postgres(node) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        duet.signal(Signal::SIGKILL);
        duet.ended();
        guarded.into_iter().for_each(until_gone);
    }

    /// The node's PostgreSQL: its postmaster and that one's processes, if it runs.
    pub fn postgres(&self, node: usize) -> Vec<Pid> {
        let file = std::fs::read_to_string(self.data(node).join("postgres/postmaster.pid")).ok();
        let postmaster = file.and_then(|text| text.lines().next()?.trim().parse().ok());
        postmaster.map(family).unwrap_or_default()
    }

    /// The node's machine stands still.
    pub fn pause(&mut self, node: usize) {
        let guarded = self.guarded(node);
        self.node(node).signal(Signal::SIGSTOP);
        kill(guarded, Signal::SIGSTOP).unwrap();
    }

    /// The process that a node's guardian guards.
    pub fn guarded(&mut self, node: usize) -> Pid {
        let parent = self.node(node).child.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        Pid::from_raw(children.split_whitespace().next().expect("it has a child").parse().unwrap())
    }

    /// Duet alone is killed; its PostgreSQL goes on.
    pub fn kill_duet(&mut self, node: usize) {
        let guarded = self.guarded(node);
        let mut duet = self.nodes[node].take().expect("it runs");
        duet.signal(Signal::SIGKILL);
        duet.ended();
        until_gone(guarded);
    }

    /// What the nodes say of themselves; those that answer.
    pub async fn statuses(&self, from: usize) -> Vec<NodeStatus> {
        let output = tokio::process::Command::new(duet())
            .args(["status", "--json", "--config-file"])
            .arg(self.config(from))
            .output()
            .await
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until what the nodes say is as `fits` wants it; what they said then.
    pub async fn until(&self, what: &str, fits: impl Fn(&[NodeStatus]) -> bool) -> Vec<NodeStatus> {
        let began = Instant::now();
        loop {
            let from = if self.nodes[A].is_some() { A } else { B };
            let statuses = self.statuses(from).await;
            if fits(&statuses) {
                return statuses;
            }
            assert!(began.elapsed() < PATIENCE, "not {what} within {PATIENCE:?}: {statuses:#?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until both nodes have everything and one of them answers; which one.
    pub async fn until_paired(&self) -> usize {
        let paired = |all: &[NodeStatus]| {
            all.len() == 2
                && all.iter().all(|one| one.mode.as_deref() == Some("PAIR"))
                && all.iter().any(|one| one.open && one.peer_ready && one.survives.a && one.survives.b)
        };
        let statuses = self.until("a pair", paired).await;
        leader_of(&statuses).expect("one is open")
    }

    /// Waits until `node` answers.
    pub async fn until_open(&self, node: usize) -> NodeStatus {
        let open = |all: &[NodeStatus]| leader_of(all) == Some(node);
        let statuses = self.until("open", open).await;
        statuses.into_iter().find(|one| one.open).expect("one is open")
    }

    /// The pair's figures on a node's /metrics: names with labels, and values.
    pub async fn figures(&self, node: usize) -> BTreeMap<String, f64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client_ports[node])).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: duet\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let lines = text.lines().filter(|line| line.starts_with("duet_pair_"));
        lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    /// Runs a command of an operator's on `node`; what it said, if it succeeded.
    pub async fn operate(&self, node: usize, args: &[&str]) -> Result<String, String> {
        let (code, said, complained) = self.run(node, args).await;
        if code == 0 { Ok(said) } else { Err(complained) }
    }

    /// Runs a command of an operator's on `node`: its exit code, and what it wrote to either output.
    pub async fn run(&self, node: usize, args: &[&str]) -> (i32, String, String) {
        let output =
            tokio::process::Command::new(duet()).args(args).arg("--config-file").arg(self.config(node)).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
    }
}

/// A guarded process dies with its guardian, a moment later.
fn until_gone(pid: Pid) {
    let began = Instant::now();
    while kill(pid, None).is_ok() {
        assert!(began.elapsed() < PATIENCE, "{pid} outlives its guardian");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The node that answers requests.
pub fn leader_of(statuses: &[NodeStatus]) -> Option<usize> {
    let open = statuses.iter().find(|one| one.open)?;
    Some(if open.node == 'A' { A } else { B })
}
