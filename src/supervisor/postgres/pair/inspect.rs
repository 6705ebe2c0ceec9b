//! What a running PostgreSQL is set to and how its replication is, for `duet check`.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::PairPostgres;

/// A check may be kept waiting longer than a heartbeat.
const DEADLINE: Duration = Duration::from_secs(2);
const SETTINGS: [&str; 14] = [
    "data_checksums",
    "data_sync_retry",
    "fsync",
    "full_page_writes",
    "hot_standby_feedback",
    "max_slot_wal_keep_size",
    "max_wal_size",
    "recovery_min_apply_delay",
    "restart_after_crash",
    "ssl",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_level",
    "wal_log_hints",
];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// It replays what a leader writes.
    pub in_recovery: bool,
    /// By name, in PostgreSQL's own units.
    pub settings: BTreeMap<String, String>,
    /// The peer's replication slot.
    pub slot: Option<Slot>,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Somebody streams from it.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// WAL that is kept for it.
    pub kept_bytes: u64,
}

impl PairPostgres {
    /// Looks.
    ///
    /// # Errors
    /// PostgreSQL doesn't answer; why, for people.
    pub async fn inspect(&self) -> Result<Inspection, String> {
        let looked = async {
            let client = self.shared.connect().await?;
            let settings = client.query("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", &[&&SETTINGS[..]]).await?;
            let slot = client
                .query_opt(
                    "SELECT active, coalesce(wal_status, 'lost'), coalesce(pg_wal_lsn_diff( \
                       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint \
                     FROM pg_replication_slots WHERE slot_name = $1",
                    &[&self.shared.network.peer_name],
                )
                .await?;
            let slot = slot.map(|row| -> Result<Slot, tokio_postgres::Error> {
                let kept: i64 = row.try_get(2)?;
                Ok(Slot { active: row.try_get(0)?, wal_status: row.try_get(1)?, kept_bytes: u64::try_from(kept).unwrap_or(0) })
            });
            Ok::<_, tokio_postgres::Error>(Inspection {
                in_recovery: client.query_one("SELECT pg_is_in_recovery()", &[]).await?.try_get(0)?,
                settings: settings
                    .iter()
                    .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
                    .collect::<Result<_, tokio_postgres::Error>>()?,
                slot: slot.transpose()?,
            })
        };
        match timeout(DEADLINE, looked).await {
            Ok(found) => found.map_err(|error| crate::storage::pg::text(&error)),
            Err(_) => Err(format!("PostgreSQL doesn't answer within {DEADLINE:?}")),
        }
    }
}
