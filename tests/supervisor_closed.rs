//! Data directories below a directory that only Duet's own user may enter, as Go's `T.TempDir` and envtest make them. For root that
//! keeps PostgreSQL's user out of the parent; for anybody else it is the ordinary case, and everything must hold just the same.

mod common;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::process::{PATIENCE, Process, args, duet};
use common::{STOP, scratch};
use duet::supervisor::postgres::{Postgres, PostgresOptions, StartError, Status, Stopped};
use etcd_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

/// A data directory two closed directories down.
fn closed() -> (TempDir, PathBuf) {
    let dir = scratch();
    let parent = dir.path().join("closed/deeper");
    DirBuilder::new().mode(0o700).recursive(true).create(&parent).unwrap();
    (dir, parent.join("data"))
}

fn options(data_dir: &Path) -> PostgresOptions {
    PostgresOptions { shared_buffers_bytes: Some(32 << 20), bin_dir: common::bin_dir(), ..PostgresOptions::new(data_dir) }
}

fn pid(postgres: &Postgres) -> Pid {
    match &*postgres.status().borrow() {
        Status::Running { pid } => Pid::from_raw(i32::try_from(*pid).unwrap()),
        other => panic!("not running: {other:?}"),
    }
}

#[tokio::test]
async fn postgresql_is_made_runs_restarts_and_keeps_its_data_there() {
    let (dir, data_dir) = closed();
    let postgres = Postgres::start(options(&data_dir)).await.unwrap();
    let owner = fs::metadata(format!("/proc/{}", pid(&postgres))).unwrap().uid();
    assert_ne!(owner, 0);
    let client = common::connect(&postgres.connect_config()).await;
    client.batch_execute("CREATE TABLE kept AS SELECT 7 AS n").await.unwrap();
    kill(pid(&postgres), Signal::SIGKILL).unwrap();
    let mut status = postgres.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|s| matches!(s, Status::Exited(_)))).await.unwrap().unwrap();
    fs::write(data_dir.join("postgres.user.conf"), "work_mem = '5MB'\n").unwrap();
    postgres.restart(STOP).await.unwrap();
    // A backend that starts late, and what it reads, come through the same way.
    let client = common::connect(&postgres.connect_config()).await;
    let row = client.query_one("SELECT n, current_setting('work_mem') FROM kept", &[]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, String>(1)), (7, "5MB".to_owned()));
    client.batch_execute("ALTER SYSTEM SET jit = 'on'").await.unwrap();
    let reloaded: bool = client.query_one("SELECT pg_reload_conf()", &[]).await.unwrap().get(0);
    assert!(reloaded);
    assert_eq!(postgres.stop(STOP).await, Stopped::Clean);
    drop(postgres);

    let postgres = Postgres::start(options(&data_dir)).await.unwrap();
    let kept: i32 = common::connect(&postgres.connect_config()).await.query_one("SELECT n FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(kept, 7);
    postgres.stop(STOP).await;
    for parent in ["closed", "closed/deeper"] {
        assert_eq!(fs::metadata(dir.path().join(parent)).unwrap().mode() & 0o777, 0o700, "{parent} stays as it was");
    }
}

#[tokio::test]
async fn the_lock_holds_and_errors_name_the_directory_as_the_user_does() {
    let (_dir, data_dir) = closed();
    let postgres = Postgres::start(options(&data_dir)).await.unwrap();
    let error = Postgres::start(options(&data_dir)).await.expect_err("one Duet only");
    assert!(matches!(error, StartError::Locked { .. }), "{error}");
    postgres.stop(STOP).await;
    drop(postgres);
    fs::set_permissions(data_dir.join("postgres"), fs::Permissions::from_mode(0o777)).unwrap();
    let error = Postgres::start(options(&data_dir)).await.expect_err("too open");
    let text = error.to_string();
    assert!(text.contains(&data_dir.join("postgres").display().to_string()) && !text.contains("/proc/"), "{text}");
    assert_eq!(error.exit_code(), 77);
}

#[tokio::test]
async fn what_a_killed_duet_leaves_running_there_is_taken_over() {
    let (_dir, data_dir) = closed();
    let start = || {
        let line = format!("dev --listen-client-urls http://127.0.0.1:0 --data-dir {}", data_dir.display());
        Process::start(&duet(), &args(&line))
    };
    let postmaster = || {
        let text = fs::read_to_string(data_dir.join("postgres/postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse::<i32>().unwrap()
    };
    let mut first = start();
    Client::connect([first.ready()], None).await.unwrap().put("k", "acknowledged", None).await.unwrap();
    let left = postmaster();
    first.signal(Signal::SIGKILL);
    first.ended();
    assert!(Path::new(&format!("/proc/{left}")).exists(), "the postmaster outlives a killed Duet");
    let mut second = start();
    let mut etcd = Client::connect([second.ready()], None).await.unwrap();
    assert_ne!(postmaster(), left);
    assert_eq!(etcd.get("k", None).await.unwrap().kvs()[0].value(), b"acknowledged");
    second.signal(Signal::SIGTERM);
    assert_eq!(second.ended().code(), Some(0), "{}", second.said());
}

#[test]
fn without_proc_the_closed_directory_is_named_with_the_way_out() {
    if !geteuid().is_root() {
        return; // Only root has another user that could be kept out, and may hide /proc, in a mount namespace of this Duet's own.
    }
    let (dir, data_dir) = closed();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs tmpfs /proc && exec \"$@\"", "sh"]).arg(duet());
    command.args(["dev", "--listen-client-urls", "http://127.0.0.1:0", "--data-dir"]).arg(&data_dir);
    let mut process = Process::spawn(command);
    assert_eq!(process.ended().code(), Some(77));
    let said = process.said();
    assert!(said.contains(&format!("chmod o+x {}", dir.path().join("closed").display())), "{said}");
}

#[test]
fn closed_shared_memory_has_a_sentence_of_its_own() {
    if !geteuid().is_root() {
        return; // Only root can mount the closed /dev/shm, in a mount namespace that only this Duet sees.
    }
    let (_dir, data_dir) = closed();
    let script = "mount -t tmpfs -o mode=0755 tmpfs /dev/shm && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(duet());
    command.args(["dev", "--listen-client-urls", "http://127.0.0.1:0", "--data-dir"]).arg(&data_dir);
    let mut process = Process::spawn(command);
    assert_eq!(process.ended().code(), Some(77));
    let said = process.said();
    assert!(said.contains("chmod 1777 /dev/shm"), "{said}");
}
