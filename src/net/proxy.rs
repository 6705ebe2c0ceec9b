//! Requests forwarded to the active writer, whole: headers, body and trailers, in both directions as they come.
//!
//! It deliberately understands no request: a gRPC stream, a watch included, is an HTTP/2 stream, and handing it to
//! another connection forwards all of it. What it adds is the answer when that fails, because clientv3 acts on it:
//!
//! - nothing was sent: [`RETRIABLE`], the one text after which clientv3 sends even a Txn again;
//! - it was sent and the answer didn't come: Unavailable with etcd's text for that, which makes watches resume and leaves
//!   a Txn's outcome to its client.
//!
//! Invariants: a request is forwarded twice at most, so that two replicas that take each other for the writer can't play
//! ping-pong (twice, because the writer may hand over while it has the request in hand, and the one that forwarded it is the
//! writer then); a wait for a writer has a deadline.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::{Service, ServiceExt};

use super::HOLD_MAX;
use super::address::Address;
use super::drain::HeldSince;
use super::local::{Local, Way, look};
use super::tls::ClientTls;
use crate::telemetry::grpc::FORWARDED;
use crate::telemetry::metrics::Metrics;

/// clientv3's own words for "not sent"; it retries every request after them.
const RETRIABLE: &str = "there is no connection available";
/// etcd's words for an answer that was lost with its leader.
const LOST: &str = "etcdserver: request timed out, possibly due to previous leader failure";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(5);
/// HTTP/2 connections to the writer: each has one lock in h2, and hundreds of clients' streams share them.
const CONNECTIONS: usize = 4;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// How often a request may be forwarded.
const HOPS_MAX: u8 = 2;

/// Connections to the writer; clones share them.
#[derive(Clone, Debug)]
pub struct Upstream {
    channels: Arc<[Channel]>,
    next: Arc<AtomicUsize>,
    retired: CancellationToken,
}

impl Upstream {
    /// Connections to `url`, made when they are needed and made again when they break. `tls` is for `https` and `unixs`.
    ///
    /// # Errors
    /// `url` is no URL, or needs TLS and there is none.
    pub fn new(url: &str, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Self, String> {
        Self::fresh(url, tls.map(ClientTls::from))
    }

    /// The same; each connection is made with the certificates that are in use then.
    ///
    /// # Errors
    /// As above.
    pub fn fresh(url: &str, tls: Option<ClientTls>) -> Result<Self, String> {
        let address = Address::parse(url, tls)?;
        let endpoint = Endpoint::from_shared(address.origin())
            .map_err(|error| format!("{url}: {error}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        let connect = |_| {
            let address = address.clone();
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let address = address.clone();
                async move { address.connect().await.map(TokioIo::new) }
            }))
        };
        Ok(Self { channels: (0..CONNECTIONS).map(connect).collect(), next: Arc::default(), retired: CancellationToken::new() })
    }

    /// Whether both are the same connections.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.next, &other.next)
    }

    /// Nobody waits any longer for answers from there: the writer is another one now, and this one may be gone without a word. Whoever
    /// still waits is told that the outcome is unknown.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// One of the connections, in turn.
    #[must_use]
    pub fn channel(&self) -> Channel {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }
}

/// Who answers a request.
#[derive(Clone, Debug, Default)]
pub enum Answering {
    /// This process.
    Here,
    /// The writer that these connections lead to.
    There(Upstream),
    /// Nobody, for the moment.
    #[default]
    Nobody,
}

/// Wraps a router: requests go to it while this process answers, and to the writer otherwise.
#[derive(Clone)]
pub struct ProxyLayer {
    answering: watch::Receiver<Answering>,
    local: Option<Local>,
    metrics: Metrics,
}

impl ProxyLayer {
    /// A layer that asks `answering` for each request.
    #[must_use]
    pub fn new(answering: watch::Receiver<Answering>, metrics: Metrics) -> Self {
        Self { answering, local: None, metrics }
    }

    /// Answers here, too, what a follower can answer.
    #[must_use]
    pub fn with_local(self, local: Local) -> Self {
        Self { local: Some(local), ..self }
    }
}

impl<S> tower::Layer<S> for ProxyLayer {
    type Service = Proxy<S>;
    fn layer(&self, inner: S) -> Proxy<S> {
        Proxy { inner, layer: self.clone() }
    }
}

