//! The pair's figures on a node's `/metrics`: the [`NodeStatus`] of the scrape's moment, by name.
//!
//! Invariant: a figure that isn't known at that moment is absent from the scrape, never zero. A counter counts since this process
//! started.
//!
//! It deliberately keeps nothing and runs nothing: between two scrapes nobody pays for it.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts};

use super::status::{NodeStatus, WitnessStatus};
use super::virtual_ip::Hold;

/// Label values (empty without a label) and figures.
type Samples = Vec<(&'static str, f64)>;

/// One name in the scrape.
struct Family {
    name: &'static str,
    help: &'static str,
    /// The label that its samples are told apart by.
    label: Option<&'static str>,
    kind: Kind,
    read: fn(&NodeStatus) -> Samples,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

const fn gauge(name: &'static str, help: &'static str, label: Option<&'static str>, read: fn(&NodeStatus) -> Samples) -> Family {
    Family { name, help, label, kind: Kind::Gauge, read }
}

/// Every name, with where its figures come from.
static FAMILIES: [Family; 22] = [
    gauge("duet_pair_mode", "1 for the register's mode as this node knows it: PAIR, SOLO or ASYM.", Some("mode"), |status| {
        status.mode.as_deref().map_or_else(Vec::new, |now| one_of(["PAIR", "SOLO", "ASYM"], now))
    }),
    gauge("duet_pair_role", "1 for this node's part: leader, follower or starting.", Some("role"), |status| {
        one_of(["leader", "follower", "starting"], &status.role)
    }),
    gauge("duet_pair_open", "1 while writes may be acknowledged on this node.", None, |status| flag(status.open)),
    gauge("duet_pair_epoch", "Grows with each change of the owner.", None, |status| {
        known(status.owner.map(|_| status.epoch as f64))
    }),
    gauge("duet_pair_timeline", "The timeline of this node's PostgreSQL.", None, |status| {
        let runs = is_a(status, "primary") || is_a(status, "standby");
        known(Some(status.details.timeline).filter(|timeline| runs && *timeline > 0).map(f64::from))
    }),
    gauge(
        "duet_pair_survives",
        "1 if the pair goes on by itself after this loss, as this node sees it.",
        Some("loss"),
        |status| {
            let survives = &status.survives;
            let losses = [("a", survives.a), ("b", survives.b), ("witness", survives.witness)];
            // Before anything is known of the pair, nobody can say.
            status.mode.as_ref().map_or_else(Vec::new, |_| losses.map(|(loss, survived)| (loss, number(survived))).into())
        },
    ),
    gauge("duet_pair_peer_ready", "1 if the other node could take over (told by the leader only).", None, |status| {
        if status.role == "leader" { flag(status.peer_ready) } else { Vec::new() }
    }),
    gauge("duet_pair_peer_heard_age_seconds", "Since when the other node was not heard; absent before it was.", None, |status| {
        known(status.peer_heard_ms_ago.map(seconds))
    }),
    gauge(
        "duet_pair_lease_left_seconds",
        "How long a leader may still read on the follower's promise; absent where none is needed.",
        None,
        |status| known(status.lease_left_ms.map(seconds)),
    ),
    gauge(
        "duet_pair_replication_lag_bytes",
        "WAL that the leader has flushed and the follower hasn't confirmed; absent where no follower streams.",
        None,
        |status| {
            let lag = status.details.peer_flushed.map(|peer| status.details.flushed.saturating_sub(peer) as f64);
            known(lag.filter(|_| is_a(status, "primary")))
        },
    ),
    gauge("duet_pair_replay_lag_bytes", "WAL that this follower has received and not yet replayed.", None, |status| {
        let lag = status.details.flushed.saturating_sub(status.details.replayed) as f64;
        known(Some(lag).filter(|_| is_a(status, "standby")))
    }),
    Family {
        name: "duet_pair_sync_names_changed_total",
        help: "How often somebody else changed PostgreSQL's synchronous_standby_names since this process started; each was set right.",
        label: None,
        kind: Kind::Counter,
        read: |status| known(Some(status.details.sync_names_changed as f64)),
    },
    gauge("duet_pair_disk_free_bytes", "Room on the disk below this node's PostgreSQL.", None, |status| {
        known(Some(status.details.free_bytes).filter(|free| *free > 0).map(|free| free as f64))
    }),
    gauge("duet_pair_disk_short", "1 while this node has too little room to be chosen for leading.", None, |status| {
        flag(status.short_of_disk)
    }),
    gauge("duet_pair_witness_up", "1 if the witness answers and is believed; absent without one.", None, |status| {
        match status.witness {
            WitnessStatus::None | WitnessStatus::Fence => Vec::new(),
            WitnessStatus::Answers => flag(true),
            WitnessStatus::Silent | WitnessStatus::NotBelieved => flag(false),
        }
    }),
    gauge(
        "duet_pair_virtual_ip",
        "1 for where the virtual IP is, as this node knows: released, held, duplicate or failed; absent without one.",
        Some("state"),
        |status| status.virtual_ip.as_ref().map_or_else(Vec::new, |ip| one_of(Hold::ALL, ip.state.name())),
    ),
    gauge("duet_pair_handing_over", "1 during a switchover.", None, |status| flag(status.handing_over)),
    gauge("duet_pair_paused", "1 while this node does no failover by itself.", None, |status| {
        flag(status.paused_for_ms.is_some())
    }),
    gauge(
        "duet_pair_maintenance",
        "1 while this leader goes on alone because the other node is in maintenance.",
        None,
        |status| flag(status.peer_away_for_ms.is_some()),
    ),
    Family {
        name: "duet_pair_takeovers_total",
        help: "Takeovers that this process carried out, asked for (planned) or because the leader was missed (unplanned).",
        label: Some("kind"),
        kind: Kind::Counter,
        read: |status| {
            let count = status.takeovers;
            vec![("planned", count.planned as f64), ("unplanned", count.unplanned as f64)]
        },
    },
    gauge("duet_pair_last_takeover_seconds", "How long each phase of this node's last takeover took.", Some("phase"), |status| {
        let takeover = status.last_takeover.as_ref().and_then(|entry| entry.takeover);
        takeover.map_or_else(Vec::new, |takeover| takeover.phases().map(|(phase, ms)| (phase, seconds(ms))).into())
    }),
    gauge(
        "duet_pair_last_takeover_timestamp_seconds",
        "When this node's last takeover ended, in seconds since 1970; absent before the first.",
        None,
        |status| known(status.last_takeover.as_ref().map(|entry| seconds(entry.at_ms))),
    ),
];

fn number(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

fn flag(yes: bool) -> Samples {
    vec![("", number(yes))]
}

fn known(figure: Option<f64>) -> Samples {
    figure.map(|figure| ("", figure)).into_iter().collect()
}

fn one_of<const N: usize>(all: [&'static str; N], now: &str) -> Samples {
    all.map(|one| (one, number(one == now))).into()
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

/// PostgreSQL's positions are those of the moment only while it runs.
fn is_a(status: &NodeStatus, part: &str) -> bool {
    status.postgres.starts_with(part)
}

/// See the module; `status` is asked at each scrape.
pub struct PairCollector<F> {
    status: F,
    descriptions: Vec<Desc>,
}

impl<F: Fn() -> NodeStatus + Send + Sync> PairCollector<F> {
    /// Over a way to the status of now.
    ///
    /// # Errors
    /// A name that Prometheus doesn't take.
    pub fn new(status: F) -> Result<Self, prometheus::Error> {
        let describe = |family: &Family| {
            let labels = family.label.into_iter().map(str::to_owned).collect();
            Desc::new(family.name.to_owned(), family.help.to_owned(), labels, Default::default())
        };
        let descriptions = FAMILIES.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self { status, descriptions })
    }
}

impl<F: Fn() -> NodeStatus + Send + Sync> Collector for PairCollector<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = (self.status)();
        // The names and labels are those that were described, so none is refused.
        FAMILIES.iter().filter_map(|family| collect(family, &(family.read)(&status)).ok()).flatten().collect()
    }
}

fn collect(family: &Family, samples: &Samples) -> Result<Vec<MetricFamily>, prometheus::Error> {
    if samples.is_empty() {
        return Ok(Vec::new());
    }
    let (opts, labels) = (Opts::new(family.name, family.help), family.label.as_slice());
    if family.kind == Kind::Counter {
        let counters = CounterVec::new(opts, labels)?;
        for (value, figure) in samples {
            counters.get_metric_with_label_values(&[value][..labels.len()])?.inc_by(*figure);
        }
        return Ok(counters.collect());
    }
    let gauges = GaugeVec::new(opts, labels)?;
    for (value, figure) in samples {
        gauges.get_metric_with_label_values(&[value][..labels.len()])?.set(*figure);
    }
    Ok(gauges.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::fsm::{Mode, NodeId, Record, Register, Setup, State, Third, Timing};
    use crate::supervisor::pair::history::{Entry, Takeover, Takeovers};
    use crate::supervisor::pair::virtual_ip::VirtualIpStatus;
    use crate::supervisor::postgres::pair::Details;
    use crate::telemetry::metrics::Metrics;

    fn scrape(status: NodeStatus) -> String {
        let metrics = Metrics::unshared();
        metrics.register(Box::new(PairCollector::new(move || status.clone()).unwrap())).unwrap();
        metrics.render()
    }

    fn state(record: Record) -> State {
        State::new(Setup { me: NodeId::B, timing: Timing::FAST, third: Third::Witness, begins: false }, record, 0)
    }

    fn status(state: &State, details: Details) -> NodeStatus {
        NodeStatus::of(state, "edge", details, None, Takeovers::default(), 10)
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let text = scrape(status(&state(Record::default()), Details::default()));
        for absent in [
            "mode",
            "epoch",
            "timeline",
            "free_bytes",
            "survives",
            "lease",
            "lag",
            "heard",
            "last_takeover",
            "peer_ready",
            "virtual_ip",
        ] {
            assert!(!text.lines().any(|line| line.starts_with("duet_pair_") && line.contains(absent)), "{absent} in\n{text}");
        }
        for present in ["duet_pair_role{role=\"starting\"} 1", "duet_pair_open 0", "duet_pair_paused 0", "duet_pair_witness_up 0"]
        {
            assert!(text.contains(present), "no {present} in\n{text}");
        }
    }

    #[test]
    fn what_is_known_is_told_in_the_units_of_its_name() {
        let seen = Register { version: 7, epoch: 3, owner: NodeId::A, mode: Mode::Solo };
        let state = state(Record { seen: Some(seen), ..Record::default() });
        let details = Details { timeline: 4, free_bytes: 5 << 30, sync_names_changed: 2, ..Details::default() };
        let takeover = Takeover { detect_ms: 810, serve_ms: 5, ..Takeover::default() };
        let entry =
            Entry { at_ms: 1500, node: 'B', epoch: 3, what: String::new(), text: String::new(), takeover: Some(takeover) };
        let takeovers = Takeovers { planned: 2, unplanned: 1 };
        let postgres = "standby, streaming".to_owned();
        let virtual_ip = VirtualIpStatus {
            address: "10.0.0.10/24".to_owned(),
            interface: "eth0".to_owned(),
            state: Hold::Duplicate,
            trouble: None,
        };
        let known = NodeStatus { postgres, last_takeover: Some(entry), takeovers, ..status(&state, details) };
        let text = scrape(NodeStatus { virtual_ip: Some(virtual_ip), ..known });
        for line in [
            "duet_pair_mode{mode=\"SOLO\"} 1",
            "duet_pair_mode{mode=\"PAIR\"} 0",
            "duet_pair_epoch 3",
            "duet_pair_timeline 4",
            "duet_pair_disk_free_bytes 5368709120",
            "duet_pair_disk_short 0",
            "duet_pair_sync_names_changed_total 2",
            "duet_pair_survives{loss=\"a\"} 0",
            "duet_pair_survives{loss=\"b\"} 1",
            "duet_pair_virtual_ip{state=\"duplicate\"} 1",
            "duet_pair_virtual_ip{state=\"held\"} 0",
            "duet_pair_takeovers_total{kind=\"planned\"} 2",
            "duet_pair_takeovers_total{kind=\"unplanned\"} 1",
            "duet_pair_last_takeover_seconds{phase=\"detect\"} 0.81",
            "duet_pair_last_takeover_seconds{phase=\"serve\"} 0.005",
            "duet_pair_last_takeover_timestamp_seconds 1.5",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn positions_of_a_postgresql_that_does_not_run_are_not_told() {
        let details = Details { timeline: 2, flushed: 100, peer_flushed: Some(40), ..Details::default() };
        let mut told = status(&state(Record::default()), details);
        let text = scrape(told.clone());
        assert!(!text.contains("\nduet_pair_replication_lag_bytes") && !text.contains("\nduet_pair_timeline"), "{text}");
        told.postgres = "primary, the standby confirms".to_owned();
        assert!(scrape(told).contains("duet_pair_replication_lag_bytes 60"));
    }
}
