//! The disk below PostgreSQL: how much room it has, a ballast that is given up when there is none, and what is remembered of one that
//! failed to keep what was written.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use tokio::time::Instant;

use super::super::log::DiskFaults;
use super::Shared;
use super::mark::DISTRUSTED;
use super::probe::Seen;

const MIB: u64 = 1 << 20;
/// With less, a node isn't chosen for leading: a checkpoint's distance of WAL is twice as much, but a few minutes' time to react.
const SHORT_BELOW: u64 = 256 * MIB;
/// From here on it may be chosen again, and the ballast is laid in.
const ENOUGH_FROM: u64 = 384 * MIB;
/// What a start needs that finds no room: some segments of WAL, a promotion's among them.
const BALLAST_BYTES: u64 = 64 * MIB;
const BALLAST: &str = "postgres.ballast";
const BALLAST_SCRATCH: &str = "postgres.ballast.tmp";
/// Between two looks at the room.
const LOOK: Duration = Duration::from_millis(500);
/// WAL that waits so long for the disk won't get there soon.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// How much room there is, as it was seen last.
#[derive(Debug, Default)]
pub(super) struct Room {
    free_bytes: AtomicU64,
    short: AtomicBool,
}

impl Room {
    /// Free bytes; 0 before the first look.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Too little to be chosen for leading.
    pub(super) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    fn saw(&self, free: u64) {
        self.free_bytes.store(free, Ordering::Relaxed);
        let short = free < if self.is_short() { ENOUGH_FROM } else { SHORT_BELOW };
        if self.short.swap(short, Ordering::Relaxed) != short {
            let (free_mib, needed_mib) = (free / MIB, ENOUGH_FROM / MIB);
            if short {
                tracing::warn!(
                    free_mib,
                    needed_mib,
                    "the disk has little room left: this node isn't chosen for leading while its peer has more"
                );
            } else {
                tracing::info!(free_mib, "the disk has room again");
            }
        }
    }
}

/// Looks at the room from time to time, and lays in the ballast when there is enough.
pub(super) async fn tend(shared: Arc<Shared>) {
    loop {
        let tended = Arc::clone(&shared);
        // A disk that doesn't answer holds up this task only.
        let _ = tokio::task::spawn_blocking(move || tended.look_at_room()).await;
        tokio::time::sleep(LOOK).await;
    }
}

impl Shared {
    fn look_at_room(&self) {
        let Ok(disk) = nix::sys::statvfs::statvfs(self.root()) else { return };
        let free = disk.blocks_available() * disk.fragment_size();
        self.room.saw(free);
        if free >= ENOUGH_FROM
            && !ballast(self.root()).exists()
            && let Err(error) = lay_in_ballast(self.root())
        {
            tracing::debug!(%error, "no ballast");
        }
    }

    /// Gives the ballast's room to PostgreSQL. The reserve is laid in again once somebody has made room.
    pub(super) fn give_up_ballast(&self) {
        give_up_ballast(self.root());
    }

    /// Whether the data may have been changed by a disk that failed.
    pub(super) fn is_distrusted(&self) -> bool {
        self.distrusted.load(Ordering::Acquire) || DISTRUSTED.is_set(self.root())
    }

    /// From now on a copy of the peer's is preferred to this data, also after a restart.
    fn distrust(&self) -> io::Result<()> {
        self.distrusted.store(true, Ordering::Release);
        let text = "The disk failed to keep what PostgreSQL wrote here. Duet makes the data directory beside this file anew from the \
                    leader's, as soon as this node follows one.\n";
        DISTRUSTED.set(self.root(), text)
    }

    /// The data that was distrusted has been replaced.
    pub(super) fn trust(&self) -> io::Result<()> {
        DISTRUSTED.clear(self.root())?;
        self.distrusted.store(false, Ordering::Release);
        Ok(())
    }
}

