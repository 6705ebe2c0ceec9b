//! The log in a real PostgreSQL: what was appended comes back, one writer writes, and no fault turns into a wrong answer.

mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Database, STOP, SmallDisk};
use duet::storage::pg::{PgLog, PgOptions};
use duet::storage::{AlarmRow, Batch, LeaseRow, Log, LogError, LogRow, Writer};
use duet::supervisor::postgres::{Postgres, Status};
use duet::types::{Rev, Revision};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::{Client, Config};

fn log(config: &Config) -> PgLog {
    PgLog::new(PgOptions::local(config.clone()).unwrap()).unwrap()
}

async fn acquire(log: &PgLog) -> Box<dyn Writer> {
    tokio::time::timeout(Duration::from_secs(60), log.acquire(true, vec![])).await.expect("in time").unwrap()
}

fn put(main: Revision, sub: i32, key: &[u8], value: &[u8]) -> LogRow {
    LogRow {
        rev: Rev::new(main, sub),
        key: Bytes::copy_from_slice(key),
        value: Some(Bytes::copy_from_slice(value)),
        create_revision: main,
        version: 1,
        lease: 0,
    }
}

fn rows(rows: Vec<LogRow>) -> Arc<Batch> {
    Arc::new(Batch { rows, ..Batch::default() })
}

/// One put of revision `main`.
fn one(main: Revision) -> Arc<Batch> {
    rows(vec![put(main, 0, format!("/k/{main}").as_bytes(), b"value")])
}

async fn recover(writer: &mut dyn Writer, after: Revision) -> Result<Vec<LogRow>, LogError> {
    let mut all = Vec::new();
    writer.recover(after, &mut |chunk| all.extend(chunk)).await?;
    Ok(all)
}

