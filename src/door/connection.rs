//! One connection: the service that `may_minihttp` calls for each request it has parsed.
//!
//! A request goes through framing, its route, the limits and its endpoint's admission before its body is read, then to
//! the endpoint. Its answer leaves in one of two ways. Usually it is given to the server, which writes it when it has
//! served all that it has read. Where the connection is to close, or the answer is long, or it belongs to `HEAD`, it is
//! written by [`super::ending`] and the sending side is shut down: this is the last answer, and whatever the server
//! still finds in its buffer and hands to [`HttpService::call`] has no effect, because nothing can be written any more.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use may_minihttp::{HttpService, Request, Response};

use super::answers::{self, Date};
use super::body::{self, End, no_room};
use super::decode::Coding;
use super::request::{Asked, Source, Summary, head_bytes};
use super::watch::{Phase, Reason, Watched};
use super::wire::Wire;
use super::{Answered, Shared};
use crate::exchange::{Answer, Endpoint, Fault, Head};

/// An answer up to this long goes through the server's buffer, which keeps the size it has grown to for as long as
/// its connection lives. A longer one is written here, at its reader's pace, and closes the connection.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 10;
/// A client that sends requests faster than the server comes to writing its answers is closed when this much waits.
const PENDING_BYTES_MAX: usize = 1 << 20;
/// Up to this much may wait on any connection; what is beyond it is taken from the room for bodies.
const PENDING_BYTES_FREE: usize = 64 << 10;
/// The unread body of a refused request is read, so that the connection can stay, up to this length.
const SPARED_BYTES_MAX: usize = 64 << 10;

/// Memory for a head's copy that is kept from one request to the next.
const TEXT_BYTES_KEPT: usize = 4 << 10;

/// The state of one connection.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) watched: Arc<Watched>,
    pub(super) wire: Option<Wire>,
    peer: SocketAddr,
    /// The last answer was given.
    pub(super) ended: bool,
    /// What the connection began with, until the server has parsed a request.
    pub(super) first: Box<[u8]>,
    /// About how many bytes of requests were consumed: exact but for unusual blanks and newlines.
    pub(super) consumed: u64,
    /// What waiting answers have taken of the room: the most that ever waited, because the server keeps the memory.
    held: usize,
    /// Requests are read here and not by the server (see [`super::bare`]).
    pub(super) is_served_here: bool,
    /// The last answer was written here, and the connection goes on: the server must not write another.
    pub(super) is_answered: bool,
    small: Vec<u8>,
    text: String,
    pub(super) request_id: String,
    /// The last answer's header fields: the server borrows them until it has encoded the answer.
    pub(super) fields: String,
    pub(super) date: Date,
}

impl Connection {
    pub fn new(shared: Arc<Shared>, watched: Arc<Watched>, wire: Option<Wire>, first: Box<[u8]>) -> Connection {
        let peer = wire.as_ref().and_then(|wire| wire.peer().ok());
        Connection {
            shared,
            watched,
            wire,
            peer: peer.unwrap_or_else(|| ([0, 0, 0, 0], 0).into()),
            ended: false,
            first,
            held: 0,
            consumed: 0,
            is_served_here: false,
            is_answered: false,
            small: Vec::new(),
            text: String::new(),
            request_id: String::new(),
            fields: String::new(),
            date: Date::default(),
        }
    }

    /// A connection that was told to go: whatever it sends has no effect.
    pub fn refused(shared: Arc<Shared>, watched: Arc<Watched>, wire: Option<Wire>) -> Connection {
        let mut connection = Connection::new(shared, watched, wire, Box::default());
        connection.ended = true;
        connection
    }

    /// Reads a head.
    pub(super) fn summarise<'a>(
        &mut self,
        method: &'a str,
        target: &'a str,
        version: u8,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Summary {
        let text = std::mem::take(&mut self.text);
        let summary = Summary::read(text, &mut self.request_id, method, target, version, fields);
        if self.request_id.is_empty() {
            self.shared.make_request_id(&mut self.request_id);
        }
        summary
    }

