//! What a node asks its witness, whatever that is.
//!
//! | file | what it is |
//! |---|---|
//! | `daemon` | `duet witness` |
//! | `conditional` | a register in a store that offers only conditional writes |
//! | `etcd`, `s3`, `kubernetes` | such stores |
//! | `http`, `sigv4` P, `kubeconfig` P | what the latter two need |
//!
//! Invariants: every answer has a deadline; what isn't known to have failed is unknown; a register that isn't there is no empty one, and
//! no node ever makes one.

mod conditional;
mod daemon;
mod etcd;
mod http;
mod kubeconfig;
mod kubernetes;
mod s3;
mod sigv4;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conditional::Conditional;
use daemon::Daemon;
use etcd::Etcd;
use kubernetes::Kubernetes;
use s3::S3;

use crate::config::WitnessUrl;
use crate::net::tls::TlsError;
use crate::storage::BoxFuture;
use crate::supervisor::fsm::{Answer, Register, SwapOutcome, Timing};

/// Nobody knows what the register holds.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// No answer came, or none that says anything about the register: asking again may help.
    #[error("{0}")]
    Silent(String),
    /// There was an answer, and asking again won't change it: somebody has to do something.
    #[error("{0}")]
    Unusable(String),
}

/// Why a witness can't even be asked.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address.
    #[error("{0}")]
    Address(String),
    /// A file that the URL names.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// What an explicit beginning found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It made an empty register, of a history that nobody knows.
    New,
    /// There is one already, which was left alone.
    Already,
}

/// A durable versioned register with compare-and-swap.
pub trait Witness: Send + Sync {
    /// What the register holds.
    ///
    /// # Errors
    /// Nobody knows.
    fn read(&self) -> BoxFuture<'_, Result<Answer, WitnessError>>;

    /// Replaces the value of version `expected` in the history `instance` with `new`. Never fails: what isn't known is
    /// [`SwapOutcome::Unknown`].
    fn swap(&self, instance: u64, expected: u64, new: Register) -> BoxFuture<'_, SwapOutcome>;

    /// Makes an empty register where there is none: an operator's deed, never a node's. A store that doesn't keep to conditions is found
    /// out and refused.
    ///
    /// # Errors
    /// There is none afterwards, or nobody knows.
    fn begin(&self) -> BoxFuture<'_, Result<Begun, WitnessError>>;

    /// For logs and people.
    fn describe(&self) -> String;
}

/// How long an answer may take: an older one would come too late for the state machine to count the witness as there.
#[must_use]
pub fn deadline(timing: Timing) -> Duration {
    Duration::from_millis(timing.witness_lost / 2)
}

/// The witness at `url`, for the pair `cluster`; connected to when it is needed. `tls` is for the daemon.
///
/// # Errors
/// The URL's files can't be used.
pub fn connect(
    url: &WitnessUrl,
    cluster: &str,
    tls: Arc<rustls::ClientConfig>,
    deadline: Duration,
) -> Result<Arc<dyn Witness>, ConnectError> {
    Ok(match url {
        WitnessUrl::Daemon(address) => Arc::new(Daemon::new(address, cluster, tls, deadline)?),
        WitnessUrl::Etcd(url) => Arc::new(Conditional::new(Etcd::new(url, deadline)?, cluster, deadline)),
        WitnessUrl::S3(url) => Arc::new(Conditional::new(S3::new(url)?, cluster, deadline)),
        WitnessUrl::Kubernetes(url) => Arc::new(Conditional::new(Kubernetes::new(url)?, cluster, deadline)),
    })
}
