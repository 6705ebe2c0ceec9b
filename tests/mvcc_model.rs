//! The multi-version store against a naive model: a list of everything that ever happened.
//!
//! Random histories of puts, deletes, multi-key transactions, compactions and sweeps, with a value budget so small that most values are
//! evicted; then every kind of range is asked of both. proptest prints the shortest failing history and keeps its seed.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet::mvcc::{
    CountMode, EvalError, Evaluated, Evaluator, HashScope, LeaseLookup, Loaded, RangeScan, ReadView, Store, StoreOptions, range,
};
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest};
use duet::proto::mvccpb::KeyValue;
use duet::storage::{Batch, LogRow};
use duet::types::{KeyRange, LeaseId, Rev, Revision};
use proptest::prelude::*;

/// Every change that ever happened, in order, and how far it was compacted.
#[derive(Default)]
struct Naive {
    rows: Vec<LogRow>,
    compacted: Option<Revision>,
}

impl Naive {
    fn current(&self) -> Revision {
        self.rows.last().map_or(1, |row| row.rev.main)
    }

    fn live_at(&self, at: Revision) -> BTreeMap<Bytes, KeyValue> {
        let mut live = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.rev.main <= at) {
            match &row.value {
                Some(value) => {
                    let kv = KeyValue {
                        key: row.key.clone(),
                        create_revision: row.create_revision,
                        mod_revision: row.rev.main,
                        version: row.version,
                        value: value.clone(),
                        lease: row.lease,
                    };
                    live.insert(row.key.clone(), kv);
                }
                None => {
                    live.remove(&row.key);
                }
            }
        }
        live
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, EvalError> {
        if request.revision > self.current() {
            return Err(EvalError::FutureRevision);
        }
        let at = if request.revision <= 0 { self.current() } else { request.revision };
        if self.compacted.is_some_and(|compacted| at < compacted) {
            return Err(EvalError::Compacted);
        }
        let keys = KeyRange::new(request.key.clone(), request.range_end.clone());
        let mut kvs: Vec<KeyValue> = self.live_at(at).into_values().filter(|kv| keys.contains(&kv.key)).collect();
        let count = kvs.len() as i64;
        let mut response = RangeResponse { count, ..RangeResponse::default() };
        if request.count_only {
            return Ok(response);
        }
        // etcd's push-down: unless an order or a filter needs all keys, only limit + 1 of them are looked at, in key order.
        let filtered = duet::mvcc::has_revision_filters(request);
        let key_order = request.sort_order == 0 || (request.sort_target == 0 && request.sort_order == 1);
        if request.limit > 0 && key_order && !filtered {
            kvs.truncate(request.limit as usize + 1);
        }
        kvs.retain(|kv| request.min_mod_revision == 0 || kv.mod_revision >= request.min_mod_revision);
        kvs.retain(|kv| request.max_mod_revision == 0 || kv.mod_revision <= request.max_mod_revision);
        kvs.retain(|kv| request.min_create_revision == 0 || kv.create_revision >= request.min_create_revision);
        kvs.retain(|kv| request.max_create_revision == 0 || kv.create_revision <= request.max_create_revision);
        let by_value_index_only = request.keys_only && request.sort_target != 4;
        if by_value_index_only {
            kvs.iter_mut().for_each(|kv| kv.lease = 0);
        }
        match request.sort_target {
            0 => kvs.sort_by(|a, b| a.key.cmp(&b.key)),
            1 => kvs.sort_by_key(|kv| kv.version),
            2 => kvs.sort_by_key(|kv| kv.create_revision),
            3 => kvs.sort_by_key(|kv| kv.mod_revision),
            _ => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
        }
        if request.sort_order == 2 {
            kvs = stable_reverse(kvs, request.sort_target);
        }
        response.more = request.limit > 0 && kvs.len() as i64 > request.limit;
        if response.more {
            kvs.truncate(request.limit as usize);
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        response.kvs = kvs;
        Ok(response)
    }
}

/// Descending, equal elements in their ascending order.
fn stable_reverse(mut kvs: Vec<KeyValue>, target: i32) -> Vec<KeyValue> {
    match target {
        0 => kvs.sort_by(|a, b| b.key.cmp(&a.key)),
        1 => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.version)),
        2 => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.create_revision)),
        3 => kvs.sort_by_key(|kv| std::cmp::Reverse(kv.mod_revision)),
        _ => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
    }
    kvs
}

struct AllLeases;

impl LeaseLookup for AllLeases {
    fn exists(&self, _id: LeaseId) -> bool {
        true
    }
}

