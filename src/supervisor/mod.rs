//! Runs and watches what a Duet node consists of. Today that is the PostgreSQL of its own ([`postgres`]).

pub mod postgres;
