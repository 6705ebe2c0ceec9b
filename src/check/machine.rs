//! What any process of the machine can see: disk, memory, clock, the data directory, ports.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;

use super::{Finding, Subject};
use crate::config::{ByteSize, ListenAddress};

const MIB: u64 = 1 << 20;
/// The ballast of a machine that is to go on: less is a reason to act.
const FREE_BYTES_MIN: u64 = 512 * MIB;
const FREE_BYTES_GOOD: u64 = 2048 * MIB;
/// etcd's own advice for the disk below it is 10 ms.
const FSYNC_GOOD: Duration = Duration::from_millis(10);
const FSYNC_MAX: Duration = Duration::from_millis(100);
const FSYNC_WRITES: usize = 32;
const FSYNC_BYTES: usize = 8192;
/// A disk that is slower than this is known to be, after fewer writes.
const FSYNC_PATIENCE: Duration = Duration::from_secs(2);
const MEMORY_BYTES_MIN: u64 = 512 * MIB;

pub(super) fn all(data_dir: &Path) -> Vec<Finding> {
    let place = existing(data_dir);
    vec![directory(data_dir), space(place), latency(place), memory(), overcommit(), clock()]
}

/// The directory, or what there is of the way to it.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

fn directory(dir: &Path) -> Finding {
    const CHECK: &str = "directory";
    let shown = dir.display();
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().filter(|entry| entry.file_name() != "lost+found"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(CHECK, format!("{shown} will be made at the first start"));
        }
        Err(error) => return Finding::fail(CHECK, format!("{shown}: {error}"), "let the user that runs Duet into it"),
    };
    if !dir.join("duet.identity").exists() {
        return match entries.next() {
            None => Finding::ok(CHECK, format!("{shown} is empty, and ready for the first start")),
            Some(entry) => Finding::fail(
                CHECK,
                format!("{shown} holds {}, and is no data directory of Duet's", entry.file_name().display()),
                "name another one with --data-dir",
            ),
        };
    }
    match fs::metadata(dir.join("postgres")) {
        Ok(meta) if meta.uid() == 0 => Finding::fail(
            CHECK,
            format!("{shown}/postgres belongs to root, as whom PostgreSQL doesn't run"),
            format!("chown -R postgres {shown}/postgres (or the user of --pg-user)"),
        ),
        Ok(meta) if meta.mode() & 0o027 != 0 => Finding::fail(
            CHECK,
            format!("{shown}/postgres has mode {:o}, with which PostgreSQL doesn't start", meta.mode() & 0o777),
            format!("chmod 700 {shown}/postgres"),
        ),
        Ok(meta) => Finding::ok(CHECK, format!("{shown} is Duet's; PostgreSQL's part belongs to {}", user(meta.uid()))),
        Err(_) => Finding::ok(CHECK, format!("{shown} is Duet's, and has no data yet")),
    }
}

fn user(uid: u32) -> String {
    let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    found.map_or_else(|| format!("user {uid}"), |user| user.name)
}

fn space(dir: &Path) -> Finding {
    match nix::sys::statvfs::statvfs(dir) {
        Ok(disk) => judge_space(disk.blocks_available() * disk.fragment_size(), disk.blocks() * disk.fragment_size()),
        Err(error) => Finding::fail("space", format!("{}: {error}", dir.display()), "let the user that runs Duet into it"),
    }
}

fn judge_space(free: u64, all: u64) -> Finding {
    const CHECK: &str = "space";
    let text = format!("{} of {} free on the data's disk", ByteSize(free).rounded(), ByteSize(all).rounded());
    let fix = "make room: a full disk stops PostgreSQL, and a node whose disk is full doesn't take over";
    match free {
        ..FREE_BYTES_MIN => Finding::fail(CHECK, text, fix),
        _ if free < FREE_BYTES_GOOD || free < all / 10 => Finding::warn(CHECK, text, fix),
        _ => Finding::ok(CHECK, text),
    }
}

/// How long the disk takes to keep what PostgreSQL writes for one commit. Leaves nothing behind: the file never has a name.
fn latency(dir: &Path) -> Finding {
    const CHECK: &str = "fsync";
    let measure = || -> io::Result<Vec<Duration>> {
        let mut file = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(dir)?;
        let (block, began, mut took) = ([0; FSYNC_BYTES], Instant::now(), Vec::new());
        while took.len() < FSYNC_WRITES && began.elapsed() < FSYNC_PATIENCE {
            let wrote = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            took.push(wrote.elapsed());
        }
        took.sort();
        Ok(took)
    };
    match measure() {
        Ok(took) => judge_latency(&took),
        Err(error) => Finding::warn(
            CHECK,
            format!("can't be measured in {}: {error}", dir.display()),
            "run the check as the user that runs Duet",
        ),
    }
}

/// Of times in their order.
fn judge_latency(took: &[Duration]) -> Finding {
    const CHECK: &str = "fsync";
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let text = format!("{:.1} ms for a commit's 8 KiB, {:.1} ms at worst, of {}", millis(median), millis(worst), took.len());
    let fix =
        "every write to the cluster waits for this on both machines: use a disk of its own, an SSD with power-loss protection";
    match median {
        _ if median > FSYNC_MAX => Finding::fail(CHECK, text, fix),
        _ if median > FSYNC_GOOD => Finding::warn(CHECK, text, fix),
        _ => Finding::ok(CHECK, text),
    }
}

