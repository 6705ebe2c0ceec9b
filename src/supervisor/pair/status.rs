//! What a node says of itself and of the pair: the contents of `duet status`.

use serde::{Deserialize, Serialize};

use super::history::{Entry, Takeovers};
use super::record::letter;
use super::virtual_ip::VirtualIpStatus;
use crate::supervisor::fsm::{Goal, Mode, NodeId, Phase, Postgres, State, Sync, Third};
use crate::supervisor::postgres::pair::Details;
use crate::types::{Epoch, Millis};

/// A node's view, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The pair's name.
    pub cluster: String,
    /// Whose view it is: A or B.
    pub node: char,
    /// Its program's version.
    pub version: String,
    /// `leader`, `follower`, or `starting`.
    pub role: String,
    /// Requests are answered here.
    pub open: bool,
    /// The register's mode; `None` before anything is known.
    pub mode: Option<String>,
    /// The register's version.
    pub register_version: u64,
    /// Grows with each change of the owner.
    pub epoch: Epoch,
    /// The owner: A or B.
    pub owner: Option<char>,
    /// What PostgreSQL is to be.
    pub goal: String,
    /// What PostgreSQL is.
    pub postgres: String,
    /// Positions, free space, and what is being done.
    pub details: Details,
    /// There is too little room on this node's disk for it to be chosen for leading.
    #[serde(default)]
    pub short_of_disk: bool,
    /// How long ago the peer was heard.
    pub peer_heard_ms_ago: Option<Millis>,
    /// The peer could take over.
    pub peer_ready: bool,
    /// Whether there is a witness, and it answers something that is believed.
    pub witness: WitnessStatus,
    /// How long the leader may still read on the peer's promise; `None` without the need of one.
    pub lease_left_ms: Option<Millis>,
    /// A switchover is under way.
    pub handing_over: bool,
    /// No failover by itself for so long.
    pub paused_for_ms: Option<Millis>,
    /// The same of the peer, as it said last.
    #[serde(default)]
    pub peer_paused: bool,
    /// The peer is in maintenance for so long: the leader goes on alone on purpose.
    #[serde(default)]
    pub peer_away_for_ms: Option<Millis>,
    /// Which losses the pair survives now.
    pub survives: Survives,
    /// The last takeover that this node carried out.
    pub last_takeover: Option<Entry>,
    /// How many takeovers this node's process has carried out.
    #[serde(default)]
    pub takeovers: Takeovers,
    /// How it is with the virtual IP on this node, if there is one.
    #[serde(default)]
    pub virtual_ip: Option<VirtualIpStatus>,
    /// Why this node, if it follows, doesn't take over at this moment; or what the leader waits for.
    pub explanation: String,
}

/// The third party, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WitnessStatus {
    /// There is none.
    None,
    /// A fencing device is in its place.
    Fence,
    /// It answers.
    Answers,
    /// It doesn't.
    Silent,
    /// It answers, but its register isn't the one that this pair knows (it was wiped, or restored from a copy).
    NotBelieved,
}

/// Which single losses the pair survives without anybody's help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survives {
    /// Node A's.
    pub a: bool,
    /// Node B's.
    pub b: bool,
    /// The witness's.
    pub witness: bool,
    /// The same for people.
    pub sentence: String,
}

impl NodeStatus {
    /// The view that `state` is.
    #[must_use]
    pub fn of(
        state: &State,
        cluster: &str,
        details: Details,
        last_takeover: Option<Entry>,
        takeovers: Takeovers,
        now: Millis,
    ) -> Self {
        let seen = state.record.seen;
        Self {
            cluster: cluster.to_owned(),
            node: letter(state.me()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: role(state).to_owned(),
            open: state.may_acknowledge(now),
            mode: state.mode().map(|mode| mode_name(mode).to_owned()),
            register_version: state.record.version(),
            epoch: seen.map_or(0, |seen| seen.epoch),
            owner: seen.map(|seen| letter(seen.owner)),
            goal: goal_name(state.goal).to_owned(),
            postgres: postgres_name(state.postgres),
            details,
            short_of_disk: state.short_of_disk,
            peer_heard_ms_ago: state.peer.map(|peer| now.saturating_sub(peer.heard_at)),
            peer_ready: peer_is_useful(state, now),
            witness: witness(state, now),
            lease_left_ms: (state.phase == Phase::Leader && !state.may_be_alone()).then(|| state.lease_until.saturating_sub(now)),
            handing_over: state.handover.is_some(),
            paused_for_ms: state.paused_until.map(|until| until.saturating_sub(now)),
            peer_paused: state.peer.is_some_and(|peer| peer.heartbeat.paused),
            peer_away_for_ms: state.peer_away_until.map(|until| until.saturating_sub(now)),
            survives: survives(state, now),
            last_takeover,
            takeovers,
            virtual_ip: None,
            explanation: explain(state, now),
        }
    }
}

fn role(state: &State) -> &'static str {
    match state.phase {
        Phase::Boot => "starting",
        Phase::Leader => "leader",
        Phase::Follower => "follower",
    }
}

