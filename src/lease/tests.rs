//! The lessor against a naive model, and its rules one by one.

use proptest::prelude::*;

use super::*;
use crate::types::Rev;

fn granted(id: LeaseId, ttl: i64, now: Millis) -> Batch {
    Batch { leases_put: vec![LeaseRow { id, ttl, expiry: Some(end_of(ttl, now)) }], ..Batch::default() }
}

fn renewed(id: LeaseId, ttl: i64) -> Batch {
    Batch { leases_put: vec![LeaseRow { id, ttl, expiry: None }], ..Batch::default() }
}

fn row(key: &'static str, lease: LeaseId, put: bool) -> LogRow {
    LogRow {
        rev: Rev::new(2, 0),
        key: Bytes::from_static(key.as_bytes()),
        value: put.then(Bytes::new),
        create_revision: i64::from(put),
        version: i64::from(put),
        lease,
    }
}

fn puts(rows: Vec<LogRow>) -> Batch {
    Batch { rows, ..Batch::default() }
}

fn revoked(id: LeaseId) -> Batch {
    Batch { leases_deleted: vec![id], ..Batch::default() }
}

#[test]
fn a_lease_expires_when_its_time_is_over_and_not_before() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 1000), 1000);
    assert!(lessor.expired(5999, 10).is_empty());
    assert_eq!(lessor.next_due(), Some(6000));
    assert_eq!(lessor.expired(6000, 10), [1]);
}

#[test]
fn an_expired_lease_is_handed_out_again_only_after_the_retry_interval() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    assert_eq!(lessor.expired(5000, 10), [1]);
    assert!(lessor.expired(7999, 10).is_empty());
    assert_eq!(lessor.expired(8000, 10), [1]);
    lessor.apply(&revoked(1), 8001);
    assert!(lessor.expired(20_000, 10).is_empty());
    assert!(lessor.is_empty());
}

#[test]
fn an_expired_lease_can_not_be_renewed_even_before_it_is_revoked() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    assert_eq!(lessor.needs_store(1, 5000), None);
    assert_eq!(lessor.renew(1, 5000), None);
}

#[test]
fn a_renewal_that_was_stored_too_late_does_not_save_an_expired_lease() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    assert_eq!(lessor.needs_store(1, 4999), Some(5));
    assert_eq!(lessor.expired(5000, 10), [1]);
    lessor.apply(&renewed(1, 5), 5001);
    assert_eq!(lessor.renew(1, 5001), None);
}

#[test]
fn only_the_first_renewal_after_a_stored_expiry_must_be_stored() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    assert_eq!(lessor.needs_store(1, 3000), Some(5));
    lessor.apply(&renewed(1, 5), 3000);
    assert_eq!(lessor.renew(1, 3000), Some(5));
    assert_eq!(lessor.needs_store(1, 4000), None);
    assert_eq!(lessor.renew(1, 4000), Some(5));
    assert_eq!(lessor.time_to_live(1, 4000), Some((5, 5)));
}

#[test]
fn a_restart_keeps_the_remaining_time_of_a_lease_that_was_never_renewed() {
    let mut lessor = Lessor::default();
    lessor.restore(&[LeaseRow { id: 1, ttl: 60, expiry: Some(70_000) }], 50_000);
    assert_eq!(lessor.time_to_live(1, 50_000), Some((20, 60)));
}

#[test]
fn a_restart_gives_a_renewed_lease_its_full_time() {
    let mut lessor = Lessor::default();
    lessor.restore(&[LeaseRow { id: 1, ttl: 60, expiry: None }], 50_000);
    assert_eq!(lessor.time_to_live(1, 50_000), Some((60, 60)));
    assert_eq!(lessor.needs_store(1, 50_000), None);
}

#[test]
fn reconciling_never_shortens_a_lease_and_forgets_those_that_are_gone() {
    let mut lessor = Lessor::default();
    for id in 1..=3 {
        lessor.apply(&granted(id, 10, 0), 0);
    }
    lessor.apply(&puts(vec![row("a", 1, true), row("b", 2, true)]), 0);
    lessor.apply(&renewed(2, 10), 5000);
    lessor.renew(2, 5000);
    let stored = [
        LeaseRow { id: 2, ttl: 10, expiry: None },
        LeaseRow { id: 3, ttl: 10, expiry: Some(10_000) },
        LeaseRow { id: 4, ttl: 10, expiry: None },
    ];
    lessor.reconcile(&stored, 100_000);
    assert_eq!(lessor.ids(), [2, 3, 4]);
    assert_eq!(lessor.time_to_live(2, 100_000), Some((10, 10)), "others may have renewed it meanwhile");
    assert_eq!(lessor.time_to_live(3, 9000), Some((1, 10)), "nobody renewed it");
    assert_eq!(lessor.time_to_live(4, 100_000), Some((10, 10)));
    assert_eq!(lessor.keys(2), ["b"]);
    lessor.attach(2, Bytes::from_static(b"a"));
    assert_eq!(lessor.keys(2), ["a", "b"]);
}

