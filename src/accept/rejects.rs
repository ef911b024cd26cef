//! Where rejected events go. None is dropped in silence: each passes here with its raw bytes and the reason.
//!
//! [`LogRejects`] writes them to the log at a bounded rate. A sink that keeps them all, in a topic of their own, takes
//! the same [`Rejected`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::kinds::{Rejection, excerpt};

/// An event, or a line that is none, which was not taken.
#[derive(Debug, Clone, Copy)]
pub struct Rejected<'r> {
    /// The kind of event that it was sent as.
    pub kind: &'static str,
    /// Who sent it.
    pub peer: SocketAddr,
    /// Its line in the body, or its index in the array; both count from 1.
    pub line: u64,
    /// What was sent, byte by byte.
    pub raw: &'r [u8],
    /// Why it was not taken.
    pub reason: &'r Rejection,
}

/// What is done with rejected events. Called in a coroutine, for each of possibly millions in one body: it must not
/// block, and bounds its own work and memory. A request that is answered 503 and sent again passes its rejects again.
pub trait RejectSink: Send + Sync + 'static {
    /// Takes one.
    fn reject(&self, rejected: &Rejected<'_>);
}

/// Rejected events that are logged each second; the others are counted, and their number is logged.
const LOGGED_PER_SECOND_MAX: u64 = 10;

/// Writes rejected events to the log, a few each second.
#[derive(Debug)]
pub struct LogRejects {
    started: Instant,
    rate: Rate,
}

impl Default for LogRejects {
    fn default() -> LogRejects {
        LogRejects { started: Instant::now(), rate: Rate::default() }
    }
}

impl RejectSink for LogRejects {
    fn reject(&self, rejected: &Rejected<'_>) {
        let (log, left_out) = self.rate.ask(self.started.elapsed().as_secs());
        if left_out > 0 {
            tracing::info!(left_out, "more events were rejected than are logged");
        }
        if log {
            let Rejected { kind, peer, line, raw, reason } = rejected;
            tracing::info!(
                kind,
                %peer,
                line,
                code = reason.code,
                field = reason.field.as_deref(),
                reason = %reason.message,
                bytes = raw.len(),
                raw = excerpt::raw(raw),
                "event rejected"
            );
        }
    }
}

/// Who may log in a second. Racing callers may let one or two too many pass, which does not matter.
#[derive(Debug, Default)]
struct Rate {
    second: AtomicU64,
    asked: AtomicU64,
}

impl Rate {
    /// Whether one more may be logged in `second`, and how many were left out in the last second that had any.
    fn ask(&self, second: u64) -> (bool, u64) {
        let before = self.second.load(Ordering::Relaxed);
        let turned = second > before
            && self.second.compare_exchange(before, second, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let left_out =
            if turned { self.asked.swap(0, Ordering::Relaxed).saturating_sub(LOGGED_PER_SECOND_MAX) } else { 0 };
        (self.asked.fetch_add(1, Ordering::Relaxed) < LOGGED_PER_SECOND_MAX, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_each_second() {
        let rate = Rate::default();
        let logged = |second| (0..1000).filter(|_| rate.ask(second).0).count() as u64;
        assert_eq!(logged(0), LOGGED_PER_SECOND_MAX);
        assert_eq!(rate.ask(1), (true, 1000 - LOGGED_PER_SECOND_MAX));
        assert_eq!(logged(1), LOGGED_PER_SECOND_MAX - 1);
        assert_eq!(rate.ask(5), (true, 1001 - LOGGED_PER_SECOND_MAX));
        assert_eq!(rate.ask(6), (true, 0));
    }
}