impl Shared {
    /// After PostgreSQL has ended, or refused to start: draws the conclusions from what it said of its disk.
    pub(super) async fn heed_disk(self: &Arc<Self>) {
        let DiskFaults { failed, full } = self.postgres.recent.disk();
        if full {
            self.on_disk(Self::give_up_ballast).await;
        }
        if failed && !self.is_distrusted() {
            self.trouble(
                "the disk failed to keep what PostgreSQL wrote: this node's data isn't trusted any more, and is made anew from the peer's \
                 once the peer leads. Look at the disk"
                    .to_owned(),
            );
            if let Err(error) = self.on_disk(Self::distrust).await {
                tracing::warn!(%error, "that the data isn't trusted could not be written down");
            }
        }
    }
}

/// Gives up the reserve that lies in the data directory `root`, for whoever found the disk full; whether there was one.
pub fn give_up_ballast(root: &Path) -> bool {
    let there = fs::remove_file(ballast(root)).is_ok();
    if there {
        tracing::warn!(
            mib = BALLAST_BYTES / MIB,
            "the disk is full: the reserve kept for this is given up, so that this node can go on; make room now"
        );
    }
    there
}

fn ballast(root: &Path) -> PathBuf {
    root.join(BALLAST)
}

fn lay_in_ballast(root: &Path) -> io::Result<()> {
    let scratch = root.join(BALLAST_SCRATCH);
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(&scratch)?;
    let reserved = fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES.cast_signed()).map_err(io::Error::from);
    let laid_in = reserved.and_then(|()| fs::rename(&scratch, ballast(root)));
    if laid_in.is_err() {
        let _ = fs::remove_file(&scratch);
    }
    laid_in
}

/// Whether a primary's disk stands still: somebody waits for it at every look, and nothing gets there.
#[derive(Debug, Default)]
pub(super) struct Stall {
    since: Option<(u64, Instant)>,
}

impl Stall {
    /// Whether it stands still for too long. The peer must have all that the disk took: who hasn't is no better.
    pub(super) fn lasts(&mut self, seen: &Seen, now: Instant) -> bool {
        let stuck = seen.flushing > 0 && seen.peer_flushed.is_some_and(|flushed| flushed >= seen.flushed);
        match self.since {
            Some((flushed, since)) if stuck && flushed == seen.flushed => now.duration_since(since) >= STALLED_AFTER,
            _ => {
                self.since = stuck.then_some((seen.flushed, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_stands_still_when_somebody_waits_for_it_at_every_look_and_nothing_gets_there() {
        let (start, mut stall) = (Instant::now(), Stall::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let waits = |flushed| Seen { flushed, flushing: 1, peer_flushed: Some(flushed), ..Seen::default() };
        assert!(!stall.lasts(&waits(10), at(0)));
        assert!(!stall.lasts(&waits(10), at(1)));
        assert!(!stall.lasts(&waits(11), at(3)), "it is only slow");
        assert!(stall.lasts(&waits(11), at(5)));
        assert!(!stall.lasts(&Seen { flushing: 0, ..waits(11) }, at(6)), "nobody waits");
        assert!(!stall.lasts(&Seen { peer_flushed: Some(10), ..waits(11) }, at(20)), "the peer lacks something");
        assert!(!stall.lasts(&Seen { peer_flushed: None, ..waits(11) }, at(30)));
        assert!(!stall.lasts(&waits(11), at(40)), "it began anew");
        assert!(stall.lasts(&waits(11), at(42)));
    }

    #[test]
    fn a_node_is_short_until_there_is_clearly_enough() {
        let room = Room::default();
        for (free_mib, short) in [(1000, false), (300, false), (200, true), (300, true), (400, false), (256, false), (255, true)]
        {
            room.saw(free_mib * MIB);
            assert_eq!(room.is_short(), short, "{free_mib} MiB free");
        }
    }

    #[test]
    fn the_ballast_takes_room_until_it_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        lay_in_ballast(dir.path()).unwrap();
        lay_in_ballast(dir.path()).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [BALLAST]);
        let taken = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(ballast(dir.path())).unwrap()) * 512;
        assert!(taken >= BALLAST_BYTES, "{taken} bytes on the disk");
    }
}
