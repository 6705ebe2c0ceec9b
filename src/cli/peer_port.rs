//! Who may call a node of a pair on its peer port: the pair's two nodes (and so operators with their certificates), by the name in the
//! certificate. That a CA of the pair has signed it, TLS has found out before.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use http::{Request, Response};
use tonic::Status;

use crate::net::tls::ClientCertificate;

/// Refuses every request whose certificate has none of these common names.
#[derive(Clone)]
pub(super) struct OnlyCallers(pub Arc<[String]>);

impl<S> tower::Layer<S> for OnlyCallers {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, callers: Arc::clone(&self.0) }
    }
}

/// The service that [`OnlyCallers`] makes.
#[derive(Clone)]
pub(super) struct Guarded<S> {
    inner: S,
    callers: Arc<[String]>,
}

impl<S> tower::Service<Request<Body>> for Guarded<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<ClientCertificate>().and_then(|certificate| certificate.common_name.as_ref());
        if caller.is_some_and(|caller| self.callers.contains(caller)) {
            return Box::pin(self.inner.call(request));
        }
        let text = format!(
            "the certificate {:?} may not call here; the peer port is for {}",
            caller.map_or("without a name", String::as_str),
            self.callers.join(" and ")
        );
        tracing::warn!("{text}");
        Box::pin(async move { Ok(Status::permission_denied(text).into_http()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tower::{Layer, ServiceExt};

    async fn answer(certificate: Option<Option<&str>>) -> String {
        let service = OnlyCallers(Arc::from(["a.edge.duet".to_owned(), "b.edge.duet".to_owned()]))
            .layer(tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) }));
        let mut request = Request::new(Body::empty());
        if let Some(name) = certificate {
            request.extensions_mut().insert(ClientCertificate { common_name: name.map(str::to_owned) });
        }
        let response = service.oneshot(request).await.unwrap();
        response.headers().get("grpc-status").map_or("passed", |code| code.to_str().unwrap()).to_owned()
    }

    #[tokio::test]
    async fn only_the_two_nodes_may_call() {
        assert_eq!(answer(Some(Some("b.edge.duet"))).await, "passed");
        for other in [Some(Some("witness.edge.duet")), Some(Some("b.other.duet")), Some(None), None] {
            assert_eq!(answer(other).await, "7", "{other:?}");
        }
    }
}
