//! Feeds followers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use super::{Followed, Position};
use crate::engine::{Engine, Error, Shared};
use crate::mvcc::{ReadView, digest};
use crate::storage::{Batch, RowsPage};
use crate::types::Revision;

/// Bytes of published batches that wait for a follower, beyond which it is cut off.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// What a row weighs in a queue besides its key and value.
const ROW_BYTES: usize = 96;
/// Bytes of history read and sent at once.
const PAGE_BYTES: usize = 1 << 20;
/// Messages on their way out.
const MESSAGES_MAX: usize = 4;
/// How often an idle leader says that it is there.
const ALIVE: Duration = Duration::from_millis(500);
/// How long a follower may take to read a message.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// The revision of a store without any rows.
const EMPTY_STORE: Revision = 1;

/// Those who follow this process at the moment.
#[derive(Default)]
pub(in crate::engine) struct Followers(Mutex<Vec<Sender>>);

struct Sender {
    batches: mpsc::UnboundedSender<Arc<Batch>>,
    bytes: Arc<AtomicUsize>,
}

struct Receiver {
    batches: mpsc::UnboundedReceiver<Arc<Batch>>,
    bytes: Arc<AtomicUsize>,
}

impl Followers {
    /// Hands a published batch on; whoever has too much unread is cut off.
    pub fn publish(&self, batch: &Arc<Batch>) {
        if batch.rows.is_empty() && batch.compacted.is_none() {
            return;
        }
        self.0.lock().retain(|follower| {
            let bytes = weight(batch);
            let queued = follower.bytes.fetch_add(bytes, Ordering::Relaxed);
            queued <= QUEUE_BYTES_MAX && follower.batches.send(Arc::clone(batch)).is_ok()
        });
    }

    /// Cuts everybody off: this process isn't the writer any more, or begins a new session.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// Everything that is published from now on, while this process is the writer.
    fn subscribe(&self, shared: &Shared) -> Result<Receiver, Error> {
        let mut followers = self.0.lock();
        // Under the lock: after the role has changed everybody is cut off under it.
        shared.refuse_unless_leading()?;
        let (sender, batches) = mpsc::unbounded_channel();
        let bytes = Arc::<AtomicUsize>::default();
        followers.push(Sender { batches: sender, bytes: Arc::clone(&bytes) });
        Ok(Receiver { batches, bytes })
    }
}

impl Receiver {
    async fn next(&mut self) -> Option<Arc<Batch>> {
        let batch = self.batches.recv().await?;
        self.bytes.fetch_sub(weight(&batch), Ordering::Relaxed);
        Some(batch)
    }
}

fn weight(batch: &Batch) -> usize {
    batch.bytes() + (batch.rows.len() + 1) * ROW_BYTES
}

impl Engine {
    /// Feeds a follower that stands at `position`, for as long as this process is the writer and the follower reads.
    ///
    /// The last message may be an error: `NoLeader`, `Compacted` (history went while it was read; the follower begins again), `Storage`,
    /// `TooManyRequests` (the follower couldn't keep up, or the writer's session has ended), `Stopped`.
    #[must_use]
    pub fn lead(&self, position: Position) -> mpsc::Receiver<Result<Followed, Error>> {
        let (to, messages) = mpsc::channel(MESSAGES_MAX);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let feed = Feed { shared: &shared, to: &to };
            let ended = tokio::select! {
                () = shared.stop.cancelled() => Error::Stopped,
                () = to.closed() => return,
                ended = feed.run(position) => match ended {
                    Err(Ended::Gone) => return,
                    Err(Ended::Because(error)) => error,
                    Ok(never) => match never {},
                },
            };
            // A follower that is gone is no error.
            let _ = to.send(Err(ended)).await;
        });
        messages
    }
}

struct Feed<'a> {
    shared: &'a Shared,
    to: &'a mpsc::Sender<Result<Followed, Error>>,
}

/// How far pages have come.
struct Read {
    /// Where the next one begins.
    next: Revision,
    more: bool,
    /// The compact revision after the last one was read.
    compacted: Revision,
}

/// Why a feed ends.
enum Ended {
    /// The follower hung up.
    Gone,
    Because(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Because(error)
    }
}

