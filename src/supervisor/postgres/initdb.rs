//! Makes PostgreSQL's data directory, all of it or nothing.
//!
//! initdb works in a directory of another name without syncing, then everything is synced once, then the directory gets
//! its name. A crash before that leaves only the other name, which the next start throws away.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::{
    binaries::Binaries,
    config::ROLE,
    data_dir::{DataDir, sync_dir},
    error::StartError,
    log,
    user::Account,
};
use crate::telemetry::systemd::VARIABLES;

/// A WAL segment, in MiB. Smaller than PostgreSQL's default, 16: a promotion writes a whole one, which took half of its time, and so does a commit
/// that finds none to be used again (docs/performance.md).
const WAL_SEGMENT_MIB: usize = 4;
/// How many WAL segments are made with the data directory: as many as `min_wal_size` keeps.
const WAL_SEGMENTS: u64 = 32;
/// How much must stay free on the disk for that, in bytes.
const FREE_BYTES_MIN: u64 = 1 << 30;
const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// A command of PostgreSQL's that runs as `account` and doesn't see settings meant for somebody else's psql, nor systemd's messages to Duet:
/// a PostgreSQL would answer them, and be taken for it.
pub fn command(program: &Path, account: &Account) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if VARIABLES.contains(&&*name_text)
            || name_text.starts_with("PG")
            || name_text.starts_with("LC_")
            || name_text == "LANG"
            || name_text == "LANGUAGE"
        {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    account.apply(&mut command);
    command
}

/// Finds out, before anything is written, whether `account` can run the binaries and reach the data directory; gives it a door into
/// the latter when the directories above are closed to it.
pub async fn check_access(binaries: &Binaries, data_dir: &mut DataDir, account: &Account) -> Result<(), StartError> {
    if runs_in(data_dir.root(), binaries, account).await? {
        return Ok(());
    }
    if !runs_in(Path::new("/"), binaries, account).await? {
        return Err(unreachable_for(account, &binaries.bin_dir));
    }
    let opened = data_dir.open_door();
    if opened.is_ok() && runs_in(&data_dir.seen_by_postgres(data_dir.root()), binaries, account).await.unwrap_or(false) {
        tracing::info!(directory = %data_dir.root().display(), user = account.name, "a directory above is closed to PostgreSQL's user: it inherits this one");
        return Ok(());
    }
    // Without /proc, or where a security module forbids it.
    data_dir.close_door();
    Err(unreachable_for(account, data_dir.root()))
}

/// Whether `account` can run `postgres` and work in `dir`.
async fn runs_in(dir: &Path, binaries: &Binaries, account: &Account) -> Result<bool, StartError> {
    let program = binaries.program("postgres");
    let run = command(&program, account).arg("--version").current_dir(dir).output();
    match tokio::time::timeout(STEP_DEADLINE, run).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Ok(Err(e)) => Err(StartError::from_io("can't run", &program, &account.name, e)),
        Err(_) => Err(StartError::Failed {
            what: format!("{} --version", program.display()),
            detail: format!("no answer within {STEP_DEADLINE:?}"),
        }),
    }
}

/// Names the directory on the way to `path` that keeps `account` out.
fn unreachable_for(account: &Account, path: &Path) -> StartError {
    let may_pass = |dir: &Path| {
        fs::metadata(dir).is_ok_and(|m| {
            let shift = if m.uid() == account.uid {
                6
            } else if m.gid() == account.gid {
                3
            } else {
                0
            };
            m.mode() >> shift & 1 == 1
        })
    };
    let mut ancestors: Vec<&Path> = path.ancestors().collect();
    ancestors.reverse();
    let closed = ancestors.into_iter().find(|dir| !may_pass(dir)).unwrap_or(path);
    StartError::Permission {
        what: format!("can't reach {}: {} is closed to others", path.display(), closed.display()),
        user: account.name.clone(),
        way_out: format!("chmod o+x {}, or choose another place (--data-dir, --pg-bin-dir)", closed.display()),
    }
}

