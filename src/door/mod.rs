//! The door: HTTP/1.1 over `may_minihttp`, guarded.
//!
//! In: connections. Out: for each request one call of its [`Endpoint`](crate::exchange::Endpoint), and one answer.
//!
//! ```text
//! accept ─▶ may_minihttp reads and parses a head ─▶ frame ─▶ routes ─▶ admit ─▶ body ─▶ decode ─▶ endpoint ─▶ answer
//!                    └── watch: deadlines, from outside of the coroutines ──┘
//! ```
//!
//! `may_minihttp` gives speed: a coroutine for each connection, and a loop of read, parse, call, write. It has no
//! timeouts, no `Connection: close`, no interim answers and no bound on what it buffers. Those are added with a second
//! descriptor of each connection (`wire`) and a thread that watches all of them (`watch`).
//!
//! What stays as the server has it: a connection costs some 80 KiB, most of it three buffers; at most 16 header fields;
//! of a malformed head behind other requests it cannot be told whether it had too many fields, so its length decides
//! between 400 and 431; a further request that arrives together with the end of its sender's side gets a 400 that says
//! so (a first one is served, see `first`); a 204 has `Content-Length: 0` where further requests came before it (see
//! `bare`); every malformed head is a line on stderr. An answer above 64 KiB, and one to `HEAD`, closes its connection;
//! a connection that sends nothing is accepted after a second.
//!
//! What always holds: no panic is reachable from the network; no request is ever read out of the bytes of another; a
//! connection answers nothing after an answer that closes it; everything that a client can make grow has a bound in
//! [`Options`].

mod answers;
mod bare;
mod body;
mod connection;
mod decode;
mod ending;
mod first;
mod frame;
mod listen;
mod options;
mod request;
mod routes;
mod socket;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use may::coroutine::JoinHandle;
use may_minihttp::HttpServiceFactory;

use connection::Connection;
use options::Limits;
use watch::{Phase, Watched};
use wire::Wire;

pub use options::Options;
pub use routes::Routes;

/// One answered request, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The pattern of the route; `-` where there was none.
    pub route: &'a str,
    /// The method; `OTHER` for those that HTTP does not define, `-` where no head could be read.
    pub method: &'static str,
    /// The status of the answer.
    pub status: u16,
    /// The length of the body that was read, as it was sent.
    pub request_bytes: usize,
    /// From the head's arrival until the answer was ready.
    pub duration: Duration,
}

/// Told about every answered request. Called in a coroutine: it must not block.
pub trait Observer: Send + Sync + 'static {
    /// A request is being answered.
    fn answered(&self, answered: &Answered<'_>);
}

