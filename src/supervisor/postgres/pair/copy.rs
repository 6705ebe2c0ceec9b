//! pg_rewind and pg_basebackup, and what is left of a directory when they are interrupted.
//!
//! A marker file lies beside the data directory while its contents aren't whole. It is durable before the first change and goes only
//! after the last one is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::Postgres;
use super::super::config::DATABASE;
use super::super::data_dir::sync_dir;
use super::super::initdb::{command, kernel_tells_syncfs_errors};
use super::super::process::Family;
use super::mark::HALF_DONE;
use super::{Pursuit, Shared};
use crate::supervisor::process_group::ProcessGroup;

/// Where a new copy grows: this, and letters of its own. A tool that outlives a killed Duet must not write into the next one's copy.
const COPY: &str = "postgres.copy.";
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
    /// It won't. The data directory is as whole as it was.
    Never(String),
    /// It won't, and the data directory isn't whole any more.
    Spoilt(String),
}

/// Why a tool didn't come to its end.
#[derive(Debug)]
enum ToolError {
    /// It never began: the machine had no process or no memory for it.
    NotRun(String),
    /// What it said last.
    Failed(String),
}

impl ToolError {
    fn text(self) -> String {
        match self {
            Self::NotRun(why) => format!("it could not be run: {why}"),
            Self::Failed(said) => said,
        }
    }
}

/// What pg_rewind says before it changes anything, but for a crash recovery as any start would make one.
const REWIND_WRITES: &str = "need to copy";

fn mark(root: &Path, why: &str) -> io::Result<()> {
    HALF_DONE
        .set(root, &format!("{why}\nThe data directory beside this file isn't whole. Duet makes it anew from the leader's.\n"))
}

