//! One connection: the service that `may_minihttp` calls for each request it has parsed.
//!
//! A request goes through framing, its route, the limits and its endpoint's admission before its body is read, then to
//! the endpoint. Its answer leaves in one of two ways. Usually it is given to the server, which writes it when it has
//! served all that it has read. Where the connection is to close, or the answer is long, or it belongs to `HEAD`, it is
//! written here and the sending side is shut down: this is the last answer, and whatever the server still finds in its
//! buffer and hands to [`HttpService::call`] has no effect, because nothing can be written any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use may_minihttp::{HttpService, Request, Response};

use super::answers::{self, Date};
use super::body::{self, End};
use super::frame::{self, Frame};
use super::watch::{Phase, Reason, Watched};
use super::wire::{self, Wire};
use super::{Answered, Shared};
use crate::exchange::{Answer, Fault, Head};

/// An answer up to this long goes through the server's buffer, which keeps the size it has grown to for as long as
/// its connection lives. A longer one is written here, at its reader's pace, and closes the connection.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// A client that sends requests faster than the server comes to writing its answers is closed when this much waits.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// Up to this much may wait on any connection; what is beyond it is taken from the room for bodies.
const PENDING_BYTES_FREE: usize = 64 << 10;
/// The unread body of a refused request is read, so that the connection can stay, up to this length.
const SPARED_BYTES_MAX: usize = 64 << 10;
/// How often a closing connection looks whether its peer has got everything.
const ACKNOWLEDGED_EVERY: Duration = Duration::from_millis(5);
/// No request is shorter: `GET / HTTP/1.0` and an empty line, with bare LFs.
const REQUEST_BYTES_MIN: u64 = 16;
/// The server does not tell why it took a head for malformed. One of this length or more had too many fields, most
/// likely: a request line and 17 fields of 6 bytes have 120.
const MANY_FIELDS_BYTES_MIN: u64 = 120;

/// The state of one connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    watched: Arc<Watched>,
    wire: Option<Wire>,
    peer: std::net::SocketAddr,
    /// The last answer was given.
    ended: bool,
    /// What waiting answers have taken of the room: the most that ever waited, because the server keeps the memory.
    held: usize,
    /// About how many bytes of requests were consumed: exact but for unusual blanks and newlines.
    consumed: u64,
    small: Vec<u8>,
    /// Copies of what the head says, because the server reuses its memory for the body.
    text: String,
    request_id: String,
    /// The last answer's header fields: the server borrows them until it has encoded the answer.
    fields: String,
    date: Date,
}

/// What is known about a request when it is answered.
#[derive(Clone, Copy)]
struct Asked<'a> {
    route: &'a str,
    method: &'static str,
    received_bytes: usize,
    started: Instant,
    keep_alive: bool,
    old: bool,
    /// Some of its body was not read.
    unread: bool,
}

impl Connection {
    pub fn new(shared: Arc<Shared>, watched: Arc<Watched>, wire: Option<Wire>, ended: bool) -> Connection {
        let peer = wire.as_ref().and_then(|wire| wire.peer().ok());
        Connection {
            shared,
            watched,
            wire,
            peer: peer.unwrap_or_else(|| ([0, 0, 0, 0], 0).into()),
            ended,
            held: 0,
            consumed: 0,
            small: Vec::new(),
            text: String::new(),
            request_id: String::new(),
            fields: String::new(),
            date: Date::default(),
        }
    }

    /// Serves one request: reads its body, asks its endpoint, answers.
    fn serve(&mut self, req: Request<'_, '_, '_>, rsp: &mut Response<'_>) {
        let was = self.watched.enter(Phase::Busy);
        let shared = Arc::clone(&self.shared);
        let method = known_method(req.method());
        let headers = req.headers().iter().map(|h| (h.name, h.value));
        let (frame, framed) = frame::examine(req.version(), req.path(), headers);
        self.consumed += head_bytes(&req);
        self.keep_request_id(&frame);
        let mut asked = Asked {
            route: "-",
            method,
            received_bytes: 0,
            started: Instant::now(),
            keep_alive: frame.keep_alive && was != Phase::Cut,
            old: frame.old,
            unread: false,
        };
        if let Err(fault) = framed {
            // Where the body ends is in doubt, so what follows cannot be read.
            (asked.keep_alive, asked.unread) = (false, true);
            return self.answer(fault.answer(), asked, rsp);
        }
        let (length, expects_continue) = (frame.content_length, frame.expects_continue);
        let mut text = std::mem::take(&mut self.text);
        let parts = Parts::copy(&mut text, &req, &frame);
        let head = parts.head(&text, length, self.peer);
        let (route, endpoint) = shared.routes.find(head.method, head.path);
        asked.route = route;
        let admitted = endpoint.and_then(|endpoint| self.admit(&head, endpoint.as_ref()).map(|()| endpoint));
        let answer = match admitted {
            Err(fault) => {
                self.refuse(&fault, req, length, expects_continue, &mut asked);
                fault.answer()
            }
            Ok(endpoint) => {
                let large = length > body::SMALL_BYTES;
                let mut body = if large { shared.buffers.take() } else { std::mem::take(&mut self.small) };
                let mut share = shared.room.share();
                let answer = match self.receive(req, length, expects_continue, &mut body, &mut share, &mut asked) {
                    Err(fault) => fault.answer(),
                    Ok(()) => {
                        asked.received_bytes = body.len();
                        ask(endpoint.as_ref(), &head, &mut body)
                    }
                };
                drop(share);
                self.keep(body, large);
                answer
            }
        };
        self.text = text;
        self.answer(answer, asked, rsp);
    }