    /// Serves one request: reads its body, asks its endpoint, answers, through `rsp` where the connection stays.
    pub(super) fn serve(
        &mut self,
        mut summary: Summary,
        source: Source<'_, '_, '_, '_>,
        rsp: Option<&mut Response<'_>>,
    ) {
        let mut asked = Asked {
            route: "-",
            method: summary.method_label(),
            received_bytes: 0,
            started: Instant::now(),
            keep_alive: summary.keep_alive,
            old: summary.old,
            unread: false,
        };
        if let Err(fault) = std::mem::replace(&mut summary.framed, Ok(())) {
            // Where the body ends is in doubt, so what follows cannot be read.
            asked.give_up();
            return self.answer(fault.answer(), asked, rsp);
        }
        let shared = Arc::clone(&self.shared);
        let request_id = std::mem::take(&mut self.request_id);
        let head = summary.head(self.peer, &request_id);
        let (route, endpoint) = shared.routes.find(head.method, head.path);
        asked.route = route;
        let admitted = endpoint.and_then(|endpoint| {
            summary.check(head.method)?;
            Ok((endpoint, self.admit(&head, endpoint.as_ref())?))
        });
        let answer = match admitted {
            Err(fault) => {
                self.spare(&fault, source, &summary, &mut asked);
                fault.answer()
            }
            Ok((endpoint, coding)) => {
                self.ask(endpoint.as_ref(), &head, coding, source, summary.expects_continue, &mut asked)
            }
        };
        self.request_id = request_id;
        self.text = summary.into_text();
        self.text.shrink_to(TEXT_BYTES_KEPT);
        self.answer(answer, asked, rsp);
    }

    /// Everything that can be refused before the body is read. Returns how its body is to be decoded.
    fn admit(&self, head: &Head<'_>, endpoint: &dyn Endpoint) -> Result<Option<Coding>, Fault> {
        if head.content_length > self.shared.limits.body_bytes_max {
            return Err(Fault::ContentTooLarge(self.shared.limits.body_bytes_max));
        }
        // An endpoint that panics has not admitted anything.
        let coding = catch_unwind(AssertUnwindSafe(|| {
            let coding = if endpoint.takes_coded_bodies() { Coding::of(head.content_encoding)? } else { None };
            endpoint.admit(head).map(|()| coding)
        }))
        .unwrap_or(Err(Fault::Internal))?;
        if !self.shared.room.fits(head.content_length) {
            return Err(no_room());
        }
        Ok(coding)
    }

    /// Reads a short body of a refused request to its end, so that the connection can stay.
    fn spare(&mut self, fault: &Fault, source: Source<'_, '_, '_, '_>, summary: &Summary, asked: &mut Asked<'_>) {
        let length = summary.content_length;
        if length == 0 {
            return;
        }
        let spared = asked.keep_alive
            && !summary.expects_continue
            && length <= SPARED_BYTES_MAX
            && !matches!(fault, Fault::ContentTooLarge(_) | Fault::Unavailable { .. });
        if !spared {
            return asked.give_up();
        }
        let shared = Arc::clone(&self.shared);
        let mut body = std::mem::take(&mut self.small);
        // A failure has given the connection up.
        let _ = self.receive(source, length, false, &mut body, &mut shared.room.share(), asked);
        self.keep(body, false);
    }

    /// Reads the body and asks the endpoint.
    fn ask(
        &mut self,
        endpoint: &dyn Endpoint,
        head: &Head<'_>,
        coding: Option<Coding>,
        source: Source<'_, '_, '_, '_>,
        expects_continue: bool,
        asked: &mut Asked<'_>,
    ) -> Answer {
        let shared = Arc::clone(&self.shared);
        let mut large = head.content_length > body::SMALL_BYTES;
        let mut body = if large { shared.buffers.take() } else { std::mem::take(&mut self.small) };
        let mut share = shared.room.share();
        let mut received = self.receive(source, head.content_length, expects_continue, &mut body, &mut share, asked);
        if let (Ok(()), Some(coding)) = (&received, coding) {
            let (mut decoded, mut decoded_share) = (shared.buffers.take(), shared.room.share());
            let bytes_max = shared.limits.decoded_bytes_max;
            received = shared.decoders.decode(coding, &body, &mut decoded, bytes_max, &mut decoded_share);
            // What was sent has served, and need not wait for the answer.
            self.keep(std::mem::replace(&mut body, decoded), large);
            (large, share) = (true, decoded_share);
        }
        if let Err(Fault::DecodedTooLarge(_)) = received {
            // Nothing is in doubt, but whoever sends bombs does not keep a connection.
            asked.keep_alive = false;
        }
        let answer = match received {
            Err(fault) => fault.answer(),
            // A panic in an endpoint is our fault, not the end of anything else.
            Ok(()) => catch_unwind(AssertUnwindSafe(|| endpoint.answer(head, &mut body))).unwrap_or_else(|_| {
                tracing::error!(method = head.method, path = head.path, "endpoint panicked");
                Fault::Internal.answer()
            }),
        };
        drop(share);
        self.keep(body, large);
        answer
    }

