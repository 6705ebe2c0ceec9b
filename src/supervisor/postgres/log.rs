//! PostgreSQL's log lines: into Duet's own log, and, when it fails, into one sentence.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use super::{data_dir::Names, error::StartError};

/// PostgreSQL's `log_line_prefix`: the process id.
pub const LINE_PREFIX: &str = "[%p] ";

const LINE_BYTES_MAX: usize = 4096;
const RECENT_LINES_MAX: usize = 40;
/// A warning that comes again within so long is the same one, going on.
const REPEATED: Duration = Duration::from_secs(10);

/// How serious a line is, after PostgreSQL's own levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// The last serious lines, from which the reason of a failure is read.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    said: Arc<Mutex<Said>>,
    names: Names,
}

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    disk: DiskFaults,
    progress: Option<String>,
    /// The last warning, and when it came last.
    warned: Option<(String, Instant)>,
}

/// What a process told of its disk, however much it said afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// The disk failed to keep, or to give back, what was written: nobody knows what is on it.
    pub failed: bool,
    /// It had no room.
    pub full: bool,
}

impl DiskFaults {
    fn of(line: &str) -> Self {
        let has = |parts: &[&str]| parts.iter().any(|part| line.contains(part));
        let fatal = has(&["PANIC:", "FATAL:"]);
        let full = fatal && has(&["No space left on device", "Disk quota exceeded"]);
        // With data_sync_retry off every failed fsync ends the server.
        let failed = line.contains("PANIC:") && has(&["could not fsync", "could not fdatasync", "Input/output error"]);
        Self { failed: failed && !full, full }
    }
}

impl Recent {
    /// No lines yet; those that come will call the data directory by people's name for it.
    pub fn naming(names: Names) -> Self {
        Self { said: Arc::default(), names }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut said = self.lock();
        let disk = DiskFaults::of(&line);
        said.disk.failed |= disk.failed;
        said.disk.full |= disk.full;
        if let Some(progress) = progress(&line) {
            said.progress = Some(progress);
        }
        if said.lines.len() == RECENT_LINES_MAX {
            said.lines.pop_front();
        }
        said.lines.push_back(line);
    }

    /// Forgets everything: a new process starts.
    pub fn clear(&self) {
        *self.lock() = Said::default();
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    /// What was said of the disk since the process started.
    pub fn disk(&self) -> DiskFaults {
        self.lock().disk
    }

    /// Whether this warning is the last one again, but for its numbers, and has been coming all the time since it was told: a standby that can't
    /// reach its leader, or has no room for what that sends, has one ten times a second.
    fn is_repeated(&self, warning: &str) -> bool {
        let now = Instant::now();
        let kind = warning.replace(|c: char| c.is_ascii_digit(), "");
        let before = self.lock().warned.replace((kind.clone(), now));
        before.is_some_and(|(text, at)| text == kind && now - at < REPEATED)
    }

    /// How far a start that takes long has got, such as `redo in progress, at 0/3A000028`. Another text is progress.
    pub fn progress(&self) -> Option<String> {
        self.lock().progress.clone()
    }

    /// Whether it asks a leader, for all that is known, for WAL that this one doesn't have any more.
    pub fn lacks_wal(&self) -> bool {
        self.last_words().is_some_and(|line| is_lack_of_wal(&line))
    }

    /// The last line that names an error, else the last line.
    pub fn last_words(&self) -> Option<String> {
        let lines = self.lines();
        let serious = lines.iter().rev().find(|line| ["PANIC:", "FATAL:"].iter().any(|l| line.contains(l)));
        serious.or(lines.last()).cloned()
    }
}

/// Whether a standby says with it that its leader doesn't have the WAL any more that is needed.
pub(super) fn is_lack_of_wal(line: &str) -> bool {
    line.contains("requested WAL segment") && line.contains("has already been removed")
}

/// What PostgreSQL says while it syncs and replays (`log_startup_progress_interval`), without the time that has passed.
fn progress(line: &str) -> Option<String> {
    let (what, rest) = line.strip_prefix("LOG:  ")?.split_once(", elapsed time: ")?;
    let (_, at) = rest.split_once(", current ")?;
    Some(format!("{what}, at {}", at.split_once(": ")?.1))
}

/// Forwards lines until the other end closes. A line longer than 4 KiB is cut.
pub async fn forward(mut stderr: impl AsyncBufRead + Unpin, recent: Recent) {
    let mut line = Vec::new();
    loop {
        let chunk = match stderr.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(chunk) => chunk,
        };
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let text = &chunk[..end.unwrap_or(chunk.len())];
        line.extend_from_slice(&text[..text.len().min(LINE_BYTES_MAX - line.len())]);
        let consumed = end.map_or(chunk.len(), |at| at + 1);
        stderr.consume(consumed);
        if end.is_some() {
            take_line(&String::from_utf8_lossy(&line), &recent);
            line.clear();
        }
    }
    if !line.is_empty() {
        take_line(&String::from_utf8_lossy(&line), &recent);
    }
}

