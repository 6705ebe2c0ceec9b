//! The read side: a bounded pool of sessions that read values and ranges of the log; and one that deletes for compaction.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use futures_util::FutureExt as _;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;

use super::pages::{PgSnapshot, page};
use super::params::Array;
use super::session::{Session, asked, text, unavailable};
use super::{PgOptions, compact};
use crate::storage::{BoxFuture, DiskUsage, Leader, LogError, Reader, RowsPage, Snapshot};
use crate::types::{Epoch, Rev, Revision};

/// How long a read waits for a free session, and for a new one.
const POOL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a deletion may take.
const DELETE_DEADLINE: Duration = Duration::from_secs(20);
/// Values asked for in one statement.
const STATEMENT_VALUES_MAX: usize = 1000;

/// Plans that follow the primary key, whatever the statistics say: the table's rows are few and cheap to find by it, and a
/// plan that sorts or scans the whole log is never right here.
pub const SESSION: &str = "SET search_path = pg_catalog; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
    SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
    SET default_transaction_isolation = 'read committed';";

const VALUES: &str = "SELECT u.at, l.value FROM unnest($1::bigint[], $2::int[]) WITH ORDINALITY AS u(rev, sub, at) \
    JOIN duet.log l ON l.rev = u.rev AND l.sub = u.sub";

/// See the module.
pub struct PgReader {
    options: PgOptions,
    pool: Pool,
    deleting: Mutex<Deleting>,
}

/// For deletions, which commit: a session whose notices are looked at.
#[derive(Default)]
struct Deleting {
    /// Begun when the first is asked for.
    session: Option<Session>,
    /// The end of one that was given up: until then its server is still at it, and another one would only wait behind it.
    given_up: Option<CancellationToken>,
}

impl PgReader {
    /// Connects to nothing yet.
    pub fn new(options: PgOptions) -> Result<Self, LogError> {
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(options.config_for_any().into_owned(), options.tls.clone(), manager_config);
        let pool = Pool::builder(manager)
            .max_size(options.readers_max)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(POOL_DEADLINE))
            .create_timeout(Some(POOL_DEADLINE))
            .recycle_timeout(Some(POOL_DEADLINE))
            .post_create(Hook::async_fn(|client, _| {
                Box::pin(async move {
                    let settings = format!("{SESSION} SET application_name = 'duet reader'; SET statement_timeout = '30s';");
                    client.batch_execute(&settings).await.map_err(HookError::Backend)
                })
            }))
            .build()
            .map_err(|e| LogError::Unavailable(e.to_string()))?;
        Ok(Self { options, pool, deleting: Mutex::default() })
    }

    async fn client(&self) -> Result<Object, LogError> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_postgres::PoolError::Backend(e) => unavailable(e),
            other => LogError::Unavailable(other.to_string()),
        })
    }

    /// Bounds the wait for a server that stands still: `statement_timeout` is kept by the server alone.
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
        within(self.options.read_deadline, answer).await
    }

    /// The present writer; None when no session holds the writer's lock.
    pub async fn leader(&self) -> Result<Option<Leader>, LogError> {
        let client = self.client().await?;
        let sql = "SELECT advertise, cluster_id FROM duet.meta WHERE EXISTS (SELECT FROM pg_locks l, pg_database d \
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND d.datname = current_database() AND d.oid = l.database \
            AND l.classid::bigint << 32 | l.objid::bigint = $1)";
        let found = async {
            let statement = client.prepare_cached(sql).await?;
            client.query_opt(&statement, &[&super::WRITER_LOCK]).await
        };
        match self.answered(async { Ok(found.await) }).await? {
            Ok(row) => Ok(row.map(|row| Leader { urls: row.get(0), cluster_id: row.get::<_, i64>(1).cast_unsigned() })),
            // No schema: nobody ever wrote.
            Err(e) if [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].iter().any(|s| e.code() == Some(s)) => Ok(None),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// As [`Reader::values`]. What isn't there is asked for again once it is known that it could be: a standby may not have replayed it.
    async fn all_values(&self, revs: &[Rev]) -> Result<Vec<Option<Bytes>>, LogError> {
        let values = self.values_of(revs).await?;
        let missing = revs.iter().zip(&values).filter(|(_, value)| value.is_none()).map(|(rev, _)| rev.main).max();
        let Some(needed) = missing else { return Ok(values) };
        let newest = self.newest_revision().await?;
        if newest < needed {
            return Err(LogError::Unavailable(format!("revision {needed} isn't there yet, only {newest}")));
        }
        self.values_of(revs).await
    }

    async fn newest_revision(&self) -> Result<Revision, LogError> {
        let client = self.client().await?;
        let sql = "SELECT greatest(1, compacted, (SELECT rev FROM duet.log ORDER BY rev DESC, sub DESC LIMIT 1)) FROM duet.meta";
        let found = async {
            let statement = client.prepare_cached(sql).await?;
            asked(|| client.query_one(&statement, &[])).await?.try_get(0)
        };
        found.await.map_err(unavailable)
    }

    async fn values_of(&self, revs: &[Rev]) -> Result<Vec<Option<Bytes>>, LogError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(VALUES).await.map_err(unavailable)?;
        let mut values = vec![None; revs.len()];
        for (chunk, out) in revs.chunks(STATEMENT_VALUES_MAX).zip(values.chunks_mut(STATEMENT_VALUES_MAX)) {
            let (main, sub) = rev_arrays(chunk);
            let parameters: [&(dyn ToSql + Sync); 2] = [&main, &sub];
            for found in asked(|| client.query(&statement, &parameters)).await.map_err(unavailable)? {
                let at: i64 = found.try_get(0).map_err(unavailable)?;
                let value: Option<&[u8]> = found.try_get(1).map_err(unavailable)?;
                if let Some(slot) = usize::try_from(at - 1).ok().and_then(|at| out.get_mut(at)) {
                    *slot = value.map(Bytes::copy_from_slice);
                }
            }
        }
        Ok(values)
    }
}

