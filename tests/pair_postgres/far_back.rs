//! A former leader's recovery begins where its last checkpoint did, however long ago that was.

use std::fs;
use std::time::Duration;

use duet::supervisor::fsm::{Postgres, Sync};
use duet::supervisor::postgres::pair::PairPostgres;
use nix::sys::signal::{Signal, kill};

use crate::common::connect;
use crate::nodes::{self, A, B, Nodes, is_streaming, until};
use crate::{FOLLOW, SOLO};

/// A's last checkpoint took as long as it takes to write so much, and A is gone; B leads alone, and has thrown away what it doesn't need.
async fn led_by_b_after(nodes: &Nodes, mebibytes: u32) -> PairPostgres {
    let (a, b) = nodes.paired().await;
    let client = connect(&a.connect_config()).await;
    let (checkpointer, writing) = nodes::stop_in_a_sync(&a).await;
    for _ in 0..mebibytes {
        client.batch_execute("SELECT pg_logical_emit_message(true, 'test', repeat('x', 1 << 20))").await.unwrap();
    }
    writing.abort();
    let ended = "SELECT checkpoint_lsn - redo_lsn > 1 << 20 FROM pg_control_checkpoint()";
    kill(checkpointer, Signal::SIGCONT).unwrap();
    nodes::until_true(&client, ended).await;
    // The checkpoint's record, too, is B's.
    client.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x')").await.unwrap();
    a.shutdown(Duration::ZERO).await;
    drop(a);
    b.pursue(SOLO);
    until(&b, "it leads", |report| matches!(report.postgres, Postgres::Primary(Sync::Off { .. }))).await;
    connect(&b.connect_config()).await.batch_execute("CHECKPOINT").await.unwrap();
    b
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_finds_what_was_written_since_the_last_checkpoint_began() {
    let nodes = Nodes::new();
    let b = led_by_b_after(&nodes, 250).await;
    let a = nodes.open(A).await;
    a.pursue(FOLLOW);
    let report = until(&a, "it follows, or can't", |report| is_streaming(report) || report.rebuild_needed).await;
    assert!(!report.rebuild_needed, "{report:?}");
    nodes.end([b, a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_lacks_wal_which_nobody_has_asks_for_a_copy() {
    let nodes = Nodes::new();
    let b = led_by_b_after(&nodes, 30).await;
    nodes.wrap(A, "pg_rewind", "$REAL/pg_rewind \"$@\" && rm \"$2\"/pg_wal/00000001????????????????").await;
    for file in fs::read_dir(nodes.pgdata(B).join("pg_wal")).unwrap().map(Result::unwrap) {
        let name = file.file_name().into_string().unwrap();
        if name.starts_with("00000001") && name.len() == 24 {
            fs::remove_file(file.path()).unwrap();
        }
    }
    let a = nodes.open(A).await;
    a.pursue(FOLLOW);
    let report = until(&a, "it can't", |report| report.rebuild_needed).await;
    assert!(report.details.trouble.as_ref().is_some_and(|why| why.contains("doesn't have the WAL")), "{report:?}");
    nodes.end([b, a]).await;
}
