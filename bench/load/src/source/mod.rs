//! Where requests come from: rendered before the run, so that sending one costs next to nothing.

mod bodies;
mod packed;
mod pool;
mod reads;

pub use bodies::Bodies;
pub use packed::{Coding, Packed};
pub use pool::Pool;
pub use reads::Reads;

use crate::events::Kind;
use crate::ledger::{Fate, Sent};
use crate::random::Keys;

/// A request that is to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Its number among the requests of its template; for reads, which one it is.
    pub number: u64,
    /// Which of the lane's histograms it belongs to.
    pub stream: u8,
    /// The events in it.
    pub events: u32,
    pub expected: Expected,
}

/// The answer that a request should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// 202 with these counts.
    Taken { accepted: u32, rejected: u32 },
    /// 204.
    NoContent,
    /// 400 or 422: all of it is bad.
    Refused,
    /// 200.
    Read,
}

/// What all requests of a source have in common.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    pub kind: &'a Kind,
    pub keys: Keys,
    /// As requests name the server.
    pub host: &'a str,
}

/// Everything a worker sends.
#[derive(Debug)]
pub enum Source {
    Pool(Pool),
    Bodies(Bodies),
    Packed(Packed),
    Reads(Reads),
}

impl Source {
    /// The next request for this connection; None when there is no more.
    pub fn take(&mut self, connection: usize) -> Option<Request> {
        match self {
            Source::Pool(pool) => pool.take(),
            Source::Bodies(bodies) => bodies.take(connection),
            Source::Packed(packed) => packed.take(),
            Source::Reads(reads) => reads.take(),
        }
    }

    /// The bytes of the request that was taken last for this connection.
    pub fn bytes(&self, connection: usize, request: &Request) -> &[u8] {
        match self {
            Source::Pool(pool) => pool.bytes(request),
            Source::Bodies(bodies) => bodies.bytes(connection),
            Source::Packed(packed) => packed.bytes(request),
            Source::Reads(reads) => reads.bytes(request),
        }
    }

    /// Whether these bytes stay as they are until the request is answered, or only until the next is taken.
    pub fn lasts(&self) -> bool {
        !matches!(self, Source::Pool(_))
    }

    /// What became of a request.
    pub fn note(&mut self, connection: usize, request: &Request, fate: Fate) {
        match self {
            Source::Pool(pool) => pool.note(request, fate),
            Source::Bodies(bodies) => bodies.note(connection, request, fate),
            Source::Packed(packed) => packed.note(request, fate),
            Source::Reads(_) => {}
        }
    }

    /// From now on the same requests are sent again.
    pub fn again(&mut self) {
        match self {
            Source::Pool(pool) => pool.again(),
            Source::Bodies(bodies) => bodies.again(),
            Source::Packed(packed) => packed.again(),
            Source::Reads(_) => {}
        }
    }

    /// Everything that was sent and is to be found in the report.
    pub fn sent(&self) -> Vec<Sent> {
        match self {
            Source::Pool(pool) => vec![pool.sent()],
            Source::Bodies(bodies) => bodies.sent(),
            Source::Packed(packed) => vec![packed.sent()],
            Source::Reads(_) => Vec::new(),
        }
    }

    /// Why `take` had no more, when that was not asked for.
    pub fn used_up(&self) -> Option<String> {
        match self {
            Source::Packed(packed) => packed.used_up(),
            _ => None,
        }
    }
}

/// Which requests of a template are still to be taken.
#[derive(Debug, Clone, Default)]
struct Turn {
    next: u64,
    /// Set when requests are sent again: how many there are.
    again: Option<u64>,
}

impl Turn {
    /// The next number; None when all are sent again.
    fn take(&mut self) -> Option<u64> {
        if self.again.is_some_and(|end| self.next >= end) {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    fn again(&mut self, taken: u64) {
        *self = Turn { next: 0, again: Some(taken) };
    }
}

/// How many requests a worker may still take.
#[derive(Debug, Clone, Copy)]
pub struct Budget(pub u64);

impl Budget {
    pub const UNLIMITED: Budget = Budget(u64::MAX);

    fn take(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}