/// Bounds a wait.
pub(super) async fn within<T>(deadline: Duration, answer: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
    let late = || LogError::Unavailable(format!("no answer from PostgreSQL within {deadline:?}"));
    tokio::time::timeout(deadline, answer).await.unwrap_or_else(|_| Err(late()))
}

impl Reader for PgReader {
    fn values(&self, revs: Vec<Rev>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, LogError>> {
        Box::pin(async move { self.answered(self.all_values(&revs)).await })
    }

    fn newest(&self) -> BoxFuture<'_, Result<Revision, LogError>> {
        Box::pin(self.answered(self.newest_revision()))
    }

    fn rows(&self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>> {
        Box::pin(async move { page(&*self.client().await?, from, to, max_bytes, self.options.read_deadline).await })
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Box<dyn Snapshot>, LogError>> {
        Box::pin(async move {
            // Closed with its transaction at the end, not given back.
            let client = Object::take(self.client().await?);
            Ok(Box::new(PgSnapshot::begin(client, self.options.read_deadline).await?) as Box<dyn Snapshot>)
        })
    }

    fn delete(&self, epoch: Epoch, revs: Vec<Rev>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let deadline = self.options.read_deadline.min(DELETE_DEADLINE);
            let mut deleting = self.deleting.lock().await;
            if let Some(end) = &deleting.given_up {
                within(deadline, end.cancelled().map(Ok)).await?;
            }
            deleting.given_up = None;
            let session = match deleting.session.take().filter(|session| session.health.check().is_ok()) {
                Some(session) => session,
                None => compact::session(&self.options).await?,
            };
            // Also if whoever has asked for this doesn't wait for it to its end.
            deleting.given_up = Some(session.ended.clone());
            let deleted = within(deadline, compact::delete(&session, epoch, &revs)).await;
            if matches!(deleted, Ok(()) | Err(LogError::Deposed(_))) {
                *deleting = Deleting { session: Some(session), given_up: None };
            }
            deleted
        })
    }

    fn disk_usage(&self) -> BoxFuture<'_, Result<DiskUsage, LogError>> {
        Box::pin(async move {
            let client = self.client().await?;
            let sql = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c \
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'duet' AND c.relkind = 'r'";
            let found = async {
                let statement = client.prepare_cached(sql).await.map_err(unavailable)?;
                client.query_one(&statement, &[]).await.map_err(unavailable)
            };
            let found = self.answered(found).await?;
            Ok(DiskUsage { total: found.try_get(0).map_err(unavailable)? })
        })
    }

    fn defragment(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let session = Session::connect(&self.options).await?;
            let done = compact::defragment(&session.client).await;
            session.close().await;
            done.map_err(|error| LogError::Unavailable(text(&error)))
        })
    }
}

/// `revs` as the two arrays that statements take.
pub fn rev_arrays(revs: &[Rev]) -> (Array<'_, Rev>, Array<'_, Rev>) {
    let put_main: fn(&Rev, &mut bytes::BytesMut) -> bool = |rev, out| {
        out.put_i64(rev.main);
        true
    };
    let put_sub: fn(&Rev, &mut bytes::BytesMut) -> bool = |rev, out| {
        out.put_i32(rev.sub);
        true
    };
    (Array { items: revs, put: put_main }, Array { items: revs, put: put_sub })
}
