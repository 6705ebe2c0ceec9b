//! Scripts: lists of steps that are data, so that they can be printed, shrunk and replayed.
//!
//! Revisions in a script are those of a fresh store, which stands at 1: the player moves every positive one by the revision at which the
//! server stands when the script starts, and moves those in answers back. Zero and negative revisions mean something of their own and stay.
//! Lease ids that a server chose are named `auto_lease(n)`, the n-th in the script.

use bytes::Bytes;

use duet::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use duet::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use duet::proto::etcdserverpb::watch_create_request::FilterType;
use duet::proto::etcdserverpb::watch_request::RequestUnion;
use duet::proto::etcdserverpb::*;

/// One RPC. Streams that a script doesn't hold open are one request too: all answers up to the end of the stream are its answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Range(RangeRequest),
    RangeStream(RangeRequest),
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    LeaseGrant(LeaseGrantRequest),
    LeaseRevoke(LeaseRevokeRequest),
    LeaseTimeToLive(LeaseTimeToLiveRequest),
    LeaseLeases(LeaseLeasesRequest),
    /// Sends these ids over one stream, reads an answer for each, closes its side, waits for the end.
    LeaseKeepAlive(Vec<i64>),
    MemberAdd(MemberAddRequest),
    MemberRemove(MemberRemoveRequest),
    MemberUpdate(MemberUpdateRequest),
    MemberList(MemberListRequest),
    MemberPromote(MemberPromoteRequest),
    Alarm(AlarmRequest),
    Status(StatusRequest),
    Defragment(DefragmentRequest),
    Hash(HashRequest),
    HashKv(HashKvRequest),
    MoveLeader(MoveLeaderRequest),
    Downgrade(DowngradeRequest),
    /// A method by its path with a body as it goes over the wire; only the status of the answer counts.
    Raw(&'static str, Vec<u8>),
}

/// A number of a watch stream within its script.
pub type Stream = usize;

