//! grpc.health.v1, with grpc-go's words: the whole server is SERVING until the process stops, and no other service is known, as in etcd.

use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::error::Error;

/// The service; it reports the end when `stop` is cancelled.
pub(super) fn service(stop: CancellationToken) -> HealthServer<impl Health> {
    HealthServer::new(Reporter { stop })
}

struct Reporter {
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Health for Reporter {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(self.status())))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().service.is_empty();
        let first = if known { self.status() } else { ServingStatus::ServiceUnknown };
        let stop = self.stop.clone();
        let end = async move {
            stop.cancelled().await;
            let last = known.then(|| Ok(response(ServingStatus::NotServing)));
            stream::iter(last.into_iter().chain([Err(Error::Stopped.into())]))
        };
        let updates = stream::iter([Ok(response(first))]).chain(stream::once(end).flatten());
        Ok(Response::new(Box::pin(updates)))
    }
}

impl Reporter {
    fn status(&self) -> ServingStatus {
        if self.stop.is_cancelled() { ServingStatus::NotServing } else { ServingStatus::Serving }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}