/// Evaluates as the engine does: values that aren't in memory are read back from the log.
fn with_values<T>(log: &[LogRow], mut evaluate: impl FnMut(&Loaded) -> Result<T, EvalError>) -> Result<T, EvalError> {
    let mut loaded = Loaded::new();
    for _ in 0..64 {
        match evaluate(&loaded) {
            Err(EvalError::NeedValues(revs)) => {
                for rev in revs {
                    let row = log.iter().find(|row| row.rev == rev).expect("a needed value is in the log");
                    loaded.insert(rev, row.value.clone().expect("a needed value is a put's"));
                }
            }
            decided => return decided,
        }
    }
    panic!("evaluation keeps asking for values");
}

#[derive(Clone, Debug)]
enum Op {
    Put { key: Bytes, value: Bytes, lease: i64 },
    Delete { key: Bytes, end: Bytes },
    Txn(Vec<(bool, Bytes, Bytes)>),
    Compact { back: i64 },
    Sweep { keys: usize },
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just(Bytes::from_static(b"a")),
        Just(Bytes::from_static(b"a\0")),
        Just(Bytes::from_static(b"ab")),
        Just(Bytes::from_static(b"b")),
        Just(Bytes::from_static(b"b\xff")),
        Just(Bytes::from_static(b"c")),
        Just(Bytes::from_static(b"\xff\xfe")),
    ]
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), Just(Bytes::from_static(b"\0")), key()]
}

fn value() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (key(), value(), 0..3i64).prop_map(|(key, value, lease)| Op::Put { key, value, lease }),
        3 => (key(), end()).prop_map(|(key, end)| Op::Delete { key, end }),
        3 => proptest::collection::vec((any::<bool>(), key(), value()), 0..5).prop_map(Op::Txn),
        1 => (0..6i64).prop_map(|back| Op::Compact { back }),
        1 => (1..4usize).prop_map(|keys| Op::Sweep { keys }),
    ]
}

fn request() -> impl Strategy<Value = RangeRequest> {
    let revisions = (-1..5i64, 0..4i64, 0..12i64, 0..12i64);
    let options = (0..3i32, 0..5i32, any::<bool>(), any::<bool>(), 0..8u8);
    (key(), end(), revisions, options).prop_map(
        |(key, range_end, (back, limit, min, max), (order, target, keys, count, filter))| RangeRequest {
            key,
            range_end,
            revision: back,
            limit,
            sort_order: order,
            sort_target: target,
            keys_only: keys,
            count_only: count,
            min_mod_revision: if filter == 1 { min } else { 0 },
            max_mod_revision: if filter == 1 { max } else { 0 },
            min_create_revision: if filter == 2 { min } else { 0 },
            max_create_revision: if filter == 2 { max } else { 0 },
            ..RangeRequest::default()
        },
    )
}

struct Pair {
    store: Store,
    naive: Naive,
    /// Rows as storage has them: those that a sweep removed are gone.
    stored: BTreeMap<Rev, LogRow>,
}

impl Pair {
    fn new() -> Self {
        let store = Store::new(StoreOptions { value_budget: 8, ring_budget: 2000 });
        Self { store, naive: Naive::default(), stored: BTreeMap::new() }
    }

    fn commit(&mut self, rows: Vec<LogRow>) {
        self.stored.extend(rows.iter().map(|row| (row.rev, row.clone())));
        self.naive.rows.extend(rows.iter().cloned());
        let events = self.store.apply(&Batch { rows: rows.clone(), ..Batch::default() });
        let flat: Vec<LogRow> = events.iter().flat_map(|revision| &revision.events).map(|event| event.row.clone()).collect();
        assert_eq!(flat, rows, "events are the rows");
    }

