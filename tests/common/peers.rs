//! The real programs that Duet is tested with, which are built first if need be.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::process::{Process, READY};

/// Where `tests/tools/build.sh` puts it.
pub fn program(name: &str) -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/build.sh");
    let output = Command::new(script).arg(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

/// Those that clients' connections get are above: one of them may be taken at any moment.
const PORTS: Range<u16> = 12_000..32_000;

/// Ports that are free for TCP and UDP, and that nobody else in this process is given.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    std::array::from_fn(|_| {
        loop {
            let port = rand::random_range(PORTS);
            let is_free = || TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok();
            if given.insert(port) && is_free() {
                return port;
            }
        }
    })
}

/// An etcd of one member over the data in `data`, ready to serve.
pub fn etcd(data: &Path, [client, peer]: [u16; 2]) -> Process {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let flags = [
        "--data-dir".to_owned(),
        data.display().to_string(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    let mut process = Process::start(&program("etcd"), &flags);
    process.line(READY);
    process
}
