//! HashKV: etcd's CRC-32C over the key space at a revision, computed the same way, so that it equals an etcd's with the same history.

use prost::Message;

use super::{Engine, Error};
use crate::mvcc::{ReadView, Value, Version, key_value};
use crate::proto::mvccpb::KeyValue;
use crate::types::{Rev, Revision};

/// How many rows are hashed between two looks at storage.
const ROWS_PER_CHUNK: usize = 1000;
/// How often the hash begins anew when a compaction overtakes it.
const ATTEMPTS_MAX: usize = 5;

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

impl Engine {
    /// The hash at `revision` (0: the newest).
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`, `Storage`.
    pub async fn hash_kv(&self, revision: Revision) -> Result<KvHash, Error> {
        let _timer = self.shared.metrics.mvcc.hash_rev_duration_seconds.start_timer();
        for _ in 0..ATTEMPTS_MAX {
            if let Some(hash) = self.try_hash_kv(revision).await? {
                return Ok(hash);
            }
        }
        Err(Error::Storage("compactions kept overtaking the hash".into()))
    }

    /// `None` when a value was compacted away while the hash was on its way.
    async fn try_hash_kv(&self, revision: Revision) -> Result<Option<KvHash>, Error> {
        let (rows, mut result) = {
            let store = self.shared.store.read();
            let (current, compacted) = (store.current(), store.compacted());
            if revision > 0 && revision < compacted {
                return Err(Error::Compacted);
            }
            if revision > current {
                return Err(Error::FutureRevision);
            }
            // Below zero there is nothing, and that has a hash too, as in etcd.
            let at = if revision == 0 { current } else { revision };
            let result = KvHash { hash: 0, compact_revision: compacted, hash_revision: at, revision: current };
            (store.hashable(at), result)
        };
        let mut crc = crc32c::crc32c(b"key");
        for chunk in rows.chunks(ROWS_PER_CHUNK) {
            let evicted: Vec<Rev> =
                chunk.iter().filter(|(_, version)| is_evicted(version)).map(|(_, version)| version.rev).collect();
            let loaded = self.shared.load_values(evicted).await?;
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
        result.hash = crc;
        Ok(Some(result))
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
