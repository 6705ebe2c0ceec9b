//! `duet-witness`, as `duet init` configures it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use duet::config::{HostPort, WitnessUrl};
use duet::net::tls::{Pem, client_config_of};
use duet::witness::backend;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::Node;
use crate::common::disk_fault::DiskFault;
use crate::common::peers::free_ports;
use crate::common::process::{Process, duet};
use crate::common::scratch;
use crate::contract::{DEADLINE, Keeps, Store};

/// See the module.
pub struct Daemon {
    process: Mutex<Process>,
    port: u16,
    dir: TempDir,
}

/// Whose certificate a stranger shows.
#[derive(Clone, Copy, Debug)]
pub enum Whose {
    /// Of a node's name, but signed by somebody else.
    OtherCa,
    /// The witness's own, which is no client's.
    Witness,
}

fn init(out: &Path, port: u16) {
    let mut init = Command::new(duet());
    init.args(["init", "--cluster", "test", "--a", "127.0.0.1", "--b", "127.0.0.1", "--in-place", "--witness", "127.0.0.1"])
        .args(["--client-port", "1,2", "--peer-port", "3,4", "--pg-port", "5,6", "--witness-port", &port.to_string(), "--out"])
        .arg(out);
    let output = init.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The program: the one that was built with these tests, or as it is shipped.
fn program() -> String {
    shipped().unwrap_or_else(|| env!("CARGO_BIN_EXE_duet-witness").to_owned())
}

/// An optimised build of it, if there is one: `DUET_WITNESS_BIN`.
pub fn shipped() -> Option<String> {
    std::env::var("DUET_WITNESS_BIN").ok()
}

fn run(dir: &Path, disk: Option<&DiskFault>) -> Process {
    let mut command = Command::new(program());
    command.arg("--config-file").arg(dir.join("pair/witness/witness.toml"));
    command.envs(disk.iter().flat_map(|disk| disk.environment()));
    let mut process = Process::spawn(command);
    process.line("the witness is ready");
    process
}

impl Daemon {
    /// One whose disk does as it is told.
    pub fn start_on(disk: &DiskFault) -> Self {
        Self::begin(Some(disk))
    }

    fn begin(disk: Option<&DiskFault>) -> Self {
        let (dir, [port]) = (scratch(), free_ports());
        init(&dir.path().join("pair"), port);
        Self { process: Mutex::new(run(dir.path(), disk)), port, dir }
    }

    fn tls(&self, client: Option<PathBuf>) -> Arc<rustls::ClientConfig> {
        let ca = Pem::read(&self.dir.path().join("pair/a/pair-ca.crt")).unwrap();
        let pems = client.map(|dir| (Pem::read(&dir.join("pair.crt")).unwrap(), Pem::read(&dir.join("pair.key")).unwrap()));
        Arc::new(client_config_of(Some(&ca), pems.as_ref().map(|(cert, key)| (cert, key)), &[b"h2"]).unwrap())
    }

    fn connect(&self, cluster: &str, port: u16, tls: Arc<rustls::ClientConfig>, deadline: Duration) -> Node {
        let url = WitnessUrl::Daemon(HostPort { host: "127.0.0.1".to_owned(), port });
        backend::connect(&url, cluster, tls, deadline).unwrap()
    }

    /// A node of this pair that asks for another one's register.
    pub fn node_of(&self, cluster: &str, _name: &str, port: u16) -> Node {
        self.connect(cluster, port, self.tls(Some(self.dir.path().join("pair/a"))), DEADLINE)
    }

    /// Somebody with a certificate that opens nothing, or with none.
    pub fn stranger(&self, whose: Option<Whose>) -> Node {
        let client = whose.map(|whose| match whose {
            Whose::OtherCa => {
                let other = self.dir.path().join("other");
                init(&other, self.port);
                other.join("a")
            }
            Whose::Witness => self.dir.path().join("pair/witness"),
        });
        self.connect("test", self.port, self.tls(client), DEADLINE)
    }

    fn register(&self, name: &str) -> PathBuf {
        self.dir.path().join("pair/witness/data").join(format!("{name}.register"))
    }

    /// It is killed, `meanwhile` happens, and it is started again.
    fn while_down(&self, meanwhile: impl FnOnce()) {
        let mut process = self.process.lock().unwrap();
        process.signal(Signal::SIGKILL);
        process.ended();
        meanwhile();
        *process = run(self.dir.path(), None);
    }

    pub async fn kill_and_start(&mut self) {
        tokio::task::block_in_place(|| self.while_down(|| {}));
    }

    /// What of it is in memory.
    pub fn resident_kb(&self) -> u64 {
        let pid = self.process.lock().unwrap().child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it runs");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Store for Daemon {
    async fn start() -> Self {
        Self::begin(None)
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn node_within(&self, name: &str, port: u16, deadline: Duration) -> Node {
        assert_eq!(name, "test", "certificates name the pair");
        self.connect(name, port, self.tls(Some(self.dir.path().join("pair/a"))), deadline)
    }
}

impl Keeps for Daemon {
    async fn wipe(&self, name: &str) {
        tokio::task::block_in_place(|| self.while_down(|| fs::remove_file(self.register(name)).unwrap()));
    }

    async fn copy(&self, name: &str) -> Vec<u8> {
        fs::read(self.register(name)).unwrap()
    }

    async fn put_back(&self, name: &str, copy: &[u8]) {
        let path = self.register(name);
        tokio::task::block_in_place(|| {
            self.while_down(|| {
                fs::remove_file(&path).unwrap();
                fs::write(&path, copy).unwrap();
            });
        });
    }
}
