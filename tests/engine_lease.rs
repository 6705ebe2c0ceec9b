//! The engine of a pair's node, whose rights somebody else gives and takes: over a log in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use duet::engine::{Engine, Error, Options, ReadLease, ReadRight, Role};
use duet::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use duet::storage::mem::MemLog;
use duet::telemetry::metrics::Metrics;

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: Bytes::from_static(key.as_bytes()), value: Bytes::from_static(value.as_bytes()), ..Default::default() }
}

async fn value_of(engine: &Engine, key: &'static str) -> Option<String> {
    let request = RangeRequest { key: Bytes::from_static(key.as_bytes()), ..Default::default() };
    let response = engine.range(&request).await.unwrap();
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// The rights of a pair's node, as a test gives and takes them.
#[derive(Default)]
struct Rights {
    read: AtomicBool,
    acknowledge: AtomicBool,
}

impl ReadLease for Rights {
    fn may_read(&self) -> bool {
        self.read.load(Ordering::SeqCst)
    }

    fn may_acknowledge(&self) -> bool {
        self.acknowledge.load(Ordering::SeqCst)
    }
}

async fn leased() -> (Engine, Arc<Rights>) {
    let rights = Arc::new(Rights::default());
    rights.read.store(true, Ordering::SeqCst);
    rights.acknowledge.store(true, Ordering::SeqCst);
    let right = ReadRight::Lease(Arc::clone(&rights) as Arc<dyn ReadLease>);
    let options = Options { read_right: right, ..Options::default() };
    let engine = Engine::start(options, Arc::new(MemLog::default()), Metrics::unshared());
    engine.active().await.expect("a log in memory can be acquired");
    (engine, rights)
}

#[tokio::test]
async fn without_a_lease_nothing_is_read_not_even_through_a_failed_compare() {
    let (engine, rights) = leased().await;
    engine.put(put("k", "v")).await.unwrap();
    rights.read.store(false, Ordering::SeqCst);
    let compare = Compare {
        key: Bytes::from_static(b"k"),
        target_union: Some(TargetUnion::ModRevision(7)),
        target: CompareTarget::Mod.into(),
        ..Compare::default()
    };
    let get =
        RequestOp { request: Some(Request::RequestRange(RangeRequest { key: Bytes::from_static(b"k"), ..Default::default() })) };
    let write = RequestOp { request: Some(Request::RequestPut(put("k", "w"))) };
    let update = TxnRequest { compare: vec![compare], success: vec![write], failure: vec![get] };
    assert_eq!(engine.txn(update.clone()).await, Err(Error::NotApplied));
    let mut reading = Box::pin(value_of(&engine, "k"));
    assert!(tokio::time::timeout(Duration::from_millis(50), reading.as_mut()).await.is_err(), "a read waits for the lease");
    rights.read.store(true, Ordering::SeqCst);
    assert_eq!(reading.await.as_deref(), Some("v"));
    assert!(!engine.txn(update).await.unwrap().succeeded);
}

#[tokio::test]
async fn what_was_committed_without_the_right_to_acknowledge_is_not_acknowledged() {
    let (engine, rights) = leased().await;
    engine.put(put("k", "v")).await.unwrap();
    let mut role = engine.role();
    rights.acknowledge.store(false, Ordering::SeqCst);
    rights.read.store(false, Ordering::SeqCst);
    assert_eq!(engine.put(put("k", "w")).await, Err(Error::Timeout), "nobody knows who leads by now");
    role.wait_for(|role| *role == Role::Active).await.unwrap();
    rights.acknowledge.store(true, Ordering::SeqCst);
    rights.read.store(true, Ordering::SeqCst);
    assert_eq!(value_of(&engine, "k").await.as_deref(), Some("w"), "the next session reads what storage has");
}