impl Feed<'_> {
    async fn run(&self, position: Position) -> Result<std::convert::Infallible, Ended> {
        let shared = self.shared;
        let whole = self.begin(position).await?;
        // First without a queue: it would only overflow while everything is read.
        let mut read = if whole { self.copy().await? } else { Read { next: position.revision + 1, more: true, compacted: -1 } };
        while read.more {
            read = self.page(read).await?;
        }
        let mut queue = shared.followers.subscribe(shared)?;
        let (revision, mut compacted) = self.published();
        while read.next <= revision {
            read = self.page(read).await?;
        }
        // Pages may have gone further than where the queue begins: followers pass over what they have.
        self.send(Followed::Paged { revision: read.next - 1, compacted }).await?;
        // What a compaction took while pages were read is missing from them: nothing of it is shown before that compaction is known.
        while compacted < read.compacted {
            let batch = queue.next().await.ok_or(Error::TooManyRequests)?;
            compacted = batch.compacted.unwrap_or(compacted);
            self.send(Followed::Batch(batch)).await?;
        }
        self.send(Followed::CaughtUp).await?;
        let mut swept = shared.swept.subscribe();
        swept.mark_changed();
        let mut alive = tokio::time::interval(ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                // A sweep is told after the compaction that it belongs to.
                biased;
                batch = queue.next() => Followed::Batch(batch.ok_or(Error::TooManyRequests)?),
                Ok(()) = swept.changed() => {
                    let compacted = *swept.borrow_and_update();
                    // What this process has left to earlier leaders of its own history comes first; then it is told.
                    if shared.unswept.is_pending() {
                        continue;
                    }
                    Followed::Swept(compacted)
                }
                _ = alive.tick() => Followed::Alive,
            };
            self.send(message).await?;
        }
    }

    /// Compares the follower's history with what is stored here, and says where the pages begin: whether with the first row there is.
    async fn begin(&self, position: Position) -> Result<bool, Ended> {
        let shared = self.shared;
        shared.refuse_unless_leading()?;
        let Position { cluster_id, revision, digest: theirs } = position;
        let (current, compacted) = self.published();
        let has_some = cluster_id != 0 && revision > EMPTY_STORE;
        let (whole, diverged) = if !has_some {
            (true, false)
        } else if revision > current {
            (true, true)
        } else if compacted >= revision {
            (true, false)
        } else {
            let page = shared.log.reader().rows(revision, revision, PAGE_BYTES).await.map_err(storage)?;
            if self.published().1 >= revision {
                (true, false)
            } else {
                let differs = theirs.is_none() || digest(&page.rows) != theirs;
                (differs, differs)
            }
        };
        let began = Followed::Began {
            cluster_id: shared.cluster_id.load(Ordering::Relaxed),
            member_id: shared.member_id.load(Ordering::Relaxed),
            epoch: shared.epoch.load(Ordering::Relaxed),
            whole,
            diverged,
        };
        self.send(began).await?;
        Ok(whole)
    }

    /// The revision and the compact revision of now.
    fn published(&self) -> (Revision, Revision) {
        let store = self.shared.store.read();
        (store.current(), store.compacted())
    }

    /// Sends everything that is published now, as it is stored at one moment: of a key that a sweep meets meanwhile, an old version
    /// could be read before the sweep has come to it, and its deletion not any more after.
    async fn copy(&self) -> Result<Read, Ended> {
        let to = self.published().0;
        let mut snapshot = self.shared.log.reader().snapshot().await.map_err(storage)?;
        let mut read = Read { next: EMPTY_STORE + 1, more: true, compacted: -1 };
        while read.more && read.next <= to {
            let page = snapshot.rows(read.next, to, PAGE_BYTES).await.map_err(storage)?;
            read = self.send_page(page, to).await?;
        }
        Ok(Read { next: to + 1, more: true, ..read })
    }

    /// Sends the next page of what is published. Nothing of it may have been compacted.
    async fn page(&self, read: Read) -> Result<Read, Ended> {
        let (from, to) = (read.next, self.published().0);
        if from > to {
            return Ok(Read { more: false, ..read });
        }
        let page = self.shared.log.reader().rows(from, to, PAGE_BYTES).await.map_err(storage)?;
        if self.published().1 >= from {
            return Err(Error::Compacted.into());
        }
        self.send_page(page, to).await
    }

    async fn send_page(&self, RowsPage { rows, more, .. }: RowsPage, to: Revision) -> Result<Read, Ended> {
        // Asked for after the rows were read: those that had gone by then are at or below it.
        let compacted = self.published().1;
        let next = if more { rows.last().map_or(to, |row| row.rev.main) } else { to } + 1;
        self.send(Followed::Page { rows, compacted }).await?;
        Ok(Read { next, more, compacted })
    }

    async fn send(&self, message: Followed) -> Result<(), Ended> {
        let sent = timeout(SEND_DEADLINE, self.to.send(Ok(message))).await;
        sent.map_err(|_| Error::TooManyRequests)?.map_err(|_| Ended::Gone)
    }
}

fn storage(error: crate::storage::LogError) -> Error {
    Error::Storage(error.to_string())
}
