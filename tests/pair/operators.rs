//! What operators do with a pair: planned moves while failover is paused, a node that is taken out and comes back, checks and drills.

use std::os::unix::fs::PermissionsExt;

use duet::supervisor::pair::status::NodeStatus;
use etcd_client::{Client, GetOptions};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::history::Outcome;
use crate::load::Load;
use crate::pair::{A, B, Pair, leader_of};
use crate::{assert_sound, load, seed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_failover_is_paused_a_switchover_is_made_and_a_lost_leader_is_not_replaced() {
    let mut pair = Pair::start().await;
    let former = pair.until_paired().await;
    for node in [former, 1 - former].repeat(8) {
        let said = pair.operate(node, &["pause", "10m"]).await.unwrap();
        assert!(said.contains("Failover is paused"), "{said}");
        let said = pair.operate(node, &["resume"]).await.unwrap();
        assert!(said.contains("any one of them"), "what the pair survives now, not what it did: {said}");
    }
    pair.operate(former, &["pause", "10m"]).await.unwrap();
    let said = pair.operate(former, &["switchover"]).await.unwrap();
    assert!(said.contains("stops without"), "it says what the pair survives during the pause: {said}");
    let leader = leader_of(&pair.statuses(former).await).expect("one leads");
    assert_eq!(leader, 1 - former);

    pair.lose(leader);
    let missed = |all: &[NodeStatus]| all.iter().any(|one| one.peer_heard_ms_ago.is_some_and(|ago| ago > 3000));
    let statuses = pair.until("missed", missed).await;
    assert_eq!(leader_of(&statuses), None, "{statuses:#?}");
    assert!(statuses[0].explanation.contains("failover is paused"), "{}", statuses[0].explanation);
    pair.operate(former, &["resume"]).await.unwrap();
    pair.until_open(former).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_taken_out_is_not_waited_for_until_its_maintenance_ends() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let out = pair.until_paired().await;
    let stays = 1 - out;
    let said = pair.operate(out, &["maintenance"]).await.unwrap();
    assert!(said.contains("can be stopped now"), "{said}");
    assert_eq!(pair.figures(stays).await["duet_pair_maintenance"], 1.0);
    let refused = pair.operate(out, &["switchover"]).await.unwrap_err();
    assert!(refused.contains("in maintenance"), "{refused}");

    pair.lose(out);
    load.progress(100).await;
    pair.start_node(out);
    // It follows and has everything, and still isn't counted on.
    let caught_up = |all: &[NodeStatus]| {
        all.len() == 2 && all.iter().any(|one| one.open && one.peer_ready && one.details.peer_flushed.is_some())
    };
    let statuses = pair.until("caught up", caught_up).await;
    assert!(statuses.iter().all(|one| one.mode.as_deref() == Some("SOLO")), "{statuses:#?}");
    let said = pair.operate(out, &["maintenance", "--end"]).await.unwrap();
    assert!(said.contains("any one of them"), "{said}");
    assert_eq!(pair.until_paired().await, stays);
    assert_eq!(pair.figures(stays).await["duet_pair_maintenance"], 0.0);
    let refused = pair.operate(out, &["maintenance", "--end"]).await.unwrap_err();
    assert!(refused.contains("no node is in maintenance"), "{refused}");
    assert_sound(&pair, load, seed).await;
}

/// A check's exit code, and its lines.
async fn check(pair: &Pair) -> (i32, Vec<Value>) {
    let (code, said, complained) = pair.run(A, &["check", "--json"]).await;
    (code, serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{complained}")))
}

/// The worst level of what was found about `about`'s `check`.
fn level<'a>(lines: &'a [Value], about: &str, check: &str) -> &'a str {
    let levels = lines.iter().filter(|line| line["about"] == about && line["check"] == check);
    let levels: Vec<&str> = levels.map(|line| line["level"].as_str().unwrap()).collect();
    ["fail", "warn", "ok"].into_iter().find(|level| levels.contains(level)).unwrap_or_else(|| panic!("no {check} of {about}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_finds_what_is_wrong_on_either_node_and_says_the_way_out() {
    let mut pair = Pair::start().await;
    let (_, lines) = check(&pair).await;
    // The rest is this machine's: its disk, its memory, its clock.
    for node in ["node A", "node B"] {
        for what in [
            "certificate",
            "key",
            "directory",
            "postgresql",
            "guardian",
            "peer",
            "heartbeats",
            "witness",
            "settings",
            "replication",
        ] {
            assert_eq!(level(&lines, node, what), "ok", "{node}: {what}: {lines:#?}");
        }
        for what in ["space", "fsync", "memory", "overcommit", "clock"] {
            level(&lines, node, what);
        }
    }
    for what in ["versions", "clocks", "survives"] {
        assert_eq!(level(&lines, "pair", what), "ok", "{what}: {lines:#?}");
    }

    let key = pair.config(B).with_file_name("pair.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let leader = pair.until_paired().await;
    let session = pair.database(leader).connect().await;
    session.batch_execute("ALTER SYSTEM SET max_wal_size = '4GB'").await.unwrap();
    session.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    pair.kill_witness();
    let names = ["node A", "node B"];
    let (code, lines) = check(&pair).await;
    assert_eq!(code, 2, "{lines:#?}");
    assert_eq!([level(&lines, names[A], "key"), level(&lines, names[B], "key")], ["ok", "warn"]);
    assert_eq!([level(&lines, names[leader], "settings"), level(&lines, names[1 - leader], "settings")], ["warn", "ok"]);
    assert_eq!(names.map(|node| level(&lines, node, "witness")), ["fail"; 2]);
    assert!(lines.iter().all(|line| (line["level"] == "ok") == line["fix"].is_null()), "{lines:#?}");

    pair.lose(B);
    let (code, lines) = check(&pair).await;
    assert_eq!((code, level(&lines, "node B", "answers")), (2, "fail"));
    let (_, text, _) = pair.run(A, &["check"]).await;
    assert!(text.contains("FAIL  answers") && text.contains("-> start duet node on 127.0.0.1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_really_loses_a_node_and_finds_that_nothing_was_lost() {
    let mut pair = Pair::start().await;
    let leader = pair.until_paired().await;
    let before = pair.statuses(A).await;
    let (code, _, plan) = pair.run(A, &["drill", "kill-leader"]).await;
    assert!(code == 64 && plan.contains("--yes"), "{plan}");

    for (drill, leads) in [("kill-leader", 1 - leader), ("lose-follower", 1 - leader), ("switchover", leader)] {
        let (code, report, complained) = pair.run(A, &["drill", drill, "--yes", "--away=2s", "--json"]).await;
        assert_eq!(code, 0, "{drill}: {report}{complained}");
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!((&report["passed"], &report["lost"]), (&Value::Bool(true), &Value::from(0)), "{report:#}");
        assert!(report["acknowledged"].as_u64().unwrap() >= 100 && report["paired_after_ms"].is_u64(), "{report:#}");
        let took_over = report["takeover"]["unplanned"].as_bool();
        assert_eq!(
            took_over,
            [None, Some(false), Some(true)][match drill {
                "lose-follower" => 0,
                "switchover" => 1,
                _ => 2,
            }]
        );
        assert_eq!(pair.until_paired().await, leads, "{drill}");
    }
    let after = pair.statuses(A).await;
    assert_eq!(after[0].epoch, before[0].epoch + 2, "without --yes nothing happened");
    let mut client = Client::connect([pair.urls()[leader].clone()], None).await.unwrap();
    let left = client.get("/duet/", Some(GetOptions::new().with_prefix().with_count_only())).await.unwrap();
    assert_eq!(left.count(), 0, "a drill takes away what it wrote");
    pair.kill_witness();
    pair.until("without a witness", |all| all.iter().all(|one| one.mode.as_deref() == Some("ASYM"))).await;
    let refused = pair.operate(A, &["drill", "kill-leader", "--yes"]).await.unwrap_err();
    assert!(refused.contains("no drill: the mode must be PAIR"), "{refused}");
}

/// An older release to upgrade from: DUET_TEST_OLD_BIN names it. Without one, the same release is installed again.
fn old_release() -> std::path::PathBuf {
    std::env::var_os("DUET_TEST_OLD_BIN").map_or_else(crate::common::process::duet, Into::into)
}

/// Stops one node after the other, changes something, and starts it again, while clients of the other one go on: no request of theirs fails.
async fn one_node_at_a_time(pair: &mut Pair, change: impl Fn(&mut Pair, usize)) {
    let seed = seed();
    let leader = pair.until_paired().await;
    // The follower first: what leads is never older than what follows.
    for changed in [1 - leader, leader] {
        let stays = 1 - changed;
        let mut load = Load::on(seed, pair.urls(), stays);
        let name = if changed == leader { "second/" } else { "first/" };
        load.write(name, stays);
        load.list(name, stays);
        load.progress(50).await;
        pair.node(changed).signal(Signal::SIGTERM);
        pair.node(changed).ended();
        load.progress(50).await;
        change(pair, changed);
        pair.start_node(changed);
        assert_eq!(pair.until_paired().await, stays);
        load.progress(50).await;
        assert_eq!((load.failed_lists(), load.stream_ends()), (0, 0), "while node {changed} was changed");
        let evidence = load.finish().await;
        let failed: Vec<_> = evidence.writes.iter().filter(|write| !matches!(write.outcome, Outcome::Acknowledged(_))).collect();
        assert!(failed.is_empty(), "while node {changed} was changed: {failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificates_are_put_in_place_without_a_failed_request() {
    let mut pair = Pair::start().await;
    pair.until_paired().await;
    let out = pair.config(A).parent().unwrap().parent().unwrap().to_owned();
    let certificates = || [A, B].map(|node| std::fs::read(pair.config(node).with_file_name("pair.crt")).unwrap());
    let before = certificates();
    let renew = tokio::process::Command::new(crate::common::process::duet()).args(["certs", "renew", "--out"]).arg(&out).output();
    let renewed = renew.await.unwrap();
    assert!(renewed.status.success(), "{}", String::from_utf8_lossy(&renewed.stderr));
    let after = certificates();
    assert!((0..2).all(|node| before[node] != after[node]), "each has another one");
    pair.kill_witness();
    pair.start_witness();
    // In between the two nodes show each other an old and a new one, of the same CA.
    one_node_at_a_time(&mut pair, |_, _| {}).await;
    let (code, lines) = check(&pair).await;
    assert!(code < 2 && level(&lines, "node B", "certificate") == "ok", "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_of_one_node_at_a_time_fails_no_request() {
    // All of it is the older one's, its configuration and certificates, too.
    let mut pair = Pair::begin_of(old_release(), Some("127.0.0.1")).started().await;
    one_node_at_a_time(&mut pair, |pair, node| pair.programs[node] = crate::common::process::duet()).await;
    pair.kill_witness();
    pair.witness_program = crate::common::process::duet();
    pair.start_witness();
    let leader = pair.until_paired().await;
    pair.lose(leader);
    pair.until_open(1 - leader).await;
    pair.start_node(leader);
    pair.until_paired().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_is_watched_shows_what_changes_until_nobody_reads_it_any_more() {
    let mut pair = Pair::start().await;
    let mut watching = tokio::process::Command::new(crate::common::process::duet())
        .args(["status", "--watch", "--json", "--config-file"])
        .arg(pair.config(B))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let modes = |line: &str| {
        let all: Vec<NodeStatus> = serde_json::from_str(line).expect("one line is one look");
        all.into_iter().filter_map(|one| one.mode).collect::<Vec<_>>()
    };
    let shown = async {
        assert_eq!(modes(&lines.next_line().await.unwrap().unwrap()), ["PAIR", "PAIR"]);
        pair.kill_witness();
        while modes(&lines.next_line().await.unwrap().unwrap()) != ["ASYM", "ASYM"] {}
        drop(lines);
        assert!(watching.wait().await.unwrap().success());
    };
    tokio::time::timeout(crate::common::process::PATIENCE, shown).await.expect("it shows it and ends");
}

/// What the whole confirmation of a forced failover looks like.
const FORCE: [&str; 5] = ["failover", "--accept-data-loss", "--peer-is-off", "--confirm", "test"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_asks_for_is_done_to_its_end_or_refused_with_a_reason() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(50).await;
    let leader = pair.until_paired().await;
    let follower = 1 - leader;
    let before = pair.statuses(A).await;
    let refused = pair.operate(follower, &FORCE).await.unwrap_err();
    assert!(refused.contains("is heard and leads"), "{refused}");
    assert_eq!(pair.statuses(A).await[0].register_version, before[0].register_version, "nothing was decided");

    let said = pair.operate(leader, &["reinit"]).await.unwrap();
    assert!(said.contains("made anew") && said.contains("any one of them"), "the plan and the outcome: {said}");
    let history = pair.operate(follower, &["history"]).await.unwrap();
    assert!(history.contains(" rebuilds "), "{history}");
    load.progress(50).await;

    // A pause ends by itself, and what it held up is done then.
    pair.operate(leader, &["pause", "4s"]).await.unwrap();
    pair.lose(leader);
    pair.until_open(follower).await;
    let history = pair.operate(follower, &["history"]).await.unwrap();
    let at = |what: &str| history.find(&format!(" {what} ")).unwrap_or_else(|| panic!("no {what} in {history}"));
    assert!(at("paused") < at("resumed") && at("resumed") < at("takes-over"), "{history}");

    let (code, said, refused) = pair.run(follower, &["switchover"]).await;
    assert!(code == 1 && refused.contains("not in step"), "{refused}");
    assert!(
        said.contains("handing over from") && said.contains("stops without"),
        "what was to be done, and what the pair survives: {said}"
    );
    let (code, _, told) = pair.run(follower, &["pause", "10m"]).await;
    assert!(code == 1 && told.contains("didn't do it"), "one of two isn't enough: {told}");
    pair.operate(follower, &["resume"]).await.expect("what is there goes on");
    pair.start_node(leader);
    assert_eq!(pair.until_paired().await, follower);
    assert_sound(&pair, load, seed).await;
}

/// A leader that stands still, and that nobody may replace: who asks for it at the follower isn't kept waiting until a connection is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_a_silent_leader_has_is_given_up_by_its_follower() {
    let mut pair = Pair::start_unguarded().await;
    let leader = pair.until_paired().await;
    pair.kill_witness();
    pair.until("agreed", |all| all.len() == 2 && all.iter().all(|one| one.mode.as_deref() == Some("ASYM"))).await;
    let mut client = Client::connect([pair.urls()[1 - leader].clone()], None).await.unwrap();
    client.put("k", "v", None).await.unwrap();
    pair.node(leader).signal(Signal::SIGSTOP);
    let began = std::time::Instant::now();
    let error = client.put("k", "w", None).await.unwrap_err();
    assert!(error.to_string().contains("possibly due to previous leader failure"), "it was sent, and nobody knows: {error}");
    // HTTP/2's own pings take ten seconds to find out.
    assert!(began.elapsed() < std::time::Duration::from_secs(8), "{:?}", began.elapsed());
    let error = client.put("k", "w", None).await.unwrap_err();
    assert!(error.to_string().contains("there is no connection available"), "nothing is sent to it any more: {error}");
    pair.node(leader).signal(Signal::SIGCONT);
    pair.until_open(leader).await;
    client.put("k", "x", None).await.unwrap();
}