fn memory() -> Finding {
    const CHECK: &str = "memory";
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(all), Some(available)) = (field(&meminfo, "MemTotal:"), field(&meminfo, "MemAvailable:")) else {
        return Finding::warn(CHECK, "/proc/meminfo doesn't tell", "look with free -m");
    };
    let text = format!("{} of {} available", ByteSize(available).rounded(), ByteSize(all).rounded());
    if available < MEMORY_BYTES_MIN {
        return Finding::warn(CHECK, text, "give the machine more: Duet keeps keys and values in memory, and so does PostgreSQL");
    }
    Finding::ok(CHECK, text)
}

fn overcommit() -> Finding {
    let mode = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let room = field(&meminfo, "CommitLimit:").zip(field(&meminfo, "Committed_AS:"));
    judge_overcommit(mode.trim(), room.map(|(limit, used)| limit.saturating_sub(used)))
}

fn judge_overcommit(mode: &str, room: Option<u64>) -> Finding {
    const CHECK: &str = "overcommit";
    match (mode, room) {
        ("2", Some(room)) if room < MEMORY_BYTES_MIN => Finding::warn(
            CHECK,
            format!("vm.overcommit_memory=2 leaves only {} to ask for", ByteSize(room).rounded()),
            "raise vm.overcommit_ratio: a process that is refused memory ends",
        ),
        ("2", _) => Finding::ok(CHECK, "vm.overcommit_memory=2: no process is killed for another one's memory"),
        _ => Finding::ok(
            CHECK,
            format!("vm.overcommit_memory={mode}: deploy/systemd's OOMScoreAdjust makes PostgreSQL the last one to be killed"),
        ),
    }
}

/// Bytes of a line of /proc/meminfo.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn clock() -> Finding {
    const CHECK: &str = "clock";
    // SAFETY: all of the structure is plain numbers, for which zero is a value; `modes` 0 only reads.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    if state < 0 || status & libc::STA_UNSYNC != 0 {
        return Finding::warn(
            CHECK,
            "nothing keeps this machine's clock right",
            "run chrony or systemd-timesyncd: no failover rests on the time of day, but certificates and the history do",
        );
    }
    Finding::ok(CHECK, "kept right by a time service")
}

/// Whether the node's addresses are this machine's, and free. For a node that doesn't run.
pub fn ports(subject: &Subject) -> Vec<Finding> {
    let pair = &subject.pair;
    let clients = subject.listen_client.iter().filter_map(|url| match &url.address {
        ListenAddress::Tcp(address) => Some(("clients", *address)),
        ListenAddress::Unix(_) => None,
    });
    let tcp = clients.chain([("the peer and operators", pair.listen_peer), ("the peer's PostgreSQL", pair.pg_listen)]);
    let mut found: Vec<Finding> =
        tcp.map(|(who, address)| port(&format!("{address} for {who}"), TcpListener::bind(address).map(drop))).collect();
    let heartbeats: SocketAddr = pair.listen_peer;
    found.push(port(&format!("{heartbeats} (UDP) for heartbeats"), UdpSocket::bind(heartbeats).map(drop)));
    found
}

fn port(what: &str, bound: io::Result<()>) -> Finding {
    const CHECK: &str = "port";
    match bound {
        Ok(()) => Finding::ok(CHECK, format!("{what} is free")),
        Err(error) => {
            let fix = match error.kind() {
                io::ErrorKind::AddrInUse => "another process has it: stop that one, or choose another port",
                io::ErrorKind::AddrNotAvailable => "no interface of this machine has this address: check the configuration",
                _ => "choose an address and a port that this user may bind",
            };
            Finding::fail(CHECK, format!("{what} can't be bound: {error}"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn little_room_is_told_before_there_is_none() {
        let level = |free_mib: u64, all_mib: u64| judge_space(free_mib * MIB, all_mib * MIB).level;
        assert_eq!(level(100, 10_000), Level::Fail);
        assert_eq!(level(1000, 10_000), Level::Warn);
        assert_eq!(level(5000, 100_000), Level::Warn, "less than a tenth");
        assert_eq!(level(5000, 10_000), Level::Ok);
    }

    #[test]
    fn one_slow_write_of_many_is_no_slow_disk() {
        let took = |fast: usize, slow: usize| -> Vec<Duration> {
            let times = |count, millis| std::iter::repeat_n(Duration::from_millis(millis), count);
            times(fast, 1).chain(times(slow, 150)).collect()
        };
        assert_eq!(judge_latency(&took(31, 1)).level, Level::Ok);
        assert_eq!(judge_latency(&took(10, 22)).level, Level::Fail);
        assert_eq!(judge_latency(&[Duration::from_millis(20)]).level, Level::Warn);
    }

    #[test]
    fn strict_overcommit_needs_room() {
        assert_eq!(judge_overcommit("2", Some(10 * MIB)).level, Level::Warn);
        assert_eq!(judge_overcommit("2", Some(4096 * MIB)).level, Level::Ok);
        assert_eq!(judge_overcommit("1", Some(0)).level, Level::Ok);
    }

    #[test]
    fn a_directory_of_somebody_else_s_is_refused_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory(&dir.path().join("new")).level, Level::Ok);
        assert_eq!(directory(dir.path()).level, Level::Ok);
        latency(existing(&dir.path().join("new/er")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join("member"), "").unwrap();
        assert_eq!(directory(dir.path()).level, Level::Fail);
    }

    #[test]
    fn a_port_that_somebody_has_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let again = TcpListener::bind(taken.local_addr().unwrap()).map(drop);
        let finding = port("it", again);
        assert!(finding.level == Level::Fail && finding.fix.unwrap().contains("another process"));
        assert_eq!(port("it", Ok(())).level, Level::Ok);
    }
}
