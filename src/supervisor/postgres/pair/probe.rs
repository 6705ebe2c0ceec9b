//! What PostgreSQL says of itself, and whether it answers at all.
//!
//! Two signs of life are asked for: an answer on a session that is there, and a new session. With only the postmaster stopped, old
//! sessions go on committing, and nobody new gets in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_postgres::{Client, NoTls, Row, Statement};

use super::super::Status;
use super::super::network::PEER_ROLE;
use super::Shared;
use crate::storage::pg::asked;

const SILENT: &str = "PostgreSQL doesn't answer";
/// Between two tries to get in anew.
const KNOCK: Duration = Duration::from_millis(200);
/// A tick that is so late tells that this process was stopped: the silence was its own.
const LATE: Duration = Duration::from_millis(300);

/// A position: bytes of WAL.
const LSN: &str =
    "(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0')::bigint";

/// What was found at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub in_recovery: bool,
    pub timeline: u32,
    pub sync_names: String,
    /// A primary's flushed end of WAL; what a standby has received and flushed.
    pub flushed: u64,
    /// A primary's end of WAL, flushed or not; what a standby has replayed.
    pub edge: u64,
    /// The standby that streams from this primary, and what it has flushed.
    pub peer_flushed: Option<u64>,
    /// The process that receives from the leader, while it streams.
    pub receiver: Option<i32>,
    /// Sessions that wait for a standby.
    pub waiting: i64,
    /// Processes that wait for the disk to take WAL.
    pub flushing: i64,
}

/// A session for looking; clones share it.
#[derive(Clone)]
pub(super) struct Session {
    client: Arc<Client>,
    look: Statement,
    /// How long an answer may take.
    silence_max: Duration,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("silence_max", &self.silence_max).finish_non_exhaustive()
    }
}

impl Shared {
    /// A session in which nothing waits for the standby.
    pub(super) async fn connect(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.postgres.connect_config().connect(NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session of the supervisor's ended");
            }
        });
        client.batch_execute("SET application_name = 'duet supervisor'; SET lock_timeout = '1s'").await?;
        Ok(client)
    }

    /// A session that can look.
    pub(super) async fn session(&self) -> Result<Session, String> {
        let silence_max = self.silence_max;
        let open = async {
            let client = asked(|| self.connect()).await?;
            let sql = format!(
                "SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names'), coalesce({LSN}, 0), \
                   coalesce((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0')::bigint, 0), \
                   (SELECT (flush_lsn - '0/0')::bigint FROM pg_stat_replication \
                      WHERE application_name = '{}' AND usename = '{PEER_ROLE}' AND state = 'streaming' \
                      ORDER BY flush_lsn DESC NULLS LAST LIMIT 1), \
                   (SELECT pid FROM pg_stat_wal_receiver WHERE status = 'streaming'), \
                   (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'), \
                   (SELECT count(*) FROM pg_stat_activity \
                      WHERE lower(wait_event) IN ('walsync', 'walwrite', 'walinitwrite', 'walinitsync')), \
                   coalesce((SELECT received_tli FROM pg_stat_wal_receiver), \
                     CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint()) \
                     ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END)",
                self.network.peer_name
            );
            let look = asked(|| client.prepare(&sql)).await?;
            Ok::<_, tokio_postgres::Error>(Session { client: Arc::new(client), look, silence_max })
        };
        match timeout(silence_max, open).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(crate::storage::pg::text(&error)),
            Err(_) => Err(format!("no session within {silence_max:?}")),
        }
    }
}

impl Session {
    /// Looks once.
    pub(super) async fn look(&self) -> Result<Seen, String> {
        let row = answered(self.silence_max, || self.client.query_one(&self.look, &[])).await?;
        seen(&row).map_err(|error| crate::storage::pg::text(&error))
    }

    /// The answer to a question of one boolean.
    pub(super) async fn asks(&self, sql: &str) -> Result<bool, String> {
        let row = answered(self.silence_max, || self.client.query_one(sql, &[])).await?;
        row.try_get(0).map_err(|error| crate::storage::pg::text(&error))
    }

    /// Executes what changes nothing that a client could see.
    pub(super) async fn execute(&self, sql: &str) -> Result<(), String> {
        answered(Duration::from_secs(5), || self.client.batch_execute(sql)).await
    }
}

/// As [`asked`], within `deadline`.
async fn answered<T, F: Future<Output = Result<T, tokio_postgres::Error>>>(
    deadline: Duration,
    ask: impl Fn() -> F,
) -> Result<T, String> {
    match timeout(deadline, asked(ask)).await {
        Ok(answer) => answer.map_err(|error| crate::storage::pg::text(&error)),
        Err(_) => Err(SILENT.to_owned()),
    }
}

fn seen(row: &Row) -> Result<Seen, tokio_postgres::Error> {
    let position = |at: usize| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
    Ok(Seen {
        in_recovery: row.try_get(0)?,
        sync_names: row.try_get(1)?,
        flushed: position(2)?,
        edge: position(3)?,
        peer_flushed: row.try_get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
        receiver: row.try_get(5)?,
        waiting: row.try_get(6)?,
        flushing: row.try_get(7)?,
        timeline: row.try_get::<_, i32>(8)?.cast_unsigned(),
    })
}

/// Resolves when PostgreSQL has ended.
pub(super) async fn exited(mut status: watch::Receiver<Status>) {
    let _ = status.wait_for(|status| matches!(status, Status::Exited(_) | Status::Stopped)).await;
}

/// Resolves when somebody new has waited in vain for too long.
pub(super) async fn locked_out(shared: Arc<Shared>) {
    loop {
        let knocked_at = Instant::now();
        let config = shared.postgres.connect_config();
        let knock = async {
            let connected = config.connect(NoTls).await;
            // A refusal in PostgreSQL's own words is a sign of life, too. Anything else is its end, which others notice.
            connected.is_ok() || connected.is_err_and(|error| error.as_db_error().is_some())
        };
        let answered = timeout(shared.silence_max, knock).await.is_ok();
        let forgiven = knocked_at.elapsed() > shared.silence_max + LATE;
        if !answered && !forgiven {
            return;
        }
        tokio::time::sleep(KNOCK).await;
    }
}
