//! What systemd is told by Duet as a program: a socket of the test's stands in for systemd.

#[path = "common/mod.rs"]
mod common;
#[path = "faults/history.rs"]
#[allow(dead_code, reason = "tests/faults uses the rest")]
mod history;
#[path = "pair/pair.rs"]
#[allow(dead_code, reason = "tests/pair uses the rest")]
mod pair;
#[path = "faults/postgres.rs"]
#[allow(dead_code, reason = "tests/faults uses the rest")]
mod postgres;

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::process::{PATIENCE, Process, duet};
use common::scratch;
use nix::sys::signal::{Signal, kill};
use pair::{A, B, Pair};
use tempfile::TempDir;

const READY: &str = "READY=1";
const ALIVE: &str = "WATCHDOG=1";
/// As in `WatchdogSec=`.
const WATCHDOG: Duration = Duration::from_millis(1000);

/// Listens for what a unit's processes say.
struct Systemd {
    messages: mpsc::Receiver<String>,
    path: String,
    heard: Vec<String>,
    _dir: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let dir = scratch();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        // PostgreSQL's user may say something, too; it mustn't.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(length) = socket.recv(&mut buffer) {
                if sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Self { messages, path: path.display().to_string(), heard: Vec::new(), _dir: dir }
    }

    /// What a unit's main process finds in its environment. Its number is told as systemd does: the shell becomes it.
    fn start(&self, args: &str) -> Process {
        let mut command = Command::new("sh");
        command
            .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""])
            .arg(duet())
            .args(common::process::args(args))
            .env("NOTIFY_SOCKET", &self.path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        Process::spawn(command)
    }

    /// The next message, if one comes within `patience`.
    fn next(&mut self, patience: Duration) -> Option<String> {
        let text = self.messages.recv_timeout(patience).ok()?;
        self.heard.push(text.clone());
        Some(text)
    }

    /// Waits for a message with `text`.
    fn until(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(message) = self.next(deadline.saturating_duration_since(Instant::now())) {
            if message.contains(text) {
                return message;
            }
        }
        panic!("no {text:?} in {:?}", self.heard)
    }

    fn has_heard(&self, text: &str) -> bool {
        self.heard.iter().any(|message| message.contains(text))
    }

    /// Waits until nothing has come for several times the watchdog's patience.
    fn until_silent(&mut self) {
        let began = Instant::now();
        while self.next(3 * WATCHDOG).is_some() {
            assert!(began.elapsed() < PATIENCE, "it still speaks: {:?}", self.heard.last());
        }
    }
}

#[test]
fn a_server_says_when_it_serves_that_it_lives_and_that_it_stops_and_its_postgresql_says_nothing() {
    let (mut systemd, dir) = (Systemd::new(), scratch());
    let data = dir.path().join("data");
    let mut server = systemd.start(&format!("dev --listen-client-urls http://127.0.0.1:0 --data-dir {}", data.display()));
    systemd.until(READY);
    server.ready();
    systemd.until(ALIVE);
    server.signal(Signal::SIGSTOP);
    systemd.until_silent();
    server.signal(Signal::SIGCONT);
    systemd.until(ALIVE);
    server.signal(Signal::SIGTERM);
    systemd.until("STOPPING=1");
    server.ended();
    while systemd.next(Duration::from_millis(1)).is_some() {}
    assert_eq!(systemd.heard.iter().filter(|message| message.contains(READY)).count(), 1, "{:?}", systemd.heard);
    assert_eq!(systemd.heard.iter().filter(|message| message.contains("STOPPING")).count(), 1, "{:?}", systemd.heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_for_whom_it_waits_and_is_ready_when_it_answers_and_its_guardian_s_child_shows_that_it_lives() {
    let (mut a, mut pair) = (Systemd::new(), Pair::begin(true));
    pair.start_witness();
    let node = |pair: &Pair, node| format!("node --pg-shared-buffers=32MiB --config-file {}", pair.config(node).display());
    pair.nodes[A] = Some(a.start(&node(&pair, A)));
    assert!(a.until("STATUS=Nobody has said").contains("waiting for node B"));
    a.until(ALIVE);
    assert!(!a.has_heard(READY), "without its peer it can't begin the store: {:?}", a.heard);

    let mut b = Systemd::new();
    pair.nodes[B] = Some(b.start(&node(&pair, B)));
    a.until(READY);
    a.until("STATUS=Leads with the peer in step");
    b.until("STATUS=Follows, ready");
    assert!(b.has_heard(READY), "{:?}", b.heard);

    // The guardian stands still, and so does what it guards: then nobody pretends to live.
    pair.pause(A);
    a.until_silent();
    let guarded = pair.guarded(A);
    kill(guarded, Signal::SIGCONT).unwrap();
    pair.node(A).signal(Signal::SIGCONT);
    a.until(ALIVE);
    b.until("STATUS=Leads");
}

#[test]
fn a_witness_says_so_too() {
    let mut systemd = Systemd::new();
    let pair = Pair::begin(true);
    let config = pair.witness_config();
    let mut witness = systemd.start(&format!("witness --config-file {}", config.display()));
    systemd.until(READY);
    systemd.until(ALIVE);
    witness.signal(Signal::SIGTERM);
    systemd.until("STOPPING=1");
    assert!(witness.ended().success());
}
