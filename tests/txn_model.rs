//! Transactions against a naive model that is written from etcd's rules and shares nothing with the evaluator: it keeps every revision's
//! whole state. Compares of every target over keys and ranges, nested transactions, puts that keep values or leases, deletes, ranges of
//! the present and the past; with a value budget so small that most values have to be read back.

use std::collections::BTreeMap;

use bytes::Bytes;
use duet::mvcc::{CountMode, EvalError, Evaluator, LeaseLookup, Loaded, ReadView, Store, StoreOptions, range};
use duet::proto::etcdserverpb::compare::TargetUnion;
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::response_op::Response;
use duet::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use duet::proto::mvccpb::KeyValue;
use duet::storage::{Batch, LogRow};
use duet::types::{LeaseId, Rev, Revision};
use proptest::prelude::*;

type State = BTreeMap<Bytes, KeyValue>;

/// Leases that exist.
const LEASES: [LeaseId; 2] = [1, 2];

struct Leases;

impl LeaseLookup for Leases {
    fn exists(&self, id: LeaseId) -> bool {
        LEASES.contains(&id)
    }
}

/// The state after each revision; the first is revision 1's, which is empty.
struct Naive(Vec<State>);

/// One transaction under way.
struct Under<'a> {
    history: &'a [State],
    now: State,
    wrote: bool,
}

fn within(key: &[u8], from: &[u8], end: &[u8]) -> bool {
    match end {
        b"" => key == from,
        b"\0" => key >= from,
        end => key >= from && key < end,
    }
}

fn selected<'s>(state: &'s State, from: &'s [u8], end: &'s [u8]) -> impl Iterator<Item = &'s KeyValue> {
    state.values().filter(move |kv| within(&kv.key, from, end))
}

fn holds(state: &State, compare: &Compare) -> bool {
    let found: Vec<KeyValue> = selected(state, &compare.key, &compare.range_end).cloned().collect();
    if found.is_empty() {
        // No value is there to be compared; every number of a key that isn't there is zero.
        return compare.target != 3 && one_holds(&KeyValue::default(), compare);
    }
    found.iter().all(|kv| one_holds(kv, compare))
}

fn one_holds(kv: &KeyValue, compare: &Compare) -> bool {
    let ordering = match (compare.target, &compare.target_union) {
        (0, Some(TargetUnion::Version(wanted))) => kv.version.cmp(wanted),
        (1, Some(TargetUnion::CreateRevision(wanted))) => kv.create_revision.cmp(wanted),
        (2, Some(TargetUnion::ModRevision(wanted))) => kv.mod_revision.cmp(wanted),
        (3, Some(TargetUnion::Value(wanted))) => kv.value.cmp(wanted),
        (4, Some(TargetUnion::Lease(wanted))) => kv.lease.cmp(wanted),
        other => unreachable!("not generated: {other:?}"),
    };
    match compare.result {
        0 => ordering.is_eq(),
        1 => ordering.is_gt(),
        2 => ordering.is_lt(),
        3 => ordering.is_ne(),
        other => unreachable!("not generated: {other}"),
    }
}

impl Naive {
    fn current(&self) -> Revision {
        self.0.len() as Revision
    }

    /// What the transaction answers; the new state is the last one if it wrote something.
    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, EvalError> {
        let begin = self.current();
        let mut under = Under { history: &self.0, now: self.0[self.0.len() - 1].clone(), wrote: false };
        let before = under.now.clone();
        under.check(request, &before, begin)?;
        let mut response = under.run(request, &before, begin);
        response.header = Some(header(under.revision(begin)));
        let Under { now, wrote, .. } = under;
        if wrote {
            self.0.push(now);
        }
        Ok(response)
    }
}

fn taken<'r>(request: &'r TxnRequest, before: &State) -> (bool, &'r [RequestOp]) {
    let succeeded = request.compare.iter().all(|compare| holds(before, compare));
    (succeeded, if succeeded { &request.success } else { &request.failure })
}

fn header(revision: Revision) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}

