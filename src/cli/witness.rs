//! `duet witness`: the pair's third party. One thread, no data, a register for each pair in a small file.

use tokio_util::sync::CancellationToken;

use super::server::StopSignals;
use super::{Failure, load, start_pages, witness_begin};
use crate::config::{Config, ListenUrl, PairTlsFiles, TlsConfig};
use crate::net::tls::{self, Tls};
use crate::net::{Listeners, ServeOptions, SocketOptions, serve};
use crate::proto::duetpb::witness_server::WitnessServer;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::systemd::Systemd;
use crate::witness::service::WitnessService;
use crate::witness::store::{Store, StoreError};

const USAGE: &str = "duet witness --config-file FILE [flags]";
const USAGE_ALONE: &str = "duet-witness --config-file FILE [flags]";
/// Threads that wait for the disk: writes are one at a time anyway.
const BLOCKING_THREADS: usize = 2;

/// Runs the command.
///
/// # Errors
/// Exit codes as `--help` lists them.
pub fn run(args: &[String]) -> Result<(), Failure> {
    if let Some(rest) = args.strip_prefix(&["begin".to_owned()]) {
        return witness_begin::run(rest);
    }
    serve_registers(args, USAGE)
}

/// Runs the daemon as a program of its own.
///
/// # Errors
/// Exit codes as `--help` lists them.
pub fn run_alone(args: &[String]) -> Result<(), Failure> {
    serve_registers(args, USAGE_ALONE)
}

fn serve_registers(args: &[String], usage: &str) -> Result<(), Failure> {
    let Some(loaded) = load::load(args, usage)? else { return Ok(()) };
    let (tls, listen) = check(&loaded.config)?;
    loaded.start_logging()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let runtime = runtime.map_err(|error| Failure::serving(format!("can't start: {error}")))?;
    runtime.block_on(witness(loaded.config, tls, listen))
}

/// Refuses what this command can't start with, as far as that can be seen without a start; else the pair's certificates, and where to listen.
pub(super) fn check(config: &Config) -> Result<(TlsConfig, ListenUrl), Failure> {
    let Some(tls) = config.pair_tls.as_ref().map(PairTlsFiles::config) else {
        return Err(Failure::usage(
            "a witness needs --pair-cert-file, --pair-key-file and --pair-trusted-ca-file: only the pair's nodes may ask it; duet init makes them",
        ));
    };
    let Some(listen) = config.listen_peer.clone() else {
        return Err(Failure::usage(
            "--listen-peer-url is needed: where the pair's nodes reach this witness, such as https://0.0.0.0:2378",
        ));
    };
    tls::check(&tls)?;
    Ok((tls, listen))
}

async fn witness(config: Config, tls: TlsConfig, listen: ListenUrl) -> Result<(), Failure> {
    let mut signals = StopSignals::new(&config)?;
    let metrics = Metrics::new(&prometheus::Registry::new(), false)
        .map_err(|error| Failure::serving(format!("can't register metrics: {error}")))?;
    let tls = Tls::load(tls, metrics.clone())?;
    let listeners = Listeners::bind(&[listen], SocketOptions::default())?;
    let store = Store::open(&config.data_dir).map_err(|error| match error {
        StoreError::Locked(_) => Failure::locked(error.to_string()),
        StoreError::Spoilt { .. } => Failure::unusable(error.to_string()),
        other => Failure::serving(other.to_string()),
    })?;
    let urls = listeners.urls().join(",");
    let stop = CancellationToken::new();
    let options = ServeOptions::new(&config, Some(tls.clone()), metrics);
    let service = WitnessServer::new(WitnessService::new(store));
    let router = tonic::service::Routes::new(service).into_axum_router();
    let serving = tokio::spawn(serve(listeners, router, stop.clone(), options));
    tokio::spawn(tls.keep_fresh(stop.clone()));
    let systemd = Systemd::from_environment();
    tokio::spawn(systemd.clone().keep_alive());
    systemd.ready().await;
    tracing::info!(endpoints = urls, "the witness is ready");
    if let Err(error) = start_pages::give_back() {
        tracing::debug!(%error, "what only the start needed stays in memory");
    }
    let signal = signals.next().await;
    systemd.stopping();
    tracing::info!(signal, "stopping");
    stop.cancel();
    let _ = serving.await;
    Ok(())
}
