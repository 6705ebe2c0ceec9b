//! `duet serve`: the engine and the façade over somebody else's PostgreSQL, in any number of replicas.
//!
//! PostgreSQL itself says who writes: the engine waits for the writer's lock. Until it has it, requests are forwarded to
//! the replica that does, whose URLs stand beside the lock. The data directory holds no data, only what clients have been shown, so that
//! a database that has lost some of it is refused after a restart as well.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use tokio::sync::watch;

use super::load;
use super::server::{self, Prepared, StopSignals};
use super::{Failure, runtime};
use crate::config::{Config, ExternalDatabase};
use crate::net::proxy::Answering;
use crate::net::tls;
use crate::replica::{self, Examiner, Follow, Instance, Memory, Source, urls};
use crate::storage::Log;
use crate::storage::pg::{PgLog, PgOptions};

const USAGE: &str = "duet serve --database postgres://… [flags]";
/// libpq's variable for the password; the option's own sources are the file and the connection string.
const PASSWORD_VARIABLE: &str = "PGPASSWORD";

/// Runs the command.
///
/// # Errors
/// Exit codes as `--help` lists them.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let Some(loaded) = load::load(args, USAGE)? else { return Ok(()) };
    let options = check(&loaded.config)?;
    loaded.start_logging()?;
    runtime()?.block_on(replica(loaded.config, options))
}

/// Refuses what this command can't start with, as far as that can be seen without a start; else how to reach the database.
pub(super) fn check(config: &Config) -> Result<PgOptions, Failure> {
    let Some(external) = &config.external else {
        return Err(Failure::usage(
            "--database is needed: the PostgreSQL to serve from, such as postgres://duet@db1,db2/duet; duet dev runs one of its own",
        ));
    };
    if config.tls.as_ref().is_some_and(|tls| tls.self_signed.is_some()) {
        return Err(Failure::usage(
            "--auto-tls can't be used with duet serve: replicas couldn't verify each other's certificates; name one with --cert-file \
             and --key-file",
        ));
    }
    server::check(config)?;
    config.tls.as_ref().map(tls::client_config).transpose()?;
    pg_options(external)
}

/// The password is that of the file; without one, as with libpq, that of the connection string, and last the variable's.
fn pg_options(external: &ExternalDatabase) -> Result<PgOptions, Failure> {
    let of_file = external.password_file.as_deref().map(|path| {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("can't read the password file {}: {error}; check --database-password-file", path.display()))
        })?;
        Ok::<_, Failure>(text.trim_end_matches(['\r', '\n']).to_owned())
    });
    let options = PgOptions::from_dsn(external.dsn.expose(), of_file.transpose()?.as_deref())
        .map_err(|error| Failure::usage(format!("--database: {error}")))?;
    Ok(match std::env::var_os(PASSWORD_VARIABLE).filter(|password| !password.is_empty()) {
        Some(password) => options.or_password(password.as_bytes()),
        None => options,
    })
}

async fn replica(config: Config, options: PgOptions) -> Result<(), Failure> {
    let mut signals = StopSignals::new(&config)?;
    let mut prepared = Prepared::new(config)?;
    let advertised = prepared.advertised().to_vec();
    if !advertised.iter().any(|url| urls::leads_elsewhere(url)) {
        tracing::warn!(
            urls = advertised.join(","),
            "other machines can't reach this replica by its advertised URLs; with replicas on several, set --advertise-client-urls"
        );
    }
    let log: Arc<dyn Log> = Arc::new(PgLog::new(options).map_err(|error| Failure::serving(error.to_string()))?);
    let tls = prepared.client_tls()?;
    let memory = Arc::new(Memory::open(&prepared.config().data_dir));
    let recall = Examiner::new(Arc::clone(&memory), advertised, tls.clone());
    let engine = prepared.engine_of_replica(Arc::clone(&log), Arc::new(recall));
    let instance = Instance::new();
    prepared.serve_besides(replica::service(engine.clone(), Arc::clone(&memory), instance));
    let (sender, answers) = watch::channel(Answering::Nobody);
    let metrics = prepared.metrics().clone();
    let follow = Follow { engine: engine.clone(), log, memory: Arc::clone(&memory), instance, tls, metrics, answering: sender };
    let following = tokio::spawn(follow.run());
    let remembering = tokio::spawn(replica::keep(Arc::clone(&memory), engine.clone()));
    let refused = async {
        match following.await {
            Ok(Err(why)) => {
                tracing::error!("{why}");
                Failure::unusable(why)
            }
            // The engine's end is told by the engine.
            Ok(Ok(())) | Err(_) => std::future::pending().await,
        }
    };
    let outcome = prepared.run(engine.clone(), Some(answers), refused, &mut signals).await;
    remembering.abort();
    if let Some(seen) = engine.seen() {
        memory.learn(seen, Source::Here);
    }
    memory.save();
    outcome
}
