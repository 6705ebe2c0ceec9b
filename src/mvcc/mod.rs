//! The multi-version store: key index, ranges, transactions, compaction, hash.
//!
//! Pure: a function of its inputs. [`Store::apply`] is the only thing that changes the logical state; the live path, recovery, a
//! follower and simulations all call it, so a recovered store hashes equal to the live one. Values may be absent from memory
//! ([`Value::Evicted`]); whoever needs one gets [`EvalError::NeedValues`], loads them and evaluates again.
//!
//! Nothing here waits, logs or knows about clients.

mod digest;
mod event;
mod hash;
mod operations;
mod overlay;
mod range;
mod store;
mod txn;
mod view;

pub use digest::digest;
pub use event::{Event, RevisionEvents};
pub use hash::{HashScope, HashStep};
pub use operations::Operations;
pub use overlay::Overlay;
pub use range::{CountMode, RangeScan, has_revision_filters, key_value, range};
pub use store::{Store, StoreOptions, SweepStep};
pub use txn::{Evaluated, Evaluator, LeaseLookup, is_read_only, is_serializable};
pub use view::{EvalError, Layered, Loaded, ReadView, Value, Version};
