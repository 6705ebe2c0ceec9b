//! The read side: a bounded pool of sessions that read values and ranges of the log, and that delete for compaction.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::error::SqlState;

use super::params::Array;
use super::recover::{COLUMNS, row};
use super::session::{Session, text, unavailable};
use super::{PgOptions, compact};
use crate::storage::{BoxFuture, DiskUsage, LogError, LogRow, Reader, RowsPage};
use crate::types::{Epoch, Rev, Revision};

/// How long a read waits for a free session, and for a new one.
const POOL_DEADLINE: Duration = Duration::from_secs(10);
/// Values or rows asked for in one statement.
const STATEMENT_ROWS_MAX: usize = 1000;
/// Bytes of rows asked for in one statement, at least.
const STATEMENT_BYTES_MIN: i64 = 64 << 10;

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
}

impl PgReader {
    /// Connects to nothing yet.
    pub fn new(options: PgOptions) -> Result<Self, LogError> {
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(options.config.clone(), options.tls.clone(), manager_config);
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
        Ok(Self { options, pool })
    }

    async fn client(&self) -> Result<deadpool_postgres::Object, LogError> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_postgres::PoolError::Backend(e) => unavailable(e),
            other => LogError::Unavailable(other.to_string()),
        })
    }

    /// Bounds the wait for a server that stands still: `statement_timeout` is kept by the server alone.
    async fn answered<T>(&self, answer: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
        let deadline = self.options.read_deadline;
        tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(LogError::Unavailable(format!("no answer from PostgreSQL within {deadline:?}"))))
    }

    /// The present writer's client URLs; None when no session holds the writer's lock.
    pub async fn leader(&self) -> Result<Option<Vec<String>>, LogError> {
        let client = self.client().await?;
        let sql = "SELECT advertise FROM duet.meta WHERE EXISTS (SELECT FROM pg_locks l, pg_database d \
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND d.datname = current_database() AND d.oid = l.database \
            AND l.classid::bigint << 32 | l.objid::bigint = $1)";
        let found = async {
            let statement = client.prepare_cached(sql).await?;
            client.query_opt(&statement, &[&super::WRITER_LOCK]).await
        };
        match self.answered(async { Ok(found.await) }).await? {
            Ok(row) => Ok(row.map(|row| row.get(0))),
            // No schema: nobody ever wrote.
            Err(e) if [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME].iter().any(|s| e.code() == Some(s)) => Ok(None),
            Err(e) => Err(unavailable(e)),
        }
    }

    async fn values_of(&self, revs: &[Rev]) -> Result<Vec<Option<Bytes>>, LogError> {
        let client = self.client().await?;
        let statement = client.prepare_cached(VALUES).await.map_err(unavailable)?;
        let mut values = vec![None; revs.len()];
        for (chunk, out) in revs.chunks(STATEMENT_ROWS_MAX).zip(values.chunks_mut(STATEMENT_ROWS_MAX)) {
            let (main, sub) = rev_arrays(chunk);
            for found in client.query(&statement, &[&main, &sub]).await.map_err(unavailable)? {
                let at: i64 = found.try_get(0).map_err(unavailable)?;
                let value: Option<&[u8]> = found.try_get(1).map_err(unavailable)?;
                if let Some(slot) = usize::try_from(at - 1).ok().and_then(|at| out.get_mut(at)) {
                    *slot = value.map(Bytes::copy_from_slice);
                }
            }
        }
        Ok(values)
    }

    /// Rows after place `after` up to revision `to`, as many as fit, but at least one if there is any; and whether there may be
    /// more.
    async fn chunk(&self, after: Rev, to: Revision, max_bytes: i64) -> Result<(Vec<LogRow>, bool), LogError> {
        let client = self.client().await?;
        // octet_length doesn't read a value that is stored out of line; the sum is known before any value is.
        let sql = format!(
            "SELECT {COLUMNS} FROM (SELECT *, coalesce(sum(octet_length(key) + coalesce(octet_length(value), 0)) OVER \
             (ORDER BY rev, sub ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM \
             (SELECT {COLUMNS} FROM duet.log WHERE (rev, sub) > ($1, $2) AND rev <= $3 ORDER BY rev, sub LIMIT {STATEMENT_ROWS_MAX}) l) l \
             WHERE before < $4 ORDER BY rev, sub"
        );
        let statement = client.prepare_cached(&sql).await.map_err(unavailable)?;
        let found = client.query(&statement, &[&after.main, &after.sub, &to, &max_bytes]).await.map_err(unavailable)?;
        let rows: Vec<LogRow> = found.iter().map(row).collect::<Result<_, _>>()?;
        let more = rows.len() == STATEMENT_ROWS_MAX || rows.iter().map(row_bytes).sum::<i64>() >= max_bytes;
        Ok((rows, more))
    }

    /// As [`Reader::rows`].
    async fn page(&self, from: Revision, to: Revision, max_bytes: usize) -> Result<RowsPage, LogError> {
        let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
        let mut page = Page { rows: Vec::new(), bytes: 0 };
        let mut after = Rev::new(from, -1);
        loop {
            // A revision that goes on beyond the limit is completed in steps of a decent size.
            let limit = (max_bytes - page.bytes).max(STATEMENT_BYTES_MIN);
            let (rows, more) = self.answered(self.chunk(after, to, limit)).await?;
            after = rows.last().map_or(after, |row| row.rev);
            if page.add(rows, max_bytes) {
                return Ok(RowsPage { rows: page.rows, more: true });
            }
            if !more {
                return Ok(RowsPage { rows: page.rows, more: false });
            }
        }
    }
}

fn row_bytes(row: &LogRow) -> i64 {
    i64::try_from(row.key.len() + row.value.as_ref().map_or(0, Bytes::len)).unwrap_or(i64::MAX)
}

struct Page {
    rows: Vec<LogRow>,
    bytes: i64,
}

impl Page {
    /// Adds rows; true when the page is full and ends with a whole revision.
    fn add(&mut self, rows: Vec<LogRow>, max_bytes: i64) -> bool {
        for row in rows {
            let starts_revision = self.rows.last().is_some_and(|last| last.rev.main != row.rev.main);
            if starts_revision && self.bytes >= max_bytes {
                return true;
            }
            self.bytes += row_bytes(&row);
            self.rows.push(row);
        }
        false
    }
}

impl Reader for PgReader {
    fn values(&self, revs: Vec<Rev>) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, LogError>> {
        Box::pin(async move { self.answered(self.values_of(&revs)).await })
    }

    fn rows(&self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>> {
        Box::pin(self.page(from, to, max_bytes))
    }

    fn delete(&self, epoch: Epoch, revs: Vec<Rev>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let client = self.client().await?;
            self.answered(compact::delete(&client, epoch, &revs)).await
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
