//! The Lease service.

use std::pin::Pin;

use futures_util::stream::{self, Stream};
use tonic::{Request, Response, Status, Streaming};

use super::error::Error;
use super::{EtcdServer, error, requires_leader, validate};
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use crate::telemetry::metrics::RequestKind;

/// The longest time to live that a lease may ask for, in seconds (`MaxLeaseTTL`).
const TTL_MAX: i64 = 9_000_000_000;
/// What TimeToLive says of a lease that doesn't exist.
const TTL_UNKNOWN_LEASE: i64 = -1;

#[tonic::async_trait]
impl Lease for EtcdServer {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        self.admit(validate::LEASE_COST_BYTES).await?;
        self.refuse_if_alarmed(validate::LEASE_COST_BYTES)?;
        if ttl > TTL_MAX {
            return Err(Error::LeaseTTLTooLarge.into());
        }
        let answer = self.timed(RequestKind::LeaseGrant, self.inner.engine.lease_grant(id, ttl)).await;
        let granted = answer.map_err(error::of_write)?;
        let header = Some(self.header(granted.revision));
        Ok(Response::new(LeaseGrantResponse { header, id: granted.id, ttl: granted.ttl, error: String::new() }))
    }

    async fn lease_revoke(&self, request: Request<LeaseRevokeRequest>) -> Result<Response<LeaseRevokeResponse>, Status> {
        let id = request.into_inner().id;
        self.refuse_if_alarmed(0)?;
        let answer = self.timed(RequestKind::LeaseRevoke, self.inner.engine.lease_revoke(id)).await;
        let revision = answer.map_err(error::of_write)?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.header(revision)) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let requires_leader = requires_leader(request.metadata());
        let requests = request.into_inner();
        let answers = stream::try_unfold((self.clone(), requests), move |(server, mut requests)| async move {
            let request = tokio::select! {
                request = requests.message() => request?,
                end = server.stream_end(requires_leader) => return Err(end),
            };
            let Some(request) = request else { return Ok(None) };
            let response = server.keep_alive(request.id).await?;
            Ok(Some((response, (server, requests))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let lease = self.inner.engine.lease_time_to_live(id, keys).await.map_err(error::of_read)?;
        let header = Some(self.header(self.inner.engine.revision()));
        let response = match lease {
            Some(lease) => {
                LeaseTimeToLiveResponse { header, id, ttl: lease.ttl, granted_ttl: lease.granted_ttl, keys: lease.keys }
            }
            None => LeaseTimeToLiveResponse { header, id, ttl: TTL_UNKNOWN_LEASE, ..Default::default() },
        };
        Ok(Response::new(response))
    }

    async fn lease_leases(&self, _request: Request<LeaseLeasesRequest>) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.inner.engine.leases().await.map_err(error::of_read)?;
        let leases = leases.into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: Some(self.header(self.inner.engine.revision())), leases }))
    }
}

impl EtcdServer {
    /// The header is stamped before the renewal: a client that sees revision R knows that its lease was alive at R.
    async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let header = Some(self.header(self.inner.engine.revision()));
        let ttl = self.inner.engine.lease_renew(id).await.map_err(error::of_read)?;
        Ok(LeaseKeepAliveResponse { header, id, ttl: ttl.unwrap_or(0) })
    }
}
