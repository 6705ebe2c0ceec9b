//! What operators do with a running pair: look (`status`, `history`, `explain`, `check`) and act (`switchover`, `failover`, `pause`,
//! `resume`, `maintenance`, `reinit`, `drill`).
//!
//! Each command reads a node's own configuration, talks to both nodes' peer ports with that node's certificate, says what it is going to
//! do, what came of it, and what the pair can survive now.
//!
//! | file | what it is |
//! |---|---|
//! | `nodes` | the two nodes, as a command reaches them |
//! | `show` | what they say, for people |
//! | `check` | what both nodes find when they look at themselves |
//! | `drill`, `probe` | something is really lost while a client writes |
//! | `maintenance` | a node that is to be away for a while, and back |

mod check;
mod drill;
mod maintenance;
mod nodes;
mod probe;
mod show;

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use nodes::ANSWER_DEADLINE;
pub(super) use nodes::Nodes;

use super::args::{self, Parsed, Takes};
use super::{Failure, load, node};
use crate::config::PairConfig;
use crate::config::redact::redact_dsn;
use crate::config::units::parse_duration;
use crate::proto::duetpb::act_request::Action;
use crate::supervisor::pair::status::NodeStatus;

/// How long a new leader is waited for.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(30);
/// How long a node is waited for that follows again: it may have to be copied.
const FOLLOWS_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(1);
/// How long what a node was told may take to be heard by the other one: many heartbeats.
const HEARD_DEADLINE: Duration = Duration::from_secs(1);

/// A command: its name, what may follow it, and what it does.
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// What may be said before the flags, for `--help`.
    operand: &'static str,
    flags: &'static [(&'static str, Takes, &'static str)],
}

const JSON: (&str, Takes, &str) = ("json", Takes::Bool, "For programs: JSON.");

/// The commands of this module.
pub(super) const COMMANDS: [Command; 11] = [
    Command {
        name: "status",
        what: "What each node is, and what the pair can survive now.",
        operand: "",
        flags: &[("watch", Takes::Bool, "Again every second, until Ctrl-C."), JSON],
    },
    Command {
        name: "switchover",
        what: "Hand the leadership to the other node, without a failed request.",
        operand: "",
        flags: &[],
    },
    Command {
        name: "failover",
        what: "Make this node the leader although acknowledged writes may be lost.",
        operand: "",
        flags: &[
            ("accept-data-loss", Takes::Bool, "What only the other node has is given up."),
            ("peer-is-off", Takes::Bool, "The other machine is switched off, and stays off until this is done."),
            ("confirm", Takes::Value, "The pair's name."),
        ],
    },
    Command {
        name: "pause",
        what: "No failover by itself for a while; 10m without a duration.",
        operand: "[DURATION]",
        flags: &[],
    },
    Command { name: "resume", what: "End a pause.", operand: "", flags: &[] },
    Command {
        name: "maintenance",
        what: "Take a node out, this one without a or b, so that its machine can be stopped; the other one goes on alone.",
        operand: "[a|b]",
        flags: &[
            ("for", Takes::Value, "When it ends by itself, at most 24h. [4h]"),
            ("end", Takes::Bool, "The node is back: wait until both are a pair again."),
        ],
    },
    Command { name: "reinit", what: "Make the follower's copy of the data anew.", operand: "", flags: &[] },
    Command { name: "history", what: "What happened, newest last; each takeover by phase.", operand: "", flags: &[JSON] },
    Command {
        name: "check",
        what: "What a pair's promises rest on. Exit code 0: all is well, 1: something is to be seen to, 2: something fails.",
        operand: "",
        flags: &[JSON],
    },
    Command {
        name: "drill",
        what: "Hand over, or kill a node, while a client writes, and report how long it took and that nothing was lost.",
        operand: "switchover|kill-leader|lose-follower",
        flags: &[
            ("yes", Takes::Bool, "Do it; without it, only what would be done is said."),
            ("away", Takes::Value, "How long a killed node stays away, at most 60s. [5s]"),
            JSON,
        ],
    },
    Command { name: "explain", what: "Why nothing more is done at this moment than is done.", operand: "", flags: &[] },
];

/// A command line, taken apart.
struct Asked {
    operand: Option<String>,
    flags: Vec<(String, String)>,
}

impl Asked {
    fn is(&self, flag: &str) -> bool {
        self.value(flag) == Some("true")
    }

    fn value(&self, flag: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(name, _)| name == flag).map(|(_, value)| value.as_str())
    }
}

