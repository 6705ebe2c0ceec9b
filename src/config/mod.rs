//! Configuration: what users write, where they write it, and what the program makes of it.
//!
//! Flags over environment over a TOML file over defaults, or etcd's YAML file over defaults ([`raw`]), judged as a whole ([`validate`]) before anything is
//! bound or started. One table ([`options`]) feeds all of them. Invariants: a [`Config`] is valid; what is wrong names
//! the place, the key and the fix; no printed form holds a password. It deliberately can't be changed at run time,
//! except that certificates and CAs are read again by `net`.

pub mod ciphers;
pub mod error;
pub mod etcd_file;
pub mod options;
mod pair;
pub mod raw;
pub mod redact;
mod tls;
pub mod units;
pub mod url;
pub mod validate;
mod witness_url;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use error::ConfigError;
pub use options::{Kind, OPTIONS};
pub use pair::{HostPort, PairConfig, PairTlsFiles, network_address};
pub use raw::{Origin, Raw, Sources};
pub use units::ByteSize;
pub use url::{ListenAddress, ListenUrl};
pub use witness_url::{EtcdTls, EtcdUrl, KubernetesUrl, S3Url, WitnessUrl};

use crate::engine::AutoCompaction;
use crate::telemetry::log::{LogFormat, LogOutput};

/// Everything that a server needs to know, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--name`.
    pub name: String,
    /// `--data-dir`; never empty in a server, see [`Sources::defaults`].
    pub data_dir: PathBuf,
    /// `--listen-client-urls`; at least one.
    pub listen_client: Vec<ListenUrl>,
    /// `--listen-client-http-urls`; when there are any, the client URLs serve gRPC only.
    pub listen_client_http: Vec<ListenUrl>,
    /// `--listen-metrics-urls`.
    pub listen_metrics: Vec<ListenUrl>,
    /// `--advertise-client-urls`; empty means the bound listen URLs.
    pub advertise_client: Vec<String>,
    /// `--initial-advertise-peer-urls`.
    pub advertise_peer: Vec<String>,
    /// `--socket-reuse-port`.
    pub socket_reuse_port: bool,
    /// `--shutdown-timeout`.
    pub shutdown_timeout: Duration,
    /// `--database`, for `duet serve`.
    pub external: Option<ExternalDatabase>,
    /// For `duet node`: set when any of the pair's options is.
    pub pair: Option<PairConfig>,
    /// `--listen-peer-url`.
    pub listen_peer: Option<ListenUrl>,
    /// `--pair-cert-file`, `--pair-key-file` and `--pair-trusted-ca-file`, as a server of the pair's uses them.
    pub pair_tls: Option<PairTlsFiles>,
    /// For `duet dev` and under etcd's name.
    pub embedded: EmbeddedPostgres,
    /// `--value-cache-bytes`.
    pub value_cache_bytes: ByteSize,
    /// What a request may ask for.
    pub limits: Limits,
    /// HTTP/2 pings.
    pub keepalive: Keepalive,
    /// `--watch-progress-notify-interval`.
    pub watch_progress_notify_interval: Duration,
    /// Compaction.
    pub compaction: Compaction,
    /// The server's certificate; `None` without TLS.
    pub tls: Option<TlsConfig>,
    /// Logs.
    pub logging: Logging,
    /// `--metrics=extensive`.
    pub metrics_extensive: bool,
    /// `--warning-apply-duration`.
    pub warning_apply_duration: Duration,
    /// `--warning-unary-request-duration`.
    pub warning_unary_request_duration: Duration,
    /// What is worth telling about the configuration but isn't wrong.
    pub warnings: Vec<String>,
}

/// Somebody else's PostgreSQL.
#[derive(Clone, Debug)]
pub struct ExternalDatabase {
    /// `--database`.
    pub dsn: Secret,
    /// `--database-password-file`.
    pub password_file: Option<PathBuf>,
}

/// Duet's own PostgreSQL.
#[derive(Clone, Debug)]
pub struct EmbeddedPostgres {
    /// `--pg-bin-dir`; `None`: searched.
    pub bin_dir: Option<PathBuf>,
    /// `--pg-user`; `None`: chosen.
    pub user: Option<String>,
    /// `--pg-shared-buffers`; `None`: chosen by the machine's memory.
    pub shared_buffers: Option<ByteSize>,
    /// False with `--unsafe-no-fsync`.
    pub fsync: bool,
}

/// What a request may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `--quota-backend-bytes`; `None`: no quota.
    pub quota_backend_bytes: Option<ByteSize>,
    /// `--max-txn-ops`.
    pub max_txn_ops: usize,
    /// `--max-request-bytes`.
    pub max_request_bytes: ByteSize,
    /// `--max-concurrent-streams`.
    pub max_concurrent_streams: u32,
}

/// HTTP/2 pings.
#[derive(Clone, Debug)]
pub struct Keepalive {
    /// `--grpc-keepalive-interval`; `None`: the server doesn't ping.
    pub interval: Option<Duration>,
    /// `--grpc-keepalive-timeout`; `None`: an unanswered ping closes nothing.
    pub timeout: Option<Duration>,
}

/// Compaction.
#[derive(Clone, Debug)]
pub struct Compaction {
    /// `--auto-compaction-mode` and `--auto-compaction-retention`.
    pub auto: AutoCompaction,
    /// `--compaction-batch-limit`.
    pub batch_limit: usize,
    /// `--compaction-sleep-interval`.
    pub sleep_interval: Duration,
}

/// The files of TLS; read by `net`, and read again when they change.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// `--cert-file`.
    pub cert_file: PathBuf,
    /// `--key-file`.
    pub key_file: PathBuf,
    /// `--trusted-ca-file`.
    pub trusted_ca_file: Option<PathBuf>,
    /// `--client-cert-auth`, or a CA was named.
    pub client_cert_auth: bool,
    /// `--client-crl-file`.
    pub client_crl_file: Option<PathBuf>,
    /// `--client-cert-allowed-hostname`: a client's certificate must be for one of these; empty: for anything.
    pub client_cert_allowed_hostnames: Vec<String>,
    /// `--cipher-suites` for TLS 1.2; `None`: all that are safe.
    pub cipher_suites: Option<Vec<&'static str>>,
    /// `--auto-tls`: the two files are made when they don't exist.
    pub self_signed: Option<SelfSigned>,
    /// `--tls-min-version` allows TLS 1.2.
    pub allow_tls12: bool,
    /// `--tls-max-version` allows TLS 1.3.
    pub allow_tls13: bool,
}

/// The certificate that Duet makes for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfSigned {
    /// `--self-signed-cert-validity`, in years of 365 days, as etcd counts them.
    pub validity_years: u32,
    /// Host names and addresses that it is for: those listened on and those advertised.
    pub hosts: Vec<String>,
}

/// Logs.
#[derive(Clone, Debug)]
pub struct Logging {
    /// `--log-level`.
    pub level: String,
    /// `--log-format`.
    pub format: LogFormat,
    /// `--log-outputs`; at least one.
    pub outputs: Vec<LogOutput>,
}

/// A text that is never printed whole: its printed form is redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one who needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::redact_dsn(&self.0))
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::redact_dsn(&self.0))
    }
}
