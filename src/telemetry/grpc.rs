//! Counts RPCs, messages and bytes of gRPC as etcd's interceptors do (`grpc_server_*`, `etcd_network_client_grpc_*`).
//!
//! A tower layer around the whole gRPC router: it reads gRPC's own message framing as bodies pass, so that no service
//! has to count anything. Invariants: it never alters, delays or buffers a body; each RPC that starts is handled once,
//! as `Canceled` when its client goes away before the trailers; an RPC that one Duet forwards to another counts at the
//! first alone, which the client talks to. It deliberately ignores paths outside [`METHODS`], as grpc-go does with
//! methods that aren't registered: clients can't create label values.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::RwLock;
use prometheus::{Histogram, IntCounter, IntCounterVec};

use super::metrics::{Metrics, Registrar};

/// Service, type of its methods, methods: what etcd 3.7 registers (and grpc.health.v1).
#[rustfmt::skip]
const METHODS: &[(&str, &str, &[&str])] = &[
    ("etcdserverpb.KV", "unary", &["Compact", "DeleteRange", "Put", "Range", "Txn"]),
    ("etcdserverpb.KV", "server_stream", &["RangeStream"]),
    ("etcdserverpb.Watch", "bidi_stream", &["Watch"]),
    ("etcdserverpb.Lease", "unary", &["LeaseGrant", "LeaseLeases", "LeaseRevoke", "LeaseTimeToLive"]),
    ("etcdserverpb.Lease", "bidi_stream", &["LeaseKeepAlive"]),
    ("etcdserverpb.Cluster", "unary", &["MemberAdd", "MemberList", "MemberPromote", "MemberRemove", "MemberUpdate"]),
    ("etcdserverpb.Maintenance", "unary", &["Alarm", "Defragment", "Downgrade", "Hash", "HashKV", "MoveLeader", "Status"]),
    ("etcdserverpb.Maintenance", "server_stream", &["Snapshot"]),
    ("etcdserverpb.Auth", "unary", &["AuthDisable", "AuthEnable", "AuthStatus", "Authenticate", "RoleAdd", "RoleDelete", "RoleGet", "RoleGrantPermission", "RoleList", "RoleRevokePermission", "UserAdd", "UserChangePassword", "UserDelete", "UserGet", "UserGrantRole", "UserList", "UserRevokeRole"]),
    ("grpc.health.v1.Health", "unary", &["Check", "List"]),
    ("grpc.health.v1.Health", "server_stream", &["Watch"]),
];

/// gRPC's status codes in numerical order, spelled as grpc-go spells them in metrics.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
const CODE_CANCELED: usize = 1;
const CODE_UNKNOWN: usize = 2;

/// The header of requests that another Duet has forwarded, and counted.
pub const FORWARDED: HeaderName = HeaderName::from_static("duet-forwarded");

/// Distinct `client_api_version` labels that are kept; further ones count as `other`.
const CLIENT_VERSIONS_MAX: usize = 32;

/// The counters of every known method.
pub struct GrpcMetrics {
    by_path: HashMap<String, Arc<MethodMetrics>>,
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
    client_requests: IntCounterVec,
    /// (type, version) → counter; bounded by [`CLIENT_VERSIONS_MAX`].
    client_versions: RwLock<HashMap<(&'static str, String), IntCounter>>,
}

struct MethodMetrics {
    type_: &'static str,
    started: IntCounter,
    received: IntCounter,
    sent: IntCounter,
    handled: Vec<IntCounter>,
    /// Only with `--metrics=extensive`.
    seconds: Option<Histogram>,
}

impl GrpcMetrics {
    pub(super) fn new(r: &Registrar, extensive: bool) -> Result<Self, prometheus::Error> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let coded = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        let started = r.counters("grpc_server_started_total", "Total number of RPCs started on the server.", &labels)?;
        let received =
            r.counters("grpc_server_msg_received_total", "Total number of RPC stream messages received on the server.", &labels)?;
        let sent =
            r.counters("grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server.", &labels)?;
        let handled = r.counters(
            "grpc_server_handled_total",
            "Total number of RPCs completed on the server, regardless of success or failure.",
            &coded,
        )?;
        let seconds = extensive.then(|| {
            r.histograms(
                "grpc_server_handling_seconds",
                "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.",
                (0.0005, 2.0, 15),
                &labels,
            )
        });
        let seconds = seconds.transpose()?;
        let mut by_path = HashMap::new();
        for &(service, type_, methods) in METHODS {
            for method in methods {
                let values = [type_, service, method];
                let method_metrics = MethodMetrics {
                    type_: if type_ == "unary" { "unary" } else { "stream" },
                    started: started.with_label_values(&values),
                    received: received.with_label_values(&values),
                    sent: sent.with_label_values(&values),
                    handled: CODES.iter().map(|code| handled.with_label_values(&[type_, service, method, code])).collect(),
                    seconds: seconds.as_ref().map(|seconds| seconds.with_label_values(&values)),
                };
                by_path.insert(format!("/{service}/{method}"), Arc::new(method_metrics));
            }
        }
        Ok(Self {
            by_path,
            sent_bytes: r
                .counter("etcd_network_client_grpc_sent_bytes_total", "The total number of bytes sent to grpc clients.")?,
            received_bytes: r.counter(
                "etcd_network_client_grpc_received_bytes_total",
                "The total number of bytes received from grpc clients.",
            )?,
            client_requests: r.counters(
                "etcd_server_client_requests_total",
                "The total number of client requests per client version.",
                &["type", "client_api_version"],
            )?,
            client_versions: RwLock::default(),
        })
    }