    /// Everything that can be refused before the body is read.
    fn admit(&self, head: &Head<'_>, endpoint: &dyn crate::exchange::Endpoint) -> Result<(), Fault> {
        if head.content_length > self.shared.limits.body_bytes_max {
            return Err(Fault::ContentTooLarge(self.shared.limits.body_bytes_max));
        }
        // An endpoint that panics has not admitted anything.
        catch_unwind(AssertUnwindSafe(|| endpoint.admit(head))).unwrap_or(Err(Fault::Internal))?;
        if !self.shared.room.fits(head.content_length) {
            return Err(no_room());
        }
        Ok(())
    }

    /// A refused request with a short body is read to its end, so that the connection can stay.
    fn refuse(&mut self, fault: &Fault, req: Request<'_, '_, '_>, length: usize, expects: bool, asked: &mut Asked<'_>) {
        if length == 0 {
            return;
        }
        let spared = asked.keep_alive
            && !expects
            && length <= SPARED_BYTES_MAX
            && !matches!(fault, Fault::ContentTooLarge(_) | Fault::Unavailable { .. });
        let shared = Arc::clone(&self.shared);
        let mut body = std::mem::take(&mut self.small);
        let mut share = shared.room.share();
        if !spared || self.receive(req, length, false, &mut body, &mut share, asked).is_err() {
            (asked.keep_alive, asked.unread) = (false, true);
        }
        self.keep(body, length > body::SMALL_BYTES);
    }

    /// Reads the body.
    fn receive(
        &mut self,
        req: Request<'_, '_, '_>,
        length: usize,
        expects_continue: bool,
        body: &mut Vec<u8>,
        share: &mut body::Share<'_>,
        asked: &mut Asked<'_>,
    ) -> Result<(), Fault> {
        body.clear();
        if length == 0 {
            return Ok(());
        }
        let Some(wire) = &mut self.wire else { return Err(Fault::Internal) };
        if expects_continue {
            self.watched.enter(Phase::Write);
            // When the client is gone, reading finds it out.
            let _ = wire.catch_up().and_then(|()| wire.send(b"HTTP/1.1 100 Continue\r\n\r\n", false));
        }
        self.watched.enter(Phase::Body);
        let end = body::read(req.body(), wire, length, body, share);
        self.consumed += body.len() as u64;
        asked.received_bytes = body.len();
        let was = self.watched.enter(Phase::Busy);
        let fault = match end {
            End::Whole => {
                wire.announce_again();
                asked.keep_alive &= was != Phase::Cut;
                return Ok(());
            }
            End::NoRoom => no_room(),
            End::Short if was == Phase::Cut && self.watched.reason() == Some(Reason::BodySlow) => Fault::RequestTimeout,
            End::Short => Fault::BadRequest("the body is shorter than its Content-Length".into()),
        };
        (asked.keep_alive, asked.unread) = (false, true);
        Err(fault)
    }

    /// Gives the buffer back to where it came from.
    fn keep(&mut self, mut body: Vec<u8>, large: bool) {
        if large {
            self.shared.buffers.put(body);
        } else if body.capacity() <= 2 * body::SMALL_BYTES {
            body.clear();
            self.small = body;
        }
    }

