//! The servers under test: etcd, the reference, and Duet, the subject, each a process with a data directory of its own.

use std::env;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use crate::play::call;
use crate::selfcheck::Fault;
use duet::proto::etcdserverpb::{RangeRequest, RangeResponse, StatusRequest, StatusResponse};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Etcd,
    Duet,
}

impl Program {
    /// The program compared with etcd: Duet, or with `DUET_DIFF_SUBJECT=etcd` a second etcd, which proves that nothing differs by chance.
    pub fn subject() -> Program {
        match env::var("DUET_DIFF_SUBJECT").as_deref() {
            Ok("etcd") => Program::Etcd,
            _ => Program::Duet,
        }
    }

    /// How to start it; `own`: for one case alone.
    fn command(self, own: bool) -> Result<Command> {
        Ok(match self {
            Program::Etcd => {
                let mut command = Command::new(etcd_binary()?);
                // The shorter election makes it start sooner; the least TTL, which follows from it, is still 2 s.
                command.args(["--unsafe-no-fsync", "--log-level=warn", "--heartbeat-interval=20", "--election-timeout=700"]);
                command
            }
            Program::Duet => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_duet"));
                command.arg("etcd");
                // Hardly any value stays in memory where a case has a server of its own.
                if own {
                    command.arg("--value-cache-bytes=1KiB");
                }
                let flags = env::var("DUET_DIFF_DUET_FLAGS").unwrap_or_default();
                command.args(flags.split_whitespace());
                command
            }
        })
    }
}

/// `ETCD_BIN`, or where `tests/tools/build.sh etcd` puts it.
pub fn etcd_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ETCD_BIN") {
        return Ok(path.into());
    }
    let cache = env::var_os("DUET_CACHE")
        .map(PathBuf::from)
        .or_else(|| env::var_os("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("duet")))
        .or_else(|| env::var_os("HOME").map(|dir| Path::new(&dir).join(".cache/duet")))
        .context("neither ETCD_BIN nor DUET_CACHE nor HOME is set")?;
    let path = cache.join("bin/etcd-v3.7.3");
    if !path.exists() {
        bail!("{} doesn't exist: run tests/tools/build.sh etcd, or set ETCD_BIN", path.display());
    }
    Ok(path)
}

/// A running server. Dropping it kills it; [`Server::stop`] does it gently.
pub struct Server {
    program: Program,
    own: bool,
    flags: Vec<&'static str>,
    ports: [u16; 2],
    dir: TempDir,
    child: Child,
    channel: Channel,
}

impl Server {
    /// A server over a fresh store, ready to serve: for one case alone (`own`), or for many.
    pub async fn start(program: Program, own: bool, flags: &[&'static str]) -> Result<Server> {
        // Another process may take a port between its choice and its use.
        for _ in 0..4 {
            match Server::start_once(program, own, flags).await {
                Err(error) if error.to_string().contains("address already in use") => continue,
                result => return result,
            }
        }
        bail!("{program:?} found its port in use four times")
    }

    async fn start_once(program: Program, own: bool, flags: &[&'static str]) -> Result<Server> {
        let dir = tempfile::Builder::new().prefix("duet-diff-").tempdir()?;
        let ports = free_ports()?;
        let child = spawn(program, own, flags, ports, dir.path())?;
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{}", ports[0]))?
            .connect_timeout(Duration::from_secs(5))
            .connect_lazy();
        let mut server = Server { program, own, flags: flags.to_vec(), ports, dir, child, channel };
        server.wait_ready().await?;
        Ok(server)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(true) = tokio::time::timeout(Duration::from_secs(5), self.is_ready()).await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{:?} ended ({status}): {}", self.program, self.log());
            }
            if Instant::now() > deadline {
                bail!("{:?} doesn't answer: {}", self.program, self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the server serves, and its storage is at the version that it will keep: a new etcd's is empty, then 3.5.0 until its monitor,
    /// which looks every few seconds, has raised it.
    async fn is_ready(&self) -> bool {
        let range = RangeRequest { key: b"\0".as_slice().into(), count_only: true, ..Default::default() };
        if call::<_, RangeResponse>(&self.channel, "/etcdserverpb.KV/Range", range, &[]).await.is_err() {
            return false;
        }
        call::<_, StatusResponse>(&self.channel, "/etcdserverpb.Maintenance/Status", StatusRequest {}, &[])
            .await
            .is_ok_and(|status| !status.storage_version.is_empty() && !status.storage_version.starts_with("3.5."))
    }

    /// Stops the server and starts it over its data.
    pub async fn restart(&mut self) -> Result<()> {
        self.terminate().await?;
        self.child = spawn(self.program, self.own, &self.flags, self.ports, self.dir.path())?;
        self.wait_ready().await
    }

    /// Where clients, and who scrapes, connect to.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// A connection of its own would be the same to the server; the channel reconnects by itself.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The end of what the server logged.
    pub fn log(&self) -> String {
        let text = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    async fn terminate(&mut self) -> Result<()> {
        let Some(pid) = self.child.id() else {
            return Ok(());
        };
        kill(Pid::from_raw(pid as i32), Signal::SIGTERM)?;
        if tokio::time::timeout(STOP_DEADLINE, self.child.wait()).await.is_err() {
            self.child.kill().await?;
            bail!("{:?} didn't stop on SIGTERM: {}", self.program, self.log());
        }
        Ok(())
    }

    pub async fn stop(mut self) -> Result<()> {
        self.terminate().await
    }
}

fn spawn(program: Program, own: bool, flags: &[&'static str], ports: [u16; 2], dir: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let client = format!("http://127.0.0.1:{}", ports[0]);
    let peer = format!("http://127.0.0.1:{}", ports[1]);
    program
        .command(own)?
        .arg(format!("--data-dir={}", dir.join("data").display()))
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program:?}"))
}

fn free_ports() -> Result<[u16; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let [a, b] = &listeners;
    Ok([a.local_addr()?.port(), b.local_addr()?.port()])
}

/// The reference and the subject, side by side.
pub struct Pair {
    pub reference: Server,
    pub subject: Server,
    /// Falsifies the subject's answers, to see whether that is noticed.
    pub fault: Option<Fault>,
}

impl Pair {
    /// For one case alone (`own`), or for many.
    pub async fn start(own: bool, flags: &[&'static str]) -> Result<Pair> {
        let start = |program| Server::start(program, own, flags);
        let (reference, subject) = tokio::join!(start(Program::Etcd), start(Program::subject()));
        Ok(Pair { reference: reference?, subject: subject?, fault: None })
    }

    pub async fn stop(self) -> Result<()> {
        let (reference, subject) = tokio::join!(self.reference.stop(), self.subject.stop());
        reference.and(subject)
    }
}
