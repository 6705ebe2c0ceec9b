//! Witnesses of every kind, as the real programs that they are: `duet witness`, etcd, an API server of Kubernetes, and for S3 a server that answers
//! conditional writes as Amazon documents them. One contract holds for all of them (`contract.rs`); what is special to one follows below.

#[path = "../common/mod.rs"]
mod common;
mod contract;
mod daemon;
mod etcd;
mod kubernetes;
#[path = "../common/s3.rs"]
mod object_store;
mod s3;
mod wire;

use std::sync::Arc;

use common::disk_fault::DiskFault;
use common::peers::free_ports;
use common::process::PATIENCE;
use contract::Store;
use daemon::Daemon;
use duet::supervisor::fsm::SwapOutcome;
use duet::witness::backend::WitnessError;
use etcd::Etcd;
use kubernetes::Kubernetes;
use s3::S3;

/// Each rule of the contract as a test of its own, over a store of its own.
macro_rules! contract {
    ($($module:ident: $store:ty, $($rule:ident)+;)+) => { $(mod $module {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $rule() {
            crate::contract::$rule(&<$store as crate::contract::Store>::start().await, "test").await;
        })+
    })+ };
}

mod kept {
    use super::*;

    contract! {
        by_daemon: super::Daemon,
            of_two_nodes_at_once_one_is_applied a_lost_answer_leaves_one_value_and_is_found_out
            a_wiped_store_is_nobody_s_to_win a_copy_put_back_is_nobody_s_to_win one_that_is_gone_gives_no_answer;
        by_etcd: super::Etcd,
            only_an_explicit_beginning_makes_a_register of_two_nodes_at_once_one_is_applied
            a_lost_answer_leaves_one_value_and_is_found_out a_wiped_store_is_nobody_s_to_win
            a_copy_put_back_is_nobody_s_to_win one_that_is_gone_gives_no_answer;
        by_s3: super::S3,
            only_an_explicit_beginning_makes_a_register of_two_nodes_at_once_one_is_applied
            a_lost_answer_leaves_one_value_and_is_found_out a_wiped_store_is_nobody_s_to_win
            a_copy_put_back_is_nobody_s_to_win one_that_is_gone_gives_no_answer;
    }
}

/// All rules over one API server, whose start takes a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_map_of_another_cluster_keeps_the_contract() {
    let store = Kubernetes::start().await;
    contract::only_an_explicit_beginning_makes_a_register(&store, "begins").await;
    contract::of_two_nodes_at_once_one_is_applied(&store, "two").await;
    contract::a_lost_answer_leaves_one_value_and_is_found_out(&store, "lost").await;
    contract::a_wiped_store_is_nobody_s_to_win(&store, "wiped").await;
    contract::a_copy_put_back_is_nobody_s_to_win(&store, "copied").await;
    contract::one_that_is_gone_gives_no_answer(&store, "gone").await;
    kubernetes::labels_of_an_operator_s_stay(&store).await;
    kubernetes::a_register_made_again_from_a_copy_begins_a_new_history(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restored_from_a_snapshot_begins_a_new_history() {
    let mut store = Etcd::start().await;
    let witness = store.node("test", store.port());
    witness.begin().await.unwrap();
    let old = contract::write(&*witness, 1).await;
    let snapshot = store.snapshot().await;
    contract::write(&*witness, 2).await;
    // With the same flags: so it is the same cluster, as far as it says.
    store.restore(&snapshot).await;
    let witness = store.node("test", store.port());
    let after = contract::answered(&*witness).await;
    assert_eq!(after.value, old.value, "the snapshot's value");
    assert_ne!(after.instance, old.instance);
    contract::assert_not_to_be_won(&*witness, old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_is_asked_at_whichever_endpoint_answers() {
    let store = Etcd::start().await;
    let [nobody] = free_ports();
    let witness = store.node_at("test", &[nobody, store.port()]);
    witness.begin().await.unwrap_err();
    assert_eq!(contract::begun(&*witness).await.value, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_conditions_is_refused_before_anybody_relies_on_it() {
    let store = S3::start().await;
    store.ignore_conditions();
    let witness = store.node("test", store.port());
    let refused = witness.begin().await.unwrap_err();
    assert!(matches!(&refused, WitnessError::Unusable(text) if text.contains("ignores the condition")), "{refused}");
    let read = witness.read().await;
    assert!(matches!(&read, Err(WitnessError::Unusable(_))), "{read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_register_of_another_pair_is_not_used() {
    let store = S3::start().await;
    store.node("test", store.port()).begin().await.unwrap();
    let other = store.node_of("other", "test", store.port());
    let error = other.begin().await.unwrap_err();
    assert!(error.to_string().contains("of the pair \"test\""), "{error}");
    other.read().await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_witness_has_answered_is_there_after_it_was_killed() {
    let mut daemon = Daemon::start().await;
    let written = contract::write(&*daemon.node("test", daemon.port()), 1).await;
    daemon.kill_and_start().await;
    assert_eq!(contract::answered(&*daemon.node("test", daemon.port())).await, written, "the same value, of the same history");
}

/// What a killed process had written is there anyhow: only a disk that doesn't keep it shows that it was waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_has_not_kept_is_not_answered() {
    let dir = common::scratch();
    let disk = DiskFault::build(dir.path());
    let daemon = Daemon::start_on(&disk);
    let witness = daemon.node("test", daemon.port());
    let before = contract::write(&*witness, 1).await;
    for (version, fault) in [(2, DiskFault::fail as fn(&DiskFault)), (3, DiskFault::stand_still)] {
        fault(&disk);
        let outcome = witness.swap(before.instance, version - 1, contract::value(version)).await;
        assert_eq!(outcome, SwapOutcome::Unknown, "version {version}");
        disk.clear();
        let after = contract::answered(&*witness).await.value.expect("there is a register");
        assert!([version - 1, version].contains(&after.version), "{after:?}");
        if after.version < version {
            contract::write(&*witness, version).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_answers_only_nodes_of_the_pair() {
    let daemon = Daemon::start().await;
    let own = daemon.node("test", daemon.port());
    let written = contract::write(&*own, 1).await;
    for (whose, witness) in [
        ("nobody's", daemon.stranger(None)),
        ("another CA's", daemon.stranger(Some(daemon::Whose::OtherCa))),
        ("the witness's own", daemon.stranger(Some(daemon::Whose::Witness))),
    ] {
        witness.read().await.expect_err(whose);
        let new = contract::value(2);
        assert_eq!(witness.swap(written.instance, 1, new).await, SwapOutcome::Unknown, "{whose}");
    }
    let other = daemon.node_of("other", "test", daemon.port());
    assert!(other.read().await.unwrap_err().to_string().contains("not a node's of the pair"));
    assert_eq!(own.read().await.unwrap(), written);
}

/// Without optimisation, and with everything that is needed to find a mistake, it is larger than as it is shipped (`make test-go` tries that).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_works_is_small() {
    let resident_kb_max = if daemon::shipped().is_some() { 10_000 } else { 48_000 };
    let daemon = Daemon::start().await;
    let witness = daemon.node("test", daemon.port());
    for version in 1..=200 {
        contract::write(&*witness, version).await;
    }
    let resident = daemon.resident_kb();
    println!("{resident} kB resident");
    assert!(resident < resident_kb_max, "{resident} kB");
}

/// Waits for what a store does in its own time.
async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A witness, as the tests hold it.
type Node = Arc<dyn duet::witness::backend::Witness>;