    fn count_client(&self, type_: &'static str, headers: &HeaderMap) {
        let version = headers.get("client-api-version").and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        let version = if version.len() <= 32 { version } else { "other" };
        if let Some(counter) = self.client_versions.read().get(&(type_, version.to_owned())) {
            return counter.inc();
        }
        let mut known = self.client_versions.write();
        let version = if known.len() < CLIENT_VERSIONS_MAX { version } else { "other" };
        known
            .entry((type_, version.to_owned()))
            .or_insert_with(|| self.client_requests.with_label_values(&[type_, version]))
            .inc();
    }
}

/// Wraps a gRPC router in the counters of [`GrpcMetrics`].
#[derive(Clone)]
pub struct GrpcMetricsLayer(Metrics);

impl GrpcMetricsLayer {
    /// A layer that counts into `metrics`.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self(metrics)
    }
}

impl<S> tower::Layer<S> for GrpcMetricsLayer {
    type Service = GrpcMetricsService<S>;
    fn layer(&self, inner: S) -> Self::Service {
        GrpcMetricsService { inner, metrics: self.0.clone() }
    }
}

/// The service that [`GrpcMetricsLayer`] makes.
#[derive(Clone)]
pub struct GrpcMetricsService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S> tower::Service<Request<Body>> for GrpcMetricsService<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let grpc = &self.metrics.grpc;
        let method = grpc.by_path.get(request.uri().path()).filter(|_| !request.headers().contains_key(FORWARDED));
        let Some(method) = method.cloned() else {
            return Box::pin(self.inner.call(request));
        };
        method.started.inc();
        grpc.count_client(method.type_, request.headers());
        let (received_bytes, sent_bytes) = (grpc.received_bytes.clone(), grpc.sent_bytes.clone());
        let received = method.received.clone();
        let rpc = Rpc { method, started: Instant::now(), open: true };
        let request =
            request.map(|body| Body::new(CountedBody::new(body, Counted { messages: received, bytes: received_bytes }, None)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut rpc = rpc; // dropped with the future when the client gives up before there is an answer
            let response = answer.await?;
            if let Some(code) = status_code(response.headers()) {
                rpc.handled(code); // a refusal without a body: the status is in the headers
            }
            let messages = rpc.method.sent.clone();
            Ok(response.map(|body| Body::new(CountedBody::new(body, Counted { messages, bytes: sent_bytes }, Some(rpc)))))
        })
    }
}

fn status_code(headers: &HeaderMap) -> Option<usize> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok());
    Some(code.filter(|&code: &usize| code < CODES.len()).unwrap_or(CODE_UNKNOWN))
}

/// One RPC from its start to its status.
struct Rpc {
    method: Arc<MethodMetrics>,
    started: Instant,
    open: bool,
}

impl Rpc {
    fn handled(&mut self, code: usize) {
        if std::mem::take(&mut self.open) {
            self.method.handled[code].inc();
            if let Some(seconds) = &self.method.seconds {
                seconds.observe(self.started.elapsed().as_secs_f64());
            }
        }
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.handled(CODE_CANCELED);
    }
}

struct Counted {
    messages: IntCounter,
    bytes: IntCounter,
}

/// Finds message boundaries in a gRPC body: each message is a flag byte, four bytes of length, and the payload.
#[derive(Default)]
struct Framing {
    /// Bytes of the current prefix seen, 0 to 5.
    prefix_seen: u8,
    length: u32,
    payload_left: u32,
}

impl Framing {
    /// Returns how many messages begin (prefix complete) in `chunk` and how many payload bytes it holds.
    fn advance(&mut self, mut chunk: &[u8]) -> (u64, u64) {
        let (mut messages, mut payload_bytes) = (0, 0);
        while !chunk.is_empty() {
            if self.payload_left > 0 {
                let taken = chunk.len().min(self.payload_left as usize);
                self.payload_left -= taken as u32; // taken ≤ payload_left, so it fits
                payload_bytes += taken as u64;
                chunk = &chunk[taken..];
                continue;
            }
            if self.prefix_seen > 0 {
                self.length = self.length << 8 | u32::from(chunk[0]);
            }
            self.prefix_seen += 1;
            chunk = &chunk[1..];
            if self.prefix_seen == 5 {
                messages += 1;
                *self = Self { payload_left: self.length, ..Self::default() };
            }
        }
        (messages, payload_bytes)
    }
}

/// A body whose messages are counted as they pass.
struct CountedBody {
    inner: Body,
    framing: Framing,
    counted: Counted,
    rpc: Option<Rpc>,
}