    fn evaluate<R>(&mut self, run: impl Fn(Evaluator<'_>) -> Result<Evaluated<R>, EvalError>) {
        let done = with_values(&self.naive.rows, |loaded| run(Evaluator::new(&self.store, &AllLeases, loaded)));
        self.commit(done.expect("no check fails here").rows);
    }

    fn play(&mut self, op: &Op) {
        match op.clone() {
            Op::Put { key, value, lease } => {
                let request = PutRequest { key, value, lease, prev_kv: true, ..PutRequest::default() };
                self.evaluate(|evaluator| evaluator.put(&request));
            }
            Op::Delete { key, end } => {
                let request = DeleteRangeRequest { key, range_end: end, prev_kv: true };
                self.evaluate(|evaluator| evaluator.delete_range(&request));
            }
            Op::Txn(steps) => {
                let success = steps
                    .into_iter()
                    .map(|(put, key, value)| RequestOp {
                        request: Some(if put {
                            Request::RequestPut(PutRequest { key, value, ..PutRequest::default() })
                        } else {
                            Request::RequestDeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() })
                        }),
                    })
                    .collect();
                let request = TxnRequest { success, ..TxnRequest::default() };
                self.evaluate(|evaluator| evaluator.txn(&request));
            }
            Op::Compact { back } => {
                let to = self.naive.current() - back;
                if to > self.naive.compacted.unwrap_or(-1) {
                    self.naive.compacted = Some(to);
                    self.store.apply(&Batch { compacted: Some(to), ..Batch::default() });
                }
            }
            Op::Sweep { keys } => {
                let step = self.store.sweep(None, keys);
                step.removed.iter().for_each(|rev| assert!(self.stored.remove(rev).is_some(), "a row is removed once"));
            }
        }
    }

    fn sweep_all(&mut self) {
        let mut next = None;
        loop {
            let step = self.store.sweep(next.as_ref(), 2);
            step.removed.iter().for_each(|rev| assert!(self.stored.remove(rev).is_some(), "a row is removed once"));
            next = step.next;
            if next.is_none() {
                return;
            }
        }
    }

    fn compare(&self, request: &RangeRequest) {
        let expected = self.naive.range(request);
        let answer = with_values(&self.naive.rows, |loaded| range(&self.store, request, CountMode::Total, loaded));
        match (answer, expected) {
            (Ok(mut answer), Ok(expected)) => {
                let revision = answer.header.take().expect("a header").revision;
                assert_eq!(revision, self.naive.current(), "the header carries the current revision");
                assert_eq!(answer, expected, "{request:?}");
            }
            (answer, expected) => assert_eq!(answer.err(), expected.err(), "{request:?}"),
        }
    }

    /// Collects a range in steps of `keys_max` keys and plays `between` meanwhile, two after each step.
    fn scan(&mut self, request: &RangeRequest, keys_max: usize, between: &[Op]) {
        let expected = self.naive.range(request);
        let whole = with_values(&self.naive.rows, |loaded| range(&self.store, request, CountMode::Total, loaded));
        let loaded = self.naive.rows.iter().filter_map(|row| Some((row.rev, row.value.clone()?))).collect();
        let at = if request.revision <= 0 { self.naive.current() } else { request.revision };
        let mut scan = match RangeScan::begin(&self.store, request, CountMode::Total) {
            Ok(scan) => scan,
            Err(error) => return assert_eq!(Some(error), expected.err(), "{request:?}"),
        };
        let mut between = between.iter();
        while !scan.is_done() {
            let passed = self.naive.compacted.is_some_and(|compacted| compacted > at);
            match scan.step(&self.store, &loaded, keys_max) {
                Ok(()) => assert!(!passed, "a compaction to {:?} has passed revision {at}", self.naive.compacted),
                Err(error) => return assert_eq!((error, passed), (EvalError::Compacted, true), "{request:?}"),
            }
            between.by_ref().take(2).for_each(|op| self.play(op));
        }
        let mut answer = scan.finish().expect("all values are loaded");
        assert_eq!(answer, whole.expect("what can begin can be answered"), "{request:?}");
        answer.header = None;
        assert_eq!(answer, expected.expect("what can begin can be answered"), "{request:?}");
    }

    /// What recovery builds from the stored rows is the live store.
    fn recovered(&self) -> Store {
        let compacted = self.naive.compacted.unwrap_or(-1);
        let mut recovered = Store::new(StoreOptions::default());
        let rows: Vec<LogRow> = self.stored.values().cloned().collect();
        for chunk in rows.chunks(3) {
            recovered.restore(chunk, compacted).expect("storage has no hole");
        }
        recovered.finish_restore(compacted, 1);
        recovered
    }
}

