//! What drives the pair's state machine ([`fsm`](super::fsm)): time, the peer, the witness, PostgreSQL and the node's disk are its
//! events, and what it asks for is done here.
//!
//! | file | what it is |
//! |---|---|
//! | `driver` | the loop: an event, a step, its actions in their order |
//! | `gate` | what the rest of the process may do at this moment: acknowledge, read, lead |
//! | `log` | the store's log behind the gate: no session for writing before the gate is open |
//! | `record` | the node's record, durable before whatever rests on it |
//! | `link`, `datagram` | heartbeats: authenticated datagrams, keyed over the peer's gRPC port |
//! | `replication` | the follower's memory follows the leader's: both ends of that stream |
//! | `history` | what happened when, for people; each failover by phase |
//! | `takeover_clock` | how long a takeover took, by phase |
//! | `status` | what `duet status` shows |
//! | `metrics` | the same as figures, on `/metrics` |
//! | `hooks` | the operator's program, told of each change of this node's part |
//! | `fence` | the operator's program that puts the peer's machine off, in the place of a witness |
//! | `program` | running either |
//! | `drill` | a node that is killed for a drill, and back |
//! | `virtual_ip` | an address that is where the leader is |
//! | `admin` | what operators ask of a node |
//! | `clock` | the boot-time clock |
//!
//! Invariants: the gate is narrowed before any action is done and widened only after all of them; an action that rests on the record
//! waits until it is durable, and a record that can't be written ends the process.
//!
//! It deliberately doesn't decide anything: `fsm::step` does.

pub mod admin;
pub mod clock;
mod datagram;
pub mod drill;
pub mod driver;
pub mod fence;
pub mod gate;
pub mod history;
pub mod hooks;
pub mod link;
pub mod log;
pub mod metrics;
mod program;
pub mod record;
pub mod replication;
pub mod status;
mod takeover_clock;
pub mod virtual_ip;