    /// Reads the body.
    fn receive(
        &mut self,
        source: Source<'_, '_, '_, '_>,
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
        let req = match source {
            Source::Server(req) => Some(req),
            Source::Wire => None,
            Source::Copied(rest) => {
                body.extend_from_slice(rest.get(..length).ok_or_else(short)?);
                asked.received_bytes = length;
                return Ok(());
            }
        };
        if expects_continue {
            self.watched.enter(Phase::Write);
            // When the client is gone, reading finds it out.
            let _ = wire.catch_up().and_then(|()| wire.send(b"HTTP/1.1 100 Continue\r\n\r\n", false));
        }
        self.watched.enter(Phase::Body);
        let end = body::read(req.map(Request::body), wire, length, body, share);
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
            End::Short => short(),
        };
        asked.give_up();
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
    fn answer(&mut self, mut answer: Answer, asked: Asked<'_>, rsp: Option<&mut Response<'_>>) {
        self.shared.observe(&Answered {
            route: asked.route,
            method: asked.method,
            status: answer.status,
            request_bytes: asked.received_bytes,
            duration: asked.started.elapsed(),
        });
        let bodiless = asked.method == "HEAD";
        let (Some(wire), Some(rsp)) = (&mut self.wire, rsp) else {
            return self.finish(&answer, bodiless, asked.unread);
        };
        let stays = asked.keep_alive
            && !self.shared.draining.load(Ordering::Relaxed)
            && !wire.must_end()
            && (!bodiless || answer.body.is_empty())
            && answer.body.len() <= ANSWER_BYTES_MAX
            && pending_fits(wire.settle(), &mut self.held, &self.shared.room);
        if !stays {
            return self.finish(&answer, bodiless, asked.unread);
        }
        let connection = if asked.old { answers::Connection::Kept } else { answers::Connection::Stays };
        if answer.status == 204 && self.answer_bare(&answer, connection) {
            return;
        }
        let Some(wire) = &mut self.wire else { return };
        answers::fields(&mut self.fields, &answer, &self.request_id, connection);
        wire.give(|shadow| {
            answers::head(shadow, answer.status, Some(answer.body.len()), &mut self.date, &self.fields);
            shadow.extend_from_slice(&answer.body);
        });
        rsp.status_code(usize::from(answer.status), answers::reason(answer.status));
        // SAFETY: the server encodes the answer right after `call` returns, into a buffer of its own, and drops `rsp`
        // (`each_connection_loop` of may_minihttp 0.1.11, which is why that version is pinned). Until then
        // `self.fields` is neither changed nor dropped: only `call` and `drop` do, and the server calls neither before.
        rsp.header(unsafe { std::mem::transmute::<&str, &'static str>(self.fields.as_str()) });
        rsp.body_vec(std::mem::take(&mut answer.body));
        self.watched.rest(wire.given());
    }
}

impl HttpService for Connection {
    fn call(&mut self, req: Request<'_, '_, '_>, rsp: &mut Response<'_>) -> std::io::Result<()> {
        // After the last answer the server's buffer may hold bytes that look like requests. Nothing can be written,
        // so the answer that the server makes of this goes nowhere, and it notices at its next write.
        if self.ended {
            return Ok(());
        }
        if self.watched.enter(Phase::Busy) == Phase::Cut {
            // Too late: serving it would take what can perhaps not be answered.
            self.end_cut();
            return Ok(());
        }
        self.first = Box::default();
        self.consumed += head_bytes(&req);
        let fields = req.headers().iter().map(|field| (field.name, field.value));
        let summary = self.summarise(req.method(), req.path(), req.version(), fields);
        self.serve(summary, Source::Server(req), Some(rsp));
        self.go_on(rsp);
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

/// May a further answer wait behind `pending` bytes?
fn pending_fits(pending: usize, held: &mut usize, room: &body::Room) -> bool {
    // Twice: in the server's buffer and in the shadow.
    let beyond = pending.saturating_sub(PENDING_BYTES_FREE) * 2;
    pending <= PENDING_BYTES_MAX && (beyond <= *held || room.hold(held, beyond))
}

fn short() -> Fault {
    Fault::BadRequest("the body is shorter than its Content-Length".into())
}
