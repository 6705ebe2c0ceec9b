//! Takes out of answers what two servers may differ in: cluster and member ids, raft terms, the revision at which the script started,
//! lease ids that the server chose, seconds that passed. Everything else stays and is compared.

use std::fmt::Debug;

use bytes::Bytes;

use crate::script::{Request, auto_lease, auto_lease_number};
use duet::proto::etcdserverpb::compare::TargetUnion;
use duet::proto::etcdserverpb::watch_request::RequestUnion;
use duet::proto::etcdserverpb::*;
use duet::proto::mvccpb::{Event, KeyValue};

/// Longer values are shown by length and checksum.
const SHOWN_BYTES: usize = 80;
/// A lease that was granted or renewed at most this long ago counts as fresh.
const FRESH_SECONDS: i64 = 20;

/// Maps between a script's numbers and a server's.
#[derive(Clone, Debug, Default)]
pub struct Normaliser {
    /// What to add to a script's revision to get the server's.
    pub offset: i64,
    /// The store is fresh: hashes over its whole history mean something.
    pub exact: bool,
    /// The lease ids that the server chose, in order.
    auto_leases: Vec<i64>,
    /// The server's own member id.
    pub member_id: u64,
}

impl Normaliser {
    pub fn new(offset: i64, exact: bool, member_id: u64) -> Self {
        Normaliser { offset, exact, auto_leases: Vec::new(), member_id }
    }

    fn revision_out(&self, revision: &mut i64) {
        if *revision > 0 {
            *revision = revision.saturating_add(self.offset);
        }
    }

    fn revision_in(&self, revision: &mut i64) {
        if *revision > 0 {
            *revision -= self.offset;
        }
    }

    fn lease_out(&self, id: &mut i64) {
        if let Some(real) = auto_lease_number(*id).and_then(|n| self.auto_leases.get(n)) {
            *id = *real;
        }
    }

    fn lease_in(&self, id: &mut i64) {
        if let Some(n) = self.auto_leases.iter().position(|real| real == id) {
            *id = auto_lease(n);
        }
    }

    /// A script's request as this server has to get it.
    pub fn request(&self, request: &mut Request) {
        match request {
            Request::Range(r) | Request::RangeStream(r) => self.range_request(r),
            Request::Put(r) => self.lease_out(&mut r.lease),
            Request::Txn(r) => self.txn_request(r),
            Request::Compact(r) => self.revision_out(&mut r.revision),
            Request::HashKv(r) => self.revision_out(&mut r.revision),
            Request::LeaseGrant(r) => self.lease_out(&mut r.id),
            Request::LeaseRevoke(r) => self.lease_out(&mut r.id),
            Request::LeaseTimeToLive(r) => self.lease_out(&mut r.id),
            Request::LeaseKeepAlive(ids) => ids.iter_mut().for_each(|id| self.lease_out(id)),
            Request::Alarm(r) => self.member_out(&mut r.member_id),
            Request::MoveLeader(r) => self.member_out(&mut r.target_id),
            Request::MemberRemove(r) => self.member_out(&mut r.id),
            Request::MemberUpdate(r) => self.member_out(&mut r.id),
            Request::MemberPromote(r) => self.member_out(&mut r.id),
            _ => {}
        }
    }

    /// Member id 1 in a script is the server's own.
    fn member_out(&self, id: &mut u64) {
        if *id == 1 {
            *id = self.member_id;
        }
    }

    fn member_in(&self, id: &mut u64) {
        if *id == self.member_id {
            *id = 1;
        }
    }

    fn range_request(&self, r: &mut RangeRequest) {
        for revision in [
            &mut r.revision,
            &mut r.min_mod_revision,
            &mut r.max_mod_revision,
            &mut r.min_create_revision,
            &mut r.max_create_revision,
        ] {
            self.revision_out(revision);
        }
    }

    fn txn_request(&self, r: &mut TxnRequest) {
        for compare in &mut r.compare {
            match &mut compare.target_union {
                Some(TargetUnion::CreateRevision(rev) | TargetUnion::ModRevision(rev)) => self.revision_out(rev),
                Some(TargetUnion::Lease(id)) => self.lease_out(id),
                _ => {}
            }
        }
        for op in r.success.iter_mut().chain(&mut r.failure) {
            match &mut op.request {
                Some(request_op::Request::RequestRange(r)) => self.range_request(r),
                Some(request_op::Request::RequestPut(r)) => self.lease_out(&mut r.lease),
                Some(request_op::Request::RequestTxn(r)) => self.txn_request(r),
                _ => {}
            }
        }
    }

    /// A script's watch request as this server has to get it.
    pub fn watch_request(&self, request: &mut RequestUnion) {
        if let RequestUnion::CreateRequest(create) = request {
            self.revision_out(&mut create.start_revision);
        }
    }

    fn header(&self, header: &mut Option<ResponseHeader>) {
        if let Some(header) = header {
            // Set or not is compared, the value isn't.
            header.cluster_id = header.cluster_id.min(1);
            self.member_in(&mut header.member_id);
            header.raft_term = header.raft_term.min(1);
            self.revision_in(&mut header.revision);
        }
    }

    fn kv(&self, kv: &mut KeyValue) {
        self.revision_in(&mut kv.create_revision);
        self.revision_in(&mut kv.mod_revision);
        self.lease_in(&mut kv.lease);
        abbreviate(&mut kv.key);
        abbreviate(&mut kv.value);
    }

