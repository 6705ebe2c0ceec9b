//! What operators do with a running pair: look (`status`, `history`, `explain`, `check`) and act (`switchover`, `failover`, `pause`,
//! `resume`, `reinit`).
//!
//! Each command reads a node's own configuration, talks to both nodes' peer ports with that node's certificate, says what it is going to
//! do, what came of it, and what the pair can survive now.

use std::fmt::Write;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use super::args::{self, Takes};
use super::{Failure, load};
use crate::config::PairConfig;
use crate::net::proxy::Upstream;
use crate::net::tls;
use crate::proto::duetpb::act_request::Action;
use crate::proto::duetpb::admin_client::AdminClient;
use crate::proto::duetpb::{ActRequest, HistoryRequest, StatusRequest};
use crate::supervisor::pair::history::Entry;
use crate::supervisor::pair::status::{NodeStatus, WitnessStatus};

/// How long a node may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);
/// How long the outcome of an action is waited for.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(1);

/// The commands of this module, with what each does.
pub(super) const COMMANDS: [(&str, &str); 8] = [
    ("status", "What each node is, and what the pair can survive now. --watch, --json."),
    ("switchover", "Hand the leadership to the other node, without a failed request."),
    (
        "failover",
        "Make this node the leader although acknowledged writes may be lost: --accept-data-loss --cluster NAME --peer-is-off.",
    ),
    ("pause", "No failover by itself for a while: duet pause 10m."),
    ("resume", "End a pause."),
    ("reinit", "Make the follower's copy of the data anew."),
    ("history", "What happened, newest last; each takeover by phase."),
    ("explain", "Why nothing more is done at this moment than is done."),
];

/// Runs the command `command` of [`COMMANDS`].
///
/// # Errors
/// Exit code 64 for a wrong command line, 1 when a node can't be reached or refuses.
pub fn run(command: &str, args: &[String]) -> Result<(), Failure> {
    let mine = |name: &str| match name {
        "watch" | "json" | "accept-data-loss" | "peer-is-off" => Some(Takes::Bool),
        "confirm" => Some(Takes::Value),
        _ => None,
    };
    // What is to be done may stand before the flags: duet pause 10m --config-file FILE.
    let (operand, args) = match args.split_first() {
        Some((first, rest)) if !first.starts_with('-') => (Some(first.clone()), rest),
        _ => (None, args),
    };
    let parsed = args::parse(args, |name| mine(name).or_else(|| load::takes(name))).map_err(Failure::usage)?;
    let usage = format!("duet {command} --config-file FILE");
    if parsed.help {
        let what = COMMANDS.iter().find(|(name, _)| *name == command).map_or("", |(_, what)| what);
        println!("Usage:\n  {usage}\n\n{what}\n\nFILE is a node's own configuration, as duet init wrote it.");
        return Ok(());
    }
    if let Some(extra) = operand.as_ref().or(parsed.rest.first()).filter(|_| command != "pause") {
        return Err(Failure::usage(format!("\"{extra}\" is not a flag; {usage}")));
    }
    let given = |name: &str| parsed.flags.iter().any(|(flag, value)| flag == name && value == "true");
    let (own, rest): (Vec<_>, Vec<_>) = parsed.flags.iter().cloned().partition(|(name, _)| mine(name).is_some());
    let flags: Vec<String> = rest.into_iter().map(|(name, value)| format!("--{name}={value}")).collect();
    let Some(loaded) = load::load(&flags, &usage)? else { return Ok(()) };
    let Some(pair) = loaded.config.pair else {
        return Err(Failure::usage(format!("which node? {usage}")));
    };
    let confirm = own.iter().find(|(name, _)| name == "confirm").map(|(_, value)| value.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::serving(format!("can't start: {error}")))?;
    runtime.block_on(async {
        let nodes = Nodes::new(&pair)?;
        match command {
            "status" => nodes.show_status(given("watch"), given("json")).await,
            "switchover" => nodes.switch_over().await,
            "failover" => {
                if !(given("accept-data-loss") && given("peer-is-off") && confirm.as_deref() == Some(pair.cluster.as_str())) {
                    return Err(Failure::usage(format!(
                        "this makes node {} the leader whatever the other one may have acknowledged, and those writes are lost. Both nodes \
                         leading at once would be the worst of all: switch the other machine off first. Then type\n  duet failover \
                         --accept-data-loss --peer-is-off --confirm {} --config-file …",
                        nodes.names[0], pair.cluster
                    )));
                }
                nodes.act_here(Action::AcceptDataLoss, 0).await
            }
            "pause" => {
                let text = operand.as_ref().or(parsed.rest.first()).map_or("10m", String::as_str);
                let pause = crate::config::units::parse_duration(text).map_err(Failure::usage)?;
                nodes.act_everywhere(Action::Pause, pause.as_secs()).await
            }
            "resume" => nodes.act_everywhere(Action::Resume, 0).await,
            "reinit" => nodes.act_on_follower(Action::Reinit).await,
            "history" => nodes.show_history(given("json")).await,
            "explain" => nodes.show_explanations().await,
            other => Err(Failure::usage(format!("duet {other}: there is no such command"))),
        }
    })
}

