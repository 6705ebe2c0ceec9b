//! Faults under load, against the program itself: PostgreSQL that stands still, sessions that are terminated, backends and Duets that are
//! killed. What clients were told meanwhile is held against what is stored afterwards (`history`). Each test prints its seed.
//!
//! Faults of single parts are elsewhere: tests/engine.rs (sessions lost in each way, in memory), tests/storage_pg.rs (the postmaster
//! killed, batches behind failed ones, a full disk), tests/supervisor_postgres.rs (starts and takeovers).

#[path = "../common/mod.rs"]
mod common;
mod history;
mod load;
mod postgres;

use std::time::Duration;

use common::process::{PATIENCE, dev, serve};
use common::scratch;
use duet::supervisor::postgres::{Postgres, Status};
use etcd_client::{Client, GetOptions};
use load::Load;
use nix::sys::signal::{Signal, kill};
use postgres::{Database, freeze, testify, thaw};
use rand::{RngExt, SeedableRng};

/// How long PostgreSQL stands still. This is the fault itself, not a wait for something.
const STANDSTILL: Duration = Duration::from_secs(10);

/// DUET_FAULTS_SEED gives a run's seed back. (What the machine's scheduler does is not in it.)
fn seed() -> u64 {
    std::env::var("DUET_FAULTS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("DUET_FAULTS_SEED is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgresql_stands_still_nothing_is_confirmed_and_afterwards_nothing_is_missing() {
    let (dir, seed) = (scratch(), seed());
    let database = Postgres::start(common::options(&dir)).await.unwrap();
    let dsn = format!("host={} user=duet dbname=postgres", database.socket_dir().display());
    let (mut writer, mut standby) = (serve(&dsn), serve(&dsn));
    let urls = vec![writer.ready(), standby.ready()];
    let mut load = Load::new(seed, urls.clone());
    load.write("a/", 0);
    load.write("b/", 0);
    load.write("c/", 1);
    load.list("a/", 0);
    load.list("", 1);
    load.watch("b/", 1, 1);
    load.lease();
    load.progress(150).await;

    let Status::Running { pid } = *database.status().borrow() else { panic!("not running") };
    let stopped = freeze(i32::try_from(pid).unwrap());
    let standstill = tokio::time::Instant::now() + STANDSTILL;
    let confirmed = async {
        let mut client = Client::connect(&urls[..1], None).await.unwrap();
        let serializable = client.get("a/0", Some(GetOptions::new().with_serializable())).await;
        serializable.expect("what was published can be read all the time");
        let mut refusals = 0;
        loop {
            match client.get("a/0", None).await {
                Ok(_) => return refusals,
                Err(_) => refusals += 1,
            }
        }
    };
    let mut confirmed = Box::pin(confirmed);
    if let Ok(refusals) = tokio::time::timeout_at(standstill, &mut confirmed).await {
        panic!("a read was confirmed by nobody, after {refusals} refusals");
    }
    thaw(&stopped);
    let refusals = tokio::time::timeout(PATIENCE, confirmed).await.expect("reads are confirmed again");
    assert!(refusals > 0, "a read that can't be confirmed is refused before {STANDSTILL:?} are over");
    load.progress(150).await;

    let mut evidence = load.finish().await;
    testify(&common::connect(&database.connect_config()).await, &mut evidence).await;
    evidence.assert_sound(seed);
    drop((writer, standby));
    database.stop(common::STOP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_postgresql_stands_still_serves_reads_and_acknowledges_no_write() {
    let (dir, seed) = (scratch(), seed());
    let mut duet = dev(&dir, "");
    let urls = vec![duet.ready()];
    let mut load = Load::new(seed, urls.clone());
    load.write("a/", 0);
    load.write("b/", 0);
    load.list("", 0);
    load.watch("b/", 1, 0);
    load.progress(150).await;

    let database = Database::of_dev(&dir);
    let stopped = freeze(database.postmaster());
    let standstill = tokio::time::Instant::now() + STANDSTILL;
    let mut client = Client::connect(&urls, None).await.unwrap();
    // Nobody else can write: what is in memory is the newest there is.
    let newest = client.get("a/0", None).await.expect("a read needs no PostgreSQL").header().unwrap().revision();
    while let Ok(answer) = tokio::time::timeout_at(standstill, client.compact(1, None)).await {
        assert!(answer.is_err(), "a write was acknowledged while nothing could be stored");
        assert_eq!(client.get("a/0", None).await.unwrap().header().unwrap().revision(), newest);
    }
    thaw(&stopped);
    load.progress(150).await;
    assert_eq!(load.stream_ends(), 0, "a slow database is no reason to end a watch");
    let mut evidence = load.finish().await;
    database.testify(&mut evidence).await;
    evidence.assert_sound(seed);
}

const TERMINATE_ALL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'duet%'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_terminated_sessions_costs_no_write_no_event_and_no_lease() {
    let (dir, seed) = (scratch(), seed());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut duet = dev(&dir, "");
    let mut load = Load::new(seed, vec![duet.ready()]);
    load.write("a/", 0);
    load.write("b/", 0);
    load.write("c/", 0);
    load.list("", 0);
    load.list("c/", 0);
    load.watch("b/", 1, 0);
    load.lease();
    load.compact(200);
    load.progress(100).await;

    let database = Database::of_dev(&dir);
    let admin = database.connect().await;
    for _ in 0..15 {
        if rng.random_ratio(1, 2) {
            load.progress(rng.random_range(1..60)).await;
        } else {
            // In the middle of whatever a new session begins with.
            database.session("application_name = 'duet writer'").await;
        }
        admin.query(TERMINATE_ALL, &[]).await.unwrap();
    }
    load.lease_that_ends(1 << 40).await;
    load.progress(100).await;
    assert_eq!(load.stream_ends(), 0, "a lost session is no reason to end a watch");
    let mut evidence = load.finish().await;
    database.testify(&mut evidence).await;
    assert!(!evidence.leases_granted.is_empty());
    evidence.assert_sound(seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_take_over_from_each_other_in_a_storm_agree_on_everything() {
    let (dir, seed) = (scratch(), seed());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let database = Postgres::start(common::options(&dir)).await.unwrap();
    let dsn = format!("host={} user=duet dbname=postgres", database.socket_dir().display());
    let (mut one, mut other) = (serve(&dsn), serve(&dsn));
    let mut load = Load::new(seed, vec![one.ready(), other.ready()]);
    load.write("a/", 0);
    load.write("b/", 1);
    load.write("c/", 1);
    load.list("", 0);
    load.list("b/", 1);
    load.watch("b/", 1, 0);
    load.watch("a/", 1, 1);
    load.lease();
    load.compact(200);
    load.progress(100).await;
    let admin = common::connect(&database.connect_config()).await;
    for _ in 0..8 {
        // More than can have been on their way when the storm before struck: so there has been another session since.
        load.progress(rng.random_range(15..60)).await;
        admin.query(TERMINATE_ALL, &[]).await.unwrap();
    }
    load.progress(100).await;
    let mut evidence = load.finish().await;
    testify(&admin, &mut evidence).await;
    evidence.assert_sound(seed);
    let epoch: i64 = admin.query_one("SELECT epoch FROM duet.meta", &[]).await.unwrap().get(0);
    assert!(epoch > 8, "each storm ends the writer's session; this is epoch {epoch}");
    drop((one, other));
    database.stop(common::STOP).await;
}

/// Sessions in the middle of something, as pg_stat_activity shows them.
const IN_A_LIST: &str = "state = 'active' AND query LIKE 'SELECT u.at, l.value%'";
const IN_A_BATCH: &str = "state = 'active' AND query LIKE 'WITH ok %INSERT INTO duet.log%'";
const IN_A_COMPACTION: &str = "state = 'active' AND query LIKE 'WITH ok %DELETE FROM duet.log%'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_killed_in_a_list_a_batch_or_a_compaction_never_makes_an_answer_short() {
    let (dir, seed) = (scratch(), seed());
    let mut duet = dev(&dir, "--value-cache-bytes 1MiB");
    let mut load = Load::new(seed, vec![duet.ready()]);
    load.fill("big/", 10_000, 1 << 10).await;
    load.write("a/", 0);
    load.write("b/", 0);
    load.list("big/", 0);
    load.watch("b/", 1, 0);
    load.compact(200);
    let database = Database::of_dev(&dir);
    for moment in [IN_A_LIST, IN_A_BATCH, IN_A_COMPACTION] {
        load.progress(100).await;
        let failed = load.failed_lists();
        database.kill_backend(moment).await;
        load.progress(100).await;
        assert!(moment != IN_A_LIST || load.failed_lists() > failed, "the list that lost its backend is an error");
    }
    assert_eq!(load.stream_ends(), 0, "a lost session is no reason to end a watch");
    let mut evidence = load.finish().await;
    database.testify(&mut evidence).await;
    evidence.assert_sound(seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duet_killed_in_the_middle_of_everything_has_the_same_hash_when_it_is_back() {
    let (dir, seed) = (scratch(), seed());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let options = "--value-cache-bytes 1MiB";
    let mut duet = dev(&dir, options);
    let mut url = duet.ready();
    let mut load = Load::new(seed, vec![url.clone()]);
    load.fill("big/", 500, 8 << 10).await;
    load.write("a/", 0);
    load.write("b/", 0);
    load.list("big/", 0);
    load.watch("b/", 1, 0);
    load.lease();
    load.compact(60);
    let mut compared = 0;
    for _ in 0..4 {
        load.progress(rng.random_range(80..160)).await;
        let live = Client::connect([&url], None).await.unwrap().hash_kv(0).await.unwrap();
        duet.signal(Signal::SIGKILL);
        duet.ended();
        duet = dev(&dir, options);
        url = duet.ready();
        let recovered = Client::connect([&url], None).await.unwrap().hash_kv(live.hash_revision()).await;
        load.moved(vec![url.clone()]);
        // A compaction between the two leaves other rows to hash.
        if let Ok(recovered) = recovered
            && recovered.compact_version() == live.compact_version()
        {
            assert_eq!(recovered.hash(), live.hash(), "seed {seed}: recovered and live, revision {}", live.hash_revision());
            compared += 1;
        }
    }
    assert!(compared > 0, "seed {seed}: there was a compaction each time");
    load.progress(100).await;
    let mut evidence = load.finish().await;
    Database::of_dev(&dir).testify(&mut evidence).await;
    evidence.assert_sound(seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_killed_in_the_middle_of_everything_loses_nothing_that_was_acknowledged() {
    let (dir, seed) = (scratch(), seed());
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut duet = dev(&dir, "--value-cache-bytes 1MiB");
    let mut load = Load::new(seed, vec![duet.ready()]);
    load.fill("big/", 500, 8 << 10).await;
    load.write("a/", 0);
    load.write("b/", 0);
    load.write("c/", 0);
    load.list("big/", 0);
    load.watch("b/", 1, 0);
    load.lease();
    load.compact(60);
    let database = Database::of_dev(&dir);
    for _ in 0..3 {
        load.progress(rng.random_range(50..150)).await;
        // Stopped first, so that no backend outlives the postmaster and finishes its work.
        for pid in freeze(database.postmaster()) {
            kill(pid, Signal::SIGKILL).unwrap();
        }
    }
    load.progress(100).await;
    assert_eq!(load.stream_ends(), 0, "a lost database is no reason to end a watch");
    let mut evidence = load.finish().await;
    database.testify(&mut evidence).await;
    evidence.assert_sound(seed);
}

/// Of the events that the client doesn't read.
const UNREAD: u64 = 8000;
const UNREAD_BYTES: usize = 16 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_holds_up_nobody_and_gets_everything_when_it_goes_on() {
    let (dir, seed) = (scratch(), seed());
    // Recent history and values in memory are much less than what isn't read.
    let mut duet = dev(&dir, "--value-cache-bytes 4MiB");
    let url = duet.ready();
    let mut load = Load::new(seed, vec![url.clone()]);
    load.write("a/", 0);
    load.watch("a/", 1, 0);
    let mut client = Client::connect([&url], None).await.unwrap();
    let options = etcd_client::WatchOptions::new().with_prefix().with_start_revision(1).with_fragment();
    let mut unread = client.watch("unread/", Some(options)).await.unwrap();
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", duet.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    load.fill("unread/", UNREAD / 10, UNREAD_BYTES).await;
    load.progress(50).await;
    let before = memory();
    load.fill("unread/more/", UNREAD * 9 / 10, UNREAD_BYTES).await;
    load.progress(200).await;
    let (grown, missing) = (memory().saturating_sub(before), UNREAD * UNREAD_BYTES as u64);
    assert!(grown < missing / 2, "memory has grown by {grown} bytes; {missing} bytes of events are unread");
    let (mut seen, mut newest) = (0, 0);
    while seen < UNREAD {
        let response = tokio::time::timeout(PATIENCE, unread.message()).await.expect("it goes on").unwrap().unwrap();
        assert!(!response.canceled(), "{}", response.cancel_reason());
        for event in response.events() {
            let kv = event.kv().unwrap();
            assert!(kv.mod_revision() >= newest, "events come in the order of their revisions");
            assert!(kv.version() == 1 && kv.value().len() >= UNREAD_BYTES, "each is put once");
            newest = kv.mod_revision();
            seen += 1;
        }
    }
    let mut evidence = load.finish().await;
    Database::of_dev(&dir).testify(&mut evidence).await;
    evidence.assert_sound(seed);
}

/// How long a lease runs before the restart: the thing that is measured, not a wait for something.
const BEFORE_RESTART: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_takes_nothing_from_a_lease_s_time_and_adds_nothing_to_it() {
    let dir = scratch();
    let mut duet = dev(&dir, "");
    let mut client = Client::connect([duet.ready()], None).await.unwrap();
    let granted = client.lease_grant(600, None).await.unwrap().id();
    let renewed = client.lease_grant(600, None).await.unwrap().id();
    tokio::time::sleep(BEFORE_RESTART).await;
    let (mut keeper, mut kept) = client.lease_keep_alive(renewed).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(kept.message().await.unwrap().expect("an answer").ttl(), 600);
    let live = client.lease_time_to_live(granted, None).await.unwrap().ttl();
    duet.signal(Signal::SIGTERM);
    duet.ended();

    let mut duet = dev(&dir, "");
    let mut client = Client::connect([duet.ready()], None).await.unwrap();
    let left = client.lease_time_to_live(granted, None).await.unwrap();
    let ran = i64::try_from(BEFORE_RESTART.as_secs()).unwrap();
    assert!(left.ttl() <= live && live <= left.granted_ttl() - ran, "{live} s before the restart, {} s after it", left.ttl());
    // Its time begins anew, as etcd's does when another member leads: what was renewed last isn't stored.
    let left = client.lease_time_to_live(renewed, None).await.unwrap().ttl();
    assert!(left > live, "renewed {ran} s after the other one was granted, and {left} s are left");
}
