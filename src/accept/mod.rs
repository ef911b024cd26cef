//! From a request's body to chunks of events: split, parse, group by partition, hand over, wait, answer.
//!
//! In goes a request whose body the door has read, out comes its answer; on the way every accepted event passes to the
//! [`Sink`] and every other one to the [`RejectSink`]. An answer other than 202 to 422 means that the request may be
//! sent again; 202 leaves only when the log has acknowledged every record that carries an event of the request.
//! Nothing is handed over before the whole body was read through, and no memory outlives the request.

mod media;
mod parser;
mod query;
mod rejects;
mod scan;
mod segment;
mod tally;
mod values;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use simd_json::tape;
use uuid::Uuid;

use crate::exchange::{Answer, Endpoint, Fault, Head};
use crate::flow::{Ack, Chunk, Sink};
use crate::kinds::made_key::KeyMaker;
use crate::kinds::{Columns, Kind, Rejection, Sent, partition_of};
use crate::pause::pause;
use crate::query_string;
use parser::Parsers;
use scan::Pace;
use tally::Tally;
use values::{Visit, each_value};

pub use rejects::{LogRejects, RejectSink, Rejected};
pub use values::{BAD_JSON, TOO_LONG};

/// Is told what became of the events; the metrics, in a running program. Both are called once for each request.
pub trait AcceptObserver: Send + Sync + 'static {
    /// So many events were acknowledged by the log.
    fn accepted(&self, _events: u64) {}
    /// So many events were rejected with this code, in a request that was answered.
    fn rejected(&self, _code: &'static str, _events: u64) {}
    /// A request could not be taken: no room, or the log did not acknowledge it.
    fn unavailable(&self) {}
}

/// Observes nothing.
impl AcceptObserver for () {}

/// Bounds and times of accepting.
#[derive(Debug, Clone)]
pub struct AcceptOptions {
    /// How many partitions the log has.
    pub partitions: u32,
    /// Bytes of the longest event, in whatever form it comes.
    pub event_bytes_max: usize,
    /// How long a request waits for the log.
    pub ack_timeout: Duration,
    /// What a 503 tells the client to wait, in seconds.
    pub retry_after_s: u16,
}

impl AcceptOptions {
    /// The usual ones: events of 1 MiB, 10 s for the log.
    pub fn new(partitions: u32) -> AcceptOptions {
        AcceptOptions { partitions, event_bytes_max: 1 << 20, ack_timeout: Duration::from_secs(10), retry_after_s: 1 }
    }
}

/// From here on a body's events are given room before they are read.
const LARGE_BODY_BYTES: usize = 64 << 10;

/// What an event takes of a large body, about: few are shorter, and longer ones leave room unused, and untouched.
const EVENT_TEXT_BYTES: usize = 128;

/// Where the events of a request go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Straight to the log.
    Log,
    /// To the spool, which may send them on more than once: each needs a key, and one without is given one.
    Spool,
}

/// Where another request's events would go, or why there is no room for them; asked before its body is read, and after.
pub type Room = Box<dyn Fn() -> Result<Way, Fault> + Send + Sync>;

/// The accepting endpoint of one kind.
pub struct Acceptor<K: Kind> {
    kind: Arc<K>,
    options: AcceptOptions,
    room: Room,
    sink: Arc<dyn Sink<K::Columns>>,
    /// Takes what goes by [`Way::Spool`].
    spool: Option<Arc<dyn Sink<K::Columns>>>,
    rejects: Arc<dyn RejectSink>,
    observer: Arc<dyn AcceptObserver>,
    parsers: Parsers,
}

impl<K: Kind> Acceptor<K> {
    /// An endpoint that hands accepted events to `sink` and others to `rejects`.
    ///
    /// # Panics
    ///
    /// When `options` name no partition.
    pub fn new(
        kind: Arc<K>,
        options: AcceptOptions,
        room: Room,
        sink: Arc<dyn Sink<K::Columns>>,
        rejects: Arc<dyn RejectSink>,
        observer: Arc<dyn AcceptObserver>,
    ) -> Acceptor<K> {
        assert!(options.partitions > 0, "a log has at least one partition");
        Acceptor { kind, options, room, sink, spool: None, rejects, observer, parsers: Parsers::default() }
    }

    /// With a spool, to which `room` may send requests.
    #[must_use]
    pub fn with_spool(mut self, spool: Arc<dyn Sink<K::Columns>>) -> Acceptor<K> {
        self.spool = Some(spool);
        self
    }

    /// How many partitions the log has.
    pub fn partitions(&self) -> u32 {
        self.options.partitions
    }

    fn has_room(&self) -> Result<(), Fault> {
        (self.room)().map(drop)
    }

    /// Where a request's events go whose body was read. When there is no room any more the log's way says so.
    fn way(&self) -> Way {
        if self.spool.is_none() { Way::Log } else { (self.room)().unwrap_or(Way::Log) }
    }

    fn sink(&self, way: Way) -> &dyn Sink<K::Columns> {
        self.spool.as_ref().filter(|_| way == Way::Spool).unwrap_or(&self.sink).as_ref()
    }