#[test]
fn reconciling_revives_a_lease_whose_revocation_got_lost() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    assert_eq!(lessor.expired(5000, 10), [1]);
    lessor.reconcile(&[LeaseRow { id: 1, ttl: 5, expiry: Some(5000) }], 5100);
    assert_eq!(lessor.expired(5100, 10), [1], "it is handed out again at once");
}

#[test]
fn a_put_moves_its_key_to_the_new_lease_or_to_none() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    lessor.apply(&granted(2, 5, 0), 0);
    lessor.apply(&puts(vec![row("b", 1, true), row("a", 1, true)]), 0);
    assert_eq!(lessor.keys(1), ["a", "b"]);
    lessor.apply(&puts(vec![row("a", 2, true), row("b", 0, true)]), 0);
    assert_eq!((lessor.keys(1), lessor.keys(2)), (vec![], vec![Bytes::from_static(b"a")]));
    lessor.apply(&puts(vec![row("a", 0, false)]), 0);
    assert!(lessor.keys(2).is_empty());
}

#[test]
fn a_lease_granted_and_used_in_one_batch_has_its_keys() {
    let mut lessor = Lessor::default();
    let batch = Batch { rows: vec![row("a", 7, true)], ..granted(7, 5, 0) };
    lessor.apply(&batch, 0);
    assert_eq!(lessor.keys(7), ["a"]);
}

#[test]
fn a_row_of_a_lease_that_does_not_exist_only_detaches() {
    let mut lessor = Lessor::default();
    lessor.apply(&granted(1, 5, 0), 0);
    lessor.apply(&puts(vec![row("a", 1, true), row("a", 9, true)]), 0);
    assert!(lessor.keys(1).is_empty());
    assert!(lessor.keys(9).is_empty());
}

#[test]
fn leases_are_listed_by_expiry() {
    let mut lessor = Lessor::default();
    for (id, ttl) in [(1, 30), (-5, 10), (3, 20)] {
        lessor.apply(&granted(id, ttl, 0), 0);
    }
    assert_eq!(lessor.leases(), [-5, 3, 1]);
}

#[test]
fn the_limit_hands_out_the_oldest_first() {
    let mut lessor = Lessor::default();
    for id in 1..=5 {
        lessor.apply(&granted(id, 10 - id, 0), 0);
    }
    assert_eq!(lessor.expired(60_000, 2), [5, 4]);
    assert_eq!(lessor.expired(60_000, 9), [3, 2, 1]);
}

/// What the lessor does, written down without any index.
#[derive(Default)]
struct Model {
    /// id → (ttl, expiry, handed out at, expiry stored)
    leases: BTreeMap<LeaseId, (i64, Millis, Option<Millis>, bool)>,
    keys: BTreeMap<Bytes, LeaseId>,
}

impl Model {
    fn due(&self, id: LeaseId) -> Millis {
        let (_, expiry, handed_out, _) = self.leases[&id];
        handed_out.map_or(expiry, |at| at + EXPIRED_RETRY)
    }

