//! What is looked at before a service sees a request: whether there is a leader if the client requires one, and how large its messages
//! are; and gRPC's own refusals in grpc-go's words, as etcd's clients know them.
//!
//! tonic refuses a large message with OutOfRange; gRPC's own libraries, and so etcd, answer ResourceExhausted, and clients tell these
//! apart. So the body is watched here as it arrives: the prefix that announces too large a message ends it, before it is buffered.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tonic::{Code, Status};

use super::error::Error;
use super::leader;
use crate::engine::Role;
use crate::proto::nested::TOO_DEEP;

/// The metadata by which a client says that it wants to be refused when there is no leader.
pub(super) const REQUIRE_LEADER: &str = "hasleader";
/// The metadata by which a client says which version of the API it speaks.
const CLIENT_API_VERSION: &str = "client-api-version";

/// Wraps the gRPC routes in these checks.
#[derive(Clone)]
pub(super) struct GateLayer {
    role: watch::Receiver<Role>,
    message_bytes_max: usize,
    /// The services that are there: any other is unknown.
    services: Arc<[&'static str]>,
}

impl GateLayer {
    /// Checks before `services`, which refuse messages of more than `message_bytes_max` bytes.
    pub(super) fn new(role: watch::Receiver<Role>, message_bytes_max: usize, services: Vec<&'static str>) -> Self {
        Self { role, message_bytes_max, services: services.into() }
    }
}

impl<S> tower::Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, gate: self.clone() }
    }
}

/// The service that [`GateLayer`] makes.
#[derive(Clone)]
pub(super) struct Gate<S> {
    inner: S,
    gate: GateLayer,
}

impl<S> tower::Service<Request<Body>> for Gate<S>
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
        if let Err(error) = check(request.headers(), &self.gate.role) {
            let refusal = Status::from(error).into_http();
            return Box::pin(async move { Ok(refusal) });
        }
        let limit = self.gate.message_bytes_max;
        let (uri, services) = (request.uri().clone(), Arc::clone(&self.gate.services));
        let answer =
            self.inner.call(request.map(|body| Body::new(LimitedBody { inner: body, framing: Framing::default(), limit })));
        Box::pin(async move {
            let mut response = answer.await?;
            if response.headers().contains_key("grpc-status") {
                reword(uri.path(), &services, response.headers_mut());
            }
            Ok(response)
        })
    }
}

fn check(headers: &HeaderMap, role: &watch::Receiver<Role>) -> Result<(), Error> {
    if headers.get(CLIENT_API_VERSION).is_some_and(|version| std::str::from_utf8(version.as_bytes()).is_err()) {
        return Err(Error::InvalidClientAPIVersion);
    }
    let required = headers.get(REQUIRE_LEADER).is_some_and(|value| value.as_bytes() == b"true");
    if required && !leader::is_known(&role.borrow()) {
        return Err(Error::NoLeader);
    }
    Ok(())
}

/// Gives the refusals that tonic makes by itself the texts that grpc-go gives them.
fn reword(path: &str, services: &[&str], headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers) else { return };
    let reworded = match status.code() {
        Code::Unimplemented if status.message().is_empty() => {
            let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or((path, ""));
            Status::unimplemented(if services.contains(&service) {
                format!("unknown method {method} for service {service}")
            } else {
                format!("unknown service {service}")
            })
        }
        Code::Internal if status.message().starts_with("failed to decode Protobuf message") => {
            let why = if status.message().ends_with(TOO_DEEP) { TOO_DEEP } else { "cannot parse invalid wire-format data" };
            Status::internal(format!("grpc: error unmarshalling request: proto: {why}"))
        }
        _ => return,
    };
    // Only a text that can't be a header fails here; the status then stays as it was.
    let _ = reworded.add_header(headers);
}

/// Finds the lengths of the messages in a gRPC body: each is a flag byte, four bytes of length, and the payload.
#[derive(Default)]
struct Framing {
    /// Bytes seen of the prefix at hand, 0 to 4.
    prefix_seen: u8,
    length: u32,
    payload_left: usize,
}

impl Framing {
    /// Goes through `chunk`; answers the length of a message over `limit` bytes that begins in it.
    fn oversized(&mut self, mut chunk: &[u8], limit: usize) -> Option<u32> {
        while !chunk.is_empty() {
            let skipped = chunk.len().min(self.payload_left);
            self.payload_left -= skipped;
            chunk = &chunk[skipped..];
            let Some((byte, rest)) = chunk.split_first() else { break };
            chunk = rest;
            if self.prefix_seen > 0 {
                self.length = (self.length << 8) | u32::from(*byte);
            }
            self.prefix_seen += 1;
            if self.prefix_seen == 5 {
                let length = std::mem::take(&mut self.length);
                self.prefix_seen = 0;
                self.payload_left = length as usize;
                if self.payload_left > limit {
                    return Some(length);
                }
            }
        }
        None
    }
}

/// A request's body, cut off at a message that is too large.
struct LimitedBody {
    inner: Body,
    framing: Framing,
    limit: usize,
}

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Some(length) = this.framing.oversized(data, this.limit)
        {
            return Poll::Ready(Some(Err(too_large(length, this.limit).into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// grpc-go's own words.
fn too_large(length: u32, limit: usize) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({length} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: u32) -> Vec<u8> {
        let mut framed = vec![0];
        framed.extend_from_slice(&len.to_be_bytes());
        framed.resize(5 + len as usize, 7);
        framed
    }

    fn oversized(body: &[u8], chunk: usize, limit: usize) -> Option<u32> {
        let mut framing = Framing::default();
        body.chunks(chunk).find_map(|chunk| framing.oversized(chunk, limit))
    }

    #[test]
    fn a_message_over_the_limit_is_found_wherever_the_body_is_cut() {
        let body = [message(10), message(0), message(300), message(11)].concat();
        for chunk in 1..body.len() {
            assert_eq!(oversized(&body, chunk, 300), None, "chunks of {chunk} bytes");
            assert_eq!(oversized(&body, chunk, 299), Some(300), "chunks of {chunk} bytes");
        }
    }

    #[test]
    fn a_length_that_is_announced_is_enough() {
        assert_eq!(oversized(&[0, 0xff, 0xff, 0xff, 0xff], 5, 2 << 20), Some(u32::MAX));
    }

    fn headers(name: &'static str, value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), http::HeaderValue::from_bytes(value).unwrap())])
    }

    #[test]
    fn a_client_that_requires_a_leader_is_refused_while_there_is_none() {
        let (role, seen) = watch::channel(Role::Standby);
        assert_eq!(check(&headers("hasleader", b"true"), &seen), Err(Error::NoLeader));
        assert_eq!(check(&headers("hasleader", b"false"), &seen), Ok(()));
        assert_eq!(check(&HeaderMap::new(), &seen), Ok(()));
        role.send_replace(Role::Active);
        assert_eq!(check(&headers("hasleader", b"true"), &seen), Ok(()));
    }

    #[test]
    fn a_client_api_version_that_is_no_text_is_refused_before_the_leader_is_asked_for() {
        let (_role, seen) = watch::channel(Role::Standby);
        let mut both = headers("client-api-version", &[0xff, 0xfe]);
        both.extend(headers("hasleader", b"true"));
        assert_eq!(check(&both, &seen), Err(Error::InvalidClientAPIVersion));
    }
}
