//! Runs and watches what a Duet node consists of: the PostgreSQL of its own ([`postgres`]), and the rules by which a pair of nodes
//! fails over ([`fsm`], pure).

pub mod fsm;
pub mod pair;
pub mod postgres;
mod process_group;
