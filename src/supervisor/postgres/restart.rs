//! How often, and how soon, a PostgreSQL that ended by itself is started again.

use std::{collections::VecDeque, time::Duration};

/// At most `restarts_max` restarts within `window`, the first at once, the next after `delay_min`, doubling up to
/// `delay_max`.
#[derive(Debug, Clone)]
pub struct RestartBudget {
    restarts_max: usize,
    window: Duration,
    delay_min: Duration,
    delay_max: Duration,
    recent: VecDeque<Duration>,
}

impl Default for RestartBudget {
    /// Five in a minute: a crash now and then is mended in a moment, a crash loop is given up and reported.
    fn default() -> Self {
        Self::new(5, Duration::from_secs(60), Duration::from_millis(50), Duration::from_secs(5))
    }
}

impl RestartBudget {
    /// See the type.
    pub fn new(restarts_max: usize, window: Duration, delay_min: Duration, delay_max: Duration) -> Self {
        Self { restarts_max, window, delay_min, delay_max, recent: VecDeque::new() }
    }

    /// Asks for a restart at `now` (since any fixed moment): how long to wait before it, or None when spent.
    pub fn spend(&mut self, now: Duration) -> Option<Duration> {
        while self.recent.front().is_some_and(|at| now.saturating_sub(*at) >= self.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.restarts_max {
            return None;
        }
        let doublings = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        self.recent.push_back(now);
        if doublings == 0 {
            return Some(Duration::ZERO);
        }
        let factor = 2_u32.saturating_pow(doublings - 1);
        Some(self.delay_min.saturating_mul(factor).min(self.delay_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_later_ones_back_off_and_a_loop_is_given_up() {
        let ms = Duration::from_millis;
        let mut budget = RestartBudget::new(4, ms(1000), ms(50), ms(150));
        assert_eq!(budget.spend(ms(0)), Some(ms(0)));
        assert_eq!(budget.spend(ms(10)), Some(ms(50)));
        assert_eq!(budget.spend(ms(20)), Some(ms(100)));
        assert_eq!(budget.spend(ms(30)), Some(ms(150)));
        assert_eq!(budget.spend(ms(40)), None);
        // The first has left the window by now.
        assert_eq!(budget.spend(ms(1000)), Some(ms(150)));
        assert_eq!(budget.spend(ms(1001)), None);
        assert_eq!(budget.spend(ms(9000)), Some(ms(0)));
    }
}
