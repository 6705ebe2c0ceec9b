//! The lessor: which leases there are, which keys hang on them, and when they expire.
//!
//! Pure: the time is passed in. It is the lessor's own clock, which stands still while nobody serves, so that what was left of a lease
//! is what is left of it after a restart.
//!
//! Durable changes (grant, revoke, the keys' attachments) reach the lessor only as published batches, through [`Lessor::apply`].
//! Renewing is not durable: it moves the expiry in memory. Storage learns of it once per stored expiry
//! ([`Lessor::needs_store`]): a lease whose stored expiry is void gets its full time after a restart.
//!
//! Invariants: a lease never expires before its time to live has passed since the grant or the last acknowledged renewal, restarts
//! and takeovers included; a lease that has been handed out as expired is never renewed again; a key hangs on at most one lease, and
//! `keys` and the leases' own sets agree.
//!
//! Doesn't delete keys, doesn't choose ids, doesn't check permissions, and doesn't limit the rate of revocations.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::storage::{Batch, LeaseRow, LogRow};
use crate::types::{LeaseId, Millis};

/// How long after a lease was handed out as expired it is handed out again if it still exists (etcd's
/// `expiredLeaseRetryInterval`), in milliseconds.
const EXPIRED_RETRY: Millis = 3000;

#[derive(Debug)]
struct Lease {
    /// Seconds.
    ttl: i64,
    expiry: Millis,
    /// When it is handed out as expired: at its expiry, or later again.
    due: Millis,
    /// Handed out as expired: about to be revoked.
    expired: bool,
    /// Whether storage holds an expiry, which a renewal makes void.
    expiry_stored: bool,
    keys: BTreeSet<Bytes>,
}

/// All leases.
#[derive(Debug, Default)]
pub struct Lessor {
    leases: BTreeMap<LeaseId, Lease>,
    /// Which lease each attached key hangs on.
    keys: BTreeMap<Bytes, LeaseId>,
    /// Every lease by [`Lease::due`].
    schedule: BTreeSet<(Millis, LeaseId)>,
}

impl Lessor {
    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// How many leases there are.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// All ids, ascending.
    pub fn ids(&self) -> Vec<LeaseId> {
        self.leases.keys().copied().collect()
    }

    /// All ids, the lease that expires first in front: the order of etcd's `LeaseLeases`.
    pub fn leases(&self) -> Vec<LeaseId> {
        let mut leases: Vec<(Millis, LeaseId)> = self.leases.iter().map(|(id, lease)| (lease.expiry, *id)).collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    /// The keys that hang on the lease, sorted; none if there is no such lease.
    pub fn keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.leases.get(&id).map_or_else(Vec::new, |lease| lease.keys.iter().cloned().collect())
    }

