//! What a request does to the store, counted as etcd's metrics count it.
//!
//! etcd counts inside the transactions of its store, at each look at a range of keys and at each change
//! (`storage/mvcc/metrics_txn.go`): compares and previous pairs are looks, too (`etcdserver/txn/`). A request takes one such transaction;
//! a Txn that may write takes one to compare and to check in, and one to write in. Each that has done more than one thing counts as a
//! transaction, whatever the request is called: so Kubernetes' updates, with one compare and one put, count as none. A compaction looks, too,
//! to learn the revision (`etcdserver/apply/backend.go`).
//!
//! It deliberately doesn't count what an evaluation really looks at, which is less.

use std::ops::AddAssign;

/// Operations of one request or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Looks at a range of keys.
    pub ranges: u64,
    /// Puts.
    pub puts: u64,
    /// Deletions of a range of keys, whether or not there were any.
    pub deletes: u64,
    /// Bytes of the keys and values put.
    pub put_bytes: u64,
    /// Transactions of the store with more than one operation.
    pub txns: u64,
    /// Operations of the transaction of the store that hasn't ended yet.
    open: u64,
}

impl Operations {
    /// A look at a range of keys.
    pub fn range(&mut self) {
        self.ranges += 1;
        self.open += 1;
    }

    pub(super) fn put(&mut self, bytes: usize) {
        self.puts += 1;
        self.put_bytes += bytes as u64;
        self.open += 1;
    }

    pub(super) fn delete(&mut self) {
        self.deletes += 1;
        self.open += 1;
    }

    /// The store's transaction ends.
    pub(super) fn end(&mut self) {
        self.txns += u64::from(self.open > 1);
        self.open = 0;
    }
}

/// Of requests that are done.
impl AddAssign for Operations {
    fn add_assign(&mut self, more: Self) {
        self.ranges += more.ranges;
        self.puts += more.puts;
        self.deletes += more.deletes;
        self.put_bytes += more.put_bytes;
        self.txns += more.txns;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mvcc::{EvalError, Evaluator, LeaseLookup, Loaded, Store, StoreOptions};
    use crate::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
    use crate::proto::etcdserverpb::request_op::Request;
    use crate::proto::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
    use crate::storage::{Batch, LogRow};
    use crate::types::{LeaseId, Rev};

    struct NoLeases;

    impl LeaseLookup for NoLeases {
        fn exists(&self, _: LeaseId) -> bool {
            false
        }
    }

    /// A store in which "k" has the value "old", since revision 2.
    fn store() -> Store {
        let mut store = Store::new(StoreOptions::default());
        let (key, value) = (Bytes::from_static(b"k"), Some(Bytes::from_static(b"old")));
        let row = LogRow { rev: Rev::new(2, 0), key, value, create_revision: 2, version: 1, lease: 0 };
        store.apply(&Batch { rows: vec![row], ..Batch::default() });
        store
    }

    fn put(key: &'static str, value: &'static str) -> PutRequest {
        PutRequest { key: Bytes::from_static(key.as_bytes()), value: Bytes::from_static(value.as_bytes()), ..Default::default() }
    }

    fn delete(key: &'static str) -> DeleteRangeRequest {
        DeleteRangeRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() }
    }

