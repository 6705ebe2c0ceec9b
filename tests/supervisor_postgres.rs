//! Duet's own PostgreSQL, with the real one that this machine has: first start, restart, everything that can be in the
//! way, and what crashes leave behind.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use common::{STOP, SmallDisk, fake_binaries, options, scratch};
use duet::supervisor::postgres::{Binaries, Postgres, PostgresOptions, RestartBudget, StartError, Status, Stopped};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use tokio_postgres::{Client, NoTls};

async fn connect(postgres: &Postgres) -> Client {
    let (client, connection) = postgres.connect_config().connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn show(client: &Client, setting: &str) -> String {
    client.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap().get(0)
}

fn pid(postgres: &Postgres) -> Pid {
    match &*postgres.status().borrow() {
        Status::Running { pid } => Pid::from_raw(i32::try_from(*pid).unwrap()),
        other => panic!("not running: {other:?}"),
    }
}

async fn wait_for(postgres: &Postgres, what: impl FnMut(&Status) -> bool) -> Status {
    let mut status = postgres.status();
    tokio::time::timeout(Duration::from_secs(60), status.wait_for(what)).await.expect("in time").unwrap().clone()
}

async fn refusal(options: PostgresOptions) -> (StartError, u8) {
    let error = Postgres::start(options).await.expect_err("must be refused");
    let code = error.exit_code();
    (error, code)
}

#[tokio::test]
async fn data_survives_a_clean_stop_and_a_new_start() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let client = connect(&postgres).await;
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").await.unwrap();
    assert_eq!(postgres.stop(STOP).await, Stopped::Clean);
    assert_eq!(postgres.stop(STOP).await, Stopped::WasNotRunning);
    assert_eq!(*postgres.status().borrow(), Status::Stopped);
    drop(postgres);

    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let kept: i32 = connect(&postgres).await.query_one("SELECT n FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(kept, 7);
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn it_runs_as_a_user_that_is_not_root_in_its_own_process_group_and_only_on_its_socket() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let postmaster = pid(&postgres);
    assert_ne!(fs::metadata(format!("/proc/{postmaster}")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(dir.path().join("data/postgres")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(nix::unistd::getpgid(Some(postmaster)).unwrap(), postmaster, "Ctrl-C must not reach it");
    let client = connect(&postgres).await;
    assert_eq!(show(&client, "listen_addresses").await, "");
    assert_eq!(show(&client, "data_checksums").await, "on");
    // Nobody but the two system users gets in, and those only as Duet's role.
    let mut other = postgres.connect_config();
    other.user("postgres");
    assert!(other.connect(NoTls).await.is_err());
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn postgresql_goes_on_in_the_wal_segments_that_its_data_directory_was_made_with() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let segments = || -> BTreeMap<String, (u64, u64)> {
        let files = fs::read_dir(dir.path().join("data/postgres/pg_wal")).unwrap().flatten();
        let named = files.map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap()));
        named.filter(|(_, file)| file.is_file()).map(|(name, file)| (name, (file.ino(), file.len()))).collect()
    };
    let client = connect(&postgres).await;
    let present =
        async || -> String { client.query_one("SELECT pg_walfile_name(pg_current_wal_lsn())", &[]).await.unwrap().get(0) };
    let (made, first) = (segments(), present().await);
    assert!(made.range(first.clone()..).count() >= 32, "{first}: {made:?}");
    assert!(made.values().all(|(_, bytes)| *bytes == 4 << 20), "{made:?}");
    client.batch_execute("CREATE TABLE t (n int); SELECT pg_switch_wal(); INSERT INTO t VALUES (1)").await.unwrap();
    let second = present().await;
    assert_eq!(made.range(first..).map(|(name, _)| name).nth(1), Some(&second));
    assert_eq!(segments()[&second], made[&second], "the same file");
    postgres.stop(Duration::ZERO).await;
    drop(postgres);

    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let rows: i64 = connect(&postgres).await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(rows, 1, "recovery reads from one segment into the next and ends in zeros");
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn every_setting_is_accepted_and_none_that_a_promise_rests_on_can_be_changed() {
    let dir = scratch();
    fs::create_dir(dir.path().join("data")).unwrap();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let client = connect(&postgres).await;
    let bad = client.query("SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL", &[]).await.unwrap();
    let names: Vec<String> = bad.iter().map(|row| row.get(0)).collect();
    // Our own command line overrides it: that is what "not applied" means for these.
    assert!(names.is_empty(), "{names:?}");
    let promises = [
        ("fsync", "on", "off"),
        ("full_page_writes", "on", "off"),
        ("restart_after_crash", "off", "on"),
        ("data_sync_retry", "off", "on"),
        ("listen_addresses", "", "*"),
    ];
    for (name, ours, theirs) in promises {
        assert_eq!(show(&client, name).await, ours, "{name}");
        client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{theirs}'")).await.unwrap();
    }
    fs::write(dir.path().join("data/postgres.user.conf"), "fsync = off\nwork_mem = '5MB'\n").unwrap();
    postgres.restart(STOP).await.unwrap();
    let client = connect(&postgres).await;
    for (name, ours, _) in promises {
        assert_eq!(show(&client, name).await, ours, "{name}");
    }
    assert_eq!(show(&client, "work_mem").await, "5MB", "what is a matter of taste can be set");
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn an_interrupted_initdb_is_thrown_away_and_done_again() {
    let dir = scratch();
    let half_done = dir.path().join("data/postgres.initdb");
    let seen = async {
        while !half_done.join("PG_VERSION").exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = Postgres::start(options(&dir)) => panic!("started before it could be interrupted"),
        () = seen => {}
    }
    assert!(half_done.exists() && !dir.path().join("data/postgres").exists());
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    assert!(!half_done.exists());
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn a_data_directory_that_another_duet_works_on_is_refused_with_its_process_id() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let (error, code) = refusal(options(&dir)).await;
    assert!(matches!(error, StartError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    assert_eq!(code, 75);
    assert!(matches!(*postgres.status().borrow(), Status::Running { .. }), "the first one is left alone");
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn a_directory_that_is_not_duets_is_refused_untouched() {
    for (entry, named) in [("member", "an etcd"), ("PG_VERSION", "PostgreSQL data"), ("holiday.jpg", "holiday.jpg")] {
        let dir = scratch();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join(entry), "x").unwrap();
        let (error, code) = refusal(options(&dir)).await;
        assert!(matches!(error, StartError::ForeignDataDir { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
        assert_eq!(code, 65);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "nothing was written");
    }
}

#[tokio::test]
async fn a_newer_layout_and_data_of_another_major_version_are_refused() {
    let dir = scratch();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join("postgres")).unwrap();
    fs::write(data.join("duet.identity"), "layout = 1\nmade_by = \"0.1.0\"\n").unwrap();
    fs::write(data.join("postgres/PG_VERSION"), "11\n").unwrap();
    let (error, code) = refusal(options(&dir)).await;
    assert!(matches!(error, StartError::IncompatibleData { data_major: 11, .. }), "{error}");
    assert_eq!(code, 76);

    fs::write(data.join("duet.identity"), "layout = 99\nmade_by = \"9.0.0\"\n").unwrap();
    let (error, code) = refusal(options(&dir)).await;
    assert!(matches!(error, StartError::DataDirNewer { found: 99, .. }), "{error}");
    assert_eq!(code, 76);
}

#[tokio::test]
async fn missing_binaries_and_versions_that_lose_writes_are_refused_with_the_way_out() {
    let dir = scratch();
    let nothing = PostgresOptions { bin_dir: Some(dir.path().to_path_buf()), ..options(&dir) };
    let (error, code) = refusal(nothing).await;
    assert!(error.to_string().contains("--pg-bin-dir"), "{error}");
    assert_eq!(code, 69);
    for (version, sentence) in [("15.12", "too old"), ("16.8", ""), ("17.4", ""), ("14.20", "not supported"), ("19devel", "")] {
        let dir = scratch();
        let fake = PostgresOptions { bin_dir: Some(fake_binaries(dir.path(), version)), ..options(&dir) };
        let (error, code) = refusal(fake).await;
        let text = error.to_string();
        assert!(text.contains(version) && (text.contains(sentence) || text.contains("lose acknowledged")), "{text}");
        assert_eq!(code, 72);
    }
}

#[tokio::test]
async fn a_data_directory_too_deep_for_a_socket_gets_its_socket_elsewhere() {
    let dir = scratch();
    let deep = dir.path().join("d".repeat(60)).join("e".repeat(60));
    let postgres = Postgres::start(PostgresOptions { data_dir: deep, ..options(&dir) }).await.unwrap();
    let socket_dir = postgres.socket_dir().to_path_buf();
    assert!(!socket_dir.starts_with(dir.path()), "{}", socket_dir.display());
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    connect(&postgres).await;
    postgres.stop(STOP).await;
    drop(postgres);
    fs::remove_dir_all(socket_dir).unwrap();
}

#[tokio::test]
async fn a_killed_postmaster_is_reported_and_the_restart_has_everything_committed() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let client = connect(&postgres).await;
    client.batch_execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)").await.unwrap();
    kill(pid(&postgres), Signal::SIGKILL).unwrap();
    let status = wait_for(&postgres, |s| matches!(s, Status::Exited(_))).await;
    let Status::Exited(exit) = status else { unreachable!() };
    assert!(exit.status.unwrap().to_string().contains("signal: 9"), "{exit:?}");
    postgres.restart(STOP).await.unwrap();
    let kept: i32 = connect(&postgres).await.query_one("SELECT n FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(kept, 7);
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn no_new_postmaster_starts_before_the_last_process_of_the_old_one_has_ended() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let client = connect(&postgres).await;
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    // A stopped process notices neither the postmaster's death nor a polite signal.
    kill(Pid::from_raw(backend), Signal::SIGSTOP).unwrap();
    kill(pid(&postgres), Signal::SIGKILL).unwrap();
    wait_for(&postgres, |s| matches!(s, Status::Exited(_))).await;
    postgres.restart(STOP).await.unwrap();
    assert!(!is_alive(backend), "the old backend still shares memory with nobody");
    postgres.stop(STOP).await;
}

/// Alive and not merely waiting to be reaped (by whoever adopts orphans here).
fn is_alive(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

#[tokio::test]
async fn a_pid_file_whose_number_belongs_to_another_process_now_is_no_obstacle() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let pid_file = dir.path().join("data/postgres/postmaster.pid");
    let left = fs::read_to_string(&pid_file).unwrap();
    let owner = postgres.account().clone();
    postgres.stop(STOP).await;
    drop(postgres);
    // A live process of the same user, which PostgreSQL alone would take for a postmaster.
    let mut sleep = Command::new("sleep");
    sleep.arg("60");
    if owner.switch {
        std::os::unix::process::CommandExt::uid(&mut sleep, owner.uid);
    }
    let mut sleep = sleep.spawn().unwrap();
    let (_, rest) = left.split_once('\n').unwrap();
    fs::write(&pid_file, format!("{}\n{rest}", sleep.id())).unwrap();
    let started = Postgres::start(options(&dir)).await;
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    started.unwrap().stop(STOP).await;
}

/// The other process of the test below; on its own it does nothing.
#[tokio::test]
async fn helper_that_starts_postgresql_and_waits_to_be_killed() {
    let Some(data_dir) = std::env::var_os("DUET_TEST_HELPER_DATA_DIR") else { return };
    let data_dir = PathBuf::from(data_dir);
    let postgres =
        Postgres::start(PostgresOptions { bin_dir: common::bin_dir(), ..PostgresOptions::new(&data_dir) }).await.unwrap();
    connect(&postgres).await.batch_execute("CREATE TABLE kept AS SELECT 7 AS n").await.unwrap();
    fs::write(data_dir.with_extension("ready"), pid(&postgres).to_string()).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_killed_duet_leaves_running_is_taken_over_by_the_next_start() {
    let dir = scratch();
    let ready = dir.path().join("data.ready");
    let mut duet = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_starts_postgresql_and_waits_to_be_killed"])
        .env("DUET_TEST_HELPER_DATA_DIR", dir.path().join("data"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = std::time::Instant::now();
    let old: i32 = loop {
        if let Some(pid) = fs::read_to_string(&ready).ok().and_then(|text| text.parse().ok()) {
            break pid;
        }
        assert!(began.elapsed() < Duration::from_secs(60) && duet.try_wait().unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    duet.kill().unwrap();
    duet.wait().unwrap();
    assert!(is_alive(old), "the postmaster outlives a killed Duet");
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    assert_ne!(pid(&postgres).as_raw(), old);
    assert!(!is_alive(old));
    let kept: i32 = connect(&postgres).await.query_one("SELECT n FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(kept, 7);
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn keep_running_mends_crashes_and_returns_when_stopped_on_purpose() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    let drive = async {
        for _ in 0..2 {
            let old = pid(&postgres);
            kill(old, Signal::SIGKILL).unwrap();
            wait_for(&postgres, |s| matches!(s, Status::Running { pid } if i32::try_from(*pid).unwrap() != old.as_raw())).await;
            connect(&postgres).await;
        }
        postgres.stop(STOP).await;
    };
    let (kept, ()) = tokio::join!(postgres.keep_running(RestartBudget::default()), drive);
    kept.unwrap();
}

#[tokio::test]
async fn keep_running_gives_up_with_the_reason_when_every_start_fails() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    kill(pid(&postgres), Signal::SIGKILL).unwrap();
    fs::remove_file(dir.path().join("data/postgres/global/pg_control")).unwrap();
    let ms = Duration::from_millis;
    let budget = RestartBudget::new(3, Duration::from_secs(600), ms(1), ms(10));
    let error = postgres.keep_running(budget).await.expect_err("it can't start");
    assert!(matches!(error, StartError::Damaged { .. }), "{error}");
    assert_eq!(error.exit_code(), 66);
    assert!(error.to_string().contains("pg_control"), "{error}");
}

#[tokio::test]
async fn a_stop_without_time_is_immediate_and_loses_nothing_committed() {
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    connect(&postgres).await.batch_execute("CREATE TABLE kept AS SELECT 7 AS n").await.unwrap();
    assert_eq!(postgres.stop(Duration::ZERO).await, Stopped::Immediate);
    postgres.restart(STOP).await.unwrap();
    let kept: i32 = connect(&postgres).await.query_one("SELECT n FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(kept, 7);
    postgres.stop(STOP).await;
}

/// The installed programs, but for a `postgres` that first recovers for a while, and says so as PostgreSQL does: `at` is how far it got at
/// its `$i`th look.
async fn slow_binaries(dir: &tempfile::TempDir, at: &str) -> PathBuf {
    let real = Binaries::find(common::bin_dir().as_deref(), None, dir.path()).await.unwrap().bin_dir;
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(real.join("initdb"), bin.join("initdb")).unwrap();
    let line = format!("echo \"[$$] LOG:  redo in progress, elapsed time: $i.00 s, current LSN: 0/{at}\" >&2");
    let recover = format!("i=0; while [ $i -lt 18 ]; do i=$((i+1)); {line}; sleep 0.5; done");
    common::script(
        &bin.join("postgres"),
        &format!("[ \"$1\" != -D ] || {{ {recover}; }}\nexec {}/postgres \"$@\"", real.display()),
    );
    bin
}

#[tokio::test]
async fn a_start_may_take_longer_than_its_deadline_while_its_recovery_gets_on() {
    let deadline = Duration::from_secs(5);
    for (at, starts) in [("1000$i", true), ("1000", false)] {
        let dir = scratch();
        let bin_dir = Some(slow_binaries(&dir, at).await);
        let slow = PostgresOptions { bin_dir, start_deadline: deadline, ..options(&dir) };
        match Postgres::start(slow).await {
            Ok(postgres) => {
                assert!(starts, "it stood still");
                postgres.stop(STOP).await;
            }
            Err(error) => assert!(!starts && matches!(error, StartError::Timeout { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn binaries_that_postgresqls_user_can_not_reach_are_named() {
    if !geteuid().is_root() {
        return; // Without root there is no other user that could be kept out.
    }
    let dir = scratch();
    let bin_dir = fake_binaries(dir.path(), "15.16");
    fs::set_permissions(&bin_dir, fs::Permissions::from_mode(0o700)).unwrap();
    let (error, code) = refusal(PostgresOptions { bin_dir: Some(bin_dir.clone()), ..options(&dir) }).await;
    assert!(error.to_string().contains(&format!("chmod o+x {}", bin_dir.display())), "{error}");
    assert_eq!(code, 77);
}

#[tokio::test]
async fn data_that_belongs_to_somebody_else_is_refused_with_the_command_that_mends_it() {
    if !geteuid().is_root() {
        return; // Only root can give files away.
    }
    let dir = scratch();
    let postgres = Postgres::start(options(&dir)).await.unwrap();
    postgres.stop(STOP).await;
    drop(postgres);
    std::os::unix::fs::chown(dir.path().join("data/postgres"), Some(0), Some(0)).unwrap();
    let (error, code) = refusal(options(&dir)).await;
    assert!(error.to_string().contains("chown -R"), "{error}");
    assert_eq!(code, 77);
    assert_eq!(refusal(PostgresOptions { user: Some("root".to_owned()), ..options(&dir) }).await.1, 67);
    assert_eq!(refusal(PostgresOptions { user: Some("nobody-at-all".to_owned()), ..options(&dir) }).await.1, 67);
}

#[tokio::test]
async fn a_full_disk_is_told_before_and_after_there_is_data_and_space_mends_it() {
    if !geteuid().is_root() {
        return; // Only root can mount the small disk.
    }
    let dir = scratch();
    let disk = SmallDisk::mount(&dir.path().join("small"), "16m");
    let small = PostgresOptions { data_dir: disk.0.join("data"), ..options(&dir) };
    let (error, code) = refusal(small.clone()).await;
    assert!(matches!(error, StartError::DiskFull { .. }), "{error}");
    assert_eq!(code, 74);
    drop(disk);

    let disk = SmallDisk::mount(&dir.path().join("larger"), "200m");
    let larger = PostgresOptions { data_dir: disk.0.join("data"), ..options(&dir) };
    let postgres = Postgres::start(larger.clone()).await.unwrap();
    postgres.stop(STOP).await;
    drop(postgres);
    let ballast = disk.fill();
    let (error, code) = refusal(larger.clone()).await;
    assert!(matches!(error, StartError::DiskFull { .. }), "{error}");
    assert_eq!(code, 74);
    fs::remove_file(ballast).unwrap();
    Postgres::start(larger).await.unwrap().stop(STOP).await;
}
