//! Watch: who is told of which change.
//!
//! | part | what it is |
//! |---|---|
//! | [`hub`] P | streams and watchers, synced and lagging; what is queued for whom |
//! | [`interval`] P | which watchers watch a key |
//! | `watcher`, `queue`, `replay` P | one watcher, one stream's queue, one step of catching up |
//! | `counts` P | events on their last way, for metrics |
//! | `wire` | queued responses as etcd's messages, fragments |
//! | [`stream`] | the I/O half: tasks, waiting, reading history |
//!
//! P parts are pure. The engine publishes through [`WatchHub::publish`] and implements [`History`]; the façade opens a stream per RPC
//! with [`WatchHub::open`].

mod counts;
pub mod hub;
#[cfg(test)]
mod hub_tests;
pub mod interval;
mod queue;
mod replay;
pub mod stream;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
mod watcher;
mod wire;

pub use counts::Sent;
pub use hub::{Hub, HubStats, Limits};
pub use queue::{Item, Picked};
pub use replay::{Replay, ReplayPlan};
pub use stream::{Ended, History, HistoryError, WatchConfig, WatchHub, WatchRequests, WatchResponses};
pub use watcher::{WatchId, WatchOptions};