    /// Answers: through the server when the connection stays, else by itself.
    fn answer(&mut self, mut answer: Answer, asked: Asked<'_>, rsp: &mut Response<'_>) {
        let Some(wire) = &mut self.wire else { return };
        let bodiless = asked.method == "HEAD";
        let stays = asked.keep_alive
            && !self.shared.draining.load(Ordering::Relaxed)
            && !wire.must_end()
            && (!bodiless || answer.body.is_empty())
            && answer.body.len() <= ANSWER_BYTES_MAX
            && pending_fits(wire.settle(), &mut self.held, &self.shared.room);
        self.shared.observe(&asked, answer.status);
        if !stays {
            return self.finish(&answer, bodiless, asked.unread);
        }
        let connection = if asked.old { answers::Connection::Kept } else { answers::Connection::Stays };
        answers::fields(&mut self.fields, &answer, &self.request_id, connection);
        wire.give(|shadow| {
            answers::head(shadow, answer.status, answer.body.len(), &mut self.date, &self.fields);
            shadow.extend_from_slice(&answer.body);
        });
        rsp.status_code(usize::from(answer.status), answers::reason(answer.status));
        // SAFETY: the server encodes the answer right after `call` returns, into a buffer of its own, and drops `rsp`
        // (`each_connection_loop` of may_minihttp 0.1.11). Until then `self.fields` is neither changed nor dropped:
        // only `call` and `drop` touch it, and the server calls neither before.
        rsp.header(unsafe { std::mem::transmute::<&str, &'static str>(self.fields.as_str()) });
        rsp.body_vec(std::mem::take(&mut answer.body));
        self.watched.enter(Phase::Idle);
    }

    /// Writes the last answer and ends the connection.
    fn finish(&mut self, answer: &Answer, bodiless: bool, unread: bool) {
        self.ended = true;
        let Some(wire) = &mut self.wire else { return };
        answers::fields(&mut self.fields, answer, &self.request_id, answers::Connection::Closes);
        let mut head = Vec::with_capacity(256 + self.fields.len());
        answers::head(&mut head, answer.status, answer.body.len(), &mut self.date, &self.fields);
        let body = if bodiless { &[][..] } else { &answer.body };
        self.watched.enter(Phase::Write);
        let written =
            wire.catch_up().and_then(|()| wire.send(&head, !body.is_empty())).and_then(|()| wire.send(body, false));
        wire.finish_sending();
        // Closing a connection with unread bytes resets it, and what its reader has not got by then is lost.
        let unread = unread || matches!(wire.peek(), Ok(true));
        if written.is_ok() && unread {
            self.watched.enter(Phase::Linger);
            wire.discard(self.shared.limits.linger_bytes_max);
        }
        if written.is_ok() && (unread || body.len() > ANSWER_BYTES_MAX) {
            self.watched.enter(Phase::Write);
            while !wire.is_acknowledged() && !self.watched.is_cut() {
                may::coroutine::sleep(ACKNOWLEDGED_EVERY);
            }
        }
        self.watched.enter(Phase::Busy);
        if let Some(wire) = &self.wire {
            wire::shut(wire.number(), std::net::Shutdown::Both);
        }
    }

    fn keep_request_id(&mut self, frame: &Frame<'_>) {
        match frame.request_id {
            Some(id) => {
                self.request_id.clear();
                self.request_id.push_str(id);
            }
            None => self.shared.make_request_id(&mut self.request_id),
        }
    }

    /// The server has given the connection up, or the peer has. Where somebody waits for an answer, gives it.
    fn last_words(&mut self) {
        let was = self.watched.enter(Phase::Busy);
        let Some(wire) = &mut self.wire else { return };
        let received = wire::counts(wire.number()).map_or(0, |counts| counts.received);
        let unparsed = |eof: u64| received.saturating_sub(eof).saturating_sub(self.consumed);
        let begun = if self.consumed == 0 { 1 } else { REQUEST_BYTES_MIN };
        let fault = if was == Phase::Cut {
            match self.watched.reason() {
                Some(Reason::HeaderSlow) if unparsed(0) > 0 => Some(Fault::RequestTimeout),
                Some(Reason::HeaderLong) => Some(Fault::HeaderFieldsTooLarge),
                _ => None,
            }
        } else {
            match wire.peek() {
                // The peer has ended its side. May it have sent a request that the server never looked at?
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => (unparsed(1) >= begun).then(|| {
                    Fault::BadRequest(
                        "the request is cut short or malformed, or its sender closed its side of the connection \
                         before the answer: keep it open until the answer has arrived"
                            .into(),
                    )
                }),
                Err(_) => None,
                // Nobody has ended, so the server found the head malformed; why, it does not tell.
                Ok(_) if unparsed(0) >= MANY_FIELDS_BYTES_MIN => Some(Fault::HeaderFieldsTooLarge),
                Ok(_) => Some(Fault::BadRequest("this is not a request in HTTP/1.1 or HTTP/1.0".into())),
            }
        };
        match fault {
            Some(fault) => {
                let answer = fault.answer();
                self.shared.make_request_id(&mut self.request_id);
                let asked = Asked {
                    route: "-",
                    method: "-",
                    received_bytes: 0,
                    started: Instant::now(),
                    keep_alive: false,
                    old: false,
                    unread: true,
                };
                self.shared.observe(&asked, answer.status);
                self.finish(&answer, false, true);
            }
            None => {
                // Answers that the server gave up on before it had written them.
                self.watched.enter(Phase::Write);
                let _ = wire.catch_up();
            }
        }
    }
}

impl HttpService for Connection {
    fn call(&mut self, req: Request<'_, '_, '_>, rsp: &mut Response<'_>) -> std::io::Result<()> {
        // After the last answer the server's buffer may hold bytes that look like requests. Nothing can be written,
        // so the answer that the server makes of this goes nowhere, and it notices at its next write.
        if !self.ended {
            self.serve(req, rsp);
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A coroutine must not wait while it unwinds.
        if !self.ended && !std::thread::panicking() {
            self.last_words();
        }
        self.watched.leave();
        // Closed before it is counted as closed.
        self.wire = None;
        self.shared.room.hold(&mut self.held, 0);
        self.shared.closed();
    }
}

/// Where in the copied text the parts of a head lie.
struct Parts {
    method_end: usize,
    path_end: usize,
    query_end: Option<usize>,
    content_type_end: Option<usize>,
    content_encoding_end: Option<usize>,
}

impl Parts {
    fn copy(text: &mut String, req: &Request<'_, '_, '_>, frame: &Frame<'_>) -> Parts {
        text.clear();
        let mut push = |part: &str| {
            text.push_str(part);
            text.len()
        };
        Parts {
            method_end: push(req.method()),
            path_end: push(frame.path),
            query_end: frame.query.map(&mut push),
            content_type_end: frame.content_type.map(&mut push),
            content_encoding_end: frame.content_encoding.map(&mut push),
        }
    }

    fn head<'a>(&self, text: &'a str, content_length: usize, peer: std::net::SocketAddr) -> Head<'a> {
        let query_end = self.query_end.unwrap_or(self.path_end);
        let content_type_end = self.content_type_end.unwrap_or(query_end);
        Head {
            method: &text[..self.method_end],
            path: &text[self.method_end..self.path_end],
            query: self.query_end.map(|end| &text[self.path_end..end]),
            content_type: self.content_type_end.map(|end| &text[query_end..end]),
            content_encoding: self.content_encoding_end.map(|end| &text[content_type_end..end]),
            content_length,
            peer,
        }
    }
}

/// Asks the endpoint. A panic in it is our fault, not the end of anything else.
fn ask(endpoint: &dyn crate::exchange::Endpoint, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
    catch_unwind(AssertUnwindSafe(|| endpoint.answer(head, body))).unwrap_or_else(|_| {
        tracing::error!(method = head.method, path = head.path, "endpoint panicked");
        Fault::Internal.answer()
    })
}

/// May a further answer wait behind `pending` bytes?
fn pending_fits(pending: usize, held: &mut usize, room: &body::Room) -> bool {
    // Twice: in the server's buffer and in the shadow.
    let beyond = pending.saturating_sub(PENDING_BYTES_FREE) * 2;
    pending <= PENDING_BYTES_MAX && (beyond <= *held || room.hold(held, beyond))
}

fn no_room() -> Fault {
    Fault::Unavailable { message: "too many bodies at a time: try again".into(), retry_after_s: 1 }
}

/// Methods that may become a metric's label: a client must not be able to make up more.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("OTHER")
}

/// How long the head was: from the method to the last value, all in one buffer, and two line ends.
fn head_bytes(req: &Request<'_, '_, '_>) -> u64 {
    let start = req.method().as_ptr() as usize;
    let end = match req.headers().last() {
        Some(last) => last.value.as_ptr() as usize + last.value.len(),
        None => req.path().as_ptr() as usize + req.path().len() + " HTTP/1.1".len(),
    };
    (end.saturating_sub(start) + 4) as u64
}

impl Shared {
    fn observe(&self, asked: &Asked<'_>, status: u16) {
        self.observer.answered(&Answered {
            route: asked.route,
            method: asked.method,
            status,
            request_bytes: asked.received_bytes,
            duration: asked.started.elapsed(),
        });
    }
}