/// The register's mode as operators know it.
#[must_use]
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Pair => "PAIR",
        Mode::Solo => "SOLO",
        Mode::Asym => "ASYM",
    }
}

fn goal_name(goal: Goal) -> &'static str {
    match goal {
        Goal::Stopped => "stopped",
        Goal::Primary { sync: true } => "primary, synchronous",
        Goal::Primary { sync: false } => "primary, alone",
        Goal::Standby { rebuild: false } => "standby",
        Goal::Standby { rebuild: true } => "standby, from a new copy",
    }
}

fn postgres_name(postgres: Postgres) -> String {
    match postgres {
        Postgres::Down => "down".to_owned(),
        Postgres::Busy => "busy".to_owned(),
        Postgres::Primary(Sync::Off { caught_up: true }) => "primary, alone; the standby has caught up".to_owned(),
        Postgres::Primary(Sync::Off { caught_up: false }) => "primary, alone".to_owned(),
        Postgres::Primary(Sync::Waiting) => "primary, waiting for the standby".to_owned(),
        Postgres::Primary(Sync::Confirmed) => "primary, the standby confirms".to_owned(),
        Postgres::Standby { streaming, consistent, .. } => {
            let streams = if streaming { "streaming" } else { "not streaming" };
            format!("standby, {streams}{}", if consistent { "" } else { ", not consistent yet" })
        }
    }
}

fn peer_is_useful(state: &State, now: Millis) -> bool {
    match state.phase {
        Phase::Leader => state.peer_is_ready(now),
        Phase::Follower | Phase::Boot => state.hears_peer(state.setup.timing.solo_after, now),
    }
}

fn witness(state: &State, now: Millis) -> WitnessStatus {
    match state.answer {
        _ if state.fences() => WitnessStatus::Fence,
        _ if state.setup.third == Third::Nobody => WitnessStatus::None,
        Some(_) if state.witness_is_there(now) => WitnessStatus::Answers,
        Some(_) if state.hears_witness(now) => WitnessStatus::NotBelieved,
        _ => WitnessStatus::Silent,
    }
}

fn survives(state: &State, now: Millis) -> Survives {
    let third = witness(state, now);
    let fence = third == WitnessStatus::Fence;
    let Some(seen) = state.record.seen else {
        let sentence = "Nothing is known of the pair yet.".to_owned();
        return Survives { a: false, b: false, witness: false, sentence };
    };
    let useful = peer_is_useful(state, now);
    let mode = state.mode().unwrap_or(seen.mode);
    // Whoever goes on asks the witness itself: what this node hears says nothing of what its peer does.
    let here = fence || third == WitnessStatus::Answers;
    let there = fence || useful && state.peer.is_some_and(|peer| peer.heartbeat.hears_witness);
    let (owner_asks, other_asks) = if state.is_owner() { (here, there) } else { (there, here) };
    let paused = state.paused_until.is_some() || useful && state.peer.is_some_and(|peer| peer.heartbeat.paused);
    // (of the owner, of the other node, of the witness)
    let (owner, other, third) = match mode {
        Mode::Pair => (other_asks && useful && !paused, owner_asks, useful || third == WitnessStatus::None || fence),
        Mode::Solo | Mode::Asym => (false, true, true),
    };
    let (owner_name, other_name) = (letter(seen.owner), letter(seen.owner.peer()));
    let (a, b) = if seen.owner == NodeId::A { (owner, other) } else { (other, owner) };
    let sentence = match mode {
        Mode::Pair if owner && other && fence => format!(
            "The pair survives the loss of {owner_name} ({other_name} takes over) or of {other_name}, each once its machine is off: \
             --fence-command sees to that."
        ),
        Mode::Pair if owner && other && third => format!(
            "The pair survives the loss of {owner_name} ({other_name} takes over), of {other_name}, or of the witness: any one of them."
        ),
        Mode::Pair if owner && other => format!(
            "The pair survives the loss of {owner_name} or of {other_name}; not that of the witness as long as the nodes don't hear each other."
        ),
        Mode::Pair if useful && other && paused => format!(
            "Failover is paused: the pair survives the loss of {other_name}{}, and stops without {owner_name} until duet resume.",
            if third { " or of the witness" } else { "" }
        ),
        Mode::Pair if useful && other => format!(
            "{other_name} doesn't hear the witness: the pair survives the loss of {other_name} or of the witness, and stops without \
             {owner_name}."
        ),
        Mode::Pair if owner => format!(
            "{owner_name} doesn't hear the witness: the pair survives the loss of {owner_name} ({other_name} takes over), and stops without \
             {other_name}."
        ),
        Mode::Pair if other => format!(
            "{other_name} isn't ready to take over: the pair survives the loss of {other_name}, and stops without {owner_name}."
        ),
        Mode::Pair => "The pair survives no further loss of a node: the witness isn't heard.".to_owned(),
        Mode::Solo if state.peer_away_until.is_some() => format!(
            "{other_name} is in maintenance and {owner_name} goes on alone: the pair survives the loss of {other_name} or of the witness, and \
             stops without {owner_name}."
        ),
        Mode::Solo => format!(
            "Only {owner_name} has everything: the pair survives the loss of {other_name} or of the witness, and stops without {owner_name}."
        ),
        Mode::Asym => format!(
            "Both nodes have everything and there is no witness: the pair survives the loss of {other_name}, and stops without {owner_name} \
             until an operator decides."
        ),
    };
    Survives { a, b, witness: third, sentence }
}

