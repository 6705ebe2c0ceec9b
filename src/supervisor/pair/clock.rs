//! The clock that leases and promises are measured on; and the calendar, for people and for the number that a new record begins with.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::types::Millis;

/// Milliseconds since the machine was started, the time that it was suspended for included; never goes back, whatever anybody does to
/// the calendar.
#[must_use]
pub fn now() -> Millis {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has a boot-time clock since 2.6.39");
    let (seconds, nanos) = (since_boot.tv_sec().cast_unsigned(), since_boot.tv_nsec().cast_unsigned());
    seconds * 1000 + nanos / 1_000_000
}

/// The calendar's milliseconds since 1970; `None` when it is set to before that.
#[must_use]
pub fn unix_ms() -> Option<Millis> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| Millis::try_from(since.as_millis()).ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_never_goes_back() {
        let readings: Vec<_> = (0..1000).map(|_| super::now()).collect();
        assert!(readings.is_sorted());
    }
}
