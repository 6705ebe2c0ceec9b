//! What systemd is told, where it runs Duet as a unit of `Type=notify` (sd_notify(3)): that it serves, what it is doing, that it stops, and
//! with `WatchdogSec=` that it lives.
//!
//! Invariants: nothing waits for systemd, and nothing fails without it. Signs of life are sent by the runtime that serves, between other
//! work, never by a thread of their own: one that stands still sends none.
//!
//! The unit's main process may be the guardian, so that its unit needs `NotifyAccess=all`. What Duet starts must not see
//! [`VARIABLES`]: a PostgreSQL would send the same messages for itself.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::unistd::{getpid, getppid};
use tokio::time::{Instant, sleep};

const SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// So often within systemd's patience a sign of life is sent: one may come late.
const SIGNS: u32 = 4;
/// Before what systemd had no room for is told again.
const AGAIN: Duration = Duration::from_millis(100);
/// Environment variables in which systemd speaks to this process alone.
pub const VARIABLES: [&str; 3] = [SOCKET, WATCHDOG_USEC, WATCHDOG_PID];

/// The way to systemd, if it started this process.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    socket: Option<SocketAddr>,
    patience: Option<Duration>,
}

impl Systemd {
    /// As the environment says.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        // The parent may be the guardian, which is who systemd started.
        let ours = [getpid(), getppid()].map(|pid| pid.to_string());
        let watched = variable(WATCHDOG_PID).is_none_or(|pid| ours.contains(&pid));
        let patience = variable(WATCHDOG_USEC).filter(|_| watched).and_then(|text| text.parse().ok()).filter(|usec| *usec > 0);
        Self { socket: variable(SOCKET).and_then(|text| address(&text).ok()), patience: patience.map(Duration::from_micros) }
    }

    /// Requests are answered from now on. Tries until systemd has room for that: it waits for nothing else.
    pub async fn ready(&self) {
        while !self.tell("READY=1") {
            sleep(AGAIN).await;
        }
    }

    /// It was told to stop.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=Stopping.");
    }

    /// One line for people, in `systemctl status`; false: to be tried again.
    pub fn status(&self, text: &str) -> bool {
        self.tell(&format!("STATUS={text}"))
    }

    /// Sends signs of life for as long as the runtime that this is spawned on goes on.
    pub async fn keep_alive(self) {
        if let Some(mut signs) = self.signs() {
            loop {
                signs.alive();
                sleep(signs.every).await;
            }
        }
    }

    /// What sends signs of life, if systemd waits for them.
    #[must_use]
    pub fn signs(&self) -> Option<Signs> {
        let every = self.patience? / SIGNS;
        Some(Signs { systemd: self.clone(), every, due: Instant::now() })
    }

    /// Whether nothing is left to be done about it; false: systemd reads nothing at this moment.
    fn tell(&self, text: &str) -> bool {
        let Some(to) = &self.socket else { return true };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.send_to_addr(text.as_bytes(), to)
        });
        match sent {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::debug!(%error, text, "systemd can't be told");
                true
            }
        }
    }
}

/// An `@` begins a name without a file.
fn address(text: &str) -> io::Result<SocketAddr> {
    match text.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(text),
    }
}

/// Signs of life, no more of them than are needed.
#[derive(Debug)]
pub struct Signs {
    systemd: Systemd,
    every: Duration,
    due: Instant,
}

impl Signs {
    /// Its caller lives.
    pub fn alive(&mut self) {
        if Instant::now() >= self.due && self.systemd.tell("WATCHDOG=1") {
            self.due = Instant::now() + self.every;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use tempfile::TempDir;

    /// A systemd that has this patience.
    fn systemd(dir: &TempDir, patience: Duration) -> (UnixDatagram, Systemd) {
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (path, usec) = (path.display().to_string(), patience.as_micros().to_string());
        let variables = [(SOCKET, path), (WATCHDOG_USEC, usec), (WATCHDOG_PID, getpid().to_string())];
        (socket, Systemd::of(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone())))
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[tokio::test]
    async fn without_systemd_nothing_is_said_and_nothing_fails() {
        let nobody = Systemd::of(|_| None);
        nobody.ready().await;
        assert!(nobody.signs().is_none());
        let gone = Systemd::of(|name| (name == SOCKET).then(|| "/nonexistent/notify".to_owned()));
        gone.ready().await;
    }

    #[tokio::test]
    async fn readiness_is_told_once_a_systemd_that_was_busy_reads_again() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, systemd) = systemd(&dir, Duration::from_secs(1));
        while systemd.status("more than it has room for") {}
        let (_, heard) = tokio::join!(systemd.ready(), async {
            let reads = move || (0..).map(|_| heard(&socket)).find(|text| !text.starts_with("STATUS")).unwrap();
            tokio::task::spawn_blocking(reads).await.unwrap()
        });
        assert_eq!(heard, "READY=1");
    }

    #[test]
    fn a_watchdog_of_another_process_is_none_of_ours() {
        let of = |pid: i32| {
            Systemd::of(move |name| match name {
                WATCHDOG_USEC => Some("1000000".to_owned()),
                WATCHDOG_PID => Some(pid.to_string()),
                _ => None,
            })
        };
        assert!(of(getpid().as_raw()).signs().is_some() && of(getppid().as_raw()).signs().is_some());
        assert!(of(1_000_000_000).signs().is_none());
    }

    #[test]
    fn names_without_a_file_are_understood() {
        let name = format!("duet-test-{}", getpid());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Systemd::of(|variable| (variable == SOCKET).then(|| format!("@{name}"))).status("so");
        assert_eq!(heard(&socket), "STATUS=so");
    }

    #[test]
    fn a_runtime_that_stands_still_gives_no_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        let patience = Duration::from_millis(40);
        let (socket, systemd) = systemd(&dir, patience);
        let (stand_still, told) = mpsc::channel::<mpsc::Receiver<()>>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.spawn(systemd.keep_alive());
            runtime.block_on(async {
                loop {
                    // Until the test lets go of the other end, nothing else runs here.
                    if let Ok(until) = told.try_recv() {
                        let _ = until.recv();
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            });
        });
        for _ in 0..3 {
            assert_eq!(heard(&socket), "WATCHDOG=1");
        }
        let (go_on, until) = mpsc::channel();
        stand_still.send(until).unwrap();
        // What was sent before it stood still is taken first: then there is silence for several times the patience.
        socket.set_read_timeout(Some(patience * 5)).unwrap();
        let mut buffer = [0; 64];
        while socket.recv(&mut buffer).is_ok() {}
        assert!(socket.recv(&mut buffer).is_err());
        drop(go_on);
        socket.set_read_timeout(None).unwrap();
        assert_eq!(heard(&socket), "WATCHDOG=1");
    }
}