/// Why nothing more is done at this moment than is done.
#[must_use]
pub fn explain(state: &State, now: Millis) -> String {
    let timing = state.setup.timing;
    let peer = letter(state.me().peer());
    match state.phase {
        Phase::Boot | Phase::Follower if state.is_owner() && !state.record.complete && state.mode() == Some(Mode::Pair) => {
            format!(
                "This node is the owner and has no whole copy of the data; node {peer} has everything, and is asked to take over."
            )
        }
        Phase::Boot | Phase::Follower if state.is_owner() && !state.record.complete => format!(
            "This node is the owner and has no whole copy of the data: it can't lead. If node {peer}'s copy is what should be kept, run there: \
             duet failover --accept-data-loss."
        ),
        Phase::Boot => match state.record.seen {
            None => format!(
                "Nobody has said yet whether there is a store: waiting for node {peer}{}.",
                if state.setup.third == Third::Witness { " and for the witness" } else { "" }
            ),
            Some(_) => format!(
                "This node was the owner and may have been replaced meanwhile: waiting for node {peer} or the witness to say what holds."
            ),
        },
        Phase::Leader if state.may_acknowledge(now) => {
            let leads = match state.mode() {
                Some(Mode::Solo) if state.peer_away_until.is_some() => {
                    format!("Leads alone, because node {peer} is in maintenance (duet maintenance --end).")
                }
                Some(Mode::Solo) => format!("Leads alone, because node {peer} isn't there or hasn't caught up yet."),
                Some(Mode::Asym) => "Leads with the peer in step; without a witness only this node may go on alone.".to_owned(),
                _ => "Leads with the peer in step.".to_owned(),
            };
            if state.paused_until.is_some() { format!("{leads} Failover is paused (duet resume).") } else { leads }
        }
        Phase::Leader if !matches!(state.postgres, Postgres::Primary(_)) => "Leads, and waits for its PostgreSQL.".to_owned(),
        Phase::Leader if now < state.promised_until => {
            "Leads, and waits until its own promise to the peer has run out.".to_owned()
        }
        Phase::Leader => {
            format!(
                "Leads, and waits for node {peer} to confirm what PostgreSQL shows, or for the witness to let it go on alone."
            )
        }
        Phase::Follower => {
            let seen = state.record.seen;
            if !state.record.complete {
                return "Follows, and can't take over: its copy of the data isn't whole yet.".to_owned();
            }
            if state.paused_until.is_some() {
                return "Follows, and doesn't take over: failover is paused (duet resume).".to_owned();
            }
            match seen.map(|seen| seen.mode) {
                Some(Mode::Pair) if state.hears_peer(timing.takeover_after, now) => {
                    "Follows, ready to take over; the leader is heard, so there is no reason to.".to_owned()
                }
                Some(Mode::Pair) if state.may_take_over() && state.fences() && !state.may_fence() => {
                    "The leader isn't heard, and hasn't heard this process: it may have gone on alone since, so its machine isn't put off. \
                     If it is off, and what it may have written since can be given up: duet failover --accept-data-loss."
                        .to_owned()
                }
                Some(Mode::Pair) if state.may_take_over() && state.fences() => {
                    "The leader isn't heard: takes over as soon as its machine is off.".to_owned()
                }
                Some(Mode::Pair) if state.may_take_over() && state.receives(now) => {
                    "The leader isn't heard, but what it writes arrives: it is there, so this node doesn't take over.".to_owned()
                }
                Some(Mode::Pair) if state.may_take_over() && state.took_over_lately(now) => {
                    "The leader isn't heard; takes over when a while has passed since the last time.".to_owned()
                }
                Some(Mode::Pair) if state.may_take_over() && !state.hears_witness(now) => {
                    "Neither the leader nor the witness is heard: takes over once the witness agrees.".to_owned()
                }
                Some(Mode::Pair) if state.may_take_over() => {
                    "The leader isn't heard: takes over as soon as its promise has run out and the witness agrees.".to_owned()
                }
                Some(Mode::Pair) => "The leader isn't heard, but PostgreSQL here isn't a consistent standby.".to_owned(),
                Some(Mode::Solo) => {
                    format!("Follows, and may not take over: node {peer} went on alone and may have data that is nowhere else.")
                }
                Some(Mode::Asym) => {
                    format!("Follows, and may not take over: there is no witness, and only node {peer} may go on alone.")
                }
                None => "Follows.".to_owned(),
            }
        }
    }
}
