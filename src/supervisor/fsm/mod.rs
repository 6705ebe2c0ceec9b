//! The pair's state machine: `step(&State, Event, now) -> (State, Vec<Action>)`, pure, one function for production, the model and
//! the simulation.
//!
//! A durable register decides who may go on alone: `{version, epoch, owner, mode}`. Writes are safe without any clock: with the peer
//! in `synchronous_standby_names`, an old primary can't acknowledge anything once the peer has stopped receiving. Changing the
//! register comes before clearing that setting, always; the lease, granted by the only node that could take over, guards reads.
//!
//! | file | what it is |
//! |---|---|
//! | `register` | the register, and what a node keeps on its disk |
//! | `event` | events, heartbeats, actions |
//! | `state` | what a node knows; what it may acknowledge and read |
//! | `step` | what every event does first, whatever the node's part |
//! | `swap` | compare-and-swaps: sent again until they are settled |
//! | `boot`, `lead`, `follow` | what a node does in each of its parts |
//! | `fence` | a fencing device in the place of a witness |
//! | `handover` | giving the leadership away while both nodes are there |
//! | `timing` | how long each thing may take |
//!
//! Invariants (proved by `tests/pair_model` and `tests/pair_simulation`, which also show that each rule is needed):
//! - At most one node acknowledges, and whoever opens has everything that was ever acknowledged.
//! - Nothing that was acknowledged before a read began is missing in it.
//! - What goes to the disk first goes to the disk first: [`Action::Persist`] precedes whatever rests on it.
//!
//! It deliberately doesn't: know PostgreSQL's commands, addresses, certificates, or how long a thing really took.

mod boot;
mod event;
mod fence;
mod follow;
mod handover;
mod lead;
mod register;
mod state;
mod step;
mod swap;
mod timing;

pub use event::{Action, Event, Goal, Grant, Heartbeat, Note, Postgres, SwapOutcome, Sync, Wish};
pub use register::{Answer, Intent, Mode, NodeId, Record, Register};
pub use state::{Handover, Peer, Pending, Phase, Setup, State, Third};
pub use step::step;
pub use timing::Timing;
