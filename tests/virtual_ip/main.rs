//! The virtual IP, between machines that are network namespaces: who has it, what the neighbours know, and that it never stays where it
//! mustn't be. Only root can make the machines.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/network.rs"]
mod network;
mod pair;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use common::process::PATIENCE;
use duet::net::virtual_ip::VirtualIp;
use duet::supervisor::pair::clock;
use duet::supervisor::pair::gate::Rights;
use duet::supervisor::pair::virtual_ip::{Hold, VirtualIpStatus, start};
use duet::types::Millis;
use network::{INTERFACE, Network};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const A: usize = 0;
const B: usize = 1;
const NEIGHBOUR: usize = 2;

const V4: &str = "10.77.0.10/24";
const V6: &str = "fd77::10/64";

/// With the right to lead.
const LEADS: Rights = Rights { owns: true, open: true, not_before: 0, read_until: Millis::MAX, epoch: 1, lossy: 0 };

/// Between two looks at what gives no event to a test.
const LOOK: Duration = Duration::from_millis(5);

/// Only root can make machines.
pub fn can_make_machines() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("only root can make network namespaces: not tested");
    }
    root
}

/// Waits until `fits` is true.
pub fn until(what: &str, mut fits: impl FnMut() -> bool) {
    let began = Instant::now();
    while !fits() {
        assert!(began.elapsed() < PATIENCE, "not {what} within {PATIENCE:?}");
        std::thread::sleep(LOOK);
    }
}

/// Whether an address is on a machine.
pub fn has(network: &Network, machine: usize, ip: &str) -> bool {
    network.ask(machine, &format!("-o addr show dev {INTERFACE}")).split_whitespace().any(|word| word == ip)
}

fn mac(network: &Network, machine: usize) -> String {
    let link = network.ask(machine, &format!("-o link show dev {INTERFACE}"));
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).expect("it has one").to_owned()
}

/// A node, as far as the virtual IP is concerned.
struct Node {
    rights: watch::Sender<Rights>,
    status: watch::Receiver<VirtualIpStatus>,
    stop: CancellationToken,
    holder: JoinHandle<()>,
    runtime: Runtime,
}

impl Node {
    fn start(network: &Network, machine: usize, ip: &str) -> Self {
        Self::on(network, machine, ip, INTERFACE)
    }

    fn on(network: &Network, machine: usize, ip: &str, interface: &str) -> Self {
        let runtime = network.runtime(machine);
        let (address, prefix_len) = duet::config::network_address(ip).unwrap();
        let ip = VirtualIp { address, prefix_len, interface: interface.to_owned() };
        let (rights, seen) = watch::channel(Rights::default());
        let stop = CancellationToken::new();
        let _inside = runtime.enter();
        let (status, holder) = start(ip, seen, stop.clone());
        Self { rights, status, stop, holder, runtime }
    }

    /// Waits for it; what is said then.
    fn until(&self, state: Hold) -> VirtualIpStatus {
        let mut status = self.status.clone();
        let reached = async { tokio::time::timeout(PATIENCE, status.wait_for(|status| status.state == state)).await };
        match self.runtime.block_on(reached) {
            Ok(Ok(status)) => status.clone(),
            _ => panic!("not {state:?}: {:?}", self.status.borrow()),
        }
    }
}

/// What a machine remembers of where an address is.
fn remembered(network: &Network, ip: &str) -> Option<String> {
    let address = ip.split('/').next().unwrap();
    let entry = network.ask(NEIGHBOUR, &format!("neigh show {address} dev {INTERFACE}"));
    entry.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).map(str::to_owned)
}

/// Has the neighbour ask where an address is.
fn have_asked(network: &Network, ip: &str) {
    let (enter, to) = (network.door(NEIGHBOUR), (duet::config::network_address(ip).unwrap().0, 9));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter();
            let from = if to.0.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(from).unwrap().send_to(b"?", to).unwrap();
        });
    });
    until("remembered", || remembered(network, ip).is_some());
}

/// Machines with addresses of both kinds.
/// Three machines; `None` for those who can't make any.
fn network() -> Option<Network> {
    if !can_make_machines() {
        return None;
    }
    let network = Network::new(3);
    for machine in [A, B, NEIGHBOUR] {
        network.ip(machine, &format!("addr add fd77::{}/64 dev {INTERFACE} nodad", machine + 1));
    }
    Some(network)
}