impl CountedBody {
    fn new(inner: Body, counted: Counted, rpc: Option<Rpc>) -> Self {
        Self { inner, framing: Framing::default(), counted, rpc }
    }
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let (messages, bytes) = this.framing.advance(data);
                this.counted.messages.inc_by(messages);
                this.counted.bytes.inc_by(bytes);
            }
            if let (Some(trailers), Some(rpc)) = (frame.trailers_ref(), &mut this.rpc) {
                rpc.handled(status_code(trailers).unwrap_or(CODE_UNKNOWN));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};
    use tower::{Layer, ServiceExt, service_fn};

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut framed = vec![0];
        framed.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        framed.extend_from_slice(payload);
        framed
    }

    fn value(metrics: &Metrics, line_start: &str) -> Option<f64> {
        let text = metrics.render();
        let line = text.lines().find(|line| line.starts_with(line_start))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    #[test]
    fn messages_are_counted_wherever_the_chunks_are_cut() {
        let stream: Vec<u8> = [message(b"abc"), message(b""), message(&[7; 300])].concat();
        for cut in 1..stream.len() {
            let mut framing = Framing::default();
            let (messages, bytes) =
                stream.chunks(cut).map(|chunk| framing.advance(chunk)).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
            assert_eq!((messages, bytes), (3, 303), "chunks of {cut} bytes");
        }
    }

    #[tokio::test]
    async fn an_rpc_is_counted_from_its_start_to_the_status_in_its_trailers() {
        let metrics = Metrics::unshared();
        let echo = service_fn(|request: Request<Body>| async move {
            let data = request.into_body().collect().await.unwrap().to_bytes();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "11".parse().unwrap());
            let frames = [Ok::<_, Infallible>(Frame::data(data)), Ok(Frame::trailers(trailers))];
            Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames)))))
        });
        let service = GrpcMetricsLayer::new(metrics.clone()).layer(echo);
        let request = Request::post("/etcdserverpb.KV/Range")
            .header("client-api-version", "3.6.4")
            .body(Body::from(message(b"12345")))
            .unwrap();
        let response = service.oneshot(request).await.unwrap();
        let label = r#"{grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
        assert_eq!(value(&metrics, &format!("grpc_server_started_total{label}")), Some(1.0));
        response.into_body().collect().await.unwrap();
        assert_eq!(value(&metrics, &format!("grpc_server_msg_received_total{label}")), Some(1.0));
        assert_eq!(value(&metrics, &format!("grpc_server_msg_sent_total{label}")), Some(1.0));
        assert_eq!(value(&metrics, r#"grpc_server_handled_total{grpc_code="OutOfRange",grpc_method="Range","#), Some(1.0));
        assert_eq!(value(&metrics, r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Range","#), Some(0.0));
        assert_eq!(value(&metrics, "etcd_network_client_grpc_received_bytes_total"), Some(5.0));
        assert_eq!(value(&metrics, "etcd_network_client_grpc_sent_bytes_total"), Some(5.0));
        let clients = r#"etcd_server_client_requests_total{client_api_version="3.6.4",type="unary"}"#;
        assert_eq!(value(&metrics, clients), Some(1.0));
    }

    #[tokio::test]
    async fn an_rpc_that_another_duet_has_forwarded_was_counted_there() {
        let metrics = Metrics::unshared();
        let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::from(message(b"123")))) });
        let service = GrpcMetricsLayer::new(metrics.clone()).layer(answer);
        let request = Request::post("/etcdserverpb.KV/Range").header(FORWARDED, "1").body(Body::empty()).unwrap();
        service.oneshot(request).await.unwrap().into_body().collect().await.unwrap();
        let label = r#"{grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#;
        assert_eq!(value(&metrics, &format!("grpc_server_started_total{label}")), Some(0.0));
        assert_eq!(value(&metrics, "etcd_network_client_grpc_sent_bytes_total"), Some(0.0));
    }

    #[tokio::test]
    async fn an_rpc_whose_client_leaves_before_the_status_counts_as_canceled() {
        let metrics = Metrics::unshared();
        let silent = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Body::new(StreamBody::new(tokio_stream::pending::<
                Result<Frame<Bytes>, Infallible>,
            >()))))
        });
        let service = GrpcMetricsLayer::new(metrics.clone()).layer(silent);
        let response = service.oneshot(Request::post("/etcdserverpb.Watch/Watch").body(Body::empty()).unwrap()).await;
        drop(response);
        let canceled = r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Watch",grpc_service="etcdserverpb.Watch""#;
        assert_eq!(value(&metrics, canceled), Some(1.0));
    }

    #[tokio::test]
    async fn clients_cannot_create_label_values_without_bound() {
        let metrics = Metrics::unshared();
        for n in 0..1000 {
            let mut headers = HeaderMap::new();
            headers.insert("client-api-version", format!("v{n}").parse().unwrap());
            metrics.grpc.count_client("unary", &headers);
        }
        let series = metrics.render().lines().filter(|l| l.starts_with("etcd_server_client_requests_total")).count();
        assert!(series <= CLIENT_VERSIONS_MAX + 1, "{series} series");
    }
}
