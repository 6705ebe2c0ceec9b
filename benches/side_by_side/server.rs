//! Starting a server on a data directory of its own and finding its processes.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use duet::supervisor::pair::status::NodeStatus;
use tokio::process::{Child, Command};

/// How long a server may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One member.
    Etcd,
    /// One node.
    Duet,
    /// A pair, asked at the node that leads.
    Leader,
    /// The same pair, asked at the node that follows.
    Follower,
}

/// A running server.
pub struct Server {
    /// The name of its kind.
    pub name: &'static str,
    /// Its client URL.
    pub url: String,
    process: Arc<Process>,
}

/// A server's process, which has started all others that belong to it.
struct Process {
    child: tokio::sync::Mutex<Child>,
    root: u32,
    data: tempfile::TempDir,
}

/// Starts them, the two nodes of a pair as one.
pub async fn start(kinds: &[Kind], etcd: &Path, duet: &Path) -> anyhow::Result<Vec<Server>> {
    let mut servers: Vec<Server> = Vec::new();
    let mut pair = None;
    for kind in kinds {
        let server = match kind {
            Kind::Etcd => Server::etcd(etcd).await.context("starting etcd")?,
            Kind::Duet => Server::duet(duet).await.context("starting Duet")?,
            Kind::Leader | Kind::Follower => {
                if pair.is_none() {
                    pair = Some(Pair::start(duet).await.context("starting a pair")?);
                }
                pair.as_ref().context("it has just been started")?.server(*kind)
            }
        };
        servers.push(server);
    }
    Ok(servers)
}

/// Two nodes and their witness.
struct Pair {
    urls: [String; 2],
    process: Arc<Process>,
}

impl Pair {
    async fn start(duet: &Path) -> anyhow::Result<Self> {
        let data = data_dir()?;
        let dir = data.path().join("pair");
        let mut ports = Vec::new();
        for _ in 0..3 {
            ports.push([free_port()?, free_port()?]);
        }
        let two = |at: usize| format!("{},{}", ports[at][0], ports[at][1]);
        let init = Command::new(duet)
            .args("init --cluster bench --client-tls=false --in-place --a 127.0.0.1 --b 127.0.0.1".split(' '))
            .args(["--witness", "127.0.0.1", "--client-port", &two(0), "--peer-port", &two(1), "--pg-port", &two(2), "--out"])
            .args([&dir])
            .output()
            .await?;
        anyhow::ensure!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
        let process = Process::start(Command::new(duet).arg("pair").arg("--data-dir").arg(&dir), data)?;
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            process.check("the pair").await?;
            let mut status = Command::new(duet);
            let status = status.args(["status", "--json", "--config-file"]).arg(dir.join("a/duet.toml")).output().await?;
            let nodes: Vec<NodeStatus> = serde_json::from_slice(&status.stdout).unwrap_or_default();
            let leader = nodes.iter().find(|node| node.open && node.survives.a && node.survives.b);
            if let Some(leader) = leader.filter(|_| nodes.len() == 2) {
                let urls = if leader.node == 'A' { ports[0] } else { [ports[0][1], ports[0][0]] };
                return Ok(Self { urls: urls.map(|port| format!("http://127.0.0.1:{port}")), process: Arc::new(process) });
            }
            if tokio::time::Instant::now() > deadline {
                bail!("no pair within {START_DEADLINE:?}: {nodes:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn server(&self, kind: Kind) -> Server {
        let [leader, follower] = &self.urls;
        let (name, url) = if kind == Kind::Leader { ("leader", leader) } else { ("follower", follower) };
        Server { name, url: url.clone(), process: Arc::clone(&self.process) }
    }
}

impl Process {
    fn start(command: &mut Command, data: tempfile::TempDir) -> anyhow::Result<Self> {
        let log = std::fs::File::create(data.path().join("log"))?;
        let command = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let root = child.id().context("it runs")?;
        Ok(Self { child: tokio::sync::Mutex::new(child), root, data })
    }

    /// Fails when it has ended.
    async fn check(&self, name: &str) -> anyhow::Result<()> {
        let Some(status) = self.child.lock().await.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
        bail!("{name} exited ({status}) before it answered:\n{log}")
    }

    async fn stop(&self) {
        if let Ok(pid) = i32::try_from(self.root) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = tokio::time::timeout(Duration::from_secs(30), self.child.lock().await.wait()).await;
    }
}

/// A directory of one's own that the PostgreSQL which Duet runs as another user can pass through.
fn data_dir() -> anyhow::Result<tempfile::TempDir> {
    let data = tempfile::Builder::new().prefix("duet-bench-").tempdir()?;
    std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(data)
}

impl Server {
    pub async fn etcd(binary: &Path) -> anyhow::Result<Self> {
        let peer = format!("http://127.0.0.1:{}", free_port()?);
        let cluster = format!("default={peer}");
        let more = ["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--initial-cluster", &cluster];
        Self::start("etcd", binary, &[], &more).await
    }

    pub async fn duet(binary: &Path) -> anyhow::Result<Self> {
        Self::start("duet", binary, &["etcd"], &[]).await
    }

    async fn start(name: &'static str, binary: &Path, before: &[&str], more: &[&str]) -> anyhow::Result<Self> {
        let url = format!("http://127.0.0.1:{}", free_port()?);
        let data = data_dir()?;
        let mut command = Command::new(binary);
        command
            .args(before)
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--quota-backend-bytes", "8589934592"])
            .args(more);
        let process = Arc::new(Process::start(&mut command, data)?);
        let server = Self { name, url, process };
        server.wait_ready().await?;
        Ok(server)
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        while !crate::load::answers(&self.url).await {
            self.process.check(self.name).await?;
            if tokio::time::Instant::now() > deadline {
                bail!("{} did not answer within {START_DEADLINE:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// CPU seconds that the server's processes have used so far, children that ended included.
    pub fn cpu_seconds(&self) -> f64 {
        tree(self.process.root).into_iter().filter_map(cpu_ticks).sum::<u64>() as f64 / 100.0
    }

    /// Proportional set size of the server's processes, in bytes.
    pub fn pss_bytes(&self) -> u64 {
        tree(self.process.root).into_iter().filter_map(pss).sum()
    }

    /// Stops them all, each process once.
    pub async fn stop(servers: Vec<Self>) {
        for server in servers {
            if Arc::strong_count(&server.process) == 1 {
                server.process.stop().await;
            }
        }
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A process and everything below it.
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

fn cpu_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime, stime, cutime and cstime, counted from the state field.
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

fn pss(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
