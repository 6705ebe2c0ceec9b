//! `duet dev`: one node with a PostgreSQL of its own and no peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{self, Loaded};
use super::server::{self, Prepared, StopSignals};
use super::{Failure, runtime};
use crate::config::Config;
use crate::engine::ReadRight;
use crate::storage::pg::{PgLog, PgOptions};
use crate::supervisor::postgres::{Postgres, PostgresOptions, RestartBudget};

const USAGE: &str = "duet dev [flags]";
/// How long PostgreSQL may take to stop in order: it writes a checkpoint.
const POSTGRES_STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the command.
///
/// # Errors
/// Exit codes as `--help` lists them.
pub fn run(args: &[String]) -> Result<(), Failure> {
    match load::load(args, USAGE)? {
        None => Ok(()),
        Some(loaded) => {
            check(&loaded.config)?;
            serve(loaded)
        }
    }
}

/// Refuses what this command can't start with, as far as that can be seen without a start.
pub(super) fn check(config: &Config) -> Result<(), Failure> {
    if config.external.is_some() {
        return Err(Failure::usage("--database belongs to duet serve; duet dev runs a PostgreSQL of its own"));
    }
    server::check(config)
}

/// Serves from a PostgreSQL of its own until told to stop; also what runs under the name etcd.
///
/// # Errors
/// As [`run`].
pub fn serve(loaded: Loaded) -> Result<(), Failure> {
    loaded.start_logging()?;
    runtime()?.block_on(node(loaded.config))
}

async fn node(config: Config) -> Result<(), Failure> {
    let mut signals = StopSignals::new(&config)?;
    let prepared = Prepared::new(config)?;
    let config = prepared.config();
    if !config.embedded.fsync {
        tracing::warn!("running without fsync: data is lost when the machine stops");
    }
    let began = Instant::now();
    let options = postgres_options(config);
    let postgres = tokio::select! {
        started = Postgres::start(options) => started?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before PostgreSQL was up");
            return Ok(());
        }
    };
    tracing::info!(
        version = %postgres.version(),
        user = postgres.account().name,
        socket = %postgres.socket_dir().display(),
        took = ?began.elapsed(),
        "PostgreSQL is up"
    );
    let log = PgOptions::local(postgres.connect_config())
        .map_err(|error| Failure::serving(error.to_string()))
        .and_then(|options| PgLog::new(options).map_err(|error| Failure::serving(error.to_string())));
    let outcome = match log {
        Ok(log) => {
            let engine = prepared.engine(Arc::new(log), ReadRight::Exclusive, None);
            prepared.run(engine, None, kept_running(&postgres), &mut signals).await
        }
        Err(failure) => Err(failure),
    };
    let stopped = postgres.stop(POSTGRES_STOP_TIMEOUT).await;
    tracing::info!(postgres = ?stopped, "stopped");
    outcome
}

pub(super) fn postgres_options(config: &Config) -> PostgresOptions {
    let embedded = config.embedded.clone();
    let mut options = PostgresOptions::new(&config.data_dir);
    options.bin_dir = embedded.bin_dir;
    options.user = embedded.user;
    options.shared_buffers_bytes = embedded.shared_buffers.map(|size| size.0);
    options.fsync = embedded.fsync;
    options
}

/// Starts PostgreSQL again when it ends; resolves when that has become hopeless.
async fn kept_running(postgres: &Postgres) -> Failure {
    match postgres.keep_running(RestartBudget::default()).await {
        Ok(()) => Failure::serving("PostgreSQL was stopped by somebody else"),
        Err(error) => error.into(),
    }
}
