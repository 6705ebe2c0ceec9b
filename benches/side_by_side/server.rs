//! Starting a server on a data directory of its own and finding its processes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// How long a server may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    /// `etcd` or `duet`.
    pub name: &'static str,
    /// Its client URL.
    pub url: String,
    child: Child,
    _data: tempfile::TempDir,
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
        let data = tempfile::Builder::new().prefix("duet-bench-").tempdir()?;
        // The PostgreSQL that Duet runs as another user must be able to pass through.
        std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let url = format!("http://127.0.0.1:{}", free_port()?);
        let log = std::fs::File::create(data.path().join("log"))?;
        let child = Command::new(binary)
            .args(before)
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--quota-backend-bytes", "8589934592"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{}", binary.display()))?;
        let mut server = Self { name, url, child, _data: data };
        server.wait_ready().await?;
        Ok(server)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            if crate::load::answers(&self.url).await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(self._data.path().join("log")).unwrap_or_default();
                bail!("{} exited ({status}) before it answered:\n{log}", self.name);
            }
            if tokio::time::Instant::now() > deadline {
                bail!("{} did not answer within {START_DEADLINE:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// CPU seconds that the server's processes have used so far, children that ended included.
    pub fn cpu_seconds(&self) -> f64 {
        let Some(root) = self.child.id() else { return 0.0 };
        tree(root).into_iter().filter_map(cpu_ticks).sum::<u64>() as f64 / 100.0
    }

    /// Proportional set size of the server's processes, in bytes.
    pub fn pss_bytes(&self) -> u64 {
        let Some(root) = self.child.id() else { return 0 };
        tree(root).into_iter().filter_map(pss).sum()
    }

    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
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
