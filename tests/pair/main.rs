//! A pair of nodes and their witness, as programs, with clients at both ends: machines are lost, processes killed and stopped, leadership
//! is handed over. What clients were told meanwhile is held against what each node's PostgreSQL has afterwards (tests/faults/history.rs).
//! Each test prints its seed.

#[path = "../common/mod.rs"]
mod common;
mod disks;
mod fence;
mod ghosts;
#[path = "../faults/history.rs"]
mod history;
#[path = "../faults/load.rs"]
#[allow(dead_code, reason = "tests/faults uses the rest")]
mod load;
#[path = "../common/s3.rs"]
#[allow(dead_code, reason = "tests/witness uses the rest")]
mod object_store;
mod operators;
mod pair;
#[path = "../faults/postgres.rs"]
#[allow(dead_code, reason = "tests/faults uses the rest")]
mod postgres;
mod witnesses;

use history::Outcome;
use load::Load;
use nix::sys::signal::Signal;
use pair::{A, B, Pair};

/// A former leader says so when it follows with the data that it has, less what the new leader never got: it needs no new copy.
const REWOUND: &str = "this node's history is a part of the leader's now";

/// A follower says so when it answers watches itself.
const FOLLOWS: &str = "following the leader";

fn seed() -> u64 {
    std::env::var("DUET_FAULTS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("DUET_FAULTS_SEED is a number"))
}

/// Writers, readers and watchers at both nodes.
fn load(pair: &Pair, seed: u64) -> Load {
    let mut load = Load::new(seed, pair.urls());
    load.write("a/", A);
    load.write("b/", B);
    load.list("a/", B);
    load.list("", A);
    load.watch("b/", 1, A);
    load.watch("a/", 1, B);
    load.lease();
    load
}

/// Ends the load, and holds what clients saw against what both nodes have.
async fn assert_sound(pair: &Pair, load: Load, seed: u64) {
    let leader = pair.until_paired().await;
    let mut evidence = load.finish().await;
    pair.database(leader).testify(&mut evidence).await;
    evidence.assert_sound(seed);
    // The follower has flushed it all; it replays in its own time.
    let last = evidence.log.last().expect("something was written").revision;
    let follower = pair.database(1 - leader).connect().await;
    let began = std::time::Instant::now();
    while follower.query_one("SELECT max(rev) FROM duet.log", &[]).await.unwrap().get::<_, i64>(0) < last {
        assert!(began.elapsed() < common::process::PATIENCE, "the follower doesn't get revision {last}");
    }
    let log = std::mem::take(&mut evidence.log);
    pair.database(1 - leader).testify(&mut evidence).await;
    assert_eq!(evidence.log, log, "both nodes have the same log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_by_the_follower_and_follows_when_it_is_back() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    for _ in 0..2 {
        let leader = pair.until_paired().await;
        pair.lose(leader);
        pair.until_open(1 - leader).await;
        // Clients of the survivor go on; those of the lost node wait for it.
        load.progress(50).await;
        pair.start_node(leader);
        assert_eq!(pair.until_paired().await, 1 - leader, "who is back follows");
        pair.node(leader).line(REWOUND);
        load.progress(100).await;
    }
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switchover_fails_no_request_and_ends_no_watch() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut leader = pair.until_paired().await;
    pair.node(1 - leader).line(FOLLOWS);
    let mut load = load(&pair, seed);
    load.progress(100).await;
    for _ in 0..3 {
        let said = pair.operate(leader, &["switchover"]).await.expect("it is possible");
        assert!(said.contains("leads"), "{said}");
        load.progress(100).await;
        assert_eq!(pair.until_paired().await, 1 - leader);
        pair.node(leader).line(REWOUND);
        leader = 1 - leader;
    }
    assert_eq!(load.failed_lists(), 0, "a list failed");
    assert_eq!(load.stream_ends(), 0, "a watch ended");
    let mut evidence = load.finish().await;
    let failed: Vec<_> = evidence.writes.iter().filter(|write| !matches!(write.outcome, Outcome::Acknowledged(_))).collect();
    assert!(failed.is_empty(), "{failed:?}");
    pair.database(leader).testify(&mut evidence).await;
    evidence.assert_sound(seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_postgresql_is_killed_hands_over() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pair.database(leader).postmaster()), Signal::SIGKILL).unwrap();
    pair.until_open(1 - leader).await;
    load.progress(100).await;
    assert_eq!(pair.until_paired().await, 1 - leader);
    pair.node(leader).line(REWOUND);
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_duet_is_killed_and_started_again_leaves_no_doubt_who_leads() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    pair.kill_duet(leader);
    pair.start_node(leader);
    load.progress(100).await;
    pair.until_paired().await;
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_follower_the_leader_goes_on_and_takes_it_back() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    pair.lose(1 - leader);
    let alone = pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    assert!(alone[0].survives.sentence.starts_with("Only"), "{}", alone[0].survives.sentence);
    load.progress(50).await;
    pair.start_node(1 - leader);
    assert_eq!(pair.until_paired().await, leader);
    load.progress(100).await;
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_stopped_for_a_while_answers_nothing_when_it_goes_on() {
    let (mut pair, seed) = (Pair::start_unguarded().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    pair.node(leader).signal(Signal::SIGSTOP);
    let began = std::time::Instant::now();
    // The stopped node holds its PostgreSQL's connections, and answers nobody who asks for its status.
    loop {
        let statuses = pair.statuses(1 - leader).await;
        if statuses.iter().any(|one| one.open) {
            break;
        }
        assert!(began.elapsed() < common::process::PATIENCE, "nobody took over");
    }
    load.progress(50).await;
    pair.node(leader).signal(Signal::SIGCONT);
    assert_eq!(pair.until_paired().await, 1 - leader);
    load.progress(100).await;
    // Its lister asserts that no list was older than what had been acknowledged before.
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stands_still_is_killed_by_its_guardian_and_follows() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    let frozen = pair.guarded(leader);
    // Without pings of its own: only a connection that ends tells it anything.
    let mut client = etcd_client::Client::connect([pair.urls()[leader].clone()], None).await.unwrap();
    client.get("k", None).await.unwrap();
    nix::sys::signal::kill(frozen, Signal::SIGSTOP).unwrap();
    let told = tokio::time::timeout(common::process::PATIENCE, client.get("k", None)).await;
    told.expect("a client of the frozen process isn't kept waiting").expect_err("that process never answers");
    pair.node(leader).line("stands still");
    load.progress(100).await;
    assert_eq!(pair.until_paired().await, 1 - leader);
    assert_ne!(pair.guarded(leader), frozen, "another process");
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_follower_answers_watches_and_serializable_reads_itself_and_keeps_them_when_it_takes_over() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let leader = pair.until_paired().await;
    let follower = 1 - leader;
    pair.node(follower).line(FOLLOWS);
    let mut load = Load::on(seed, pair.urls(), follower);
    load.write("a/", follower);
    load.watch("a/", 1, follower);
    load.list("", follower);
    load.progress(100).await;
    assert_eq!(load.stream_ends(), 0);

    // The leader stands still: what needs it waits, and what doesn't is answered.
    let mut client = etcd_client::Client::connect([&pair.urls()[follower]], None).await.unwrap();
    let own = etcd_client::GetOptions::new().with_prefix().with_serializable();
    pair.pause(leader);
    let answer = client.get("a/", Some(own)).await.expect("the follower has it");
    assert!(answer.count() > 0);
    let mut watch =
        client.watch("a/", Some(etcd_client::WatchOptions::new().with_prefix().with_start_revision(2))).await.unwrap();
    while watch.message().await.unwrap().expect("it goes on").events().is_empty() {}

    pair.lose(leader);
    pair.until_open(follower).await;
    load.progress(50).await;
    assert_eq!(load.stream_ends(), 0, "the survivor's watches go on");
    while watch.message().await.unwrap().expect("it goes on").events().is_empty() {}
    pair.start_node(leader);
    assert_eq!(pair.until_paired().await, follower);
    pair.node(leader).line(FOLLOWS);
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_tells_the_pair_s_figures() {
    let pair = Pair::start().await;
    let leader = pair.until_paired().await;
    let (leads, follows) = (pair.figures(leader).await, pair.figures(1 - leader).await);
    for (node, name, figure) in [
        (&leads, "duet_pair_mode{mode=\"PAIR\"}", 1.0),
        (&follows, "duet_pair_mode{mode=\"PAIR\"}", 1.0),
        (&leads, "duet_pair_role{role=\"leader\"}", 1.0),
        (&follows, "duet_pair_role{role=\"follower\"}", 1.0),
        (&leads, "duet_pair_open", 1.0),
        (&follows, "duet_pair_open", 0.0),
        (&leads, "duet_pair_survives{loss=\"a\"}", 1.0),
        (&leads, "duet_pair_survives{loss=\"b\"}", 1.0),
        (&leads, "duet_pair_survives{loss=\"witness\"}", 1.0),
        (&leads, "duet_pair_peer_ready", 1.0),
        (&leads, "duet_pair_witness_up", 1.0),
        (&leads, "duet_pair_paused", 0.0),
        (&leads, "duet_pair_takeovers_total{kind=\"unplanned\"}", 0.0),
    ] {
        assert_eq!(node.get(name), Some(&figure), "{name} in {node:#?}");
    }
    assert_eq!(leads["duet_pair_epoch"], follows["duet_pair_epoch"]);
    assert_eq!(leads["duet_pair_timeline"], follows["duet_pair_timeline"]);
    assert!(leads["duet_pair_peer_heard_age_seconds"] < 60.0 && leads.contains_key("duet_pair_lease_left_seconds"));
    assert!(leads.contains_key("duet_pair_replication_lag_bytes") && !follows.contains_key("duet_pair_replication_lag_bytes"));
    assert!(follows.contains_key("duet_pair_replay_lag_bytes") && !follows.contains_key("duet_pair_peer_ready"));
    let absent = "duet_pair_last_takeover_timestamp_seconds";
    assert!(!leads.contains_key(absent) && !follows.contains_key(absent), "nobody has taken over yet");

    pair.operate(leader, &["switchover"]).await.expect("it is possible");
    assert_eq!(pair.until_paired().await, 1 - leader);
    let took_over = pair.figures(1 - leader).await;
    assert_eq!(took_over["duet_pair_takeovers_total{kind=\"planned\"}"], 1.0);
    assert!(took_over["duet_pair_epoch"] > leads["duet_pair_epoch"]);
    assert!(took_over["duet_pair_timeline"] > leads["duet_pair_timeline"]);
    for phase in ["detect", "decide", "promote", "open", "serve"] {
        let took = took_over[&format!("duet_pair_last_takeover_seconds{{phase=\"{phase}\"}}")];
        assert!((0.0..60.0).contains(&took), "{phase}: {took}");
    }
    assert!(took_over[absent] > 1.7e9, "seconds since 1970");
}

/// Waits until a hook has told `part` last; everything that it has told.
fn until_told(file: &std::path::Path, part: &str) -> String {
    let began = std::time::Instant::now();
    loop {
        let told = std::fs::read_to_string(file).unwrap_or_default();
        if told.lines().last().is_some_and(|line| line.starts_with(part)) {
            return told;
        }
        assert!(began.elapsed() < common::process::PATIENCE, "not {part} at the end of:\n{told}");
        std::thread::sleep(std::time::Duration::from_millis(5)); // a file gives no other event to a test
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_tells_the_operator_s_program_of_its_part_and_at_its_end_that_it_has_none() {
    let mut pair = Pair::begin(true);
    let told = [A, B].map(|node| pair.config(node).with_file_name("told"));
    for (file, flags) in told.iter().zip(&mut pair.flags) {
        let program = file.with_extension("sh");
        common::script(&program, &format!("echo $1 $2 $DUET_NODE $DUET_MODE >> {}", file.display()));
        *flags = vec![format!("--on-role-change={}", program.display())];
    }
    let mut pair = pair.started().await;
    let leader = pair.until_paired().await;
    until_told(&told[leader], "leader 1");
    until_told(&told[1 - leader], "follower 1");
    pair.operate(leader, &["switchover"]).await.expect("it is possible");
    until_told(&told[1 - leader], "leader 2");
    until_told(&told[leader], "follower 2");
    assert_eq!(pair.until_paired().await, 1 - leader);
    pair.node(leader).signal(Signal::SIGTERM);
    pair.node(leader).ended();
    let all = until_told(&told[leader], "none 2");
    let letter = if leader == A { "a" } else { "b" };
    assert!(all.lines().all(|line| line.split(' ').nth(2) == Some(letter)), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_decides_when_nobody_else_can() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    let follower = 1 - leader;
    pair.kill_witness();
    pair.until("agreed", |all| all.len() == 2 && all.iter().all(|one| one.mode.as_deref() == Some("ASYM"))).await;
    pair.lose(leader);
    let explained = pair.operate(follower, &["explain"]).await.unwrap();
    assert!(explained.contains("may not take over: there is no witness"), "{explained}");
    let refused = pair.operate(follower, &["failover"]).await.unwrap_err();
    assert!(refused.contains("--confirm test"), "{refused}");
    pair.operate(follower, &["failover", "--accept-data-loss", "--peer-is-off", "--confirm", "test"]).await.unwrap();
    pair.until_open(follower).await;
    load.progress(50).await;
    pair.start_witness();
    pair.start_node(leader);
    assert_eq!(pair.until_paired().await, follower);
    // In ASYM both had everything: nothing was lost after all.
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_one_node_had_is_not_given_up_by_the_other() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    pair.lose(1 - leader);
    pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    load.progress(50).await;
    pair.lose(leader);
    // The one that doesn't have everything boots alone: it waits, and says so.
    pair.start_node(1 - leader);
    let waits =
        pair.until("waiting", |all| all.iter().any(|one| one.role == "follower" && one.mode.as_deref() == Some("SOLO"))).await;
    assert!(waits[0].explanation.contains("may not take over"), "{}", waits[0].explanation);
    assert!(waits.iter().all(|one| !one.open));
    pair.start_node(leader);
    assert_eq!(pair.until_paired().await, leader);
    load.progress(50).await;
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_both_were_lost_either_order_of_starts_brings_everything_back() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    for first in [A, B] {
        load.progress(100).await;
        let leader = pair.until_paired().await;
        pair.lose(1 - leader);
        pair.lose(leader);
        pair.start_node(first);
        pair.start_node(1 - first);
        pair.until_paired().await;
    }
    load.progress(50).await;
    assert_sound(&pair, load, seed).await;
}
