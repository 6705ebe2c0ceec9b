//! A pair with witnesses of every kind, and without one for a while.

use std::sync::atomic::Ordering;

use duet::supervisor::pair::status::NodeStatus;

use crate::object_store::Server;
use crate::pair::{A, B, Pair};
use crate::{assert_sound, common, load, seed};

/// Both nodes have agreed that there is no witness.
fn without_a_witness(all: &[NodeStatus]) -> bool {
    all.len() == 2 && all.iter().all(|one| one.mode.as_deref() == Some("ASYM"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_witness_is_done_without_and_the_leader_alone_may_go_on_then() {
    let (mut pair, seed) = (Pair::start().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    pair.kill_witness();
    pair.until("agreed", without_a_witness).await;
    load.progress(50).await;
    assert_eq!(load.failed_lists(), 0, "nobody has a reason to fail while both nodes are there");
    pair.lose(1 - leader);
    pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    load.progress(50).await;
    pair.start_witness();
    pair.start_node(1 - leader);
    assert_eq!(pair.until_paired().await, leader);
    assert_sound(&pair, load, seed).await;
}

/// A pair whose witness is somebody else's store, at this URL: it begins, loses its leader, and loses the witness.
async fn goes_on_with<T>(witness: String, store: T, lose: impl FnOnce(T), find: impl FnOnce() -> T) {
    let (mut pair, seed) = (Pair::begin_with(Some(&witness)), seed());
    pair.start_node(A);
    pair.start_node(B);
    pair.node(A).line("there is no register");
    pair.operate(A, &["witness", "begin"]).await.expect("there is one now");
    let leader = pair.until_paired().await;
    let mut load = load(&pair, seed);
    load.progress(100).await;
    pair.lose(leader);
    pair.until_open(1 - leader).await;
    load.progress(50).await;
    pair.start_node(leader);
    assert_eq!(pair.until_paired().await, 1 - leader, "who is back follows");
    lose(store);
    pair.until("agreed", without_a_witness).await;
    load.progress(50).await;
    let _store = find();
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_is_a_witness_too() {
    let (dir, ports) = (common::scratch(), common::peers::free_ports());
    let start = || common::peers::etcd(&dir.path().join("etcd"), ports);
    let witness = format!("etcd://127.0.0.1:{}/duet/test", ports[0]);
    goes_on_with(witness, start(), drop, start).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_store_is_a_witness_too() {
    let server = Server::start().await;
    let is_down = |down| server.bucket.is_down.store(down, Ordering::Relaxed);
    goes_on_with(server.url("test", server.port), (), |()| is_down(true), || is_down(false)).await;
}
