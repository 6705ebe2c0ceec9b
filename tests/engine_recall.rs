//! The engine over a log that lacks what clients were shown, as somebody other than the engine remembers it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use duet::engine::{Engine, Holds, Options, Recall, Role, Seen};
use duet::proto::etcdserverpb::PutRequest;
use duet::storage::mem::MemLog;
use duet::storage::{BoxFuture, Log};
use duet::telemetry::metrics::Metrics;

/// Far beyond anything these tests wait for; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The store, its end, what the engine has shown, and who wrote before.
type Asked = (u64, i64, Option<Seen>, Vec<String>);

/// Remembers what it is told to, and what it was asked last.
#[derive(Debug, Default)]
struct Remembers {
    seen: Mutex<Option<Seen>>,
    asked: Mutex<Option<Asked>>,
}

impl Recall for Remembers {
    fn examine(
        &self,
        cluster_id: u64,
        last: i64,
        own: Option<Seen>,
        wrote_before: Vec<String>,
    ) -> BoxFuture<'_, Result<Option<Seen>, String>> {
        *self.asked.lock().unwrap() = Some((cluster_id, last, own, wrote_before));
        let seen = *self.seen.lock().unwrap();
        let lacks = seen.is_some_and(|seen| seen.revision > last);
        Box::pin(async move { if lacks { Err(format!("ends at {last}")) } else { Ok(seen) } })
    }

    fn differs(&self, seen: Seen) -> String {
        format!("differs at {}", seen.revision)
    }
}

fn start(log: &MemLog, recall: Option<Arc<Remembers>>, url: &str) -> Engine {
    let recall = recall.map(|recall| recall as Arc<dyn Recall>);
    let options = Options { recall, advertise_client_urls: vec![url.to_owned()], ..Options::default() };
    Engine::start(options, Arc::new(log.clone()) as Arc<dyn Log>, Metrics::unshared())
}

async fn put(engine: &Engine, value: &str, times: usize) {
    engine.active().await.unwrap();
    for _ in 0..times {
        let value = Bytes::copy_from_slice(value.as_bytes());
        engine.put(PutRequest { key: Bytes::from_static(b"k"), value, ..Default::default() }).await.unwrap();
    }
}

async fn refused(engine: &Engine) -> String {
    let mut role = engine.role();
    let failed = role.wait_for(|role| matches!(role, Role::Failed(_)));
    match tokio::time::timeout(PATIENCE, failed).await {
        Ok(Ok(role)) => match &*role {
            Role::Failed(why) => why.clone(),
            other => panic!("{other:?}"),
        },
        _ => panic!("it is served, up to revision {}", engine.revision()),
    }
}

fn remembering(seen: Option<Seen>) -> Arc<Remembers> {
    Arc::new(Remembers { seen: Mutex::new(seen), ..Remembers::default() })
}

/// A log with revisions up to 6, and what clients have seen of it.
async fn written() -> (MemLog, Seen) {
    let log = MemLog::default();
    let writer = start(&log, None, "http://writer");
    put(&writer, "old", 5).await;
    let seen = writer.seen().unwrap();
    writer.stop().await;
    assert_eq!(seen.revision, 6);
    (log, seen)
}

#[tokio::test]
async fn a_process_without_a_memory_of_its_own_refuses_what_somebody_remembers_to_be_longer() {
    let (log, seen) = written().await;
    log.truncate(4);
    let recall = remembering(Some(seen));
    let engine = start(&log, Some(recall.clone()), "");
    assert_eq!(refused(&engine).await, "ends at 4");
    let asked = recall.asked.lock().unwrap().clone();
    assert_eq!(asked, Some((0xC1, 4, None, vec!["http://writer".to_owned()])));
}

#[tokio::test]
async fn a_log_that_was_written_on_after_a_loss_is_known_by_what_it_holds() {
    let (log, seen) = written().await;
    log.truncate(4);
    let unaware = start(&log, None, "");
    put(&unaware, "new", 10).await;
    unaware.stop().await;
    let engine = start(&log, Some(remembering(Some(seen))), "");
    assert_eq!(refused(&engine).await, "differs at 6");
}

#[tokio::test]
async fn a_log_that_goes_on_from_what_was_seen_is_served_and_so_is_one_that_was_compacted_since() {
    let (log, seen) = written().await;
    for compacted in [None, Some(8)] {
        let recall = remembering(Some(seen));
        let engine = start(&log, Some(recall.clone()), "");
        engine.active().await.unwrap();
        put(&engine, "later", 4).await;
        if let Some(compacted) = compacted {
            engine.compact(compacted, true).await.unwrap();
        }
        engine.stop().await;
    }
    let engine = start(&log, Some(remembering(Some(seen))), "");
    engine.active().await.unwrap();
}

#[tokio::test]
async fn a_former_writer_compares_its_tail_with_what_was_seen_elsewhere_and_tells_what_it_has_shown() {
    for lost in [false, true] {
        let (log, recall) = (MemLog::default(), remembering(None));
        let former = start(&log, Some(recall.clone()), "");
        put(&former, "shown here", 5).await;
        let own = former.seen();
        // Meanwhile another one writes, and tells.
        let next = start(&log, None, "");
        put(&next, "shown elsewhere", 20).await;
        let seen = next.seen().unwrap();
        next.stop().await;
        if lost {
            log.truncate(20);
            let unaware = start(&log, None, "");
            put(&unaware, "new", 20).await;
            unaware.stop().await;
        }
        *recall.seen.lock().unwrap() = Some(seen);
        log.end_session();
        if lost {
            assert_eq!(refused(&former).await, "differs at 26");
            assert_eq!(former.seen(), own, "nothing of it was shown");
        } else {
            let deadline = Instant::now() + PATIENCE;
            while former.revision() < 26 {
                assert!(Instant::now() < deadline, "it ends at {}", former.revision());
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(recall.asked.lock().unwrap().clone().unwrap().2, own);
    }
}

#[tokio::test]
async fn a_writer_says_whether_its_store_goes_on_from_what_others_have_seen() {
    let (log, seen) = written().await;
    let engine = start(&log, None, "");
    put(&engine, "later", 2).await;
    let (digest, other) = (seen.digest.unwrap(), Seen { cluster_id: 0xC2, ..seen });
    for (asked, answer) in [
        (seen, Holds::Yes),
        (Seen { digest: None, ..seen }, Holds::Yes),
        (engine.seen().unwrap(), Holds::Yes),
        (Seen { digest: Some(digest ^ 1), ..seen }, Holds::Differs),
        (Seen { revision: 9, ..seen }, Holds::Lacks(8)),
        (other, Holds::OtherStore(0xC1)),
    ] {
        assert_eq!(engine.holds(asked).await.unwrap(), answer, "{asked:?}");
    }
    engine.compact(8, true).await.unwrap();
    let unknown = Seen { digest: Some(digest ^ 1), ..seen };
    assert_eq!(engine.holds(unknown).await.unwrap(), Holds::Yes, "what is compacted can't be compared");
}
