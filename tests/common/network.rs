//! Machines of one network: a network namespace each, joined by a bridge in a namespace of its own. Only root can, and with iproute2.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// Each machine's interface.
pub const INTERFACE: &str = "eth0";

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// See the module. Machines are told by their numbers; they are gone when this is dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
    machines: usize,
}

fn ip(args: &str) -> bool {
    let ran = Command::new("ip").args(args.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.expect("ip is there: apt-get install iproute2").success()
}

fn must(args: &str) {
    assert!(ip(args), "ip {args}");
}

/// A machine's own address.
pub fn address(machine: usize) -> String {
    format!("10.77.0.{}", machine + 1)
}

impl Network {
    /// Makes them.
    pub fn new(machines: usize) -> Self {
        // Others on this machine may run the same test at this moment. An interface's name has 15 bytes at most.
        let name = format!("dt{}-{}", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let network = Self { name, machines };
        let switch = network.switch();
        must(&format!("netns add {switch}"));
        must(&format!("-n {switch} link add br0 type bridge"));
        must(&format!("-n {switch} link set br0 up"));
        for machine in 0..machines {
            let name = network.namespace(machine);
            must(&format!("netns add {name}"));
            must(&format!("-n {name} link add {INTERFACE} type veth peer name {name} netns {switch}"));
            must(&format!("-n {name} addr add {}/24 dev {INTERFACE}", address(machine)));
            must(&format!("-n {name} link set lo up"));
            must(&format!("-n {name} link set {INTERFACE} up"));
            must(&format!("-n {switch} link set {name} master br0"));
            must(&format!("-n {switch} link set {name} up"));
        }
        network
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    fn namespace(&self, machine: usize) -> String {
        format!("{}{}", self.name, char::from(b'a' + u8::try_from(machine).unwrap()))
    }

    /// Runs a program on a machine, which gets its arguments next.
    pub fn command(&self, machine: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine)]).arg(program);
        command
    }

    /// What puts the thread that calls it on a machine.
    pub fn door(&self, machine: usize) -> impl Fn() + Send + Sync + 'static + use<> {
        let path = format!("/run/netns/{}", self.namespace(machine));
        move || setns(File::open(&path).unwrap().as_fd(), CloneFlags::CLONE_NEWNET).unwrap()
    }

    /// Threads on a machine.
    pub fn runtime(&self, machine: usize) -> tokio::runtime::Runtime {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(1).enable_all().on_thread_start(self.door(machine)).build().unwrap()
    }

    /// Runs `ip` on a machine; it must succeed.
    pub fn ip(&self, machine: usize, args: &str) {
        must(&format!("-n {} {args}", self.namespace(machine)));
    }

    /// As [`Network::ip`]; whether it succeeded.
    pub fn try_ip(&self, machine: usize, args: &str) -> bool {
        ip(&format!("-n {} {args}", self.namespace(machine)))
    }

    /// What `ip` says on a machine.
    pub fn ask(&self, machine: usize, args: &str) -> String {
        let output = Command::new("ip").args(["-n", &self.namespace(machine)]).args(args.split_whitespace()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Plugs a machine's cable in, or pulls it.
    pub fn plug(&self, machine: usize, plugged_in: bool) {
        let state = if plugged_in { "up" } else { "down" };
        must(&format!("-n {} link set {} {state}", self.switch(), self.namespace(machine)));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..self.machines).map(|machine| self.namespace(machine)).chain([self.switch()]) {
            ip(&format!("netns del {name}"));
        }
    }
}