impl Under<'_> {
    fn revision(&self, begin: Revision) -> Revision {
        begin + Revision::from(self.wrote)
    }

    fn check(&self, request: &TxnRequest, before: &State, begin: Revision) -> Result<(), EvalError> {
        for op in taken(request, before).1 {
            match op.request.as_ref().expect("generated") {
                Request::RequestRange(range) if range.revision > begin => return Err(EvalError::FutureRevision),
                Request::RequestPut(put) => {
                    if put.lease != 0 && !LEASES.contains(&put.lease) {
                        return Err(EvalError::LeaseNotFound);
                    }
                    if (put.ignore_value || put.ignore_lease) && !before.contains_key(&put.key) {
                        return Err(EvalError::KeyNotFound);
                    }
                }
                Request::RequestTxn(nested) => self.check(nested, before, begin)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, request: &TxnRequest, before: &State, begin: Revision) -> TxnResponse {
        let (succeeded, ops) = taken(request, before);
        let responses = ops
            .iter()
            .map(|op| {
                let response = match op.request.as_ref().expect("generated") {
                    Request::RequestRange(range) => Response::ResponseRange(self.range(range, begin)),
                    Request::RequestPut(put) => Response::ResponsePut(self.put(put, begin)),
                    Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete(delete, begin)),
                    Request::RequestTxn(nested) => Response::ResponseTxn(self.run(nested, before, begin)),
                };
                ResponseOp { response: Some(response) }
            })
            .collect();
        TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses }
    }

    fn range(&self, request: &RangeRequest, begin: Revision) -> RangeResponse {
        let state = if request.revision > 0 { &self.history[request.revision as usize - 1] } else { &self.now };
        let mut kvs: Vec<KeyValue> = selected(state, &request.key, &request.range_end).cloned().collect();
        let count = kvs.len() as i64;
        let more = request.limit > 0 && count > request.limit;
        if more {
            kvs.truncate(request.limit as usize);
        }
        RangeResponse { header: Some(header(self.revision(begin))), kvs, more, count }
    }

    fn put(&mut self, request: &PutRequest, begin: Revision) -> PutResponse {
        let prev = self.now.get(&request.key).cloned();
        let old = prev.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            // A key that was deleted and put within one transaction is a new one.
            create_revision: if prev.is_some() { old.create_revision } else { begin + 1 },
            mod_revision: begin + 1,
            version: old.version + 1,
            // Only a transaction that the façade refuses deletes what it then wants to keep.
            value: if request.ignore_value && prev.is_some() { old.value } else { request.value.clone() },
            lease: if request.ignore_lease && prev.is_some() { old.lease } else { request.lease },
        };
        self.now.insert(request.key.clone(), kv);
        self.wrote = true;
        PutResponse { header: Some(header(begin + 1)), prev_kv: prev.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &DeleteRangeRequest, begin: Revision) -> DeleteRangeResponse {
        let doomed: Vec<KeyValue> = selected(&self.now, &request.key, &request.range_end).cloned().collect();
        doomed.iter().for_each(|kv| drop(self.now.remove(&kv.key)));
        self.wrote |= !doomed.is_empty();
        let deleted = doomed.len() as i64;
        let prev_kvs = if request.prev_kv { doomed } else { Vec::new() };
        DeleteRangeResponse { header: Some(header(self.revision(begin))), deleted, prev_kvs }
    }
}

// --- generated transactions -----------------------------------------------------------------------------------------------------------

const KEYS: [&[u8]; 6] = [b"a", b"a\0", b"ab", b"b", b"b\xff", b"\xff\xfe"];

fn key() -> impl Strategy<Value = Bytes> {
    (0..KEYS.len()).prop_map(|index| Bytes::from_static(KEYS[index]))
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![4 => Just(Bytes::new()), 1 => Just(Bytes::from_static(b"\0")), 1 => key()]
}

/// Few different ones, so that compares hold now and then.
fn value() -> impl Strategy<Value = Bytes> {
    (0..4u8).prop_map(|number| Bytes::from(vec![b'v'; usize::from(number)]))
}

fn compare() -> impl Strategy<Value = Compare> {
    (key(), end(), 0..5i32, 0..4i32, value(), -1..12i64).prop_map(|(key, range_end, target, result, value, number)| Compare {
        key,
        range_end,
        target,
        result,
        target_union: Some(match target {
            0 => TargetUnion::Version(number / 4),
            1 => TargetUnion::CreateRevision(number),
            2 => TargetUnion::ModRevision(number),
            3 => TargetUnion::Value(value),
            _ => TargetUnion::Lease(number / 5),
        }),
    })
}