/// Runs the command `name` of [`COMMANDS`].
///
/// # Errors
/// Exit code 64 for a wrong command line, 1 when a node can't be reached or refuses.
pub fn run(name: &str, args: &[String]) -> Result<(), Failure> {
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        return Err(Failure::usage(format!("duet {name}: there is no such command")));
    };
    // What is to be done may stand before the flags: duet pause 10m --config-file FILE.
    let (operand, args) = match args.split_first() {
        Some((first, rest)) if !first.starts_with('-') => (Some(first.clone()), rest),
        _ => (None, args),
    };
    let usage = command.usage();
    let mine = |flag: &str| command.flags.iter().find(|(known, _, _)| *known == flag).map(|(_, takes, _)| *takes);
    let parsed = args::parse(args, |flag| mine(flag).or_else(|| load::takes(flag)));
    let Parsed { flags, rest, help } = parsed.map_err(|error| Failure::usage(format!("{error}; {usage}")))?;
    if help {
        print!("{}", command.help());
        return Ok(());
    }
    let mut words = operand.into_iter().chain(rest);
    let operand = if command.operand.is_empty() { None } else { words.next() };
    let extra: Vec<String> = words.map(|word| redact_dsn(&word).to_string()).collect();
    if !extra.is_empty() {
        return Err(Failure::usage(format!("\"{}\": nothing like that is expected here; {usage}", extra.join(" "))));
    }
    let (own, rest): (Vec<_>, Vec<_>) = flags.into_iter().partition(|(flag, _)| mine(flag).is_some());
    let flags: Vec<String> = rest.into_iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
    let Some(loaded) = load::load(&flags, &usage)? else { return Ok(()) };
    let config = loaded.config;
    let Some(pair) = &config.pair else {
        return Err(Failure::usage(format!("which node? {usage}")));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::serving(format!("can't start: {error}")))?;
    let asked = Asked { operand, flags: own };
    runtime.block_on(async {
        match name {
            "check" => check::run(&node::subject(&config, pair), asked.is("json")).await,
            _ => dispatch(name, &asked, pair).await,
        }
    })
}

async fn dispatch(name: &str, asked: &Asked, pair: &PairConfig) -> Result<(), Failure> {
    let nodes = Nodes::new(pair)?;
    let done = carry_out(name, asked, pair, &nodes).await;
    // What was refused, or didn't come to its end, leaves the pair as it is: which losses that can have is to be seen, too.
    if done.as_ref().is_err_and(Failure::is_serving) && ["switchover", "failover", "reinit", "maintenance"].contains(&name) {
        let _ = nodes.show_status(false, false).await;
    }
    done
}

async fn carry_out(name: &str, asked: &Asked, pair: &PairConfig, nodes: &Nodes) -> Result<(), Failure> {
    match name {
        "status" => nodes.show_status(asked.is("watch"), asked.is("json")).await,
        "switchover" => nodes.switch_over().await,
        "failover" => {
            let sure = asked.is("accept-data-loss") && asked.is("peer-is-off");
            if !(sure && asked.value("confirm") == Some(&pair.cluster)) {
                return Err(Failure::usage(format!(
                    "this makes node {} the leader whatever the other one may have acknowledged, and those writes are lost. Both nodes \
                     leading at once would be the worst of all: switch the other machine off first. Then type\n  duet failover \
                     --accept-data-loss --peer-is-off --confirm {} --config-file …",
                    nodes.names[0], pair.cluster
                )));
            }
            nodes.fail_over().await
        }
        "pause" => {
            let pause = parse_duration(asked.operand.as_deref().unwrap_or("10m")).map_err(Failure::usage)?;
            println!(
                "asks both nodes not to take over by themselves for {} s: a lost leader isn't replaced meanwhile",
                pause.as_secs()
            );
            nodes.act_everywhere(Action::Pause, pause.as_secs()).await
        }
        "resume" => {
            println!("asks both nodes to replace a lost leader by themselves again");
            nodes.act_everywhere(Action::Resume, 0).await
        }
        "maintenance" => maintenance::run(nodes, asked).await,
        "reinit" => nodes.reinit().await,
        "drill" => drill::run(nodes, pair, asked).await,
        "history" => nodes.show_history(asked.is("json")).await,
        "explain" => nodes.show_explanations().await,
        other => Err(Failure::usage(format!("duet {other}: there is no such command"))),
    }
}

impl Command {
    fn usage(&self) -> String {
        let operand = if self.operand.is_empty() { String::new() } else { format!(" {}", self.operand) };
        let flags = if self.flags.is_empty() { "" } else { " [flags]" };
        format!("duet {}{operand} --config-file FILE{flags}", self.name)
    }

    fn help(&self) -> String {
        let mut text = format!(
            "Usage:\n  {}\n\n{}\n\nFILE is a node's own configuration, as duet init wrote it.\n",
            self.usage(),
            self.what
        );
        for (flag, takes, what) in self.flags {
            let flag = if *takes == Takes::Bool { format!("--{flag}") } else { format!("--{flag} VALUE") };
            text.push_str(&format!("\n  {flag:20} {what}"));
        }
        text.push('\n');
        text
    }
}