    /// Takes a body apart.
    fn take_in(&self, head: &Head<'_>, body: &[u8]) -> Intake<'_, K> {
        let mut intake = Intake::new(self, head);
        if body.len() >= LARGE_BODY_BYTES {
            intake.reserve(body.len());
        }
        let mut parser = self.parsers.take();
        let mut pace = Pace::new(pause);
        each_value(body, self.options.event_bytes_max, &mut parser, &mut pace, &mut intake);
        self.parsers.give(parser);
        intake
    }

    /// Stores what was taken in; only then are the events counted as accepted or rejected.
    fn settle(&self, intake: Intake<'_, K>) -> Result<Tally, Fault> {
        let Intake { tally, partitions, way, .. } = intake;
        if tally.accepted() > 0 {
            self.store(self.sink(way), partitions)?;
        }
        self.observer.accepted(tally.accepted());
        for (code, events) in tally.by_code() {
            self.observer.rejected(code, *events);
        }
        Ok(tally)
    }

    /// Hands the events over and waits until the log has acknowledged all of them.
    fn store(&self, sink: &dyn Sink<K::Columns>, partitions: Vec<K::Columns>) -> Result<(), Fault> {
        let unavailable = |message: &'static str| {
            self.observer.unavailable();
            Fault::Unavailable { message: message.into(), retry_after_s: self.options.retry_after_s }
        };
        let ack = Ack::new();
        for (partition, columns) in (0..).zip(partitions) {
            if columns.is_empty() {
                continue;
            }
            // A chunk that comes back is dropped; those already handed over are stored, and found to be duplicates when
            // the request is sent again.
            if sink.put(partition, Chunk { columns, ack: ack.part() }).is_err() {
                return Err(unavailable("too many events are waiting for the log: send the request again"));
            }
        }
        if ack.wait(self.options.ack_timeout) {
            Ok(())
        } else {
            Err(unavailable("the log did not acknowledge the events: send the request again"))
        }
    }
}

impl<K: Kind> Endpoint for Acceptor<K> {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        media::check(head.content_type)?;
        query_string::none(head.query).map_err(Fault::BadParameter)?;
        self.has_room()
    }

    fn takes_coded_bodies(&self) -> bool {
        true
    }

    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
        let settled = self.settle(self.take_in(head, body));
        settled.map_or_else(|fault| fault.answer(), |tally| tally.answer())
    }
}

/// The events of one request, as they are found.
struct Intake<'a, K: Kind> {
    acceptor: &'a Acceptor<K>,
    rules: K::Rules,
    way: Way,
    request: Request,
    peer: SocketAddr,
    /// One for each partition, in order.
    partitions: Vec<K::Columns>,
    tally: Tally,
}

impl<'a, K: Kind> Intake<'a, K> {
    fn new(acceptor: &'a Acceptor<K>, head: &Head<'_>) -> Self {
        let partitions =
            std::iter::repeat_with(K::Columns::default).take(acceptor.options.partitions as usize).collect();
        let way = acceptor.way();
        let key_maker = match (head.idempotency_key, way) {
            (None, Way::Spool) => Some(KeyMaker::new(&Uuid::new_v4().to_string())),
            (key, _) => key.map(KeyMaker::new),
        };
        Intake {
            acceptor,
            rules: acceptor.kind.rules(),
            way,
            request: Request { received_us: now_us(), key_maker },
            peer: head.peer,
            partitions,
            tally: Tally::default(),
        }
    }
}

impl<K: Kind> Intake<'_, K> {
    /// Makes room for the events of so long a body, which fall evenly into the partitions.
    fn reserve(&mut self, body_bytes: usize) {
        let share = body_bytes / self.partitions.len();
        for columns in &mut self.partitions {
            columns.reserve(share / EVENT_TEXT_BYTES, share / 2);
        }
    }
}

/// What is known of a request beside its body.
struct Request {
    received_us: i64,
    key_maker: Option<KeyMaker>,
}

impl Request {
    /// What is known of one of its events.
    #[inline]
    fn sent<'v>(&'v self, raw: &'v [u8], position: u64) -> Sent<'v> {
        Sent { raw, received_us: self.received_us, position, key_maker: self.key_maker.as_ref() }
    }
}

/// Adds an event to its partition's columns.
#[inline]
fn push_event<K: Kind>(partitions: &mut [K::Columns], event: &K::Event<'_>) {
    let partition = partition_of(K::partition_key(event), partitions.len() as u32);
    let columns = &mut partitions[partition as usize];
    K::push(columns, event);
    debug_assert!(
        K::key(columns, columns.len() - 1).is_none_or(|key| key.id == *K::partition_key(event)),
        "an event with a key lies by the key's id"
    );
}

/// Now, in microseconds since 1970.
fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

impl<K: Kind> Visit for Intake<'_, K> {
    #[inline]
    fn plain(&mut self, raw: &[u8]) -> bool {
        let event = K::parse_plain(&self.rules, self.request.sent(raw, self.tally.found()));
        event.is_some_and(|event| {
            push_event::<K>(&mut self.partitions, &event);
            self.tally.accept();
            true
        })
    }

    #[inline]
    fn value(&mut self, line: u64, raw: &[u8], value: tape::Value<'_, '_>) {
        let rejection = match K::parse(&self.rules, value, self.request.sent(raw, self.tally.found())) {
            Ok(event) => {
                push_event::<K>(&mut self.partitions, &event);
                self.tally.accept();
                return;
            }
            Err(rejection) => rejection,
        };
        self.refused(line, raw, rejection);
    }

    #[cold]
    fn refused(&mut self, line: u64, raw: &[u8], rejection: Rejection) {
        let rejected = Rejected { kind: K::NAME, peer: self.peer, line, raw, reason: &rejection };
        self.acceptor.rejects.reject(&rejected);
        self.tally.reject(line, rejection);
    }
}

#[cfg(test)]
mod tests;
