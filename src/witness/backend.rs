//! What a node asks its witness, whatever that is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;

use crate::net::proxy::Upstream;
use crate::proto::duetpb::witness_client::WitnessClient;
use crate::proto::duetpb::{ReadRequest, SwapRequest, SwapResponse};
use crate::storage::BoxFuture;
use crate::supervisor::fsm::{Answer, Register, SwapOutcome};

/// How long an answer may take. What takes longer is asked again.
const DEADLINE: Duration = Duration::from_millis(1000);

/// Nobody knows what the register holds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WitnessError(String);

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

    /// For logs and people.
    fn describe(&self) -> String;
}

/// The witness at `url`, for the pair `cluster`; connected to when it is needed.
///
/// # Errors
/// The URL is none, or of a kind that isn't known.
pub fn connect(url: &str, cluster: &str, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Arc<dyn Witness>, String> {
    if !url.starts_with("https://") {
        return Err(format!("--witness-url {url}: write https://HOST:PORT, where duet witness listens"));
    }
    let upstream = Upstream::new(url, tls)?;
    Ok(Arc::new(Daemon { upstream, url: url.to_owned(), cluster: cluster.to_owned() }))
}

/// `duet witness`, over mutual TLS.
struct Daemon {
    upstream: Upstream,
    url: String,
    cluster: String,
}

impl Daemon {
    fn client(&self) -> WitnessClient<Channel> {
        WitnessClient::new(self.upstream.channel())
    }
}

impl Witness for Daemon {
    fn read(&self) -> BoxFuture<'_, Result<Answer, WitnessError>> {
        Box::pin(async move {
            let mut client = self.client();
            let answer = timeout(DEADLINE, client.read(ReadRequest { cluster: self.cluster.clone() })).await;
            let answer = answer
                .map_err(|_| WitnessError(format!("no answer within {DEADLINE:?}")))?
                .map_err(|status| WitnessError(status.message().to_owned()))?;
            Answer::try_from(answer.into_inner()).map_err(|_| WitnessError("it holds what this version doesn't know".to_owned()))
        })
    }

    fn swap(&self, instance: u64, expected: u64, new: Register) -> BoxFuture<'_, SwapOutcome> {
        Box::pin(async move {
            let mut client = self.client();
            let request = SwapRequest { cluster: self.cluster.clone(), instance, expected, value: Some(new.into()) };
            let Ok(Ok(response)) = timeout(DEADLINE, client.swap(request)).await else { return SwapOutcome::Unknown };
            let SwapResponse { applied, answer } = response.into_inner();
            match answer.map(Answer::try_from) {
                Some(Ok(answer)) if applied => SwapOutcome::Applied { instance: answer.instance },
                Some(Ok(answer)) => SwapOutcome::Refused(answer),
                _ => SwapOutcome::Unknown,
            }
        })
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}
