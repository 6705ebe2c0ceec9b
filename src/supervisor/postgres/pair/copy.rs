//! pg_rewind and pg_basebackup, and what is left of a directory when they are interrupted.
//!
//! A marker file lies beside the data directory while its contents aren't whole. It is durable before the first change and goes only
//! after the last one is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::super::Postgres;
use super::super::config::DATABASE;
use super::super::data_dir::{sync_dir, write_durably};
use super::super::initdb::command;
use super::Pursuit;

const MARKER: &str = "postgres.half-done";
const MARKER_SCRATCH: &str = "postgres.half-done.tmp";
/// Where a new copy grows.
const COPY: &str = "postgres.copy";
/// The data directory that a new copy replaces, until it is gone.
const OLD: &str = "postgres.old";
/// A rewind that takes longer won't come to an end.
const REWIND_DEADLINE: Duration = Duration::from_secs(600);
/// Without a sign of progress for so long, a copy is given up.
const COPY_SILENCE_MAX: Duration = Duration::from_secs(60);
const SAID_BYTES_MAX: usize = 16 << 10;

/// Why a copy or a rewind didn't come to its end.
#[derive(Debug)]
pub(super) enum CopyError {
    /// It may work later: the leader wasn't there.
    Later(String),
    /// It won't.
    Never(String),
}

/// Whether the data directory below `root` was left half-done.
pub(super) fn is_half_done(root: &Path) -> bool {
    root.join(MARKER).exists()
}

fn mark(root: &Path, why: &str) -> io::Result<()> {
    let text = format!("{why}\nThe data directory beside this file isn't whole. Duet makes it anew from the leader's.\n");
    write_durably(&root.join(MARKER_SCRATCH), &root.join(MARKER), &text, 0o644, None)
}

