//! Lease requests: what goes through the writer, and what the lessor answers by itself.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::slow::Read;
use super::{Engine, Error};
use crate::sequencer::Command;
use crate::types::{LeaseId, Revision};

/// A renewal is answered only if the right to it was asked for so shortly before.
const RENEWAL_FRESH: Duration = Duration::from_secs(1);
/// How often a free id is looked for when the server chooses it.
const ID_ATTEMPTS_MAX: usize = 8;

/// A granted lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGranted {
    /// Its id.
    pub id: LeaseId,
    /// The time to live that was granted, in seconds.
    pub ttl: i64,
    /// The newest revision.
    pub revision: Revision,
}

/// What TimeToLive tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseTtl {
    /// Seconds left, rounded down.
    pub ttl: i64,
    /// Seconds granted.
    pub granted_ttl: i64,
    /// The attached keys, sorted, if they were asked for.
    pub keys: Vec<Bytes>,
}

impl Engine {
    /// Grants a lease of `ttl` seconds, at least the minimum; the server chooses the id if it is 0.
    ///
    /// # Errors
    /// `LeaseExists`, and those of every write.
    pub async fn lease_grant(&self, id: LeaseId, ttl: i64) -> Result<LeaseGranted, Error> {
        let ttl = ttl.max(self.shared.options.lease_ttl_min);
        for _ in 0..ID_ATTEMPTS_MAX {
            let chosen = if id == 0 { random_id() } else { id };
            match self.shared.submit_revision(Command::LeaseGrant { id: chosen, ttl }).await {
                Ok(revision) => return Ok(LeaseGranted { id: chosen, ttl, revision }),
                Err(Error::LeaseExists) if id == 0 => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::LeaseExists)
    }

    /// Revokes a lease and deletes its keys in one revision. Answers the newest revision.
    ///
    /// # Errors
    /// `LeaseNotFound`, and those of every write.
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<Revision, Error> {
        self.shared.submit_revision(Command::LeaseRevoke { id }).await
    }

    /// Gives a lease its full time again. Answers its time to live in seconds, or `None` when there is no such lease (or it has
    /// expired and is about to go).
    ///
    /// # Errors
    /// Those of every write: the first renewal after a grant is stored, so that a restart doesn't end the lease early.
    pub async fn lease_renew(&self, id: LeaseId) -> Result<Option<i64>, Error> {
        let read = Read::begin("lease_keepalive", &[]);
        loop {
            let mut confirmed = Instant::now();
            self.confirm_lease_read(&read).await?;
            let stored = {
                let lessor = self.shared.lessor.lock();
                lessor.needs_store(id, self.shared.clock.now())
            };
            if let Some(ttl) = stored {
                confirmed = Instant::now();
                match self.shared.submit_revision(Command::LeaseRenewed { id, ttl }).await {
                    Ok(_) => {}
                    Err(Error::LeaseNotFound) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            let renewed = self.shared.lessor.lock().renew(id, self.shared.clock.now());
            // A process that was stopped just now may have been replaced, and its successor counts from an earlier moment.
            if confirmed.elapsed() < RENEWAL_FRESH && self.is_still_confirmed() {
                self.shared.metrics.lease.renewed_total.inc_by(u64::from(renewed.is_some()));
                return Ok(renewed);
            }
            if read.asked.elapsed() >= self.shared.options.request_timeout {
                return Err(Error::Timeout);
            }
        }
    }

    /// What is left of a lease; `None` when there is no such lease.
    ///
    /// # Errors
    /// Those of a linearizable read.
    pub async fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Result<Option<LeaseTtl>, Error> {
        let read = Read::begin("lease_timetolive", &[]);
        loop {
            self.confirm_lease_read(&read).await?;
            let found = {
                let lessor = self.shared.lessor.lock();
                lessor.time_to_live(id, self.shared.clock.now()).map(|(ttl, granted_ttl)| {
                    let keys = if keys { lessor.keys(id) } else { Vec::new() };
                    LeaseTtl { ttl, granted_ttl, keys }
                })
            };
            if self.is_still_confirmed() {
                return Ok(found);
            }
        }
    }

    /// All leases, the one that expires first in front.
    ///
    /// # Errors
    /// Those of a linearizable read.
    pub async fn leases(&self) -> Result<Vec<LeaseId>, Error> {
        let read = Read::begin("lease_leases", &[]);
        loop {
            self.confirm_lease_read(&read).await?;
            let leases = self.shared.lessor.lock().leases();
            if self.is_still_confirmed() {
                return Ok(leases);
            }
        }
    }
}

impl Engine {
    /// The right to read; what else leases' reads do takes no time.
    async fn confirm_lease_read(&self, read: &Read<'_>) -> Result<(), Error> {
        let confirmed = self.read_barrier().await;
        self.shared.tell_slow_read(read, read.asked.elapsed(), confirmed.is_err());
        confirmed
    }
}

/// A positive id. The standard library's hasher is seeded from the system's random source; a number that nobody can guess isn't
/// needed, one that hardly ever repeats is.
fn random_id() -> LeaseId {
    let hash = RandomState::new().hash_one(std::time::SystemTime::now());
    i64::try_from(hash >> 1).expect("63 bits fit").max(1)
}
