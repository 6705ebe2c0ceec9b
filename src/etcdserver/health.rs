//! grpc.health.v1, with grpc-go's words (`health/server.go`): the whole server is SERVING until the process stops, and no other service is
//! known, as in etcd.

use std::collections::HashMap;
use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::error::Error;
use crate::proto::health::health_check_response::ServingStatus;
use crate::proto::health::health_server::{Health, HealthServer};
use crate::proto::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};

/// The name by which all services together are known.
const WHOLE_SERVER: &str = "";

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
        if request.into_inner().service != WHOLE_SERVER {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(response(self.status())))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(WHOLE_SERVER.to_owned(), response(self.status()))]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = request.into_inner().service == WHOLE_SERVER;
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
