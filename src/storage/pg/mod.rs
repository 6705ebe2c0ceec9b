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
//! | `opened` | a session for writing, as ready as it can be before anything may be written |
//! | `schema` | tables, migrations, views for people |
//! | `writer`, `params` | batches |
//! | `recover` | reading the log at the start |
//! | `reader` | reading values and ranges |
//! | `compact` | deleting |

mod compact;
mod dsn;
mod opened;
mod pages;
mod params;
mod reader;
mod recover;
mod schema;
mod session;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::{Client, Statement};

pub use self::dsn::{DsnError, PgOptions};
use self::opened::{Ahead, Opened};
use self::reader::PgReader;
use self::session::unavailable;
pub use self::session::{asked, text};
use self::writer::{PgWriter, Statements};
use super::{AlarmRow, BoxFuture, Leader, LeaseRow, Log, LogError, Meta, Reader, Writer};
use crate::types::Epoch;

/// The advisory lock of the one writer ("duet" in ASCII, then 1).
const WRITER_LOCK: i64 = 0x6475_6574_0000_0001;
/// How often a replica that stands by asks for the lock. Waiting inside PostgreSQL would hold a snapshot for as long as it
/// waits, and no dead row could be removed anywhere in that database.
const LOCK_POLL: Duration = Duration::from_millis(100);
/// How long each step of taking over may take. The barrier waits for the standby, if there is one.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// See the module.
pub struct PgLog {
    options: PgOptions,
    reader: Arc<PgReader>,
    /// What the next session for writing begins with, if [`Log::prepare`] was asked for it.
    ahead: Mutex<Option<Ahead>>,
}

impl PgLog {
    /// Connects to nothing yet.
    pub fn new(options: PgOptions) -> Result<Self, LogError> {
        Ok(Self { reader: Arc::new(PgReader::new(options.clone())?), options, ahead: Mutex::new(None) })
    }

    async fn acquire_session(&self, wait: bool, advertise: Vec<String>) -> Result<Box<dyn Writer>, LogError> {
        let ahead = self.ahead.lock().take();
        let Opened { session, lock: ask, statements } = match ahead {
            Some(ahead) => ahead.session(&self.options).await?,
            None => Opened::new(&self.options).await?,
        };
        lock(&session.client, &ask, wait).await?;
        let version = statements.as_ref().map(|statements| &statements.version);
        let is_new = step("preparing the schema", schema::ensure(&session.client, version)).await?;
        let statements = match statements.filter(|_| !is_new) {
            Some(statements) => statements,
            None => step("preparing statements", Statements::new(&session.client)).await?,
        };
        session.health.count_warnings();
        let (epoch, wrote_before) = step("the barrier write", barrier(&session.client, &statements.barrier, advertise)).await?;
        let meta = Meta { wrote_before, ..step("reading what is stored", meta(&session.client, &statements, epoch)).await? };
        // A warning since: the barrier may not have reached the standby.
        session.health.check().map_err(|e| LogError::Unavailable(e.to_string()))?;
        tracing::info!(epoch, "the writer's session has begun");
        Ok(Box::new(PgWriter::new(session, statements, meta)))
    }
}

impl Log for PgLog {
    fn acquire(&self, wait: bool, advertise: Vec<String>) -> BoxFuture<'_, Result<Box<dyn Writer>, LogError>> {
        Box::pin(self.acquire_session(wait, advertise))
    }

    fn prepare(&self) {
        *self.ahead.lock() = Some(Ahead::begin(self.options.clone()));
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

async fn lock(client: &Client, ask: &Statement, wait: bool) -> Result<(), LogError> {
    loop {
        let row =
            step("asking for the writer's lock", async { client.query_one(ask, &[&WRITER_LOCK]).await.map_err(unavailable) })
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
async fn barrier(client: &Client, barrier: &Statement, advertise: Vec<String>) -> Result<(Epoch, Vec<String>), LogError> {
    let row = client.query_one(barrier, &[&advertise]).await.map_err(unavailable)?;
    Ok((row.get(0), row.get(1)))
}

async fn meta(client: &Client, statements: &Statements, epoch: Epoch) -> Result<Meta, LogError> {
    let (row, leases, alarms) = tokio::try_join!(
        client.query_one(&statements.meta, &[]),
        client.query(&statements.leases, &[]),
        client.query(&statements.alarms, &[]),
    )
    .map_err(unavailable)?;
    if row.get::<_, Epoch>(2) != epoch {
        return Err(LogError::Deposed("another writer raised the epoch".to_owned()));
    }
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
