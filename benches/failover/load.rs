//! An open loop of writes to all nodes in turn, from the client's namespace: one goes out every few milliseconds whatever became of the others.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::mpsc;

const EVERY: Duration = Duration::from_millis(5);
/// A write that isn't answered by then has failed.
const PATIENCE: Duration = Duration::from_secs(4);
/// What clientv3 sends again: certainly not applied.
const RETRIABLE: &str = "there is no connection available";

/// One write.
struct Write {
    sent: Instant,
    answered: Instant,
    acknowledged: bool,
}

/// See the module.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Write>>,
}

/// What clients noticed.
pub struct Gap {
    /// The longest time without an acknowledgement.
    pub longest: Duration,
    /// Writes that were answered with anything else.
    pub failed: usize,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "longest gap {:?}, {} failed", self.longest, self.failed)
    }
}

impl Load {
    /// Begins it on the machine to which `enter` leads.
    pub fn start(urls: Vec<String>, enter: impl Fn() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(writes(urls, stopping))
        });
        Self { stop, thread }
    }

    pub fn run_until(&self, end: Instant) {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
    }

    /// From the event to the first acknowledged write that was sent after it was `effective`; and the longest gap since `began`.
    pub fn finish(self, began: Instant, effective: Instant) -> (Duration, Gap) {
        self.stop.store(true, Ordering::Relaxed);
        let writes = self.thread.join().unwrap();
        let mut acknowledged: Vec<&Write> = writes.iter().filter(|write| write.acknowledged).collect();
        acknowledged.sort_by_key(|write| write.answered);
        let first = acknowledged.iter().find(|write| write.sent >= effective).expect("somebody answers again");
        let since: Vec<Instant> = acknowledged.iter().map(|write| write.answered).filter(|at| *at >= began).collect();
        let longest = since.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        let longest = longest.max(since.first().map_or(Duration::ZERO, |first| *first - began));
        let failed = writes.iter().filter(|write| !write.acknowledged && write.sent >= began).count();
        (first.answered - effective, Gap { longest, failed })
    }
}

async fn writes(urls: Vec<String>, stop: Arc<AtomicBool>) -> Vec<Write> {
    let connect = |url: String| async move {
        let options =
            ConnectOptions::new().with_keep_alive(Duration::from_secs(1), Duration::from_secs(1)).with_tcp_keepalive(PATIENCE);
        Client::connect([url], Some(options)).await.unwrap()
    };
    let mut clients = Vec::new();
    for url in urls {
        clients.push(connect(url).await);
    }
    let (done, mut finished) = mpsc::unbounded_channel();
    let mut ticks = tokio::time::interval(EVERY);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        number += 1;
        let (mut client, done) = (clients[number % clients.len()].clone(), done.clone());
        let sent = Instant::now();
        tokio::spawn(async move {
            let put = async {
                loop {
                    match client.put(format!("load/{}", number % 100), vec![b'x'; 512], None).await {
                        Ok(_) => return true,
                        Err(Error::GRpcStatus(status)) if status.message() == RETRIABLE => tokio::time::sleep(EVERY).await,
                        Err(_) => return false,
                    }
                }
            };
            let acknowledged = tokio::time::timeout(PATIENCE, put).await.unwrap_or(false);
            let _ = done.send(Write { sent, answered: Instant::now(), acknowledged });
        });
    }
    drop(done);
    let mut writes = Vec::new();
    while let Some(write) = finished.recv().await {
        writes.push(write);
    }
    writes
}
