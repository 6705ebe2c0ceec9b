//! A real PostgreSQL for tests, started by Duet's own supervisor.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod disk_fault;
pub mod peers;
pub mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use duet::supervisor::postgres::{Postgres, PostgresOptions};
use tempfile::TempDir;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};
use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How long a stop in order may take.
pub const STOP: Duration = Duration::from_secs(30);

/// Where the PostgreSQL to test is, when it isn't the installed one that Duet finds by itself (`make test-postgres`).
pub fn bin_dir() -> Option<PathBuf> {
    std::env::var_os("DUET_TEST_PG_BIN_DIR").map(PathBuf::from)
}

/// A directory that PostgreSQL's user can reach, too.
pub fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("duet-test-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// From now on a test that fails shows what Duet's log, with PostgreSQL's own lines, told meanwhile.
pub fn show_log() {
    let told = Targets::new().with_targets([("duet", Level::DEBUG), ("postgres", Level::DEBUG)]);
    let shown = tracing_subscriber::fmt::layer().with_test_writer().with_ansi(false);
    // Another test of the same process may have been first.
    let _ = tracing_subscriber::registry().with(shown.with_filter(told)).try_init();
}

/// Makes a program of a shell script. Another process writes it: a file that is open for writing can't be run, and here any process that a
/// test is just starting may hold it open.
pub fn script(at: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh").args(["-c", write]).arg(at).arg(format!("#!/bin/sh\n{text}\n")).status().unwrap();
    assert!(written.success(), "can't write {}", at.display());
}

/// The directory, in `dir`, of a PostgreSQL that only says that it is of `version`.
pub fn fake_binaries(dir: &Path, version: &str) -> PathBuf {
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["postgres", "initdb"] {
        script(&bin.join(program), &format!("echo 'postgres (PostgreSQL) {version}'"));
    }
    bin
}

/// A small server in `dir`.
pub fn options(dir: &TempDir) -> PostgresOptions {
    PostgresOptions { shared_buffers_bytes: Some(32 << 20), bin_dir: bin_dir(), ..PostgresOptions::new(dir.path().join("data")) }
}

/// A plain session.
pub async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What PostgreSQL warns of while somebody connects and asks `sql`.
pub async fn warnings(config: &Config, sql: &str) -> Vec<String> {
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let asked = async move { client.simple_query(sql).await.unwrap() };
    let listened = async {
        let mut warnings = Vec::new();
        while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message.unwrap() {
                warnings.push(notice.message().to_owned());
            }
        }
        warnings
    };
    tokio::join!(asked, listened).1
}

/// A server that this process' tests share; it stops when the last of them has let go of it.
struct Server {
    config: Config,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
static DATABASES: AtomicU32 = AtomicU32::new(0);

impl Server {
    fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let (send_config, config) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        // A thread of its own: each test's runtime ends with the test.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let dir = scratch();
                // The machine doesn't stop in the middle of a test: what processes lose is the same without fsync.
                let quick = PostgresOptions { fsync: false, ..options(&dir) };
                let postgres = Postgres::start(quick).await.unwrap();
                send_config.send(postgres.connect_config()).unwrap();
                let _: Result<(), _> = tokio::task::spawn_blocking(move || stopped.recv()).await.unwrap();
                postgres.stop(STOP).await;
            });
        });
        let server = Arc::new(Self { config: config.recv().unwrap(), stop: Some(stop), thread: Some(thread) });
        *shared = Arc::downgrade(&server);
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// An empty database of a test's own on the shared server.
pub struct Database {
    /// How to connect to it.
    pub config: Config,
    server: Arc<Server>,
}

impl Database {
    /// Makes one.
    pub async fn new() -> Self {
        let server = tokio::task::spawn_blocking(Server::shared).await.unwrap();
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        connect(&server.config).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let mut config = server.config.clone();
        config.dbname(&name);
        Self { config, server }
    }

    /// A plain session.
    pub async fn client(&self) -> Client {
        connect(&self.config).await
    }
}

/// A small file system of its own, unmounted at the end.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    /// Mounts one; only root can.
    pub fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir(at).unwrap();
        let options = format!("size={size},mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status().unwrap();
        assert!(mounted.success(), "can't mount a tmpfs");
        Self(at.to_path_buf())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl SmallDisk {
    /// Takes all the room there is, also what has become free since the last time, until the answer's file is removed.
    pub fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut fill = Command::new("dd");
        fill.arg("if=/dev/zero").arg(format!("of={}", ballast.display())).args(["oflag=append", "conv=notrunc"]);
        assert!(!fill.stderr(Stdio::null()).status().unwrap().success(), "dd ends at the full disk");
        ballast
    }
}