fn take_line(line: &str, recent: &Recent) {
    let (level, text) = classify(line);
    let text = recent.names.for_people(text);
    match level {
        Level::Error => tracing::error!(target: "postgres", "{text}"),
        Level::Warn if recent.is_repeated(&text) => tracing::debug!(target: "postgres", "{text}"),
        Level::Warn => tracing::warn!(target: "postgres", "{text}"),
        Level::Info => tracing::info!(target: "postgres", "{text}"),
        Level::Debug => tracing::debug!(target: "postgres", "{text}"),
    }
    recent.push(text.into_owned());
}

fn classify(line: &str) -> (Level, &str) {
    let text = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((pid, rest)) if pid.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => line,
    };
    let worth_seeing = ["not properly shut down", "redo starts", "redo done", "was terminated by signal", "exited with"];
    let level = match text.split_once(":  ").map(|(level, _)| level) {
        Some("PANIC") => Level::Error,
        // Each attempt to connect while it starts or stops earns one of these.
        Some("FATAL") if text.contains("the database system is ") => Level::Debug,
        // What every open session says at a stop in order; whoever uses the session tells of an end that nobody asked for.
        Some("FATAL") if text.contains("terminating connection due to administrator command") => Level::Debug,
        Some("FATAL" | "ERROR" | "WARNING") => Level::Warn,
        Some("LOG") if worth_seeing.iter().any(|part| text.contains(part)) => Level::Info,
        _ => Level::Debug,
    };
    (level, text)
}

/// The kind of failure that PostgreSQL's (or initdb's) last words tell of.
pub fn explain(what: &str, lines: &[String], pgdata: &Path, socket_dir: &Path, user: &str) -> StartError {
    let find = |parts: &[&str]| {
        lines.iter().find(|line| parts.iter().any(|part| line.contains(part))).map(|line| strip_level(line).to_owned())
    };
    if find(&["No space left on device", "Disk quota exceeded"]).is_some() {
        return StartError::DiskFull { path: pgdata.to_path_buf() };
    }
    if let Some(detail) = find(&[
        "could not map anonymous shared memory",
        "could not create shared memory segment",
        "could not resize shared memory segment",
    ]) {
        return StartError::SharedMemory { detail };
    }
    if let Some(detail) =
        find(&["could not bind Unix address", "could not create any Unix-domain sockets", "is another postmaster"])
    {
        return StartError::SocketInUse { socket_dir: socket_dir.to_path_buf(), detail };
    }
    // Named as the system names it, not as a directory: "/PostgreSQL.123".
    if find(&["could not open shared memory segment"]).is_some() {
        return StartError::Permission {
            what: "can't make shared memory in /dev/shm".to_owned(),
            user: user.to_owned(),
            way_out: "chmod 1777 /dev/shm, or mount a tmpfs there".to_owned(),
        };
    }
    if let Some(what) = find(&["Permission denied", "has wrong ownership", "has invalid permissions", "Read-only file system"]) {
        return StartError::Permission {
            what,
            user: user.to_owned(),
            way_out: format!("chown -R {user} {0} && chmod 0700 {0}", pgdata.display()),
        };
    }
    let damage = [
        "could not locate a valid checkpoint record",
        "could not locate required checkpoint record",
        "invalid checkpoint record",
        "database files are incompatible",
        "database file appears to be corrupted",
        "incorrect checksum in control file",
        "global/pg_control\"",
        "invalid page in block",
        "page verification failed",
    ];
    if let Some(detail) = find(&damage) {
        return StartError::Damaged { pgdata: pgdata.to_path_buf(), detail };
    }
    let serious = lines.iter().rev().find(|line| ["PANIC:", "FATAL:", "error:"].iter().any(|l| line.contains(l)));
    let detail = serious.or(lines.last()).map_or("it said nothing", |line| strip_level(line)).to_owned();
    StartError::Failed { what: what.to_owned(), detail }
}

