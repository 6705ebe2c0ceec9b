//! `duet serve`: the engine and the façade over somebody else's PostgreSQL, in any number of replicas.
//!
//! PostgreSQL itself says who writes: the engine waits for the writer's lock. Until it has it, requests are forwarded to
//! the replica that does, whose URLs stand beside the lock.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::load::{self, Loaded};
use super::server::{Prepared, StopSignals};
use super::{Failure, runtime};
use crate::config::{Config, ExternalDatabase};
use crate::engine::{Engine, ReadRight, Role};
use crate::net::proxy::{Answering, Upstream};
use crate::net::tls;
use crate::storage::Log;
use crate::storage::pg::{PgLog, PgOptions};
use crate::telemetry::metrics::Metrics;

const USAGE: &str = "duet serve --database postgres://… [flags]";
/// How often a replica looks who the writer is.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// How long that look may take.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5);
/// libpq's variable for the password; the option's own sources are the file and the connection string.
const PASSWORD_VARIABLE: &str = "PGPASSWORD";

/// Runs the command.
///
/// # Errors
/// Exit codes as `--help` lists them.
pub fn run(args: &[String]) -> Result<(), Failure> {
    let Some(loaded) = load::load(args, USAGE)? else { return Ok(()) };
    let Loaded { config, .. } = &loaded;
    let Some(external) = config.external.clone() else {
        return Err(Failure::usage(
            "--database is needed: the PostgreSQL to serve from, such as postgres://duet@db1,db2/duet; duet dev runs one of its own",
        ));
    };
    if loaded.config.tls.as_ref().is_some_and(|tls| tls.self_signed.is_some()) {
        return Err(Failure::usage(
            "--auto-tls can't be used with duet serve: replicas couldn't verify each other's certificates; name one with --cert-file \
             and --key-file",
        ));
    }
    let options = pg_options(&external)?;
    loaded.start_logging()?;
    runtime()?.block_on(replica(loaded.config, options))
}

fn pg_options(external: &ExternalDatabase) -> Result<PgOptions, Failure> {
    let password = match &external.password_file {
        None => std::env::var(PASSWORD_VARIABLE).ok(),
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|error| {
                Failure::usage(format!(
                    "can't read the password file {}: {error}; check --database-password-file",
                    path.display()
                ))
            })?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    PgOptions::from_dsn(external.dsn.expose(), password.as_deref())
        .map_err(|error| Failure::usage(format!("--database: {error}")))
}

async fn replica(config: Config, options: PgOptions) -> Result<(), Failure> {
    let mut signals = StopSignals::new(&config)?;
    let prepared = Prepared::new(config)?;
    let advertised = prepared.advertised();
    if advertised.iter().all(|url| url.contains("://127.") || url.contains("://0.0.0.0") || url.contains("://[::")) {
        tracing::warn!(
            urls = advertised.join(","),
            "other replicas can't reach this one by its advertised URLs; with several on different machines, set --advertise-client-urls"
        );
    }
    let log: Arc<dyn Log> = Arc::new(PgLog::new(options).map_err(|error| Failure::serving(error.to_string()))?);
    let client_tls = prepared.config().tls.as_ref().map(tls::client_config).transpose()?;
    let engine = prepared.engine(Arc::clone(&log), ReadRight::Confirm, None);
    let (sender, answering) = watch::channel(Answering::Nobody);
    let following = tokio::spawn(follow(engine.clone(), log, client_tls, sender, prepared.metrics().clone()));
    let outcome = prepared.run(engine, Some(answering), std::future::pending(), &mut signals).await;
    following.abort();
    outcome
}

/// Keeps `answering` true: here while this process is the writer, else wherever the writer is.
async fn follow(
    engine: Engine,
    log: Arc<dyn Log>,
    client_tls: Option<Arc<rustls::ClientConfig>>,
    answering: watch::Sender<Answering>,
    metrics: Metrics,
) {
    let mut role = engine.role();
    let mut leader: Option<Vec<String>> = None;
    loop {
        let here = matches!(*role.borrow_and_update(), Role::Active | Role::Recovering);
        if here {
            leader = None;
            answering.send_replace(Answering::Here);
            if role.changed().await.is_err() {
                return;
            }
            answering.send_replace(Answering::Nobody);
            continue;
        }
        let found = tokio::time::timeout(FOLLOW_TIMEOUT, log.leader()).await;
        let found = found.ok().and_then(Result::ok).flatten();
        if found != leader {
            tracing::info!(writer = found.as_ref().map(|urls| urls.join(",")), "the writer has changed");
            metrics.server.leader_changes_seen_total.inc_by(u64::from(found.is_some()));
            answering.send_replace(upstream(found.as_deref(), client_tls.as_ref()));
            leader = found;
        }
        tokio::select! {
            changed = role.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
    }
}

/// Connections to the first of the writer's URLs that can be used.
fn upstream(urls: Option<&[String]>, tls: Option<&Arc<rustls::ClientConfig>>) -> Answering {
    for url in urls.unwrap_or_default() {
        match Upstream::new(url, tls.cloned()) {
            Ok(upstream) => return Answering::There(upstream),
            Err(error) => tracing::warn!(error, "can't forward to the writer's URL"),
        }
    }
    Answering::Nobody
}
