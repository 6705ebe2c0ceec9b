//! The wire format as a client sees it that was generated elsewhere, from etcd's own definitions: the etcd-client crate.

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, WatchOptions,
};

use crate::support::{Server, soon};

async fn client(server: &Server) -> Client {
    Client::connect([server.address.as_str()], None).await.expect("the server answers")
}

#[tokio::test]
async fn keys_are_put_read_sorted_and_deleted() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    client.put("a", "2", None).await.unwrap();
    client.put("b", "1", None).await.unwrap();
    let put = client.put("a", "3", Some(PutOptions::new().with_prev_key())).await.unwrap();
    assert_eq!(put.prev_key().unwrap().value(), b"2");
    let options = GetOptions::new().with_all_keys().with_sort(SortTarget::Value, SortOrder::Descend).with_limit(1);
    let got = client.get("", Some(options)).await.unwrap();
    assert_eq!((got.kvs()[0].key(), got.more(), got.count()), (&b"a"[..], true, 2));
    assert_eq!((got.kvs()[0].create_revision(), got.kvs()[0].mod_revision(), got.kvs()[0].version()), (2, 4, 2));
    let deleted = client.delete("a", Some(DeleteOptions::new().with_range("c").with_prev_key())).await.unwrap();
    assert_eq!((deleted.deleted(), deleted.prev_kvs().len(), deleted.header().unwrap().revision()), (2, 2, 5));
}

#[tokio::test]
async fn transactions_nest_and_compare() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    client.put("a", "1", None).await.unwrap();
    let inner = Txn::new()
        .when([Compare::version("a", CompareOp::Greater, 0)])
        .and_then([TxnOp::put("b", "2", None)])
        .or_else([TxnOp::put("c", "2", None)]);
    let txn = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "1"), Compare::mod_revision("a", CompareOp::Equal, 2)])
        .and_then([TxnOp::txn(inner), TxnOp::get("b", None), TxnOp::delete("a", None)]);
    let response = client.txn(txn).await.unwrap();
    assert!(response.succeeded());
    let answers = response.op_responses();
    assert!(matches!(&answers[0], TxnOpResponse::Txn(inner) if inner.succeeded()));
    assert!(matches!(&answers[1], TxnOpResponse::Get(got) if got.kvs()[0].value() == b"2"));
    assert!(matches!(&answers[2], TxnOpResponse::Delete(deleted) if deleted.deleted() == 1));
}

#[tokio::test]
async fn watches_deliver_puts_deletes_and_previous_values() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let options = WatchOptions::new().with_prefix().with_prev_key().with_start_revision(2);
    let mut watch = client.watch("a", Some(options)).await.unwrap();
    client.put("a/1", "x", None).await.unwrap();
    client.delete("a/1", None).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 2 {
        let response = soon("an event", watch.message()).await.unwrap().unwrap();
        events.extend(response.events().to_vec());
    }
    assert_eq!(events[0].event_type(), EventType::Put);
    assert_eq!(events[1].event_type(), EventType::Delete);
    assert_eq!(events[1].prev_kv().unwrap().value(), b"x");
}

#[tokio::test]
async fn leases_maintenance_and_cluster_answer() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let granted = client.lease_grant(60, None).await.unwrap();
    client.put("a", "1", Some(PutOptions::new().with_lease(granted.id()))).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(granted.id()).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(soon("an answer", answers.message()).await.unwrap().unwrap().ttl(), 60);
    let ttl = client.lease_time_to_live(granted.id(), None).await.unwrap();
    assert_eq!(ttl.granted_ttl(), 60);
    assert_eq!(client.leases().await.unwrap().leases()[0].id(), granted.id());
    client.lease_revoke(granted.id()).await.unwrap();
    assert_eq!(client.get("a", None).await.unwrap().count(), 0);
    let status = client.status().await.unwrap();
    assert_eq!((status.version(), status.leader()), ("3.7.3", server.engine.ids().1));
    assert_eq!(client.hash_kv(0).await.unwrap().header().unwrap().revision(), 3);
    assert_eq!(client.member_list().await.unwrap().members()[0].id(), server.engine.ids().1);
    client.compact(3, None).await.unwrap();
}