fn strip_level(line: &str) -> &str {
    line.split_once(":  ").filter(|(level, _)| level.bytes().all(|b| b.is_ascii_uppercase())).map_or(line, |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_postgresqls_but_what_every_start_and_stop_says_is_no_warning() {
        assert_eq!(classify("[12] LOG:  listening"), (Level::Debug, "LOG:  listening"));
        assert_eq!(classify("[12] PANIC:  could not fsync").0, Level::Error);
        assert_eq!(classify("[12] FATAL:  out of memory").0, Level::Warn);
        assert_eq!(classify("[12] FATAL:  terminating connection due to administrator command").0, Level::Debug);
        assert_eq!(classify("[12] FATAL:  the database system is starting up").0, Level::Debug);
        assert_eq!(classify("[12] LOG:  server process (PID 3) was terminated by signal 9: Killed").0, Level::Info);
        assert_eq!(classify("\tcontinued").0, Level::Debug);
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_and_the_next_one_is_whole() {
        let recent = Recent::default();
        let mut text = "x".repeat(LINE_BYTES_MAX * 3);
        text.push_str("\n[7] FATAL:  sorry\n[8] LOG:  no newline at the end");
        forward(text.as_bytes(), recent.clone()).await;
        let lines = recent.lines();
        assert_eq!(lines[0].len(), LINE_BYTES_MAX);
        assert_eq!(lines[1..], ["FATAL:  sorry".to_owned(), "LOG:  no newline at the end".to_owned()]);
        assert_eq!(recent.last_words().as_deref(), Some("FATAL:  sorry"));
    }

    #[test]
    fn a_disk_that_failed_is_remembered_however_much_is_said_afterwards() {
        let recent = Recent::default();
        recent.push("WARNING:  could not fsync file \"x\": Input/output error".to_owned());
        recent.push("FATAL:  the database system is starting up".to_owned());
        assert_eq!(recent.disk(), DiskFaults::default());
        recent.push("PANIC:  could not fdatasync file \"000000010000000000000003\": Input/output error".to_owned());
        (0..2 * RECENT_LINES_MAX).for_each(|_| recent.push("WARNING:  terminating connection".to_owned()));
        assert_eq!(recent.disk(), DiskFaults { failed: true, full: false });
        recent.clear();
        recent.push("PANIC:  could not write to file \"pg_wal/xlogtemp.7\": No space left on device".to_owned());
        assert_eq!(recent.disk(), DiskFaults { failed: false, full: true });
        recent.clear();
        recent.push("PANIC:  could not fsync file \"pg_wal/xlogtemp.7\": No space left on device".to_owned());
        assert_eq!(recent.disk(), DiskFaults { failed: false, full: true }, "nothing was lost");
    }

    #[test]
    fn a_warning_that_comes_again_and_again_is_told_once() {
        let recent = Recent::default();
        let told = ["one", "one", "two", "one", "one"].map(|warning| !recent.is_repeated(warning));
        assert_eq!(told, [true, false, true, true, false]);
        assert!(!recent.is_repeated("no room for file 17") && recent.is_repeated("no room for file 4"), "its numbers aside");
        assert!(!recent.is_repeated("one"));
        recent.lock().warned.as_mut().unwrap().1 -= REPEATED;
        assert!(!recent.is_repeated("one"), "the same trouble at another time");
    }

    #[test]
    fn a_start_that_takes_long_tells_how_far_it_has_got() {
        let recent = Recent::default();
        recent.push("LOG:  redo starts at 0/1502B98".to_owned());
        assert_eq!(recent.progress(), None);
        recent.push("LOG:  syncing data directory (pre-fsync), elapsed time: 10.00 s, current path: ./base/5/1259".to_owned());
        assert_eq!(recent.progress().as_deref(), Some("syncing data directory (pre-fsync), at ./base/5/1259"));
        recent.push("LOG:  redo in progress, elapsed time: 1.00 s, current LSN: 0/1A00028".to_owned());
        let first = recent.progress();
        assert_eq!(first.as_deref(), Some("redo in progress, at 0/1A00028"));
        recent.push("LOG:  redo in progress, elapsed time: 2.00 s, current LSN: 0/1A00028".to_owned());
        assert_eq!(recent.progress(), first, "time alone is no progress");
        recent.clear();
        assert_eq!(recent.progress(), None);
    }

    #[test]
    fn shared_memory_that_is_closed_is_not_taken_for_the_data_directory() {
        let line = "FATAL:  could not open shared memory segment \"/PostgreSQL.1804289383\": Permission denied".to_owned();
        let error = explain("start", &[line], Path::new("/d"), Path::new("/s"), "postgres");
        assert_eq!(error.exit_code(), 77);
        let text = error.to_string();
        assert!(text.contains("chmod 1777 /dev/shm") && !text.contains("/d "), "{text}");
    }

    #[test]
    fn last_words_become_the_kind_of_failure_they_tell_of() {
        let code = |line: &str| explain("start", &[line.to_owned()], Path::new("/d"), Path::new("/s"), "postgres").exit_code();
        assert_eq!(code("FATAL:  could not write lock file \"postmaster.pid\": No space left on device"), 74);
        assert_eq!(code("FATAL:  could not map anonymous shared memory: Cannot allocate memory"), 71);
        assert_eq!(code("FATAL:  data directory \"/d\" has wrong ownership"), 77);
        assert_eq!(code("LOG:  could not bind Unix address \"/s/.s.PGSQL.5432\": Address already in use"), 73);
        assert_eq!(code("PANIC:  could not locate a valid checkpoint record"), 66);
        assert_eq!(code("FATAL:  something new"), 70);
    }
}
