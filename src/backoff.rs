//! How long to wait before something is tried again: each time twice as long, and never exactly as long as others wait
//! that failed at the same moment.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// More doublings than any longest wait allows.
const DOUBLINGS_MAX: u32 = 16;

/// The waits between tries of one thing.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    /// Since it last went well.
    failures: u32,
    dice: u64,
}

impl Backoff {
    /// Waits from `min` on, doubling up to `max`. The seed determines how they are spread.
    pub fn new(min: Duration, max: Duration, seed: u64) -> Backoff {
        Backoff { min, max, failures: 0, dice: seed }
    }

    /// It went well.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Whether it has gone well since it last failed.
    pub fn is_reset(&self) -> bool {
        self.failures == 0
    }

    /// It failed: how long to wait, between half of the wait that is due and all of it.
    pub fn next_wait(&mut self) -> Duration {
        let doublings = self.failures.min(DOUBLINGS_MAX);
        self.failures = self.failures.saturating_add(1);
        // Knuth's linear congruential generator; its upper half is good enough for this.
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let spread = (self.dice >> 32) as f64 / f64::from(u32::MAX);
        (self.min * (1 << doublings)).min(self.max).mul_f64(0.5 + 0.5 * spread)
    }
}

/// A seed that no other process, and nothing else in this one, has.
pub fn seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn waits_double_and_are_spread() {
        let mut backoff = Backoff::new(MIN, MAX, 1);
        for due_ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let due = Duration::from_millis(due_ms);
            let wait = backoff.next_wait();
            assert!(due / 2 <= wait && wait <= due, "{wait:?} for {due:?}");
        }
        (0..100).for_each(|_| assert!(backoff.next_wait() <= MAX));
        backoff.reset();
        assert!(backoff.is_reset() && backoff.next_wait() <= MIN && !backoff.is_reset());
    }

    #[test]
    fn those_who_fail_together_come_back_apart() {
        let waits: std::collections::BTreeSet<Duration> =
            (0..100).map(|_| Backoff::new(MIN, MAX, seed()).next_wait()).collect();
        assert!(waits.len() > 90, "{waits:?}");
    }
}
