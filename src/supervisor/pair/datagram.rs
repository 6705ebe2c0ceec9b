//! Heartbeats as datagrams: sealed with a key that the sender gave the receiver over mutual TLS, numbered, and refused when they are old.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `DHB1` |
//! | 8 | the key's name |
//! | 8 | the datagram's number, from 1 on; also the nonce |
//! | rest | a `duetpb.Heartbeat`, sealed with ChaCha20-Poly1305; the header is authenticated with it |

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use prost::Message;

use crate::proto::duetpb::Heartbeat as WireHeartbeat;
use crate::proto::duetpb::heartbeat as wire;
use crate::supervisor::fsm::{Grant, Heartbeat, Mode, NodeId, Register};

/// No datagram is longer: it fits into one packet everywhere.
pub const DATAGRAM_BYTES_MAX: usize = 1200;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
const MAGIC: &[u8; 4] = b"DHB1";
const HEADER_BYTES: usize = 20;

/// The sender's half of a key.
pub struct Sealer {
    id: u64,
    key: LessSafeKey,
    sent: u64,
}

impl Sealer {
    /// For the key called `id`.
    pub fn new(id: u64, key: &[u8; KEY_BYTES]) -> Self {
        Self { id, key: aead(key), sent: 0 }
    }

    /// The next datagram.
    pub fn seal(&mut self, heartbeat: &Heartbeat) -> Vec<u8> {
        self.sent += 1;
        let header = header(self.id, self.sent);
        let mut body = WireHeartbeat::from(heartbeat).encode_to_vec();
        let sealed = self.key.seal_in_place_append_tag(nonce(self.sent), Aad::from(header), &mut body);
        sealed.expect("a heartbeat is far shorter than what a key may seal at once");
        [&header[..], &body].concat()
    }
}

/// The receiver's half of a key.
pub struct Opener {
    /// The key's name.
    pub id: u64,
    key: LessSafeKey,
    newest: u64,
}

impl Opener {
    /// For the key called `id`.
    pub fn new(id: u64, key: &[u8; KEY_BYTES]) -> Self {
        Self { id, key: aead(key), newest: 0 }
    }

    /// What `datagram` says; `None` for one that this key didn't seal, that was changed, or that isn't newer than all before it.
    pub fn open(&mut self, datagram: &[u8]) -> Option<Heartbeat> {
        let (header, body) = datagram.split_at_checked(HEADER_BYTES)?;
        let number = u64::from_be_bytes(header[12..].try_into().ok()?);
        if key_of(datagram)? != self.id || number <= self.newest {
            return None;
        }
        let mut body = body.to_vec();
        let opened = self.key.open_in_place(nonce(number), Aad::from(header), &mut body).ok()?;
        let heartbeat = Heartbeat::try_from(WireHeartbeat::decode(&*opened).ok()?).ok()?;
        self.newest = number;
        Some(heartbeat)
    }
}

/// The name of the key that sealed a datagram.
pub fn key_of(datagram: &[u8]) -> Option<u64> {
    let (header, _) = datagram.split_at_checked(HEADER_BYTES)?;
    let id = header.strip_prefix(MAGIC)?.first_chunk()?;
    Some(u64::from_be_bytes(*id))
}