impl<F: Fn(&Answered<'_>) + Send + Sync + 'static> Observer for F {
    fn answered(&self, answered: &Answered<'_>) {
        self(answered);
    }
}

/// What connections, the watch and the door share.
struct Shared {
    limits: Limits,
    routes: Routes,
    observer: Box<dyn Observer>,
    room: body::Room,
    buffers: body::Buffers,
    decoders: decode::Decoders,
    open: AtomicUsize,
    refused: AtomicU64,
    draining: AtomicBool,
    /// The process has no descriptors left.
    exhausted: AtomicBool,
    /// Connections that the watch has not seen yet.
    newcomers: Mutex<Vec<Arc<Watched>>>,
    /// Signalled when a connection has closed while draining, and when the watch is to end.
    changed: Condvar,
    stopped: Mutex<bool>,
    id_prefix: u64,
    id_next: AtomicU64,
}

impl Shared {
    /// A connection has closed.
    fn closed(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        if self.draining.load(Ordering::Acquire) {
            self.changed.notify_all();
        }
    }

    /// Makes an id that no other request of this process has, and hardly one of another.
    fn make_request_id(&self, into: &mut String) {
        into.clear();
        let n = self.id_next.fetch_add(1, Ordering::Relaxed);
        // Writing to a String cannot fail.
        let _ = write!(into, "{:016x}-{n:x}", self.id_prefix);
    }

    /// Tells the observer, whose panic must not end what serves or accepts.
    fn observe(&self, answered: &Answered<'_>) {
        if catch_unwind(AssertUnwindSafe(|| self.observer.answered(answered))).is_err() {
            tracing::error!("observer panicked");
        }
    }

    fn lock_stopped(&self) -> std::sync::MutexGuard<'_, bool> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `may_minihttp` asks for a service for each connection.
struct Factory(Arc<Shared>);

impl HttpServiceFactory for Factory {
    type Service = Connection;

    fn new_service(&self, id: usize) -> Connection {
        let shared = &self.0;
        let open = shared.open.fetch_add(1, Ordering::AcqRel) + 1;
        let limits = &shared.limits;
        let wire = Wire::duplicate(id);
        let exhausted = shared.exhausted.load(Ordering::Relaxed)
            || wire.as_ref().map_or(true, |wire| wire.number() >= limits.descriptor_max);
        let too_many = open > limits.connections_hard_max || exhausted;
        let refused = too_many || open > limits.connections_max || shared.draining.load(Ordering::Acquire);
        let phase = if refused { Phase::Linger } else { Phase::Fresh };
        let wire = wire.ok();
        let watched = Arc::new(Watched::new(wire.as_ref().map_or(-1, Wire::number), phase));
        if refused {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            refuse(shared, id, too_many);
        }
        let first = match &wire {
            Some(wire) if !refused => first::copy(wire.number()),
            _ => Box::default(),
        };
        if wire.is_some() {
            shared.newcomers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&watched));
        }
        let connection = if refused {
            Connection::refused(Arc::clone(shared), watched, wire)
        } else {
            Connection::new(Arc::clone(shared), watched, wire, first)
        };
        if too_many {
            // Accepting pauses, so that those that were told to go can, and so that running out of descriptors does
            // not become an endless loop of failing accepts.
            may::coroutine::sleep(Duration::from_millis(5));
        }
        connection
    }
}

/// Answers 503 to a connection beyond the limit, as far as that works without waiting.
fn refuse(shared: &Shared, id: usize, at_once: bool) {
    let Ok(fd) = i32::try_from(id) else { return };
    let answer =
        crate::exchange::Fault::Unavailable { message: "too many connections: try again".into(), retry_after_s: 1 }
            .answer();
    let (mut fields, mut bytes, mut request_id) = (String::new(), Vec::new(), String::new());
    shared.make_request_id(&mut request_id);
    answers::fields(&mut fields, &answer, &request_id, answers::Connection::Closes);
    answers::head(&mut bytes, answer.status, Some(answer.body.len()), &mut answers::Date::default(), &fields);
    bytes.extend_from_slice(&answer.body);
    // A new connection has room for this; where not, it is closed without.
    let _ = socket::send(fd, &bytes, false);
    socket::shut(fd, if at_once { Shutdown::Both } else { Shutdown::Write });
    let status = answer.status;
    shared.observe(&Answered { route: "-", method: "-", status, request_bytes: 0, duration: Duration::ZERO });
}

/// An open door. Dropping it closes it without waiting for anybody.
pub struct Door {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
    watch: Option<thread::JoinHandle<()>>,
}

/// Opens the door.
///
/// # Errors
///
/// The address is in use or cannot be bound.
pub fn start(options: &Options, routes: Routes, observer: impl Observer) -> io::Result<Door> {
    configure_coroutines(options);
    let limits = Limits::derive(options);
    let shared = Arc::new(Shared {
        room: body::Room::new(limits.body_bytes_in_flight_max),
        limits,
        routes: routes.with_list(),
        observer: Box::new(observer),
        buffers: body::Buffers::new(),
        decoders: decode::Decoders::new(),
        open: AtomicUsize::new(0),
        refused: AtomicU64::new(0),
        draining: AtomicBool::new(false),
        exhausted: AtomicBool::new(false),
        newcomers: Mutex::new(Vec::new()),
        changed: Condvar::new(),
        stopped: Mutex::new(false),
        id_prefix: RandomState::new().build_hasher().finish(),
        id_next: AtomicU64::new(1),
    });
    let naming = |e: io::Error| io::Error::new(e.kind(), format!("cannot listen on {}: {e}", options.listen));
    let reservation = listen::Reservation::take(options.listen).map_err(naming)?;
    let address = reservation.address();
    let accepting = Factory(Arc::clone(&shared)).start(address).map_err(naming)?;
    drop(reservation);
    match first::defer_accepting(address) {
        Ok(true) => {}
        Ok(false) => tracing::warn!("the listener was not found: clients that close their side at once may get a 400"),
        Err(error) => tracing::warn!(%error, "accepting cannot be deferred until the first bytes have arrived"),
    }
    let watching = Arc::clone(&shared);
    let watch = thread::Builder::new().name("door-watch".to_owned()).spawn(move || watch::run(&watching))?;
    Ok(Door { shared, address, accepting: Mutex::new(Some(accepting)), watch: Some(watch) })
}