    /// What is left of the lease and what was granted, in seconds; `None` if there is no such lease. What is left is cut to whole
    /// seconds as in etcd, and not above 0 for a lease that waits to be revoked.
    pub fn time_to_live(&self, id: LeaseId, now: Millis) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        let left = i128::from(lease.expiry) - i128::from(now);
        Some((i64::try_from(left / 1000).unwrap_or(i64::MAX), lease.ttl))
    }

    /// The time to live in seconds, if the lease can be renewed and storage must first be told so: see [`LeaseRow::expiry`].
    pub fn needs_store(&self, id: LeaseId, now: Millis) -> Option<i64> {
        self.leases.get(&id).filter(|lease| lease.renewable(now) && lease.expiry_stored).map(|lease| lease.ttl)
    }

    /// Gives the lease its full time from `now` on. Answers its time to live in seconds; `None` if there is no such lease or it has
    /// expired, even if it isn't revoked yet.
    ///
    /// The caller has made sure that [`Lessor::needs_store`] is satisfied.
    pub fn renew(&mut self, id: LeaseId, now: Millis) -> Option<i64> {
        let lease = self.leases.get_mut(&id).filter(|lease| lease.renewable(now))?;
        let ttl = lease.ttl;
        // A longer time that a takeover gave isn't taken back.
        let expiry = lease.expiry.max(end_of(ttl, now));
        self.reschedule(id, expiry);
        Some(ttl)
    }

    /// Up to `limit` leases that have expired, the oldest first, to be revoked. They can't be renewed any more. A lease that is still
    /// there some seconds later is handed out again: its revocation may have got lost.
    pub fn expired(&mut self, now: Millis, limit: usize) -> Vec<LeaseId> {
        let due: Vec<(Millis, LeaseId)> = self.schedule.iter().take_while(|(due, _)| *due <= now).take(limit).copied().collect();
        for entry in &due {
            self.schedule.remove(entry);
            if let Some(lease) = self.leases.get_mut(&entry.1) {
                lease.expired = true;
                lease.due = now.saturating_add(EXPIRED_RETRY);
                self.schedule.insert((lease.due, entry.1));
            }
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// When [`Lessor::expired`] next has something to tell.
    pub fn next_due(&self) -> Option<Millis> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Takes in a published batch: new leases first, then what its rows attach and detach, then the leases that are gone. A lease
    /// that is granted anew has its full time from `now` on.
    pub fn apply(&mut self, batch: &Batch, now: Millis) {
        for row in &batch.leases_put {
            match (self.leases.get_mut(&row.id), row.expiry) {
                // The note that precedes the first renewal. The renewal itself is made by whoever asked for it.
                (Some(lease), None) => {
                    lease.ttl = row.ttl;
                    lease.expiry_stored = false;
                }
                _ => self.grant(row, end_of(row.ttl, now)),
            }
        }
        self.apply_rows(&batch.rows);
        for id in &batch.leases_deleted {
            self.remove(*id);
        }
    }

    /// Attaches and detaches what published rows say. A row whose lease doesn't exist attaches nothing: the lease was revoked since.
    pub fn apply_rows(&mut self, rows: &[LogRow]) {
        for row in rows {
            self.detach(&row.key);
            if row.lease != 0 {
                // The row's key may be a slice of a whole request: a copy doesn't keep that alive.
                self.attach(row.lease, Bytes::copy_from_slice(&row.key));
            }
        }
    }

    /// Attaches a key, which hangs on no other lease then. Nothing happens if there is no such lease.
    pub fn attach(&mut self, id: LeaseId, key: Bytes) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.keys.insert(key.clone());
        if let Some(old) = self.keys.insert(key.clone(), id)
            && old != id
            && let Some(old) = self.leases.get_mut(&old)
        {
            old.keys.remove(&key);
        }
    }

    /// Starts from what is stored: forgets everything, takes in the leases without keys. Leases without a stored expiry have their
    /// full time from `now` on, which is the clock's time at which serving begins.
    pub fn restore(&mut self, rows: &[LeaseRow], now: Millis) {
        *self = Self::default();
        for row in rows {
            self.grant(row, row.expiry.unwrap_or_else(|| end_of(row.ttl, now)));
        }
    }

    /// Takes over what is stored after the session to storage was lost, while others may have served: leases that are gone go, new
    /// ones come (without keys: call this before the rows that may attach some are applied), and of two expiries the later one
    /// holds. Leases that were handed out as expired live again if they have time left.
    pub fn reconcile(&mut self, rows: &[LeaseRow], now: Millis) {
        let stored: BTreeSet<LeaseId> = rows.iter().map(|row| row.id).collect();
        for id in self.ids() {
            if !stored.contains(&id) {
                self.remove(id);
            }
        }
        for row in rows {
            let known = self.leases.get(&row.id).map_or(0, |lease| lease.expiry);
            self.grant(row, known.max(row.expiry.unwrap_or_else(|| end_of(row.ttl, now))));
        }
    }

    /// Adds a lease, or sets a known one, whose keys stay.
    fn grant(&mut self, row: &LeaseRow, expiry: Millis) {
        let lease = self.leases.entry(row.id).or_insert_with(|| Lease {
            ttl: row.ttl,
            expiry,
            due: expiry,
            expired: false,
            expiry_stored: false,
            keys: BTreeSet::new(),
        });
        lease.ttl = row.ttl;
        lease.expired = false;
        lease.expiry_stored = row.expiry.is_some();
        self.reschedule(row.id, expiry);
    }

    fn reschedule(&mut self, id: LeaseId, expiry: Millis) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        self.schedule.remove(&(lease.due, id));
        lease.expiry = expiry;
        lease.due = expiry;
        self.schedule.insert((expiry, id));
    }

    fn remove(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(&id) else { return };
        self.schedule.remove(&(lease.due, id));
        for key in &lease.keys {
            self.keys.remove(key);
        }
    }

    fn detach(&mut self, key: &Bytes) {
        if let Some(lease) = self.keys.remove(key).and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
    }
}

impl Lease {
    fn renewable(&self, now: Millis) -> bool {
        !self.expired && now < self.expiry
    }
}

/// When a time to live that begins now ends.
fn end_of(ttl: i64, now: Millis) -> Millis {
    now.saturating_add(Millis::try_from(ttl).unwrap_or(0).saturating_mul(1000))
}