/// Both nodes: this one first.
struct Nodes {
    names: [char; 2],
    clients: [AdminClient<Channel>; 2],
}

type Statuses = [Result<NodeStatus, String>; 2];

impl Nodes {
    fn new(pair: &PairConfig) -> Result<Self, Failure> {
        let tls = tls::client_config(&pair.tls.config())?;
        let connect = |url: String| -> Result<AdminClient<Channel>, Failure> {
            Ok(AdminClient::new(Upstream::new(&url, Some(tls.clone())).map_err(Failure::usage)?.channel()))
        };
        let mut here = pair.listen_peer;
        if here.ip().is_unspecified() {
            here.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let letter = crate::supervisor::pair::record::letter;
        Ok(Self {
            names: [letter(pair.node), letter(pair.node.peer())],
            clients: [connect(format!("https://{here}"))?, connect(format!("https://{}", pair.peer))?],
        })
    }

    async fn status_of(&self, at: usize) -> Result<NodeStatus, String> {
        let mut client = self.clients[at].clone();
        let answer = timeout(ANSWER_DEADLINE, client.status(StatusRequest {})).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|status| status.message().to_owned())?;
        serde_json::from_str(&answer.into_inner().json).map_err(|error| error.to_string())
    }

    async fn statuses(&self) -> Statuses {
        tokio::join!(self.status_of(0), self.status_of(1)).into()
    }

    async fn show_status(&self, watch: bool, json: bool) -> Result<(), Failure> {
        loop {
            let statuses = self.statuses().await;
            if json {
                let found: Vec<&NodeStatus> = statuses.iter().flatten().collect();
                println!("{}", serde_json::to_string(&found).map_err(|error| Failure::serving(error.to_string()))?);
            } else {
                if watch {
                    print!("\x1b[H\x1b[2J");
                }
                print!("{}", self.table(&statuses));
            }
            if !watch {
                return if statuses.iter().any(Result::is_ok) {
                    Ok(())
                } else {
                    Err(Failure::serving("neither node answers; is duet node running here?"))
                };
            }
            sleep(WATCH).await;
        }
    }