impl Nodes {
    async fn show_status(&self, watch: bool, json: bool) -> Result<(), Failure> {
        loop {
            let statuses = self.statuses().await;
            let mut shown = if json {
                let found: Vec<&NodeStatus> = statuses.iter().flatten().collect();
                to_json(&found)? + "\n"
            } else {
                self.table(&statuses)
            };
            let mut out = std::io::stdout();
            if watch && !json && out.is_terminal() {
                shown.insert_str(0, "\x1b[H\x1b[2J");
            }
            if out.write_all(shown.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(()); // whoever has read this has enough
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

    async fn act_on(&self, at: usize, action: Action) -> Result<(), Failure> {
        let name = self.names[at];
        let text = self.act(at, action, 0).await.map_err(|why| Failure::serving(format!("node {name}: {why}")))?;
        println!("node {name}: {text}");
        Ok(())
    }

    /// Makes this node the leader, and waits until it answers.
    async fn fail_over(&self) -> Result<(), Failure> {
        let [here, there] = self.names;
        println!("node {here} becomes the leader; what only node {there} has acknowledged is given up");
        self.act_on(0, Action::AcceptDataLoss).await?;
        let began = Instant::now();
        while began.elapsed() < OUTCOME_DEADLINE {
            if self.status_of(0).await.is_ok_and(|status| status.open) {
                println!("node {here} leads");
                return self.show_status(false, false).await;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Err(Failure::serving(format!("node {here} doesn't answer requests yet; duet explain tells why")))
    }

    /// Has the follower's copy made anew, and waits until it is.
    async fn reinit(&self) -> Result<(), Failure> {
        let at = self.find("follower").await?;
        let (follower, leader) = (self.names[at], self.names[1 - at]);
        println!(
            "node {follower}'s copy is thrown away and made anew from node {leader}'s; until then the pair can't lose {leader}"
        );
        self.act_on(at, Action::Reinit).await?;
        self.wait_for_follower().await
    }

    async fn act_everywhere(&self, action: Action, seconds: u64) -> Result<(), Failure> {
        let mut missed = Vec::new();
        for (at, name) in self.names.iter().enumerate() {
            match self.act(at, action, seconds).await {
                Ok(text) => println!("node {name}: {text}"),
                Err(why) => {
                    eprintln!("duet: node {name}: {why}");
                    missed.push(name.to_string());
                }
            }
        }
        if missed.len() == self.names.len() {
            return Err(Failure::serving("neither node did it"));
        }
        if missed.is_empty() {
            self.until_both_know(action == Action::Pause).await;
        }
        self.show_status(false, false).await?;
        // A node that isn't there forgets a pause by itself; one that wasn't told of it takes over.
        if missed.is_empty() || action == Action::Resume {
            return Ok(());
        }
        Err(Failure::serving(format!("node {} didn't do it", missed.join(", "))))
    }

    /// Waits until each node has heard from the other one that failover is paused there, or isn't: before that, what it says of the losses
    /// that the pair survives is as old.
    async fn until_both_know(&self, paused: bool) {
        let began = Instant::now();
        while began.elapsed() < HEARD_DEADLINE && self.statuses().await.iter().flatten().any(|one| one.peer_paused != paused) {
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn switch_over(&self) -> Result<(), Failure> {
        let from = self.find("leader").await?;
        self.hand_over(from).await?;
        self.wait_for_follower().await
    }

    /// Has the node `from` hand over to the other one, and waits until that leads.
    async fn hand_over(&self, from: usize) -> Result<(), Failure> {
        let to = 1 - from;
        println!("handing over from node {} to node {}", self.names[from], self.names[to]);
        let began = Instant::now();
        self.act(from, Action::Switchover, 0)
            .await
            .map_err(|why| Failure::serving(format!("node {} refuses: {why}", self.names[from])))?;
        while began.elapsed() < OUTCOME_DEADLINE {
            if self.status_of(to).await.is_ok_and(|status| status.open) {
                println!("node {} leads", self.names[to]);
                return Ok(());
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

    /// Waits until both are in step, which a former leader takes a moment for, and shows what the pair survives then.
    async fn wait_for_follower(&self) -> Result<(), Failure> {
        let (statuses, in_step) = self.until_in_step(FOLLOWS_DEADLINE, |doing| println!("{doing}")).await;
        if in_step {
            print!("{}", self.table(&statuses));
            return Ok(());
        }
        let waited = FOLLOWS_DEADLINE.as_secs();
        Err(Failure::serving(format!(
            "after {waited} s the nodes aren't in step yet; duet explain tells why, duet status --watch how far they are"
        )))
    }

    async fn show_history(&self, json: bool) -> Result<(), Failure> {
        let (entries, silent) = self.history().await;
        for why in silent {
            eprintln!("duet: {why}");
        }
        for entry in entries {
            println!("{}", if json { to_json(&entry)? } else { show::entry(&entry) });
        }
        Ok(())
    }

    async fn show_explanations(&self) -> Result<(), Failure> {
        let statuses = self.statuses().await;
        for (name, status) in self.names.iter().zip(&statuses) {
            match status {
                Ok(status) => println!("node {name}: {}", status.explanation),
                Err(why) => println!("node {name}: {why}"),
            }
        }
        if let Some(outlook) = show::outlook(&statuses) {
            println!("\n{outlook}");
        }
        Ok(())
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::serving(error.to_string()))
}