/// Throws away a half-done initdb and, when there is no data yet, makes it. A killed process may leave either state.
///
/// `durable` data directories get WAL segments in advance.
pub async fn ensure(binaries: &Binaries, data_dir: &DataDir, account: &Account, durable: bool) -> Result<(), StartError> {
    let scratch = data_dir.initdb_scratch();
    let io = |what: &str, e| StartError::from_io(what, &scratch, &account.name, e);
    match fs::remove_dir_all(&scratch) {
        Ok(()) => tracing::info!(directory = %scratch.display(), "threw away an interrupted initdb"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io("can't remove", e)),
    }
    if data_dir.data_major()?.is_some() {
        return Ok(());
    }
    tracing::info!(version = %binaries.version, directory = %data_dir.pgdata().display(), user = account.name, "making a PostgreSQL data directory");
    fs::DirBuilder::new().mode(0o700).create(&scratch).map_err(|e| io("can't create", e))?;
    std::os::unix::fs::chown(&scratch, Some(account.uid), Some(account.gid)).map_err(|e| io("can't give away", e))?;
    let role = format!("--username={ROLE}");
    // C locale: the same order and the same messages on every machine. Checksums: a rotten page is an error, not data.
    let wal_segment = format!("--wal-segsize={WAL_SEGMENT_MIB}");
    let make = [
        role.as_str(),
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C",
        "--data-checksums",
        &wal_segment,
        "--no-sync",
        "--no-instructions",
    ];
    // Opened first: syncfs reports the errors of writes since then.
    let filesystem = fs::File::open(data_dir.root()).map_err(|e| io("can't open the parent of", e))?;
    run(binaries, data_dir, account, &make).await?;
    if durable {
        let (pg_wal, uid, gid) = (scratch.join("pg_wal"), account.uid, account.gid);
        let made = tokio::task::spawn_blocking(move || make_wal_segments(&pg_wal, uid, gid)).await;
        // They only save time later: PostgreSQL makes what it doesn't find.
        if let Err(error) = made.map_err(io::Error::other).flatten() {
            tracing::debug!(%error, "not all WAL segments were made in advance");
        }
    }
    if kernel_tells_syncfs_errors() {
        // One journal commit instead of a thousand: on a busy disk 0.2 s instead of 3.
        let synced = tokio::task::spawn_blocking(move || nix::unistd::syncfs(filesystem)).await;
        synced.map_err(std::io::Error::other).and_then(|result| Ok(result?)).map_err(|e| io("can't sync", e))?;
    } else {
        run(binaries, data_dir, account, &["--sync-only"]).await?;
    }
    fs::rename(&scratch, data_dir.pgdata()).map_err(|e| io("can't rename", e))?;
    sync_dir(data_dir.root()).map_err(|e| io("can't sync the parent of", e))
}

/// Gives PostgreSQL its first WAL segments. It takes a segment that exists; otherwise it writes one of zeros and syncs it while a
/// commit, and so every write behind it, waits: with 16 MiB some 15 ms, on a busy disk 100 (docs/performance.md). Later ones are recycled.
///
/// Written and not just allocated: a commit to blocks that were never written takes half as long again, or longer.
fn make_wal_segments(pg_wal: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let disk = nix::sys::statvfs::statvfs(pg_wal)?;
    if disk.blocks_available() * disk.fragment_size() < FREE_BYTES_MIN {
        return Ok(());
    }
    let zeros = vec![0; WAL_SEGMENT_MIB << 20];
    // Names are the timeline and the segment's number. initdb has filled some, and removed those that it doesn't need.
    let number = |name: &str| u64::from_str_radix(name.strip_prefix("00000001")?, 16).ok();
    let names = fs::read_dir(pg_wal)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    let newest = names.iter().filter_map(|name| number(name.to_str()?)).max().unwrap_or(0);
    for number in newest + 1..newest + WAL_SEGMENTS {
        let path = pg_wal.join(format!("00000001{number:016X}"));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let made = std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).and_then(|()| file.write_all(&zeros));
        if let Err(error) = made {
            // PostgreSQL refuses a segment that is too short.
            fs::remove_file(&path)?;
            return Err(error);
        }
    }
    Ok(())
}

/// Whether syncfs returns write errors: since Linux 5.8.
pub fn kernel_tells_syncfs_errors() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

async fn run(binaries: &Binaries, data_dir: &DataDir, account: &Account, arguments: &[&str]) -> Result<(), StartError> {
    let scratch = data_dir.initdb_scratch();
    let run = command(&binaries.program("initdb"), account)
        .args(arguments)
        .arg("-D")
        .arg(data_dir.seen_by_postgres(&scratch))
        .current_dir(data_dir.seen_by_postgres(data_dir.root()))
        .output();
    let failed = |detail| StartError::Failed { what: format!("initdb in {}", scratch.display()), detail };
    let output = tokio::time::timeout(STEP_DEADLINE, run)
        .await
        .map_err(|_| failed(format!("not done within {STEP_DEADLINE:?}")))?
        .map_err(|e| StartError::from_io("can't run initdb in", &scratch, &account.name, e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<String> = data_dir.names().for_people(&said).lines().map(str::to_owned).collect();
    Err(log::explain("initdb", &lines, &scratch, &scratch, &account.name))
}
