//! A server that answers GetObject and PutObject as Amazon documents them, conditions included ("How to prevent object overwrites with
//! conditional writes", Amazon S3 User Guide): 412 when a condition doesn't hold, 404 for `If-Match` where nothing is, 409 while another
//! conditional write to the same key is under way. The ETag is made from the contents alone, so that a copy has its original's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tempfile::TempDir;

use crate::common::scratch;

/// See the module.
pub struct Server {
    pub port: u16,
    pub bucket: Arc<Bucket>,
    dir: TempDir,
}

/// What it has, and what is wrong with it.
#[derive(Default)]
pub struct Bucket {
    objects: Mutex<BTreeMap<String, Object>>,
    /// Keys that are being written to on a condition.
    under_way: Mutex<Vec<String>>,
    /// Conditions don't count: there are such stores.
    pub ignores_conditions: AtomicBool,
    /// It answers that it can't answer.
    pub is_down: AtomicBool,
    /// How far its clock has been moved on.
    pub later_s: AtomicU64,
}

#[derive(Clone)]
struct Object {
    contents: Bytes,
    modified: SystemTime,
}

fn etag(contents: &[u8]) -> String {
    format!("\"{:08x}\"", crc32c::crc32c(contents))
}

fn error(status: StatusCode, code: &str) -> Response {
    (status, format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code></Error>")).into_response()
}

impl Bucket {
    fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_secs(self.later_s.load(Ordering::Relaxed))
    }

    fn get(&self, key: &str) -> Response {
        let objects = self.objects.lock().unwrap();
        let Some(Object { contents, modified }) = objects.get(key).cloned() else {
            return error(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        let date = |moment| httpdate::fmt_http_date(moment);
        let headers = [("etag", etag(&contents)), ("last-modified", date(modified)), ("date", date(self.now()))];
        (headers, contents).into_response()
    }

    async fn put(&self, key: &str, headers: &HeaderMap, contents: Bytes) -> Response {
        let condition = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let (matches, none) = (condition("if-match"), condition("if-none-match"));
        if self.ignores_conditions.load(Ordering::Relaxed) || (matches.is_none() && none.is_none()) {
            self.store(key, contents);
            return StatusCode::OK.into_response();
        }
        {
            let mut under_way = self.under_way.lock().unwrap();
            if under_way.iter().any(|other| other == key) {
                return error(StatusCode::CONFLICT, "ConditionalRequestConflict");
            }
            under_way.push(key.to_owned());
        }
        tokio::time::sleep(Duration::from_millis(2)).await; // what it takes to store it
        let present = self.objects.lock().unwrap().get(key).map(|object| etag(&object.contents));
        let response = match (matches, none, present) {
            (Some(_), _, None) => error(StatusCode::NOT_FOUND, "NoSuchKey"),
            (Some(wanted), _, Some(present)) if wanted != present => error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
            (_, Some(_), Some(_)) => error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
            _ => {
                self.store(key, contents.clone());
                ([("etag", etag(&contents))], ()).into_response()
            }
        };
        self.under_way.lock().unwrap().retain(|other| other != key);
        response
    }

    /// What is kept as `key`, which begins with the bucket's name.
    pub fn contents(&self, key: &str) -> Vec<u8> {
        self.objects.lock().unwrap()[key].contents.to_vec()
    }

    pub fn remove(&self, key: &str) {
        self.objects.lock().unwrap().remove(key).expect("it was there");
    }

    pub fn store(&self, key: &str, contents: Bytes) {
        self.objects.lock().unwrap().insert(key.to_owned(), Object { contents, modified: self.now() });
    }
}

async fn answer(State(bucket): State<Arc<Bucket>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let signed = headers.get("authorization").and_then(|value| value.to_str().ok());
    if !signed.is_some_and(|text| text.starts_with("AWS4-HMAC-SHA256 Credential=ID/") && text.contains("/here/s3/aws4_request")) {
        return error(StatusCode::FORBIDDEN, "AccessDenied");
    }
    if bucket.is_down.load(Ordering::Relaxed) {
        return error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    match method {
        Method::GET => bucket.get(uri.path()),
        Method::PUT => bucket.put(uri.path(), &headers, body).await,
        _ => error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

impl Server {
    pub async fn start() -> Self {
        let dir = scratch();
        std::fs::write(dir.path().join("credentials"), "aws_access_key_id = ID\naws_secret_access_key = SECRET\n").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bucket = Arc::new(Bucket::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&bucket));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { port, bucket, dir }
    }

    /// The witness that keeps its register as `name`, reached by way of `port`.
    pub fn url(&self, name: &str, port: u16) -> String {
        let credentials = self.dir.path().join("credentials");
        format!("s3://bucket/{name}?region=here&endpoint=http://127.0.0.1:{port}&credentials-file={}", credentials.display())
    }
}
