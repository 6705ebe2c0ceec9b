//! What is slow, or doesn't answer, is neither given up too soon nor waited for without end.

use std::fs;
use std::time::Duration;

use duet::supervisor::fsm::{Goal, Postgres};
use duet::supervisor::postgres::pair::Report;
use nix::sys::signal::{Signal, kill};

use crate::common::process::PATIENCE;
use crate::common::{STOP, connect};
use crate::nodes::{self, A, B, Nodes, is_streaming, is_waiting, soon, until};
use crate::{COPY, FOLLOW, LEAD, SOLO, is_alone};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_goal_is_starting_is_used_and_not_started_once_more() {
    let nodes = Nodes::new();
    nodes.alone().await.shutdown(STOP).await;
    let (started, go_on) = (nodes.public().join("started"), nodes.public().join("go-on"));
    let slowly = format!(
        "[ \"$1\" != -D ] || {{ echo x >> {}; until [ -e {} ]; do sleep 0.01; done; }}",
        started.display(),
        go_on.display()
    );
    nodes.wrap(A, "postgres", &format!("{slowly}\nexec $REAL/postgres \"$@\"")).await;
    let a = nodes.open(A).await;
    a.pursue(LEAD);
    soon("it starts", || started.exists()).await;
    a.pursue(SOLO);
    fs::write(&go_on, "").unwrap();
    until(&a, "alone", is_alone).await;
    assert_eq!(fs::read_to_string(&started).unwrap(), "x\n", "one start");
    nodes.end([a]).await;
}

/// The checkpointer is who lets commits go, and it may be busy with a checkpoint for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_are_never_let_go_are_not_waited_for_forever() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let client = connect(&a.connect_config()).await;
    let checkpointer = nodes::checkpointer(&client).await;
    b.pursue(Goal::Stopped);
    until(&a, "nobody confirms", is_waiting).await;
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    // Nobody waits at this moment.
    a.pursue(SOLO);
    until(&a, "alone", is_alone).await;
    let waiting = client.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x')");
    tokio::time::timeout(PATIENCE, waiting).await.expect("it ends").expect_err("with its server");
    until(&a, "alone again", is_alone).await;
    let again = connect(&a.connect_config()).await;
    again.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'y')").await.unwrap();
    nodes.end([a, b]).await;
}

/// To start again would be to do the same once more, after a recovery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_slow_to_sync_does_not_end_who_is_alone() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let client = connect(&a.connect_config()).await;
    b.pursue(Goal::Stopped);
    until(&a, "nobody confirms", is_waiting).await;
    let (checkpointer, writing) = nodes::stop_in_a_sync(&a).await;
    let before = connect(&a.connect_config()).await;
    let mut before = tokio::spawn(async move { before.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'w')").await });
    nodes::until_true(&client, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')").await;
    a.pursue(SOLO);
    until(&a, "alone", is_alone).await;
    let mut waiting = std::pin::pin!(client.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x')"));
    let waits = tokio::time::timeout(Duration::from_secs(8), &mut waiting).await;
    assert!(waits.is_err() && !before.is_finished(), "they wait, and their server lives: {waits:?}");
    kill(checkpointer, Signal::SIGCONT).unwrap();
    tokio::time::timeout(PATIENCE, waiting).await.expect("it is let go").expect("by the same server");
    tokio::time::timeout(PATIENCE, &mut before).await.expect("it is let go").unwrap().expect("by the same server");
    writing.abort();
    nodes.end([a, b]).await;
}

/// A checkpointer that is late lets commits go that are to wait by then: what waits meanwhile waits because of what was before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_not_believed_to_wait_again_before_they_were_let_go() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    let checkpointer = nodes::checkpointer(&connect(&a.connect_config()).await).await;
    b.pursue(Goal::Stopped);
    until(&a, "nobody confirms", is_waiting).await;
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    a.pursue(SOLO);
    until(&a, "alone", is_alone).await;
    a.pursue(LEAD);
    let believed = tokio::time::timeout(Duration::from_secs(2), until(&a, "commits wait", is_waiting)).await;
    assert!(believed.is_err(), "it is to let them go first: {believed:?}");
    kill(checkpointer, Signal::SIGCONT).unwrap();
    until(&a, "commits wait", is_waiting).await;
    nodes.end([a, b]).await;
}

/// A question to the leader is six messages there and back, and a copy isn't worth less for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_far_away_from_its_leader_is_one_all_the_same() {
    let nodes = Nodes::new();
    let a = nodes.alone().await;
    let b = nodes.open_by_way_of(B, nodes.slow_way_to(A, Duration::from_millis(150)).await).await;
    b.pursue(COPY);
    until(&b, "it follows", is_streaming).await;
    nodes.end([a, b]).await;
}

/// What is received may be the leader's or not: as long as the leader doesn't say, the copy is kept, and people are told why it doesn't count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_does_not_say_what_it_writes_is_told_of() {
    let nodes = Nodes::new();
    let (a, b) = nodes.paired().await;
    b.pursue(Goal::Stopped);
    until(&b, "stopped", |report| report.postgres == Postgres::Down).await;
    // A leader grants it when it begins to lead, and not again.
    let client = connect(&a.connect_config()).await;
    client.batch_execute("SET synchronous_commit = local").await.unwrap();
    client.batch_execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC, duet_replica").await.unwrap();
    b.pursue(FOLLOW);
    nodes::until_true(&client, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = 'duet_b')").await;
    let told = |report: &Report| report.details.trouble.as_ref().is_some_and(|why| why.contains("permission denied"));
    let report = until(&b, "trouble", told).await;
    assert!(!report.rebuild_needed && !is_streaming(&report), "{report:?}");
    client.batch_execute("GRANT CONNECT ON DATABASE postgres TO duet_replica").await.unwrap();
    until(&b, "it follows, and all is well", |report| is_streaming(report) && report.details.trouble.is_none()).await;
    nodes.end([a, b]).await;
}
