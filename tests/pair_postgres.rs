//! The PostgreSQL of one node of a pair, with two real ones and no state machine: what commits wait for, whatever is done by hand, and what
//! is left when everything is killed in the middle of a copy, a rewind or a promotion.

mod common;
#[path = "pair_postgres/far_back.rs"]
mod far_back;
#[path = "pair_postgres/nodes.rs"]
mod nodes;
#[path = "pair_postgres/patience.rs"]
mod patience;
#[path = "pair_postgres/strangers.rs"]
mod strangers;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::process::PATIENCE;
use common::{STOP, SmallDisk, connect, scratch};
use duet::storage::pg::{PgLog, PgOptions};
use duet::storage::{Batch, Log, LogError, LogRow};
use duet::supervisor::fsm::{Goal, NodeId, Postgres, Record, Sync};
use duet::supervisor::pair::record::RecordFile;
use duet::supervisor::postgres::pair::{PairPostgres, Report};
use duet::types::Rev;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodes::{A, B, Nodes, commit, is_confirmed, is_streaming, is_waiting, kill_all, soon, until, until_true};
use tokio_postgres::Client;

const SOLO: Goal = Goal::Primary { sync: false };
const LEAD: Goal = Goal::Primary { sync: true };
const FOLLOW: Goal = Goal::Standby { rebuild: false };
const COPY: Goal = Goal::Standby { rebuild: true };
const PEER: &str = "FIRST 1 (\"duet_b\")";

fn is_alone(report: &Report) -> bool {
    matches!(report.postgres, Postgres::Primary(Sync::Off { .. }))
}

async fn show(client: &Client, setting: &str) -> String {
    client.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap().get(0)
}

/// Somebody sets the names by hand; where PostgreSQL doesn't allow `ALTER SYSTEM`, in its file.
async fn tamper(nodes: &Nodes, client: &Client, names: &str) {
    let altered = client.batch_execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'")).await;
    if show(client, "server_version_num").await.parse::<u32>().unwrap() >= 170_000 {
        altered.expect_err("it isn't allowed");
        nodes.alter(A, names);
    } else {
        altered.unwrap();
    }
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_somebody_has_set_are_set_right_and_nothing_counts_until_the_peer_has_confirmed_again() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let client = connect(&a.connect_config()).await;
    for (times, names) in [(1, ""), (2, "nobody")] {
        // Whatever is confirmed before this is an old position.
        b.pursue(Goal::Stopped);
        until(&a, "nobody confirms", is_waiting).await;
        let mut reports = a.reports();
        let closed =
            tokio::spawn(async move { tokio::time::timeout(PATIENCE, reports.wait_for(is_alone)).await.unwrap().is_ok() });
        tamper(&nodes, &client, names).await;
        assert!(closed.await.unwrap(), "the gate closes");
        let told = until(&a, "set right", |report| is_waiting(report) && report.details.sync_names == PEER).await;
        assert!(told.details.trouble.unwrap().contains(&format!("set synchronous_standby_names to '{names}'")));
        assert_eq!(told.details.sync_names_changed, times);
        // It isn't only said to be in force.
        let committed = commit(&a, "kept").await;
        assert!(!committed.is_finished(), "a commit waits");
        b.pursue(FOLLOW);
        until(&a, "the peer confirms", is_confirmed).await;
        soon("the commit ends", || committed.is_finished()).await;
        assert!(!nodes.altered(A).contains("synchronous_standby_names"), "RESET");
    }
    // And what is set for the next start.
    b.pursue(Goal::Stopped);
    a.pursue(Goal::Stopped);
    until(&a, "stopped", |report| report.postgres == Postgres::Down).await;
    nodes.alter(A, "");
    let number = a.pursue(LEAD);
    let mut reports = a.reports();
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            reports.changed().await.unwrap();
            let report = reports.borrow_and_update().clone();
            if report.goal == number && matches!(report.postgres, Postgres::Primary(_)) {
                return report;
            }
        }
    });
    assert!(is_waiting(&found.await.unwrap()), "it starts with the right names");
    assert_eq!(show(&connect(&a.connect_config()).await, "synchronous_standby_names").await, PEER);
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_way_is_no_standby() {
    let nodes = Nodes::new();
    nodes.wrap(B, "pg_basebackup", "exec $REAL/pg_basebackup \"$@\" --max-rate=4M").await;
    let a = nodes.alone().await;
    let b = nodes.open(B).await;
    let client = connect(&a.connect_config()).await;
    b.pursue(COPY);
    let copies = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn IS NOT NULL)";
    nodes::until_true(&client, copies).await;
    a.pursue(LEAD);
    until(&a, "it waits", |report| is_waiting(report) && report.details.sync_names == PEER).await;
    let committed = commit(&a, "kept").await;
    let mut told = std::collections::BTreeSet::new();
    while nodes::asks(&client, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'backup')").await {
        told.extend(b.reports().borrow().details.doing.as_deref().and_then(percent_copied));
        let report = a.reports().borrow().clone();
        assert!(report.details.peer_flushed.is_none() && !is_confirmed(&report), "{report:?}");
        assert!(!committed.is_finished(), "a commit doesn't count with what only an unfinished copy has");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(told.iter().filter(|percent| (1..100).contains(*percent)).count() > 1, "it tells how far it is: {told:?}");
    until(&b, "it follows", is_streaming).await;
    until(&a, "the peer confirms", is_confirmed).await;
    soon("the commit ends", || committed.is_finished()).await;
    nodes.end([a, b]).await;
}

