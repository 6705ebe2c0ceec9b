//! PostgreSQL's processes: starting the postmaster, telling when it is ready, ending it and what it left behind.
//!
//! All of PostgreSQL's processes inherit a lock (as their standard input), so that taking it proves that every one of
//! them has ended, shared memory included, however they ended and even when they can't be seen from here. Only then is
//! anything removed or a new postmaster started.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Child, sync::mpsc, time::Instant};

use super::{
    PostgresOptions,
    binaries::Binaries,
    config,
    data_dir::{DOORS, DataDir},
    error::StartError,
    initdb, log,
    user::Account,
};

const POLL: Duration = Duration::from_millis(5);
/// How long each way of stopping leftovers is given before the next, harsher one.
const FAST_DEADLINE: Duration = Duration::from_secs(20);
const IMMEDIATE_DEADLINE: Duration = Duration::from_secs(2);
const KILL_DEADLINE: Duration = Duration::from_secs(5);
const PROCESSES_MAX: usize = 1 << 20;

/// How PostgreSQL ended, for people and for the restart's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The postmaster's exit status; None when it couldn't be learnt.
    pub status: Option<ExitStatus>,
    /// Its last serious log line.
    pub last_words: Option<String>,
}

/// Proof that no process of the data directory's PostgreSQL lives: the lock that all of them would hold.
#[derive(Debug)]
pub struct AllEnded(File);

/// What is needed to know, and to signal, the processes of one data directory.
#[derive(Debug, Clone)]
pub struct Family {
    pgdata: PathBuf,
    lock: PathBuf,
    title: String,
    name_argument: String,
    label: String,
    uid: u32,
}

impl Family {
    /// The processes of `data_dir`'s PostgreSQL, which run as `account`.
    pub fn of(data_dir: &DataDir, account: &Account) -> Self {
        Self {
            pgdata: data_dir.pgdata(),
            lock: data_dir.postgres_lock(),
            title: format!("postgres: {}: ", data_dir.cluster_name()),
            name_argument: format!("cluster_name={}", data_dir.cluster_name()),
            label: Self::label(data_dir),
            uid: account.uid,
        }
    }

    /// The living processes: (process id, is it the postmaster). Recognised by user and command line, which are
    /// readable also where /proc hides more (containers).
    fn members(&self) -> Vec<(Pid, bool)> {
        self.command_lines().filter_map(|(pid, line)| Some((pid, self.recognise(&line)?))).collect()
    }

