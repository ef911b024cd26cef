//! Where rejected events go. None is dropped in silence: each passes here with its raw bytes and the reason.
//!
//! [`LogRejects`] writes them to the log at a bounded rate. A sink that keeps them all, in a topic of their own, takes
//! the same [`Rejected`].

use std::net::SocketAddr;
use std::time::Duration;

use crate::kinds::{Rejection, excerpt};
use crate::observe::rate::Rate;

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
pub struct LogRejects(Rate);

impl Default for LogRejects {
    fn default() -> LogRejects {
        LogRejects(Rate::new(LOGGED_PER_SECOND_MAX, Duration::from_secs(1)))
    }
}

impl RejectSink for LogRejects {
    fn reject(&self, rejected: &Rejected<'_>) {
        let (log, left_out) = self.0.ask();
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
