//! What operators ask of a node, as a gRPC service on the peer port.

use std::path::PathBuf;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::clock;
use super::drill::{self, AWAY_MAX};
use super::driver::Handle;
use crate::proto::duetpb::act_request::Action;
use crate::proto::duetpb::admin_server::Admin;
use crate::proto::duetpb::{ActRequest, ActResponse, HistoryRequest, HistoryResponse, StatusRequest, StatusResponse};
use crate::supervisor::fsm::Wish;

/// A pause or a maintenance that is forgotten must end by itself.
pub const PAUSE_MAX_SECONDS: u64 = 24 * 3600;

/// See the module.
pub struct AdminService {
    handle: Handle,
    data_dir: PathBuf,
}

impl AdminService {
    /// Over a running driver, whose node keeps its data in `data_dir`.
    #[must_use]
    pub fn new(handle: Handle, data_dir: PathBuf) -> Self {
        Self { handle, data_dir }
    }

    /// Kills this node, if the pair can lose it now.
    fn die(&self, away: Duration) -> Result<String, String> {
        let status = self.handle.status();
        let survived = if status.node == 'A' { status.survives.a } else { status.survives.b };
        if !survived {
            return Err(format!("the pair can't lose this node now. {}", status.survives.sentence));
        }
        self.handle.note("drill", format!("killed for a drill, and away for {} s", away.as_secs()));
        drill::die(&self.data_dir, away).map_err(|error| format!("{}: {error}", self.data_dir.display()))?;
        Ok("kills all of its processes".to_owned())
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Status> {
    serde_json::to_string(value).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse { json: json(&self.handle.status())? }))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<HistoryResponse>, Status> {
        let entries: Result<Vec<String>, Status> = self.handle.history().newest().iter().map(json).collect();
        Ok(Response::new(HistoryResponse { entries: entries? }))
    }

    async fn act(&self, request: Request<ActRequest>) -> Result<Response<ActResponse>, Status> {
        let request = request.into_inner();
        let until = clock::now() + request.seconds.min(PAUSE_MAX_SECONDS) * 1000;
        let lasts = (1..=PAUSE_MAX_SECONDS).contains(&request.seconds);
        let wish = match request.action() {
            Action::Switchover => Wish::Switchover,
            Action::AcceptDataLoss => Wish::AcceptDataLoss,
            Action::Pause | Action::PeerAway if !lasts => {
                return Err(Status::invalid_argument("a pause or a maintenance lasts from a second to a day"));
            }
            Action::Pause => Wish::Pause { until },
            Action::PeerAway => Wish::PeerAway { until },
            Action::PeerBack => Wish::PeerBack,
            Action::Resume => Wish::Resume,
            Action::Reinit => {
                let asked = self.handle.reinit().await.map_err(Status::failed_precondition)?;
                return Ok(Response::new(ActResponse { text: asked }));
            }
            Action::Die => {
                let away = Duration::from_secs(request.seconds).min(AWAY_MAX);
                return Ok(Response::new(ActResponse { text: self.die(away).map_err(Status::failed_precondition)? }));
            }
            Action::Unspecified => {
                return Err(Status::invalid_argument("this node knows no such action; is it of an older version?"));
            }
        };
        let text = self.handle.order(wish).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(ActResponse { text }))
    }
}
