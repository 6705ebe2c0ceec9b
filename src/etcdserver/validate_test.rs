//! The order and the texts of the field checks, against etcd's.

use super::*;
use bytes::Bytes;

const MAX_OPS: usize = 128;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put_op(key: &str) -> pb::RequestOp {
    pb::RequestOp { request: Some(Op::RequestPut(pb::PutRequest { key: bytes(key), ..Default::default() })) }
}

fn delete_op(key: &str, end: &str) -> pb::RequestOp {
    let request = pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false };
    pb::RequestOp { request: Some(Op::RequestDeleteRange(request)) }
}

fn range_op(key: &str) -> pb::RequestOp {
    pb::RequestOp { request: Some(Op::RequestRange(pb::RangeRequest { key: bytes(key), ..Default::default() })) }
}

fn txn_op(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
    pb::RequestOp { request: Some(Op::RequestTxn(pb::TxnRequest { compare: vec![], success, failure })) }
}

fn check(success: Vec<pb::RequestOp>) -> Result<(), Error> {
    txn(&pb::TxnRequest { compare: vec![], success, failure: vec![] }, MAX_OPS)
}

const DUPLICATE: Result<(), Error> = Err(Error::DuplicateKey);

#[test]
fn a_range_needs_a_key_before_anything_else() {
    assert_eq!(range(&pb::RangeRequest { sort_order: 9, ..Default::default() }), Err(Error::EmptyKey));
}

#[test]
fn a_range_with_an_unknown_sort_order_or_target_is_refused() {
    assert_eq!(range(&pb::RangeRequest { key: bytes("a"), sort_order: 3, ..Default::default() }), Err(Error::InvalidSortOption));
    assert_eq!(range(&pb::RangeRequest { key: bytes("a"), sort_target: 5, ..Default::default() }), Err(Error::InvalidSortOption));
    assert_eq!(range(&pb::RangeRequest { key: bytes("a"), sort_order: 2, sort_target: 4, ..Default::default() }), Ok(()));
}

#[test]
fn a_range_stream_comes_in_key_order_only() {
    let request = |sort_order, sort_target| pb::RangeRequest { key: bytes("a"), sort_order, sort_target, ..Default::default() };
    assert_eq!(range_stream(&request(0, 0)), Ok(()));
    assert_eq!(range_stream(&request(1, 0)), Ok(()), "ascending by key is the stored order");
    assert_eq!(range_stream(&request(0, 3)), Ok(()), "no order, whatever the target");
    assert_eq!(range_stream(&request(2, 0)), Err(RangeStreamError::CustomSort));
    assert_eq!(range_stream(&request(1, 3)), Err(RangeStreamError::CustomSort));
    assert_eq!(range_stream(&request(1, 5)), Err(RangeStreamError::Range(Error::InvalidSortOption)));
}

#[test]
fn a_range_stream_knows_no_revision_filters() {
    for field in 0..4 {
        let mut request = pb::RangeRequest { key: bytes("a"), ..Default::default() };
        match field {
            0 => request.min_mod_revision = 1,
            1 => request.max_mod_revision = 1,
            2 => request.min_create_revision = -1,
            _ => request.max_create_revision = 1,
        }
        assert_eq!(range_stream(&request), Err(RangeStreamError::RevisionFilter));
    }
}

#[test]
fn a_put_that_keeps_its_value_or_lease_must_not_bring_one() {
    let request = pb::PutRequest { ignore_value: true, ignore_lease: true, value: bytes("v"), lease: 1, ..Default::default() };
    assert_eq!(put(&request), Err(Error::EmptyKey));
    let request = pb::PutRequest { key: bytes("a"), ..request };
    assert_eq!(put(&request), Err(Error::ValueProvided), "the value is looked at before the lease");
    let request = pb::PutRequest { value: Bytes::new(), ..request };
    assert_eq!(put(&request), Err(Error::LeaseProvided));
    let request = pb::PutRequest { lease: 0, ..request };
    assert_eq!(put(&request), Ok(()));
}

#[test]
fn a_delete_needs_a_key() {
    assert_eq!(delete_range(&pb::DeleteRangeRequest { range_end: bytes("z"), ..Default::default() }), Err(Error::EmptyKey));
}