fn unmark(root: &Path) -> io::Result<()> {
    match fs::remove_file(root.join(MARKER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(root),
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Pursuit<'_> {
    fn root(&self) -> PathBuf {
        self.shared.postgres.data_dir.root().to_path_buf()
    }

    /// Takes back what this node wrote and the leader never had. Nothing is changed when there is no such thing.
    pub(super) async fn rewind(&self) -> Result<(), CopyError> {
        self.doing("rewinding to where the leader's history and this node's part");
        let root = self.root();
        mark(&root, "pg_rewind was at work").map_err(|error| CopyError::Later(error.to_string()))?;
        let postgres = &self.shared.postgres;
        let mut rewind = tool(postgres, "pg_rewind");
        rewind
            .arg("--target-pgdata")
            .arg(postgres.data_dir.seen_by_postgres(&postgres.data_dir.pgdata()))
            .arg("--source-server")
            .arg(self.shared.network.conninfo(&postgres.data_dir, Some(DATABASE)));
        let said = run(&mut rewind, REWIND_DEADLINE, |_| ()).await;
        let outcome = said.map_err(|said| {
            // Nothing was changed before it had a connection.
            if ["could not connect", "connection to server", "could not fetch", "terminating connection"]
                .iter()
                .any(|c| said.contains(c))
                && !said.contains("could not find common ancestor")
            {
                CopyError::Later(said)
            } else {
                CopyError::Never(said)
            }
        });
        if outcome.is_ok() {
            unmark(&root).map_err(|error| CopyError::Later(error.to_string()))?;
        }
        outcome
    }

    /// Makes the data directory anew from the leader's. The old one goes when the new one is complete.
    pub(super) async fn copy(&self) -> Result<(), CopyError> {
        self.doing("copying the leader's data");
        let (root, postgres) = (self.root(), &self.shared.postgres);
        let later = |error: io::Error| CopyError::Later(error.to_string());
        mark(&root, "pg_basebackup was at work").map_err(later)?;
        let copy = root.join(COPY);
        remove(&copy).map_err(later)?;
        remove(&root.join(OLD)).map_err(later)?;
        make_dir(&copy, postgres).map_err(later)?;
        let mut backup = tool(postgres, "pg_basebackup");
        backup
            .arg("--pgdata")
            .arg(postgres.data_dir.seen_by_postgres(&copy))
            .arg("--dbname")
            .arg(self.shared.network.conninfo(&postgres.data_dir, None))
            .args(["--wal-method=stream", "--checkpoint=fast", "--no-password", "--progress", "--slot"])
            .arg(&self.shared.network.own_name);
        let progress = |line: &str| {
            if let Some(percent) = line.split_once('(').and_then(|(_, rest)| rest.split_once('%')) {
                self.doing(format!("copying the leader's data: {} %", percent.0));
            }
        };
        run(&mut backup, COPY_SILENCE_MAX, progress).await.map_err(CopyError::Later)?;
        replace(&root, &postgres.data_dir.pgdata()).map_err(later)
    }
}

/// The new copy takes the data directory's place.
fn replace(root: &Path, pgdata: &Path) -> io::Result<()> {
    match fs::rename(pgdata, root.join(OLD)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(root.join(COPY), pgdata)?;
    sync_dir(root)?;
    unmark(root)?;
    remove(&root.join(OLD))
}

fn make_dir(dir: &Path, postgres: &Postgres) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(dir)?;
    std::os::unix::fs::chown(dir, Some(postgres.account.uid), Some(postgres.account.gid))
}

fn tool(postgres: &Postgres, name: &str) -> Command {
    let mut tool = command(&postgres.binaries.program(name), &postgres.account);
    tool.current_dir(postgres.data_dir.seen_by_postgres(postgres.data_dir.root()));
    tool
}

/// Runs a tool of PostgreSQL's to its end; what it said if it failed, or if it says nothing for `silence_max`. `line` gets what it says
/// as it comes.
async fn run(tool: &mut Command, silence_max: Duration, line: impl Fn(&str)) -> Result<(), String> {
    let mut child: Child = tool.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let Some(mut stderr) = child.stderr.take() else { return Err("its output can't be read".to_owned()) };
    let (mut said, mut buffer) = (String::new(), [0; 4096]);
    loop {
        match timeout(silence_max, stderr.read(&mut buffer)).await {
            Ok(Ok(0)) => break,
            Ok(Ok(length)) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                text.split(['\r', '\n']).filter(|text| !text.is_empty()).for_each(&line);
                said.push_str(&text);
                let surplus = said.len().saturating_sub(SAID_BYTES_MAX);
                let cut = (surplus..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(0);
                said.drain(..cut);
            }
            Ok(Err(error)) => return Err(error.to_string()),
            // Dropped, and killed with it.
            Err(_) => return Err(format!("no progress for {silence_max:?}")),
        }
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(format!("{status}: {}", last[last.len().saturating_sub(3)..].join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_the_old_directory_s_place_and_the_marker_goes_last() {
        let dir = tempfile::tempdir().unwrap();
        let (root, pgdata) = (dir.path(), dir.path().join("postgres"));
        for (name, contents) in [("postgres", "old"), (COPY, "new")] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("PG_VERSION"), contents).unwrap();
        }
        mark(root, "test").unwrap();
        assert!(is_half_done(root));
        replace(root, &pgdata).unwrap();
        assert_eq!(fs::read_to_string(pgdata.join("PG_VERSION")).unwrap(), "new");
        assert!(!is_half_done(root) && !root.join(OLD).exists() && !root.join(COPY).exists());
    }

    #[tokio::test]
    async fn a_tool_s_last_words_are_told() {
        let mut tool = Command::new("sh");
        tool.args(["-c", "echo one >&2; echo two >&2; exit 3"]);
        let said = run(&mut tool, Duration::from_secs(20), |_| ()).await.unwrap_err();
        assert!(said.contains('3') && said.ends_with("one; two"), "{said}");
    }
}