/// Removes copies that didn't come to their end.
fn remove_copies(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(COPY.as_bytes()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

impl Shared {
    /// Removes what a crash kept [`replace`] from removing. While the data isn't whole, the old is left to people.
    pub(super) fn remove_old(&self) -> io::Result<()> {
        if HALF_DONE.is_set(self.root()) {
            return Ok(());
        }
        remove_copies(self.root())?;
        remove(&self.root().join(OLD))
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Pursuit<'_> {
    /// Takes back what this node wrote and the leader never had. Nothing is changed when there is no such thing.
    pub(super) async fn rewind(&self) -> Result<(), CopyError> {
        self.doing("rewinding to where the leader's history and this node's part");
        let filesystem = self
            .on_disk(|shared| {
                let filesystem = File::open(shared.root())?;
                mark(shared.root(), "pg_rewind was at work")?;
                shared.prepare_rewind().map_err(io::Error::other)?;
                Ok(filesystem)
            })
            .await?;
        let postgres = &self.shared.postgres;
        let mut rewind = tool(postgres, "pg_rewind");
        rewind
            .arg("--target-pgdata")
            .arg(postgres.data_dir.seen_by_postgres(&postgres.data_dir.pgdata()))
            .arg("--source-server")
            .arg(self.shared.network.tool_conninfo(&postgres.data_dir, Some(DATABASE)))
            .arg("--progress")
            .args(unsynced());
        let wrote = AtomicBool::new(false);
        let progress = |line: &str| {
            let percent = percent(line);
            wrote.fetch_or(percent.is_some() || line.contains(REWIND_WRITES), Ordering::Relaxed);
            if let Some(percent) = percent {
                self.doing(format!("rewinding to where the leader's history and this node's part: {percent} %"));
            }
        };
        let error = match run(rewind, REWIND_DEADLINE, progress).await {
            Ok(()) => return self.on_disk(|shared| sync(filesystem).and_then(|()| HALF_DONE.clear(shared.root()))).await,
            Err(error) => error,
        };
        if wrote.into_inner() {
            return Err(CopyError::Spoilt(error.text()));
        }
        self.on_disk(|shared| HALF_DONE.clear(shared.root())).await?;
        Err(match error {
            ToolError::Failed(said) if said.contains("connection to server") && said.contains("failed") => CopyError::Later(said),
            ToolError::Failed(said) => CopyError::Never(said),
            error @ ToolError::NotRun(_) => CopyError::Later(error.text()),
        })
    }

    /// Makes the data directory anew from the leader's. The old one goes when the new one is complete.
    pub(super) async fn copy(&self) -> Result<(), CopyError> {
        self.doing("copying the leader's data");
        let postgres = &self.shared.postgres;
        let (filesystem, copy) = self
            .on_disk(|shared| {
                let root = shared.root();
                let filesystem = File::open(root)?;
                mark(root, "pg_basebackup was at work")?;
                remove_copies(root)?;
                remove(&root.join(OLD))?;
                Ok((filesystem, make_copy(root, &shared.postgres)?))
            })
            .await?;
        let mut backup = tool(postgres, "pg_basebackup");
        backup
            .arg("--pgdata")
            .arg(postgres.data_dir.seen_by_postgres(&copy))
            .arg("--dbname")
            .arg(self.shared.network.tool_conninfo(&postgres.data_dir, None))
            // By the label what a killed Duet left is recognised: see `Family::kill_tools`.
            .arg(Family::label(&postgres.data_dir))
            .args(["--wal-method=stream", "--checkpoint=fast", "--no-password", "--progress", "--slot"])
            .arg(&self.shared.network.own_name)
            .args(unsynced());
        let progress = |line: &str| {
            if let Some(percent) = percent(line) {
                self.doing(format!("copying the leader's data: {percent} %"));
            }
        };
        run(backup, COPY_SILENCE_MAX, progress).await.map_err(|error| CopyError::Later(error.text()))?;
        self.doing("writing the copy to the disk");
        self.on_disk(move |shared| {
            sync(filesystem)?;
            replace(shared.root(), &copy, &shared.postgres.data_dir.pgdata())?;
            shared.trust()
        })
        .await
    }

    /// Does what waits for the disk beside the runtime, as [`Shared::on_disk`]. It may work later.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> io::Result<T> + Send + 'static,
    ) -> Result<T, CopyError> {
        self.shared.on_disk(work).await.map_err(|error| CopyError::Later(error.to_string()))
    }
}

/// How far a tool has got, in whole per cent, if the line tells.
fn percent(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once('(')?;
    let (percent, _) = rest.split_once('%')?;
    percent.trim().split('.').next()
}

/// Has the tools leave the syncing to [`sync`], which needs one journal commit instead of a thousand.
fn unsynced() -> Option<&'static str> {
    kernel_tells_syncfs_errors().then_some("--no-sync")
}

/// Makes durable what a tool wrote without syncing, and tells errors of writes since `filesystem` was opened.
fn sync(filesystem: File) -> io::Result<()> {
    if unsynced().is_none() {
        return Ok(());
    }
    nix::unistd::syncfs(filesystem).map_err(io::Error::from)
}

/// The new copy takes the data directory's place.
fn replace(root: &Path, copy: &Path, pgdata: &Path) -> io::Result<()> {
    match fs::rename(pgdata, root.join(OLD)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(copy, pgdata)?;
    sync_dir(root)?;
    HALF_DONE.clear(root)?;
    remove(&root.join(OLD))
}

/// An empty directory for a copy, for PostgreSQL's user only.
fn make_copy(root: &Path, postgres: &Postgres) -> io::Result<PathBuf> {
    let copy = nix::unistd::mkdtemp(&root.join(format!("{COPY}XXXXXX")))?;
    std::os::unix::fs::chown(&copy, Some(postgres.account.uid), Some(postgres.account.gid))?;
    Ok(copy)
}

fn tool(postgres: &Postgres, name: &str) -> Command {
    let mut tool = command(&postgres.binaries.program(name), &postgres.account);
    tool.current_dir(postgres.data_dir.seen_by_postgres(postgres.data_dir.root()));
    tool
}

/// Starts a tool that ends with this process. The kernel ties it to the thread that starts it, and the runtime's threads come and go: so
/// that is one of its own, which ends after the tool.
async fn spawn(mut tool: Command) -> io::Result<(Child, mpsc::Sender<()>)> {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only these system calls are made, and nothing is allocated.
    unsafe {
        tool.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
    let ((done, until), (answer, answered)) = (mpsc::channel(), oneshot::channel());
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("tool".to_owned()).spawn(move || {
        let spawned = {
            let _runtime = runtime.enter();
            tool.spawn()
        };
        drop(runtime);
        if answer.send(spawned).is_ok() {
            let _: Result<(), _> = until.recv();
        }
    })?;
    answered.await.map_err(io::Error::other)?.map(|child| (child, done))
}

/// Runs a tool of PostgreSQL's to its end; what it said if it failed, or if it says nothing for `silence_max`. `line` gets what it says
/// as it comes.
async fn run(mut tool: Command, silence_max: Duration, line: impl Fn(&str)) -> Result<(), ToolError> {
    tool.stdout(Stdio::null()).stderr(Stdio::piped());
    let (mut child, _thread) = spawn(tool).await.map_err(|error| ToolError::NotRun(error.to_string()))?;
    let group = ProcessGroup::of(&child);
    let failed = |error: io::Error| ToolError::Failed(error.to_string());
    let Some(mut stderr) = child.stderr.take() else { return Err(ToolError::Failed("its output can't be read".to_owned())) };
    let (mut said, mut begun, mut buffer) = (String::new(), String::new(), [0; 4096]);
    loop {
        match timeout(silence_max, stderr.read(&mut buffer)).await {
            Ok(Ok(0)) => break,
            Ok(Ok(length)) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                begun.push_str(&text);
                let whole = begun.rfind(['\r', '\n']).map_or(0, |end| end + 1);
                begun.drain(..whole).as_str().split(['\r', '\n']).filter(|text| !text.is_empty()).for_each(&line);
                said.push_str(&text);
                let surplus = said.len().saturating_sub(SAID_BYTES_MAX);
                let cut = (surplus..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(0);
                said.drain(..cut);
            }
            Ok(Err(error)) => return Err(failed(error)),
            // Killed with its group.
            Err(_) => return Err(ToolError::Failed(format!("no progress for {silence_max:?}"))),
        }
    }
    line(&begun);
    let status = child.wait().await.map_err(failed)?;
    group.ended();
    if status.success() {
        return Ok(());
    }
    let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(ToolError::Failed(format!("{status}: {}", last[last.len().saturating_sub(3)..].join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_the_old_directory_s_place_and_the_marker_goes_last() {
        let dir = tempfile::tempdir().unwrap();
        let (root, pgdata) = (dir.path(), dir.path().join("postgres"));
        for (name, contents) in [("postgres", "old"), ("postgres.copy.1", "new"), ("postgres.copy.0", "interrupted")] {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("PG_VERSION"), contents).unwrap();
        }
        mark(root, "test").unwrap();
        assert!(HALF_DONE.is_set(root));
        replace(root, &root.join("postgres.copy.1"), &pgdata).unwrap();
        assert_eq!(fs::read_to_string(pgdata.join("PG_VERSION")).unwrap(), "new");
        remove_copies(root).unwrap();
        let left: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["postgres"], "no marker, no old data, no other copy");
    }

    #[tokio::test]
    async fn a_tool_s_last_words_are_told() {
        let mut tool = Command::new("sh");
        tool.args(["-c", "echo one >&2; echo two >&2; exit 3"]);
        let said = run(tool, Duration::from_secs(20), |_| ()).await.unwrap_err().text();
        assert!(said.contains('3') && said.ends_with("one; two"), "{said}");
    }
}