/// The service that [`ProxyLayer`] makes.
#[derive(Clone)]
pub struct Proxy<S> {
    inner: S,
    layer: ProxyLayer,
}

impl<S> Service<Request<Body>> for Proxy<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if matches!(*self.layer.answering.borrow(), Answering::Here) {
            return Box::pin(self.inner.call(request));
        }
        let way = self.layer.local.as_ref().map_or(Way::Writer, |local| local.way(&request));
        if way == Way::Here {
            return Box::pin(self.inner.call(request));
        }
        let (layer, inner) = (self.layer.clone(), self.inner.clone());
        let hops = hops(request.headers());
        Box::pin(async move {
            let mut request = request;
            if way == Way::Look {
                let (looked, here) = look(request).await;
                if here {
                    return inner.oneshot(looked).await;
                }
                request = looked;
            }
            let since = request.extensions().get().map_or_else(Instant::now, |HeldSince(since)| *since);
            match layer.somebody(hops, since + HOLD_MAX).await {
                Answering::Here => inner.oneshot(request).await,
                Answering::There(upstream) => {
                    layer.metrics.net.proxied_total.inc();
                    let mut answer = forward(&upstream, request, hops + 1).await;
                    if let Some(local) = &layer.local {
                        local.catch_up(&mut answer).await;
                    }
                    Ok(answer)
                }
                Answering::Nobody => Ok(Status::unavailable(RETRIABLE).into_http()),
            }
        })
    }
}

impl ProxyLayer {
    /// Waits, but not for long, until somebody can answer.
    async fn somebody(&self, hops: u8, deadline: Instant) -> Answering {
        let mut answering = self.answering.clone();
        let fits = |now: &Answering| match now {
            Answering::Here => true,
            Answering::There(_) => hops < HOPS_MAX,
            Answering::Nobody => false,
        };
        let found = timeout_at(deadline, answering.wait_for(fits)).await;
        found.ok().and_then(Result::ok).map_or(Answering::Nobody, |now| now.clone())
    }
}

/// How often a request has been forwarded already; what isn't understood counts as too often.
fn hops(headers: &HeaderMap) -> u8 {
    let said = headers.get(FORWARDED).map(|value| value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(HOPS_MAX));
    said.unwrap_or(0).min(HOPS_MAX)
}

async fn forward(upstream: &Upstream, request: Request<Body>, hops: u8) -> Response<Body> {
    tokio::select! {
        biased;
        answer = forward_to(upstream, request, hops) => answer,
        () = upstream.retired.cancelled() => Status::unavailable(LOST).into_http(),
    }
}

async fn forward_to(upstream: &Upstream, request: Request<Body>, hops: u8) -> Response<Body> {
    let mut channel = upstream.channel();
    let mut request = request.map(tonic::body::Body::new);
    request.headers_mut().insert(FORWARDED, HeaderValue::from(u16::from(hops)));
    let answer = match ServiceExt::<Request<tonic::body::Body>>::ready(&mut channel).await {
        Ok(ready) => ready.call(request).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(response) => {
            let retired = Box::pin(upstream.retired.clone().cancelled_owned());
            response.map(|body| Body::new(Forwarded { inner: body, retired, ended: false }))
        }
        Err(error) => {
            let (sent, text) = if was_not_sent(&error) { ("nothing was sent", RETRIABLE) } else { ("no answer came", LOST) };
            tracing::debug!(%error, sent, "the writer can't be reached");
            Status::unavailable(text).into_http()
        }
    }
}

