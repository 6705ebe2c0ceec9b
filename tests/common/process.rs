//! A real duet process for tests.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A wait that hangs must fail the test, not the build machine; starts include an initdb on a busy disk.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// What etcd says, too, when clients can come.
pub const READY: &str = "ready to serve client requests";

/// A running duet, stopped when the test ends: in order, so that its PostgreSQL stops too.
pub struct Process {
    /// The process itself.
    pub child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    /// Removed when the test ends.
    own_dir: Option<TempDir>,
}

impl Process {
    /// Starts `program`, without the environment's options.
    pub fn start(program: &Path, args: &[String]) -> Self {
        let mut command = Command::new(program);
        command.args(args);
        Self::spawn(command)
    }

    /// Starts `command`, which becomes or starts a duet.
    pub fn spawn(mut command: Command) -> Self {
        command.stderr(Stdio::piped()).stdout(Stdio::null()).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DUET_") || name.starts_with("ETCD_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, seen: Vec::new(), own_dir: None }
    }

    /// Waits for a line that contains `text`, and returns it.
    pub fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
        panic!("no line with {text:?} in:\n{}", self.seen.join("\n"));
    }

    /// Whether it has said `text` by now.
    pub fn has_said(&mut self, text: &str) -> bool {
        self.seen.extend(self.lines.try_iter());
        self.seen.iter().any(|line| line.contains(text))
    }

    /// Waits until it serves; its first endpoint.
    pub fn ready(&mut self) -> String {
        let line = self.line(READY);
        let at = line.find("http://").unwrap_or_else(|| panic!("no endpoint in {line}"));
        line[at..].split(['"', ',']).next().unwrap().to_owned()
    }

    /// Sends it.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5)); // a process' end gives no other event to a test
        }
    }

    /// Everything that it said, once it has ended.
    pub fn said(&mut self) -> String {
        self.seen.extend(self.lines.iter());
        self.seen.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!("duet said:\n{}", self.seen.join("\n"));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            self.signal(Signal::SIGCONT);
            let deadline = Instant::now() + PATIENCE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A postmaster and its children.
pub fn family(postmaster: i32) -> Vec<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    std::iter::once(postmaster).chain(children).map(Pid::from_raw).collect()
}

/// The program under test.
pub fn duet() -> PathBuf {
    env!("CARGO_BIN_EXE_duet").into()
}

/// A command line's words.
pub fn args(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// `duet dev` on a free port, with its data in `dir`, over the PostgreSQL that is tested.
pub fn dev(dir: &TempDir, more: &str) -> Process {
    let mut line = format!("dev --listen-client-urls http://127.0.0.1:0 --data-dir {} {more}", dir.path().join("data").display());
    if let Some(bin_dir) = super::bin_dir() {
        line.push_str(&format!(" --pg-bin-dir {}", bin_dir.display()));
    }
    Process::start(&duet(), &args(&line))
}

/// `duet serve` on a free port, over the database at `dsn`, with a data directory of its own.
pub fn serve(dsn: &str) -> Process {
    let dir = super::scratch();
    let mut process = serve_with(dsn, dir.path(), "--listen-client-urls http://127.0.0.1:0");
    process.own_dir = Some(dir);
    process
}

/// `duet serve` over the database at `dsn`, with its data directory and what else its command line says.
pub fn serve_with(dsn: &str, data_dir: &Path, line: &str) -> Process {
    let mut args = args(line);
    args.insert(0, "serve".to_owned());
    for (option, value) in [("--database", dsn), ("--data-dir", &data_dir.to_string_lossy())] {
        args.extend([option.to_owned(), value.to_owned()]);
    }
    Process::start(&duet(), &args)
}
