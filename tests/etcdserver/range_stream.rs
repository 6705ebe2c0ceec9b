//! RangeStream over the wire.

use duet::proto::etcdserverpb as pb;
use futures_util::StreamExt;
use tonic::{Code, Status};

use crate::support::{Server, assert_refused, b, prefix};

async fn chunks(server: &Server, request: pb::RangeRequest) -> Result<Vec<pb::RangeResponse>, Status> {
    let mut stream = server.kv().range_stream(request).await?.into_inner();
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk?.range_response.expect("a chunk"));
    }
    Ok(chunks)
}

async fn filled(keys: usize) -> Server {
    let server = Server::start().await;
    for i in 0..keys {
        server.put(&format!("k{i:03}"), &"v".repeat(100)).await;
    }
    server
}

#[tokio::test]
async fn chunks_begin_with_ten_keys_and_grow() {
    let server = filled(75).await;
    let chunks = chunks(&server, prefix("k")).await.unwrap();
    assert_eq!(chunks.iter().map(|chunk| chunk.kvs.len()).collect::<Vec<_>>(), [10, 20, 40, 5]);
    let keys: Vec<_> = chunks.iter().flat_map(|chunk| &chunk.kvs).map(|kv| kv.key.clone()).collect();
    assert_eq!(keys, (0..75).map(|i| b(&format!("k{i:03}"))).collect::<Vec<_>>());
}

#[tokio::test]
async fn only_the_last_chunk_has_header_more_and_count() {
    let server = filled(25).await;
    let chunks = chunks(&server, pb::RangeRequest { limit: 15, ..prefix("k") }).await.unwrap();
    assert_eq!(chunks.len(), 2);
    assert_eq!((chunks[0].header, chunks[0].more, chunks[0].count), (None, false, 0));
    let last = &chunks[1];
    assert_eq!((last.kvs.len(), last.more, last.count), (5, true, 25));
    let header = last.header.unwrap();
    assert_eq!((header.revision, header.cluster_id), (26, server.engine.ids().0));
}

#[tokio::test]
async fn a_limit_below_the_first_chunk_is_one_chunk() {
    let server = filled(12).await;
    let chunks = chunks(&server, pb::RangeRequest { limit: 3, ..prefix("k") }).await.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].kvs.len(), chunks[0].more, chunks[0].count), (3, true, 12));
}

#[tokio::test]
async fn an_empty_range_is_one_empty_chunk() {
    let server = Server::start().await;
    let chunks = chunks(&server, prefix("k")).await.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].kvs.len(), chunks[0].more, chunks[0].count), (0, false, 0));
    assert_eq!(chunks[0].header.unwrap().revision, 1);
}

#[tokio::test]
async fn count_only_is_one_chunk_with_nothing_but_the_count() {
    let server = filled(12).await;
    let chunks = chunks(&server, pb::RangeRequest { count_only: true, limit: 3, ..prefix("k") }).await.unwrap();
    assert_eq!(chunks.len(), 1);
    assert_eq!((chunks[0].kvs.len(), chunks[0].count), (0, 12));
}

#[tokio::test]
async fn all_chunks_show_the_moment_at_which_the_first_was_read() {
    // Large enough that the transport can't take all of it in before the write below.
    let server = Server::start().await;
    for i in 0..40 {
        server.put(&format!("k{i:03}"), &"v".repeat(400_000)).await;
    }
    let mut stream = server.kv().range_stream(prefix("k")).await.unwrap().into_inner();
    let first = stream.next().await.unwrap().unwrap().range_response.unwrap();
    assert_eq!(first.kvs.len(), 10);
    server.put("k999", "later").await;
    server.delete("k039", "").await;
    let mut keys = first.kvs.len();
    let mut last = first;
    while let Some(chunk) = stream.next().await {
        last = chunk.unwrap().range_response.unwrap();
        keys += last.kvs.len();
    }
    assert_eq!((keys, last.count), (40, 40));
    assert_eq!(last.header.unwrap().revision, 41, "the header shows the revision that the stream began at");
    assert_eq!(last.kvs.last().unwrap().key, b("k039"));
}

#[tokio::test]
async fn custom_orders_and_revision_filters_are_not_streamed() {
    let server = Server::start().await;
    let sorted = pb::RangeRequest { sort_order: 2, ..prefix("k") };
    assert_refused(chunks(&server, sorted).await, Code::Unimplemented, "RangeStream does not support custom sort orders");
    let filtered = pb::RangeRequest { min_mod_revision: 2, ..prefix("k") };
    assert_refused(chunks(&server, filtered).await, Code::Unimplemented, "RangeStream does not support revision filters");
    assert_refused(chunks(&server, pb::RangeRequest::default()).await, Code::InvalidArgument, "etcdserver: key is not provided");
}

#[tokio::test]
async fn a_compacted_revision_ends_the_stream_with_the_error() {
    let server = filled(5).await;
    server.compact(4).await.unwrap();
    assert_refused(
        chunks(&server, pb::RangeRequest { revision: 3, ..prefix("k") }).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision has been compacted",
    );
}