/// Whether the request certainly never left: no connection could be made for it.
fn was_not_sent(error: &tonic::transport::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A body that ends with a gRPC status even when its connection breaks: without one, clientv3 would see an Internal error
/// made up by its own library.
struct Forwarded {
    inner: tonic::body::Body,
    /// See [`Upstream::retire`].
    retired: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl HttpBody for Forwarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Err(_))) => {}
            Poll::Ready(other) => return Poll::Ready(other),
            Poll::Pending => ready!(self.retired.as_mut().poll(cx)),
        }
        self.ended = true;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(Code::Unavailable as i32));
        trailers.insert("grpc-message", HeaderValue::from_static(LOST));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use tokio::time::timeout;
    use tonic_health::ServingStatus;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use crate::config::{Keepalive, ListenUrl};
    use crate::net::{Listeners, ServeOptions, SocketOptions, serve};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn start(router: Router) -> (String, CancellationToken, tokio::task::JoinHandle<crate::net::Drained>) {
        let listeners = Listeners::bind(&ListenUrl::parse_list("http://127.0.0.1:0").unwrap(), SocketOptions::default()).unwrap();
        let (url, stop) = (listeners.urls().remove(0), CancellationToken::new());
        let options = ServeOptions {
            max_concurrent_streams: u32::MAX,
            keepalive: Keepalive { interval: None, timeout: None },
            drain: Duration::from_millis(50),
            tls: None,
            metrics: Metrics::unshared(),
        };
        let served = tokio::spawn(serve(listeners, router, stop.clone(), options));
        (url, stop, served)
    }

    async fn health(status: ServingStatus) -> Router {
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status("x", status).await;
        tonic::service::Routes::new(service).into_axum_router()
    }

    struct Replica {
        client: HealthClient<Channel>,
        answering: watch::Sender<Answering>,
        metrics: Metrics,
        _stop: tokio_util::sync::DropGuard,
    }

    /// A replica that itself says NOT_SERVING, so that one sees who answered.
    async fn replica(answering: Answering) -> Replica {
        let (answering, receiver) = watch::channel(answering);
        let metrics = Metrics::unshared();
        let router = health(ServingStatus::NotServing).await.layer(ProxyLayer::new(receiver, metrics.clone()));
        let (url, stop, _) = start(router);
        let client = HealthClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap());
        Replica { client, answering, metrics, _stop: stop.drop_guard() }
    }

    fn ask() -> HealthCheckRequest {
        HealthCheckRequest { service: "x".to_owned() }
    }

    #[tokio::test]
    async fn calls_and_streams_go_to_the_writer_until_this_process_is_it() {
        let (writer, stop, served) = start(health(ServingStatus::Serving).await);
        let mut replica = replica(Answering::There(Upstream::new(&writer, None).unwrap())).await;
        assert_eq!(replica.client.check(ask()).await.unwrap().into_inner().status, 1);
        let mut stream = replica.client.watch(ask()).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().status, 1);
        assert_eq!(replica.metrics.net.proxied_total.get(), 2);

        // The writer dies under the stream: the client is told in words that make a watch resume.
        stop.cancel();
        timeout(PATIENCE, served).await.unwrap().unwrap();
        let ended = timeout(PATIENCE, stream.message()).await.unwrap().unwrap_err();
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, LOST));
        let refused = replica.client.check(ask()).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, RETRIABLE));

        // The same client connection, now answered here.
        replica.answering.send_replace(Answering::Here);
        assert_eq!(replica.client.check(ask()).await.unwrap().into_inner().status, 2);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_writer_that_was_replaced_is_told_so() {
        let (writer, _stop, _) = start(health(ServingStatus::Serving).await);
        let upstream = Upstream::new(&writer, None).unwrap();
        let mut replica = replica(Answering::There(upstream.clone())).await;
        let mut stream = replica.client.watch(ask()).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().status, 1);
        upstream.retire();
        let ended = timeout(PATIENCE, stream.message()).await.unwrap().unwrap_err();
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, LOST));
    }

    #[tokio::test]
    async fn a_request_waits_for_a_writer_to_appear_but_not_for_ever() {
        let mut replica = replica(Answering::Nobody).await;
        let refused = timeout(PATIENCE, replica.client.check(ask())).await.unwrap().unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::Unavailable, RETRIABLE));
        let mut waiting = replica.client.clone();
        let call = tokio::spawn(async move { waiting.check(ask()).await });
        replica.answering.send_replace(Answering::Here);
        assert_eq!(timeout(PATIENCE, call).await.unwrap().unwrap().unwrap().into_inner().status, 2);
    }

    #[tokio::test]
    async fn replicas_that_take_each_other_for_the_writer_do_not_forward_in_circles() {
        let (sender, receiver) = watch::channel(Answering::Nobody);
        let metrics = Metrics::unshared();
        let (url, _stop, _) = start(health(ServingStatus::Serving).await.layer(ProxyLayer::new(receiver, metrics.clone())));
        sender.send_replace(Answering::There(Upstream::new(&url, None).unwrap())); // itself
        let mut client = HealthClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap());
        let refused = timeout(PATIENCE, client.check(ask())).await.unwrap().unwrap_err();
        assert_eq!(refused.message(), RETRIABLE);
        assert_eq!(metrics.net.proxied_total.get(), u64::from(HOPS_MAX));
    }
}
