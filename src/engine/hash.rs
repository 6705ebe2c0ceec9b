//! HashKV: etcd's CRC-32C over the key space at a revision, computed the same way, so that it equals an etcd's with the same history.
//!
//! Like etcd it remembers, until it restarts, the hashes that it took while it compacted, of the last ten compactions: at those
//! revisions HashKV answers what stood there before the compaction. A compaction that would have to read too much back for that, or
//! that overtook another, is not remembered.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

use super::{Engine, Error, Shared};
use crate::mvcc::{HashScope, HashStep, ReadView, Value, Version, key_value};
use crate::proto::mvccpb::KeyValue;
use crate::types::{Rev, Revision};

/// How many keys are looked at under one hold of the store.
const KEYS_PER_STEP: usize = 1000;
/// How many rows are hashed between two looks at storage.
const ROWS_PER_CHUNK: usize = 1000;
/// How often the hash begins anew when a compaction overtakes it.
const ATTEMPTS_MAX: usize = 5;
/// How many compactions' hashes are remembered (etcd: `hashStorageMaxSize`).
const REMEMBERED_MAX: usize = 10;
/// How many bytes of values a compaction may read back from storage for its hash.
const COMPACTION_READ_BACK_MAX: usize = 64 << 20;

/// A hash, and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    /// CRC-32C.
    pub hash: u32,
    /// The compact revision that was taken into account.
    pub compact_revision: Revision,
    /// The revision up to which rows were hashed.
    pub hash_revision: Revision,
    /// The newest revision.
    pub revision: Revision,
}

/// The hashes of the last compactions, by revision: hash and the compact revision before.
#[derive(Debug, Default)]
pub(super) struct CompactionHashes(BTreeMap<Revision, (u32, Revision)>);

impl CompactionHashes {
    fn remember(&mut self, scope: HashScope, hash: u32) {
        self.0.insert(scope.at, (hash, scope.compacted));
        while self.0.len() > REMEMBERED_MAX {
            self.0.pop_first();
        }
    }
}

impl Engine {
    /// etcd's other hash, of its whole backend, of which only the key space is there.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn hash(&self) -> Result<KvHash, Error> {
        self.compute_hash(0).await
    }

    /// The hash at `revision` (0: the newest).
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `Storage`.
    pub async fn hash_kv(&self, revision: Revision) -> Result<KvHash, Error> {
        let remembered = self.shared.compaction_hashes.lock().0.get(&revision).copied();
        if let Some((hash, compact_revision)) = remembered {
            return Ok(KvHash { hash, compact_revision, hash_revision: revision, revision: self.revision() });
        }
        let timer = self.shared.metrics.mvcc.hash_rev_duration_seconds.start_timer();
        let hash = self.compute_hash(revision).await;
        if hash.is_ok() {
            timer.observe_duration();
        } else {
            timer.stop_and_discard();
        }
        hash
    }

    async fn compute_hash(&self, revision: Revision) -> Result<KvHash, Error> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(hash) = self.try_hash_kv(revision).await? {
                return Ok(hash);
            }
        }
        Err(Error::Storage("compactions kept overtaking the hash".into()))
    }

    /// `None` when a compaction came in between.
    async fn try_hash_kv(&self, revision: Revision) -> Result<Option<KvHash>, Error> {
        let shared = &self.shared;
        let (current, compacted) = {
            let store = shared.store.read();
            (store.current(), store.compacted())
        };
        if revision > 0 && revision < compacted {
            return Err(Error::Compacted);
        }
        if revision > current {
            return Err(Error::FutureRevision);
        }
        // Below zero there is nothing, and that has a hash too, as in etcd.
        let at = if revision == 0 { current } else { revision };
        let rows = shared.hashed_rows(HashScope { compacted, at, compacting: false }, usize::MAX).await.unwrap_or_default();
        if shared.store.read().compacted() != compacted {
            return Ok(None);
        }
        let hash = shared.hash_rows(&rows).await?;
        Ok(hash.map(|hash| KvHash { hash, compact_revision: compacted, hash_revision: at, revision: current }))
    }
}

impl Shared {
    /// Takes and remembers the hash of a compaction whose rows are still there, if it is the only one since the last sweep.
    pub(super) async fn hash_compaction(&self, at: Revision) {
        let compacted = self.store.read().compacted_before();
        if compacted >= at || compacted != *self.swept.borrow() {
            return;
        }
        let scope = HashScope { compacted, at, compacting: true };
        let Some(rows) = self.hashed_rows(scope, COMPACTION_READ_BACK_MAX).await else { return };
        // Another writer may have gone on meanwhile, and what was gathered be of two states.
        if self.store.read().compacted() != at {
            return;
        }
        match self.hash_rows(&rows).await {
            Ok(Some(hash)) => self.compaction_hashes.lock().remember(scope, hash),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, revision = at, "the compaction's hash isn't remembered"),
        }
    }

    /// The rows that a hash covers, in history order. What a scope covers never changes before the next compaction, so the keys are
    /// looked at a few at a time, and no write waits for all of them. `None` as soon as more than `evicted_max` bytes of them would have
    /// to be read back from storage.
    async fn hashed_rows(&self, scope: HashScope, evicted_max: usize) -> Option<Vec<(Bytes, Version)>> {
        let mut gathered = HashStep::default();
        let mut evicted = 0;
        loop {
            let step = self.store.read().hash_step(scope, gathered.next.as_ref(), KEYS_PER_STEP);
            evicted += step
                .rows
                .iter()
                .filter(|(_, version)| is_evicted(version))
                .map(|(_, version)| version.value.len())
                .sum::<usize>();
            if evicted > evicted_max {
                return None;
            }
            gathered.join(step);
            if gathered.next.is_none() {
                return Some(gathered.finish());
            }
            tokio::task::yield_now().await;
        }
    }

    /// `None` when a value was compacted away while the hash was on its way.
    async fn hash_rows(&self, rows: &[(Bytes, Version)]) -> Result<Option<u32>, Error> {
        let mut crc = crc32c::crc32c(b"key");
        for chunk in rows.chunks(ROWS_PER_CHUNK) {
            let evicted: Vec<Rev> =
                chunk.iter().filter(|(_, version)| is_evicted(version)).map(|(_, version)| version.rev).collect();
            let loaded = self.load_values(evicted).await?;
            for (key, version) in chunk {
                let value = match &version.value {
                    Value::Resident(value) => value.clone(),
                    Value::Evicted(_) => match loaded.get(&version.rev) {
                        Some(value) => value.clone(),
                        None => return Ok(None),
                    },
                };
                crc = crc32c::crc32c_append(crc, &bucket_key(version));
                let kv = if version.is_tombstone() {
                    KeyValue { key: key.clone(), ..KeyValue::default() }
                } else {
                    key_value(key, version, value)
                };
                crc = crc32c::crc32c_append(crc, &kv.encode_to_vec());
            }
            tokio::task::yield_now().await;
        }
        Ok(Some(crc))
    }
}

fn is_evicted(version: &Version) -> bool {
    matches!(version.value, Value::Evicted(_))
}

/// The key under which etcd's backend would hold the row: big-endian main, `_`, big-endian sub, and `t` for a tombstone.
fn bucket_key(version: &Version) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&version.rev.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&i64::from(version.rev.sub).to_be_bytes());
    if version.is_tombstone() {
        key.push(b't');
    }
    key
}
