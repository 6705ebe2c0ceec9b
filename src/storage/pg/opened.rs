//! A session for writing, as ready as it can be before anything may be written: at a standby that is being promoted, too.

use tokio::time::{Duration, Instant, timeout};
use tokio_postgres::{Client, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::session::{Session, unavailable};
use super::writer::Statements;
use super::{PgOptions, reader, step};
use crate::storage::LogError;

/// One that was made ready longer ago isn't used: its settings may be of another time.
const FRESH: Duration = Duration::from_secs(30);
/// One that isn't ready so long after it is wanted is given up for another.
const PATIENCE: Duration = Duration::from_secs(2);

/// The oldest minor versions that never skip the wait for the standby, as PostgreSQL's server_version_num.
const FIRST_GOOD: [(i32, i32); 3] = [(15, 150_013), (16, 160_009), (17, 170_005)];

/// Settings of the writer's session: no limit may end a batch at a moment of its own choosing but the wait for a lock, which
/// certainly applies nothing; a dead peer is noticed from both ends; no parallel worker, which connects anew and may so warn of the
/// database in the middle of the session; warnings are sent, whatever the role, the database or a file asks for, because the only sign
/// of a commit whose wait for the standby was cancelled is one.
const SETTINGS: &str = "SET application_name = 'duet writer'; SET client_min_messages = warning; \
    SET statement_timeout = 0; SET lock_timeout = '10s'; \
    SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0; SET default_transaction_read_only = off; \
    SET work_mem = '64MB'; SET enable_sort = off; SET max_parallel_workers_per_gather = 0; \
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; SET tcp_user_timeout = '10s'; \
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply'); \
    SELECT set_config('transaction_timeout', '0', false) FROM pg_settings WHERE name = 'transaction_timeout'; \
    SELECT set_config('duet.batch', '0', false)";

/// Its settings are those of a writer. It holds no lock yet.
pub struct Opened {
    pub session: Session,
    /// Asks for the writer's lock.
    pub lock: Statement,
    /// If the tables are there already.
    pub statements: Option<Statements>,
}

impl Opened {
    pub async fn new(options: &PgOptions) -> Result<Self, LogError> {
        let session = Session::connect(options).await?;
        step("setting up the session", async {
            session.client.batch_execute(&format!("{} {SETTINGS}", reader::SESSION)).await.map_err(unavailable)
        })
        .await?;
        let has_tables = step("looking at the server", check_server(&session.client)).await?;
        let lock = step("asking for the writer's lock", async {
            session.client.prepare("SELECT pg_try_advisory_lock($1)").await.map_err(unavailable)
        });
        let lock = lock.await?;
        let statements = match has_tables {
            // Without a right to them, it is for the schema's steps to say so.
            true => step("preparing statements", Statements::new(&session.client)).await.ok(),
            false => None,
        };
        Ok(Self { session, lock, statements })
    }
}

/// One that is being made ready.
pub struct Ahead {
    since: Instant,
    opening: AbortOnDropHandle<Result<Opened, LogError>>,
}

impl Ahead {
    pub fn begin(options: PgOptions) -> Self {
        let opening = AbortOnDropHandle::new(tokio::spawn(async move { Opened::new(&options).await }));
        Self { since: Instant::now(), opening }
    }

    /// It, or another if nothing came of it.
    pub async fn session(self, options: &PgOptions) -> Result<Opened, LogError> {
        if self.since.elapsed() < FRESH
            && let Ok(Ok(Ok(opened))) = timeout(PATIENCE, self.opening).await
            && !opened.session.ended.is_cancelled()
        {
            return Ok(opened);
        }
        Opened::new(options).await
    }
}

/// Refuses a server that can lose what was acknowledged; whether it has the tables.
async fn check_server(client: &Client) -> Result<bool, LogError> {
    let sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
               current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on', \
               EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'duet' AND c.relname = 'meta')";
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
    Ok(row.get(3))
}
