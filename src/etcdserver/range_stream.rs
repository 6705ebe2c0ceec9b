//! RangeStream: a Range answered in chunks, all at one revision.
//!
//! Each chunk is one read at the pinned revision, so that neither side ever holds the whole answer. Header, `more` and `count` come with
//! the last chunk only. The first chunk has 10 keys; later ones double or halve until they are near `max_request_bytes`.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use prost::Message;
use tonic::Status;

use super::{EtcdServer, error};
use crate::engine;
use crate::mvcc::CountMode;
use crate::proto::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader};

/// The chunks of one answer.
pub(super) type Chunks = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

/// Keys in the first chunk (`initialStreamChunkLimit`).
const FIRST_CHUNK_KEYS: i64 = 10;

/// The answer to `request`, which has been validated. The stream ends with the first error.
pub(super) fn chunks(server: EtcdServer, request: RangeRequest) -> Chunks {
    Box::pin(stream::try_unfold(State::Begin(server, request), |state| async move {
        let cursor = match state {
            State::Begin(server, request) => Cursor::begin(server, request).await,
            State::Go(cursor) => Ok(cursor),
            State::Done => return Ok(None),
        };
        let next = match cursor {
            Ok(cursor) => cursor.next().await,
            Err(error) => Err(error),
        };
        next.map(Some).map_err(error::of_read)
    }))
}

enum State {
    Begin(EtcdServer, RangeRequest),
    Go(Cursor),
    Done,
}

/// How far a stream has come.
struct Cursor {
    server: EtcdServer,
    /// What is left: its key, revision and limit are those of the next chunk.
    request: RangeRequest,
    /// Keys that the client wants at most.
    limit: i64,
    sent: i64,
    /// The newest revision when the stream began, shown at its end.
    revision: Option<i64>,
}

impl Cursor {
    async fn begin(server: EtcdServer, mut request: RangeRequest) -> Result<Self, engine::Error> {
        if !request.serializable {
            server.inner.engine.read_barrier().await?;
        }
        // A negative limit means none to etcd's Range, and so a single chunk here.
        let limit = if request.limit == 0 { i64::MAX } else { request.limit };
        request.limit = FIRST_CHUNK_KEYS.min(limit);
        Ok(Self { server, request, limit, sent: 0, revision: None })
    }

    async fn next(mut self) -> Result<(RangeStreamResponse, State), engine::Error> {
        let engine = &self.server.inner.engine;
        let mut chunk = loop {
            let chunk = engine.range_published(&self.request, CountMode::AsRead).await?;
            // The first chunk decides the revision of all.
            if self.revision.is_some() || self.request.serializable || engine.is_still_confirmed() {
                break chunk;
            }
            engine.read_barrier().await?;
        };
        let chunk_bytes = chunk.encoded_len();
        let current = chunk.header.take().map_or(0, |header| header.revision);
        let revision = *self.revision.get_or_insert(current);
        if self.request.revision <= 0 {
            self.request.revision = revision;
        }
        if self.request.count_only {
            let header = Some(self.server.header(revision));
            let last = RangeResponse { header, count: chunk.count, ..Default::default() };
            return Ok((RangeStreamResponse { range_response: Some(last) }, State::Done));
        }
        self.sent += i64::try_from(chunk.kvs.len()).expect("a chunk has fewer than 2^63 keys");
        let rest = chunk.kvs.last().filter(|_| chunk.more).map(|last| after(&last.key));
        let Some(rest) = rest.clone().filter(|_| self.sent != self.limit) else {
            return self.last(chunk, revision, rest).await;
        };
        self.request.key = rest;
        self.request.limit = next_limit(self.request.limit, chunk_bytes, self.server.inner.config.max_request_bytes);
        self.request.limit = self.request.limit.min(self.limit - self.sent);
        let chunk = RangeResponse { kvs: chunk.kvs, ..Default::default() };
        Ok((RangeStreamResponse { range_response: Some(chunk) }, State::Go(self)))
    }

    /// The last chunk, with the count of everything: what was sent, and what the limit left out from `rest` on.
    async fn last(
        self,
        chunk: RangeResponse,
        revision: i64,
        rest: Option<Bytes>,
    ) -> Result<(RangeStreamResponse, State), engine::Error> {
        let mut count = self.sent;
        if let Some(key) = rest {
            let left = RangeRequest {
                key,
                range_end: self.request.range_end.clone(),
                revision: self.request.revision,
                count_only: true,
                ..Default::default()
            };
            count += self.server.inner.engine.range_published(&left, CountMode::Total).await?.count;
        }
        let header: Option<ResponseHeader> = Some(self.server.header(revision));
        let last = RangeResponse { header, kvs: chunk.kvs, more: chunk.more, count };
        Ok((RangeStreamResponse { range_response: Some(last) }, State::Done))
    }
}

/// The first key behind `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// How many keys the next chunk has, going by how many bytes the last one had (`adjustChunkLimit`).
fn next_limit(last: i64, last_bytes: usize, target_bytes: usize) -> i64 {
    let next = if last_bytes < target_bytes / 2 {
        last.saturating_mul(2)
    } else if last_bytes > target_bytes.saturating_mul(2) {
        last / 2
    } else {
        last
    };
    // 0 would mean everything.
    next.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_grow_while_small_shrink_while_large_and_never_become_unlimited() {
        let target = 1 << 20;
        assert_eq!(next_limit(10, 100, target), 20);
        assert_eq!(next_limit(10, target / 2, target), 10);
        assert_eq!(next_limit(10, target * 2, target), 10);
        assert_eq!(next_limit(10, target * 2 + 1, target), 5);
        assert_eq!(next_limit(1, target * 3, target), 1);
    }
}
