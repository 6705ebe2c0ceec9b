//! Queued responses as etcd's messages.
//!
//! Which fields a response carries, and which revision its header shows, is etcd's `v3rpc/watch.go`.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;
use prost::encoding::encoded_len_varint;

use super::hub::NO_WATCH;
use super::queue::{Item, Picked};
use super::watcher::WatchOptions;
use crate::mvcc::{Event, Value, key_value};
use crate::proto::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::proto::mvccpb::event::EventType;
use crate::proto::mvccpb::{self, KeyValue};
use crate::storage::LogRow;
use crate::types::Revision;

/// The item's messages: one, or several if it may be split and is not under `max_bytes`. `header` gives all but the revision.
pub(super) fn responses(item: Item, header: ResponseHeader, max_bytes: usize) -> VecDeque<WatchResponse> {
    let at = |revision| Some(ResponseHeader { revision, ..header });
    let response = match item {
        Item::Created { watch_id, revision } => {
            WatchResponse { header: at(revision), watch_id, created: true, ..Default::default() }
        }
        Item::Refused { revision, reason } => WatchResponse {
            header: at(revision),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason,
            ..Default::default()
        },
        Item::Canceled { watch_id, revision } => {
            WatchResponse { header: at(revision), watch_id, canceled: true, ..Default::default() }
        }
        Item::Compacted { watch_id, compact_revision } => {
            WatchResponse { header: at(0), watch_id, canceled: true, compact_revision, ..Default::default() }
        }
        Item::Progress { watch_id, revision } => WatchResponse { header: at(revision), watch_id, ..Default::default() },
        Item::Events { watch_id, revision, picked, options, compacted } => {
            let events = picked.iter().flat_map(Picked::events).map(|event| event_on_wire(event, options, compacted)).collect();
            let whole = WatchResponse { header: at(revision), watch_id, events, ..Default::default() };
            return if options.fragment { fragments(whole, max_bytes) } else { VecDeque::from([whole]) };
        }
    };
    VecDeque::from([response])
}

fn event_on_wire(event: &Event, options: WatchOptions, compacted: Revision) -> mvccpb::Event {
    let row = &event.row;
    let wanted = options.needs_prev(event) && row.rev.main > compacted;
    let prev_kv = event.prev.as_ref().filter(|_| wanted).map(|prev| match &prev.value {
        Value::Resident(value) => key_value(&row.key, prev, value.clone()),
        Value::Evicted(_) => unreachable!("an event is queued only with its previous value in memory"),
    });
    let (kind, kv) = match &row.value {
        Some(value) => (EventType::Put, put_on_wire(row, value.clone())),
        None => (EventType::Delete, KeyValue { key: row.key.clone(), mod_revision: row.rev.main, ..Default::default() }),
    };
    mvccpb::Event { r#type: kind as i32, kv: Some(kv), prev_kv }
}

fn put_on_wire(row: &LogRow, value: Bytes) -> KeyValue {
    KeyValue {
        key: row.key.clone(),
        create_revision: row.create_revision,
        mod_revision: row.rev.main,
        version: row.version,
        value,
        lease: row.lease,
    }
}

/// Splits a response as etcd's `sendFragments`: each part but the last says that more follows and stays under `max_bytes`, unless a
/// single event is larger.
fn fragments(mut whole: WatchResponse, max_bytes: usize) -> VecDeque<WatchResponse> {
    if whole.events.len() < 2 || whole.encoded_len() < max_bytes {
        return VecDeque::from([whole]);
    }
    let events = std::mem::take(&mut whole.events);
    let empty = WatchResponse { fragment: true, ..whole };
    let empty_len = empty.encoded_len();
    let mut parts = VecDeque::new();
    let (mut part, mut part_len) = (empty.clone(), empty_len);
    for event in events {
        let event_len = event.encoded_len();
        // Field 11's tag takes one byte.
        let field_len = 1 + encoded_len_varint(event_len as u64) + event_len;
        if !part.events.is_empty() && part_len + field_len >= max_bytes {
            parts.push_back(std::mem::replace(&mut part, empty.clone()));
            part_len = empty_len;
        }
        part_len += field_len;
        part.events.push(event);
    }
    part.fragment = false;
    parts.push_back(part);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// etcd's `sendFragments`, step by step: encodes each candidate.
    fn etcds_fragments(whole: &WatchResponse, max_bytes: usize) -> Vec<WatchResponse> {
        if whole.encoded_len() < max_bytes || whole.events.len() < 2 {
            return vec![whole.clone()];
        }
        let mut parts = Vec::new();
        let mut sent = 0;
        while sent < whole.events.len() {
            let mut part = WatchResponse { fragment: true, events: Vec::new(), ..whole.clone() };
            for event in &whole.events[sent..] {
                part.events.push(event.clone());
                if part.events.len() > 1 && part.encoded_len() >= max_bytes {
                    part.events.pop();
                    break;
                }
                sent += 1;
            }
            part.fragment = sent < whole.events.len();
            parts.push(part);
        }
        parts
    }

    proptest! {
        #[test]
        fn responses_are_split_where_etcd_splits_them(sizes in prop::collection::vec(0..300usize, 0..12), max_bytes in 1..600usize) {
            let event = |size| mvccpb::Event {
                kv: Some(KeyValue { key: Bytes::from(vec![b'k'; size]), mod_revision: 5, ..KeyValue::default() }),
                ..mvccpb::Event::default()
            };
            let header = Some(ResponseHeader { cluster_id: u64::MAX, member_id: 7, revision: 5, raft_term: 2 });
            let whole = WatchResponse { header, watch_id: 3, events: sizes.into_iter().map(event).collect(), ..Default::default() };
            prop_assert_eq!(Vec::from(fragments(whole.clone(), max_bytes)), etcds_fragments(&whole, max_bytes));
        }
    }
}
