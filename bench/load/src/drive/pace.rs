//! When requests are due, and the stretches of time that are counted apart.

use std::time::{Duration, Instant};

pub const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since the start of the run.
#[derive(Debug, Clone, Copy)]
pub struct Clock(pub Instant);

impl Clock {
    pub fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// When requests are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As soon as the one before on the same connection is answered.
    Closed,
    /// At a fixed rate, whether or not the ones before are answered.
    Open(Schedule),
}

/// Due times of one worker: evenly spread, and interleaved with those of the others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Requests a second of all workers of the lane together.
    per_s: f64,
    workers: u64,
    /// The number of the next one among those of all workers.
    next: u64,
}

impl Schedule {
    pub fn new(per_s: f64, worker: u64, workers: u64) -> Schedule {
        Schedule { per_s, workers, next: worker }
    }

    /// When the next request is due. Computed from its number, so that no error adds up.
    pub fn due(&self) -> u64 {
        (self.next as f64 * (SECOND as f64 / self.per_s)) as u64
    }

    pub fn advance(&mut self) {
        self.next += self.workers;
    }
}

/// The stretches: seconds of warm-up, the last of which may be short, then seconds that count.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    warm_up: u64,
}

impl Intervals {
    pub fn new(warm_up: Duration) -> Intervals {
        Intervals { warm_up: warm_up.as_nanos() as u64 }
    }

    fn warming(self) -> u64 {
        self.warm_up.div_ceil(SECOND)
    }

    pub fn is_warm_up(self, index: u64) -> bool {
        index < self.warming()
    }

    pub fn end(self, index: u64) -> u64 {
        let warming = self.warming();
        if index < warming {
            ((index + 1) * SECOND).min(self.warm_up)
        } else {
            self.warm_up + (index + 1 - warming) * SECOND
        }
    }

    pub fn start(self, index: u64) -> u64 {
        if index == 0 { 0 } else { self.end(index - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_are_even_and_shared_among_workers() {
        let mut all = Vec::new();
        for worker in 0..3 {
            let mut schedule = Schedule::new(30_000.0, worker, 3);
            for _ in 0..100_000 {
                all.push(schedule.due());
                schedule.advance();
            }
        }
        all.sort_unstable();
        assert_eq!((all[0], all[30_000], all[299_999]), (0, SECOND, 9_999_966_666));
        assert!(all.windows(2).all(|pair| (33_332..=33_335).contains(&(pair[1] - pair[0]))));
    }

    #[test]
    fn the_warm_up_ends_where_it_should() {
        let intervals = Intervals::new(Duration::from_millis(2500));
        let ends: Vec<_> =
            (0..5).map(|index| (intervals.end(index) / 1_000_000, intervals.is_warm_up(index))).collect();
        assert_eq!(ends, [(1000, true), (2000, true), (2500, true), (3500, false), (4500, false)]);
        let none = Intervals::new(Duration::ZERO);
        assert_eq!((none.start(0), none.end(0), none.is_warm_up(0)), (0, SECOND, false));
    }
}