    /// The processes of the user, with their command lines.
    fn command_lines(&self) -> impl Iterator<Item = (Pid, Vec<u8>)> {
        fs::read_dir("/proc").into_iter().flatten().take(PROCESSES_MAX).flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
            entry.metadata().is_ok_and(|m| m.uid() == self.uid).then_some(())?;
            Some((Pid::from_raw(pid), fs::read(entry.path().join("cmdline")).ok()?))
        })
    }

    /// What the command line of a pg_basebackup has, by which [`Family::kill_tools`] knows it.
    pub fn label(data_dir: &DataDir) -> String {
        format!("--label={}", data_dir.cluster_name())
    }

    /// Kills what is left of a copy under way. A tool ends with the Duet that started it, but pg_basebackup has a second process, which goes
    /// on receiving WAL, and holds the slot, for ever.
    pub fn kill_tools(&self) {
        for (pid, line) in self.command_lines() {
            let mut words = line.split(|byte| *byte == 0);
            let is_tool = words.next().is_some_and(|program| program.ends_with(b"/pg_basebackup"));
            if is_tool && words.any(|word| word == self.label.as_bytes()) {
                tracing::info!(%pid, "killing the pg_basebackup of an earlier run");
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }

    /// What is being replayed, by the title of the process that does it: such as `recovering 000000010000000000000003`.
    pub fn replays(&self) -> Option<String> {
        let title = format!("{}startup ", self.title);
        self.command_lines().find_map(|(_, line)| {
            let what = line.strip_prefix(title.as_bytes())?;
            let text = String::from_utf8_lossy(what);
            Some(text.trim_end_matches(['\0', ' ']).to_owned()).filter(|text| text.starts_with("recovering"))
        })
    }

    fn recognise(&self, command_line: &[u8]) -> Option<bool> {
        if command_line.starts_with(self.title.as_bytes()) {
            return Some(false);
        }
        let mut words = command_line.split(|byte| *byte == 0);
        let program = words.next()?;
        let is_ours = program.ends_with(b"/postgres")
            && words.next() == Some(b"-D")
            && words.next().is_some_and(|dir| {
                // Behind a door the path says nothing: the cluster's name does.
                let through_door = dir.starts_with(DOORS.as_bytes()) && words.any(|word| word == self.name_argument.as_bytes());
                through_door || dir == self.pgdata.as_os_str().as_encoded_bytes()
            });
        is_ours.then_some(true)
    }

    fn signal(&self, signal: Signal, postmaster_only: bool) {
        for (pid, is_postmaster) in self.members() {
            if is_postmaster || !postmaster_only {
                // Gone in between: what was wanted.
                let _ = kill(pid, signal);
            }
        }
    }

    /// Whether all processes have ended; then the lock that proves it.
    fn try_lock(&self) -> Result<Option<AllEnded>, StartError> {
        let error = |e| StartError::from_io("can't lock", &self.lock, "root", e);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.lock).map_err(error)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(AllEnded(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(error(e)),
        }
    }

    /// Whether every process has ended.
    pub fn has_ended(&self) -> bool {
        self.try_lock().is_ok_and(|lock| lock.is_some())
    }

    /// Kills every process, also those that are stopped, and waits until they are gone, but not for ever.
    pub async fn kill(&self, deadline: Duration) {
        let began = Instant::now();
        while began.elapsed() < deadline && !self.has_ended() {
            // Again each time: a process that was being started when the others were looked for.
            self.signal(Signal::SIGKILL, false);
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every process has ended, ending them: fast, then at once, then by force.
    pub async fn end(&self) -> Result<AllEnded, StartError> {
        let began = Instant::now();
        let mut said = false;
        for (signal, postmaster_only, deadline) in [
            (Signal::SIGINT, true, FAST_DEADLINE),
            (Signal::SIGQUIT, false, IMMEDIATE_DEADLINE),
            (Signal::SIGKILL, false, KILL_DEADLINE),
        ] {
            let step_began = Instant::now();
            let mut signalled = false;
            loop {
                if let Some(lock) = self.try_lock()? {
                    return Ok(lock);
                }
                let members = self.members();
                if !said {
                    said = true;
                    tracing::info!(processes = members.len(), data = %self.pgdata.display(), "stopping the PostgreSQL of an earlier run");
                }
                if !signalled {
                    signalled = true;
                    self.signal(signal, postmaster_only);
                }
                // Without a postmaster nobody forwards a signal; the others end by themselves soon, or with the next step.
                let orphans = postmaster_only && !members.iter().any(|(_, is_postmaster)| *is_postmaster);
                let patience = if orphans { Duration::from_millis(200) } else { deadline };
                if step_began.elapsed() >= patience {
                    break;
                }
                tokio::time::sleep(POLL).await;
            }
        }
        let who = match self.members().first() {
            Some((pid, _)) => format!("process {pid}"),
            None => "it (no process is visible from here: look in other containers)".to_owned(),
        };
        Err(StartError::StillRunning { pgdata: self.pgdata.clone(), waited: began.elapsed(), who })
    }
}

/// Removes the `postmaster.pid` of a postmaster that is known to be gone, which PostgreSQL would otherwise take for a
/// live one when the number now belongs to another process (usual in containers).
pub fn remove_stale_pid_file(pgdata: &Path, _proof: &AllEnded) {
    if fs::remove_file(pgdata.join("postmaster.pid")).is_ok() {
        tracing::debug!("removed the postmaster.pid of a postmaster that has ended");
    }
}

/// Starts the postmaster, which takes over `lock`.
pub fn spawn(
    binaries: &Binaries,
    data_dir: &DataDir,
    account: &Account,
    socket_dir: &Path,
    options: &PostgresOptions,
    lock: AllEnded,
) -> Result<Child, StartError> {
    let program = binaries.program("postgres");
    initdb::command(&program, account)
        .arg("-D")
        .arg(data_dir.seen_by_postgres(&data_dir.pgdata()))
        .args(config::arguments(data_dir, socket_dir, options, binaries.version))
        .current_dir(data_dir.seen_by_postgres(data_dir.root()))
        .stdin(Stdio::from(lock.0))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // It stops by signal and in order; see Postgres::stop and its Drop.
        .kill_on_drop(false)
        .spawn()
        .map_err(|e| StartError::from_io("can't run", &program, &account.name, e))
}

/// Whether the postmaster says that it accepts connections (the last line of its pid file; pg_ctl looks there, too).
pub fn says_ready(pgdata: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(pgdata.join("postmaster.pid")) else { return false };
    let mut lines = text.lines();
    lines.next().and_then(|first| first.trim().parse().ok()) == Some(pid)
        && lines.nth(6).is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
}

/// Waits for the child's end, passing on signals to it until then. A signal can't hit another process: the number stays
/// taken until the wait has returned.
pub async fn watch(mut child: Child, mut signals: mpsc::Receiver<Signal>, recent: log::Recent) -> Exit {
    let reader = child.stderr.take().map(|stderr| tokio::spawn(log::forward(tokio::io::BufReader::new(stderr), recent.clone())));
    let status: io::Result<ExitStatus> = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(signal) = signals.recv() => {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
        }
    };
    // Orphans may hold the pipe's other end a little longer; the postmaster's own last words are in it by now.
    if let Some(reader) = reader {
        let _ = tokio::time::timeout(Duration::from_millis(200), reader).await;
    }
    Exit { status: status.ok(), last_words: recent.last_words() }
}
