//! How a connection ends: the last answer, and what can still be said when the server has given a connection up.
//!
//! Nothing here sleeps: `may::coroutine::sleep` (0.3.51) touches the coroutine's memory after its timer was set, and a
//! coroutine that ends right after it may be gone by then when its thread was not running for so long. The kernel tells
//! of all that is waited for, and the watch ends what takes too long.
//!
//! What always holds: the last answer leaves behind all earlier ones; nothing leaves after it; and it is not lost to
//! a reset as long as its reader takes it and its sender does not send without end.

use std::io::ErrorKind;
use std::net::Shutdown;

use super::Answered;
use super::answers;
use super::connection::{ANSWER_BYTES_MAX, Connection};
use super::first::{self, First};
use super::request::{Asked, Source};
use super::socket;
use super::watch::{Phase, Reason};
use crate::exchange::{Answer, Fault};

/// No request is shorter: `GET / HTTP/1.0` and an empty line, with bare LFs.
const REQUEST_BYTES_MIN: u64 = 16;
/// The server does not tell why it took a head for malformed. Where the head is not known, one of this length or more
/// had too many fields, most likely: a request line and 17 fields of 6 bytes have 120.
const MANY_FIELDS_BYTES_MIN: u64 = 120;

impl Connection {
    /// Writes the last answer and ends the connection.
    pub(super) fn finish(&mut self, answer: &Answer, bodiless: bool, unread: bool) {
        self.ended = true;
        let Some(wire) = &mut self.wire else { return };
        answers::fields(&mut self.fields, answer, &self.request_id, answers::Connection::Closes);
        let mut head = Vec::with_capacity(256 + self.fields.len());
        let length = (answer.status != 204).then_some(answer.body.len());
        answers::head(&mut head, answer.status, length, &mut self.date, &self.fields);
        let body = if bodiless { &[][..] } else { &answer.body };
        self.watched.enter(Phase::Write);
        let written =
            wire.catch_up().and_then(|()| wire.send(&head, !body.is_empty())).and_then(|()| wire.send(body, false));
        wire.finish_sending();
        // Closing a connection with unread bytes resets it, and what its reader has not got by then is lost.
        let unread = unread || matches!(wire.peek(), Ok(true));
        if written.is_ok() && unread {
            self.watched.enter(Phase::Linger);
            // Where the receiving side was shut down, nothing more can be read, and the peer's end has to be asked for.
            let patient = wire.discard(self.shared.limits.linger_bytes_max);
            while patient && !wire.is_ended() && !self.watched.is_cut() && wire.wait().is_ok() {}
        }
        if written.is_ok() && (unread || body.len() > ANSWER_BYTES_MAX) {
            self.watched.enter(Phase::Write);
            // The kernel announces that the sending side's end, and so all before it, was acknowledged.
            while !wire.is_acknowledged() && !self.watched.is_cut() && wire.wait().is_ok() {}
        }
        if unread && !wire.is_ended() {
            socket::reset_on_close(wire.number());
        }
        self.watched.enter(Phase::Busy);
        socket::shut(wire.number(), Shutdown::Both);
    }

    /// The watch has ended the connection: says why, where somebody may still read it.
    pub(super) fn end_cut(&mut self) {
        self.ended = true;
        match self.watched.reason() {
            Some(Reason::HeaderSlow) if self.unparsed() > 0 => self.complain(&Fault::RequestTimeout),
            Some(Reason::HeaderLong) => self.complain(&Fault::HeaderFieldsTooLarge),
            _ => {}
        }
    }

    /// About how many bytes have arrived that were not part of a request (a FIN counts as one).
    fn unparsed(&self) -> u64 {
        let counts = self.wire.as_ref().and_then(|wire| socket::counts(wire.number()));
        counts.map_or(0, |counts| counts.received.saturating_sub(self.consumed))
    }

    /// The server has given the connection up, or the peer has. Where somebody waits for an answer, gives it.
    pub(super) fn last_words(&mut self) {
        if self.watched.enter(Phase::Busy) == Phase::Cut {
            return self.end_cut();
        }
        let unparsed = self.unparsed();
        let begun = if self.consumed == 0 { 1 } else { REQUEST_BYTES_MIN };
        let Some(wire) = &mut self.wire else { return };
        match wire.peek() {
            // The peer has ended its side. What it sent before, the server has thrown away.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof && unparsed > begun => self.salvage(),
            // Nobody has ended, so the server found the head malformed.
            Ok(_) => {
                let crowded = match first::parse(&self.first) {
                    First::Crowded => true,
                    First::Malformed => false,
                    First::Head { .. } | First::Cut => unparsed >= MANY_FIELDS_BYTES_MIN,
                };
                self.complain(&if crowded { Fault::HeaderFieldsTooLarge } else { malformed() });
            }
            // Answers that the server gave up on before it had written them.
            Err(_) => {
                self.watched.enter(Phase::Write);
                let _ = wire.catch_up();
            }
        }
    }

    /// Serves the request of a client that has closed its side already, where there is a copy of it.
    fn salvage(&mut self) {
        let bytes = std::mem::take(&mut self.first);
        match first::parse(&bytes) {
            First::Head { method, target, version, fields, rest } => {
                let summary = self.summarise(method, target, version, fields.into_iter());
                if summary.framed.is_err() || summary.content_length <= rest.len() {
                    return self.serve(summary, Source::Copied(rest), None);
                }
                self.complain(&cut_short());
            }
            First::Crowded => self.complain(&Fault::HeaderFieldsTooLarge),
            First::Malformed => self.complain(&malformed()),
            First::Cut => self.complain(&cut_short()),
        }
    }

    /// Answers something that did not become a request.
    pub(super) fn complain(&mut self, fault: &Fault) {
        let answer = fault.answer();
        let asked = Asked::unknown();
        self.shared.observe(&Answered {
            route: asked.route,
            method: asked.method,
            status: answer.status,
            request_bytes: 0,
            duration: asked.started.elapsed(),
        });
        self.shared.make_request_id(&mut self.request_id);
        self.finish(&answer, false, true);
    }
}

pub(super) fn malformed() -> Fault {
    Fault::BadRequest("this is not a request in HTTP/1.1 or HTTP/1.0".into())
}

pub(super) fn cut_short() -> Fault {
    Fault::BadRequest(
        "the request is cut short or malformed, or its sender closed its side of the connection before the answer: \
         keep it open until the answer has arrived"
            .into(),
    )
}
