//! Which requests a follower answers by itself: watches, and reads that are content with what it has (etcd's serializable).
//!
//! etcd's members do the same. Everything else goes to the writer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use prost::Message;

use crate::mvcc::{is_read_only, is_serializable};
use crate::proto::etcdserverpb::{RangeRequest, TxnRequest};
use crate::telemetry::grpc::FORWARDED;
use crate::types::Revision;

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const RANGE: &str = "/etcdserverpb.KV/Range";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const TXN: &str = "/etcdserverpb.KV/Txn";
/// Requests that are longer aren't looked into: a read that says little more than a key is shorter.
const LOOK_BYTES_MAX: usize = 16 << 10;
/// gRPC's frame: a flag for compression, and the length of the message.
const FRAME_BYTES: usize = 5;

/// Says whether this process has what a follower answers from, and waits until it has what the writer has told.
#[derive(Clone)]
pub struct Local {
    follows: Arc<dyn Fn() -> bool + Send + Sync>,
    shows: Arc<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>,
}

/// The header of an answer to a request that was forwarded: what the writer had published by then.
const REVISION: HeaderName = HeaderName::from_static("duet-revision");

/// A layer that tells, with each answer to a forwarded request, what was published by then.
#[derive(Clone)]
pub struct TellRevision(Arc<dyn Fn() -> Revision + Send + Sync>);

impl TellRevision {
    /// `published` is asked when there is an answer.
    pub fn new(published: impl Fn() -> Revision + Send + Sync + 'static) -> Self {
        Self(Arc::new(published))
    }
}

impl<S> tower::Layer<S> for TellRevision {
    type Service = Telling<S>;

    fn layer(&self, inner: S) -> Telling<S> {
        Telling { inner, revision: self.clone() }
    }
}

/// The service that [`TellRevision`] makes.
#[derive(Clone)]
pub struct Telling<S> {
    inner: S,
    revision: TellRevision,
}

impl<S> tower::Service<Request<Body>> for Telling<S>
where
    S: tower::Service<Request<Body>, Response = Response<Body>, Future: Send + 'static>,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let tell = request.headers().contains_key(FORWARDED).then(|| self.revision.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            if let Some(TellRevision(published)) = tell {
                answer.headers_mut().insert(REVISION, HeaderValue::from(published()));
            }
            Ok(answer)
        })
    }
}

/// What the way of a request depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Answered here.
    Here,
    /// Not without the writer.
    Writer,
    /// The request itself must be looked into.
    Look,
}

impl Local {
    /// `follows` is asked for each request that could be answered here; `shows` resolves when what is answered here isn't older than a revision,
    /// or after a while.
    pub fn new(
        follows: impl Fn() -> bool + Send + Sync + 'static,
        shows: impl Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { follows: Arc::new(follows), shows: Arc::new(shows) }
    }

    /// Holds an answer of the writer's back until its client can see here what it tells.
    pub(super) async fn catch_up(&self, answer: &mut Response<Body>) {
        let told = answer.headers_mut().remove(REVISION);
        let revision = told.and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(revision) = revision.filter(|_| (self.follows)()) {
            (self.shows)(revision).await;
        }
    }

    pub(super) fn way(&self, request: &Request<Body>) -> Way {
        let way = match request.uri().path() {
            WATCH => Way::Here,
            RANGE | RANGE_STREAM | TXN => Way::Look,
            _ => Way::Writer,
        };
        if way != Way::Writer && (self.follows)() { way } else { Way::Writer }
    }
}

/// Reads the beginning of the request; the request as it was, and whether it may be answered here.
pub(super) async fn look(request: Request<Body>) -> (Request<Body>, bool) {
    let (parts, mut body) = request.into_parts();
    let mut read = BytesMut::new();
    let mut whole = None;
    while whole.is_none() && read.len() <= LOOK_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                // A client's trailers: gRPC has none.
                Err(_) => break,
            },
            // What is wrong with it, whoever answers it finds out from what there is.
            Some(Err(_)) | None => break,
        }
        whole = message(&read);
    }
    let here = whole.is_some_and(|message| is_local(parts.uri.path(), message));
    (Request::from_parts(parts, Body::new(Begun { read: Some(read.freeze()), rest: body })), here)
}

