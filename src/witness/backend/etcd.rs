//! A key of an etcd, written on the condition that its revision is still the one that was read.
//!
//! A key that was deleted and made again, or written by somebody else, is told by etcd's own counts of it. A cluster that was restored from a
//! snapshot keeps those, and with the same flags even its identity; but its Raft log begins anew, and is shorter than the one that the
//! register was written in. Whoever looks before it has grown as long finds that out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::conditional::{Found, Place, Put};
use super::{ConnectError, WitnessError};
use crate::config::{EtcdTls, EtcdUrl};
use crate::net::proxy::Upstream;
use crate::net::tls::{Pem, TlsError, client_config_of};
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{Compare, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest};

/// See the module.
pub struct Etcd {
    url: EtcdUrl,
    /// One for each endpoint. One is used until it fails, so that all that is asked at once is asked of the same member.
    channels: Vec<Channel>,
    next: AtomicUsize,
    patience: Duration,
}

/// What etcd counts, at the moment when a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    cluster: u64,
    created: i64,
    /// How often the key was written since then, this time included.
    version: i64,
    /// Raft's log and term were at least here.
    log: u64,
    term: u64,
}

impl Etcd {
    /// Connected to when it is needed.
    ///
    /// # Errors
    /// A certificate's file, or an endpoint that no certificate could name.
    pub fn new(url: &EtcdUrl, deadline: Duration) -> Result<Self, ConnectError> {
        let tls = url.tls.as_ref().map(client_config).transpose()?.map(Arc::new);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let connect = |endpoint| Upstream::new(&format!("{scheme}://{endpoint}"), tls.clone()).map(|upstream| upstream.channel());
        let channels = url.endpoints.iter().map(connect).collect::<Result<Vec<_>, _>>().map_err(ConnectError::Address)?;
        // So that there is time for a second endpoint.
        Ok(Self { url: url.clone(), channels, next: AtomicUsize::new(0), patience: deadline / 2 })
    }

    /// Runs a call at the endpoint in use; after a failure the next one is in use.
    async fn call<T>(&self, call: impl AsyncFnOnce(Channel) -> Result<T, Status>) -> Result<T, WitnessError> {
        let turn = self.next.load(Ordering::Relaxed);
        let at = turn % self.channels.len();
        let late = || Status::deadline_exceeded(format!("no answer within {:?}", self.patience));
        let outcome = timeout(self.patience, call(self.channels[at].clone())).await.unwrap_or_else(|_| Err(late()));
        outcome.map_err(|status| {
            let text = format!("{}: {}", self.url.endpoints[at], status.message());
            if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument) {
                return WitnessError::Unusable(text);
            }
            let _ = self.next.compare_exchange(turn, turn + 1, Ordering::Relaxed, Ordering::Relaxed);
            WitnessError::Silent(text)
        })
    }
}

fn client_config(tls: &EtcdTls) -> Result<rustls::ClientConfig, TlsError> {
    let ca = tls.ca_file.as_deref().map(Pem::read).transpose()?;
    let read = |(cert, key): &(PathBuf, PathBuf)| Ok::<_, TlsError>((Pem::read(cert)?, Pem::read(key)?));
    let client = tls.client.as_ref().map(read).transpose()?;
    client_config_of(ca.as_ref(), client.as_ref().map(|(cert, key)| (cert, key)), &[b"h2"])
}

impl Place for Etcd {
    /// The revision that the key was written at.
    type Tag = i64;
    type Seal = Seal;

    async fn get(&self) -> Result<Option<Found<Self>>, WitnessError> {
        let range = RangeRequest { key: self.url.key.clone().into(), ..RangeRequest::default() };
        let (range, status) = self
            .call(async |channel| {
                // In this order: after the linearizable read, the member knows of all that was committed before.
                let range = KvClient::new(channel.clone()).range(range).await?.into_inner();
                Ok((range, MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner()))
            })
            .await?;
        let header = range.header.unwrap_or_default();
        let Some(kv) = range.kvs.into_iter().next() else { return Ok(None) };
        let text = String::from_utf8_lossy(&kv.value).into_owned();
        let now = Seal {
            cluster: header.cluster_id,
            created: kv.create_revision,
            version: kv.version,
            log: status.raft_index,
            term: header.raft_term,
        };
        let bears = Box::new(move |seal: &Seal| {
            let Seal { cluster, created, version, log, term } = *seal;
            (cluster, created, version) == (now.cluster, now.created, now.version) && log <= now.log && term <= now.term
        });
        Ok(Some(Found { text, tag: kv.mod_revision, bears, next: Seal { version: now.version + 1, ..now } }))
    }

    async fn put(&self, text: String, over: Option<&Found<Self>>) -> Result<Put, WitnessError> {
        let key = bytes::Bytes::from(self.url.key.clone());
        let (target, union) = match over {
            Some(found) => (CompareTarget::Mod, TargetUnion::ModRevision(found.tag)),
            None => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
        };
        let compare = Compare {
            key: key.clone(),
            result: CompareResult::Equal.into(),
            target: target.into(),
            target_union: Some(union),
            ..Compare::default()
        };
        let put = Request::RequestPut(PutRequest { key, value: text.into(), ..PutRequest::default() });
        let txn = TxnRequest { compare: vec![compare], success: vec![RequestOp { request: Some(put) }], ..TxnRequest::default() };
        let done = self.call(async |channel| KvClient::new(channel).txn(txn).await).await?.into_inner();
        Ok(if done.succeeded { Put::Written } else { Put::Refused })
    }

    fn describe(&self) -> String {
        let endpoints: Vec<String> = self.url.endpoints.iter().map(ToString::to_string).collect();
        let scheme = if self.url.tls.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://{}/{}", endpoints.join(","), self.url.key)
    }
}
