//! The two nodes, as an operator's command reaches them: over their peer ports, with this node's certificate.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use super::show;
use crate::cli::Failure;
use crate::config::PairConfig;
use crate::net::proxy::Upstream;
use crate::net::tls;
use crate::proto::duetpb::act_request::Action;
use crate::proto::duetpb::admin_client::AdminClient;
use crate::proto::duetpb::{ActRequest, HistoryRequest, StatusRequest};
use crate::supervisor::pair::history::Entry;
use crate::supervisor::pair::record::letter;
use crate::supervisor::pair::status::NodeStatus;

/// How long a node may take to answer.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// Between two looks while something is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// Both nodes: this one first.
pub(in crate::cli) struct Nodes {
    pub(in crate::cli) names: [char; 2],
    pub(super) channels: [Channel; 2],
}

/// What each says of itself, or why it doesn't.
pub(in crate::cli) type Statuses = [Result<NodeStatus, String>; 2];

impl Nodes {
    pub(in crate::cli) fn new(pair: &PairConfig) -> Result<Self, Failure> {
        let tls = tls::client_config(&pair.tls.config())?;
        let connect = |url: String| -> Result<Channel, Failure> {
            Ok(Upstream::new(&url, Some(tls.clone())).map_err(Failure::usage)?.channel())
        };
        let mut here = pair.listen_peer;
        if here.ip().is_unspecified() {
            here.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        Ok(Self {
            names: [letter(pair.node), letter(pair.node.peer())],
            channels: [connect(format!("https://{here}"))?, connect(format!("https://{}", pair.peer))?],
        })
    }

    pub(super) fn admin(&self, at: usize) -> AdminClient<Channel> {
        AdminClient::new(self.channels[at].clone())
    }

    pub(in crate::cli) async fn status_of(&self, at: usize) -> Result<NodeStatus, String> {
        let answer = answer(self.admin(at).status(StatusRequest {})).await?;
        serde_json::from_str(&answer.json).map_err(|error| error.to_string())
    }

    pub(in crate::cli) async fn statuses(&self) -> Statuses {
        tokio::join!(self.status_of(0), self.status_of(1)).into()
    }

    pub(in crate::cli) fn table(&self, statuses: &Statuses) -> String {
        show::table(self.names, statuses)
    }

    /// What the node remembers, oldest first; what this version doesn't understand is left out.
    pub(super) async fn history_of(&self, at: usize) -> Result<Vec<Entry>, String> {
        let answer = answer(self.admin(at).history(HistoryRequest {})).await?;
        Ok(answer.entries.iter().filter_map(|entry| serde_json::from_str(entry).ok()).collect())
    }

    /// What both remember, oldest first, and who doesn't answer.
    pub(super) async fn history(&self) -> (Vec<Entry>, Vec<String>) {
        let (mut entries, mut silent) = (Vec::new(), Vec::new());
        for (at, name) in self.names.iter().enumerate() {
            match self.history_of(at).await {
                Ok(found) => entries.extend(found),
                Err(why) => silent.push(format!("node {name}: {why}")),
            }
        }
        entries.sort_by_key(|entry| entry.at_ms);
        (entries, silent)
    }

    /// Asks a node for something; what it does, or why it refuses.
    pub(super) async fn act(&self, at: usize, action: Action, seconds: u64) -> Result<String, String> {
        Ok(answer(self.admin(at).act(ActRequest { action: action.into(), seconds })).await?.text)
    }

    /// Which node says that it has this role.
    pub(super) async fn find(&self, role: &str) -> Result<usize, Failure> {
        let statuses = self.statuses().await;
        let at = statuses.iter().position(|status| status.as_ref().is_ok_and(|status| status.role == role));
        at.ok_or_else(|| Failure::serving(format!("no node says that it is the {role} at the moment")))
    }

    /// Waits until both are in step again, and tells what is being done meanwhile; what they said last, and whether they are.
    pub(super) async fn until_in_step(&self, patience: Duration, mut tell: impl FnMut(String)) -> (Statuses, bool) {
        let (began, mut told) = (Instant::now(), String::new());
        loop {
            let statuses = self.statuses().await;
            if in_step(&statuses) {
                return (statuses, true);
            }
            if began.elapsed() > patience {
                return (statuses, false);
            }
            let doing = statuses
                .iter()
                .flatten()
                .filter(|status| status.role != "leader")
                .find_map(|status| Some(format!("node {}: {}", status.node, status.details.doing.as_ref()?)));
            if let Some(doing) = doing.filter(|doing| *doing != told) {
                tell(doing.clone());
                told = doing;
            }
            sleep(LOOK).await;
        }
    }
}

/// Whether one node leads, the other could take its place, and both know it. Without a witness that is as far as a pair can get, too.
pub(super) fn in_step(statuses: &Statuses) -> bool {
    let [Ok(one), Ok(other)] = statuses else { return false };
    let paired = |status: &NodeStatus| matches!(status.mode.as_deref(), Some("PAIR" | "ASYM"));
    let leads = |status: &NodeStatus| status.open && status.peer_ready && status.details.peer_flushed.is_some();
    // The leader may not know yet that the other one makes its copy anew.
    let follows = |status: &NodeStatus| status.role == "follower" && status.goal == "standby";
    let in_turn = leads(one) && follows(other) || leads(other) && follows(one);
    paired(one) && one.mode == other.mode && one.epoch == other.epoch && in_turn
}

/// The answer of a call that has a deadline, or why there is none, in words.
pub(super) async fn answer<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, String> {
    let answer = timeout(ANSWER_DEADLINE, call).await;
    let answer = answer.map_err(|_| "no answer".to_owned())?;
    answer.map(tonic::Response::into_inner).map_err(in_words)
}

/// Why there was no answer.
pub(super) fn in_words(status: tonic::Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => "it is of a version that doesn't know this".to_owned(),
        _ => status.message().to_owned(),
    }
}
