//! The lessor's clock: it goes on only while this process serves, so that leases don't run out while nobody could renew them.

use std::time::Instant;

use parking_lot::Mutex;

use crate::types::Millis;

/// A stopwatch that is set to the stored time at takeover. Monotonic.
#[derive(Debug, Default)]
pub struct LessorClock {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    base: Millis,
    since: Option<Instant>,
}

impl LessorClock {
    /// Milliseconds on the lessor's clock.
    pub fn now(&self) -> Millis {
        let state = self.state.lock();
        let running = state.since.map_or(0, |since| Millis::try_from(since.elapsed().as_millis()).unwrap_or(Millis::MAX));
        state.base.saturating_add(running)
    }

    /// Stands still at `stored`, or where this process had stopped it if that is later: no lease gets its time twice.
    pub fn set(&self, stored: Millis) {
        let now = self.now();
        *self.state.lock() = State { base: now.max(stored), since: None };
    }

    /// Stands still at `stored`, whatever this process had counted: what is stored is on somebody else's clock.
    pub fn reset(&self, stored: Millis) {
        *self.state.lock() = State { base: stored, since: None };
    }

    /// Goes on.
    pub fn start(&self) {
        let now = self.now();
        *self.state.lock() = State { base: now, since: Some(Instant::now()) };
    }

    /// Stands still.
    pub fn pause(&self) {
        let now = self.now();
        *self.state.lock() = State { base: now, since: None };
    }
}
