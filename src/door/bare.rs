//! Answers that the server cannot write: a 204, which must not have a `Content-Length` (RFC 9110, 8.6).
//!
//! The server puts that field into every answer, and makes an answer of every call. So a 204 is written here, and the
//! call does not return until there is an answer that the server can write: further requests are read here as well,
//! from the kernel instead of from the server's buffer, which therefore has to be empty. Where it is not, because
//! requests were sent ahead of answers, the server writes the 204 with `Content-Length: 0`, which clients overlook.
//!
//! What always holds: a head is taken from the kernel when it is complete, and exactly; while the server's buffer may
//! hold a byte, nothing is read here.

use std::io::ErrorKind;
use std::net::Shutdown;

use may_minihttp::Response;

use super::answers;
use super::connection::Connection;
use super::ending::{cut_short, malformed};
use super::first::{self, First};
use super::request::Source;
use super::socket;
use super::watch::Phase;
use crate::exchange::{Answer, Fault};

/// Memory for a head to begin with: most have less.
const HEAD_BYTES: usize = 1 << 10;

impl Connection {
    /// Writes an answer without content, where the connection can go on after it. Returns whether it was written.
    pub(super) fn answer_bare(&mut self, answer: &Answer, connection: answers::Connection) -> bool {
        let emptied = self.is_served_here || self.server_is_empty();
        let Some(wire) = self.wire.as_mut().filter(|_| emptied) else { return false };
        answers::fields(&mut self.fields, answer, &self.request_id, connection);
        let mut head = Vec::with_capacity(128 + self.fields.len());
        answers::head(&mut head, answer.status, None, &mut self.date, &self.fields);
        self.watched.enter(Phase::Write);
        // When the client is gone, waiting for its next request finds it out.
        let _ = wire.send(&head, false);
        self.watched.rest(wire.given());
        (self.is_served_here, self.is_answered) = (true, true);
        true
    }

    /// Whether the server has written all that it was given and holds no byte that it has read. Where heads are written
    /// in an unusual way, their length is not known exactly, and the answer is no.
    fn server_is_empty(&mut self) -> bool {
        let Some(wire) = &mut self.wire else { return false };
        if wire.pending() > 0 {
            return false;
        }
        // In this order: what arrives in between makes it look as if less had been read than was consumed.
        let (counts, unread) = (socket::counts(wire.number()), socket::unread(wire.number()));
        let read = counts.filter(|counts| !counts.ended).zip(unread).map(|(c, unread)| c.received.checked_sub(unread));
        read.flatten() == Some(self.consumed)
    }

    /// Serves further requests as long as their answers are written here.
    pub(super) fn go_on(&mut self, rsp: &mut Response<'_>) {
        let mut bytes = Vec::new();
        while std::mem::take(&mut self.is_answered) {
            if !self.await_head(&mut bytes) {
                return;
            }
            if self.watched.enter(Phase::Busy) == Phase::Cut {
                return self.end_cut();
            }
            self.consumed += bytes.len() as u64;
            let First::Head { method, target, version, fields, .. } = first::parse(&bytes) else {
                return self.complain(&malformed());
            };
            let summary = self.summarise(method, target, version, fields.into_iter());
            self.serve(summary, Source::Wire, Some(rsp));
        }
        if std::mem::take(&mut self.is_served_here)
            && let Some(wire) = &self.wire
        {
            wire.announce_again();
        }
    }

    /// Waits for a head and takes it from the kernel into `bytes`; `false` when the connection has ended instead.
    fn await_head(&mut self, bytes: &mut Vec<u8>) -> bool {
        let bytes_max = usize::try_from(self.shared.limits.head_bytes_max).unwrap_or(usize::MAX);
        let mut capacity = HEAD_BYTES;
        loop {
            let Some(wire) = &mut self.wire else { return false };
            bytes.clear();
            bytes.reserve_exact(capacity);
            let peeked = socket::peek(wire.number(), &mut bytes.spare_capacity_mut()[..capacity]);
            if self.watched.is_cut() {
                self.end_cut();
                return false;
            }
            let fault = match peeked {
                Ok(n) if n > 0 => {
                    // SAFETY: that many bytes of the capacity have just been initialised.
                    unsafe { bytes.set_len(n) };
                    match first::parse(bytes) {
                        First::Head { rest, .. } => {
                            let length = n - rest.len();
                            bytes.clear();
                            while bytes.len() < length {
                                let missing = length - bytes.len();
                                if !matches!(wire.receive(bytes, missing), Ok(n) if n > 0) {
                                    return self.end_silently();
                                }
                            }
                            return true;
                        }
                        First::Cut if n == capacity && capacity < bytes_max => {
                            capacity = (capacity * 4).min(bytes_max);
                            continue;
                        }
                        First::Cut if n == capacity => Some(Fault::HeaderFieldsTooLarge),
                        First::Cut if wire.is_ended() => Some(cut_short()),
                        First::Cut => None,
                        First::Crowded => Some(Fault::HeaderFieldsTooLarge),
                        First::Malformed => Some(malformed()),
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => None,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Ok(_) | Err(_) => return self.end_silently(),
            };
            if let Some(fault) = fault {
                self.complain(&fault);
                return false;
            }
            if wire.wait().is_err() {
                return self.end_silently();
            }
        }
    }

    /// The peer is gone: nothing that the server still writes leaves.
    fn end_silently(&mut self) -> bool {
        self.ended = true;
        if let Some(wire) = &self.wire {
            socket::shut(wire.number(), Shutdown::Both);
        }
        false
    }
}
