//! The client of a drill: one writer, as patient as an API server's, who knows exactly what was acknowledged to it.
//!
//! It writes keys below `/duet/drill/`, each once, never again after an unknown outcome, all on a lease: they go with it, also when this
//! process doesn't end in order.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use crate::cli::Failure;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest};

/// Below this nobody else keeps anything.
const PREFIX: &str = "/duet/drill/";
/// Longer than any drill.
const LEASE_SECONDS: i64 = 900;
/// Between two writes.
const PAUSE: Duration = Duration::from_millis(10);
/// What is longer than a request is held anywhere on its way.
const WRITE_DEADLINE: Duration = Duration::from_secs(3);
/// After a refusal, before the other node is asked.
const AGAIN: Duration = Duration::from_millis(20);
const CLEANUP_DEADLINE: Duration = Duration::from_secs(10);
/// More writes than this are not needed to know how long a gap is.
const WRITES_MAX: usize = 50_000;

/// A writer at work.
pub(super) struct Probe {
    channels: [Channel; 2],
    run: String,
    lease: i64,
    stop: watch::Sender<bool>,
    acknowledged: watch::Receiver<usize>,
    writer: JoinHandle<Vec<Write>>,
}

/// A write that was begun.
#[derive(Clone, Copy, Debug)]
struct Write {
    began: Instant,
    /// `None`: nobody knows what became of it.
    acknowledged: Option<Instant>,
}

/// What came of all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub acknowledged: usize,
    pub unknown: usize,
    /// Acknowledged, and not there.
    pub lost: Vec<usize>,
    /// The longest time without an acknowledgement.
    pub gap: Duration,
    /// What a write takes otherwise: the one in the middle.
    pub typical: Duration,
}

impl Probe {
    /// Begins to write, at the node `first`.
    pub(super) async fn begin(channels: [Channel; 2], first: usize, run: u64) -> Result<Self, Failure> {
        let grant = LeaseGrantRequest { ttl: LEASE_SECONDS, id: 0 };
        let granted = timeout(WRITE_DEADLINE, LeaseClient::new(channels[first].clone()).lease_grant(grant)).await;
        let granted = granted.map_err(|_| Failure::serving("the leader grants no lease in time; nothing was done"))?;
        let granted = granted.map_err(|status| Failure::serving(format!("no lease: {}; nothing was done", status.message())))?;
        let (run, lease) = (format!("{PREFIX}{run}/"), granted.into_inner().id);
        let ((stop, stopping), (count, acknowledged)) = (watch::channel(false), watch::channel(0));
        let writer = tokio::spawn(write(channels.clone(), first, run.clone(), lease, stopping, count));
        Ok(Self { channels, run, lease, stop, acknowledged, writer })
    }

    /// Waits for `more` acknowledgements from now on.
    pub(super) async fn acknowledged(&mut self, more: usize, patience: Duration) -> bool {
        let wanted = *self.acknowledged.borrow() + more;
        matches!(timeout(patience, self.acknowledged.wait_for(|count| *count >= wanted)).await, Ok(Ok(_)))
    }

    /// Ends the writing, and reads back at the node `at` what is there; then takes all of it away.
    pub(super) async fn end(self, at: usize) -> Result<Seen, Failure> {
        self.stop.send_replace(true);
        let writes = self.writer.await.map_err(|error| Failure::serving(error.to_string()))?;
        let mut end = self.run.clone().into_bytes();
        // The end of what begins with it: a slash is its last byte.
        end.pop();
        end.push(b'/' + 1);
        let request =
            RangeRequest { key: self.run.clone().into(), range_end: end.into(), keys_only: true, ..RangeRequest::default() };
        let mut client = KvClient::new(self.channels[at].clone()).max_decoding_message_size(usize::MAX);
        let answer = timeout(CLEANUP_DEADLINE, client.range(request)).await;
        let unread = |why: &str| Failure::serving(format!("what was written can't be read back: {why}"));
        let answer = answer.map_err(|_| unread("no answer"))?.map_err(|status| unread(status.message()))?;
        let number = |key: &[u8]| std::str::from_utf8(key.strip_prefix(self.run.as_bytes())?).ok()?.parse().ok();
        let found: Vec<usize> = answer.into_inner().kvs.iter().filter_map(|kv| number(&kv.key)).collect();
        // What isn't revoked now, expires.
        let revoke = LeaseClient::new(self.channels[at].clone()).lease_revoke(LeaseRevokeRequest { id: self.lease }).await;
        if let Err(status) = revoke {
            eprintln!("duet: {PREFIX} is cleared in {LEASE_SECONDS} s: {}", status.message());
        }
        Ok(judge(&writes, &found))
    }
}

async fn write(
    channels: [Channel; 2],
    first: usize,
    run: String,
    lease: i64,
    stopping: watch::Receiver<bool>,
    count: watch::Sender<usize>,
) -> Vec<Write> {
    let (mut at, mut writes) = (first, Vec::new());
    while !*stopping.borrow() && writes.len() < WRITES_MAX {
        let began = Instant::now();
        let key = format!("{run}{:08}", writes.len());
        let put = PutRequest { key: key.into(), value: "drill".into(), lease, ..PutRequest::default() };
        let answer = timeout(WRITE_DEADLINE, KvClient::new(channels[at].clone()).put(put)).await;
        let acknowledged = matches!(answer, Ok(Ok(_))).then(Instant::now);
        writes.push(Write { began, acknowledged });
        if acknowledged.is_some() {
            count.send_modify(|count| *count += 1);
            sleep(PAUSE).await;
        } else {
            at = 1 - at;
            sleep(AGAIN).await;
        }
    }
    writes
}

fn judge(writes: &[Write], found: &[usize]) -> Seen {
    let found: std::collections::BTreeSet<usize> = found.iter().copied().collect();
    let done: Vec<(usize, &Write, Instant)> =
        writes.iter().enumerate().filter_map(|(at, write)| Some((at, write, write.acknowledged?))).collect();
    let mut took: Vec<Duration> = done.iter().map(|(_, write, acknowledged)| *acknowledged - write.began).collect();
    took.sort();
    Seen {
        acknowledged: done.len(),
        unknown: writes.len() - done.len(),
        lost: done.iter().map(|(at, _, _)| *at).filter(|at| !found.contains(at)).collect(),
        gap: done.windows(2).map(|pair| pair[1].2 - pair[0].2).max().unwrap_or_default(),
        typical: took.get(took.len() / 2).copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_acknowledged_can_be_lost_and_a_gap_lies_between_two_acknowledgements() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let write = |began, acknowledged: Option<u64>| Write { began: at(began), acknowledged: acknowledged.map(at) };
        let writes = [write(0, Some(2)), write(10, Some(13)), write(20, None), write(50, Some(900)), write(910, Some(912))];
        let seen = judge(&writes, &[0, 1, 3, 4]);
        assert_eq!((seen.acknowledged, seen.unknown, seen.lost.len()), (4, 1, 0));
        assert_eq!((seen.gap, seen.typical), (Duration::from_millis(887), Duration::from_millis(3)));
        assert_eq!(judge(&writes, &[0, 2, 4]).lost, [1, 3], "an unknown one that is there replaces none of them");
        assert_eq!(judge(&[], &[]).gap, Duration::ZERO);
    }
}
