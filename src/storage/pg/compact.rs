//! Deleting what compaction made obsolete, in small steps on a reader's session, beside the writer.
//!
//! A step may be done twice, but never be lost once it has been answered: memory then no longer knows its rows, and an old version whose
//! tombstone a later step takes would look alive. So its commit waits, on a pair for the standby as well. A key's rows go oldest first,
//! for the same reason. Measured against the alternatives in docs/adr/0003-compaction.md.

use deadpool_postgres::Object;
use tokio_postgres::Client;

use super::reader::rev_arrays;
use super::session::unavailable;
use crate::storage::LogError;
use crate::types::{Epoch, Rev};

/// The epoch is checked in the same snapshot that finds the rows: rows of a later epoch are seen only with their epoch. The message is WAL of
/// its own: a step that finds its rows deleted already, by a try whose wait for the standby was given up, has to wait, too.
const DELETE: &str = "WITH ok AS MATERIALIZED (SELECT set_config('synchronous_commit', 'on', true) FROM duet.meta WHERE epoch = $1), \
    gone AS (DELETE FROM duet.log l USING ok, unnest($2::bigint[], $3::int[]) AS u(rev, sub) WHERE l.rev = u.rev AND l.sub = u.sub) \
    SELECT 1 FROM ok, pg_logical_emit_message(true, 'duet', '')";

/// Deletes these rows if `epoch` is the current one.
pub async fn delete(client: &Object, epoch: Epoch, revs: &[Rev]) -> Result<(), LogError> {
    if revs.is_empty() {
        return Ok(());
    }
    let statement = client.prepare_cached(DELETE).await.map_err(unavailable)?;
    let (main, sub) = rev_arrays(revs);
    match client.execute(&statement, &[&epoch, &main, &sub]).await.map_err(unavailable)? {
        1 => Ok(()),
        _ => Err(LogError::Deposed(format!("epoch {epoch} is over"))),
    }
}

/// Gives dead rows' room back to the table, and the index's empty room to the disk, without blocking writes.
pub async fn defragment(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("SET statement_timeout = 0").await?;
    for statement in ["VACUUM duet.log", "VACUUM duet.lease", "VACUUM duet.meta", "REINDEX INDEX CONCURRENTLY duet.log_pkey"] {
        client.batch_execute(statement).await?;
    }
    Ok(())
}
