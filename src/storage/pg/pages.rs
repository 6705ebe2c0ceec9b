//! Reading the log page by page: on any session, and all of it as it is at one moment.

use std::time::Duration;

use bytes::Bytes;
use deadpool_postgres::ClientWrapper;

use super::reader::within;
use super::recover::{COLUMNS, row};
use super::session::{asked, unavailable};
use crate::storage::{BoxFuture, LogError, LogRow, RowsPage, Snapshot};
use crate::types::{Rev, Revision};

/// Rows asked for in one statement.
const STATEMENT_ROWS_MAX: usize = 1000;
/// Bytes of rows asked for in one statement, at least.
const STATEMENT_BYTES_MIN: i64 = 64 << 10;
/// PostgreSQL itself ends a snapshot whose holder asks for nothing for so long: dead rows stay while it is held.
const BEGIN: &str = "SET idle_in_transaction_session_timeout = '60s'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// The first statement takes the snapshot.
const TAKE: &str = "SELECT 1";

/// As [`crate::storage::Reader::rows`]; each statement has `deadline`.
pub async fn page(
    client: &ClientWrapper,
    from: Revision,
    to: Revision,
    max_bytes: usize,
    deadline: Duration,
) -> Result<RowsPage, LogError> {
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let mut page = Page { rows: Vec::new(), bytes: 0 };
    let mut after = Rev::new(from, -1);
    loop {
        // A revision that goes on beyond the limit is completed in steps of a decent size.
        let limit = (max_bytes - page.bytes).max(STATEMENT_BYTES_MIN);
        let Chunk { rows, more, compacted } = within(deadline, chunk(client, after, to, limit)).await?;
        after = rows.last().map_or(after, |row| row.rev);
        let full = page.add(rows, max_bytes);
        if full || !more {
            return Ok(RowsPage { rows: page.rows, more: full, compacted });
        }
    }
}

struct Chunk {
    rows: Vec<LogRow>,
    /// There may be more.
    more: bool,
    compacted: Revision,
}

/// Rows after place `after` up to revision `to`, as many as fit, but at least one if there is any.
async fn chunk(client: &ClientWrapper, after: Rev, to: Revision, max_bytes: i64) -> Result<Chunk, LogError> {
    // octet_length doesn't read a value that is stored out of line; the sum is known before any value is.
    let sql = format!(
        "SELECT {COLUMNS} FROM (SELECT *, coalesce(sum(octet_length(key) + coalesce(octet_length(value), 0)) OVER \
         (ORDER BY rev, sub ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM \
         (SELECT {COLUMNS} FROM duet.log WHERE (rev, sub) > ($1, $2) AND rev <= $3 ORDER BY rev, sub LIMIT {STATEMENT_ROWS_MAX}) l) l \
         WHERE before < $4 ORDER BY rev, sub"
    );
    let rows = client.prepare_cached(&sql).await.map_err(unavailable)?;
    let compacted = client.prepare_cached("SELECT compacted FROM duet.meta").await.map_err(unavailable)?;
    // Both are sent at once; the server answers them in this order.
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&after.main, &after.sub, &to, &max_bytes];
    let answers = asked(|| async { tokio::try_join!(client.query(&rows, &parameters), client.query_one(&compacted, &[])) });
    let (found, compacted) = answers.await.map_err(unavailable)?;
    let rows: Vec<LogRow> = found.iter().map(row).collect::<Result<_, _>>()?;
    let more = rows.len() == STATEMENT_ROWS_MAX || rows.iter().map(row_bytes).sum::<i64>() >= max_bytes;
    Ok(Chunk { rows, more, compacted: compacted.try_get(0).map_err(unavailable)? })
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

/// A session in a transaction that sees one moment; dropping it ends both.
pub struct PgSnapshot {
    client: ClientWrapper,
    deadline: Duration,
}

impl PgSnapshot {
    /// `client` belongs to no pool.
    pub async fn begin(client: ClientWrapper, deadline: Duration) -> Result<Self, LogError> {
        let begun = async {
            client.batch_execute(BEGIN).await?;
            client.batch_execute(TAKE).await
        };
        within(deadline, async { begun.await.map_err(unavailable) }).await?;
        Ok(Self { client, deadline })
    }
}

impl Snapshot for PgSnapshot {
    fn rows(&mut self, from: Revision, to: Revision, max_bytes: usize) -> BoxFuture<'_, Result<RowsPage, LogError>> {
        Box::pin(page(&self.client, from, to, max_bytes, self.deadline))
    }
}
