//! Lease over the wire.

use duet::proto::etcdserverpb as pb;
use futures_util::StreamExt;
use tonic::Code;

use crate::support::{Server, assert_refused, b, key, soon};

async fn grant(server: &Server, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, tonic::Status> {
    server.lease().lease_grant(pb::LeaseGrantRequest { id, ttl }).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_lease_gets_at_least_the_minimum_and_an_id_if_it_has_none() {
    let server = Server::start().await;
    let granted = grant(&server, 0, 0).await.unwrap();
    assert!(granted.id > 0);
    assert_eq!(granted.ttl, 2);
    assert_eq!(granted.header.unwrap().revision, 1, "a lease is no revision");
    let negative = grant(&server, -5, 60).await.unwrap();
    assert_eq!((negative.id, negative.ttl), (-5, 60));
}

#[tokio::test]
async fn a_used_id_and_a_time_without_end_are_refused() {
    let server = Server::start().await;
    grant(&server, 7, 60).await.unwrap();
    assert_refused(grant(&server, 7, 60).await, Code::FailedPrecondition, "etcdserver: lease already exists");
    assert!(grant(&server, 8, 9_000_000_000).await.is_ok());
    assert_refused(grant(&server, 9, 9_000_000_001).await, Code::OutOfRange, "etcdserver: too large lease TTL");
}

#[tokio::test]
async fn unknown_leases_are_no_error_to_ask_for_or_to_keep_alive_but_cannot_be_revoked() {
    let server = Server::start().await;
    let request = pb::LeaseTimeToLiveRequest { id: 9, keys: true };
    let answer = server.lease().lease_time_to_live(request).await.unwrap().into_inner();
    assert_eq!((answer.id, answer.ttl, answer.granted_ttl), (9, -1, 0));
    let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 9 }]);
    let mut answers = server.lease().lease_keep_alive(requests).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    assert_eq!((answer.id, answer.ttl), (9, 0));
    assert!(answers.next().await.is_none(), "the stream ends when the client has closed its side");
    let revoke = server.lease().lease_revoke(pb::LeaseRevokeRequest { id: 9 }).await;
    assert_refused(revoke, Code::NotFound, "etcdserver: requested lease not found");
}

#[tokio::test]
async fn revoking_a_lease_deletes_its_keys_in_one_revision() {
    let server = Server::start().await;
    grant(&server, 7, 60).await.unwrap();
    for name in ["b", "a", "c"] {
        let put = pb::PutRequest { key: b(name), lease: 7, ..Default::default() };
        server.kv().put(put).await.unwrap();
    }
    server.put("c", "detached").await;
    let request = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
    let answer = server.lease().lease_time_to_live(request).await.unwrap().into_inner();
    assert_eq!(answer.keys, [b("a"), b("b")], "sorted; a put without the lease detaches its key");
    assert_eq!(answer.granted_ttl, 60);
    let revoked = server.lease().lease_revoke(pb::LeaseRevokeRequest { id: 7 }).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 6);
    assert!(server.range(key("a")).await.unwrap().kvs.is_empty());
    assert_eq!(server.range(key("c")).await.unwrap().kvs.len(), 1);
}

#[tokio::test]
async fn keeping_alive_answers_each_request_with_the_full_time() {
    let server = Server::start().await;
    grant(&server, 7, 60).await.unwrap();
    let requests = tokio_stream::iter([7, 7, 8].map(|id| pb::LeaseKeepAliveRequest { id }));
    let answers = server.lease().lease_keep_alive(requests).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap()).map(|answer| (answer.id, answer.ttl)).collect().await;
    assert_eq!(answers, [(7, 60), (7, 60), (8, 0)]);
}

#[tokio::test]
async fn leases_are_listed_by_expiry() {
    let server = Server::start().await;
    for (id, ttl) in [(1, 300), (2, 100), (3, 200)] {
        grant(&server, id, ttl).await.unwrap();
    }
    let answer = server.lease().lease_leases(pb::LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.leases.iter().map(|lease| lease.id).collect::<Vec<_>>(), [2, 3, 1]);
}

#[tokio::test]
async fn an_expired_lease_takes_its_keys_with_it() {
    let server = Server::start().await;
    grant(&server, 7, 1).await.unwrap();
    let put = pb::PutRequest { key: b("a"), lease: 7, ..Default::default() };
    server.kv().put(put).await.unwrap();
    let create = pb::WatchCreateRequest { key: b("a"), start_revision: 3, ..Default::default() };
    let union = pb::watch_request::RequestUnion::CreateRequest(create);
    let requests = tokio_stream::iter([pb::WatchRequest { request_union: Some(union) }]);
    let mut responses = server.watch().watch(requests).await.unwrap().into_inner();
    assert!(responses.message().await.unwrap().unwrap().created);
    let expiry = soon("the expiry", responses.message()).await.unwrap().unwrap();
    assert_eq!(expiry.events[0].r#type(), duet::proto::mvccpb::event::EventType::Delete);
    assert_eq!(expiry.events[0].kv.as_ref().unwrap().mod_revision, 3);
}

#[tokio::test]
async fn keep_alive_streams_end_when_the_server_stops() {
    let server = Server::start().await;
    let silent = tokio_stream::pending::<pb::LeaseKeepAliveRequest>();
    let mut answers = server.lease().lease_keep_alive(silent).await.unwrap().into_inner();
    server.stop.cancel();
    let end = soon("the end", answers.next()).await.expect("a status");
    assert_refused(end, Code::Unavailable, "etcdserver: server stopped");
}
