//! The question that replicas ask each other: who are you, do you write, and what have clients been shown?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::Memory;
use crate::engine::{Engine, Holds, Role, Seen};
use crate::proto::duetpb::look_response::{Part, Verdict};
use crate::proto::duetpb::replica_client::ReplicaClient;
use crate::proto::duetpb::replica_server::{Replica, ReplicaServer};
use crate::proto::duetpb::{self, LookRequest, LookResponse};
use crate::types::Revision;

/// How long an answer may take, connecting included.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// The same when the callee has to ask its database.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(3);

/// A random number by which a process recognises itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance(u64);

impl Instance {
    /// Another one than everybody else's.
    #[must_use]
    pub fn new() -> Self {
        Self(super::random())
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Whose.
    pub instance: Instance,
    /// It is the writer, or will be if nobody else is.
    pub writes: bool,
    /// It is the writer, and has read what is stored.
    pub active: bool,
    /// Of its store; 0: it has read none yet.
    pub cluster_id: u64,
    /// That it has published.
    pub revision: Revision,
    /// The newest that clients have been shown as far as it knows.
    pub seen: Option<Seen>,
    /// Whether its store goes on from what was asked about, if it can tell.
    pub verdict: Option<Holds>,
}

/// Asks about the store `cluster_id` (0: whichever it is); with `seen`, for a verdict, too.
///
/// # Errors
/// Nobody answers, or nobody who understands the question.
pub async fn look(channel: Channel, cluster_id: u64, seen: Option<Seen>) -> Result<Looked, String> {
    let patience = if seen.is_some() { VERDICT_TIMEOUT } else { LOOK_TIMEOUT };
    let mut client = ReplicaClient::new(channel);
    let answer = timeout(patience, client.look(LookRequest { seen: seen.map(on_wire), cluster_id })).await;
    let answer = answer.map_err(|_| format!("no answer within {patience:?}"))?;
    let answer = answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?.into_inner();
    let (part, verdict) = (answer.part(), answer.verdict());
    let LookResponse { instance, cluster_id, revision, seen, .. } = answer;
    Ok(Looked {
        instance: Instance(instance),
        writes: matches!(part, Part::Recovering | Part::Writer),
        active: part == Part::Writer,
        cluster_id,
        revision,
        seen: seen.and_then(off_wire),
        verdict: match verdict {
            Verdict::Unspecified => None,
            Verdict::Holds => Some(Holds::Yes),
            Verdict::Lacks => Some(Holds::Lacks(revision)),
            Verdict::Differs => Some(Holds::Differs),
            Verdict::OtherStore => Some(Holds::OtherStore(cluster_id)),
        },
    })
}

fn on_wire(seen: Seen) -> duetpb::Seen {
    duetpb::Seen { cluster_id: seen.cluster_id, revision: seen.revision, digest: seen.digest }
}

fn off_wire(seen: duetpb::Seen) -> Option<Seen> {
    (seen.cluster_id != 0).then_some(Seen { cluster_id: seen.cluster_id, revision: seen.revision, digest: seen.digest })
}

/// Answers the others' question; to be served where clients are, in front of what forwards requests.
pub fn service(engine: Engine, memory: Arc<Memory>, instance: Instance) -> axum::Router {
    let service = ReplicaServer::new(Answers { engine, memory, instance });
    axum::Router::new().route_service("/duetpb.Replica/{*rest}", service)
}

struct Answers {
    engine: Engine,
    memory: Arc<Memory>,
    instance: Instance,
}

impl Answers {
    /// What is remembered, and what was shown since that was last looked at. Of the store that was asked about, even if this process has
    /// only its predecessor's file to tell by.
    fn newest(&self, asked: u64) -> Option<Seen> {
        let own = self.engine.seen().filter(|own| asked == 0 || own.cluster_id == asked);
        let known = if asked == 0 { self.memory.newest() } else { self.memory.remembered(asked) };
        match (own, known) {
            (Some(own), Some(known)) if own.cluster_id == known.cluster_id && known.revision > own.revision => Some(known),
            (own, known) => own.or(known),
        }
    }
}

#[tonic::async_trait]
impl Replica for Answers {
    async fn look(&self, request: Request<LookRequest>) -> Result<Response<LookResponse>, Status> {
        let part = match *self.engine.role().borrow() {
            Role::Active => Part::Writer,
            Role::Recovering => Part::Recovering,
            Role::Standby | Role::Following | Role::Failed(_) | Role::Stopped => Part::Standby,
        };
        let LookRequest { seen, cluster_id } = request.into_inner();
        let asked = seen.and_then(off_wire).filter(|_| part == Part::Writer);
        let verdict = match asked {
            Some(seen) => self.engine.holds(seen).await.ok(),
            None => None,
        };
        let verdict = match verdict {
            None => Verdict::Unspecified,
            Some(Holds::Yes) => Verdict::Holds,
            Some(Holds::Lacks(_)) => Verdict::Lacks,
            Some(Holds::Differs) => Verdict::Differs,
            Some(Holds::OtherStore(_)) => Verdict::OtherStore,
        };
        Ok(Response::new(LookResponse {
            instance: self.instance.0,
            part: part.into(),
            cluster_id: self.engine.ids().0,
            revision: self.engine.revision(),
            seen: self.newest(cluster_id).map(on_wire),
            verdict: verdict.into(),
        }))
    }
}