#[test]
fn a_branch_has_at_most_max_txn_ops_operations_and_the_branch_not_taken_counts() {
    let ops = |n| (0..n).map(|i| range_op(&format!("k{i}"))).collect::<Vec<_>>();
    assert_eq!(check(ops(128)), Ok(()));
    assert_eq!(check(ops(129)), Err(Error::TooManyOps));
    let request = pb::TxnRequest { compare: vec![], success: vec![], failure: ops(129) };
    assert_eq!(txn(&request, MAX_OPS), Err(Error::TooManyOps));
    let compare = vec![pb::Compare { key: bytes("a"), ..Default::default() }; 129];
    assert_eq!(txn(&pb::TxnRequest { compare, success: vec![], failure: vec![] }, MAX_OPS), Err(Error::TooManyOps));
}

#[test]
fn a_nested_transaction_gets_what_its_parent_left_over_and_siblings_do_not_add_up() {
    let ops = |n| (0..n).map(|i| range_op(&format!("k{i}"))).collect::<Vec<_>>();
    assert_eq!(check(vec![txn_op(ops(127), vec![])]), Ok(()));
    assert_eq!(check(vec![txn_op(ops(128), vec![])]), Err(Error::TooManyOps));
    assert_eq!(check(vec![txn_op(ops(126), ops(126)), txn_op(ops(126), vec![])]), Ok(()));
}

#[test]
fn too_many_operations_are_noticed_before_their_fields() {
    assert_eq!(check(vec![range_op(""); 129]), Err(Error::TooManyOps));
}

#[test]
fn the_first_operation_at_fault_decides() {
    let bad_put = pb::PutRequest { key: bytes("a"), ignore_value: true, value: bytes("v"), ..Default::default() };
    let bad_put = pb::RequestOp { request: Some(Op::RequestPut(bad_put)) };
    assert_eq!(check(vec![bad_put.clone(), range_op("")]), Err(Error::ValueProvided));
    assert_eq!(check(vec![range_op(""), bad_put.clone()]), Err(Error::EmptyKey));
    let compare = vec![pb::Compare::default()];
    assert_eq!(txn(&pb::TxnRequest { compare, success: vec![bad_put], failure: vec![] }, MAX_OPS), Err(Error::EmptyKey));
}

#[test]
fn an_operation_that_says_nothing_gets_etcds_own_odd_answer() {
    assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(Error::KeyNotFound));
}

#[test]
fn fields_are_checked_before_overlaps() {
    assert_eq!(check(vec![put_op("a"), put_op("a"), range_op("")]), Err(Error::EmptyKey));
}

#[test]
fn two_puts_of_a_key_collide_in_either_branch() {
    assert_eq!(check(vec![put_op("a"), put_op("a")]), DUPLICATE);
    assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
    let request = pb::TxnRequest { compare: vec![], success: vec![], failure: vec![put_op("a"), put_op("a")] };
    assert_eq!(txn(&request, MAX_OPS), DUPLICATE);
    let request = pb::TxnRequest { compare: vec![], success: vec![put_op("a")], failure: vec![put_op("a")] };
    assert_eq!(txn(&request, MAX_OPS), Ok(()));
}

#[test]
fn a_put_collides_with_any_delete_of_its_level_in_whatever_order() {
    assert_eq!(check(vec![put_op("b"), delete_op("b", "")]), DUPLICATE);
    assert_eq!(check(vec![delete_op("a", "c"), put_op("b")]), DUPLICATE);
    assert_eq!(check(vec![put_op("a"), delete_op("a", "c")]), DUPLICATE);
    assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()), "the end is exclusive");
    assert_eq!(check(vec![put_op("b\0"), delete_op("b", "")]), Ok(()));
}

#[test]
fn overlapping_deletes_are_fine() {
    assert_eq!(check(vec![delete_op("a", "d"), delete_op("b", "z"), delete_op("b", "")]), Ok(()));
}

#[test]
fn deleting_everything_from_a_key_on_never_collides() {
    assert_eq!(check(vec![delete_op("a", "\0"), put_op("b")]), Ok(()));
    assert_eq!(check(vec![delete_op("c", "a"), put_op("b")]), Ok(()), "nor does a reversed range");
}

#[test]
fn a_nested_put_collides_with_deletes_above_and_before_it() {
    assert_eq!(check(vec![txn_op(vec![put_op("b")], vec![]), delete_op("a", "c")]), DUPLICATE);
    assert_eq!(check(vec![txn_op(vec![], vec![put_op("b")]), delete_op("a", "c")]), DUPLICATE);
    assert_eq!(check(vec![txn_op(vec![delete_op("b", "")], vec![]), txn_op(vec![put_op("b")], vec![])]), DUPLICATE);
    assert_eq!(check(vec![txn_op(vec![put_op("b")], vec![]), txn_op(vec![delete_op("b", "")], vec![])]), Ok(()), "not after it");
    assert_eq!(check(vec![txn_op(vec![delete_op("b", "")], vec![]), put_op("b")]), DUPLICATE);
    assert_eq!(check(vec![put_op("b"), txn_op(vec![], vec![delete_op("b", "")])]), DUPLICATE);
}

