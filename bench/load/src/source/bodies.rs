//! NDJSON bodies of many events. Each connection has one, and renews it for its next request.

use std::io::Write as _;

use super::{Budget, Expected, Request, Shape, Turn};
use crate::events::{Form, Kind};
use crate::ledger::{Fate, Ledger, Sent};
use crate::random::Keys;
use crate::template::{Slots, Text};

/// A body for each connection of a worker.
#[derive(Debug)]
pub struct Bodies {
    bodies: Vec<Body>,
    budget: Budget,
}

#[derive(Debug)]
struct Body {
    /// A request: its head, then a line for each slot.
    text: Text,
    expected: Expected,
    ledger: Ledger,
    turn: Turn,
}

impl Bodies {
    /// `slots` for each connection.
    pub fn new(slots: Vec<Slots>, shape: Shape, budget: Budget) -> Bodies {
        let Shape { kind, keys, host } = shape;
        let body = |slots: Slots| {
            let expected = expected(&slots, 0..slots.slots.len());
            let lines = lines(slots, kind, keys, |length| head(kind.path(), host, length, None));
            Body { text: lines, expected, ledger: Ledger::default(), turn: Turn::default() }
        };
        Bodies { bodies: slots.into_iter().map(body).collect(), budget }
    }

    pub(super) fn take(&mut self, connection: usize) -> Option<Request> {
        let body = &mut self.bodies[connection];
        if self.budget.0 == 0 {
            return None;
        }
        let number = body.turn.take()?;
        self.budget.take()?;
        if body.turn.again.is_none() {
            body.ledger.taken = number + 1;
        }
        let slots = body.text.slots.slots.len();
        body.text.renew(number * slots as u64, 0..slots);
        Some(Request { number, stream: 0, events: slots as u32, expected: body.expected })
    }

    pub(super) fn bytes(&self, connection: usize) -> &[u8] {
        &self.bodies[connection].text.bytes
    }

    pub(super) fn note(&mut self, connection: usize, request: &Request, fate: Fate) {
        let body = &mut self.bodies[connection];
        body.ledger.note(request.number, fate, body.turn.again.is_some());
    }

    pub(super) fn again(&mut self) {
        self.budget = Budget::UNLIMITED;
        self.bodies.iter_mut().for_each(|body| body.turn.again(body.ledger.taken));
    }

    pub(super) fn sent(&self) -> Vec<Sent> {
        let sent = |body: &Body| Sent {
            slots: body.text.slots.clone(),
            per_request: body.text.slots.len(),
            ledger: body.ledger.clone(),
        };
        self.bodies.iter().map(sent).collect()
    }
}

/// Renders all slots as lines behind a head that knows their length.
pub(super) fn lines(slots: Slots, kind: &Kind, keys: Keys, head: impl Fn(usize) -> Vec<u8>) -> Text {
    let mut text = Text::new(slots.clone(), kind, keys);
    push_lines(&mut text, kind);
    let head = head(text.bytes.len());
    if head.is_empty() {
        return text;
    }
    // Now that the length is known.
    let mut behind = Text::new(slots, kind, keys);
    behind.bytes = head;
    push_lines(&mut behind, kind);
    behind
}

fn push_lines(text: &mut Text, kind: &Kind) {
    for _ in 0..text.slots.slots.len() {
        text.push(kind, Form::Json);
        text.bytes.push(b'\n');
    }
}

/// The head of a request with an NDJSON body.
pub(super) fn head(path: &str, host: &str, length: usize, coding: Option<&str>) -> Vec<u8> {
    let mut head = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = write!(head, "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-ndjson\r\n");
    let _ = coding.map(|coding| write!(head, "Content-Encoding: {coding}\r\n"));
    let _ = write!(head, "Content-Length: {length}\r\n\r\n");
    head
}

/// What such a request should be answered.
pub(super) fn expected(slots: &Slots, range: std::ops::Range<usize>) -> Expected {
    let (all, rejected) = (range.len() as u32, slots.bad(range));
    match all - rejected {
        0 => Expected::Refused,
        accepted => Expected::Taken { accepted, rejected },
    }
}