    pub fn event(&self, event: &mut Event) {
        event.kv.iter_mut().for_each(|kv| self.kv(kv));
        event.prev_kv.iter_mut().for_each(|kv| self.kv(kv));
    }

    fn members(&self, members: &mut [Member]) {
        for member in members {
            self.member_in(&mut member.id);
            // Where a server listens is its own; that it says so is compared.
            member.peer_ur_ls.clear();
            for url in &mut member.client_ur_ls {
                *url = url.split("//").next().unwrap_or_default().to_owned();
            }
        }
    }
}

/// Puts length and checksum in the place of what is too long to show.
fn abbreviate(bytes: &mut Bytes) {
    if bytes.len() > SHOWN_BYTES {
        let sum = crc32c::crc32c(bytes);
        *bytes = format!("<{} bytes, crc {sum:08x}>", bytes.len()).into();
    }
}

/// A response that can be normalised.
pub trait Answer: Debug {
    fn normalise(&mut self, n: &mut Normaliser);
}

impl Answer for RangeResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        self.kvs.iter_mut().for_each(|kv| n.kv(kv));
    }
}

impl Answer for RangeStreamResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        if let Some(response) = &mut self.range_response {
            response.normalise(n);
        }
    }
}

impl Answer for PutResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        self.prev_kv.iter_mut().for_each(|kv| n.kv(kv));
    }
}

impl Answer for DeleteRangeResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        self.prev_kvs.iter_mut().for_each(|kv| n.kv(kv));
    }
}

impl Answer for TxnResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        for op in &mut self.responses {
            match &mut op.response {
                Some(response_op::Response::ResponseRange(r)) => r.normalise(n),
                Some(response_op::Response::ResponsePut(r)) => r.normalise(n),
                Some(response_op::Response::ResponseDeleteRange(r)) => r.normalise(n),
                Some(response_op::Response::ResponseTxn(r)) => r.normalise(n),
                None => {}
            }
        }
    }
}

impl Answer for LeaseGrantResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        n.lease_in(&mut self.id);
    }
}

impl Normaliser {
    /// A lease id that the server chose.
    pub fn learn_lease(&mut self, id: i64) {
        self.auto_leases.push(id);
    }
}

impl Answer for LeaseTimeToLiveResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        n.lease_in(&mut self.id);
        if self.ttl > 0 && (0..=FRESH_SECONDS).contains(&(self.granted_ttl - self.ttl)) {
            self.ttl = self.granted_ttl;
        }
        // etcd keeps them in a map.
        self.keys.sort();
        self.keys.iter_mut().for_each(abbreviate);
    }
}

impl Answer for LeaseKeepAliveResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        n.lease_in(&mut self.id);
    }
}

impl Answer for LeaseLeasesResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        self.leases.iter_mut().for_each(|lease| n.lease_in(&mut lease.id));
    }
}

impl Answer for HashKvResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        n.revision_in(&mut self.hash_revision);
        if !n.exact {
            self.hash = 0;
            self.compact_revision = 0;
        }
    }
}

impl Answer for HashResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        // Over etcd's own file format.
        self.hash = 0;
    }
}

impl Answer for StatusResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        n.member_in(&mut self.leader);
        self.version = version_kind(&self.version);
        self.storage_version = version_kind(&self.storage_version);
        // Of an empty store, etcd's file holds something, Duet's tables nothing.
        self.db_size_in_use = i64::from((0..=self.db_size).contains(&self.db_size_in_use));
        self.db_size = self.db_size.clamp(-1, 1);
        self.raft_index = self.raft_index.min(1);
        self.raft_applied_index = self.raft_applied_index.min(1);
        self.raft_term = self.raft_term.min(1);
        let own = n.member_id.to_string();
        for error in &mut self.errors {
            // Go prints messages with one or two spaces, at its whim.
            *error = error.replace("  ", " ").replace(&own, "SELF");
        }
    }
}

/// Two versions are as good as each other if clients turn the same features on.
fn version_kind(version: &str) -> String {
    let numbers: Option<Vec<u64>> = version.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[3, minor, _patch]) if minor >= 6 => "3.6 or later".to_owned(),
        _ => version.to_owned(),
    }
}

macro_rules! header_only {
    ($($message:ty),*) => {
        $(impl Answer for $message {
            fn normalise(&mut self, n: &mut Normaliser) {
                n.header(&mut self.header);
            }
        })*
    };
}

header_only!(CompactionResponse, LeaseRevokeResponse, DefragmentResponse, MoveLeaderResponse, DowngradeResponse);

macro_rules! with_members {
    ($($message:ty),*) => {
        $(impl Answer for $message {
            fn normalise(&mut self, n: &mut Normaliser) {
                n.header(&mut self.header);
                n.members(&mut self.members);
            }
        })*
    };
}

with_members!(MemberListResponse, MemberAddResponse, MemberRemoveResponse, MemberUpdateResponse, MemberPromoteResponse);

impl Answer for AlarmResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        for alarm in &mut self.alarms {
            n.member_in(&mut alarm.member_id);
        }
    }
}

impl Answer for WatchResponse {
    fn normalise(&mut self, n: &mut Normaliser) {
        n.header(&mut self.header);
        n.revision_in(&mut self.compact_revision);
        self.events.iter_mut().for_each(|event| n.event(event));
    }
}
