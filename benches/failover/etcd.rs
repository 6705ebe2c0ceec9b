//! The same loss for three members of etcd, with etcd's own timing, on hosts of their own: what a pair is compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::Load;
use crate::network::{Network, address};

const MEMBERS: usize = 3;
const CLIENT: usize = MEMBERS;
const PATIENCE: Duration = Duration::from_secs(60);

/// Three members that run, and the client's host.
pub struct Etcd {
    etcd: PathBuf,
    members: Vec<Option<Child>>,
    dir: TempDir,
    network: Network,
}

impl Etcd {
    pub fn start(etcd: &Path) -> Self {
        let members = (0..MEMBERS).map(|_| None).collect();
        let mut cluster =
            Self { etcd: etcd.to_path_buf(), members, dir: TempDir::new().unwrap(), network: Network::new(MEMBERS + 1) };
        for member in 0..MEMBERS {
            cluster.start_member(member);
        }
        cluster
    }

    /// Writes to all members, from the client's machine.
    pub fn load(&self) -> Load {
        Load::start((0..MEMBERS).map(url).collect(), self.network.door(CLIENT))
    }

    fn start_member(&mut self, member: usize) {
        let peer = |member| format!("http://{}:2380", address(member));
        let cluster: Vec<String> = (0..MEMBERS).map(|member| format!("m{member}={}", peer(member))).collect();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join(format!("{member}.log"))).unwrap();
        let mut run = self.network.command(member, &self.etcd);
        run.args(["--name", &format!("m{member}"), "--data-dir"]).arg(self.dir.path().join(format!("m{member}")));
        run.args(["--listen-client-urls", &url(member), "--advertise-client-urls", &url(member)]);
        run.args(["--listen-peer-urls", &peer(member), "--initial-advertise-peer-urls", &peer(member)]);
        run.args(["--initial-cluster", &cluster.join(",")]);
        self.members[member] = Some(run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Waits until all members have the same leader; which one.
    pub fn until_led(&self) -> usize {
        let door = self.network.door(CLIENT);
        let asking = std::thread::spawn(move || {
            door();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(leader())
        });
        asking.join().expect("they agree on a leader")
    }

    /// The member's machine is gone. The moment from which it was.
    pub fn lose(&mut self, member: usize) -> Instant {
        self.network.plug(member, false);
        let gone = Instant::now();
        let mut child = self.members[member].take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
        gone
    }

    pub fn heal(&mut self) {
        for member in 0..MEMBERS {
            self.network.plug(member, true);
            if self.members[member].is_none() {
                self.start_member(member);
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

fn url(member: usize) -> String {
    format!("http://{}:2379", address(member))
}

async fn leader() -> usize {
    let began = Instant::now();
    loop {
        let mut seen = Vec::new();
        for url in (0..MEMBERS).map(url) {
            let asked = async {
                let mut client = etcd_client::Client::connect([url], None).await.ok()?;
                let status = client.status().await.ok()?;
                Some((status.header()?.member_id(), status.leader()))
            };
            seen.extend(tokio::time::timeout(Duration::from_secs(1), asked).await.ok().flatten());
        }
        let led = seen.first().map(|(_, leader)| *leader).filter(|leader| *leader != 0);
        let agreed = seen.len() == MEMBERS && seen.iter().all(|(_, leader)| Some(*leader) == led);
        if let Some(at) = seen.iter().position(|(member, _)| Some(*member) == led).filter(|_| agreed) {
            return at;
        }
        assert!(began.elapsed() < PATIENCE, "members and their leaders: {seen:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