#[test]
fn it_is_where_the_right_to_lead_is_and_neighbours_are_told_when_that_moves() {
    let Some(network) = network() else { return };
    for ip in [V4, V6] {
        let (a, b) = (Node::start(&network, A, ip), Node::start(&network, B, ip));
        a.rights.send_replace(LEADS);
        a.until(Hold::Held);
        assert!(has(&network, A, ip) && !has(&network, B, ip), "{ip}");
        have_asked(&network, ip);
        assert_eq!(remembered(&network, ip), Some(mac(&network, A)), "{ip}");

        a.rights.send_replace(Rights { open: false, ..LEADS });
        a.until(Hold::Released);
        assert!(!has(&network, A, ip), "{ip}");
        b.rights.send_replace(LEADS);
        b.until(Hold::Held);
        // It doesn't ask: it sends nothing.
        until("told", || remembered(&network, ip) == Some(mac(&network, B)));
        assert!(has(&network, B, ip) && !has(&network, A, ip), "{ip}");
    }
}

#[test]
fn it_goes_when_the_lease_runs_out_without_anybody_saying_so() {
    let Some(network) = network() else { return };
    let node = Node::start(&network, A, V4);
    let read_until = clock::now() + 2000;
    node.rights.send_replace(Rights { read_until, ..LEADS });
    node.until(Hold::Held);
    node.until(Hold::Released);
    assert!(clock::now() >= read_until && !has(&network, A, V4));
}

#[test]
fn what_another_machine_has_is_not_taken_before_it_is_free() {
    let Some(network) = network() else { return };
    for (ip, nodad) in [(V4, ""), (V6, "nodad")] {
        network.ip(NEIGHBOUR, &format!("addr add {ip} dev {INTERFACE} {nodad}"));
        let node = Node::start(&network, A, ip);
        node.rights.send_replace(LEADS);
        let trouble = node.until(Hold::Duplicate).trouble.unwrap();
        assert!(trouble.contains(&mac(&network, NEIGHBOUR)), "{trouble}");
        assert!(!has(&network, A, ip), "{ip}");
        network.ip(NEIGHBOUR, &format!("addr del {ip} dev {INTERFACE}"));
        assert_eq!(node.until(Hold::Held).trouble, None);
        assert!(has(&network, A, ip), "{ip}");
    }
}

#[test]
fn what_an_earlier_process_left_is_removed_at_the_start() {
    let Some(network) = network() else { return };
    for ip in [V4, V6] {
        network.ip(A, &format!("addr add {ip} dev {INTERFACE}"));
        let _node = Node::start(&network, A, ip);
        until("removed", || !has(&network, A, ip));
    }
}

#[test]
fn it_is_given_up_at_the_end() {
    let Some(network) = network() else { return };
    let node = Node::start(&network, A, V4);
    node.rights.send_replace(LEADS);
    node.until(Hold::Held);
    node.stop.cancel();
    node.runtime.block_on(node.holder).unwrap();
    assert!(!has(&network, A, V4));
}

#[test]
fn the_kernel_removes_what_nobody_renews_any_more() {
    let Some(network) = network() else { return };
    for ip in [V4, V6] {
        let node = Node::start(&network, A, ip);
        node.rights.send_replace(LEADS);
        node.until(Hold::Held);
        // As if every process were killed or stood still: nothing of it runs on.
        node.runtime.shutdown_background();
        assert!(has(&network, A, ip), "{ip}");
        until("removed by the kernel", || !has(&network, A, ip));
    }
}

#[test]
fn it_is_renewed_and_what_somebody_removes_comes_back() {
    let Some(network) = network() else { return };
    let node = Node::start(&network, A, V4);
    node.rights.send_replace(LEADS);
    node.until(Hold::Held);
    network.ip(A, &format!("addr del {V4} dev {INTERFACE}"));
    until("back", || has(&network, A, V4));
}

#[test]
fn what_is_in_the_way_is_told_and_nothing_ends() {
    let Some(network) = network() else { return };
    for (interface, told) in [("eth9", "no network interface \"eth9\""), ("lo", "isn't Ethernet")] {
        let node = Node::on(&network, A, V4, interface);
        node.rights.send_replace(LEADS);
        let trouble = node.until(Hold::Failed).trouble.unwrap();
        assert!(trouble.contains(told), "{trouble}");
        assert!(!node.holder.is_finished());
    }
    // A cable that is pulled, and plugged in again.
    let node = Node::start(&network, A, V4);
    network.ip(A, &format!("link set {INTERFACE} down"));
    node.rights.send_replace(LEADS);
    node.until(Hold::Failed);
    network.ip(A, &format!("link set {INTERFACE} up"));
    node.until(Hold::Held);
}
