//! What operators ask of a node, as a gRPC service on the peer port.

use tonic::{Request, Response, Status};

use super::clock;
use super::driver::Handle;
use crate::proto::duetpb::act_request::Action;
use crate::proto::duetpb::admin_server::Admin;
use crate::proto::duetpb::{ActRequest, ActResponse, HistoryRequest, HistoryResponse, StatusRequest, StatusResponse};
use crate::supervisor::fsm::Wish;

/// Longer than any maintenance: a pause that is forgotten must end by itself.
const PAUSE_MAX_SECONDS: u64 = 24 * 3600;

/// See the module.
pub struct AdminService(Handle);

impl AdminService {
    /// Over a running driver.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self(handle)
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse { json: json(&self.0.status())? }))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let entries: Result<Vec<String>, Status> = self.0.history().newest().iter().map(json).collect();
        Ok(Response::new(HistoryResponse { entries: entries? }))
    }

    async fn act(&self, request: Request<ActRequest>) -> Result<Response<ActResponse>, Status> {
        let request = request.into_inner();
        let wish = match request.action() {
            Action::Switchover => Wish::Switchover,
            Action::AcceptDataLoss => Wish::AcceptDataLoss,
            Action::Pause if (1..=PAUSE_MAX_SECONDS).contains(&request.seconds) => {
                Wish::Pause { until: clock::now() + request.seconds * 1000 }
            }
            Action::Pause => return Err(Status::invalid_argument("a pause lasts from a second to a day")),
            Action::Resume => Wish::Resume,
            Action::Reinit => {
                let asked = self.0.reinit().map_err(Status::failed_precondition)?;
                return Ok(Response::new(ActResponse { text: asked }));
            }
            Action::Unspecified => {
                return Err(Status::invalid_argument("this node knows no such action; is it of an older version?"));
            }
        };
        let text = self.0.order(wish).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(ActResponse { text }))
    }
}
