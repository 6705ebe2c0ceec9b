//! An address that moves between machines of one network: adding it to an interface, removing it, asking whether somebody else has it, and
//! telling the neighbours where it is now.
//!
//! | file | what it is |
//! |---|---|
//! | `frames` | ARP (RFC 826, 5227) and IPv6 neighbour discovery (RFC 4861, 4862) as bytes |
//!
//! Invariant: the address is given a lifetime, after which the kernel removes it by itself. So it goes away even if every process of Duet's on
//! this machine is killed or stands still; whoever holds it renews it.
//!
//! It deliberately knows nothing of who may hold the address: `supervisor/pair/virtual_ip` does.

mod frames;

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

pub use frames::Mac;

/// The kernel answers before the request returns; this only bounds what can't happen.
const KERNEL_PATIENCE: Duration = Duration::from_secs(5);
/// Longer than any answer of the kernel's to a request about one address, and than the head of any frame that is looked at.
const BUFFER: usize = 4096;
/// The interfaces that ARP and neighbour discovery are spoken on; bonds, bridges and VLANs are of this type, too.
const ETHERNET: u16 = libc::ARPHRD_ETHER;
/// In place of an EtherType: such a socket only sends.
const LISTENS_TO_NOTHING: u16 = 0;

/// An address and the interface that it is added to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualIp {
    /// The address.
    pub address: IpAddr,
    /// Of the address' network.
    pub prefix_len: u8,
    /// The interface's name.
    pub interface: String,
}

impl fmt::Display for VirtualIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl VirtualIp {
    /// Adds the address, for `lifetime` (whole seconds); one that is there already gets the new lifetime.
    ///
    /// # Errors
    /// There is no such interface, this process may not do it (CAP_NET_ADMIN), or the system's other reasons.
    pub fn assign(&self, lifetime: Duration) -> io::Result<()> {
        let mut life = CacheInfo::default();
        life.ifa_valid = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        // "Deprecated" from the start: no connection of this machine's own begins at an address that may leave it.
        life.ifa_preferred = 0;
        let mut message = self.message()?;
        message.attributes.extend([
            AddressAttribute::Address(self.address),
            AddressAttribute::CacheInfo(life),
            // Whether somebody else has it was asked before.
            AddressAttribute::Flags(AddressFlags::Nodad),
        ]);
        request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes the address; whether it was there.
    ///
    /// # Errors
    /// As [`VirtualIp::assign`].
    pub fn remove(&self) -> io::Result<bool> {
        let mut message = self.message()?;
        if self.address.is_ipv6() {
            message.attributes.push(AddressAttribute::Address(self.address));
        }
        match request(RouteNetlinkMessage::DelAddress(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn message(&self) -> io::Result<AddressMessage> {
        let mut message = AddressMessage::default();
        message.header.family = if self.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = self.prefix_len;
        message.header.index = nix::net::if_::if_nametoindex(self.interface.as_str()).map_err(|_| self.no_interface())?;
        if self.address.is_ipv4() {
            message.attributes.push(AddressAttribute::Local(self.address));
        }
        Ok(message)
    }

    fn no_interface(&self) -> io::Error {
        io::Error::new(ErrorKind::NotFound, format!("there is no network interface \"{}\"", self.interface))
    }

    /// Asks the interface's neighbours `times` who has the address, and listens for `patience` each time: who answers first, or asks for it
    /// at the same time. Blocks that long.
    ///
    /// # Errors
    /// There is no such interface, it is down or isn't Ethernet, this process may not do it (CAP_NET_RAW), or the system's other reasons.
    pub fn rival(&self, times: u32, patience: Duration) -> io::Result<Option<Mac>> {
        let (socket, own) = self.packet_socket(frames::ethertype(self.address))?;
        let mut frame = [0; BUFFER];
        for _ in 0..times {
            socket.send(&frames::probe(self.address, own))?;
            let asked = Instant::now();
            while let Some(left) = patience.checked_sub(asked.elapsed()).filter(|left| !left.is_zero()) {
                socket.set_read_timeout(Some(left))?;
                match (&socket).read(&mut frame) {
                    Ok(length) => match frames::claimant(&frame[..length], self.address, own) {
                        None => {}
                        rival => return Ok(rival),
                    },
                    Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }

    /// Tells all neighbours that the address is here.
    ///
    /// # Errors
    /// As [`VirtualIp::rival`].
    pub fn announce(&self) -> io::Result<()> {
        let (socket, own) = self.packet_socket(LISTENS_TO_NOTHING)?;
        socket.send(&frames::announcement(self.address, own)).map(drop)
    }

    /// A socket for whole frames on the interface, and the interface's own address.
    fn packet_socket(&self, ethertype: u16) -> io::Result<(Socket, Mac)> {
        let link = nix::ifaddrs::getifaddrs()?
            .filter(|one| one.interface_name == self.interface)
            .find_map(|one| one.address?.as_link_addr().copied())
            .ok_or_else(|| self.no_interface())?;
        let own = link.addr().filter(|_| link.hatype() == ETHERNET).ok_or_else(|| {
            let why = format!("the interface \"{}\" isn't Ethernet: it has no neighbours", self.interface);
            io::Error::new(ErrorKind::Unsupported, why)
        })?;
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        // The interface's own address names no protocol, so that the socket keeps its.
        nix::sys::socket::bind(socket.as_raw_fd(), &link)?;
        Ok((socket, Mac(own)))
    }
}

/// Asks the kernel for one change and waits for its answer.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(KERNEL_PATIENCE))?;
    (&socket).write_all(&buffer)?;
    let mut answer = [0; BUFFER];
    let length = (&socket).read(&mut answer)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length]).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) => {
            error.code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().saturating_neg())))
        }
        other => Err(io::Error::other(format!("the kernel answered a change of an address with {other:?}"))),
    }
}
