//! The small vocabulary that every other module shares: revisions, key ranges, lease ids and time.
//!
//! Pure: no clock, no socket, no random source. Names and meanings are etcd's.

mod key_range;

pub use key_range::KeyRange;

/// A main revision: the number of a transaction that changed something. A fresh store is at 1.
pub type Revision = i64;

/// A lease's id as clients see it. 0 means "no lease"; negative ids are legal.
pub type LeaseId = i64;

/// The number of a leadership: it grows by one each time a writer takes over. Reported to clients as etcd's raft term.
pub type Epoch = i64;

/// Milliseconds on a clock that never goes back (the lessor's and the deadlines' time, not the calendar's).
pub type Millis = u64;

/// One change's place in history: the transaction's revision and the change's position within it, as etcd's `(main, sub)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rev {
    /// The transaction's revision.
    pub main: Revision,
    /// The change's position in the transaction, from 0.
    pub sub: i32,
}

impl Rev {
    /// The place `(main, sub)`.
    pub const fn new(main: Revision, sub: i32) -> Self {
        Self { main, sub }
    }
}

/// A monotonic clock, passed in so that pure code and simulations decide what time it is.
pub trait Clock: Send + Sync {
    /// Milliseconds since some fixed moment; never goes back.
    fn now(&self) -> Millis;
}