    fn table(&self, statuses: &Statuses) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:5} {:9} {:5} {:5} {:>5}  {:22} {:>4}  {:>12} {:>9}  {:12} DOING",
            "NODE", "ROLE", "OPEN", "MODE", "EPOCH", "POSTGRESQL", "TL", "WAL", "LAG", "WITNESS"
        );
        for (name, status) in self.names.iter().zip(statuses) {
            let _ = match status {
                Err(why) => writeln!(out, "{name:5} {why}"),
                Ok(status) => {
                    let details = &status.details;
                    let lag = match (status.role.as_str(), details.peer_flushed) {
                        ("leader", Some(flushed)) => bytes(details.flushed.saturating_sub(flushed)),
                        ("leader", None) => "no peer".to_owned(),
                        _ => bytes(details.flushed.saturating_sub(details.replayed)),
                    };
                    writeln!(
                        out,
                        "{:5} {:9} {:5} {:5} {:>5}  {:22} {:>4}  {:>12} {:>9}  {:12} {}",
                        status.node,
                        status.role,
                        if status.open { "yes" } else { "no" },
                        status.mode.as_deref().unwrap_or("-"),
                        status.epoch,
                        status.postgres.split(',').next().unwrap_or_default(),
                        details.timeline,
                        format!("{:X}/{:X}", details.flushed >> 32, details.flushed & 0xffff_ffff),
                        lag,
                        match status.witness {
                            WitnessStatus::None => "none",
                            WitnessStatus::Answers => "answers",
                            WitnessStatus::Silent => "SILENT",
                            WitnessStatus::NotBelieved => "NOT BELIEVED",
                        },
                        details.doing.as_deref().or(details.trouble.as_deref()).unwrap_or("-"),
                    )
                }
            };
        }
        // The leader knows best.
        let best = statuses.iter().flatten().max_by_key(|status| (status.open, status.epoch));
        if let Some(best) = best {
            let _ = writeln!(out, "\n{}", best.survives.sentence);
            for status in statuses.iter().flatten() {
                if let Some(paused) = status.paused_for_ms {
                    let _ = writeln!(out, "Node {}: failover is paused for another {} s.", status.node, paused / 1000);
                }
            }
            let last =
                statuses.iter().flatten().filter_map(|status| status.last_takeover.as_ref()).max_by_key(|entry| entry.at_ms);
            if let Some(last) = last {
                let _ = writeln!(out, "Last takeover: {}, node {}: {}.", when(last.at_ms), last.node, last.text);
            }
        }
        out
    }

    async fn act(&self, at: usize, action: Action, seconds: u64) -> Result<String, String> {
        let mut client = self.clients[at].clone();
        let answer = timeout(ANSWER_DEADLINE, client.act(ActRequest { action: action.into(), seconds })).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|status| status.message().to_owned())?;
        Ok(answer.into_inner().text)
    }

    async fn act_here(&self, action: Action, seconds: u64) -> Result<(), Failure> {
        let text =
            self.act(0, action, seconds).await.map_err(|why| Failure::serving(format!("node {}: {why}", self.names[0])))?;
        println!("node {}: {text}", self.names[0]);
        self.show_status(false, false).await
    }

    async fn act_everywhere(&self, action: Action, seconds: u64) -> Result<(), Failure> {
        let mut done = false;
        for (at, name) in self.names.iter().enumerate() {
            match self.act(at, action, seconds).await {
                Ok(text) => {
                    done = true;
                    println!("node {name}: {text}");
                }
                Err(why) => eprintln!("duet: node {name}: {why}"),
            }
        }
        if done { Ok(()) } else { Err(Failure::serving("neither node did it")) }
    }

    async fn find(&self, role: &str) -> Result<usize, Failure> {
        let statuses = self.statuses().await;
        let at = statuses.iter().position(|status| status.as_ref().is_ok_and(|status| status.role == role));
        at.ok_or_else(|| {
            Failure::serving(format!("no node says that it is the {role} at the moment:\n{}", self.table(&statuses)))
        })
    }

    async fn act_on_follower(&self, action: Action) -> Result<(), Failure> {
        let at = self.find("follower").await?;
        let text = self.act(at, action, 0).await.map_err(|why| Failure::serving(format!("node {}: {why}", self.names[at])))?;
        println!("node {}: {text}", self.names[at]);
        Ok(())
    }

    async fn switch_over(&self) -> Result<(), Failure> {
        let from = self.find("leader").await?;
        let to = 1 - from;
        println!("handing over from node {} to node {}", self.names[from], self.names[to]);
        let began = Instant::now();
        self.act(from, Action::Switchover, 0)
            .await
            .map_err(|why| Failure::serving(format!("node {} refuses: {why}", self.names[from])))?;
        while began.elapsed() < OUTCOME_DEADLINE {
            if self.status_of(to).await.is_ok_and(|status| status.open) {
                println!("node {} leads", self.names[to]);
                return self.show_status(false, false).await;
            }
            if began.elapsed() > ANSWER_DEADLINE
                && self.status_of(from).await.is_ok_and(|status| status.open && !status.handing_over)
            {
                return Err(Failure::serving(format!(
                    "node {} did not take over in time; node {} goes on",
                    self.names[to], self.names[from]
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(Failure::serving("nobody leads yet; duet status shows more"))
    }

    async fn show_history(&self, json: bool) -> Result<(), Failure> {
        let mut entries: Vec<Entry> = Vec::new();
        for (at, name) in self.names.iter().enumerate() {
            let mut client = self.clients[at].clone();
            match timeout(ANSWER_DEADLINE, client.history(HistoryRequest {})).await {
                Ok(Ok(answer)) => {
                    entries
                        .extend(answer.into_inner().entries.iter().filter_map(|entry| serde_json::from_str::<Entry>(entry).ok()));
                }
                Ok(Err(status)) => eprintln!("duet: node {name}: {}", status.message()),
                Err(_) => eprintln!("duet: node {name}: no answer"),
            }
        }
        entries.sort_by_key(|entry| entry.at_ms);
        for entry in entries {
            if json {
                println!("{}", serde_json::to_string(&entry).map_err(|error| Failure::serving(error.to_string()))?);
            } else {
                println!("{}  {}  epoch {:<4} {:16} {}", when(entry.at_ms), entry.node, entry.epoch, entry.what, entry.text);
            }
        }
        Ok(())
    }

    async fn show_explanations(&self) -> Result<(), Failure> {
        for (name, status) in self.names.iter().zip(self.statuses().await) {
            match status {
                Ok(status) => println!("node {name}: {}", status.explanation),
                Err(why) => println!("node {name}: {why}"),
            }
        }
        Ok(())
    }
}

fn bytes(bytes: u64) -> String {
    crate::config::ByteSize(bytes).to_string()
}

/// The calendar's time in UTC.
fn when(at_ms: u64) -> String {
    let seconds = i64::try_from(at_ms / 1000).unwrap_or(0);
    let time = nix::libc::time_t::from(seconds);
    let mut broken_down = std::mem::MaybeUninit::<nix::libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, which writes all of the second one's target or returns null.
    let tm = unsafe {
        if nix::libc::gmtime_r(&raw const time, broken_down.as_mut_ptr()).is_null() {
            return at_ms.to_string();
        }
        broken_down.assume_init()
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        at_ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_calendar_s() {
        assert_eq!(when(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(when(0), "1970-01-01T00:00:00.000Z");
    }
}
