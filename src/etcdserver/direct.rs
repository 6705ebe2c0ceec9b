//! The KV service's way past the router: nearly every request is one of its, and finding a route makes a copy of the whole stack of
//! services behind it, boxed at each level (docs/performance.md).
//!
//! Invariant: a request gets the same answer here as through [`EtcdServer::router`], from the same layers in the same order.
//! Deliberately not for a process that may forward requests to another one: that is a layer around the router.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::routing::future::RouteFuture;
use futures_util::TryFutureExt;
use futures_util::future::{BoxFuture, Either, MapOk};
use http::{Request, Response};
use tower::{Layer, Service};

use super::EtcdServer;
use super::gate::{Gate, GateLayer};
use crate::proto::etcdserverpb::kv_server::{KvServer, SERVICE_NAME};
use crate::telemetry::grpc::{GrpcMetricsLayer, GrpcMetricsService};

/// The KV service, and a router for everything else.
#[derive(Clone)]
pub struct Direct {
    kv: GrpcMetricsService<Gate<Kv>>,
    rest: Router,
}

impl Direct {
    /// The KV service of `server` before `rest`.
    pub(super) fn new(server: &EtcdServer, rest: Router) -> Self {
        let limit = server.message_bytes_max();
        let gate = GateLayer::new(server.inner.engine.role(), limit, vec![SERVICE_NAME]);
        let kv = gate.layer(Kv(KvServer::new(server.clone()).max_decoding_message_size(limit)));
        Self { kv: GrpcMetricsLayer::new(server.inner.metrics.clone()).layer(kv), rest }
    }
}

impl Service<Request<Body>> for Direct {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Result<Response<Body>, Infallible>>, RouteFuture<Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let is_kv =
            path.strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)).is_some_and(|rest| rest.starts_with('/'));
        if is_kv { Either::Left(self.kv.call(request)) } else { Either::Right(self.rest.call(request)) }
    }
}

/// The generated service with the router's kind of body.
#[derive(Clone)]
pub(super) struct Kv(KvServer<EtcdServer>);

type TonicAnswer = BoxFuture<'static, Result<Response<tonic::body::Body>, Infallible>>;

impl Service<Request<Body>> for Kv {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = MapOk<TonicAnswer, fn(Response<tonic::body::Body>) -> Response<Body>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(|response| response.map(Body::new))
    }
}