fn leaf() -> impl Strategy<Value = Request> {
    let flags = || (any::<bool>(), 0..8u8);
    prop_oneof![
        4 => (key(), value(), 0..12i64, flags()).prop_map(|(key, value, lease, (prev_kv, ignores))| Request::RequestPut(PutRequest {
            key,
            value,
            // The third doesn't exist.
            lease: if lease > 9 { 3 } else { lease % 3 },
            prev_kv,
            ignore_value: ignores == 1,
            ignore_lease: ignores == 2,
        })),
        2 => (key(), end(), any::<bool>())
            .prop_map(|(key, range_end, prev_kv)| Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv })),
        3 => (key(), end(), 0..3i64, -4..12i64).prop_map(|(key, range_end, limit, revision)| Request::RequestRange(RangeRequest {
            key,
            range_end,
            limit,
            // Most see the present.
            revision: revision.max(0),
            ..RangeRequest::default()
        })),
    ]
}

fn ops(op: impl Strategy<Value = Request>) -> impl Strategy<Value = Vec<RequestOp>> {
    proptest::collection::vec(op.prop_map(|request| RequestOp { request: Some(request) }), 0..4)
}

fn txn_of(op: impl Strategy<Value = Request> + Clone) -> impl Strategy<Value = TxnRequest> {
    (proptest::collection::vec(compare(), 0..3), ops(op.clone()), ops(op)).prop_map(|(compare, success, failure)| TxnRequest {
        compare,
        success,
        failure,
    })
}

fn txn() -> impl Strategy<Value = TxnRequest> {
    let nested = txn_of(leaf().boxed()).prop_map(Request::RequestTxn).boxed();
    let twice = txn_of(prop_oneof![3 => leaf(), 1 => nested.clone()].boxed()).prop_map(Request::RequestTxn).boxed();
    txn_of(prop_oneof![5 => leaf(), 1 => nested, 1 => twice].boxed())
}

/// Nesting of two, and the effects.
const ROUNDS_MAX: usize = 4;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn transactions_do_and_answer_what_etcd_s_rules_say(txns in proptest::collection::vec(txn(), 1..25)) {
        let mut store = Store::new(StoreOptions { value_budget: 3, ring_budget: 2000 });
        let mut naive = Naive(vec![State::new()]);
        let mut log: BTreeMap<Rev, LogRow> = BTreeMap::new();
        for request in &txns {
            let (mut loaded, mut rounds) = (Loaded::new(), 0);
            let outcome = loop {
                match Evaluator::new(&store, &Leases, &loaded).txn(request) {
                    Err(EvalError::NeedValues(revs)) => {
                        for rev in revs {
                            let value = log[&rev].value.clone().expect("a needed value is a put's");
                            prop_assert!(loaded.insert(rev, value).is_none(), "{rev:?} is asked for twice");
                        }
                        rounds += 1;
                        prop_assert!(rounds <= ROUNDS_MAX, "it doesn't ask for all that it lacks: {request:?}");
                    }
                    decided => break decided,
                }
            };
            let expected = naive.txn(request);
            match outcome {
                Ok(evaluated) => {
                    prop_assert_eq!(Ok(&evaluated.response), expected.as_ref(), "{:?}", request);
                    log.extend(evaluated.rows.iter().map(|row| (row.rev, row.clone())));
                    if !evaluated.rows.is_empty() {
                        store.apply(&Batch { rows: evaluated.rows, ..Batch::default() });
                    }
                }
                Err(error) => prop_assert_eq!(Some(&error), expected.as_ref().err(), "{:?}", request),
            }
            prop_assert_eq!(store.current(), naive.current());
            let everything = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..RangeRequest::default() };
            let all = log.iter().filter_map(|(rev, row)| Some((*rev, row.value.clone()?))).collect();
            let stored = range(&store, &everything, CountMode::Total, &all).expect("it can be read").kvs;
            let state: Vec<KeyValue> = naive.0[naive.0.len() - 1].values().cloned().collect();
            prop_assert_eq!(stored, state, "after {:?}", request);
        }
    }
}
