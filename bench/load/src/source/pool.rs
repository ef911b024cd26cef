//! Single events, each a request of its own, on whatever connection is free.

use std::io::Write as _;

use super::{Budget, Expected, Request, Shape, Turn};
use crate::events::Form;
use crate::ledger::{Fate, Ledger, Sent};
use crate::template::{Role, Slots, Text};

/// A template each slot of which is a whole request; reads may be mixed in.
#[derive(Debug)]
pub struct Pool {
    text: Text,
    /// Where each slot's request ends in the text; it begins where the one before ends.
    ends: Vec<u32>,
    expected: Vec<Expected>,
    reads: Option<Mixed>,
    ledger: Ledger,
    turn: Turn,
    budget: Budget,
}

/// Reads among the events.
#[derive(Debug)]
struct Mixed {
    request: Vec<u8>,
    share: f64,
    /// Reads that are owed, a fraction included.
    owed: f64,
}

/// The number of a read, which no event's request has.
const READ: u64 = u64::MAX;
/// The streams of a lane that has both.
pub const EVENTS: u8 = 0;
pub const READS: u8 = 1;

impl Pool {
    /// With `read`, such a request takes the place of a share of the events.
    pub fn new(slots: Slots, shape: Shape, form: Form, read: Option<(Vec<u8>, f64)>, budget: Budget) -> Pool {
        let Shape { kind, keys, host } = shape;
        let (mut text, mut ends, mut expected, mut scratch) =
            (Text::new(slots, kind, keys), Vec::new(), Vec::new(), Vec::new());
        for slot in 0..text.slots.slots.len() {
            let drawn = text.slots.slots[slot];
            let bad = if let Role::Bad { way } = drawn.role { Some(way) } else { None };
            scratch.clear();
            kind.render(drawn.draft, bad, form, &mut scratch);
            let path = kind.path();
            // Writing to a Vec cannot fail.
            let _ = match form {
                Form::Json => write!(
                    text.bytes,
                    "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    scratch.len()
                ),
                Form::Query => write!(text.bytes, "POST /analytics?"),
            };
            text.push(kind, form);
            if form == Form::Query {
                let _ = write!(text.bytes, " HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
            }
            ends.push(text.bytes.len() as u32);
            expected.push(match (bad, form) {
                (Some(_), _) => Expected::Refused,
                (None, Form::Json) => Expected::Taken { accepted: 1, rejected: 0 },
                (None, Form::Query) => Expected::NoContent,
            });
        }
        let reads = read.map(|(request, share)| Mixed { request, share, owed: 0.0 });
        Pool { text, ends, expected, reads, ledger: Ledger::default(), turn: Turn::default(), budget }
    }

    pub(super) fn take(&mut self) -> Option<Request> {
        if let Some(reads) = &mut self.reads {
            reads.owed += reads.share;
            if reads.owed >= 1.0 {
                reads.owed -= 1.0;
                self.budget.take()?;
                return Some(Request { number: READ, stream: READS, events: 0, expected: Expected::Read });
            }
        }
        self.budget.take()?;
        let number = self.turn.take()?;
        if self.turn.again.is_none() {
            self.ledger.taken = number + 1;
        }
        let slot = (number % self.text.slots.len()) as usize;
        self.text.renew(number - slot as u64, slot..slot + 1);
        Some(Request { number, stream: EVENTS, events: 1, expected: self.expected[slot] })
    }

    pub(super) fn bytes(&self, request: &Request) -> &[u8] {
        if request.number == READ {
            return self.reads.as_ref().map_or(&[], |reads| &reads.request);
        }
        let slot = (request.number % self.text.slots.len()) as usize;
        let start = if slot == 0 { 0 } else { self.ends[slot - 1] };
        &self.text.bytes[start as usize..self.ends[slot] as usize]
    }

    pub(super) fn note(&mut self, request: &Request, fate: Fate) {
        if request.number != READ {
            self.ledger.note(request.number, fate, self.turn.again.is_some());
        }
    }

    pub(super) fn again(&mut self) {
        self.turn.again(self.ledger.taken);
        self.budget = Budget::UNLIMITED;
    }

    pub(super) fn sent(&self) -> Sent {
        Sent { slots: self.text.slots.clone(), per_request: 1, ledger: self.ledger.clone() }
    }
}