/// One step of a script.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A request and its answer.
    Call(Request),
    /// A request with metadata.
    CallWith(Vec<(&'static str, Vec<u8>)>, Request),
    /// Opens a watch stream.
    Open(Stream, Vec<(&'static str, Vec<u8>)>),
    /// Sends on a watch stream; waits for the answer to a creation, and leaves it to a later step to compare it.
    Send(Stream, RequestUnion),
    /// Waits for so many responses; they are compared one by one, each watch's in their order.
    Take(Stream, usize),
    /// Waits until everything that is due has arrived; each watch's events are compared, whatever responses they came in.
    Settle(Stream),
    /// Closes the client's side of a watch stream.
    CloseSend(Stream),
    /// Waits for the end of a watch stream and compares its status.
    End(Stream),
    /// Drops a watch stream.
    Drop(Stream),
    /// Steps that belong together: shrinking takes all of them or none.
    Group(Vec<Step>),
    /// Starts the server again over its data.
    Restart,
    /// Compares what the server has counted since the script began, or since its last restart. Every script ends with it.
    Figures,
}

/// What a case needs of its servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// Any store, emptied.
    #[default]
    Shared,
    /// A store that nothing was ever written to, by servers of its own, started with these flags besides the usual ones.
    Fresh(Vec<&'static str>),
}

/// A script with a name that is a sentence.
#[derive(Clone, Debug)]
pub struct Case {
    pub area: &'static str,
    pub name: String,
    pub store: Store,
    pub steps: Vec<Step>,
}

/// A case that any store will do for.
pub fn case(name: &str, steps: impl Into<Vec<Step>>) -> Case {
    Case { area: "", name: name.to_owned(), store: Store::Shared, steps: steps.into() }
}

/// A case on a fresh store.
pub fn fresh(name: &str, steps: impl Into<Vec<Step>>) -> Case {
    Case { store: Store::Fresh(Vec::new()), ..case(name, steps) }
}

/// A case on a fresh store, of servers with these flags.
pub fn flags(name: &str, flags: &[&'static str], steps: impl Into<Vec<Step>>) -> Case {
    Case { store: Store::Fresh(flags.to_vec()), ..case(name, steps) }
}

const AUTO_LEASE: i64 = 0x7e57_0000_0000_0000;

/// The `n`-th lease id, from 0, that a server chose in the script.
pub const fn auto_lease(n: usize) -> i64 {
    AUTO_LEASE + n as i64
}

/// The inverse of [`auto_lease`].
pub fn auto_lease_number(id: i64) -> Option<usize> {
    (AUTO_LEASE..AUTO_LEASE + 4096).contains(&id).then(|| (id - AUTO_LEASE) as usize)
}

/// Bytes, from text or from an array.
pub fn b(bytes: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(bytes.as_ref())
}

/// The end of the prefix's range.
pub fn prefix_end(prefix: impl AsRef<[u8]>) -> Bytes {
    let mut end = prefix.as_ref().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    b([0])
}

/// A builder that turns into a step, an operation of a transaction, or a request with metadata.
macro_rules! request_builder {
    ($builder:ident, $message:ident, $variant:ident { $($method:ident($self:ident $(, $value:ident: $type:ty)?) => $set:expr;)* }) => {
        #[derive(Clone, Debug, Default)]
        pub struct $builder(pub $message);

        #[allow(dead_code)]
        impl $builder {
            $(pub fn $method(mut self $(, $value: $type)?) -> Self {
                let $self = &mut self.0;
                $set;
                self
            })*
        }

        impl From<$builder> for Step {
            fn from(builder: $builder) -> Step {
                Step::Call(Request::$variant(builder.0))
            }
        }

        impl From<$builder> for Request {
            fn from(builder: $builder) -> Request {
                Request::$variant(builder.0)
            }
        }
    };
}

request_builder!(Get, RangeRequest, Range {
    to(r, end: impl AsRef<[u8]>) => r.range_end = b(end);
    prefix(r) => r.range_end = prefix_end(&r.key);
    limit(r, limit: i64) => r.limit = limit;
    rev(r, rev: i64) => r.revision = rev;
    sort(r, sort: (SortTarget, SortOrder)) => { r.sort_target = sort.0 as i32; r.sort_order = sort.1 as i32; };
    sort_numbers(r, sort: (i32, i32)) => { r.sort_target = sort.0; r.sort_order = sort.1; };
    serializable(r) => r.serializable = true;
    keys_only(r) => r.keys_only = true;
    count_only(r) => r.count_only = true;
    min_mod(r, rev: i64) => r.min_mod_revision = rev;
    max_mod(r, rev: i64) => r.max_mod_revision = rev;
    min_create(r, rev: i64) => r.min_create_revision = rev;
    max_create(r, rev: i64) => r.max_create_revision = rev;
});

request_builder!(Set, PutRequest, Put {
    lease(r, lease: i64) => r.lease = lease;
    prev_kv(r) => r.prev_kv = true;
    ignore_value(r) => r.ignore_value = true;
    ignore_lease(r) => r.ignore_lease = true;
});

request_builder!(Del, DeleteRangeRequest, DeleteRange {
    to(r, end: impl AsRef<[u8]>) => r.range_end = b(end);
    prefix(r) => r.range_end = prefix_end(&r.key);
    prev_kv(r) => r.prev_kv = true;
});

request_builder!(If, TxnRequest, Txn {
    then(r, ops: impl Into<Vec<RequestOp>>) => r.success = ops.into();
    or_else(r, ops: impl Into<Vec<RequestOp>>) => r.failure = ops.into();
});

impl Get {
    /// The same request as a RangeStream.
    pub fn stream(self) -> Step {
        Step::Call(Request::RangeStream(self.0))
    }
}

macro_rules! operation {
    ($builder:ident, $variant:ident) => {
        impl From<$builder> for RequestOp {
            fn from(builder: $builder) -> RequestOp {
                RequestOp { request: Some(request_op::Request::$variant(builder.0)) }
            }
        }
    };
}

operation!(Get, RequestRange);
operation!(Set, RequestPut);
operation!(Del, RequestDeleteRange);
operation!(If, RequestTxn);

pub fn get(key: impl AsRef<[u8]>) -> Get {
    Get(RangeRequest { key: b(key), ..Default::default() })
}

/// Everything there is.
pub fn get_all() -> Get {
    get([0]).to([0])
}

pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Set {
    Set(PutRequest { key: b(key), value: b(value), ..Default::default() })
}

pub fn delete(key: impl AsRef<[u8]>) -> Del {
    Del(DeleteRangeRequest { key: b(key), ..Default::default() })
}

pub fn when(compares: impl Into<Vec<Compare>>) -> If {
    If(TxnRequest { compare: compares.into(), ..Default::default() })
}

/// A transaction without compares.
pub fn txn(ops: impl Into<Vec<RequestOp>>) -> If {
    when([]).then(ops)
}

/// An operation that asks for nothing.
pub fn empty_op() -> RequestOp {
    RequestOp { request: None }
}

/// `compare!`'s function form: key, target with its value, operator.
pub fn cmp(key: impl AsRef<[u8]>, target: TargetUnion, result: CompareResult) -> Compare {
    let kind = match &target {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    Compare { key: b(key), target: kind as i32, result: result as i32, target_union: Some(target), ..Default::default() }
}

pub fn cmp_to(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>, target: TargetUnion, result: CompareResult) -> Compare {
    Compare { range_end: b(end), ..cmp(key, target, result) }
}

pub fn compact(revision: i64) -> Step {
    Step::Call(Request::Compact(CompactionRequest { revision, physical: false }))
}

pub fn compact_physical(revision: i64) -> Step {
    Step::Call(Request::Compact(CompactionRequest { revision, physical: true }))
}

pub fn grant(id: i64, ttl: i64) -> Step {
    Step::Call(Request::LeaseGrant(LeaseGrantRequest { id, ttl }))
}

pub fn revoke(id: i64) -> Step {
    Step::Call(Request::LeaseRevoke(LeaseRevokeRequest { id }))
}

pub fn time_to_live(id: i64, keys: bool) -> Step {
    Step::Call(Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id, keys }))
}

pub fn leases() -> Step {
    Step::Call(Request::LeaseLeases(LeaseLeasesRequest {}))
}

pub fn keep_alive(ids: &[i64]) -> Step {
    Step::Call(Request::LeaseKeepAlive(ids.to_vec()))
}

pub fn hash_kv(revision: i64) -> Step {
    Step::Call(Request::HashKv(HashKvRequest { revision }))
}

pub fn alarm(action: alarm_request::AlarmAction, member_id: u64, alarm: AlarmType) -> Step {
    Step::Call(Request::Alarm(AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 }))
}

pub fn status() -> Step {
    Step::Call(Request::Status(StatusRequest {}))
}

pub fn with(metadata: &[(&'static str, &[u8])], request: impl Into<Request>) -> Step {
    let metadata = metadata.iter().map(|&(k, v)| (k, v.to_vec())).collect();
    Step::CallWith(metadata, request.into())
}

pub fn open(stream: Stream) -> Step {
    Step::Open(stream, Vec::new())
}

pub fn take(stream: Stream, responses: usize) -> Step {
    Step::Take(stream, responses)
}

pub fn settle(stream: Stream) -> Step {
    Step::Settle(stream)
}

pub fn cancel(stream: Stream, watch_id: i64) -> Step {
    Step::Send(stream, RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
}

pub fn progress(stream: Stream) -> Step {
    Step::Send(stream, RequestUnion::ProgressRequest(WatchProgressRequest {}))
}

/// The creation of a watch on a stream.
#[derive(Clone, Debug, Default)]
pub struct Watch(pub Stream, pub WatchCreateRequest);

pub fn watch(stream: Stream, key: impl AsRef<[u8]>) -> Watch {
    Watch(stream, WatchCreateRequest { key: b(key), ..Default::default() })
}

impl Watch {
    pub fn to(mut self, end: impl AsRef<[u8]>) -> Self {
        self.1.range_end = b(end);
        self
    }
    pub fn prefix(mut self) -> Self {
        self.1.range_end = prefix_end(&self.1.key);
        self
    }
    pub fn from(mut self, revision: i64) -> Self {
        self.1.start_revision = revision;
        self
    }
    pub fn prev_kv(mut self) -> Self {
        self.1.prev_kv = true;
        self
    }
    pub fn fragment(mut self) -> Self {
        self.1.fragment = true;
        self
    }
    pub fn notify(mut self) -> Self {
        self.1.progress_notify = true;
        self
    }
    pub fn id(mut self, id: i64) -> Self {
        self.1.watch_id = id;
        self
    }
    pub fn without(mut self, filters: &[FilterType]) -> Self {
        self.1.filters = filters.iter().map(|&filter| filter as i32).collect();
        self
    }
    pub fn filter_numbers(mut self, filters: &[i32]) -> Self {
        self.1.filters = filters.to_vec();
        self
    }
}

impl From<Watch> for Step {
    fn from(watch: Watch) -> Step {
        Step::Send(watch.0, RequestUnion::CreateRequest(watch.1))
    }
}

/// A `Vec<Step>` of anything that turns into steps.
#[macro_export]
macro_rules! steps {
    ($($step:expr),* $(,)?) => { vec![$($crate::script::Step::from($step)),*] };
}

/// A `Vec<RequestOp>` of anything that turns into operations.
#[macro_export]
macro_rules! ops {
    ($($op:expr),* $(,)?) => { vec![$(duet::proto::etcdserverpb::RequestOp::from($op)),*] };
}
