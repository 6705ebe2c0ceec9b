//! A running node's own findings, as a service on its peer port.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use super::{Finding, Subject, WITNESS, postgres, reach_peer, reach_witness};
use crate::proto::duetpb::check_server::Check;
use crate::proto::duetpb::{CheckRequest, CheckResponse};
use crate::supervisor::pair::clock;
use crate::supervisor::pair::driver::Handle;
use crate::supervisor::pair::status::{NodeStatus, WitnessStatus};
use crate::supervisor::postgres::pair::PairPostgres;

/// A heartbeat that is older isn't just late.
const HEARD_MS_MAX: u64 = 3000;

/// What a node says when it is asked to look at itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Looked {
    /// Its status of that moment.
    pub status: NodeStatus,
    /// Its time of day, in milliseconds since 1970.
    pub clock_ms: u64,
    /// What it found.
    pub findings: Vec<Finding>,
}

/// See the module.
pub struct CheckService {
    subject: Subject,
    handle: Handle,
    postgres: Arc<PairPostgres>,
    tls: Arc<rustls::ClientConfig>,
    guarded: bool,
    /// One at a time: measuring a disk costs it something.
    turn: tokio::sync::Mutex<()>,
}

impl CheckService {
    /// Over what runs; `guarded` says whether a guardian looks after this process.
    #[must_use]
    pub fn new(
        subject: Subject,
        handle: Handle,
        postgres: Arc<PairPostgres>,
        tls: Arc<rustls::ClientConfig>,
        guarded: bool,
    ) -> Self {
        Self { subject, handle, postgres, tls, guarded, turn: tokio::sync::Mutex::default() }
    }

    async fn look(&self) -> Looked {
        let pair = &self.subject.pair;
        let (mut findings, peer, witness, inspected) = tokio::join!(
            self.subject.outside(),
            reach_peer(pair, &self.tls),
            reach_witness(pair, &self.tls),
            self.postgres.inspect()
        );
        let status = self.handle.status();
        findings.push(self.guardian());
        findings.extend(peer);
        findings.push(heartbeats(&status, pair.listen_peer.port()));
        findings.extend(witness);
        if status.witness == WitnessStatus::NotBelieved {
            findings.push(Finding::fail(
                WITNESS,
                "its register isn't the one that this pair knows: it was wiped, or restored from a copy",
                "nothing, while the nodes hear each other: the leader writes it again",
            ));
        }
        match inspected {
            Ok(seen) => {
                findings.extend(postgres::judge(&seen));
                findings.push(postgres::replication(&status, seen.slot.as_ref()));
            }
            Err(why) => findings.push(Finding::fail("settings", why, "duet status tells what this node is doing")),
        }
        Looked { status, clock_ms: clock::unix_ms().unwrap_or(0), findings }
    }

    fn guardian(&self) -> Finding {
        const CHECK: &str = "guardian";
        if self.guarded {
            return Finding::ok(CHECK, "kills this node's Duet when it stands still, and starts it again");
        }
        Finding::warn(
            CHECK,
            "nothing kills a Duet here that stands still: its clients would wait for it for half a minute",
            "take --guardian=false away",
        )
    }
}

fn heartbeats(status: &NodeStatus, port: u16) -> Finding {
    const CHECK: &str = "heartbeats";
    let peer = if status.node == 'A' { 'B' } else { 'A' };
    match status.peer_heard_ms_ago {
        Some(ago) if ago <= HEARD_MS_MAX => Finding::ok(CHECK, format!("node {peer} is heard, {ago} ms ago")),
        heard => Finding::fail(
            CHECK,
            match heard {
                Some(ago) => format!("node {peer} wasn't heard for {} s", ago / 1000),
                None => format!("node {peer} was never heard"),
            },
            format!("start duet node there; let its datagrams through to UDP port {port} here"),
        ),
    }
}

#[tonic::async_trait]
impl Check for CheckService {
    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let _turn = self.turn.lock().await;
        let json = serde_json::to_string(&self.look().await).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(CheckResponse { json }))
    }
}