#[test]
fn the_branches_of_one_nested_transaction_may_share_keys_but_siblings_may_not() {
    assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
    assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![delete_op("a", "")])]), Ok(()));
    assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])]), DUPLICATE);
    assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")]), put_op("a")]), DUPLICATE);
}

#[test]
fn a_transaction_costs_what_its_costlier_branch_puts() {
    let request = pb::TxnRequest {
        compare: vec![],
        success: vec![put_op("ab"), delete_op("c", "")],
        failure: vec![txn_op(vec![put_op("a"), put_op("bcd")], vec![])],
    };
    assert_eq!(txn_cost(&request), 256 + 1 + 256 + 3);
    assert_eq!(txn_cost(&pb::TxnRequest { compare: vec![], success: vec![delete_op("c", "z")], failure: vec![] }), 0);
}

#[test]
fn a_write_may_fill_max_request_bytes_with_its_envelope_and_not_a_byte_more() {
    let max = 1_572_864;
    // Two length prefixes and tags inside the Put: 1 + 1 + 1 for the key "k", 1 + 3 for the value; outside: 14 + 3.
    let room = max - 17 - 7;
    let request = |len| pb::PutRequest { key: bytes("k"), value: vec![0; len].into(), ..Default::default() };
    assert_eq!(size(&request(room), max), Ok(()));
    assert_eq!(size(&request(room + 1), max), Err(Error::RequestTooLarge));
}

/// A literal reading of etcd's algorithm: sets of keys, and intervals that are searched one by one.
mod model {
    use super::*;

    type Intervals = Vec<(Bytes, Bytes)>;

    fn hit(intervals: &Intervals, key: &Bytes) -> bool {
        intervals.iter().any(|(start, end)| if end.is_empty() { start == key } else { start <= key && key < end })
    }

    pub fn check(ops: &[pb::RequestOp]) -> Result<(BTreeSet<Bytes>, Intervals), Error> {
        let mut deletes: Intervals = ops
            .iter()
            .filter_map(|op| match &op.request {
                Some(Op::RequestDeleteRange(op)) => Some((op.key.clone(), op.range_end.clone())),
                _ => None,
            })
            .collect();
        let mut puts = BTreeSet::new();
        for op in ops {
            let Some(Op::RequestTxn(op)) = &op.request else { continue };
            let (then_puts, then_deletes) = check(&op.success)?;
            let (else_puts, else_deletes) = check(&op.failure)?;
            for key in &then_puts {
                if puts.contains(key) || hit(&deletes, key) {
                    return Err(Error::DuplicateKey);
                }
                puts.insert(key.clone());
            }
            for key in &else_puts {
                if (puts.contains(key) && !then_puts.contains(key)) || hit(&deletes, key) {
                    return Err(Error::DuplicateKey);
                }
                puts.insert(key.clone());
            }
            deletes.extend(then_deletes);
            deletes.extend(else_deletes);
        }
        for op in ops {
            let Some(Op::RequestPut(op)) = &op.request else { continue };
            if puts.contains(&op.key) || hit(&deletes, &op.key) {
                return Err(Error::DuplicateKey);
            }
            puts.insert(op.key.clone());
        }
        Ok((puts, deletes))
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "b\0", "bb", "c", "d", "e", "f"]).prop_map(str::to_owned)
    }

    fn end() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["", "\0", "a", "b\0", "c", "d\0", "g"]).prop_map(str::to_owned)
    }

    fn op() -> impl Strategy<Value = pb::RequestOp> {
        let leaf = prop_oneof![
            key().prop_map(|key| put_op(&key)),
            (key(), end()).prop_map(|(key, end)| delete_op(&key, &end)),
            key().prop_map(|key| range_op(&key)),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            (prop::collection::vec(inner.clone(), 0..4), prop::collection::vec(inner, 0..4))
                .prop_map(|(then, otherwise)| txn_op(then, otherwise))
        })
    }

    proptest! {
        #[test]
        fn overlaps_are_found_exactly_where_etcds_algorithm_finds_them(ops in prop::collection::vec(op(), 0..5)) {
            prop_assert_eq!(overlaps(&ops).map(|_| ()), model::check(&ops).map(|_| ()));
        }
    }
}
