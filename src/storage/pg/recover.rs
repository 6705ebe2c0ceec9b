//! Reading the whole log, or its tail, at the start of a session: streamed, in bounded chunks, and checked to be whole.

use bytes::Bytes;
use futures_util::{TryStreamExt, pin_mut};
use tokio_postgres::{Client, Row};

use super::session::unavailable;
use super::writer::Statements;
use crate::storage::{LogError, LogRow};
use crate::types::{Rev, Revision};

const CHUNK_ROWS_MAX: usize = 1000;
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// The columns of [`row`], in its order.
pub const COLUMNS: &str = "rev, sub, key, value, create_rev, version, lease";

/// Streams the rows after revision `after`. The session holds the writer's lock and does nothing else meanwhile, so that nothing
/// is appended or compacted.
pub async fn recover(
    client: &Client,
    statements: &Statements,
    after: Revision,
    sink: &mut (dyn FnMut(Vec<LogRow>) + Send),
) -> Result<(), LogError> {
    let compacted: Revision =
        client.query_one(&statements.compacted, &[]).await.and_then(|row| row.try_get(0)).map_err(unavailable)?;
    let rows = client.query_raw(&statements.tail, [after]).await.map_err(unavailable)?;
    pin_mut!(rows);
    let mut chunk = Vec::new();
    let mut chunk_bytes = 0;
    // Compaction thins out what is at or below its revision; everything above it must be there. Revision 1 is the empty store.
    let mut last = after.max(compacted).max(1);
    while let Some(found) = rows.try_next().await.map_err(unavailable)? {
        let found = row(&found)?;
        let revision = found.rev.main;
        if revision > last + 1 {
            return Err(hole(last + 1));
        }
        last = last.max(revision);
        chunk_bytes += found.key.len() + found.value.as_ref().map_or(0, Bytes::len);
        chunk.push(found);
        if chunk.len() >= CHUNK_ROWS_MAX || chunk_bytes >= CHUNK_BYTES_MAX {
            sink(std::mem::take(&mut chunk));
            chunk_bytes = 0;
        }
    }
    if !chunk.is_empty() {
        sink(chunk);
    }
    Ok(())
}

fn hole(revision: Revision) -> LogError {
    LogError::Unusable(format!(
        "the log in the database has no revision {revision}, though it has later ones: rows of duet.log were lost or deleted by hand; \
         restore the database from a backup"
    ))
}

/// Reads one row. Values are copied out of the message that they came in, so that keeping one doesn't keep the message.
pub fn row(row: &Row) -> Result<LogRow, LogError> {
    let read = || -> Result<LogRow, tokio_postgres::Error> {
        Ok(LogRow {
            rev: Rev::new(row.try_get(0)?, row.try_get(1)?),
            key: Bytes::copy_from_slice(row.try_get(2)?),
            value: row.try_get::<_, Option<&[u8]>>(3)?.map(Bytes::copy_from_slice),
            create_revision: row.try_get(4)?,
            version: row.try_get(5)?,
            lease: row.try_get(6)?,
        })
    };
    read().map_err(unavailable)
}
