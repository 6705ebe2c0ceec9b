//! The Watch service: a client's stream of requests onto the watch hub's stream, and the hub's responses back.

use std::pin::Pin;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

use super::{EtcdServer, error, requires_leader};
use crate::proto::etcdserverpb::watch_request::RequestUnion;
use crate::proto::etcdserverpb::watch_server::Watch;
use crate::proto::etcdserverpb::{WatchRequest, WatchResponse};
use crate::watch::{WatchRequests, WatchResponses};

#[tonic::async_trait]
impl Watch for EtcdServer {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let requires_leader = requires_leader(request.metadata());
        self.inner.engine.recovered().await.map_err(error::of_read)?;
        let (requests, responses) = self.inner.engine.watch().open(self.header(0));
        // A task of its own, so that a client that doesn't read is still heard, as long as the answers to its requests find room.
        let receiving = Some(AbortOnDropHandle::new(tokio::spawn(receive(request.into_inner(), requests))));
        let server = self.clone();
        let end = Box::pin(async move { server.stream_end(requires_leader).await }) as BoxFuture<'static, _>;
        // When the client goes away everything of it goes with the stream.
        let state = Session { end, receiving, responses };
        Ok(Response::new(Box::pin(stream::try_unfold(state, |mut session| async move {
            Ok(session.next().await?.map(|response| (response, session)))
        }))))
    }
}

/// The task that hears the client; it ends with the stream.
type Receiving = AbortOnDropHandle<Result<(), Status>>;

/// One Watch RPC.
struct Session {
    /// Resolves when the stream has to end.
    end: BoxFuture<'static, Status>,
    /// Takes the client's requests in; `None` when the client has closed its side, which leaves its watchers running.
    receiving: Option<Receiving>,
    responses: WatchResponses,
}

impl Session {
    async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        loop {
            tokio::select! {
                Some(received) = received(&mut self.receiving) => {
                    received?;
                    self.receiving = None;
                }
                response = self.responses.next() => {
                    return response.transpose().map_err(|ended| Status::unavailable(ended.to_string()));
                }
                status = &mut self.end => return Err(status),
            }
        }
    }
}

/// The end of the requests; `None` when they have ended before.
async fn received(receiving: &mut Option<Receiving>) -> Option<Result<(), Status>> {
    match receiving {
        Some(receiving) => Some(receiving.await.unwrap_or_else(|error| Err(Status::internal(format!("duet: {error}"))))),
        None => None,
    }
}

/// Hands the client's requests to the hub, in order, until the client closes its side.
async fn receive(mut stream: Streaming<WatchRequest>, requests: WatchRequests) -> Result<(), Status> {
    while let Some(request) = stream.message().await? {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => requests.create(request).await,
            Some(RequestUnion::CancelRequest(request)) => requests.cancel(request.watch_id).await,
            Some(RequestUnion::ProgressRequest(_)) => requests.request_progress(),
            // etcd goes on after a request that it doesn't know.
            None => {}
        }
    }
    Ok(())
}
