//! Keeps records on disk while Kafka is away, and sends them on in order when it is back.
//!
//! In: records from the spool's batcher, whose events all have keys. Out: acknowledgements, once a record is surely on the
//! disk; and later the record itself, to the log. One thread does both for a kind, so that what comes while the spool is
//! emptied falls in behind what waits: it goes to the disk until nothing unsent is left there, and then, by the same
//! producer, straight to the log. A segment is removed when the log has acknowledged all of it. A process that ends in
//! between sends a segment again, which counts nothing twice since its events have keys. The requests' events go
//! straight to the log again when no segment is left.

mod disk;
mod folder;
mod segment;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use crate::backoff::{self, Backoff};
use crate::flow::{Ack, AckPart, UnderWay};
#[cfg(feature = "failpoints")]
use crate::shutdown::kill_itself;
use disk::Disk;
use folder::Segment;

pub use folder::{Folder, Found, Root, SpoolError, look};

/// Records that may wait for the disk: 64 of the usual 1 MB.
const WAITING_MAX: usize = 64;
/// Written, and brought to the disk, in one go.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// A segment takes no more groups from here on. What is sent again after a crash is two of them at most.
pub const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments handed to the log at once: while one is acknowledged the next one is on its way.
const HANDED_MAX: usize = 2;
/// How often the thread looks up while something is handed to the log, and while something waits for it.
const LOOK: Duration = Duration::from_millis(5);
const WAIT: Duration = Duration::from_millis(100);
/// The waits after failures of the log, and of segments that it does not take.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long requests are refused after a failure of the disk, which is this process's own: nobody else comes back with it.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// A disk that takes longer for one group counts as stalled: nothing more is accepted.
const STALL_MAX: Duration = Duration::from_millis(2500);

/// One record.
pub struct Record {
    /// The partition that it goes to.
    pub partition: u32,
    /// How many events it holds, at least one.
    pub events: u32,
    /// The version of its schema.
    pub schema: u16,
    /// The Arrow IPC stream.
    pub value: Vec<u8>,
}

/// A record and who waits for it.
pub struct Waiting {
    /// The record.
    pub record: Record,
    /// Settled when it is safe.
    pub acks: Vec<AckPart>,
    /// Kept until then.
    pub under_way: UnderWay,
}

/// The log, as the spool sees it.
pub trait Log: Send + 'static {
    /// How many partitions it has.
    fn partitions(&self) -> u32;
    /// Whether it takes records at the moment.
    fn takes(&self) -> bool;
    /// Hands a record over, behind those before it; its acks are settled by the log.
    fn produce(&self, waiting: Waiting);
}

/// Told what becomes of spooled events; the metrics, in a running program.
pub trait SpoolObserver: Send + 'static {
    /// So many events were brought to the disk.
    fn spooled(&self, events: u64);
    /// So many events of the disk were acknowledged by the log.
    fn sent_on(&self, events: u64);
    /// So many bytes of acknowledged events cannot be read any more.
    fn damaged(&self, bytes: u64);
    /// So many bytes lie on the disk now.
    fn holds(&self, bytes: u64);
}