/// Sets up `may`, once for the process: it cannot be changed when coroutines have run.
fn configure_coroutines(options: &Options) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let workers = match options.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        // In words; an even number, because an odd one makes `generator` fill and scan every stack.
        let words = (options.stack_bytes / size_of::<usize>()).max(0x2000).next_multiple_of(2);
        may::config().set_workers(workers).set_stack_size(words);
        // Workers share their cores with Kafka's and ClickHouse's threads: the kernel knows better where they fit.
        may::config().set_worker_pin(false);
    });
}

impl Door {
    /// Where it listens, with the port that was found for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Whether new connections are accepted: until it is drained, unless accepting has failed, which only a lack of
    /// memory for a coroutine's stack can bring about.
    pub fn is_accepting(&self) -> bool {
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner);
        accepting.as_ref().is_some_and(|accepting| !accepting.is_done())
    }

    /// A view of the door's counts that outlives it.
    pub fn gauges(&self) -> Gauges {
        Gauges(Arc::clone(&self.shared))
    }

    /// Stops accepting, closes idle connections and waits until every request in flight is answered. Returns whether
    /// all were; at the deadline the remaining connections are cut. Blocks its thread: not for coroutines.
    pub fn drain(&self, deadline: Instant) -> bool {
        self.shared.draining.store(true, Ordering::Release);
        if let Some(accepting) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            stop_accepting(accepting);
        }
        // Wakes the watch, which looks more often now.
        self.shared.changed.notify_all();
        let in_time = self.wait_until_closed(deadline);
        if !in_time {
            *self.shared.lock_stopped() = true;
            self.shared.changed.notify_all();
            self.wait_until_closed(Instant::now() + Duration::from_secs(1));
        }
        in_time
    }

    fn wait_until_closed(&self, deadline: Instant) -> bool {
        let mut guard = self.shared.lock_stopped();
        loop {
            if self.shared.open.load(Ordering::Acquire) == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // Whoever closes does not take the lock, so a signal can be missed: look again soon in any case.
            let wait = left.min(Duration::from_millis(10));
            guard = self.shared.changed.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shared.draining.store(true, Ordering::Release);
        if let Some(accepting) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() {
            stop_accepting(accepting);
        }
        *self.shared.lock_stopped() = true;
        self.shared.changed.notify_all();
        if let Some(watch) = self.watch.take() {
            // The watch does not panic; if it did, that was printed.
            let _ = watch.join();
        }
    }
}

/// Ends the accepting coroutine, which closes the listener.
fn stop_accepting(accepting: JoinHandle<()>) {
    // SAFETY: cancelling unwinds the coroutine at its next wait. What it holds there is the listener, at most one
    // accepted stream with its service, and no lock; dropping them is what is wanted.
    unsafe { accepting.coroutine().cancel() };
    // It always ends as cancelled.
    let _ = accepting.join();
}

/// Counts for metrics.
#[derive(Clone)]
pub struct Gauges(Arc<Shared>);

impl Gauges {
    /// Connections open now.
    pub fn connections_open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Connections refused because there were too many, since the start.
    pub fn connections_refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Bytes that the bodies in flight may take now.
    pub fn body_bytes_in_flight(&self) -> usize {
        self.0.room.taken()
    }
}
