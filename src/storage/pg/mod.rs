//! The log in PostgreSQL, a server of one's own or anybody's.
//!
//! Invariants:
//! - The writer's session holds an advisory lock for as long as it lives, and does the writing itself: whoever holds the lock is
//!   the one writer, and a writer that lost its session can't write.
//! - Each batch is one statement, hence one transaction, that also checks the epoch and that the batch before it was committed.
//! - Nothing is cancelled; a warning or a lost connection makes what is in flight unknown.
//! - An error in the middle of a read is an error, never a short answer.
//!
//! | file | what it is |
//! |---|---|
//! | `dsn` | connection strings and TLS |
//! | `session` | a connection, its notices, what errors mean |
//! | `schema` | tables, migrations, views for people |
//! | `writer`, `params` | batches |
//! | `recover` | reading the log at the start |
//! | `reader` | reading values and ranges |
//! | `compact` | deleting |

mod compact;
mod dsn;
mod pages;
mod params;
mod reader;
mod recover;
mod schema;
mod session;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

pub use self::dsn::{DsnError, PgOptions};
use self::reader::PgReader;
pub use self::session::text;
use self::session::{Session, unavailable};
use self::writer::PgWriter;
use super::{AlarmRow, BoxFuture, Leader, LeaseRow, Log, LogError, Meta, Reader, Writer};
use crate::types::Epoch;

/// The advisory lock of the one writer ("duet" in ASCII, then 1).
const WRITER_LOCK: i64 = 0x6475_6574_0000_0001;
/// How often a replica that stands by asks for the lock. Waiting inside PostgreSQL would hold a snapshot for as long as it
/// waits, and no dead row could be removed anywhere in that database.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// How long each step of taking over may take. The barrier waits for the standby, if there is one.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// The oldest minor versions that never skip the wait for the standby, as PostgreSQL's server_version_num.
const FIRST_GOOD: [(i32, i32); 3] = [(15, 150_013), (16, 160_009), (17, 170_005)];

/// Settings of the writer's session: no limit may end a batch at a moment of its own choosing but the wait for a lock, which
/// certainly applies nothing; a dead peer is noticed from both ends; no parallel worker, which connects anew and may so warn of the
/// database in the middle of the session; warnings are sent, whatever the role, the database or a file asks for, because the only sign
/// of a commit whose wait for the standby was cancelled is one.
const WRITER_SESSION: &str = "SET application_name = 'duet writer'; SET client_min_messages = warning; \
    SET statement_timeout = 0; SET lock_timeout = '10s'; \
    SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; SET default_transaction_read_only = off; \
    SET work_mem = '64MB'; SET enable_sort = off; SET max_parallel_workers_per_gather = 0; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET tcp_user_timeout = '10s'; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply'); \
    SELECT set_config('transaction_timeout', '0', false) FROM pg_settings WHERE name = 'transaction_timeout';";

/// See the module.
pub struct PgLog {
    options: PgOptions,
    reader: Arc<PgReader>,
}

impl PgLog {
    /// Connects to nothing yet.
    pub fn new(options: PgOptions) -> Result<Self, LogError> {
        Ok(Self { reader: Arc::new(PgReader::new(options.clone())?), options })
    }

    async fn acquire_session(&self, wait: bool, advertise: Vec<String>) -> Result<Box<dyn Writer>, LogError> {
        let session = Session::connect(&self.options).await?;
        step("setting up the session", async {
            session.client.batch_execute(reader::SESSION).await.map_err(unavailable)?;
            session.client.batch_execute(WRITER_SESSION).await.map_err(unavailable)?;
            check_server(&session.client).await
        })
        .await?;
        lock(&session.client, wait).await?;
        step("preparing the schema", schema::ensure(&session.client)).await?;
        session.health.count_warnings();
        let (epoch, wrote_before) = step("the barrier write", barrier(&session.client, advertise)).await?;
        let meta = Meta { wrote_before, ..step("reading what is stored", meta(&session.client, epoch)).await? };
        // A warning since: the barrier may not have reached the standby.
        session.health.check().map_err(|e| LogError::Unavailable(e.to_string()))?;
        let writer = step("preparing statements", PgWriter::new(session, meta)).await?;
        tracing::info!(epoch, "the writer's session has begun");
        Ok(Box::new(writer))
    }
}