async fn writer_pid(client: &Client) -> i32 {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'duet writer' AND datname = current_database()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn stored(client: &Client) -> Vec<i64> {
    client.query("SELECT rev FROM duet.log ORDER BY rev, sub", &[]).await.unwrap().iter().map(|r| r.get(0)).collect()
}

#[tokio::test]
async fn everything_that_was_appended_comes_back_as_it_was() {
    let database = Database::new().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let fresh = writer.meta().clone();
    assert_eq!((fresh.epoch, fresh.compacted, fresh.last_revision), (1, -1, None));
    assert!(fresh.cluster_id != 0 && fresh.member_id != 0 && fresh.cluster_id != fresh.member_id);

    let big: Vec<u8> = (0..1_572_864_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tombstone = LogRow { value: None, create_revision: 0, version: 0, ..put(4, 1, b"/gone", b"") };
    let leased = LogRow { lease: -7, version: 9, create_revision: 2, ..put(4, 0, b"/leased", b"x") };
    let first = Batch {
        rows: vec![put(2, 0, b"\0nul\0", b""), put(2, 1, b"\xff\xfe not UTF-8", b"\0\xff"), put(3, 0, b"/big", &big)],
        ..Batch::default()
    };
    let second = Batch {
        rows: vec![leased, tombstone],
        leases_put: vec![LeaseRow { id: -7, ttl: 30, expiry: Some(12_345) }, LeaseRow { id: 8, ttl: 1, expiry: None }],
        alarms_put: vec![AlarmRow { member_id: u64::MAX, alarm: 1 }, AlarmRow { member_id: 3, alarm: 2 }],
        compacted: Some(0),
        lessor_clock: Some(99),
        ..Batch::default()
    };
    let third = Batch {
        leases_put: vec![LeaseRow { id: -7, ttl: 30, expiry: None }],
        leases_deleted: vec![8, 1000],
        alarms_put: vec![AlarmRow { member_id: u64::MAX, alarm: 1 }],
        alarms_deleted: vec![AlarmRow { member_id: 3, alarm: 2 }],
        ..Batch::default()
    };
    let all = [&first.rows[..], &second.rows].concat();
    for batch in [first, second, third] {
        writer.append(Arc::new(batch)).await.unwrap();
    }
    writer.confirm().await.unwrap();
    writer.close().await;

    let mut writer = acquire(&log).await;
    let meta = writer.meta().clone();
    assert_eq!((meta.epoch, meta.compacted, meta.last_revision, meta.lessor_clock), (2, 0, Some(4), 99));
    assert_eq!((meta.cluster_id, meta.member_id), (fresh.cluster_id, fresh.member_id));
    assert_eq!(meta.leases, [LeaseRow { id: -7, ttl: 30, expiry: None }]);
    assert_eq!(meta.alarms, [AlarmRow { member_id: u64::MAX, alarm: 1 }]);
    assert_eq!(recover(&mut *writer, 0).await.unwrap(), all);
    assert_eq!(recover(&mut *writer, 3).await.unwrap(), all[3..]);

    let reader = log.reader();
    let asked = vec![Rev::new(3, 0), Rev::new(2, 0), Rev::new(2, 9), Rev::new(3, 0)];
    let values = reader.values(asked).await.unwrap();
    let big = Some(Bytes::from(big));
    assert_eq!(values, [big.clone(), Some(Bytes::new()), None, big]);
    assert!(reader.values(vec![Rev::new(77, 0)]).await.is_err(), "a standby may not have replayed it yet");
    assert_eq!(reader.rows(0, 100, usize::MAX).await.unwrap().rows, all);
}

#[tokio::test]
async fn a_session_that_was_made_ready_before_is_used_and_one_that_has_ended_is_not() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let began = std::time::Instant::now();
    let opened = async || loop {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'duet writer' AND datname = current_database() \
                   AND state = 'idle' AND (query LIKE '%pg_try_advisory_lock%' OR query LIKE '%pg_is_in_recovery%')";
        if let Some(row) = client.query_opt(sql, &[]).await.unwrap() {
            return row.get::<_, i32>(0);
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // Without tables yet, and with them.
    for epoch in 1..=2 {
        log.prepare();
        let ready = opened().await;
        let mut writer = acquire(&log).await;
        assert_eq!((writer_pid(&client).await, writer.meta().epoch), (ready, epoch));
        writer.append(one(epoch + 1)).await.unwrap();
        assert_eq!(recover(&mut *writer, 1).await.unwrap().len() as i64, epoch);
        writer.close().await;
    }
    log.prepare();
    let ready = opened().await;
    client.execute("SELECT pg_terminate_backend($1, 10000)", &[&ready]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut writer = acquire(&log).await;
    assert_ne!(writer_pid(&client).await, ready);
    writer.append(one(4)).await.unwrap();
    assert_eq!(stored(&client).await, [2, 3, 4]);
}

#[tokio::test]
async fn a_failed_batch_makes_every_batch_sent_behind_it_do_nothing() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    for with_lease in [false, true] {
        let mut writer = acquire(&log).await;
        let base = writer.meta().last_revision.unwrap_or(1);
        let mut behind = Batch::clone(&one(base + 2));
        if with_lease {
            behind.leases_put = vec![LeaseRow { id: 1, ttl: 1, expiry: None }];
        }
        // All are on their way before the first answer is looked at; the second collides with the first.
        let answers = [one(base + 1), one(base + 1), Arc::new(behind), one(base + 3)].map(|batch| writer.append(batch));
        let mut results = Vec::new();
        for answer in answers {
            results.push(answer.await);
        }
        assert!(results[0].is_ok(), "{results:?}");
        assert!(results[1..].iter().all(|r| matches!(r, Err(LogError::Refused(_)))), "{results:?}");
        assert_eq!(stored(&client).await.last(), Some(&(base + 1)));
        assert!(matches!(writer.append(one(base + 2)).await, Err(LogError::Refused(_))));
        writer.close().await;
    }
    assert_eq!(client.query_one("SELECT count(*) FROM duet.lease", &[]).await.unwrap().get::<_, i64>(0), 0);
    // Who asks for the answers in the wrong order learns the same.
    let mut writer = acquire(&log).await;
    let last = writer.meta().last_revision.unwrap();
    let [ok, bad, behind] = [one(last + 1), one(last + 1), one(last + 2)].map(|batch| writer.append(batch));
    assert!(matches!(behind.await, Err(LogError::Refused(_))));
    assert!(bad.await.is_err());
    let _ = ok.await;
    assert_eq!(stored(&client).await.last(), Some(&(last + 1)));
}

#[tokio::test]
async fn batches_are_sent_when_they_are_appended_not_when_their_answers_are_awaited() {
    let database = Database::new().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let mut answers: Vec<_> = (2..40).map(|n| writer.append(one(n))).collect();
    answers.reverse();
    for answer in answers {
        answer.await.unwrap();
    }
    assert_eq!(stored(&database.client().await).await, (2..40).collect::<Vec<i64>>());
}

#[tokio::test]
async fn there_is_one_writer_and_a_replica_that_waits_takes_over_when_it_goes() {
    let database = Database::new().await;
    let (log, other) = (log(&database.config), log(&database.config));
    assert_eq!(log.leader().await.unwrap(), None, "no schema yet");
    let urls = vec!["http://a:2379".to_owned(), "http://b:2379".to_owned()];
    let writer = log.acquire(true, urls.clone()).await.unwrap();
    assert_eq!(other.leader().await.unwrap().map(|leader| leader.urls), Some(urls));
    assert!(matches!(other.acquire(false, vec![]).await, Err(LogError::Deposed(_))));
    let mut waiting = Box::pin(other.acquire(true, vec![]));
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting).await.is_err());
    writer.close().await;
    let mut writer = waiting.await.unwrap();
    assert_eq!(writer.meta().epoch, 2);
    writer.append(one(2)).await.unwrap();
    writer.close().await;
    assert_eq!(log.leader().await.unwrap(), None);
}

#[tokio::test]
async fn a_replica_that_waits_holds_no_snapshot_that_would_keep_dead_rows_alive() {
    let database = Database::new().await;
    let client = database.client().await;
    let (log, other) = (log(&database.config), log(&database.config));
    let _writer = acquire(&log).await;
    let _waiting = tokio::spawn(async move { other.acquire(true, vec![]).await.map(|_| ()) });
    let sql = "SELECT count(*) FILTER (WHERE query LIKE '%pg_try_advisory_lock%' AND state = 'idle' AND backend_xmin IS NULL), count(*) \
               FROM pg_stat_activity WHERE application_name = 'duet writer' AND datname = current_database()";
    let began = std::time::Instant::now();
    loop {
        let row = client.query_one(sql, &[]).await.unwrap();
        if (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (1, 2) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Memory no longer knows what it has had deleted: what is lost of that afterwards would be lost for good.
#[tokio::test]
async fn a_deletion_is_answered_when_it_is_durable() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    writer.append(rows((2..40).map(|n| put(n, 0, b"k", b"v")).collect())).await.unwrap();
    for n in 2..40 {
        let before = "SELECT pg_current_wal_insert_lsn()::text";
        let before: String = client.query_one(before, &[]).await.unwrap().get(0);
        log.reader().delete(1, vec![Rev::new(n, 0)]).await.unwrap();
        let flushed = format!("SELECT pg_current_wal_flush_lsn() > '{before}'::pg_lsn");
        assert!(client.query_one(&flushed, &[]).await.unwrap().get::<_, bool>(0), "revision {n}");
    }
}

#[tokio::test]
async fn a_snapshot_is_of_one_moment() {
    let database = Database::new().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let stored: Vec<LogRow> = (2..8).map(|n| put(n, 0, b"k", b"v")).collect();
    writer.append(rows(stored.clone())).await.unwrap();
    let mut snapshot = log.reader().snapshot().await.unwrap();
    writer.append(Arc::new(Batch { rows: vec![put(8, 0, b"k", b"v")], compacted: Some(7), ..Batch::default() })).await.unwrap();
    log.reader().delete(1, (2..7).map(|n| Rev::new(n, 0)).collect()).await.unwrap();
    let first = snapshot.rows(2, 9, 1).await.unwrap();
    assert_eq!((first.rows.as_slice(), first.more, first.compacted), (&stored[..1], true, -1));
    assert_eq!(snapshot.rows(3, 9, 1 << 20).await.unwrap().rows, stored[1..]);
    drop(snapshot);
    let now = log.reader().rows(2, 9, 1 << 20).await.unwrap();
    assert_eq!((now.rows.len(), now.more, now.compacted), (2, false, 7));
}

#[tokio::test]
async fn a_writer_of_an_epoch_that_is_over_writes_and_deletes_nothing() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    writer.append(one(2)).await.unwrap();
    let reader = log.reader();
    reader.delete(1, vec![Rev::new(500, 0)]).await.unwrap();
    client.batch_execute("UPDATE duet.meta SET epoch = epoch + 1").await.unwrap();
    assert!(matches!(writer.append(one(3)).await, Err(LogError::Deposed(_))));
    assert!(matches!(writer.append(one(4)).await, Err(LogError::Deposed(_))));
    assert!(writer.confirm().await.is_err());
    assert!(matches!(reader.delete(1, vec![Rev::new(2, 0)]).await, Err(LogError::Deposed(_))));
    assert_eq!(stored(&client).await, [2]);
    reader.delete(2, vec![Rev::new(2, 0)]).await.unwrap();
    reader.delete(2, vec![Rev::new(2, 0)]).await.unwrap();
    assert_eq!(stored(&client).await, [0_i64; 0]);
}

#[tokio::test]
async fn a_terminated_session_makes_batches_unknown_and_the_next_session_goes_on() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let mut next = 2;
    for round in 1..=5 {
        let mut writer = acquire(&log).await;
        assert_eq!(writer.meta().epoch, round);
        let pid = writer_pid(&client).await;
        writer.append(one(next)).await.unwrap();
        let answers: Vec<_> = (next + 1..next + 200).map(|n| writer.append(one(n))).collect();
        client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
        let mut acknowledged = next;
        let mut failed = false;
        for (n, answer) in (next + 1..).zip(answers) {
            match answer.await {
                Ok(()) => {
                    assert!(!failed, "an answer after a failure");
                    acknowledged = n;
                }
                Err(LogError::Unknown(_)) => failed = true,
                Err(other) => panic!("{other}"),
            }
        }
        tokio::time::timeout(Duration::from_secs(30), writer.ended()).await.expect("the session tells that it has ended");
        let last_words = writer.append(one(9999)).await;
        assert!(matches!(last_words, Err(LogError::Refused(_))), "what was never sent is certainly not applied: {last_words:?}");
        writer.close().await;
        let mut writer = acquire(&log).await;
        let last = writer.meta().last_revision.unwrap();
        assert!(last >= acknowledged);
        assert_eq!(recover(&mut *writer, 0).await.unwrap().len() as i64, last - 1, "no hole, no double");
        client.batch_execute("UPDATE duet.meta SET epoch = epoch - 1").await.unwrap();
        writer.close().await;
        next = last + 1;
    }
}

#[tokio::test]
async fn after_kill_9_of_the_postmaster_in_the_middle_of_batches_every_acknowledged_one_is_there() {
    let dir = common::scratch();
    let postgres = Postgres::start(common::options(&dir)).await.unwrap();
    let log = log(&postgres.connect_config());
    let mut next = 2;
    for _ in 0..3 {
        let mut writer = acquire(&log).await;
        let Status::Running { pid } = *postgres.status().borrow() else { panic!("not running") };
        let backend = writer_pid(&common::connect(&postgres.connect_config()).await).await;
        let answers: Vec<_> = (next..next + 300).map(|n| writer.append(one(n))).collect();
        let mut acknowledged = next - 1;
        for (n, answer) in (next..).zip(answers) {
            match answer.await {
                Ok(()) => acknowledged = n,
                Err(error) => {
                    assert!(matches!(error, LogError::Unknown(_)), "{error}");
                    break;
                }
            }
            if n == next + 20 {
                // The postmaster alone would leave the backend to finish its work.
                kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
                kill(Pid::from_raw(backend), Signal::SIGKILL).unwrap();
            }
        }
        writer.close().await;
        assert!(acknowledged < next + 299, "killed too late to prove anything");
        assert!(matches!(log.acquire(false, vec![]).await, Err(LogError::Unavailable(_))));
        let mut status = postgres.status();
        status.wait_for(|s| matches!(s, Status::Exited(_))).await.unwrap();
        postgres.restart(STOP).await.unwrap();
        let mut writer = acquire(&log).await;
        let last = writer.meta().last_revision.unwrap();
        assert!(last >= acknowledged, "lost {acknowledged}, has {last}");
        assert_eq!(recover(&mut *writer, 0).await.unwrap().len() as i64, last - 1);
        writer.close().await;
        next = last + 1;
    }
    postgres.stop(STOP).await;
}

/// From now on every commit waits for a standby that isn't there.
async fn wait_for_nobody(postgres: &Postgres, client: &Client) {
    for statement in
        ["SET synchronous_commit = local", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"]
    {
        client.batch_execute(statement).await.unwrap();
    }
    // The checkpointer is who makes it take effect: a commit of our own is seen waiting.
    let probe = common::connect(&postgres.connect_config()).await;
    probe.batch_execute("SET application_name = 'probe'").await.unwrap();
    tokio::spawn(async move { while probe.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x')").await.is_ok() {} });
    until(client, &waits("probe")).await;
    client.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'probe'", &[]).await.unwrap();
}

/// Asks until it is true.
async fn until(client: &Client, sql: &str) {
    let began = std::time::Instant::now();
    while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(began.elapsed() < Duration::from_secs(60), "{sql}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a session of that name waits for the standby.
fn waits(name: &str) -> String {
    format!("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = '{name}' AND wait_event = 'SyncRep')")
}

/// Memory forgets what it was told is deleted: if that were lost with the leader, an old version could look alive one day.
#[tokio::test]
async fn a_deletion_is_answered_only_when_the_standby_has_it_however_often_it_is_tried() {
    let dir = common::scratch();
    let postgres = Postgres::start(common::options(&dir)).await.unwrap();
    let client = common::connect(&postgres.connect_config()).await;
    let log = Arc::new(log(&postgres.connect_config()));
    let mut writer = acquire(&log).await;
    writer.append(one(2)).await.unwrap();
    let epoch = writer.meta().epoch;
    writer.close().await;
    wait_for_nobody(&postgres, &client).await;
    let delete = || {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.reader().delete(epoch, vec![Rev::new(2, 0)]).await })
    };
    // The second one finds nothing to delete.
    for _ in 0..2 {
        let deletion = delete();
        until(&client, &waits("duet compactor")).await;
        client
            .execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'duet compactor'", &[])
            .await
            .unwrap();
        let answer = deletion.await.unwrap();
        assert!(matches!(&answer, Err(LogError::Unknown(why)) if why.contains("synchronous replication")), "{answer:?}");
    }
    client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    delete().await.unwrap().unwrap();
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn a_commit_whose_wait_for_the_standby_was_cancelled_is_unknown_not_a_success() {
    let dir = common::scratch();
    let postgres = Postgres::start(common::options(&dir)).await.unwrap();
    let client = common::connect(&postgres.connect_config()).await;
    // A warning is all that tells of it, and somebody would rather not hear any.
    client.batch_execute("ALTER ROLE duet SET client_min_messages = 'error'").await.unwrap();
    let log = log(&postgres.connect_config());
    let mut writer = acquire(&log).await;
    writer.append(one(2)).await.unwrap();
    let pid = writer_pid(&client).await;
    wait_for_nobody(&postgres, &client).await;
    let (waiting, behind) = (writer.append(one(3)), writer.append(one(4)));
    until(&client, &waits("duet writer")).await;
    client.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.unwrap();
    let answer = waiting.await;
    assert!(matches!(&answer, Err(LogError::Unknown(why)) if why.contains("synchronous replication")), "{answer:?}");
    client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    assert!(matches!(behind.await, Err(LogError::Unknown(_))));
    assert!(matches!(writer.append(one(99)).await, Err(LogError::Refused(_))));
    writer.close().await;
    postgres.stop(STOP).await;
}

#[tokio::test]
async fn a_warning_of_the_database_keeps_nobody_from_writing_and_one_of_a_commit_makes_it_unknown() {
    let database = Database::new().await;
    let client = database.client().await;
    let name = database.config.get_dbname().unwrap();
    // As after an update of the C library: PostgreSQL says so to everybody who connects, and its parallel workers do so in the middle of a
    // session.
    client.execute("UPDATE pg_database SET datcollversion = '0' WHERE datname = $1", &[&name]).await.unwrap();
    let sql = "SELECT name FROM pg_settings WHERE name IN ('debug_parallel_query', 'force_parallel_mode')";
    let forced: String = client.query_one(sql, &[]).await.unwrap().get(0);
    for (setting, value) in [(forced.as_str(), "on"), ("max_parallel_workers_per_gather", "2")] {
        client.batch_execute(&format!("ALTER DATABASE {name} SET {setting} = {value}")).await.unwrap();
    }
    // And as an owner of a database may have it, who wants to hear of every change to its tables.
    let event = "CREATE FUNCTION heard() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE WARNING ''heard of it''; END'; \
        CREATE EVENT TRIGGER heard ON ddl_command_end EXECUTE FUNCTION heard()";
    client.batch_execute(event).await.unwrap();
    let warnings = common::warnings(&database.config, "SELECT count(*) FROM pg_proc").await;
    assert_eq!(warnings.iter().filter(|text| text.contains("collation version")).count(), 2, "{warnings:?}");

    let log = log(&database.config);
    acquire(&log).await.append(one(2)).await.unwrap();
    let mut writer = acquire(&log).await;
    assert_eq!(recover(&mut *writer, 0).await.unwrap().len(), 1);
    writer.append(one(3)).await.unwrap();
    writer.confirm().await.unwrap();

    let warn = "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE WARNING ''of a commit''; RETURN NULL; END'; \
        CREATE TRIGGER warn AFTER INSERT ON duet.log EXECUTE FUNCTION warn()";
    client.batch_execute(warn).await.unwrap();
    let answer = writer.append(one(4)).await;
    assert!(matches!(&answer, Err(LogError::Unknown(why)) if why.contains("of a commit")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_in_the_middle_of_a_recovery_is_an_error_not_a_short_log() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let value = vec![7_u8; 100_000];
    for base in 0..30 {
        let batch = (0..20).map(|n| put(2 + base * 20 + n, 0, b"/k", &value)).collect();
        writer.append(rows(batch)).await.unwrap();
    }
    let pid = writer_pid(&client).await;
    let mut seen = 0;
    let result = writer
        .recover(0, &mut |chunk| {
            if seen == 0 {
                kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
                // PostgreSQL notices when it has filled the socket's buffers.
                while std::path::Path::new(&format!("/proc/{pid}")).exists() && kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok()
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            seen += chunk.len();
        })
        .await;
    assert!(matches!(result, Err(LogError::Unavailable(_))), "{result:?}");
    assert!(seen < 600, "all of it arrived before the session ended");
}

#[tokio::test]
async fn a_read_from_a_server_that_stands_still_is_an_error_in_time_not_a_wait_without_end() {
    let database = Database::new().await;
    let client = database.client().await;
    let options = PgOptions::local(database.config.clone()).unwrap().with_read_deadline(Duration::from_secs(1));
    let log = PgLog::new(options).unwrap();
    let mut writer = acquire(&log).await;
    writer.append(one(2)).await.unwrap();
    let reader = log.reader();
    assert_eq!(reader.values(vec![Rev::new(2, 0)]).await.unwrap().len(), 1);
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'duet reader' AND datname = current_database()";
    let pid: i32 = client.query_one(sql, &[]).await.unwrap().get(0);

    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let values = tokio::time::timeout(Duration::from_secs(60), reader.values(vec![Rev::new(2, 0)])).await.expect("bounded");
    assert!(matches!(&values, Err(LogError::Unavailable(why)) if why.contains("no answer")), "{values:?}");
    let rows = tokio::time::timeout(Duration::from_secs(60), reader.rows(2, 2, 1 << 20)).await.expect("bounded");
    assert!(matches!(&rows, Err(LogError::Unavailable(_))), "{rows:?}");

    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    assert_eq!(reader.rows(2, 2, 1 << 20).await.unwrap().rows.len(), 1, "the session goes on with it");
    writer.close().await;
}

#[tokio::test]
async fn pages_of_the_log_hold_whole_revisions_and_end_early_only_at_the_byte_limit() {
    let database = Database::new().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let mut all = Vec::new();
    // Revisions of 1, 3 and 1500 rows, and of very different sizes.
    for main in 2..60 {
        let (count, size) = if main == 30 {
            (1500, 300)
        } else if main % 7 == 0 {
            (3, 50_000)
        } else {
            (1, 10)
        };
        let batch: Vec<LogRow> = (0..count).map(|sub| put(main, sub, format!("/{sub}").as_bytes(), &vec![1; size])).collect();
        all.extend(batch.clone());
        writer.append(rows(batch)).await.unwrap();
    }
    let reader = log.reader();
    for (from, to) in [(0, i64::MAX), (7, 31), (30, 30), (59, 59), (60, 99), (40, 20)] {
        let wanted: Vec<_> = all.iter().filter(|r| from <= r.rev.main && r.rev.main <= to).cloned().collect();
        for max_bytes in [0, 1, 60_000, 200_000, usize::MAX] {
            let (mut got, mut at) = (Vec::new(), from);
            loop {
                let page = reader.rows(at, to, max_bytes).await.unwrap();
                let main = page.rows.last().map(|r| r.rev.main);
                let whole = main.is_none_or(|m| {
                    page.rows.iter().filter(|r| r.rev.main == m).count() == all.iter().filter(|r| r.rev.main == m).count()
                });
                assert!(whole, "page from {at} ends inside revision {main:?}");
                let before_last: usize = page
                    .rows
                    .iter()
                    .filter(|r| Some(r.rev.main) != main)
                    .map(|r| r.key.len() + r.value.as_ref().unwrap().len())
                    .sum();
                assert!(before_last == 0 || before_last < max_bytes, "goes on beyond the limit");
                got.extend(page.rows);
                if !page.more {
                    break;
                }
                at = main.expect("more means progress") + 1;
            }
            assert_eq!(got.len(), wanted.len(), "from {from} to {to} by {max_bytes}");
            assert!(got == wanted);
        }
    }
}

#[tokio::test]
async fn a_log_with_a_hole_and_a_newer_schema_are_refused_with_the_reason() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    writer.append(rows((2..10).map(|n| put(n, 0, b"/k", b"")).collect())).await.unwrap();
    // Compaction's holes are no holes.
    writer.append(Arc::new(Batch { compacted: Some(4), ..Batch::default() })).await.unwrap();
    client.batch_execute("DELETE FROM duet.log WHERE rev IN (2, 3, 4)").await.unwrap();
    writer.close().await;
    let mut writer = acquire(&log).await;
    assert_eq!(recover(&mut *writer, 0).await.unwrap().len(), 5);
    assert_eq!(recover(&mut *writer, 6).await.unwrap().len(), 3);
    client.batch_execute("DELETE FROM duet.log WHERE rev = 6").await.unwrap();
    let error = recover(&mut *writer, 0).await.unwrap_err();
    assert!(matches!(&error, LogError::Unusable(why) if why.contains("no revision 6")), "{error}");
    assert!(recover(&mut *writer, 7).await.is_ok());
    writer.close().await;

    client.batch_execute("UPDATE duet.meta SET schema_version = 1000").await.unwrap();
    let Err(error) = log.acquire(true, vec![]).await else { panic!("accepted") };
    assert!(matches!(&error, LogError::Unusable(why) if why.contains("newer Duet")), "{error}");
}

#[tokio::test]
async fn a_store_that_lost_its_newest_revisions_shows_it_in_what_a_new_session_reads() {
    let database = Database::new().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    writer.append(rows((2..10).map(|n| put(n, 0, b"/k", b"")).collect())).await.unwrap();
    writer.close().await;
    database.client().await.batch_execute("DELETE FROM duet.log WHERE rev > 7").await.unwrap();
    let writer = acquire(&log).await;
    assert_eq!(writer.meta().last_revision, Some(7), "the engine, which published 9, refuses this");
}

#[tokio::test]
async fn the_views_show_objects_histories_and_big_and_busy_keys_whatever_the_keys_are() {
    let database = Database::new().await;
    let client = database.client().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let pod = "/registry/pods/default/web-1";
    let keys: [&[u8]; 8] = [
        pod.as_bytes(),
        b"/registry/stable.example.com/crontabs/default/mine",
        b"/registry/minions/node-1",
        b"/registry/services/specs/default/kubernetes",
        b"compact_rev_key",
        b"\xff\xfe",
        b"a\0b",
        "/registry/configmaps/d\u{e9}j\u{e0}/vu".as_bytes(),
    ];
    let mut batch: Vec<LogRow> = (2..).zip(keys).map(|(main, key)| put(main, 0, key, b"four")).collect();
    batch.push(LogRow { version: 2, create_revision: 2, ..put(20, 0, pod.as_bytes(), &[0; 5000]) });
    batch.push(LogRow { value: None, ..put(21, 0, b"compact_rev_key", b"") });
    writer.append(rows(batch)).await.unwrap();

    let sql =
        "SELECT concat_ws('|', resource, namespace, name, create_revision, mod_revision, version, size_bytes) FROM duet.current";
    let mut found: Vec<String> = client.query(sql, &[]).await.unwrap().iter().map(|r| r.get(0)).collect();
    found.sort();
    let mut expected = [
        "pods|default|web-1|2|20|2|5000",
        "crontabs.stable.example.com|default|mine|3|3|1|4",
        "nodes|node-1|4|4|1|4",
        "services|default|kubernetes|5|5|1|4",
        "\\377\\376|7|7|1|4",
        "a\\000b|8|8|1|4",
        "configmaps|d\u{e9}j\u{e0}|vu|9|9|1|4",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    let history = client.query("SELECT revision || ' ' || change FROM duet.history($1)", &[&pod]).await.unwrap();
    assert_eq!(history.iter().map(|r| r.get(0)).collect::<Vec<String>>(), ["2 create", "20 update"]);
    let largest = client.query_one("SELECT key, bytes FROM duet.largest_keys LIMIT 1", &[]).await.unwrap();
    assert_eq!((largest.get::<_, &str>(0), largest.get::<_, i64>(1)), (pod, 5004 + 2 * pod.len() as i64));
    let busiest = client.query("SELECT key FROM duet.busiest_keys WHERE revisions = 2 ORDER BY 1", &[]).await.unwrap();
    assert_eq!(busiest.iter().map(|r| r.get(0)).collect::<Vec<String>>(), [pod, "compact_rev_key"]);
}

#[tokio::test]
async fn room_is_measured_and_defragment_gives_it_back_beside_a_writer() {
    let database = Database::new().await;
    let log = log(&database.config);
    let mut writer = acquire(&log).await;
    let reader = log.reader();
    let value = vec![3_u8; 1000];
    for base in 0..20 {
        writer.append(rows((0..500).map(|n| put(2 + base * 500 + n, 0, b"/k", &value)).collect())).await.unwrap();
    }
    let full = reader.disk_usage().await.unwrap().total;
    assert!(full > 10_000_000, "{full}");
    for base in 0..20 {
        reader.delete(1, (0..500).map(|n| Rev::new(2 + base * 500 + n, 0)).collect()).await.unwrap();
    }
    reader.defragment().await.unwrap();
    for base in 20..40 {
        writer.append(rows((0..500).map(|n| put(2 + base * 500 + n, 0, b"/k", &value)).collect())).await.unwrap();
    }
    let again = reader.disk_usage().await.unwrap().total;
    assert!(again < full + full / 10, "the room was used again: {full} then {again}");
}

#[tokio::test]
async fn a_disk_that_fills_up_under_the_writer_loses_nothing_acknowledged_and_space_mends_it() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can mount the small disk.
    }
    let dir = common::scratch();
    let disk = SmallDisk::mount(&dir.path().join("small"), "300m");
    let options = duet::supervisor::postgres::PostgresOptions { data_dir: disk.0.join("data"), ..common::options(&dir) };
    let postgres = Postgres::start(options).await.unwrap();
    let log = log(&postgres.connect_config());
    let mut writer = acquire(&log).await;
    let value: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    writer.append(rows(vec![put(2, 0, b"/k", &value)])).await.unwrap();
    let ballast = disk.fill();
    let mut acknowledged = 2;
    let error = loop {
        match writer.append(rows(vec![put(acknowledged + 1, 0, b"/k", &value)])).await {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the disk holds less");
    };
    // The table can't grow, or, when it is the WAL that can't, PostgreSQL ends: then nobody knows.
    assert!(matches!(error, LogError::Full(_) | LogError::Unknown(_)), "{error}");
    writer.close().await;
    std::fs::remove_file(ballast).unwrap();
    postgres.restart(STOP).await.unwrap();
    let mut writer = acquire(&log).await;
    let last = writer.meta().last_revision.unwrap();
    assert!(last == acknowledged || last == acknowledged + 1, "acknowledged {acknowledged}, has {last}");
    let all = recover(&mut *writer, 0).await.unwrap();
    assert!(all.iter().all(|row| row.value.as_ref().unwrap() == &value));
    writer.append(one(last + 1)).await.unwrap();
    writer.close().await;
    postgres.stop(STOP).await;
}

/// A random batch that may follow revision `last`; leases and alarms from small sets, so that they meet again.
fn random_batch(rng: &mut rand::rngs::SmallRng, last: Revision) -> Batch {
    use rand::RngExt;
    let mut batch = Batch::default();
    for main in last + 1..=last + rng.random_range(0..4_i64) {
        for sub in 0..rng.random_range(1..4) {
            let key: Vec<u8> = (0..rng.random_range(1..4)).map(|_| rng.random()).collect();
            let value = vec![rng.random(); rng.random_range(0..5000)];
            let mut row =
                LogRow { lease: rng.random_range(-2..3), version: rng.random_range(1..9), ..put(main, sub, &key, &value) };
            if rng.random_ratio(1, 4) {
                row = LogRow { value: None, create_revision: 0, version: 0, lease: 0, ..row };
            }
            batch.rows.push(row);
        }
    }
    for id in -3..3 {
        match rng.random_range(0..8) {
            0 => batch.leases_put.push(LeaseRow { id, ttl: rng.random_range(1..99), expiry: Some(rng.random_range(0..1 << 40)) }),
            1 => batch.leases_put.push(LeaseRow { id, ttl: rng.random_range(1..99), expiry: None }),
            2 => batch.leases_deleted.push(id),
            _ => {}
        }
        let alarm = AlarmRow { member_id: id.cast_unsigned(), alarm: 1 };
        match rng.random_range(0..12) {
            0 => batch.alarms_put.push(alarm),
            1 => batch.alarms_deleted.push(alarm),
            _ => {}
        }
    }
    batch.lessor_clock = rng.random_ratio(1, 4).then(|| rng.random_range(0..1 << 40));
    batch
}

#[tokio::test]
async fn random_batches_leave_the_same_behind_as_in_memory() {
    use duet::storage::mem::MemLog;
    use rand::{RngExt, SeedableRng};
    let seed: u64 = std::env::var("DUET_TEST_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("DUET_TEST_SEED={seed}");
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let database = Database::new().await;
    let (real, model) = (log(&database.config), MemLog::default());
    let (mut last, mut compacted) = (1, -1);
    for _ in 0..6 {
        let mut writers = [acquire(&real).await, model.acquire(true, vec![]).await.unwrap()];
        let mut flying = Vec::new();
        for _ in 0..rng.random_range(1..30) {
            let mut batch = random_batch(&mut rng, last);
            last = batch.rows.last().map_or(last, |row| row.rev.main);
            if rng.random_ratio(1, 6) {
                compacted = rng.random_range(compacted.max(0)..=last);
                batch.compacted = Some(compacted);
            }
            let batch = Arc::new(batch);
            flying.extend(writers.iter_mut().map(|writer| writer.append(batch.clone())));
        }
        for answer in flying {
            answer.await.unwrap();
        }
        let revs: Vec<Rev> = model.rows().iter().map(|row| row.rev).collect();
        let obsolete: Vec<Rev> = revs.iter().copied().filter(|rev| rev.main <= compacted && rng.random_ratio(1, 3)).collect();
        let (from, max_bytes) = (rng.random_range(0..=last), rng.random_range(0..20_000));
        let mut seen = Vec::new();
        for (log, writer) in [&real as &dyn Log, &model].into_iter().zip(&mut writers) {
            let reader = log.reader();
            reader.delete(writer.meta().epoch, obsolete.clone()).await.unwrap();
            let values = reader.values(revs.clone()).await.unwrap();
            let page = reader.rows(from, last, max_bytes).await.unwrap();
            seen.push((values, page.rows, recover(&mut **writer, from).await.unwrap()));
        }
        assert_eq!(seen[0].0, seen[1].0, "values, seed {seed}");
        let (shorter, longer) = if seen[0].1.len() < seen[1].1.len() { (0, 1) } else { (1, 0) };
        assert!(seen[longer].1.starts_with(&seen[shorter].1), "pages, seed {seed}");
        assert_eq!(seen[0].2, seen[1].2, "recovery, seed {seed}");
        for writer in writers {
            writer.close().await;
        }
        let metas = [acquire(&real).await, model.acquire(true, vec![]).await.unwrap()].map(|writer| {
            let mut meta = writer.meta().clone();
            (meta.cluster_id, meta.member_id) = (0, 0);
            meta.leases.sort_by_key(|lease| lease.id);
            meta.alarms.sort();
            meta
        });
        assert_eq!(metas[0], metas[1], "seed {seed}");
    }
}
