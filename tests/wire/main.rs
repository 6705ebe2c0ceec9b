//! Wire equality of `proto/`, shown by a client that was generated elsewhere, from etcd's own definitions: the etcd-client crate.
//!
//! Each RPC that the client has is called once, with every option that it can set. The server here knows nothing but our messages: it must
//! have been called at our path, read from our message what the client was asked for, and the client must show, field by field, what our
//! message answered. A field with another number or type, or one that either side doesn't have, shows as a difference.

mod admin;
mod auth;
mod kv;

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use duet::proto::etcdserverpb as pb;
use duet::proto::mvccpb;
use etcd_client::Client;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpListener;

/// What the server answers next, and what it was asked last.
#[derive(Default)]
struct Exchange {
    answer: Vec<u8>,
    path: String,
    request: Bytes,
}

/// A gRPC server that answers anything with what the test says, and a client of it.
struct Wire {
    exchange: Arc<Mutex<Exchange>>,
    client: Client,
}

impl Wire {
    async fn new() -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let exchange = Arc::new(Mutex::new(Exchange::default()));
        tokio::spawn(serve(listener, Arc::clone(&exchange)));
        let client = Client::connect([address.to_string()], None).await.unwrap();
        Wire { exchange, client }
    }

    /// Makes the next answer.
    fn answers(&self, answer: &impl Message) -> Client {
        self.exchange.lock().unwrap().answer = answer.encode_to_vec();
        self.client.clone()
    }

    /// The last request went to `path` and was `request`, with nothing left over that our message doesn't know.
    fn was_asked<Q: Message + Default + PartialEq + Debug>(&self, path: &str, request: &Q) {
        let exchange = self.exchange.lock().unwrap();
        assert_eq!(exchange.path, path);
        assert_eq!(&Q::decode(exchange.request.clone()).unwrap(), request, "{path}");
        assert_eq!(exchange.request.len(), request.encoded_len(), "{path} has a field that our message lacks");
    }
}

async fn serve(listener: TcpListener, exchange: Arc<Mutex<Exchange>>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let exchange = Arc::clone(&exchange);
        let service = service_fn(move |request| answer(request, Arc::clone(&exchange)));
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service));
    }
}

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// Reads one message, answers one and ends the call.
async fn answer(request: Request<Incoming>, exchange: Arc<Mutex<Exchange>>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while message.len() < 5 || message.len() < 5 + u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize {
        let frame = body.frame().await.expect("a whole message").unwrap();
        message.extend_from_slice(frame.data_ref().unwrap());
    }
    let mut exchange = exchange.lock().unwrap();
    exchange.path = path;
    exchange.request = message.split_off(5).freeze();
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(exchange.answer.len() as u32);
    framed.put_slice(&exchange.answer);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = vec![Ok(Frame::data(framed.freeze())), Ok(Frame::trailers(trailers))];
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(StreamBody::new(stream::iter(frames))).unwrap())
}

/// The client's response shows our message, field by field.
fn shows(client: &impl Debug, ours: &impl Debug) {
    // Our messages hold bytes as `Bytes`, the client's as `Vec<u8>`.
    let (client, ours) = (format!("{client:?}"), as_vec(&format!("{ours:?}")));
    assert!(client.contains(&ours), "the client sees\n{client}\nof\n{ours}");
}

/// Debug text of `Bytes` in the form of a `Vec<u8>`; the tests' bytes are letters, the last of which isn't b.
fn as_vec(text: &str) -> String {
    let mut parts = text.split("b\"");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (bytes, rest) = part.split_once('"').unwrap();
        out += &format!("{:?}{rest}", bytes.as_bytes());
    }
    out
}

/// Calls, and compares both directions.
#[macro_export]
macro_rules! exchange {
    ($wire:expr, $path:literal, $answer:expr, |$client:ident| $call:expr, $request:expr) => {{
        let answer = $answer;
        #[allow(unused_mut, reason = "not every call needs it")]
        let mut $client = $wire.answers(&answer);
        let response = $call.await.unwrap();
        $wire.was_asked($path, &$request);
        shows(&response, &answer);
        response
    }};
}

fn header() -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { cluster_id: 1001, member_id: 1002, revision: 1003, raft_term: 1004 })
}

fn kv() -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: "key".into(),
        create_revision: 2001,
        mod_revision: 2002,
        version: 2003,
        value: "value".into(),
        lease: 2004,
    }
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|&text| text.to_owned()).collect()
}
