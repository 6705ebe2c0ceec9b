//! Disks that stand still, fail, or are full.

use std::path::{Path, PathBuf};

use crate::common::disk_fault::DiskFault;
use crate::common::{SmallDisk, scratch};
use crate::load;
use crate::load::Load;
use crate::pair::{A, B, Pair};
use crate::{assert_sound, seed};

const MIB: u64 = 1 << 20;

/// A pair whose disks do as they are told.
async fn begin() -> (Pair, [DiskFault; 2], [tempfile::TempDir; 2]) {
    let mut pair = Pair::begin(true);
    let dirs = [scratch(), scratch()];
    let faults = [DiskFault::install(dirs[A].path()).await, DiskFault::install(dirs[B].path()).await];
    for (flags, fault) in pair.flags.iter_mut().zip(&faults) {
        flags.push(fault.flag());
    }
    (pair.started().await, faults, dirs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_stands_still_hands_over() {
    let ((mut pair, disks, _dirs), seed) = (begin().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    disks[leader].stand_still();
    pair.node(leader).line("takes nothing any more");
    pair.until_open(1 - leader).await;
    load.progress(50).await;
    disks[leader].clear();
    assert_eq!(pair.until_paired().await, 1 - leader);
    load.progress(50).await;
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_follower_s_disk_the_leader_goes_on() {
    let ((mut pair, disks, _dirs), seed) = (begin().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    disks[1 - leader].stand_still();
    pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    load.progress(50).await;
    disks[1 - leader].clear();
    assert_eq!(pair.until_paired().await, leader);
    assert_sound(&pair, load, seed).await;
    pair.node(leader).line("asking to go on alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disk_failed_to_keep_is_made_anew_from_the_peer_s() {
    let ((mut pair, disks, _dirs), seed) = (begin().await, seed());
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    disks[leader].fail();
    pair.node(leader).line("isn't trusted any more");
    pair.until_open(1 - leader).await;
    load.progress(50).await;
    // It isn't forgotten by the next process.
    pair.lose(leader);
    let marker = pair.data(leader).join("postgres.distrusted");
    assert!(marker.exists());
    disks[leader].clear();
    pair.start_node(leader);
    pair.node(leader).line("copied the leader's data");
    assert_eq!(pair.until_paired().await, 1 - leader);
    assert!(!marker.exists(), "the new copy is trusted");
    load.progress(50).await;
    assert_sound(&pair, load, seed).await;
}

/// The node's own record is on it, too: what Duet can't keep ends it, before anything rests on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_record_the_disk_fails_to_keep_is_replaced() {
    let (mut pair, seed, dirs) = (Pair::begin(true), seed(), [scratch(), scratch()]);
    let disks = dirs.each_ref().map(|dir| DiskFault::build(dir.path()));
    for (environment, disk) in pair.environment.iter_mut().zip(&disks) {
        environment.extend(disk.environment().map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    pair = pair.started().await;
    let mut load = load(&pair, seed);
    load.progress(100).await;
    let leader = pair.until_paired().await;
    disks[leader].fail();
    pair.until_open(1 - leader).await;
    load.progress(50).await;
    pair.node(leader).ended();
    disks[leader].clear();
    pair.start_node(leader);
    assert_eq!(pair.until_paired().await, 1 - leader);
    assert_sound(&pair, load, seed).await;
}

/// Takes room until only so much is left.
fn leave(disk: &Path, left: u64) -> PathBuf {
    let filler = disk.join("filler");
    let room = nix::sys::statvfs::statvfs(disk).unwrap();
    let free = room.blocks_available() * room.fragment_size();
    let file = std::fs::File::create(&filler).unwrap();
    let taken = free.checked_sub(left).expect("there is so much");
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, taken.cast_signed()).unwrap();
    filler
}

/// A pair that A leads, with clients, and `node`'s disk, which isn't large.
async fn begin_on_a_small_disk(node: usize) -> (Pair, SmallDisk, Load, u64) {
    let (mut pair, seed) = (Pair::begin(true), seed());
    let disk = SmallDisk::mount(&pair.data(node), "1100m");
    pair = pair.started().await;
    let mut load = load(&pair, seed);
    load.progress(50).await;
    assert_eq!(pair.until_paired().await, A, "who began the store leads");
    (pair, disk, load, seed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_nearly_full_hands_over_and_fails_no_request() {
    let (mut pair, disk, mut load, seed) = begin_on_a_small_disk(A).await;
    let filler = leave(&disk.0, 200 * MIB);
    pair.node(A).line("requests are held for a switchover");
    pair.until_open(B).await;
    load.progress(50).await;
    assert_eq!(pair.until_paired().await, B);
    assert_eq!(pair.figures(A).await["duet_pair_disk_short"], 1.0);
    assert!(pair.operate(B, &["status"]).await.unwrap().contains("isn't chosen for leading"));
    std::fs::remove_file(filler).unwrap();
    pair.node(A).line("the disk has room again");
    assert_eq!((load.failed_lists(), load.stream_ends()), (0, 0));
    assert_sound(&pair, load, seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_starts_again_with_what_was_kept_for_this() {
    let (mut pair, disk, mut load, seed) = begin_on_a_small_disk(A).await;
    // The peer would be the better one: so that it isn't asked.
    pair.operate(A, &["pause", "10m"]).await.unwrap();
    let filler = disk.fill();
    let session = pair.database(A).connect().await;
    while session.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x'); SELECT pg_switch_wal()").await.is_ok() {}
    pair.node(A).line("the reserve kept for this is given up");
    pair.until_open(A).await;
    load.progress(10).await;
    pair.operate(A, &["resume"]).await.unwrap();
    pair.until_open(B).await;
    load.progress(50).await;
    std::fs::remove_file(filler).unwrap();
    assert_eq!(pair.until_paired().await, B);
    assert_sound(&pair, load, seed).await;
}

/// One that can't keep what the leader commits is left behind, and then the register doesn't let it lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_is_full_is_not_promoted() {
    let (mut pair, disk, mut load, seed) = begin_on_a_small_disk(B).await;
    let mut filler = disk.fill();
    let session = pair.database(A).connect().await;
    let more_wal = async {
        // What nobody confirms waits until the leader is alone.
        while session.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'x'); SELECT pg_switch_wal()").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let left_behind = async {
        tokio::task::block_in_place(|| pair.node(B).line("the reserve kept for this is given up"));
        filler = disk.fill();
        pair.until("alone", |all| all.iter().any(|one| one.open && one.mode.as_deref() == Some("SOLO"))).await;
    };
    tokio::select! {
        () = more_wal => panic!("the leader's PostgreSQL has ended"),
        () = left_behind => {}
    }
    load.progress(50).await;
    pair.lose(A);
    std::fs::remove_file(filler).unwrap();
    // If not even its record of that had room: nothing goes on without.
    if pair.node(B).has_said("duet.pair: No space left on device") {
        pair.node(B).ended();
        pair.start_node(B);
    }
    let waits = pair.until("waiting", |all| all.iter().any(|one| one.mode.as_deref() == Some("SOLO"))).await;
    assert!(waits.iter().all(|one| !one.open), "{waits:?}");
    assert!(waits[0].explanation.contains("may not take over"), "{}", waits[0].explanation);
    pair.start_node(A);
    assert_eq!(pair.until_paired().await, A);
    assert_sound(&pair, load, seed).await;
}
