//! Requests that were compressed before the run. A compressed body cannot be renewed, so their number is bounded by memory,
//! and the run ends when all are sent.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write as _};
use std::ops::Range;

use super::bodies::{expected, head, lines};
use super::{Budget, Expected, Request, Shape, Turn};
use crate::ledger::{Fate, Ledger, Sent};
use crate::template::Slots;

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Zstd,
}

/// The usual levels of clients in a hurry.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;

#[derive(Debug)]
pub struct Packed {
    /// All requests, one behind the other.
    arena: Vec<u8>,
    ranges: Vec<Range<usize>>,
    expected: Vec<Expected>,
    slots: Slots,
    per_request: u64,
    ledger: Ledger,
    turn: Turn,
    budget: Budget,
    ran_out: bool,
}

impl Packed {
    /// `count` requests of `per_request` events, which divides the number of slots.
    pub fn new(
        slots: Slots,
        per_request: u32,
        count: u64,
        shape: Shape,
        coding: Coding,
        budget: Budget,
    ) -> io::Result<Packed> {
        let Shape { kind, keys, host } = shape;
        // A single event is a body of one line.
        let parts = slots.slots.len() / per_request as usize;
        let mut text = lines(slots.clone(), kind, keys, |_| Vec::new());
        let ends: Vec<usize> = memchr::memchr_iter(b'\n', &text.bytes).map(|at| at + 1).collect();
        let expected_of: Vec<Expected> = (0..parts)
            .map(|part| expected(&slots, part * per_request as usize..(part + 1) * per_request as usize))
            .collect();
        let (mut arena, mut ranges, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let part = (number % parts as u64) as usize;
            let range = part * per_request as usize..(part + 1) * per_request as usize;
            text.renew(number / parts as u64 * slots.len(), range.clone());
            let from = if range.start == 0 { 0 } else { ends[range.start - 1] };
            let body = compress(&text.bytes[from..ends[range.end - 1]], coding)?;
            let start = arena.len();
            arena.extend_from_slice(&head(kind.path(), host, body.len(), Some(coding.name())));
            arena.extend_from_slice(&body);
            ranges.push(start..arena.len());
            expected.push(expected_of[part]);
        }
        let (ledger, turn) = (Ledger::default(), Turn::default());
        let per_request = u64::from(per_request);
        Ok(Packed { arena, ranges, expected, slots, per_request, ledger, turn, budget, ran_out: false })
    }

    pub(super) fn take(&mut self) -> Option<Request> {
        if self.turn.next >= self.ranges.len() as u64 {
            self.ran_out = self.budget.0 > 0 && self.turn.again.is_none();
            return None;
        }
        self.budget.take()?;
        let number = self.turn.take()?;
        if self.turn.again.is_none() {
            self.ledger.taken = number + 1;
        }
        let events = self.per_request as u32;
        Some(Request { number, stream: 0, events, expected: self.expected[number as usize] })
    }

    pub(super) fn bytes(&self, request: &Request) -> &[u8] {
        &self.arena[self.ranges[request.number as usize].clone()]
    }

    pub(super) fn note(&mut self, request: &Request, fate: Fate) {
        self.ledger.note(request.number, fate, self.turn.again.is_some());
    }

    pub(super) fn again(&mut self) {
        self.turn.again(self.ledger.taken);
        self.budget = Budget::UNLIMITED;
    }

    pub(super) fn sent(&self) -> Sent {
        Sent { slots: self.slots.clone(), per_request: self.per_request, ledger: self.ledger.clone() }
    }

    pub(super) fn used_up(&self) -> Option<String> {
        let events = self.ranges.len() as u64 * self.per_request;
        self.ran_out
            .then(|| format!("all of the {events} events that were compressed ahead are sent: --pool makes more"))
    }
}

impl Coding {
    pub fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }
}

fn compress(body: &[u8], coding: Coding) -> io::Result<Vec<u8>> {
    match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
            encoder.write_all(body)?;
            encoder.finish()
        }
        Coding::Zstd => {
            let mut packed = Vec::with_capacity(zstd_safe::compress_bound(body.len()));
            zstd_safe::compress(&mut packed, body, ZSTD_LEVEL)
                .map_err(|code| io::Error::other(zstd_safe::get_error_name(code)))?;
            Ok(packed)
        }
    }
}
