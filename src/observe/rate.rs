//! A bound on how often one thing is logged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets so many lines pass in each period and counts the others. Safe to use from several threads: callers that race may
/// let one or two too many pass, which does not matter.
#[derive(Debug)]
pub struct Rate {
    lines_max: u64,
    period: Duration,
    started: Instant,
    /// The period in which it was last asked, from 0.
    current: AtomicU64,
    /// How often it was asked in that period.
    asked: AtomicU64,
}

impl Rate {
    /// `lines_max` lines in each `period`.
    pub fn new(lines_max: u64, period: Duration) -> Rate {
        Rate { lines_max, period, started: Instant::now(), current: AtomicU64::new(0), asked: AtomicU64::new(0) }
    }

    /// Whether one more line may be logged now, and how many were left out in the last period that had any.
    pub fn ask(&self) -> (bool, u64) {
        self.ask_in((self.started.elapsed().as_nanos() / self.period.as_nanos().max(1)) as u64)
    }

    fn ask_in(&self, period: u64) -> (bool, u64) {
        let before = self.current.load(Ordering::Relaxed);
        let turned = period > before
            && self.current.compare_exchange(before, period, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let left_out = if turned { self.asked.swap(0, Ordering::Relaxed).saturating_sub(self.lines_max) } else { 0 };
        (self.asked.fetch_add(1, Ordering::Relaxed) < self.lines_max, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_in_each_period() {
        let rate = Rate::new(10, Duration::from_secs(1));
        let logged = |period| (0..1000).filter(|_| rate.ask_in(period).0).count() as u64;
        assert_eq!(logged(0), 10);
        assert_eq!(rate.ask_in(1), (true, 990));
        assert_eq!(logged(1), 9);
        assert_eq!(rate.ask_in(5), (true, 991));
        assert_eq!(rate.ask_in(6), (true, 0));
    }
}
