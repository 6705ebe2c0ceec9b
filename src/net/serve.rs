//! Connections: one task each, HTTP/1.1 or HTTP/2 by what the client says first.
//!
//! Invariants: a handshake, the first byte and HTTP/1's headers each have a deadline; accepting goes on whatever one
//! connection does; after the shutdown token everything ends within the drain time, politely (GOAWAY, which makes
//! clientv3 go elsewhere without failing a call) or by force.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::listen::{Accepted, Listeners, Socket};
use super::tls::{ClientCertificate, Tls};
use crate::config::{Config, Keepalive};
use crate::telemetry::metrics::Metrics;

/// From the connection to its end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From the connection to its first byte: an honest client speaks at once.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(60);
/// For the headers of an HTTP/1.1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What one stream may send ahead of being read: a request of etcd's largest default size in one flight.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// What one connection may send ahead; clientv3 puts all of an API server's requests for a resource on one.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// What one stream's answer may buffer before its writer waits: keeps large lists from stalling on small writes.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// Streams that a client opens and resets before they are looked at. h2's 20 would close the connection of an API server
/// that cancels a burst of requests; a thousand still ends a reset flood.
const PENDING_RESETS_MAX: usize = 1024;
/// After "too many open files": time for some to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// `--max-concurrent-streams`.
    pub max_concurrent_streams: u32,
    /// HTTP/2 pings.
    pub keepalive: Keepalive,
    /// How long connections may take to end after the shutdown token.
    pub drain: Duration,
    /// Certificates, for `https` and `unixs` URLs.
    pub tls: Option<Tls>,
    /// Where connections are counted.
    pub metrics: Metrics,
}

impl ServeOptions {
    /// As the configuration says.
    #[must_use]
    pub fn new(config: &Config, tls: Option<Tls>, metrics: Metrics) -> Self {
        Self {
            max_concurrent_streams: config.limits.max_concurrent_streams,
            keepalive: config.keepalive.clone(),
            drain: config.shutdown_timeout,
            tls,
            metrics,
        }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every connection ended by itself.
    Clean,
    /// This many connections were cut off at the deadline.
    Forced(usize),
}

/// What answers requests: a clone for each.
pub trait Service:
    tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Service for S where
    S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

/// Serves `service` on `listeners` until `shutdown`, then ends every connection within [`ServeOptions::drain`].
pub async fn serve<S: Service>(listeners: Listeners, service: S, shutdown: CancellationToken, options: ServeOptions) -> Drained {
    let server = Arc::new(Server { http: http_builder(&options), service, shutdown, kill: CancellationToken::new(), options });
    let connections = TaskTracker::new();
    let accepting = TaskTracker::new();
    for (socket, tls) in listeners.0 {
        accepting.spawn(Arc::clone(&server).accept_all(socket, tls, connections.clone()));
    }
    accepting.close();
    accepting.wait().await; // ends at the shutdown token; the sockets are closed by then
    connections.close();
    if timeout(server.options.drain, connections.wait()).await.is_ok() {
        return Drained::Clean;
    }
    let left = connections.len();
    server.kill.cancel();
    connections.wait().await; // each of them only waits for the token now
    if left == 0 { Drained::Clean } else { Drained::Forced(left) }
}

fn http_builder(options: &ServeOptions) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut h2 = http.http2();
    h2.timer(TokioTimer::new())
        .max_concurrent_streams(options.max_concurrent_streams)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX);
    if let (Some(interval), Some(limit)) = (options.keepalive.interval, options.keepalive.timeout) {
        h2.keep_alive_interval(interval).keep_alive_timeout(limit);
    }
    http
}

struct Server<S> {
    http: auto::Builder<TokioExecutor>,
    service: S,
    shutdown: CancellationToken,
    kill: CancellationToken,
    options: ServeOptions,
}

impl<S: Service> Server<S> {
    async fn accept_all(self: Arc<Self>, socket: Socket, tls: bool, connections: TaskTracker) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => drop(connections.spawn(Arc::clone(&self).connection(accepted, tls))),
                // The client was gone before it was accepted.
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "can't accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, accepted: Accepted, tls: bool) {
        let metrics = &self.options.metrics.net;
        metrics.connections_total.inc();
        metrics.connections.inc();
        let server = &*self;
        let served = async {
            match accepted {
                Accepted::Tcp(stream, peer) => {
                    tracing::trace!(%peer, "connection");
                    within(FIRST_BYTE_TIMEOUT, stream.readable()).await?;
                    server.secured(stream, tls).await
                }
                Accepted::Unix(stream) => {
                    within(FIRST_BYTE_TIMEOUT, stream.readable()).await?;
                    server.secured(stream, tls).await
                }
            }
        };
        tokio::select! {
            result = served => {
                // Resets and garbage are a client's own business: nothing an operator could do about them.
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
            }
            () = server.kill.cancelled() => {}
        }
        metrics.connections.dec();
    }

    async fn secured(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, tls: bool) -> io::Result<()> {
        let Some(tls) = self.options.tls.as_ref().filter(|_| tls) else {
            return self.exchange(stream, None).await;
        };
        match within(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls.current()).accept(stream)).await {
            Ok(stream) => {
                let client = ClientCertificate::of(stream.get_ref().1);
                self.exchange(stream, client).await
            }
            Err(error) => {
                self.options.metrics.net.tls_handshake_failures_total.inc();
                Err(error)
            }
        }
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        client: Option<ClientCertificate>,
    ) -> io::Result<()> {
        let service = self.service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(client) = &client {
                request.extensions_mut().insert(client.clone());
            }
            service.clone().call(request.map(Body::new))
        });
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        result.map_err(io::Error::other)
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | NotConnected)
}