impl Log for PgLog {
    fn acquire(&self, wait: bool, advertise: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>> {
        Box::pin(self.acquire_session(wait, advertise))
    }

    fn leader(&self) -> BoxFuture<'_, Result<Option<Leader>, LogError>> {
        Box::pin(self.reader.leader())
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.reader.clone()
    }
}

async fn step<T>(what: &str, work: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
    tokio::time::timeout(STEP_DEADLINE, work)
        .await
        .unwrap_or_else(|_| Err(LogError::Unavailable(format!("{what} was not done within {STEP_DEADLINE:?}"))))
}

async fn check_server(client: &Client) -> Result<(), LogError> {
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
               current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on', current_setting('server_encoding')";
    let row = client.query_one(sql, &[]).await.map_err(unavailable)?;
    let (number, version): (i32, String) = (row.get(0), row.get(1));
    let too_old = number < 150_000 || FIRST_GOOD.iter().any(|(major, good)| number / 10_000 == *major && number < *good);
    if too_old {
        return Err(LogError::Unusable(format!(
            "PostgreSQL {version} can lose acknowledged writes at a failover (fixed in 15.13, 16.9 and 17.5): update the server"
        )));
    }
    if !row.get::<_, bool>(2) {
        tracing::warn!("the database runs with fsync or full_page_writes off: a power cut can destroy the store");
    }
    Ok(())
}

async fn lock(client: &Client, wait: bool) -> Result<(), LogError> {
    let sql = "SELECT pg_try_advisory_lock($1)";
    let statement = step("asking for the writer's lock", async { client.prepare(sql).await.map_err(unavailable) }).await?;
    loop {
        let row = step("asking for the writer's lock", async {
            client.query_one(&statement, &[&WRITER_LOCK]).await.map_err(unavailable)
        })
        .await?;
        if row.get(0) {
            return Ok(());
        }
        if !wait {
            return Err(LogError::Deposed("another session holds the writer's lock".to_owned()));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// Raises the epoch; it, and the URLs of whoever wrote before. The commit waits, as every commit of this session, for the disk and the
/// standby, and so for everything that any session before it committed.
async fn barrier(client: &Client, advertise: Vec<String>) -> Result<(Epoch, Vec<String>), LogError> {
    let sql = "WITH before AS (SELECT advertise FROM duet.meta) \
        UPDATE duet.meta SET epoch = epoch + 1, advertise = $1 RETURNING epoch, (SELECT advertise FROM before)";
    let row = client.query_one(sql, &[&advertise]).await.map_err(unavailable)?;
    Ok((row.get(0), row.get(1)))
}

async fn meta(client: &Client, epoch: Epoch) -> Result<Meta, LogError> {
    let sql = "SELECT cluster_id, member_id, epoch, compacted, lessor_clock, (SELECT rev FROM duet.log ORDER BY rev DESC LIMIT 1) FROM duet.meta";
    let row = client.query_one(sql, &[]).await.map_err(unavailable)?;
    if row.get::<_, Epoch>(2) != epoch {
        return Err(LogError::Deposed("another writer raised the epoch".to_owned()));
    }
    let leases = client.query("SELECT id, ttl, expiry FROM duet.lease ORDER BY id", &[]).await.map_err(unavailable)?;
    let alarms = client.query("SELECT member_id, alarm FROM duet.alarm ORDER BY 1, 2", &[]).await.map_err(unavailable)?;
    Ok(Meta {
        cluster_id: row.get::<_, i64>(0).cast_unsigned(),
        member_id: row.get::<_, i64>(1).cast_unsigned(),
        epoch,
        compacted: row.get(3),
        last_revision: row.get(5),
        leases: leases
            .iter()
            .map(|l| LeaseRow { id: l.get(0), ttl: l.get(1), expiry: l.get::<_, Option<i64>>(2).map(i64::cast_unsigned) })
            .collect(),
        alarms: alarms.iter().map(|a| AlarmRow { member_id: a.get::<_, i64>(0).cast_unsigned(), alarm: a.get(1) }).collect(),
        lessor_clock: row.get::<_, i64>(4).cast_unsigned(),
        wrote_before: Vec::new(),
    })
}
