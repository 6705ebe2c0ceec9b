//! The follower's stream on the peer's gRPC port: both ends, and what is said on the wire.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::driver::View;
use crate::engine::replication::{Followed, FollowedStream, Leader, Position};
use crate::engine::{self, Engine};
use crate::proto::duetpb::follow_response::{Alive, Batch, Began, CaughtUp, Page, Paged, What};
use crate::proto::duetpb::replication_client::ReplicationClient;
use crate::proto::duetpb::replication_server::Replication;
use crate::proto::duetpb::{FollowRequest, FollowResponse, Row};
use crate::storage::{self, BoxFuture, LogError, LogRow};
use crate::types::Rev;

/// How long the peer may take to answer that it leads.
const CALL_DEADLINE: Duration = Duration::from_secs(2);

/// The leader's end.
pub struct ReplicationService {
    engine: Engine,
    stop: CancellationToken,
}

impl ReplicationService {
    /// Feeds followers from `engine`, while it is the writer, until `stop`.
    #[must_use]
    pub fn new(engine: Engine, stop: CancellationToken) -> Self {
        Self { engine, stop }
    }
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowResponse, Status>> + Send>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let FollowRequest { cluster_id, revision, digest } = request.into_inner();
        let messages = ReceiverStream::new(self.engine.lead(Position { cluster_id, revision, digest }));
        let on_wire = |message: Result<Followed, engine::Error>| match message {
            Ok(followed) => Ok(FollowResponse { what: Some(encode(followed)) }),
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
        Ok(Response::new(Box::pin(messages.map(on_wire).take_until(self.stop.clone().cancelled_owned()))))
    }
}

/// The follower's end.
pub struct PeerLeader<C> {
    views: watch::Receiver<View>,
    channel: C,
}

impl<C> PeerLeader<C> {
    /// Asks the peer, over a new `channel` each time, while `views` say that it leads.
    pub fn new(views: watch::Receiver<View>, channel: C) -> Self {
        Self { views, channel }
    }
}

impl<C> fmt::Debug for PeerLeader<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerLeader")
    }
}

impl<C: Fn() -> Channel + Send + Sync> Leader for PeerLeader<C> {
    fn follow(&self, position: Position) -> BoxFuture<'_, Result<FollowedStream, LogError>> {
        Box::pin(async move {
            let mut views = self.views.clone();
            views.wait_for(View::peer_leads).await.map_err(|_| unavailable("this node is stopping"))?;
            let Position { cluster_id, revision, digest } = position;
            // A page holds one revision at least, however large that is.
            let mut client = ReplicationClient::new((self.channel)()).max_decoding_message_size(usize::MAX);
            let call = client.follow(FollowRequest { cluster_id, revision, digest });
            let answer = timeout(CALL_DEADLINE, call).await.map_err(|_| unavailable("the leader doesn't answer"))?;
            let stream = answer.map_err(|status| unavailable(status.message()))?.into_inner();
            Ok(stream.map(|message| decode(message.map_err(|status| unavailable(status.message()))?)).boxed())
        })
    }
}

fn unavailable(why: &str) -> LogError {
    LogError::Unavailable(why.to_owned())
}

fn encode(followed: Followed) -> What {
    match followed {
        Followed::Began { cluster_id, member_id, epoch, whole, diverged } => {
            What::Began(Began { cluster_id, member_id, epoch, whole, diverged })
        }
        Followed::Page { rows, compacted } => What::Page(Page { rows: rows.into_iter().map(row_on_wire).collect(), compacted }),
        Followed::Paged { revision, compacted } => What::Paged(Paged { revision, compacted }),
        Followed::Batch(batch) => {
            What::Batch(Batch { rows: batch.rows.iter().cloned().map(row_on_wire).collect(), compacted: batch.compacted })
        }
        Followed::CaughtUp => What::CaughtUp(CaughtUp {}),
        Followed::Swept(compacted) => What::Swept(compacted),
        Followed::Alive => What::Alive(Alive {}),
    }
}

fn decode(message: FollowResponse) -> Result<Followed, LogError> {
    Ok(match message.what {
        Some(What::Began(Began { cluster_id, member_id, epoch, whole, diverged })) => {
            Followed::Began { cluster_id, member_id, epoch, whole, diverged }
        }
        Some(What::Page(Page { rows, compacted })) => Followed::Page { rows: rows.into_iter().map(row).collect(), compacted },
        Some(What::Paged(Paged { revision, compacted })) => Followed::Paged { revision, compacted },
        Some(What::Batch(Batch { rows, compacted })) => {
            let rows = rows.into_iter().map(row).collect();
            Followed::Batch(Arc::new(storage::Batch { rows, compacted, ..storage::Batch::default() }))
        }
        Some(What::CaughtUp(CaughtUp {})) => Followed::CaughtUp,
        Some(What::Swept(compacted)) => Followed::Swept(compacted),
        // What a newer leader may say besides can be done without: it says it to followers that know it.
        Some(What::Alive(Alive {})) | None => Followed::Alive,
    })
}

fn row_on_wire(row: LogRow) -> Row {
    let LogRow { rev, key, value, create_revision, version, lease } = row;
    Row { main: rev.main, sub: rev.sub, key, value, create_revision, version, lease }
}

/// Keys and values are copied out of the message that they came in, so that keeping one doesn't keep the message.
fn row(row: Row) -> LogRow {
    let Row { main, sub, key, value, create_revision, version, lease } = row;
    let copy = |bytes: Bytes| Bytes::copy_from_slice(&bytes);
    LogRow { rev: Rev::new(main, sub), key: copy(key), value: value.map(copy), create_revision, version, lease }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn rows_arrive_as_they_were_sent() {
        let put = LogRow {
            rev: Rev::new(7, 1),
            key: Bytes::from_static(b"k\0\xff"),
            value: Some(Bytes::new()),
            create_revision: 3,
            version: 2,
            lease: -5,
        };
        let deleted = LogRow { rev: Rev::new(8, 0), value: None, create_revision: 0, version: 0, lease: 0, ..put.clone() };
        let batch = storage::Batch { rows: vec![put, deleted], compacted: Some(4), ..storage::Batch::default() };
        let sent = FollowResponse { what: Some(encode(Followed::Batch(Arc::new(batch.clone())))) };
        let got = decode(FollowResponse::decode(sent.encode_to_vec().as_slice()).unwrap()).unwrap();
        assert!(matches!(got, Followed::Batch(got) if *got == batch));
    }
}