    fn get(key: &'static str) -> RangeRequest {
        RangeRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() }
    }

    /// That "k" was last changed at this revision.
    fn unchanged_since(revision: i64) -> Compare {
        Compare {
            target: CompareTarget::Mod as i32,
            key: Bytes::from_static(b"k"),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Default::default()
        }
    }

    fn txn(compare: Vec<Compare>, success: Vec<Request>, failure: Vec<Request>) -> TxnRequest {
        let ops = |requests: Vec<Request>| requests.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
        TxnRequest { compare, success: ops(success), failure: ops(failure) }
    }

    /// Ranges, puts, deletes, bytes put and transactions of what `run` evaluates, and its refusal.
    fn counted<R>(run: impl FnOnce(Evaluator<'_>) -> Result<R, EvalError>) -> ([u64; 5], Option<EvalError>) {
        let mut operations = Operations::default();
        let (store, loaded) = (store(), Loaded::new());
        let refusal = run(Evaluator::new(&store, &NoLeases, &loaded).counting(&mut operations)).err();
        let Operations { ranges, puts, deletes, put_bytes, txns, .. } = operations;
        ([ranges, puts, deletes, put_bytes, txns], refusal)
    }

    fn of_txn(request: &TxnRequest) -> [u64; 5] {
        counted(|evaluator| evaluator.txn(request)).0
    }

    #[test]
    fn a_put_alone_is_a_put_and_one_that_looks_for_the_previous_pair_a_transaction() {
        let plain = put("k", "value");
        assert_eq!(counted(|evaluator| evaluator.put(&plain)).0, [0, 1, 0, 6, 0]);
        let previous = PutRequest { prev_kv: true, ..put("k", "value") };
        assert_eq!(counted(|evaluator| evaluator.put(&previous)).0, [1, 1, 0, 6, 1]);
        let kept = PutRequest { ignore_value: true, ..put("k", "") };
        assert_eq!(counted(|evaluator| evaluator.put(&kept)).0, [1, 1, 0, 4, 1], "what it stores is the old value");
    }

    #[test]
    fn a_put_that_is_refused_has_looked_unless_its_lease_was_missing_already() {
        let unknown = PutRequest { ignore_value: true, ..put("unknown", "") };
        assert_eq!(counted(|evaluator| evaluator.put(&unknown)), ([1, 0, 0, 0, 0], Some(EvalError::KeyNotFound)));
        let leased = PutRequest { lease: 7, prev_kv: true, ..put("k", "value") };
        assert_eq!(counted(|evaluator| evaluator.put(&leased)), ([0; 5], Some(EvalError::LeaseNotFound)));
    }

    #[test]
    fn a_deletion_counts_once_whatever_it_finds() {
        let nothing = delete("unknown");
        assert_eq!(counted(|evaluator| evaluator.delete_range(&nothing)).0, [0, 0, 1, 0, 0]);
        let previous = DeleteRangeRequest { prev_kv: true, ..delete("k") };
        assert_eq!(counted(|evaluator| evaluator.delete_range(&previous)).0, [1, 0, 1, 0, 1]);
        let keys = ["k", "unknown"].map(|key| Bytes::from_static(key.as_bytes()));
        let revoked = counted(|evaluator| Ok(evaluator.delete_keys(keys)));
        assert_eq!(revoked.0, [0, 0, 1, 0, 0], "a revoked lease's, one by one");
    }

    #[test]
    fn kubernetes_updates_are_a_range_and_a_put_and_no_transaction() {
        let update = |revision| {
            let (write, read) = (Request::RequestPut(put("k", "new")), Request::RequestRange(get("k")));
            txn(vec![unchanged_since(revision)], vec![write], vec![read])
        };
        assert_eq!(of_txn(&update(2)), [1, 1, 0, 4, 0]);
        assert_eq!(of_txn(&update(1)), [2, 0, 0, 0, 0], "the compare, and the range of the other branch");
    }

    #[test]
    fn a_txn_that_writes_compares_in_one_transaction_and_writes_in_another() {
        let compares = vec![unchanged_since(2), unchanged_since(2)];
        let two = txn(compares.clone(), vec![Request::RequestPut(put("a", "1")), Request::RequestPut(put("b", "1"))], vec![]);
        assert_eq!(of_txn(&two), [2, 2, 0, 4, 2]);
        let one = txn(compares, vec![Request::RequestPut(put("a", "1"))], vec![]);
        assert_eq!(of_txn(&one), [2, 1, 0, 2, 1]);
        let previous = PutRequest { prev_kv: true, ..put("k", "1") };
        let looks_twice = txn(vec![], vec![Request::RequestPut(previous)], vec![]);
        assert_eq!(of_txn(&looks_twice), [2, 1, 0, 2, 1], "to check, and to put");
    }

    #[test]
    fn compares_count_up_to_the_first_that_does_not_hold() {
        let compares = vec![unchanged_since(2), unchanged_since(1), unchanged_since(2)];
        assert_eq!(of_txn(&txn(compares, vec![Request::RequestPut(put("a", "1"))], vec![])), [2, 0, 0, 0, 1]);
    }

    #[test]
    fn a_txn_that_only_reads_takes_one_transaction() {
        let range = || Request::RequestRange(get("k"));
        assert_eq!(of_txn(&txn(vec![], vec![range()], vec![])), [1, 0, 0, 0, 0]);
        assert_eq!(of_txn(&txn(vec![unchanged_since(2)], vec![range()], vec![])), [2, 0, 0, 0, 1]);
    }

    #[test]
    fn nested_txns_count_with_the_outer_one() {
        let inner = txn(vec![unchanged_since(2)], vec![Request::RequestDeleteRange(delete("k"))], vec![]);
        let outer = txn(vec![unchanged_since(2)], vec![Request::RequestTxn(inner), Request::RequestRange(get("k"))], vec![]);
        assert_eq!(of_txn(&outer), [3, 0, 1, 0, 2], "two compares; a deletion and a range");
    }

    #[test]
    fn a_txn_that_is_refused_has_compared_and_looked() {
        let unknown = PutRequest { ignore_lease: true, ..put("unknown", "") };
        let request = txn(vec![unchanged_since(2)], vec![Request::RequestPut(unknown)], vec![]);
        let counted = counted(|evaluator| evaluator.txn(&request));
        assert_eq!(counted, ([2, 0, 0, 0, 1], Some(EvalError::KeyNotFound)));
    }
}
