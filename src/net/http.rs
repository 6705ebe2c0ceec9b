//! The HTTP endpoints that etcd has beside gRPC, with etcd's bodies, codes and headers
//! (`etcdserver/api/etcdhttp/{health,version,metrics}.go`).
//!
//! It deliberately has no `/debug` pages and no JSON gateway.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::any;
use futures_util::future::BoxFuture;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use crate::telemetry::metrics::{ETCD_CLUSTER_VERSION, ETCD_VERSION, Metrics};

/// How long a health check's read may take: etcd's request timeout at its default election timeout.
const CHECK_TIMEOUT: Duration = Duration::from_secs(7);
const TEXT: &str = "text/plain; charset=utf-8";
/// As etcd's Prometheus client announces its text format.
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What the checks ask the server.
pub trait Health: Send + Sync + 'static {
    /// Whether there is a writer.
    fn has_leader(&self) -> bool;
    /// Sets the gauges that show a present state; called for each scrape.
    fn refresh_metrics(&self) {}
    /// Names of the alarms that are raised: `NOSPACE`, `CORRUPT`.
    fn alarms(&self) -> Vec<&'static str>;
    /// Reads one key as etcd's checks do, linearizably or not; the error is etcd's text.
    fn read(&self, serializable: bool) -> BoxFuture<'_, Result<(), String>>;
}

#[derive(Clone)]
struct Shared {
    health: Arc<dyn Health>,
    metrics: Metrics,
}

/// The endpoints of a client URL.
pub fn client_routes(health: Arc<dyn Health>, metrics: Metrics) -> Router {
    let version = any(|request: Request<Body>| async move { get_only(&request).unwrap_or_else(version) });
    metrics_routes(health, metrics).route("/version", version)
}

/// The endpoints of a metrics URL.
pub fn metrics_routes(health: Arc<dyn Health>, metrics: Metrics) -> Router {
    let mut router = Router::new().route("/health", any(health_endpoint)).route("/metrics", any(metrics_endpoint));
    for (kind, checks) in KINDS {
        let root = any(move |State(shared): State<Shared>, request: Request<Body>| async move {
            let excluded = query_values(&request, "exclude");
            let checks = checks.iter().copied().filter(|check| !excluded.iter().any(|name| name == check.name()));
            let checks: Vec<Check> = checks.collect();
            run_checks(&shared, kind, &checks, request).await
        });
        router = router.route(&format!("/{kind}"), root);
        for check in checks {
            let one = any(move |State(shared): State<Shared>, request: Request<Body>| async move {
                run_checks(&shared, kind, &[*check], request).await
            });
            router = router.route(&format!("/{kind}/{}", check.name()), one);
        }
    }
    router.with_state(Shared { health, metrics })
}

/// Answers what no route matches: gRPC's Unimplemented to gRPC clients, etcd's 404 to others.
pub async fn not_found(request: Request<Body>) -> Response<Body> {
    let grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        return error(StatusCode::NOT_FOUND, "404 page not found");
    }
    let path = request.uri().path();
    // grpc-go's texts (`server.go`, `handleStream`).
    let text = match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        Some((service, _method)) => format!("unknown service {service}"),
        None => format!("malformed method name: \"{path}\""),
    };
    tonic::Status::unimplemented(text).into_http()
}

/// One check of `/livez` or `/readyz`.
#[derive(Clone, Copy)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const KINDS: [(&str, &[Check]); 2] = [
    ("livez", &[Check::SerializableRead]),
    ("readyz", &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner]),
];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, health: &dyn Health) -> Result<(), String> {
        match self {
            Check::DataCorruption if health.alarms().contains(&"CORRUPT") => Err("alarm activated: CORRUPT".to_owned()),
            // Duet has no learners.
            Check::DataCorruption | Check::NonLearner => Ok(()),
            Check::SerializableRead => read(health, true).await,
            Check::LinearizableRead => read(health, false).await,
        }
    }
}