/// How far a copy is, by what is told to an operator.
fn percent_copied(doing: &str) -> Option<u8> {
    doing.strip_prefix("copying the leader's data: ")?.strip_suffix(" %")?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_is_made_anew_while_the_leader_stays() {
    let nodes = Nodes::new();
    let capped = "exec $REAL/postgres \"$@\" -c max_slot_wal_keep_size=16MB -c wal_keep_size=0 -c min_wal_size=32MB";
    nodes.wrap(A, "postgres", &format!("[ \"$1\" = -D ] || exec $REAL/postgres \"$@\"\n{capped}")).await;
    let (a, b) = nodes.paired().await;
    b.pursue(Goal::Stopped);
    a.pursue(SOLO);
    until(&a, "alone", is_alone).await;
    let client = connect(&a.connect_config()).await;
    let slot =
        "SELECT (restart_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = 'duet_b' AND wal_status = 'reserved'";
    let before: i64 = client.query_one(slot, &[]).await.unwrap().get(0);
    for _ in 0..6 {
        client.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x'); SELECT pg_switch_wal()").await.unwrap();
    }
    client.batch_execute("CHECKPOINT").await.unwrap();
    nodes::until_true(&client, &format!("SELECT EXISTS ({slot} AND (restart_lsn - '0/0')::bigint > {before})")).await;
    b.pursue(COPY);
    until(&b, "it follows", is_streaming).await;
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_copy_is_not_given_up_while_no_leader_is_there() {
    let nodes = Nodes::new();
    let (fault, next) = (nodes.public().join("fault"), nodes.public().join("next"));
    // At once: an empty file would be no fault, for whoever looks just then.
    let set = |name: &str| fs::write(&next, name).and_then(|()| fs::rename(&next, &fault)).unwrap();
    let script = format!(
        "case \"$(cat {} 2>/dev/null)\" in killed) kill -9 $$;; unable) exit 127;; \
         damaged) echo 'WARNING: Calculated CRC checksum does not match value stored in file.';; esac\nexec $REAL/pg_controldata \"$@\"",
        fault.display()
    );
    nodes.wrap(B, "pg_controldata", &script).await;
    let (a, b) = nodes.paired().await;
    // Whatever passes is tried again, also when the leader is there.
    b.pursue(Goal::Stopped);
    until(&b, "stopped", |report| report.postgres == Postgres::Down).await;
    set("killed");
    b.pursue(FOLLOW);
    let told =
        |words: &'static str| move |report: &Report| report.details.trouble.as_ref().is_some_and(|told| told.contains(words));
    assert!(!until(&b, "trouble", told("signal")).await.rebuild_needed);
    set("unable");
    assert!(!until(&b, "trouble", told("127")).await.rebuild_needed);
    fs::remove_file(&fault).unwrap();
    until(&b, "it follows", is_streaming).await;
    // Nor is it given up while it may be all that there is.
    b.pursue(Goal::Stopped);
    a.pursue(Goal::Stopped);
    until(&a, "stopped", |report| report.postgres == Postgres::Down).await;
    until(&b, "stopped", |report| report.postgres == Postgres::Down).await;
    set("damaged");
    b.pursue(FOLLOW);
    assert!(!until(&b, "trouble", told("before there is another")).await.rebuild_needed);
    a.pursue(SOLO);
    until(&b, "given up", |report| report.rebuild_needed).await;
    fs::remove_file(&fault).unwrap();
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_the_peer_also_after_a_crash_while_nobody_was_waited_for() {
    let nodes = Nodes::new();
    // What each start finds.
    let found = nodes.public().join("found");
    let look = format!("[ \"$1\" != -D ] || cp \"$2/duet.role.conf\" {}", found.display());
    nodes.wrap(A, "postgres", &format!("{look}\nexec $REAL/postgres \"$@\"")).await;
    nodes.alone().await.shutdown(STOP).await;
    let process = nodes.process(A, SOLO);
    let role = nodes.pgdata(A).join("duet.role.conf");
    soon("alone", || fs::read_to_string(&role).is_ok_and(|text| text.contains("names = ''"))).await;
    kill_all(process, &nodes.data(A)).await;
    fs::remove_file(&found).unwrap();
    let a = nodes.open(A).await;
    a.pursue(SOLO);
    until(&a, "alone", is_alone).await;
    assert!(fs::read_to_string(&found).unwrap().contains(PEER), "whatever the goal is");
    nodes.end([a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_confirmed_while_the_standby_stands_still() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let follower = connect(&b.connect_config()).await;
    let receiver: i32 = follower.query_one("SELECT pid FROM pg_stat_wal_receiver", &[]).await.unwrap().get(0);
    kill(Pid::from_raw(receiver), Signal::SIGSTOP).unwrap();
    let committed = commit(&a, "kept").await;
    until(&a, "nobody confirms", is_waiting).await;
    let mut reports = a.reports();
    for _ in 0..20 {
        tokio::time::timeout(PATIENCE, reports.changed()).await.unwrap().unwrap();
        assert!(!is_confirmed(&reports.borrow_and_update()));
    }
    assert!(!committed.is_finished(), "a commit waits");
    kill(Pid::from_raw(receiver), Signal::SIGCONT).unwrap();
    until(&a, "the peer confirms", is_confirmed).await;
    soon("the commit ends", || committed.is_finished()).await;
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_for_writing_that_began_at_the_standby_writes_when_that_was_promoted() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let log = |node: &PairPostgres| PgLog::new(PgOptions::local(node.connect_config()).unwrap().reading_standby()).unwrap();
    let row = |main| LogRow {
        rev: Rev::new(main, 0),
        key: "k".into(),
        value: Some("v".into()),
        create_revision: main,
        version: 1,
        lease: 0,
    };
    let batch = |main| Arc::new(Batch { rows: vec![row(main)], ..Batch::default() });
    let mut writer = log(&a).acquire(true, vec![]).await.unwrap();
    writer.append(batch(2)).await.unwrap();
    writer.close().await;
    let follower = connect(&b.connect_config()).await;
    until_true(&follower, "SELECT to_regclass('duet.log') IS NOT NULL").await;
    until_true(&follower, "SELECT count(*) = 1 FROM duet.log").await;
    let standbys = log(&b);
    standbys.prepare();
    let ready = "application_name = 'duet writer' AND state = 'idle' AND query LIKE '%duet.batch%pg_is_in_recovery%'";
    until_true(&follower, &format!("SELECT count(*) = 1 FROM pg_stat_activity WHERE {ready}")).await;
    let pid = async || -> i32 {
        follower.query_one("SELECT pid FROM pg_stat_activity WHERE application_name = 'duet writer'", &[]).await.unwrap().get(0)
    };
    let began_with = pid().await;
    a.shutdown(STOP).await;
    b.pursue(SOLO);
    until(&b, "it leads", is_alone).await;
    let mut writer = tokio::time::timeout(PATIENCE, standbys.acquire(true, vec![])).await.expect("in time").unwrap();
    assert_eq!((pid().await, writer.meta().epoch, writer.meta().last_revision), (began_with, 2, Some(2)));
    writer.append(batch(3)).await.unwrap();
    // A commit whose wait for the peer is cancelled is noticed there as on any other session.
    b.pursue(LEAD);
    until(&b, "nobody confirms", is_waiting).await;
    let appended = tokio::spawn(writer.append(batch(4)));
    until_true(
        &follower,
        &format!("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {began_with} AND wait_event = 'SyncRep')"),
    )
    .await;
    follower.execute("SELECT pg_cancel_backend($1)", &[&began_with]).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, appended).await.expect("in time").unwrap();
    assert!(matches!(answer, Err(LogError::Unknown(_))));
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postmaster_that_stands_still_alone_is_noticed_also_in_a_promotion() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let postmaster = |node| -> Pid {
        let file = fs::read_to_string(nodes.pgdata(node).join("postmaster.pid")).unwrap();
        Pid::from_raw(file.lines().next().unwrap().parse().unwrap())
    };
    // Sessions that are there go on, and are answered.
    kill(postmaster(A), Signal::SIGSTOP).unwrap();
    let mut reports = a.reports();
    let ended = tokio::time::timeout(PATIENCE, reports.wait_for(|report| report.postgres == Postgres::Down)).await;
    ended.expect("it is noticed").unwrap();
    a.pursue(Goal::Stopped);
    until(&b, "nothing comes any more", |report| matches!(report.postgres, Postgres::Standby { streaming: false, .. })).await;
    kill(postmaster(B), Signal::SIGSTOP).unwrap();
    b.pursue(SOLO);
    // Long before a promotion is given up.
    let mut reports = b.reports();
    let leads = tokio::time::timeout(Duration::from_secs(40), reports.wait_for(is_alone)).await;
    leads.expect("it leads all the same").unwrap();
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_promotion_it_is_promoted_by_the_next_start_and_read_only_on_its_own() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    connect(&a.connect_config()).await.batch_execute("CREATE TABLE kept AS SELECT 7 AS n").await.unwrap();
    a.shutdown(STOP).await;
    b.shutdown(STOP).await;
    drop((a, b));
    let signal = nodes.pgdata(B).join("standby.signal");
    assert!(signal.exists());
    let process = nodes.process(B, SOLO);
    // It goes in the middle of a promotion, and comes back after it.
    soon("it is being promoted", || !signal.exists()).await;
    kill_all(process, &nodes.data(B)).await;
    let b = nodes.open(B).await;
    b.pursue(SOLO);
    until(&b, "it leads", is_alone).await;
    soon("unsupervised it would be read-only again", || signal.exists()).await;
    let client = connect(&b.connect_config()).await;
    assert_eq!(client.query_one("SELECT n FROM kept", &[]).await.unwrap().get::<_, i32>(0), 7);
    let a = nodes.open(A).await;
    a.pursue(FOLLOW);
    until(&a, "the former leader follows", is_streaming).await;
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_copy_it_knows_that_there_is_no_whole_one() {
    let nodes = Nodes::new();
    nodes.wrap(B, "pg_basebackup", "exec $REAL/pg_basebackup \"$@\" --max-rate=1M").await;
    let a = nodes.alone().await;
    let client = connect(&a.connect_config()).await;
    let copying = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn IS NOT NULL)";
    for all in [true, false] {
        let mut process = nodes.process(B, COPY);
        nodes::until_true(&client, copying).await;
        if all {
            kill_all(process, &nodes.data(B)).await;
        } else {
            // Its pg_basebackup goes with it; the one that receives WAL for that doesn't notice.
            process.kill().unwrap();
            process.wait().unwrap();
        }
        nodes.unwrap(B, "pg_basebackup").await;
        let b = nodes.open(B).await;
        assert!(!b.has_data());
        b.pursue(FOLLOW);
        until(&b, "it isn't whole", |report| report.rebuild_needed).await;
        soon("nobody is left who would hold the slot", || nodes::processes(&nodes.data(B)).is_empty()).await;
        b.pursue(COPY);
        until(&b, "it follows", is_streaming).await;
        let left: Vec<_> = fs::read_dir(nodes.data(B)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("postgres.copy")), "{left:?}");
        b.shutdown(STOP).await;
        drop(b);
        // As if a crash had kept the directory that was replaced from being removed; and there is none for the next round.
        fs::rename(nodes.pgdata(B), nodes.data(B).join("postgres.old")).unwrap();
        let b = nodes.open(B).await;
        soon("it is removed", || !nodes.data(B).join("postgres.old").exists()).await;
        b.shutdown(STOP).await;
        drop(b);
        nodes.wrap(B, "pg_basebackup", "exec $REAL/pg_basebackup \"$@\" --max-rate=1M").await;
    }
    nodes.end([a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_rewind_it_knows_that_the_data_is_not_whole() {
    let nodes = Nodes::new();
    let b = nodes.led_by_b().await;
    let rewinding = nodes.public().join("rewinding");
    let half = format!("echo half > \"$2/global/pg_control\"; touch {}; exec sleep 600", rewinding.display());
    nodes.wrap(A, "pg_rewind", &half).await;
    let process = nodes.process(A, FOLLOW);
    soon("it rewinds", || rewinding.exists()).await;
    kill_all(process, &nodes.data(A)).await;
    nodes.unwrap(A, "pg_rewind").await;
    let a = nodes.open(A).await;
    assert!(!a.has_data());
    a.pursue(FOLLOW);
    until(&a, "it isn't whole", |report| report.rebuild_needed).await;
    a.pursue(COPY);
    until(&a, "it follows", is_streaming).await;
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_tells_how_far_it_is() {
    let nodes = Nodes::new();
    let b = nodes.led_by_b().await;
    let go_on = nodes.public().join("go-on");
    let slowly = format!("echo ' 51/102 kB (50%) copied' >&2; until [ -e {} ]; do sleep 0.01; done", go_on.display());
    nodes.wrap(A, "pg_rewind", &format!("{slowly}\nexec $REAL/pg_rewind \"$@\"")).await;
    let a = nodes.open(A).await;
    a.pursue(FOLLOW);
    let told = |report: &Report| report.details.doing.as_deref().is_some_and(|doing| doing.ends_with("part: 50 %"));
    until(&a, "it tells", told).await;
    fs::write(&go_on, "").unwrap();
    until(&a, "it follows", is_streaming).await;
    nodes.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_nodes_have_the_settings_that_their_promises_rest_on() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let wanted = [
        ("wal_sender_timeout", "3s"),
        ("wal_receiver_timeout", "3s"),
        ("wal_retrieve_retry_interval", "100ms"),
        ("restart_after_crash", "off"),
        ("data_sync_retry", "off"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("max_wal_size", "512MB"),
        ("hot_standby_feedback", "off"),
        ("max_standby_streaming_delay", "300ms"),
        ("max_standby_archive_delay", "300ms"),
        ("recovery_min_apply_delay", "0"),
        ("restore_command", ""),
        ("synchronous_commit", "on"),
        ("data_checksums", "on"),
        ("max_slot_wal_keep_size", "4GB"),
    ];
    for (node, postgres) in [("a", &a), ("b", &b)] {
        let client = connect(&postgres.connect_config()).await;
        for (name, value) in wanted {
            assert_eq!(show(&client, name).await, value, "{name} on {node}");
        }
        let conninfo = show(&client, "primary_conninfo").await;
        assert!(conninfo.contains("tcp_user_timeout=2000"), "{conninfo}");
        assert!(conninfo.contains(&format!("application_name=duet_{node} ")), "{conninfo}");
        let altered = client.batch_execute("ALTER SYSTEM SET restore_command = 'sleep 60'").await;
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        assert_eq!(altered.is_err(), show(&client, "server_version_num").await.parse::<u32>().unwrap() >= 170_000);
        assert_eq!(show(&client, "restore_command").await, "");
    }
    nodes.end([a, b]).await;
}

#[test]
fn the_node_s_record_gets_the_room_that_is_kept_on_a_full_disk() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can mount the small disk.
    }
    let dir = scratch();
    let disk = SmallDisk::mount(&dir.path().join("small"), "1m");
    let (file, record) = RecordFile::open(&disk.0, "test", NodeId::A).unwrap();
    let reserve = disk.0.join("postgres.ballast");
    fs::write(&reserve, vec![7; 64 << 10]).unwrap();
    let filler = disk.fill();
    file.save(&Record { complete: true, ..record }).expect("there is room for it");
    assert!(!reserve.exists() && filler.exists());
    // A start finds the same.
    fs::remove_file(filler).unwrap();
    fs::write(&reserve, vec![7; 64 << 10]).unwrap();
    disk.fill();
    let (_, record) = RecordFile::open(&disk.0, "test", NodeId::A).expect("there is room for it");
    assert!(record.complete && !reserve.exists());
}

/// The other process of tests above; on its own it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helper_that_pursues_a_goal_until_it_is_killed() {
    let Some((options, goal)) = nodes::helped() else { return };
    let postgres = nodes::open(options).await;
    postgres.pursue(goal);
    std::future::pending::<()>().await;
}