/// What the thread tells those that accept.
struct Shared {
    started: Instant,
    /// Bytes on the disk, of segments that the log has not acknowledged.
    bytes: AtomicU64,
    /// Segments that are handed to the log.
    handed: AtomicU64,
    /// The disk takes nothing until so many milliseconds after the start, and whether that is for lack of room.
    refusing_ms: AtomicU64,
    is_full: AtomicBool,
    /// Milliseconds after the start at which the disk was given what it has not taken yet, plus one; 0 for nothing.
    writing_ms: AtomicU64,
    /// Whether something cannot be sent although the log takes others.
    has_refused: AtomicBool,
    /// No further segment is handed to the log.
    is_ending: AtomicBool,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// The spool of a kind.
#[derive(Clone)]
pub struct Spool {
    sender: Sender<Waiting>,
    shared: Arc<Shared>,
    room: Arc<folder::Room>,
}

impl Spool {
    /// Starts with what lies in the folder. The thread ends with the last handle.
    pub fn start(
        name: &str,
        folder: Folder,
        log: impl Log,
        observer: impl SpoolObserver,
    ) -> Result<Spool, std::io::Error> {
        let room = folder.room.clone();
        let disk = Disk::open(folder)?;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            bytes: AtomicU64::new(disk.bytes()),
            handed: AtomicU64::new(0),
            refusing_ms: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            writing_ms: AtomicU64::new(0),
            has_refused: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        });
        if disk.bytes() > 0 {
            tracing::info!(
                kind = name,
                bytes = disk.bytes(),
                "the spool holds events from before, they are sent first"
            );
        }
        let (sender, receiver) = channel::bounded(WAITING_MAX);
        let worker = Worker {
            name: name.to_owned(),
            shared: shared.clone(),
            receiver,
            disk,
            log,
            observer,
            handed: VecDeque::new(),
            is_proven: false,
            paused: Pause::new(),
            refused: VecDeque::new(),
            refused_paused: Pause::new(),
        };
        std::thread::Builder::new().name(format!("spool-{name}")).spawn(move || worker.run())?;
        Ok(Spool { sender, shared, room })
    }

    /// Takes a record, waiting for the disk while too many wait.
    pub fn put(&self, waiting: Waiting) {
        // The thread outlives every handle; if it ever did not, the acks that are dropped fail.
        let _ = self.sender.send(waiting);
    }

    /// Bytes on the disk that the log has not acknowledged.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Acquire)
    }

    /// Whether some of it cannot be sent although the log takes others.
    pub fn has_refused(&self) -> bool {
        self.shared.has_refused.load(Ordering::Acquire)
    }

    /// Why it takes nothing at the moment; `None` when it does.
    pub fn refusal(&self) -> Option<&'static str> {
        let now_ms = self.shared.now_ms();
        let writing_ms = self.shared.writing_ms.load(Ordering::Acquire);
        let is_refusing = now_ms < self.shared.refusing_ms.load(Ordering::Acquire);
        if self.room.is_full() || is_refusing && self.shared.is_full.load(Ordering::Acquire) {
            Some("the spool is full (spool.bytes_max, or its disk)")
        } else if is_refusing {
            Some("the spool cannot be written, the program's log says why")
        } else if writing_ms > 0 && now_ms + 1 - writing_ms > STALL_MAX.as_millis() as u64 {
            Some("the spool's disk does not answer")
        } else {
            None
        }
    }

    /// Hands no further segment to the log, and waits until those that were handed are settled, as long as the log takes
    /// any; `false` when `timeout` passed first.
    pub fn settle(&self, timeout: Duration, log_takes: impl Fn() -> bool) -> bool {
        self.shared.is_ending.store(true, Ordering::Release);
        let deadline = Instant::now() + timeout;
        while self.shared.handed.load(Ordering::Acquire) > 0 && log_takes() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

/// A segment whose records the log has been given.
struct Handed {
    segment: Segment,
    events: u64,
    damaged_bytes: u64,
    /// Of each record that was given: where in the file it lies, and what becomes of it.
    records: Vec<(usize, Arc<Ack>)>,
    /// How many of them, from the first on, have been seen to be settled.
    settled: usize,
}

impl Handed {
    /// Whether all of it was acknowledged or has failed.
    fn is_settled(&mut self) -> bool {
        let newly = self.records[self.settled..].iter().take_while(|(_, ack)| ack.settled().is_some()).count();
        self.settled += newly;
        self.settled == self.records.len()
    }

    /// Of each record, whether it was acknowledged.
    fn outcomes(&self) -> impl Iterator<Item = bool> {
        self.records.iter().map(|(_, ack)| ack.settled() == Some(true))
    }

    /// The segment, with a note of what need not be sent again.
    fn without_acknowledged(mut self) -> Segment {
        let acknowledged = self.records.iter().filter(|(_, ack)| ack.settled() == Some(true));
        self.segment.sent.extend(acknowledged.map(|(at, _)| *at));
        self.segment
    }
}

/// The time until something is tried again.
struct Pause {
    backoff: Backoff,
    until: Option<Instant>,
}

impl Pause {
    fn new() -> Pause {
        Pause { backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX, backoff::seed()), until: None }
    }

    fn begin(&mut self) {
        self.until = Some(Instant::now() + self.backoff.next_wait());
    }

    fn end(&mut self) {
        self.backoff.reset();
        self.until = None;
    }

    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }
}

/// The one thread of a spool.
struct Worker<L, O> {
    name: String,
    shared: Arc<Shared>,
    receiver: Receiver<Waiting>,
    disk: Disk,
    log: L,
    observer: O,
    /// Oldest first.
    handed: VecDeque<Handed>,
    /// Whether the log has acknowledged something since it last failed.
    is_proven: bool,
    /// After a failure of the log.
    paused: Pause,
    /// Segments that cannot be sent although the log takes others.
    refused: VecDeque<Segment>,
    /// Until they are tried again.
    refused_paused: Pause,
}

