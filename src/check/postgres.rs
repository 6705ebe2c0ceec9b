//! What PostgreSQL runs with, and how its replication is.

use super::{Finding, Level, Subject};
use crate::config::ByteSize;
use crate::supervisor::pair::status::NodeStatus;
use crate::supervisor::postgres::Binaries;
use crate::supervisor::postgres::pair::{Inspection, Slot};

const PROGRAMS: &str = "postgresql";
const SETTINGS: &str = "settings";
const REPLICATION: &str = "replication";
/// More of it is no lag of a moment.
const LAG_BYTES_GOOD: u64 = 64 << 20;

/// (name, whether a value will do, how bad it is otherwise, what to set)
type Rule = (&'static str, fn(&str) -> bool, Level, &'static str);

/// What a pair's promises rest on. Duet sets all of it; a `postgres.user.conf`, `ALTER SYSTEM` or another initdb can have changed some.
const RULES: [Rule; 12] = [
    ("fsync", |value| value == "on", Level::Fail, "on: --unsafe-no-fsync is for test suites"),
    ("full_page_writes", |value| value == "on", Level::Fail, "on"),
    (
        "synchronous_commit",
        |value| value == "on",
        Level::Fail,
        "on: less acknowledges what the peer hasn't flushed, more waits for replay",
    ),
    ("wal_level", |value| value != "minimal", Level::Fail, "replica"),
    ("restart_after_crash", |value| value == "off", Level::Fail, "off: Duet decides what follows a crash"),
    ("data_sync_retry", |value| value == "off", Level::Fail, "off: what wasn't flushed can't be trusted"),
    ("recovery_min_apply_delay", |value| value == "0", Level::Fail, "0"),
    ("ssl", |value| value == "on", Level::Fail, "on"),
    ("data_checksums", |value| value == "on", Level::Warn, "on: stop the node and run pg_checksums --enable, or duet reinit"),
    ("hot_standby_feedback", |value| value == "off", Level::Warn, "off"),
    ("max_slot_wal_keep_size", |value| value != "-1", Level::Warn, "4GB: a peer that stays away must not fill the disk"),
    // In MB.
    (
        "max_wal_size",
        |value| value.parse::<u64>().is_ok_and(|size| size <= 1024),
        Level::Warn,
        "512MB: a crash restart replays as much",
    ),
];

/// The programs that would run.
pub(super) async fn programs(subject: &Subject) -> Finding {
    let pgdata = subject.data_dir.join("postgres");
    let major = std::fs::read_to_string(pgdata.join("PG_VERSION")).ok().and_then(|text| text.trim().parse().ok());
    match Binaries::find(subject.bin_dir.as_deref(), major, &pgdata).await {
        Ok(found) => Finding::ok(PROGRAMS, format!("{} in {}", found.version, found.bin_dir.display())),
        Err(error) => Finding::fail(PROGRAMS, error.to_string(), "install PostgreSQL 15 to 18, or name it with --pg-bin-dir"),
    }
}

/// The settings in force, and the peer's replication slot.
pub(super) fn judge(seen: &Inspection) -> Vec<Finding> {
    let value = |name: &str| seen.settings.get(name).map(String::as_str);
    let broken = RULES.iter().filter_map(|(name, will_do, level, wanted)| {
        let value = value(name).filter(|value| !will_do(value))?;
        let (text, fix) = (format!("{name} is {value}"), format!("set it to {wanted}"));
        Some(Finding { level: *level, ..Finding::fail(SETTINGS, text, fix) })
    });
    let mut found: Vec<Finding> = broken.collect();
    if value("data_checksums") != Some("on") && value("wal_log_hints") != Some("on") {
        let text = "neither data_checksums nor wal_log_hints is on: a former leader can't be rewound, only copied";
        found.push(Finding::warn(SETTINGS, text, "run pg_checksums --enable on the stopped node"));
    }
    if found.is_empty() {
        found.push(Finding::ok(
            SETTINGS,
            "fsync, full_page_writes, synchronous_commit, checksums and the rest are as they should be",
        ));
    }
    found
}

