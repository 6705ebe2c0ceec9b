//! What a server counts of a script, on its `/metrics`: by how much each of etcd's counters has grown since the script began.
//!
//! Deliberately not compared: durations, sizes on disk and on the wire, figures that follow some time after the answer (compactions that
//! nobody waited for, expiries, streams that end), raft's own indices, and how many writes were timed: etcd also times those that Duet
//! refuses before its writer sees them, for their size or because of an alarm.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Names, as they begin a line; all of their labels are compared.
const COMPARED: [&str; 15] = [
    "etcd_mvcc_range_total",
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_lease_ttl_total_sum",
    "etcd_mvcc_hash_rev_duration_seconds_count",
    "etcd_server_proposals_failed_total",
];

/// The requests of `etcd_server_request_duration_seconds` whose number is compared.
const TIMED: [&str; 4] = ["Range", "ReadonlyTxn", "Compaction", "LeaseRevoke"];

/// How long a scrape may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The compared figures of one moment, by name and labels.
#[derive(Clone, Debug, Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Of the server whose client port this is.
    pub async fn scrape(port: u16) -> Result<Figures> {
        let text = tokio::time::timeout(DEADLINE, get(port)).await.context("the scrape takes long")??;
        let mut figures = BTreeMap::new();
        for line in text.lines() {
            let Some((series, figure)) = line.rsplit_once(' ') else { continue };
            if is_compared(series) {
                figures.insert(series.to_owned(), figure.parse().with_context(|| line.to_owned())?);
            }
        }
        Ok(Figures(figures))
    }

    /// What has changed since, a line each.
    pub fn since(&self, before: &Figures) -> String {
        let grown = self.0.iter().map(|(series, now)| (series, now - before.0.get(series).unwrap_or(&0.0)));
        grown.filter(|(_, more)| *more != 0.0).map(|(series, more)| format!("{series} {more:+}\n")).collect()
    }
}

fn is_compared(series: &str) -> bool {
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let is_timed = || TIMED.iter().any(|kind| labels.ends_with(&format!("type=\"{kind}\"}}")));
    COMPARED.contains(&name) || name == "etcd_server_request_duration_seconds_count" && is_timed()
}

async fn get(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => bail!("/metrics answers {}", answer.lines().next().unwrap_or("nothing")),
    }
}
