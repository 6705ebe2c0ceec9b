//! `duet witness`, over mutual TLS.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;

use super::{Begun, ConnectError, Witness, WitnessError};
use crate::config::HostPort;
use crate::net::proxy::Upstream;
use crate::proto::duetpb::witness_client::WitnessClient;
use crate::proto::duetpb::{ReadRequest, SwapRequest, SwapResponse};
use crate::storage::BoxFuture;
use crate::supervisor::fsm::{Answer, Register, SwapOutcome};

/// See the module.
pub struct Daemon {
    upstream: Upstream,
    url: String,
    cluster: String,
    deadline: Duration,
}

impl Daemon {
    /// Connected to when it is needed.
    ///
    /// # Errors
    /// The address names nobody whom a certificate could name.
    pub fn new(
        address: &HostPort,
        cluster: &str,
        tls: Arc<rustls::ClientConfig>,
        deadline: Duration,
    ) -> Result<Self, ConnectError> {
        let url = format!("https://{address}");
        let upstream = Upstream::new(&url, Some(tls)).map_err(ConnectError::Address)?;
        Ok(Self { upstream, url, cluster: cluster.to_owned(), deadline })
    }

    fn client(&self) -> WitnessClient<Channel> {
        WitnessClient::new(self.upstream.channel())
    }
}

impl Witness for Daemon {
    fn read(&self) -> BoxFuture<'_, Result<Answer, WitnessError>> {
        Box::pin(async move {
            let mut client = self.client();
            let answer = timeout(self.deadline, client.read(ReadRequest { cluster: self.cluster.clone() })).await;
            let answer = answer
                .map_err(|_| WitnessError::Silent(format!("no answer within {:?}", self.deadline)))?
                .map_err(|status| WitnessError::Silent(status.message().to_owned()))?;
            let unknown = |_| WitnessError::Unusable("it holds what this version doesn't know".to_owned());
            Answer::try_from(answer.into_inner()).map_err(unknown)
        })
    }

    fn swap(&self, instance: u64, expected: u64, new: Register) -> BoxFuture<'_, SwapOutcome> {
        Box::pin(async move {
            let mut client = self.client();
            let request = SwapRequest { cluster: self.cluster.clone(), instance, expected, value: Some(new.into()) };
            let Ok(Ok(response)) = timeout(self.deadline, client.swap(request)).await else { return SwapOutcome::Unknown };
            let SwapResponse { applied, answer } = response.into_inner();
            match answer.map(Answer::try_from) {
                Some(Ok(answer)) if applied => SwapOutcome::Applied { instance: answer.instance },
                Some(Ok(answer)) => SwapOutcome::Refused(answer),
                _ => SwapOutcome::Unknown,
            }
        })
    }

    /// The daemon makes a register for each pair that asks: it knows a file of its own from a copy, and so a new history from an old one.
    fn begin(&self) -> BoxFuture<'_, Result<Begun, WitnessError>> {
        Box::pin(async move { self.read().await.map(|_| Begun::Already) })
    }

    fn describe(&self) -> String {
        self.url.clone()
    }
}
