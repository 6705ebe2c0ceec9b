//! What the nodes say, for people: the table of `duet status`, the lines of `duet history`.

use std::fmt::Write;
use std::time::Duration;

use super::nodes::Statuses;
use crate::config::ByteSize;
use crate::config::units::format_duration;
use crate::supervisor::pair::history::Entry;
use crate::supervisor::pair::status::{NodeStatus, WitnessStatus};
use crate::supervisor::pair::virtual_ip::Hold;
use crate::types::Millis;

/// The table of `duet status`, and the sentences below it.
pub(in crate::cli) fn table(names: [char; 2], statuses: &Statuses) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:5} {:9} {:5} {:5} {:>5}  {:18} {:>4}  {:>12} {:>9} {:>7}  {:12} DOING",
        "NODE", "ROLE", "OPEN", "MODE", "EPOCH", "POSTGRESQL", "TL", "WAL", "LAG", "LEASE", "WITNESS"
    );
    for (name, status) in names.iter().zip(statuses) {
        let _ = match status {
            Err(why) => writeln!(out, "{name:5} {why}"),
            Ok(status) => {
                let details = &status.details;
                let lag = match (status.role.as_str(), details.peer_flushed) {
                    ("leader", Some(flushed)) => ByteSize(details.flushed.saturating_sub(flushed)).rounded(),
                    ("leader", None) => "no peer".to_owned(),
                    _ => ByteSize(details.flushed.saturating_sub(details.replayed)).rounded(),
                };
                writeln!(
                    out,
                    "{:5} {:9} {:5} {:5} {:>5}  {:18} {:>4}  {:>12} {:>9} {:>7}  {:12} {}",
                    status.node,
                    status.role,
                    if status.open { "yes" } else { "no" },
                    status.mode.as_deref().unwrap_or("-"),
                    status.epoch,
                    now_and_goal(status),
                    details.timeline,
                    format!("{:X}/{:X}", details.flushed >> 32, details.flushed & 0xffff_ffff),
                    lag,
                    status.lease_left_ms.map_or_else(|| "-".to_owned(), |left| format!("{left}ms")),
                    match status.witness {
                        WitnessStatus::None => "none",
                        WitnessStatus::Fence => "fence",
                        WitnessStatus::Answers => "answers",
                        WitnessStatus::Silent => "SILENT",
                        WitnessStatus::NotBelieved => "NOT BELIEVED",
                    },
                    details.doing.as_deref().or(details.trouble.as_deref()).unwrap_or("-"),
                )
            }
        };
    }
    if let Some(outlook) = outlook(statuses) {
        let _ = writeln!(out, "\n{outlook}");
        for status in statuses.iter().flatten() {
            let virtual_ip = status.virtual_ip.as_ref();
            if let Some(ip) = virtual_ip.filter(|ip| ip.state == Hold::Held) {
                let _ = writeln!(out, "Node {} has the virtual IP {} on {}.", status.node, ip.address, ip.interface);
            }
            if let Some((ip, trouble)) = virtual_ip.and_then(|ip| Some((ip, ip.trouble.as_ref()?))) {
                let _ = writeln!(out, "Node {} can't take the virtual IP {}: {trouble}.", status.node, ip.address);
            }
            if status.short_of_disk {
                let free = ByteSize(status.details.free_bytes).rounded();
                let _ = writeln!(
                    out,
                    "Node {}: only {free} is free on its disk. It isn't chosen for leading while the other one has more: make room.",
                    status.node
                );
            }
            if let Some(paused) = status.paused_for_ms {
                let _ = writeln!(out, "Node {}: failover is paused for another {}.", status.node, duration(paused));
            }
            if let Some(away) = status.peer_away_for_ms {
                let _ = writeln!(out, "The other node's maintenance ends in {} at the latest.", duration(away));
            }
        }
        let last = statuses.iter().flatten().filter_map(|status| status.last_takeover.as_ref()).max_by_key(|entry| entry.at_ms);
        if let Some(last) = last {
            let _ = writeln!(out, "Last takeover: {}, node {}: {}.", when(last.at_ms), last.node, last.text);
        }
    }
    out
}

/// What the pair can survive now, if anybody answers. The leader knows best.
pub(super) fn outlook(statuses: &Statuses) -> Option<String> {
    let best = statuses.iter().flatten().max_by_key(|status| (status.open, status.epoch))?;
    let nobody = if best.open { "" } else { "Nobody answers requests now. " };
    Some(format!("{nobody}{}", best.survives.sentence))
}

/// What PostgreSQL is, and what it is to be if that is something else.
fn now_and_goal(status: &NodeStatus) -> String {
    let first = |text: &str| text.split(',').next().unwrap_or_default().to_owned();
    let (now, goal) = (first(&status.postgres), first(&status.goal));
    if now == goal || now == "down" && goal == "stopped" { now } else { format!("{now} → {goal}") }
}

/// A line of `duet history`.
pub(super) fn entry(entry: &Entry) -> String {
    format!("{}  {}  epoch {:<4} {:16} {}", when(entry.at_ms), entry.node, entry.epoch, entry.what, entry.text)
}

/// Whole seconds, in the way in which durations are written on the command line.
pub(super) fn duration(ms: Millis) -> String {
    format_duration(Duration::from_secs(ms.div_ceil(1000)))
}

/// The calendar's time in UTC.
pub(super) fn when(at_ms: u64) -> String {
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
    use crate::supervisor::fsm::{Goal, NodeId, Phase, Postgres, Record, Setup, State, Third, Timing};
    use crate::supervisor::pair::history::Takeovers;
    use crate::supervisor::postgres::pair::Details;

    #[test]
    fn what_is_left_is_never_told_as_nothing() {
        assert_eq!([1, 1000, 1001, 4 * 3_600_000].map(duration), ["1s", "1s", "2s", "4h"]);
    }

    #[test]
    fn the_table_tells_what_each_node_is_and_is_to_be() {
        let setup = Setup { me: NodeId::B, timing: Timing::FAST, third: Third::Witness, begins: false };
        let mut state = State::new(setup, Record::default(), 0);
        state.phase = Phase::Follower;
        state.goal = Goal::Standby { rebuild: false };
        state.postgres = Postgres::Busy;
        let details = Details { timeline: 3, flushed: 0x1_0000_00ff, ..Details::default() };
        let b = NodeStatus::of(&state, "edge", details, None, Takeovers::default(), 100);
        let a = NodeStatus { node: 'A', role: "leader".to_owned(), lease_left_ms: Some(612), open: true, ..b.clone() };
        let shown = table(['A', 'B'], &[Ok(a.clone()), Ok(b.clone())]);
        let lines: Vec<&str> = shown.lines().collect();
        let column = |name: &str| lines[0].find(name).unwrap();
        assert!(lines[2][column("POSTGRESQL")..].starts_with("busy → standby"), "{shown}");
        assert!(lines[1].contains(" 612ms ") && lines[2].contains(" 1/FF ") && !shown.contains("Nobody answers"), "{shown}");
        let shown = table(['A', 'B'], &[Err("doesn't answer".to_owned()), Ok(b)]);
        assert!(shown.contains("A     doesn't answer\n") && shown.contains("Nobody answers requests now. "), "{shown}");
    }

    #[test]
    fn times_are_the_calendar_s() {
        assert_eq!(when(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(when(0), "1970-01-01T00:00:00.000Z");
    }
}