/// A body of which a part has been read already.
struct Begun {
    read: Option<Bytes>,
    rest: Body,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.read.take().filter(|read| !read.is_empty()) {
            Some(read) => Poll::Ready(Some(Ok(Frame::data(read)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }
}

/// The message of a frame, when all of it is there and it isn't compressed.
fn message(read: &[u8]) -> Option<Bytes> {
    let mut frame = read;
    if frame.len() < FRAME_BYTES || frame.get_u8() != 0 {
        return None;
    }
    let length = frame.get_u32() as usize;
    frame.get(..length).map(Bytes::copy_from_slice)
}

fn is_local(path: &str, message: Bytes) -> bool {
    match path {
        TXN => TxnRequest::decode(message).is_ok_and(|txn| is_read_only(&txn) && is_serializable(&txn)),
        _ => RangeRequest::decode(message).is_ok_and(|range| range.serializable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::etcdserverpb::request_op;
    use crate::proto::etcdserverpb::{PutRequest, RequestOp};
    use std::sync::atomic::{AtomicBool, Ordering};
    use tower::Service;

    fn framed(message: &impl Message) -> Vec<u8> {
        let message = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&message);
        framed
    }

    fn request(path: &str, pieces: Vec<Vec<u8>>) -> Request<Body> {
        let pieces = futures_util::stream::iter(pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece))));
        Request::builder().uri(path).body(Body::from_stream(pieces)).unwrap()
    }

    /// Whether it may be answered here, and what the one who answers gets.
    async fn looked(path: &str, pieces: Vec<Vec<u8>>) -> (bool, Vec<u8>) {
        let (request, here) = look(request(path, pieces)).await;
        (here, request.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    fn range(serializable: bool, key_bytes: usize) -> RangeRequest {
        RangeRequest { key: vec![b'k'; key_bytes].into(), serializable, ..RangeRequest::default() }
    }

    #[tokio::test]
    async fn serializable_reads_are_recognised_however_they_arrive_and_stay_whole() {
        let read = framed(&range(true, 100));
        for cut in [0, 1, 5, 50, read.len()] {
            let pieces = vec![read[..cut].to_vec(), read[cut..].to_vec()];
            assert_eq!(looked(RANGE, pieces).await, (true, read.clone()), "cut at {cut}");
        }
        assert_eq!(looked(RANGE, vec![framed(&range(false, 1))]).await, (false, framed(&range(false, 1))));
    }

    #[tokio::test]
    async fn what_is_long_broken_or_compressed_goes_to_the_writer_as_it_is() {
        let long = framed(&range(true, 2 * LOOK_BYTES_MAX));
        let pieces = long.chunks(1000).map(<[u8]>::to_vec).collect();
        assert_eq!(looked(RANGE, pieces).await, (false, long));
        let mut compressed = framed(&range(true, 10));
        compressed[0] = 1;
        let cut = framed(&range(true, 10))[..8].to_vec();
        for odd in [compressed, cut, vec![], vec![0, 0, 0, 0, 2, 0xff, 0xff]] {
            assert_eq!(looked(RANGE, vec![odd.clone()]).await, (false, odd));
        }
    }

    #[tokio::test]
    async fn of_transactions_only_those_that_read_and_are_content_with_old_state() {
        let op = |request| RequestOp { request: Some(request) };
        let reads = |serializable| TxnRequest {
            success: vec![op(request_op::Request::RequestRange(range(serializable, 1)))],
            ..TxnRequest::default()
        };
        let mut writes = reads(true);
        writes.failure.push(op(request_op::Request::RequestPut(PutRequest::default())));
        for (txn, here) in [(reads(true), true), (reads(false), false), (writes, false)] {
            assert_eq!(looked(TXN, vec![framed(&txn)]).await.0, here);
        }
    }

    #[tokio::test]
    async fn what_the_writer_tells_is_waited_for_before_its_answer_leaves() {
        let told =
            tower::service_fn(|_: Request<Body>| async { Ok::<_, std::convert::Infallible>(Response::new(Body::empty())) });
        let mut writer = tower::Layer::layer(&TellRevision::new(|| 7), told);
        let mut asked = request(RANGE, Vec::new());
        assert!(writer.call(request(RANGE, Vec::new())).await.unwrap().headers().is_empty(), "a client of its own isn't told");
        asked.headers_mut().insert(FORWARDED, HeaderValue::from(1));
        let waited = Arc::new(std::sync::atomic::AtomicI64::new(0));
        let (follows, seen) = (Arc::new(AtomicBool::new(true)), Arc::clone(&waited));
        let asks = Arc::clone(&follows);
        let local = Local::new(
            move || asks.load(Ordering::Relaxed),
            move |revision| {
                seen.store(revision, Ordering::Relaxed);
                Box::pin(std::future::ready(()))
            },
        );
        let mut answer = writer.call(asked).await.unwrap();
        local.catch_up(&mut answer).await;
        assert!(waited.load(Ordering::Relaxed) == 7 && answer.headers().is_empty(), "it stays between the two");
        follows.store(false, Ordering::Relaxed);
        answer.headers_mut().insert(REVISION, HeaderValue::from(8));
        local.catch_up(&mut answer).await;
        assert_eq!(waited.load(Ordering::Relaxed), 7, "nothing is answered here anyway");
    }

    #[test]
    fn nothing_is_answered_here_while_this_process_does_not_follow() {
        let follows = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&follows);
        let local = Local::new(move || asked.load(Ordering::Relaxed), |_| Box::pin(std::future::ready(())));
        let way = |path| local.way(&request(path, Vec::new()));
        assert_eq!([way(WATCH), way(RANGE)], [Way::Writer, Way::Writer]);
        follows.store(true, Ordering::Relaxed);
        assert_eq!([way(WATCH), way(RANGE), way("/etcdserverpb.KV/Put")], [Way::Here, Way::Look, Way::Writer]);
    }
}