    fn expired(&mut self, now: Millis, limit: usize) -> Vec<LeaseId> {
        let mut due: Vec<(Millis, LeaseId)> = self.leases.keys().map(|id| (self.due(*id), *id)).collect();
        due.retain(|(due, _)| *due <= now);
        due.sort_unstable();
        due.truncate(limit);
        for (_, id) in &due {
            self.leases.get_mut(id).unwrap().2 = Some(now);
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn renew(&mut self, id: LeaseId, now: Millis) -> Option<i64> {
        let lease = self.leases.get_mut(&id)?;
        if lease.2.is_some() || lease.1 <= now {
            return None;
        }
        lease.1 = lease.1.max(now + lease.0 as u64 * 1000);
        Some(lease.0)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(Millis),
    Grant(LeaseId, i64),
    Revoke(LeaseId),
    /// As the engine does it: stored first if need be.
    KeepAlive(LeaseId),
    Put(&'static str, LeaseId),
    Delete(&'static str),
    Expire(usize),
    /// A clean stop and a new process.
    Restart,
    /// The session is lost; others renew or revoke the lease meanwhile.
    Takeover(LeaseId, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let id = || 1..5i64;
    let key = || prop::sample::select(vec!["a", "b", "c", "d"]);
    prop_oneof![
        3 => (0..4000u64).prop_map(Step::Wait),
        3 => (id(), 2..6i64).prop_map(|(id, ttl)| Step::Grant(id, ttl)),
        1 => id().prop_map(Step::Revoke),
        3 => id().prop_map(Step::KeepAlive),
        4 => (key(), 0..5i64).prop_map(|(key, id)| Step::Put(key, id)),
        1 => key().prop_map(Step::Delete),
        2 => (1..4usize).prop_map(Step::Expire),
        1 => Just(Step::Restart),
        1 => (id(), any::<bool>()).prop_map(|(id, renew)| Step::Takeover(id, renew)),
    ]
}

/// A lessor, the storage beside it, and the model.
#[derive(Default)]
struct World {
    now: Millis,
    lessor: Lessor,
    stored: BTreeMap<LeaseId, LeaseRow>,
    model: Model,
}

impl World {
    fn publish(&mut self, batch: &Batch) {
        self.stored.extend(batch.leases_put.iter().map(|row| (row.id, *row)));
        self.stored.retain(|id, _| !batch.leases_deleted.contains(id));
        self.lessor.apply(batch, self.now);
    }

    fn rows(&self) -> Vec<LeaseRow> {
        self.stored.values().copied().collect()
    }

    fn revoke(&mut self, id: LeaseId) {
        let rows = self.lessor.keys(id).into_iter().map(|key| LogRow { key, ..row("", 0, false) }).collect();
        self.publish(&Batch { rows, ..revoked(id) });
        self.model.leases.remove(&id);
        self.model.keys.retain(|_, lease| *lease != id);
    }

    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        let now = self.now;
        match step {
            Step::Wait(time) => self.now += time,
            // The sequencer refuses a used id.
            Step::Grant(id, ttl) if !self.model.leases.contains_key(&id) => {
                self.publish(&granted(id, ttl, now));
                self.model.leases.insert(id, (ttl, now + ttl as u64 * 1000, None, true));
            }
            Step::Grant(..) => {}
            Step::Revoke(id) => self.revoke(id),
            Step::KeepAlive(id) => {
                if let Some(ttl) = self.lessor.needs_store(id, now) {
                    prop_assert!(self.stored[&id].expiry.is_some(), "a void expiry was to be voided again");
                    self.publish(&renewed(id, ttl));
                    self.model.leases.get_mut(&id).unwrap().3 = false;
                }
                let renewed = self.lessor.renew(id, now);
                prop_assert_eq!(renewed, self.model.renew(id, now));
                prop_assert!(renewed.is_none() || self.stored[&id].expiry.is_none(), "a restart would shorten it");
            }
            Step::Put(key, id) => {
                self.publish(&puts(vec![row(key, id, true)]));
                self.model.keys.remove(key.as_bytes());
                if self.model.leases.contains_key(&id) {
                    self.model.keys.insert(Bytes::from_static(key.as_bytes()), id);
                }
            }
            Step::Delete(key) => {
                self.publish(&puts(vec![row(key, 0, false)]));
                self.model.keys.remove(key.as_bytes());
            }
            Step::Expire(limit) => {
                let expired = self.lessor.expired(now, limit);
                prop_assert_eq!(&expired, &self.model.expired(now, limit));
                // The engine revokes them; now and then a revocation gets lost.
                for id in expired.into_iter().skip(usize::from(limit == 1)) {
                    self.revoke(id);
                }
            }
            Step::Restart => self.restart(),
            Step::Takeover(id, renew) => self.takeover(id, renew),
        }
        Ok(())
    }

    fn restart(&mut self) {
        self.lessor.restore(&self.rows(), self.now);
        for (key, id) in &self.model.keys {
            self.lessor.attach(*id, key.clone());
        }
        for lease in self.model.leases.values_mut() {
            lease.2 = None;
            if !lease.3 {
                lease.1 = self.now + lease.0 as u64 * 1000;
            }
        }
    }

    fn takeover(&mut self, id: LeaseId, renew: bool) {
        let Some(row) = self.stored.get_mut(&id) else { return };
        if renew {
            row.expiry = None;
            self.model.leases.get_mut(&id).unwrap().3 = false;
        } else {
            self.stored.remove(&id);
            self.model.leases.remove(&id);
            self.model.keys.retain(|_, lease| *lease != id);
        }
        self.now += 60_000;
        self.lessor.reconcile(&self.rows(), self.now);
        for lease in self.model.leases.values_mut() {
            lease.2 = None;
            if !lease.3 {
                lease.1 = lease.1.max(self.now + lease.0 as u64 * 1000);
            }
        }
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let (lessor, model) = (&self.lessor, &self.model);
        prop_assert_eq!(lessor.ids(), model.leases.keys().copied().collect::<Vec<_>>());
        prop_assert_eq!(lessor.schedule.len(), model.leases.len());
        prop_assert_eq!(lessor.next_due(), model.leases.keys().map(|id| model.due(*id)).min());
        for (id, (ttl, expiry, ..)) in &model.leases {
            let left = (*expiry as i64 - self.now as i64) / 1000;
            prop_assert_eq!(lessor.time_to_live(*id, self.now), Some((left, *ttl)));
            let keys: Vec<Bytes> = model.keys.iter().filter(|(_, lease)| *lease == id).map(|(key, _)| key.clone()).collect();
            prop_assert_eq!(lessor.keys(*id), keys);
        }
        prop_assert_eq!(&lessor.keys, &model.keys);
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_lessor_does_what_the_model_does(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::default();
        for step in steps {
            world.take(step)?;
            world.compare()?;
        }
    }
}