async fn read(health: &dyn Health, serializable: bool) -> Result<(), String> {
    let read = tokio::time::timeout(CHECK_TIMEOUT, health.read(serializable)).await;
    read.unwrap_or_else(|_| Err("etcdserver: request timed out".to_owned()))
}

async fn run_checks(shared: &Shared, kind: &'static str, checks: &[Check], request: Request<Body>) -> Response<Body> {
    if let Some(refused) = get_only(&request) {
        return refused;
    }
    let mut report = String::new();
    let mut failed = false;
    for check in checks {
        let name = check.name();
        let outcome = check.run(&*shared.health).await;
        shared.metrics.server.observe_check(kind, name, outcome.is_ok());
        match outcome {
            Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
            Err(text) => {
                failed = true;
                report.push_str(&format!("[-]{name} failed: {text}\n"));
            }
        }
    }
    if failed {
        tracing::error!(path = request.uri().path(), reason = report, "health check failed");
        return error(StatusCode::SERVICE_UNAVAILABLE, &report);
    }
    let mut body = if query(&request).any(|(name, _)| name == "verbose") { report } else { String::new() };
    body.push_str("ok\n");
    answer(StatusCode::OK, TEXT, body, &[NOSNIFF])
}

async fn health_endpoint(State(shared): State<Shared>, request: Request<Body>) -> Response<Body> {
    if let Some(refused) = get_only(&request) {
        return refused;
    }
    let serializable = query_values(&request, "serializable").first().is_some_and(|value| value == "true");
    let reason = health_reason(&*shared.health, &query_values(&request, "exclude"), serializable).await;
    shared.metrics.server.observe_health(reason.is_none());
    match reason {
        None => answer(StatusCode::OK, TEXT, r#"{"health":"true","reason":""}"#.to_owned(), &[]),
        Some(reason) => {
            tracing::warn!(reason, "serving /health false");
            let body = serde_json::json!({ "health": "false", "reason": reason });
            error(StatusCode::SERVICE_UNAVAILABLE, &body.to_string())
        }
    }
}

/// Why the server isn't healthy; etcd's order: alarms, leader, a read.
async fn health_reason(health: &dyn Health, excluded: &[String], serializable: bool) -> Option<String> {
    if let Some(alarm) = health.alarms().into_iter().find(|alarm| !excluded.iter().any(|name| name == alarm)) {
        return Some(format!("ALARM {alarm}"));
    }
    if !serializable && !health.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    read(health, serializable).await.err().map(|text| format!("RANGE ERROR:{text}"))
}

async fn metrics_endpoint(State(shared): State<Shared>) -> Response<Body> {
    shared.health.refresh_metrics();
    answer(StatusCode::OK, METRICS_TEXT, shared.metrics.render(), &[])
}

fn version() -> Response<Body> {
    let body =
        format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{ETCD_CLUSTER_VERSION}","storage":"{ETCD_CLUSTER_VERSION}"}}"#);
    answer(StatusCode::OK, "application/json", body, &[])
}

const NOSNIFF: (HeaderName, &str) = (HeaderName::from_static("x-content-type-options"), "nosniff");

/// Refuses other methods as etcd does, HEAD included.
fn get_only(request: &Request<Body>) -> Option<Response<Body>> {
    (request.method() != Method::GET).then(|| {
        let body = "Method Not Allowed\n".to_owned();
        answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, body, &[NOSNIFF, (ALLOW, "GET")])
    })
}

/// As Go's `http.Error` writes it.
fn error(status: StatusCode, text: &str) -> Response<Body> {
    answer(status, TEXT, format!("{text}\n"), &[NOSNIFF])
}

fn answer(status: StatusCode, kind: &'static str, body: String, headers: &[(HeaderName, &'static str)]) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    for (name, value) in headers {
        response.headers_mut().insert(name.clone(), HeaderValue::from_static(value));
    }
    response
}