impl<L: Log, O: SpoolObserver> Worker<L, O> {
    fn run(mut self) {
        while let Ok(group) = self.gather() {
            if !group.is_empty() {
                self.take(group);
            }
            self.settle_handed();
            self.hand_on();
            self.tell();
        }
    }

    /// What has come, as far as it goes to the disk in one go; nothing after a while, an error when all handles are gone.
    fn gather(&self) -> Result<Vec<Waiting>, ()> {
        let patience = match (self.handed.is_empty(), self.disk.bytes() == 0) {
            (false, _) => LOOK,
            (true, false) => WAIT,
            (true, true) => Duration::MAX,
        };
        let first = match self.receiver.recv_timeout(patience) {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return Err(()),
        };
        let mut bytes = first.record.value.len();
        let mut group = vec![first];
        while bytes < GROUP_BYTES_MAX
            && let Ok(next) = self.receiver.try_recv()
        {
            bytes += next.record.value.len();
            group.push(next);
        }
        Ok(group)
    }

    /// Brings a group to the disk, or straight to the log when nothing unsent is left there.
    fn take(&mut self, group: Vec<Waiting>) {
        self.is_proven &= self.log.takes();
        if self.is_proven && self.refused.is_empty() && self.disk.is_all_handed() {
            group.into_iter().for_each(|waiting| self.log.produce(waiting));
            return;
        }
        self.shared.writing_ms.store(self.shared.now_ms() + 1, Ordering::Release);
        let written = self.disk.write(self.log.partitions(), group.iter().map(|waiting| &waiting.record));
        self.shared.writing_ms.store(0, Ordering::Release);
        self.tell();
        match written {
            Ok(()) => {
                self.observer.spooled(group.iter().map(|waiting| u64::from(waiting.record.events)).sum());
                group.into_iter().flat_map(|waiting| waiting.acks).for_each(|ack| ack.settle(true));
            }
            Err(error) => {
                tracing::error!(kind = self.name, %error, "the spool cannot be written, its requests get a 503");
                self.shared.is_full.store(error.kind() == ErrorKind::StorageFull, Ordering::Release);
                let until_ms = self.shared.now_ms() + DISK_PAUSE.as_millis() as u64;
                self.shared.refusing_ms.store(until_ms, Ordering::Release);
            }
        }
    }

    /// Hands what waits to the log, oldest first. What was refused goes by itself: Kafka takes or refuses whole batches, so that
    /// others beside it would share its fate.
    fn hand_on(&mut self) {
        let is_ending = self.shared.is_ending.load(Ordering::Acquire);
        if is_ending || !self.paused.is_over() || !self.log.takes() {
            return;
        }
        let is_refused_due = !self.refused.is_empty() && self.refused_paused.is_over();
        // After `settle_handed` an oldest one that is settled has failed: it is judged together with what went beside it.
        let is_oldest_apart =
            self.handed.front_mut().is_some_and(|oldest| oldest.segment.is_refused || oldest.is_settled());
        if (is_refused_due || is_oldest_apart) && !self.handed.is_empty() {
            return;
        }
        if is_refused_due && let Some(segment) = self.refused.pop_front() {
            return self.hand(segment);
        }
        while self.handed.len() < HANDED_MAX
            && let Some(segment) = self.disk.next()
        {
            self.hand(segment);
        }
    }

    fn hand(&mut self, segment: Segment) {
        match self.give(segment.clone()) {
            Ok(handed) => self.handed.push_back(handed),
            Err(reason) => {
                let path = segment.path.display();
                tracing::error!(kind = self.name, %path, reason, "a segment of the spool cannot be sent on, it is kept and tried again");
                self.refuse(segment);
            }
        }
    }

