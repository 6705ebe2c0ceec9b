//! Deleting what compaction made obsolete, in small steps on a session of its own, beside the writer.
//!
//! A step may be done twice, but never be lost once it has been answered: memory then no longer knows its rows, and an old version whose
//! tombstone a later step takes would look alive. So its commit waits, on a pair for the standby as well, and a warning makes the step
//! fail: a wait that was cancelled looks like one that has come to its end. A key's rows go oldest first, for the same reason. Measured
//! against the alternatives in docs/adr/0003-compaction.md.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::PgOptions;
use super::reader::{self, rev_arrays};
use super::session::{Session, unavailable};
use crate::storage::LogError;
use crate::types::{Epoch, Rev};

/// The epoch is checked in the same snapshot that finds the rows: rows of a later epoch are seen only with their epoch. The message is WAL of
/// its own: a step that finds its rows deleted already, by a try whose wait for the standby was given up, has to wait, too.
const DELETE: &str = "WITH ok AS MATERIALIZED (SELECT set_config('synchronous_commit', 'on', true) FROM duet.meta WHERE epoch = $1), \
    gone AS (DELETE FROM duet.log l USING ok, unnest($2::bigint[], $3::int[]) AS u(rev, sub) WHERE l.rev = u.rev AND l.sub = u.sub) \
    SELECT 1 FROM ok, pg_logical_emit_message(true, 'duet', '')";

/// No limit of the server's own may end a step, and it may warn.
const SETTINGS: &str = "SET application_name = 'duet compactor'; SET client_min_messages = warning; SET statement_timeout = 0; \
    SET lock_timeout = '10s'; SET default_transaction_read_only = off;";

/// A session for [`delete`].
pub async fn session(options: &PgOptions) -> Result<Session, LogError> {
    let session = Session::connect(options).await?;
    session.client.batch_execute(&format!("{} {SETTINGS}", reader::SESSION)).await.map_err(unavailable)?;
    session.health.count_warnings();
    Ok(session)
}

/// Deletes these rows if `epoch` is the current one.
pub async fn delete(session: &Session, epoch: Epoch, revs: &[Rev]) -> Result<(), LogError> {
    if revs.is_empty() {
        return Ok(());
    }
    let (main, sub) = rev_arrays(revs);
    let typed: [(&(dyn ToSql + Sync), Type); 3] = [(&epoch, Type::INT8), (&main, Type::INT8_ARRAY), (&sub, Type::INT4_ARRAY)];
    let answer = session.client.query_typed(DELETE, &typed).await.map_err(unavailable)?;
    session.health.check()?;
    match answer.len() {
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
