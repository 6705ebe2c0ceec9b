//! Criterion benches of the pure parts on the hot path: evaluate and apply, range, watch matching.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duet::lease::Lessor;
use duet::mvcc::{CountMode, Event, Loaded, Operations, RangeScan, RevisionEvents, Store, StoreOptions, range};
use duet::proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::request_op::Request;
use duet::proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, TxnRequest};
use duet::sequencer::{Command, Sequencer};
use duet::storage::{Batch, LogRow};
use duet::types::{KeyRange, Rev};
use duet::watch::hub::Registration;
use duet::watch::interval::IntervalIndex;
use duet::watch::{Hub, Limits, WatchOptions};

const KEYS: usize = 10_000;
const BATCH: usize = 64;

fn key(n: usize) -> Bytes {
    Bytes::from(format!("/registry/pods/namespace-{:03}/pod-{n:06}", n % 100))
}

fn row(main: i64, n: usize) -> LogRow {
    LogRow {
        rev: Rev::new(main, 0),
        key: key(n),
        value: Some(Bytes::from(vec![7; 1024])),
        create_revision: main,
        version: 1,
        lease: 0,
    }
}

fn filled() -> Store {
    let mut store = Store::new(StoreOptions::default());
    let rows = (0..KEYS).map(|n| row(n as i64 + 2, n)).collect();
    store.apply(&Batch { rows, ..Batch::default() });
    store
}

/// Kubernetes' update of the key that `filled` wrote at revision `n + 2`.
fn update(n: usize) -> Command {
    let compare = Compare {
        target: CompareTarget::Mod as i32,
        key: key(n),
        target_union: Some(TargetUnion::ModRevision(n as i64 + 2)),
        ..Compare::default()
    };
    let put = PutRequest { key: key(n), value: Bytes::from(vec![8; 1024]), ..PutRequest::default() };
    let get = RangeRequest { key: key(n), ..RangeRequest::default() };
    Command::Txn(TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(get)) }],
    })
}

fn apply(criterion: &mut Criterion) {
    let store = filled();
    let lessor = Lessor::default();
    let commands: Vec<Command> = (0..BATCH).map(|n| update(n * 131 % KEYS)).collect();
    let mut group = criterion.benchmark_group("write");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("evaluate 64 updates", |bencher| {
        bencher.iter_batched_ref(
            || Sequencer::new(&store, []),
            |sequencer| {
                for command in &commands {
                    let mut operations = Operations::default();
                    let done = sequencer.evaluate(command, &store, &lessor, &Loaded::new(), 0, &mut operations);
                    black_box((done.expect("an update succeeds"), operations));
                }
            },
            BatchSize::SmallInput,
        );
    });
    let mut live = filled();
    let mut revision = KEYS as i64 + 1;
    group.bench_function("apply 64 updates", |bencher| {
        bencher.iter_batched_ref(
            || {
                let rows = (0..BATCH).map(|n| row(revision + 1 + n as i64, n * 131 % KEYS)).collect();
                revision += BATCH as i64;
                Batch { rows, ..Batch::default() }
            },
            |batch| black_box(live.apply(batch)),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn ranges(criterion: &mut Criterion) {
    let store = filled();
    let mut group = criterion.benchmark_group("range");
    let everything = RangeRequest {
        key: Bytes::from_static(b"/registry/"),
        range_end: Bytes::from_static(b"/registry0"),
        ..Default::default()
    };
    group.bench_function("10,000 keys in steps of 1,000", |bencher| {
        bencher.iter(|| {
            let mut scan = RangeScan::begin(&store, &everything, CountMode::Total).expect("a range begins");
            while !scan.is_done() {
                scan.step(&store, &Loaded::new(), 1000).expect("nothing is compacted");
            }
            black_box(scan.finish().expect("a range succeeds"))
        });
    });
    let cases = [
        ("one key", RangeRequest { key: key(77), ..Default::default() }),
        ("10,000 keys", everything.clone()),
        ("first page of 500 of 10,000", RangeRequest { limit: 500, ..everything.clone() }),
        ("count of 10,000", RangeRequest { count_only: true, ..everything }),
    ];
    for (name, request) in cases {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(range(&store, &request, CountMode::Total, &Loaded::new()).expect("a range succeeds")));
        });
    }
    group.finish();
}

/// A hub with one watcher a stream, some of which watch everything; answers the streams of those.
fn watched(watchers: usize, matching: usize) -> (Hub, Vec<u64>) {
    let mut hub = Hub::new(1, -1, Limits::default());
    let mut streams = Vec::new();
    for n in 0..watchers {
        let range = if n < matching { KeyRange::From(Bytes::from_static(b"/")) } else { KeyRange::Key(key(n)) };
        let stream = hub.open();
        hub.register(stream, Registration { watch_id: 0, range, start_revision: 0, options: WatchOptions::default() });
        assert_eq!(hub.take(stream, 16).len(), 1, "created");
        if n < matching {
            streams.push(stream);
        }
    }
    (hub, streams)
}

fn watch_matching(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch");
    for watchers in [100, 10_000] {
        let mut index = IntervalIndex::default();
        for n in 0..watchers {
            // A few watch everything of a resource, most one namespace or one object, as API servers and kubelets do.
            let watched = match n % 10 {
                0 => KeyRange::new(Bytes::from_static(b"/registry/pods/"), Bytes::from_static(b"/registry/pods0")),
                1..=4 => {
                    let prefix = format!("/registry/pods/namespace-{:03}/", n % 100);
                    let end = format!("/registry/pods/namespace-{:03}0", n % 100);
                    KeyRange::new(Bytes::from(prefix), Bytes::from(end))
                }
                _ => KeyRange::new(key(n), Bytes::new()),
            };
            index.insert(&watched, n);
        }
        group.bench_function(BenchmarkId::new("find the watchers of a key", watchers), |bencher| {
            let mut n = 0;
            bencher.iter(|| {
                n = (n + 131) % KEYS;
                let mut found = 0;
                index.stab(&key(n), |_| found += 1);
                black_box(found)
            });
        });
    }
    for matching in [3, 500] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(
            BenchmarkId::new("publish a revision and take it, 10,000 watchers, matching", matching),
            |bencher| {
                let (mut hub, streams) = watched(10_000, matching);
                let mut revision = 1;
                bencher.iter(|| {
                    revision += 1;
                    let events = vec![Event { row: row(revision, 0), prev: None }];
                    hub.publish(&[Arc::new(RevisionEvents { revision, events })]);
                    hub.take_wakes();
                    for stream in &streams {
                        assert_eq!(hub.take(*stream, 16).len(), 1);
                    }
                });
            },
        );
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("weigh a revision's events", |bencher| {
        let events = RevisionEvents { revision: 2, events: (0..8).map(|n| Event { row: row(2, n), prev: None }).collect() };
        let events = Arc::new(events);
        bencher.iter(|| black_box(events.weight()));
    });
    group.finish();
}

criterion_group!(benches, apply, ranges, watch_matching);
criterion_main!(benches);