    fn give(&self, segment: Segment) -> Result<Handed, String> {
        let bytes = folder::read(&segment).map_err(|error| error.to_string())?;
        let contents = segment::read(&bytes);
        let partitions = self.log.partitions();
        if let Some((label, _)) = contents.records.iter().find(|(label, _)| label.partitions != partitions) {
            let noted = label.partitions;
            return Err(format!("it is for a log of {noted} partitions, and this one has {partitions}"));
        }
        let mut records = Vec::new();
        for (label, at) in contents.records.iter().filter(|(_, at)| !segment.sent.contains(&at.start)) {
            let value = bytes[at.clone()].to_vec();
            let record = Record { partition: label.partition, events: label.events, schema: label.schema, value };
            let ack = Ack::new();
            self.log.produce(Waiting { record, acks: vec![ack.part()], under_way: UnderWay::default() });
            records.push((at.start, ack));
        }
        if contents.torn_bytes > 0 {
            let (path, bytes) = (segment.path.display(), contents.torn_bytes);
            tracing::warn!(kind = self.name, %path, bytes, "the spool's last write was cut short: nothing of it was acknowledged");
        }
        let (events, damaged_bytes) = (contents.events(), contents.damaged_bytes);
        Ok(Handed { segment, events, damaged_bytes, records, settled: 0 })
    }

    /// Keeps a segment that the log does not take apart from the others for a while.
    fn refuse(&mut self, mut segment: Segment) {
        segment.is_refused = true;
        self.refused.push_back(segment);
        self.refused_paused.begin();
    }

    /// Removes what the log has acknowledged, and sees to it that the rest is tried again.
    fn settle_handed(&mut self) {
        while let Some(oldest) = self.handed.front_mut()
            && oldest.is_settled()
            && oldest.outcomes().all(|taken| taken)
            && let Some(handed) = self.handed.pop_front()
        {
            self.is_proven |= handed.events > 0;
            self.paused.end();
            if handed.segment.is_refused {
                self.refused_paused.end();
            }
            self.observer.sent_on(handed.events);
            self.remove(handed);
            if self.disk.bytes() == 0 {
                tracing::info!(kind = self.name, "the spool is empty: all its events are in the log");
            }
        }
        if !self.handed.is_empty() && self.handed.iter_mut().all(Handed::is_settled) {
            self.put_back_handed();
        }
    }

    /// After a failure, once all that was handed is settled: what is not acknowledged is sent again, in order where the log
    /// is away. Where it is not, it refuses these alone, and the rest goes on.
    fn put_back_handed(&mut self) {
        let was_refused = self.handed.iter().any(|handed| handed.segment.is_refused);
        let log_takes = self.log.takes();
        let took_some = self.handed.iter().flat_map(Handed::outcomes).any(|taken| taken);
        if !took_some && !was_refused {
            self.is_proven = false;
            self.paused.begin();
        }
        if !log_takes {
            tracing::warn!(kind = self.name, "the log did not take what was spooled: it is sent again");
        }
        for handed in std::mem::take(&mut self.handed) {
            let left = handed.outcomes().filter(|taken| !taken).count();
            let segment = handed.without_acknowledged();
            if left == 0 || !log_takes && !was_refused {
                self.disk.put_back(segment);
                continue;
            }
            if log_takes {
                let path = segment.path.display();
                tracing::error!(kind = self.name, %path, records = left, "the log is there and does not take records of the spool: they are kept and tried again; what it says of them stands above");
            }
            self.refuse(segment);
        }
    }

    fn remove(&mut self, handed: Handed) {
        fail::fail_point!("spool::before_remove", |_| kill_itself());
        let Handed { segment, damaged_bytes, .. } = handed;
        if damaged_bytes == 0 {
            return self.disk.remove(&segment);
        }
        self.observer.damaged(damaged_bytes);
        match self.disk.set_aside(&segment) {
            Ok(aside) => {
                let path = aside.display();
                tracing::error!(kind = self.name, %path, bytes = damaged_bytes, "acknowledged events are LOST: the disk gave back other bytes than it was given; the file is kept for you to look at, what was readable of it is in the log");
            }
            Err(error) => {
                let path = segment.path.display();
                tracing::error!(kind = self.name, %path, %error, bytes = damaged_bytes, "acknowledged events are LOST: the disk gave back other bytes than it was given, and the file cannot be renamed");
            }
        }
    }

    fn tell(&self) {
        self.shared.bytes.store(self.disk.bytes(), Ordering::Release);
        self.shared.handed.store(self.handed.len() as u64, Ordering::Release);
        let has_refused = !self.refused.is_empty() || self.handed.iter().any(|handed| handed.segment.is_refused);
        self.shared.has_refused.store(has_refused, Ordering::Release);
        self.observer.holds(self.disk.bytes());
    }
}

#[cfg(test)]
mod tests;
