//! Values that aren't in memory: how many may be asked for, which come back, and what a compaction's step takes.

use bytes::Bytes;
use duet::engine::{Engine, Options};
use duet::mvcc::{CountMode, Loaded, Store, StoreOptions, range};
use duet::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use duet::storage::mem::MemLog;
use duet::storage::{Batch, LogRow};
use duet::telemetry::metrics::Metrics;
use duet::types::Rev;

fn put(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

fn key_range(key: &str) -> RangeRequest {
    RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

async fn value_of(engine: &Engine, key: &str) -> Option<String> {
    let response = engine.range(&key_range(key)).await.expect("a range succeeds");
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).expect("text"))
}

#[tokio::test]
async fn transactions_over_any_number_of_evicted_values_are_answered_and_what_they_use_comes_back_to_memory() {
    let store = StoreOptions { value_budget: 100, ring_budget: 100 };
    let log = MemLog::default();
    let options = Options { store, ..Options::default() };
    let engine = Engine::start(options, std::sync::Arc::new(log.clone()), Metrics::unshared());
    engine.active().await.expect("a log in memory can be acquired");
    let keys: Vec<String> = (0..80).map(|number| format!("k{number:02}")).collect();
    for key in &keys {
        engine.put(put(key, &key.repeat(16))).await.unwrap();
    }
    let ops = |request: fn(&str) -> Request| keys.iter().map(|key| RequestOp { request: Some(request(key)) }).collect::<Vec<_>>();
    let reads = TxnRequest { success: ops(|key| Request::RequestRange(key_range(key))), ..Default::default() };
    let answer = engine.txn(reads).await.expect("one round of reading back is enough");
    assert_eq!(answer.responses.len(), keys.len());

    // Compares of a whole range, and of each key, that all hold; puts that answer and keep what there was.
    let mut compare: Vec<Compare> = keys
        .iter()
        .map(|key| Compare {
            target: CompareTarget::Value as i32,
            key: Bytes::copy_from_slice(key.as_bytes()),
            target_union: Some(TargetUnion::Value(key.repeat(16).into())),
            ..Default::default()
        })
        .collect();
    let (from, to) = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
    let least = Some(TargetUnion::Value(Bytes::from_static(b"a")));
    compare.push(Compare { result: 1, key: from, range_end: to, target_union: least, ..compare[0].clone() });
    let writes = ops(|key| Request::RequestPut(PutRequest { prev_kv: true, ignore_value: true, ..put(key, "") }));
    let answer = engine.txn(TxnRequest { compare, success: writes, ..Default::default() }).await.expect("values are read back");
    assert!(answer.succeeded);
    assert_eq!(value_of(&engine, "k07").await, Some("k07".repeat(16)), "kept");

    // Read by its name, a value stays until others are.
    let fetched = || log.values_read();
    value_of(&engine, "k01").await;
    let before = fetched();
    value_of(&engine, "k01").await;
    engine
        .txn(TxnRequest {
            success: vec![RequestOp { request: Some(Request::RequestRange(key_range("k01"))) }],
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(fetched(), before, "it is in memory");
    engine.range(&RangeRequest { range_end: Bytes::from_static(b"\0"), ..key_range("\0") }).await.unwrap();
    let before = fetched();
    value_of(&engine, "k01").await;
    assert_eq!(fetched(), before, "a list of everything pushes nothing out");
}

/// A store with room for the values of two keys, and what was put into it: `key`, `value`, in this order.
fn store(puts: &[(&'static str, &'static str)]) -> Store {
    let mut store = Store::new(StoreOptions { value_budget: 8, ring_budget: 100 });
    for (main, (key, value)) in (2..).zip(puts) {
        let row = LogRow {
            rev: Rev::new(main, 0),
            key: Bytes::from_static(key.as_bytes()),
            value: Some(Bytes::from_static(value.as_bytes())),
            create_revision: main,
            version: 1,
            lease: 0,
        };
        store.apply(&Batch { rows: vec![row], ..Batch::default() });
    }
    store
}

fn is_resident(store: &Store, key: &str) -> bool {
    range(store, &key_range(key), CountMode::Total, &Loaded::new()).is_ok()
}

#[test]
fn a_value_that_is_read_back_takes_the_place_of_one_that_is_not_in_use() {
    let keys = ["a", "b", "c", "d"];
    let mut store = store(&keys.map(|key| (key, "four")));
    // Which two are there doesn't matter.
    let evicted: Vec<usize> = (0..keys.len()).filter(|index| !is_resident(&store, keys[*index])).collect();
    assert_eq!(evicted.len(), 2);
    for index in evicted {
        let rev = Rev::new(2 + i64::try_from(index).unwrap(), 0);
        for _ in 0..2 {
            store.admit(keys[index].as_bytes(), rev, &Bytes::from_static(b"four"));
        }
        assert!(is_resident(&store, keys[index]), "it is read from memory from now on");
        assert_eq!(store.resident_bytes(), 8, "none is counted twice");
    }
}

#[test]
fn a_step_of_a_sweep_is_bounded_by_what_it_removes() {
    let mut puts = vec![("a", "v"); 7];
    puts.push(("b", "v"));
    let mut store = store(&puts);
    store.apply(&Batch { compacted: Some(9), ..Batch::default() });
    let (mut steps, mut next) = (Vec::new(), None);
    loop {
        let step = store.sweep(next.as_ref(), 2);
        steps.push(step.removed.len());
        next = step.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(steps, [2, 2, 2, 0], "six versions of one key are more than a step's");
    assert_eq!(store.indexed_key_count(), 2);
}
