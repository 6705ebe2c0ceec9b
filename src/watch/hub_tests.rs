//! The hub's rules one by one; most of them are etcd's `watchable_store.go` and `watcher.go`.

use std::sync::Arc;

use bytes::Bytes;

use super::hub::{DUPLICATE_ID, EMPTY_RANGE, Hub, Limits, Registration, StreamId};
use super::queue::Item;
use super::replay::{Replay, ReplayPlan};
use super::watcher::{WatchId, WatchOptions};
use crate::mvcc::{Event, RevisionEvents};
use crate::storage::LogRow;
use crate::types::{KeyRange, Rev, Revision};

pub(super) fn put(revision: Revision, keys: &[&'static str]) -> Arc<RevisionEvents> {
    let event = |(sub, key): (i32, &&'static str)| Event {
        row: LogRow {
            rev: Rev::new(revision, sub),
            key: Bytes::from_static(key.as_bytes()),
            value: Some(Bytes::from_static(b"value")),
            create_revision: revision,
            version: 1,
            lease: 0,
        },
        prev: None,
    };
    Arc::new(RevisionEvents { revision, events: (0..).zip(keys).map(event).collect() })
}

fn hub(current: Revision) -> (Hub, StreamId) {
    let mut hub = Hub::new(current, -1, Limits { queue_entries: 4, ..Limits::default() });
    let stream = hub.open();
    (hub, stream)
}

fn watch(hub: &mut Hub, stream: StreamId, watch_id: WatchId, key: &'static str, start_revision: Revision) {
    let range = KeyRange::Key(Bytes::from_static(key.as_bytes()));
    let options = WatchOptions { progress_notify: true, ..WatchOptions::default() };
    hub.register(stream, Registration { watch_id, range, start_revision, options });
}

/// What is queued, in short.
fn taken(hub: &mut Hub, stream: StreamId) -> Vec<String> {
    let short = |item| match item {
        Item::Created { watch_id, revision } => format!("created {watch_id} at {revision}"),
        Item::Refused { revision, reason } => format!("refused at {revision}: {reason}"),
        Item::Canceled { watch_id, revision } => format!("canceled {watch_id} at {revision}"),
        Item::Compacted { watch_id, compact_revision } => format!("compacted {watch_id} at {compact_revision}"),
        Item::Events { watch_id, revision, picked, .. } => {
            let keys: Vec<String> = picked
                .iter()
                .flat_map(|picked| picked.events())
                .map(|event| format!("{}@{}", String::from_utf8_lossy(&event.row.key), event.row.rev.main))
                .collect();
            format!("events {watch_id} at {revision}: {}", keys.join(" "))
        }
        Item::Progress { watch_id, revision } => format!("progress {watch_id} at {revision}"),
    };
    hub.take(stream, usize::MAX).into_iter().map(short).collect()
}

fn finish(hub: &mut Hub, plan: &ReplayPlan, revisions: Vec<Arc<RevisionEvents>>, next: Revision) {
    let matched = plan.matched(&Replay { revisions, next }).expect("the replay is what was asked for");
    hub.commit(plan, matched);
}

#[test]
fn a_jump_to_where_the_hub_is_leaves_synced_watchers_synced() {
    let (mut hub, stream) = hub(10);
    watch(&mut hub, stream, 1, "a", 0);
    assert_eq!(taken(&mut hub, stream), ["created 1 at 10"]);
    hub.jump(10);
    hub.publish(&[put(11, &["a"])]);
    assert_eq!(taken(&mut hub, stream), ["events 1 at 11: a@11"]);
}

#[test]
fn ids_are_allocated_from_zero_and_never_reused() {
    let (mut hub, stream) = hub(5);
    watch(&mut hub, stream, 0, "a", 0);
    watch(&mut hub, stream, 1, "a", 0);
    watch(&mut hub, stream, 0, "a", 0);
    hub.cancel(stream, 2);
    watch(&mut hub, stream, 0, "a", 0);
    let answers = ["created 0 at 5", "created 1 at 5", "created 2 at 5", "canceled 2 at 5", "created 3 at 5"];
    assert_eq!(taken(&mut hub, stream), answers);
}

#[test]
fn a_taken_id_and_an_empty_range_are_refused_with_etcds_texts() {
    let (mut hub, stream) = hub(5);
    watch(&mut hub, stream, 7, "a", 0);
    watch(&mut hub, stream, 7, "b", 0);
    let range = KeyRange::Span(Bytes::from_static(b"b"), Bytes::from_static(b"a"));
    hub.register(stream, Registration { watch_id: 7, range, start_revision: 0, options: WatchOptions::default() });
    let answers = ["created 7 at 5".to_owned(), format!("refused at 5: {DUPLICATE_ID}"), format!("refused at 5: {EMPTY_RANGE}")];
    assert_eq!(taken(&mut hub, stream), answers);
}

#[test]
fn cancelling_an_unknown_id_gets_no_answer() {
    let (mut hub, stream) = hub(5);
    hub.cancel(stream, 3);
    assert!(taken(&mut hub, stream).is_empty());
}

#[test]
fn a_synced_watcher_gets_one_response_per_revision_with_all_its_events() {
    let (mut hub, stream) = hub(5);
    let range = KeyRange::From(Bytes::from_static(b"b"));
    hub.register(stream, Registration { watch_id: 0, range, start_revision: 0, options: WatchOptions::default() });
    hub.publish(&[put(6, &["a", "b", "c"]), put(7, &["a"]), put(8, &["d"])]);
    assert_eq!(taken(&mut hub, stream), ["created 0 at 5", "events 0 at 6: b@6 c@6", "events 0 at 8: d@8"]);
}

#[test]
fn a_watcher_that_starts_in_the_future_gets_neither_events_nor_progress_before() {
    let (mut hub, stream) = hub(5);
    watch(&mut hub, stream, 0, "a", 8);
    hub.request_progress(stream);
    hub.tick(stream);
    hub.publish(&[put(6, &["a"]), put(7, &["a"])]);
    hub.request_progress(stream);
    assert_eq!(taken(&mut hub, stream), ["created 0 at 5"]);
    hub.publish(&[put(8, &["a"])]);
    hub.request_progress(stream);
    assert_eq!(taken(&mut hub, stream), ["events 0 at 8: a@8", "progress -1 at 8"]);
}

#[test]
fn manual_progress_is_not_answered_while_a_watcher_lags_or_without_watchers() {
    let (mut hub, stream) = hub(5);
    hub.request_progress(stream);
    watch(&mut hub, stream, 0, "a", 0);
    watch(&mut hub, stream, 0, "b", 4);
    hub.request_progress(stream);
    assert_eq!(taken(&mut hub, stream), ["created 0 at 5", "created 1 at 5"]);
    let plan = hub.plan(stream).expect("one lags");
    finish(&mut hub, &plan, vec![put(4, &["b"])], 6);
    hub.request_progress(stream);
    assert_eq!(taken(&mut hub, stream), ["events 1 at 5: b@4", "progress -1 at 5"]);
}

#[test]
fn periodic_progress_is_skipped_after_recent_events() {
    let (mut hub, stream) = hub(5);
    watch(&mut hub, stream, 0, "a", 0);
    hub.publish(&[put(6, &["a"])]);
    assert_eq!(taken(&mut hub, stream), ["created 0 at 5", "events 0 at 6: a@6"]);
    hub.tick(stream);
    assert!(taken(&mut hub, stream).is_empty());
    hub.publish(&[put(7, &["z"])]);
    hub.tick(stream);
    assert_eq!(taken(&mut hub, stream), ["progress 0 at 7"]);
}

#[test]
fn a_full_queue_makes_its_watcher_lag_and_no_other_stream_suffers() {
    let (mut hub, slow) = hub(1);
    let quick = hub.open();
    watch(&mut hub, slow, 0, "a", 0);
    watch(&mut hub, quick, 0, "a", 0);
    for revision in 2..=20 {
        hub.publish(&[put(revision, &["a"])]);
        assert!(!taken(&mut hub, quick).is_empty());
    }
    assert_eq!((hub.stats().lagging, hub.stats().queued), (1, 4));
    assert!(hub.plan(slow).is_none(), "no room for history before something is read");
    assert_eq!(taken(&mut hub, slow), ["created 0 at 1", "events 0 at 2: a@2", "events 0 at 3: a@3", "events 0 at 4: a@4"]);
    let plan = hub.plan(slow).expect("it lags");
    assert_eq!(plan.from(), 5);
}

#[test]
fn a_watcher_whose_start_is_compacted_is_created_then_cancelled_and_keeps_its_id() {
    let (mut hub, stream) = hub(9);
    hub.compact(7);
    watch(&mut hub, stream, 4, "a", 6);
    watch(&mut hub, stream, 5, "a", 7);
    let plan = hub.plan(stream).expect("the compact revision itself can be watched from");
    assert_eq!(plan.from(), 7);
    assert_eq!(taken(&mut hub, stream), ["created 4 at 9", "created 5 at 9", "compacted 4 at 7"]);
    finish(&mut hub, &plan, Vec::new(), 10);
    hub.request_progress(stream);
    watch(&mut hub, stream, 4, "a", 0);
    hub.cancel(stream, 4);
    hub.request_progress(stream);
    let answers = [format!("refused at 9: {DUPLICATE_ID}"), "canceled 4 at 9".to_owned(), "progress -1 at 9".to_owned()];
    assert_eq!(taken(&mut hub, stream), answers);
}

#[test]
fn a_replay_is_not_given_to_a_new_watcher_under_the_same_id() {
    let (mut hub, stream) = hub(9);
    watch(&mut hub, stream, 4, "a", 3);
    let plan = hub.plan(stream).expect("it lags");
    hub.cancel(stream, 4);
    watch(&mut hub, stream, 4, "a", 8);
    finish(&mut hub, &plan, vec![put(3, &["a"])], 10);
    assert_eq!(taken(&mut hub, stream), ["created 4 at 9", "canceled 4 at 9", "created 4 at 9"]);
    assert_eq!(hub.plan(stream).map(|plan| plan.from()), Some(8));
}

#[test]
fn a_watcher_that_is_far_behind_does_not_hold_up_one_that_is_near() {
    let (mut hub, stream) = hub(1000);
    for (key, start) in [("a", 2), ("b", 999), ("c", 998)] {
        watch(&mut hub, stream, 0, key, start);
    }
    taken(&mut hub, stream);
    let turns: Vec<Revision> = (0..4).filter_map(|_| hub.plan(stream)).map(|plan| plan.from()).collect();
    assert_eq!(turns, [999, 998, 2, 999]);
}

#[test]
fn a_history_with_a_hole_in_what_it_claims_is_refused() {
    let (mut hub, stream) = hub(9);
    watch(&mut hub, stream, 0, "a", 3);
    let plan = hub.plan(stream).expect("it lags");
    assert!(plan.matched(&Replay { revisions: Vec::new(), next: 3 }).is_err(), "nothing was read");
    assert!(plan.matched(&Replay { revisions: vec![put(2, &["a"])], next: 5 }).is_err());
    assert!(plan.matched(&Replay { revisions: vec![put(5, &["a"])], next: 5 }).is_err());
    assert!(plan.matched(&Replay { revisions: vec![put(4, &["a"]), put(3, &["a"])], next: 6 }).is_err());
}

#[test]
fn a_closed_stream_leaves_nothing_behind() {
    let (mut hub, stream) = hub(5);
    watch(&mut hub, stream, 0, "a", 0);
    watch(&mut hub, stream, 0, "a", 2);
    let plan = hub.plan(stream).expect("one lags");
    hub.close(stream);
    finish(&mut hub, &plan, vec![put(2, &["a"])], 6);
    hub.publish(&[put(6, &["a"])]);
    assert_eq!(hub.stats(), super::HubStats::default());
}

#[test]
#[should_panic(expected = "gapless")]
fn a_gap_in_what_is_published_is_a_lost_event_and_stops_everything() {
    let (mut hub, _) = hub(5);
    hub.publish(&[put(7, &["a"])]);
}

#[test]
fn a_queue_weighs_what_it_holds_on_to_and_holds_on_to_nothing_else() {
    let (mut hub, stream) = hub(1);
    watch(&mut hub, stream, 0, "k", 0);
    hub.publish(&[put(2, &["k"])]);
    let of_one = hub.stats().queued_bytes;
    hub.take(stream, usize::MAX);
    let large = put(3, &["a", "b", "c", "d", "e", "f", "g", "k"]);
    hub.publish(std::slice::from_ref(&large));
    assert!(hub.stats().queued_bytes <= of_one, "{} bytes for one of eight events", hub.stats().queued_bytes);
    assert_eq!(Arc::strong_count(&large), 1, "the other seven aren't kept");
    watch(&mut hub, stream, 0, "a", 0);
    assert_eq!(taken(&mut hub, stream), ["events 0 at 3: k@3", "created 1 at 3"]);
}

#[test]
fn the_lag_is_that_of_the_watcher_that_lags_most() {
    let (mut hub, stream) = hub(10);
    assert_eq!(hub.stats().lag_revisions, 0);
    watch(&mut hub, stream, 0, "k", 0);
    assert_eq!(hub.stats().lag_revisions, 0, "a synced one is not behind");
    watch(&mut hub, stream, 0, "k", 8);
    watch(&mut hub, stream, 0, "k", 4);
    assert_eq!(hub.stats().lag_revisions, 7, "revisions 4 to 10");
}

#[test]
fn pending_are_events_and_not_responses_and_each_watcher_has_its_own() {
    let (mut hub, stream) = hub(1);
    watch(&mut hub, stream, 0, "a", 0);
    let all = KeyRange::From(Bytes::from_static(b"a"));
    hub.register(stream, Registration { watch_id: 0, range: all, start_revision: 0, options: WatchOptions::default() });
    assert_eq!((hub.stats().queued, hub.stats().pending_events), (2, 0), "two answers to requests");
    hub.publish(&[put(2, &["a", "b", "c"])]);
    assert_eq!((hub.stats().queued, hub.stats().pending_events), (4, 4));
    hub.take(stream, 3);
    assert_eq!(hub.stats().pending_events, 3);
    hub.close(stream);
    assert_eq!(hub.stats().pending_events, 0);
}

#[test]
fn a_watcher_that_a_compaction_has_ended_counts_until_it_is_cancelled_and_lags_no_more() {
    let (mut hub, stream) = hub(9);
    hub.compact(7);
    watch(&mut hub, stream, 4, "a", 6);
    assert_eq!((hub.stats().watchers, hub.stats().lagging), (1, 1));
    assert!(hub.plan(stream).is_none());
    assert_eq!((hub.stats().watchers, hub.stats().lagging), (1, 0));
    hub.cancel(stream, 4);
    assert_eq!(hub.stats().watchers, 0);
}
