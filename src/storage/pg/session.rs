//! One connection: its settings, its notices, and what its errors mean.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::PgOptions;
use crate::storage::LogError;

/// How long a new session may take until it can be used.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// How often [`asked`] asks again, and how soon.
const CONFLICTS_MAX: u32 = 20;
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);

/// Whether a session saw something which makes every commit since then uncertain.
#[derive(Clone, Default)]
pub struct Health(Arc<Seen>);

#[derive(Default)]
struct Seen {
    first: Mutex<Option<LogError>>,
    warnings_count: AtomicBool,
}

impl Health {
    /// The first thing that went wrong.
    pub fn check(&self) -> Result<(), LogError> {
        self.0.first.lock().clone().map_or(Ok(()), Err)
    }

    /// From now on a warning makes what is in flight uncertain. What PostgreSQL warned of before is about no commit that counts, but about
    /// the database, such as its collation's version when somebody connects, or about its making.
    ///
    /// All that the server said before its last answer has been looked at when that answer is here, so what comes later is about what is
    /// sent later.
    pub fn count_warnings(&self) {
        self.0.warnings_count.store(true, Ordering::Release);
    }

    /// Remembers the first thing that went wrong, and answers with `error`.
    pub fn fail(&self, error: LogError) -> LogError {
        let mut first = self.0.first.lock();
        if first.is_none() {
            *first = Some(match &error {
                // What made one batch fail is not what happens to the next ones: those certainly do nothing.
                LogError::Refused(why) | LogError::Full(why) => LogError::Refused(format!("an earlier batch failed: {why}")),
                other => other.clone(),
            });
        }
        error
    }
}

/// A connection whose notices are looked at.
pub struct Session {
    /// To send with; requests are pipelined.
    pub client: Arc<Client>,
    /// What the notices said.
    pub health: Health,
    /// Cancelled when the connection has ended.
    pub ended: CancellationToken,
    driver: JoinHandle<()>,
}

impl Session {
    /// Connects to a server that can be written to, or will be.
    pub async fn connect(options: &PgOptions) -> Result<Self, LogError> {
        let config = options.config_for_any();
        let connecting = config.connect(options.tls.clone());
        let (client, mut connection) = tokio::time::timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| LogError::Unavailable(format!("no connection to PostgreSQL within {CONNECT_DEADLINE:?}")))?
            .map_err(unavailable)?;
        let health = Health::default();
        let seen = health.clone();
        let ended = CancellationToken::new();
        let ending = ended.clone().drop_guard();
        let driver = tokio::spawn(async move {
            let _ending = ending;
            loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notice(notice))) => notice_seen(&seen, &notice),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        seen.fail(LogError::Unknown(format!("the connection was lost: {}", text(&error))));
                        return;
                    }
                    None => return,
                }
            }
        });
        Ok(Self { client: Arc::new(client), health, ended, driver })
    }

    /// Ends the session and waits until the server knows.
    pub async fn close(self) {
        let Self { client, driver, .. } = self;
        drop(client);
        let _ = tokio::time::timeout(Duration::from_secs(2), driver).await;
    }
}

/// PostgreSQL reports a commit whose wait for the standby was cancelled as a success with a WARNING. So, once a session commits, any
/// warning makes what is in flight unknown.
fn notice_seen(health: &Health, notice: &tokio_postgres::error::DbError) {
    if !matches!(notice.parsed_severity(), Some(Severity::Warning) | None) {
        return;
    }
    if health.0.warnings_count.load(Ordering::Acquire) {
        tracing::warn!(target: "postgres", "on the writer's session: {}", notice.message());
        health.fail(LogError::Unknown(format!("PostgreSQL warned: {}", notice.message())));
    } else {
        tracing::warn!(target: "postgres", "before the writer's session began: {}", notice.message());
    }
}

/// What an error on the writer's session means for the batch that it answers.
pub fn classify(error: &tokio_postgres::Error) -> LogError {
    let why = text(error);
    match error.as_db_error() {
        // An ERROR rolls the statement back before it answers; FATAL and PANIC can come from the commit itself.
        Some(db) if db.parsed_severity() == Some(Severity::Error) => match db.code() {
            &SqlState::DISK_FULL => LogError::Full(why),
            _ => LogError::Refused(why),
        },
        _ => LogError::Unknown(why),
    }
}

/// Asks again when replay cancels the question, as it may on a standby: what a query sees may be in the way of what the leader has changed.
pub async fn asked<T, F: Future<Output = Result<T, tokio_postgres::Error>>>(
    ask: impl Fn() -> F,
) -> Result<T, tokio_postgres::Error> {
    for _ in 0..CONFLICTS_MAX {
        match ask().await {
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => tokio::time::sleep(CONFLICT_PAUSE).await,
            answer => return answer,
        }
    }
    ask().await
}

/// For everything that changes nothing: a later try may succeed.
pub fn unavailable(error: tokio_postgres::Error) -> LogError {
    LogError::Unavailable(text(&error))
}

/// The error with its causes in one line; PostgreSQL's own words where there are some. Holds no parameter's value.
pub fn text(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