/// The leader's side of the replication, or the follower's.
pub(super) fn replication(status: &NodeStatus, slot: Option<&Slot>) -> Finding {
    let details = &status.details;
    if status.role == "follower" {
        let lag = details.flushed.saturating_sub(details.replayed);
        return match status.postgres.as_str() {
            "standby, streaming" if lag > LAG_BYTES_GOOD => Finding::warn(
                REPLICATION,
                format!("{} received and not replayed yet", ByteSize(lag).rounded()),
                "wait; a takeover would have to",
            ),
            "standby, streaming" => {
                Finding::ok(REPLICATION, format!("receives what the leader writes; {} behind", ByteSize(lag).rounded()))
            }
            other => Finding::fail(
                REPLICATION,
                format!("doesn't follow: {}", details.doing.as_deref().or(details.trouble.as_deref()).unwrap_or(other)),
                "duet explain and this node's log tell more; duet reinit makes a new copy",
            ),
        };
    }
    let Some(flushed) = details.peer_flushed else {
        return Finding::fail(REPLICATION, "nobody streams from this leader", "look at the other node's findings");
    };
    let lag = details.flushed.saturating_sub(flushed);
    match slot {
        None => Finding::fail(REPLICATION, "the peer has no replication slot", "restart the other node's Duet: it makes one"),
        Some(slot) if slot.wal_status != "reserved" && slot.wal_status != "extended" => Finding::warn(
            REPLICATION,
            format!("the peer's slot is {}, with {} behind it", slot.wal_status, ByteSize(slot.kept_bytes).rounded()),
            "the peer has been away for long, and will be copied anew",
        ),
        Some(_) if lag > LAG_BYTES_GOOD => Finding::warn(
            REPLICATION,
            format!("the peer is {} behind", ByteSize(lag).rounded()),
            "look at both nodes' disks and their link",
        ),
        Some(slot) => {
            let text = format!(
                "the peer streams, {} behind; its slot keeps {}",
                ByteSize(lag).rounded(),
                ByteSize(slot.kept_bytes).rounded()
            );
            Finding::ok(REPLICATION, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Inspection {
        let settings = [
            ("data_checksums", "on"),
            ("data_sync_retry", "off"),
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("hot_standby_feedback", "off"),
            ("max_slot_wal_keep_size", "4096"),
            ("max_wal_size", "512"),
            ("recovery_min_apply_delay", "0"),
            ("restart_after_crash", "off"),
            ("ssl", "on"),
            ("synchronous_commit", "on"),
            ("wal_level", "replica"),
            ("wal_log_hints", "off"),
        ];
        let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Inspection { settings, ..Inspection::default() }
    }

    #[test]
    fn each_setting_that_promises_rest_on_is_noticed() {
        assert_eq!(judge(&good()).iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Ok]);
        for (name, value, level) in [
            ("fsync", "off", Level::Fail),
            ("full_page_writes", "off", Level::Fail),
            ("synchronous_commit", "local", Level::Fail),
            ("synchronous_commit", "remote_apply", Level::Fail),
            ("wal_level", "minimal", Level::Fail),
            ("restart_after_crash", "on", Level::Fail),
            ("data_sync_retry", "on", Level::Fail),
            ("recovery_min_apply_delay", "5000", Level::Fail),
            ("ssl", "off", Level::Fail),
            ("hot_standby_feedback", "on", Level::Warn),
            ("max_slot_wal_keep_size", "-1", Level::Warn),
            ("max_wal_size", "4096", Level::Warn),
        ] {
            let mut seen = good();
            seen.settings.insert(name.to_owned(), value.to_owned());
            let found = judge(&seen);
            assert!(matches!(&found[..], [one] if one.level == level && one.text.contains(name)), "{name}={value}: {found:?}");
        }
    }

    #[test]
    fn without_checksums_hint_bits_must_be_logged() {
        let mut seen = good();
        seen.settings.insert("data_checksums".to_owned(), "off".to_owned());
        assert_eq!(judge(&seen).len(), 2);
        seen.settings.insert("wal_log_hints".to_owned(), "on".to_owned());
        assert_eq!(judge(&seen).len(), 1, "it can be rewound");
    }
}