/// Names and values of the query; the names and values used here need no decoding.
fn query(request: &Request<Body>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = request.uri().query().unwrap_or_default().split('&');
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn query_values(request: &Request<Body>, name: &str) -> Vec<String> {
    query(request).filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    /// A server in any state.
    struct Server {
        leader: bool,
        alarms: Vec<&'static str>,
        linearizable: Result<(), String>,
    }

    impl Health for Server {
        fn has_leader(&self) -> bool {
            self.leader
        }
        fn alarms(&self) -> Vec<&'static str> {
            self.alarms.clone()
        }
        fn read(&self, serializable: bool) -> BoxFuture<'_, Result<(), String>> {
            let result = if serializable { Ok(()) } else { self.linearizable.clone() };
            Box::pin(async move { result })
        }
    }

    fn healthy() -> Server {
        Server { leader: true, alarms: vec![], linearizable: Ok(()) }
    }

    async fn ask(server: Server, method: &str, uri: &str) -> (u16, String, String) {
        let router = client_routes(Arc::new(server), Metrics::unshared()).fallback(not_found);
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let kind = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    fn text(status: u16, body: &str) -> (u16, String, String) {
        (status, TEXT.to_owned(), body.to_owned())
    }

    // The expected bodies are what etcd 3.7.3 answered.
    #[tokio::test]
    async fn a_healthy_server_answers_as_etcd_does() {
        assert_eq!(ask(healthy(), "GET", "/health").await, text(200, r#"{"health":"true","reason":""}"#));
        let version = r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
        assert_eq!(ask(healthy(), "GET", "/version").await, (200, "application/json".into(), version.into()));
        assert_eq!(ask(healthy(), "GET", "/livez").await, text(200, "ok\n"));
        assert_eq!(ask(healthy(), "GET", "/livez?verbose").await, text(200, "[+]serializable_read ok\nok\n"));
        assert_eq!(ask(healthy(), "GET", "/livez/serializable_read").await, text(200, "ok\n"));
        let ready = "[+]data_corruption ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
        assert_eq!(ask(healthy(), "GET", "/readyz?verbose&exclude=serializable_read").await, text(200, ready));
        assert_eq!(ask(healthy(), "GET", "/nosuch").await, text(404, "404 page not found\n"));
        assert_eq!(ask(healthy(), "POST", "/health").await, text(405, "Method Not Allowed\n"));
        assert_eq!(ask(healthy(), "HEAD", "/livez").await.0, 405);
    }

    #[tokio::test]
    async fn an_unhealthy_server_says_why() {
        let full = || Server { alarms: vec!["NOSPACE"], ..healthy() };
        assert_eq!(ask(full(), "GET", "/health").await, text(503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n"));
        assert_eq!(ask(full(), "GET", "/health?exclude=NOSPACE").await.0, 200);
        assert_eq!(ask(full(), "GET", "/readyz").await.0, 200);
        let alone = || Server { leader: false, linearizable: Err("etcdserver: request timed out".into()), ..healthy() };
        assert_eq!(ask(alone(), "GET", "/health").await.2, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n");
        assert_eq!(ask(alone(), "GET", "/health?serializable=true").await.0, 200);
        assert_eq!(ask(alone(), "GET", "/livez").await.0, 200);
        let report = "[+]data_corruption ok\n[+]serializable_read ok\n\
                      [-]linearizable_read failed: etcdserver: request timed out\n[+]non_learner ok\n\n";
        assert_eq!(ask(alone(), "GET", "/readyz").await, text(503, report));
    }

    #[tokio::test]
    async fn an_unknown_grpc_service_is_unimplemented() {
        let request = Request::post("/v3lockpb.Lock/Lock").header(CONTENT_TYPE, "application/grpc").body(Body::empty()).unwrap();
        let response = not_found(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["grpc-message"], "unknown%20service%20v3lockpb.Lock");
    }
}
