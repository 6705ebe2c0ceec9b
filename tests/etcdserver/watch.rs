//! Watch over the wire.

use duet::proto::etcdserverpb as pb;
use duet::proto::mvccpb::event::EventType;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use crate::support::{Server, assert_refused, b, soon};

/// One Watch RPC.
struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    responses: Streaming<pb::WatchResponse>,
}

impl Stream {
    async fn open(server: &Server) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let responses = server.watch().watch(request).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn send(&self, union: RequestUnion) {
        self.requests.send(pb::WatchRequest { request_union: Some(union) }).await.unwrap();
    }

    /// Creates a watch and answers the response to that.
    async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        self.next().await
    }

    async fn next(&mut self) -> pb::WatchResponse {
        self.end_or_next().await.unwrap().expect("the stream goes on")
    }

    async fn end_or_next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        soon("a watch response", self.responses.message()).await
    }
}

fn on(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: b(key), ..Default::default() }
}

fn changes(response: &pb::WatchResponse) -> Vec<(EventType, String, i64)> {
    let change = |event: &duet::proto::mvccpb::Event| {
        let kv = event.kv.as_ref().expect("a pair");
        (event.r#type(), String::from_utf8(kv.key.to_vec()).unwrap(), kv.mod_revision)
    };
    response.events.iter().map(change).collect()
}

#[tokio::test]
async fn a_watch_is_confirmed_and_then_shows_each_revision() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let created = stream.create(pb::WatchCreateRequest { range_end: b("b"), prev_kv: true, ..on("a") }).await;
    assert!(created.created && !created.canceled);
    assert_eq!(created.watch_id, 0, "automatic ids begin at 0");
    assert_eq!(created.header.unwrap().cluster_id, server.engine.ids().0);
    server.put("a1", "old").await;
    server.put("z", "elsewhere").await;
    server.put("a1", "new").await;
    server.delete("a1", "").await;
    assert_eq!(changes(&stream.next().await), [(EventType::Put, "a1".into(), 2)]);
    let update = stream.next().await;
    assert_eq!(changes(&update), [(EventType::Put, "a1".into(), 4)]);
    assert_eq!(update.events[0].prev_kv.as_ref().unwrap().value, b("old"));
    assert_eq!(update.header.unwrap().revision, 4);
    let delete = stream.next().await;
    assert_eq!(changes(&delete), [(EventType::Delete, "a1".into(), 5)]);
    let kv = delete.events[0].kv.as_ref().unwrap();
    assert_eq!((kv.create_revision, kv.version, kv.value.len()), (0, 0, 0), "a delete carries key and mod_revision only");
}

#[tokio::test]
async fn a_watch_from_the_past_replays_in_one_response() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    let mut stream = Stream::open(&server).await;
    stream.create(pb::WatchCreateRequest { start_revision: 2, ..on("a") }).await;
    assert_eq!(changes(&stream.next().await), [(EventType::Put, "a".into(), 2), (EventType::Put, "a".into(), 3)]);
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_is_created_and_then_cancelled() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    server.compact(3).await.unwrap();
    let mut stream = Stream::open(&server).await;
    let created = stream.create(pb::WatchCreateRequest { start_revision: 2, ..on("a") }).await;
    assert!(created.created && !created.canceled);
    let canceled = stream.next().await;
    assert!(canceled.canceled && !canceled.created);
    assert_eq!((canceled.compact_revision, canceled.cancel_reason.as_str()), (3, ""));
    assert_eq!(canceled.header.unwrap().revision, 0);
}

#[tokio::test]
async fn refused_watches_are_created_and_cancelled_at_once_under_id_minus_1() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(pb::WatchCreateRequest { watch_id: 5, ..on("a") }).await;
    let cases = [
        (pb::WatchCreateRequest { start_revision: -1, ..on("a") }, "etcdserver: mvcc: required revision has been compacted"),
        (pb::WatchCreateRequest { watch_id: 5, ..on("a") }, "mvcc: duplicate watch ID provided on the WatchStream"),
        (pb::WatchCreateRequest { range_end: b("a"), ..on("b") }, "mvcc: watcher range is empty"),
    ];
    for (request, reason) in cases {
        let response = stream.create(request).await;
        assert!(response.created && response.canceled);
        assert_eq!((response.watch_id, response.cancel_reason.as_str()), (-1, reason));
    }
}

#[tokio::test]
async fn cancelling_an_unknown_watch_gets_no_answer_and_a_known_one_is_confirmed() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(on("a")).await;
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 9 })).await;
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    let canceled = stream.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (0, true, false));
    assert_eq!(stream.create(on("a")).await.watch_id, 1, "ids aren't used again");
}

#[tokio::test]
async fn asked_for_progress_comes_once_under_id_minus_1_and_only_if_there_is_a_watch() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(on("a")).await;
    server.put("z", "1").await;
    stream.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let progress = stream.next().await;
    assert_eq!((progress.watch_id, progress.events.len()), (-1, 0));
    assert_eq!(progress.header.unwrap().revision, 2);
}

#[tokio::test]
async fn closing_the_sending_side_leaves_the_watches_running() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(on("a")).await;
    let Stream { requests, mut responses } = stream;
    drop(requests);
    server.put("a", "1").await;
    let response = soon("the event", responses.message()).await.unwrap().unwrap();
    assert_eq!(changes(&response), [(EventType::Put, "a".into(), 2)]);
}

#[tokio::test]
async fn filters_leave_events_out() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let filters = vec![pb::watch_create_request::FilterType::Noput as i32];
    stream.create(pb::WatchCreateRequest { filters, ..on("a") }).await;
    server.put("a", "1").await;
    server.delete("a", "").await;
    assert_eq!(changes(&stream.next().await), [(EventType::Delete, "a".into(), 3)]);
}

#[tokio::test]
async fn watch_streams_end_with_unavailable_when_the_server_stops() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(on("a")).await;
    server.stop.cancel();
    assert_refused(stream.end_or_next().await, Code::Unavailable, "etcdserver: server stopped");
}

#[tokio::test]
async fn a_watch_stream_that_the_client_drops_is_forgotten() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(on("a")).await;
    assert_eq!(server.engine.watch().stats().watchers, 1);
    drop(stream);
    soon("the end of the stream", async {
        while server.engine.watch().stats().streams > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_heard_all_the_same() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(on("a")).await;
    // More than the client's window and the server's buffers take.
    let value = "x".repeat(200_000);
    for _ in 0..60 {
        server.put("a", &value).await;
    }
    stream.send(RequestUnion::CreateRequest(on("b"))).await;
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 })).await;
    stream.send(RequestUnion::CreateRequest(on("c"))).await;
    soon("the requests are heard", async {
        while server.engine.watch().stats().watchers < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.put("c", "1").await;
    let mut revisions = Vec::new();
    loop {
        let response = stream.next().await;
        if response.canceled {
            assert_eq!(response.watch_id, 0);
        }
        revisions.extend(response.events.iter().map(|event| event.kv.as_ref().expect("a pair").mod_revision));
        if response.watch_id == 2 && !response.created {
            break;
        }
    }
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert_eq!(revisions.last(), Some(&62));
}

#[tokio::test]
async fn how_long_writes_wait_for_the_writer_is_measured() {
    let server = Server::start().await;
    let waits = &server.metrics.engine.queue_wait_seconds;
    assert_eq!(waits.get_sample_count(), 0);
    server.put("a", "1").await;
    server.delete("a", "").await;
    assert_eq!(waits.get_sample_count(), 2);
    assert!(waits.get_sample_sum() > 0.0);
}