fn header(id: u64, number: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(MAGIC);
    header[4..12].copy_from_slice(&id.to_be_bytes());
    header[12..].copy_from_slice(&number.to_be_bytes());
    header
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn aead(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has ChaCha20-Poly1305's length"))
}

fn node(node: NodeId) -> wire::Node {
    match node {
        NodeId::A => wire::Node::A,
        NodeId::B => wire::Node::B,
    }
}

fn node_of(wire: i32) -> Result<NodeId, ()> {
    match wire::Node::try_from(wire) {
        Ok(wire::Node::A) => Ok(NodeId::A),
        Ok(wire::Node::B) => Ok(NodeId::B),
        _ => Err(()),
    }
}

impl From<Register> for wire::Register {
    fn from(register: Register) -> Self {
        let mode = match register.mode {
            Mode::Pair => wire::Mode::Pair,
            Mode::Solo => wire::Mode::Solo,
            Mode::Asym => wire::Mode::Asym,
        };
        Self { version: register.version, epoch: register.epoch, owner: node(register.owner).into(), mode: mode.into() }
    }
}

impl TryFrom<wire::Register> for Register {
    type Error = ();

    fn try_from(wire: wire::Register) -> Result<Self, ()> {
        let mode = match wire::Mode::try_from(wire.mode) {
            Ok(wire::Mode::Pair) => Mode::Pair,
            Ok(wire::Mode::Solo) => Mode::Solo,
            Ok(wire::Mode::Asym) => Mode::Asym,
            _ => return Err(()),
        };
        Ok(Self { version: wire.version, epoch: wire.epoch, owner: node_of(wire.owner)?, mode })
    }
}

impl From<&Heartbeat> for WireHeartbeat {
    fn from(heartbeat: &Heartbeat) -> Self {
        Self {
            sender: node(heartbeat.from).into(),
            process: heartbeat.process,
            sent_at: heartbeat.sent_at,
            seen: heartbeat.seen.map(wire::Register::from),
            instance: heartbeat.instance,
            leading: heartbeat.leading,
            released: heartbeat.released,
            handing_over: heartbeat.handing_over,
            grant: heartbeat.grant.map(|Grant { process, sent_at, lasts }| wire::Grant { process, sent_at, lasts }),
            proposal: heartbeat.proposal.map(wire::Register::from),
            ready: heartbeat.ready,
            short_of_disk: heartbeat.short_of_disk,
            hears: heartbeat.hears,
            fences: heartbeat.fences,
            hears_witness: heartbeat.hears_witness,
            paused: heartbeat.paused,
            able: heartbeat.able,
        }
    }
}

impl TryFrom<WireHeartbeat> for Heartbeat {
    type Error = ();

    fn try_from(wire: WireHeartbeat) -> Result<Self, ()> {
        Ok(Self {
            from: node_of(wire.sender)?,
            process: wire.process,
            sent_at: wire.sent_at,
            seen: wire.seen.map(Register::try_from).transpose()?,
            instance: wire.instance,
            leading: wire.leading,
            released: wire.released,
            handing_over: wire.handing_over,
            grant: wire.grant.map(|wire::Grant { process, sent_at, lasts }| Grant { process, sent_at, lasts }),
            proposal: wire.proposal.map(Register::try_from).transpose()?,
            ready: wire.ready,
            short_of_disk: wire.short_of_disk,
            hears: wire.hears,
            fences: wire.fences,
            hears_witness: wire.hears_witness,
            paused: wire.paused,
            able: wire.able,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];

    /// One with every field set.
    pub(in crate::supervisor::pair) fn heartbeat() -> Heartbeat {
        let seen = Register { version: u64::MAX, epoch: i64::MAX, owner: NodeId::B, mode: Mode::Asym };
        Heartbeat {
            from: NodeId::A,
            process: 1_800_000_000_000,
            sent_at: u64::MAX,
            seen: Some(seen),
            instance: Some(0),
            leading: true,
            released: false,
            handing_over: true,
            grant: Some(Grant { process: 3, sent_at: 4, lasts: 5 }),
            proposal: Some(Register { mode: Mode::Solo, ..seen }),
            ready: true,
            short_of_disk: true,
            hears: Some(1 << 40),
            fences: true,
            hears_witness: true,
            paused: true,
            able: true,
        }
    }

    #[test]
    fn what_is_sealed_is_opened_once() {
        let (mut sealer, mut opener) = (Sealer::new(5, &KEY), Opener::new(5, &KEY));
        let first = sealer.seal(&heartbeat());
        let nothing = Heartbeat { seen: None, instance: None, grant: None, proposal: None, ..heartbeat() };
        let second = sealer.seal(&nothing);
        assert!(first.len() <= DATAGRAM_BYTES_MAX);
        assert_eq!(key_of(&first), Some(5));
        assert_eq!(opener.open(&first), Some(heartbeat()));
        assert_eq!(opener.open(&first), None, "a copy of it");
        assert_eq!(opener.open(&second), Some(nothing));
        assert_eq!(opener.open(&first), None, "one that somebody kept");
    }

    #[test]
    fn every_changed_byte_and_every_other_key_is_noticed() {
        let whole = Sealer::new(5, &KEY).seal(&heartbeat());
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert_eq!(Opener::new(5, &KEY).open(&changed), None, "byte {at}");
        }
        assert_eq!(Opener::new(5, &[8; KEY_BYTES]).open(&whole), None);
        assert_eq!(Opener::new(6, &KEY).open(&whole), None);
        for length in 0..whole.len() {
            assert_eq!(Opener::new(5, &KEY).open(&whole[..length]), None, "{length} bytes");
        }
    }
}