/// Places, metadata and lengths of what a hash covers; values are compared by the ranges.
fn hashed(store: &Store, at: Revision) -> Vec<(Bytes, Rev, i64, i64, usize)> {
    store
        .hash_step(HashScope { compacted: store.compacted(), at, compacting: false }, None, usize::MAX)
        .finish()
        .into_iter()
        .map(|(key, version)| (key, version.rev, version.create_revision, version.version, version.value.len()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_store_answers_like_a_list_of_everything_that_happened(
        ops in proptest::collection::vec(op(), 1..60),
        requests in proptest::collection::vec(request(), 1..20),
    ) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.play(op);
            prop_assert_eq!(pair.store.current(), pair.naive.current());
            prop_assert_eq!(pair.store.live_key_count(), pair.naive.live_at(pair.naive.current()).len());
        }
        for request in &requests {
            let mut request = request.clone();
            // Revisions are given as steps back from the present, and the odd one into the future or below zero.
            request.revision = match request.revision {
                -1 => -1,
                4 => pair.naive.current() + 1,
                0 => 0,
                back => pair.naive.current() - back * 3,
            };
            pair.compare(&request);
        }
    }

    #[test]
    fn a_store_recovered_from_storage_equals_the_live_one_however_far_a_compaction_came(
        ops in proptest::collection::vec(op(), 1..60),
    ) {
        let mut pair = Pair::new();
        ops.iter().for_each(|op| pair.play(op));
        let current = pair.naive.current();
        let lowest = pair.naive.compacted.unwrap_or(1).max(1);
        let mut recovered = pair.recovered();
        prop_assert_eq!(recovered.current(), current);
        for at in lowest..=current {
            prop_assert_eq!(hashed(&recovered, at), hashed(&pair.store, at), "at revision {}", at);
        }
        pair.sweep_all();
        for at in lowest..=current {
            prop_assert_eq!(hashed(&recovered, at), hashed(&pair.store, at), "swept, at revision {}", at);
        }
        // Sweeping what recovery had to take in again leaves the same rows as sweeping the live store.
        let mut next = None;
        loop {
            let step = recovered.sweep(next.as_ref(), 3);
            next = step.next;
            if next.is_none() { break; }
        }
        prop_assert_eq!(recovered.in_use_bytes(), pair.store.in_use_bytes());
        prop_assert_eq!(recovered.indexed_key_count(), pair.store.indexed_key_count());
    }

    #[test]
    fn a_range_collected_in_steps_is_the_whole_one_of_its_beginning_whatever_is_published_meanwhile(
        ops in proptest::collection::vec(op(), 1..40),
        scans in proptest::collection::vec((request(), 1..4usize, proptest::collection::vec(op(), 0..16)), 1..8),
    ) {
        let mut pair = Pair::new();
        ops.iter().for_each(|op| pair.play(op));
        for (mut request, keys_max, between) in scans {
            request.revision = if request.revision <= 0 { 0 } else { pair.naive.current() - request.revision };
            pair.scan(&request, keys_max, &between);
        }
    }

    #[test]
    fn memory_for_values_stays_within_its_budget(ops in proptest::collection::vec(op(), 1..80)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.play(op);
            prop_assert!(pair.store.resident_bytes() <= 8, "resident: {}", pair.store.resident_bytes());
        }
    }
}

#[test]
fn history_with_a_hole_is_refused() {
    let row = |main| LogRow {
        rev: Rev::new(main, 0),
        key: Bytes::from_static(b"k"),
        value: Some(Bytes::new()),
        create_revision: 2,
        version: main - 1,
        lease: 0,
    };
    let mut store = Store::new(StoreOptions::default());
    assert_eq!(store.restore(&[row(2), row(4)], -1), Err(3));
    let mut store = Store::new(StoreOptions::default());
    assert_eq!(store.restore(&[row(4), row(5)], 4), Ok(()), "below the compact revision rows may be gone");
    let mut store = Store::new(StoreOptions::default());
    assert_eq!(store.restore(&[row(4), row(6)], 4), Err(5), "above it they may not");
}

#[test]
fn a_tombstone_at_the_compact_revision_survives_the_sweep_and_one_below_does_not() {
    let mut pair = Pair::new();
    let put = |key: &'static [u8]| Op::Put { key: Bytes::from_static(key), value: Bytes::from_static(b"v"), lease: 0 };
    let delete = |key: &'static [u8]| Op::Delete { key: Bytes::from_static(key), end: Bytes::new() };
    for op in [put(b"a"), put(b"b"), delete(b"a"), delete(b"b")] {
        pair.play(&op);
    }
    pair.play(&Op::Compact { back: 0 });
    pair.sweep_all();
    let left: Vec<Rev> = pair.stored.keys().copied().collect();
    assert_eq!(left, [Rev::new(5, 0)], "only the tombstone of b, at the compact revision");
}

#[test]
fn a_key_deleted_and_put_again_in_one_revision_lives_on_when_that_revision_is_compacted() {
    // etcd 3.7.3 ends at the next read of such a key, so no comparison with it can hold this.
    let row = |main, sub, value: Option<&'static [u8]>, create_revision, version| LogRow {
        rev: Rev::new(main, sub),
        key: Bytes::from_static(b"k"),
        value: value.map(Bytes::from_static),
        create_revision,
        version,
        lease: 0,
    };
    let mut store = Store::new(StoreOptions::default());
    store.apply(&Batch { rows: vec![row(2, 0, Some(b"old"), 2, 1)], ..Batch::default() });
    store.apply(&Batch { rows: vec![row(3, 0, None, 0, 0), row(3, 1, Some(b"new"), 3, 1)], ..Batch::default() });
    store.apply(&Batch { compacted: Some(3), ..Batch::default() });
    let removed = store.sweep(None, 10).removed;
    assert_eq!(removed, [Rev::new(2, 0), Rev::new(3, 0)]);
    let request = RangeRequest { key: Bytes::from_static(b"k"), ..RangeRequest::default() };
    let answer = range(&store, &request, CountMode::Total, &Loaded::new()).expect("the key can be read");
    assert_eq!((answer.kvs[0].value.as_ref(), answer.kvs[0].create_revision, answer.kvs[0].version), (b"new".as_ref(), 3, 1));
}
