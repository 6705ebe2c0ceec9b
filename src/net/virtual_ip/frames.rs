//! ARP and IPv6 neighbour discovery, as far as a moving address needs them: whole Ethernet frames.
//!
//! A probe asks for an address without claiming it (RFC 5227 section 1.1; RFC 4862 section 5.4.2). An announcement overwrites what the
//! neighbours remember (RFC 5227 section 3; RFC 4861 section 7.2.6).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET_BYTES: usize = 14;
const BROADCAST: Mac = Mac([0xff; 6]);
/// Ethernet, IPv4, and their addresses' lengths.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
/// An announcement is a request, too: RFC 5227 section 3 says why.
const ARP_REQUEST: [u8; 2] = [0, 1];
const IPV6_BYTES: usize = 40;
const ICMPV6: u8 = 58;
/// Neighbour discovery that came from another network has less.
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// What was remembered is to be overwritten.
const OVERRIDE: u8 = 0x20;
const OPTION_TARGET_MAC: [u8; 2] = [2, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The address of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// In which frames neighbours are asked for `address`.
pub(super) fn ethertype(address: IpAddr) -> u16 {
    if address.is_ipv4() { ETHERTYPE_ARP } else { ETHERTYPE_IPV6 }
}

/// Asks who has `address`.
pub(super) fn probe(address: IpAddr, own: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(own, Ipv4Addr::UNSPECIFIED, address),
        IpAddr::V6(address) => {
            let mut solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
            solicited[13..].copy_from_slice(&address.octets()[13..]);
            neighbour(own, Ipv6Addr::UNSPECIFIED, solicited.into(), [SOLICITATION, 0], address, &[])
        }
    }
}

/// Says that `address` is at `own`.
pub(super) fn announcement(address: IpAddr, own: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(own, address, address),
        IpAddr::V6(address) => {
            let option = [&OPTION_TARGET_MAC[..], &own.0].concat();
            neighbour(own, address, ALL_NODES, [ADVERTISEMENT, OVERRIDE], address, &option)
        }
    }
}

/// Who other than `own` has `address`, or wants to take it, as this frame says.
pub(super) fn claimant(frame: &[u8], address: IpAddr, own: Mac) -> Option<Mac> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
    if ethernet[12..] != ethertype(address).to_be_bytes() {
        return None;
    }
    let mac = match address {
        IpAddr::V4(address) => arp_claimant(packet, address)?,
        IpAddr::V6(address) if neighbour_claims(packet, address) => Mac(ethernet[6..12].try_into().ok()?),
        IpAddr::V6(_) => return None,
    };
    (mac != own).then_some(mac)
}

fn ethernet(to: Mac, from: Mac, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), packet].concat()
}

fn arp(own: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let packet = [&ARP_KIND[..], &ARP_REQUEST, &own.0, &sender.octets(), &[0; 6], &target.octets()].concat();
    ethernet(BROADCAST, own, ETHERTYPE_ARP, &packet)
}

fn arp_claimant(packet: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    let (mac, sender, target) = (&packet[8..14], &packet[14..18], &packet[24..28]);
    let probes = sender == [0; 4] && target == address.octets();
    (packet[..6] == ARP_KIND && (sender == address.octets() || probes)).then_some(Mac(mac.try_into().ok()?))
}

fn neighbour(own: Mac, from: Ipv6Addr, to: Ipv6Addr, [kind, flags]: [u8; 2], target: Ipv6Addr, option: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0, flags, 0, 0, 0], &target.octets()[..], option].concat();
    let length = u16::try_from(message.len()).expect("a few dozen bytes").to_be_bytes();
    let sum = checksum(&[&from.octets()[..], &to.octets(), &[0, 0], &length, &[0, 0, 0, ICMPV6], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let group = to.octets();
    let group = Mac([0x33, 0x33, group[12], group[13], group[14], group[15]]);
    let header = [&[0x60, 0, 0, 0], &length[..], &[ICMPV6, HOP_LIMIT], &from.octets(), &to.octets()].concat();
    ethernet(group, own, ETHERTYPE_IPV6, &[header, message].concat())
}

fn neighbour_claims(packet: &[u8], address: Ipv6Addr) -> bool {
    let Some((header, message)) = packet.split_at_checked(IPV6_BYTES) else { return false };
    let from_here = header[6] == ICMPV6 && header[7] == HOP_LIMIT;
    let probes = header[8..24] == [0; 16];
    let Some(message) = message.first_chunk::<24>().filter(|_| from_here) else { return false };
    message[8..] == address.octets() && (message[0] == ADVERTISEMENT || message[0] == SOLICITATION && probes)
}

/// The internet's checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("two foldings leave 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const ADDRESSES: [&str; 2] = ["10.0.0.10", "fd00::10"];
    const OTHERS: [&str; 2] = ["10.0.0.11", "fd00::11"];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_claim_is_an_answer_an_announcement_or_another_s_probe() {
        for (address, other) in ADDRESSES.into_iter().zip(OTHERS) {
            for frame in [probe(ip(address), OTHER), announcement(ip(address), OTHER)] {
                assert_eq!(claimant(&frame, ip(address), OWN), Some(OTHER), "{address}");
                assert_eq!(claimant(&frame, ip(address), OTHER), None, "{address}: one's own");
                assert_eq!(claimant(&frame, ip(other), OWN), None, "{address} isn't {other}");
                for length in 0..42 {
                    assert_eq!(claimant(&frame[..length.min(frame.len())], ip(address), OWN), None, "{address}: cut at {length}");
                }
            }
        }
    }

    #[test]
    fn a_question_of_one_who_has_another_address_is_no_claim() {
        let (Ok(sender), Ok(target)) = ("10.0.0.1".parse(), "10.0.0.10".parse()) else { unreachable!() };
        assert_eq!(claimant(&arp(OTHER, sender, target), ip("10.0.0.10"), OWN), None);
        let (from, target) = ("fd00::1".parse().unwrap(), "fd00::10".parse().unwrap());
        let question = neighbour(OTHER, from, target, [SOLICITATION, 0], target, &[]);
        assert_eq!(claimant(&question, ip("fd00::10"), OWN), None);
    }

    #[test]
    fn frames_are_those_of_the_rfcs() {
        let arp = probe(ip("10.0.0.10"), OWN);
        assert_eq!(arp[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!(arp[14..], [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 10]);
        let solicitation = probe(ip("fd00::12:3456"), OWN);
        assert_eq!(solicitation[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56], "the group of those who may have it");
        // A sum over what carries its own checksum is zero.
        for frame in [solicitation, announcement(ip("fd00::10"), OWN)] {
            let (header, message) = frame[14..].split_at(IPV6_BYTES);
            let length = u16::try_from(message.len()).unwrap().to_be_bytes();
            assert_eq!(header[4..6], length);
            assert_eq!(checksum(&[&header[8..40], &[0, 0], &length, &[0, 0, 0, ICMPV6], message].concat()), 0);
        }
    }
}
