//! Reads records of one partition and builds the block of a range, until it is full, old enough or complete.
//!
//! A record that cannot be read counts as holding no events, and is handed on as it is with the block. One that only a
//! later version of the program can read ends the range before it, and is not passed over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::block::{Block, BlockBuilder};
use super::decode::{Decoded, Rejected, decode};
use super::rejected::PassedOver;
use super::seen::SeenKeys;
use super::{Settings, WriterObserver};
use crate::config::limits::RANGE_BYTES_MAX;
use crate::kinds::{Columns, Kind};
use crate::log::consume::{Polled, Reader};

/// The longest that one poll waits while no range is open.
const POLL_MAX: Duration = Duration::from_millis(100);
/// How many times longer a range may stay open once it holds so many events. One with 16,384 is under load: at the usual
/// age of 200 ms that is 80,000 events/s in one partition. What a range costs beside its events (its counters are up to a
/// row for each site and day, and each insert makes a part that is merged) is the less, the more it holds.
const PATIENCE: [(u64, u32); 3] = [(65_536, 10), (16_384, 4), (0, 1)];
/// What was shown patience is stored when nothing has come for this long.
const LULL: Duration = Duration::from_millis(50);
/// Records come in a trickle when a range had so many of them, and so few events in them: single events, which are
/// acknowledged every few milliseconds. They are then left to gather for most of the range's age.
const TRICKLE_RECORDS: std::ops::Range<u64> = 8..1024;
const TRICKLE_EVENTS_MAX: u64 = 4096;
/// The part of a range's age, in eighths, that is left to gather, and the longest; in the rest of it what has gathered is
/// read.
const GATHER_EIGHTHS: u32 = 7;
const GATHER_MAX: Duration = Duration::from_millis(250);
/// How often a problem of the reader is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// The block of a range.
pub struct Filled<K: Kind> {
    /// Its new events.
    pub block: Block<K>,
    /// The last offset of the range.
    pub last: i64,
    /// Its records that cannot be read.
    pub rejected: Vec<Rejected>,
}

/// Why a block could not be built.
pub enum FillError {
    /// The log does not hold the offset asked for.
    OutOfRange,
    /// The reader does not work at the moment.
    Stuck,
    /// Only a later version of the program can read the record at this offset; the text says why.
    Newer(i64, String),
}

/// A block that is being built.
struct Open<K: Kind> {
    from: i64,
    builder: BlockBuilder<K>,
    /// The last offset in it.
    last: Option<i64>,
    since: Instant,
    /// How many records are in it.
    records: u64,
    passed_over: PassedOver,
    /// Nothing has come for a [`LULL`].
    in_a_lull: bool,
}

/// Builds blocks from a partition's records.
pub struct Filler<K: Kind> {
    reader: Reader,
    partition: u32,
    settings: Settings,
    observer: Arc<dyn WriterObserver>,
    /// The offset after the last one taken from the reader; `None` when it stands nowhere.
    reads_at: Option<i64>,
    /// A record that was read and belongs to the next block.
    stash: Option<Decoded<K::Columns>>,
    open: Option<Open<K>>,
    /// New events of the latest blocks, and their bytes: the next one is given as much room.
    room: (usize, usize),
    /// Whether the latest block came in a trickle.
    trickles: bool,
    complained: Option<Instant>,
}

impl<K: Kind> Filler<K> {
    /// A filler with the partition's reader.
    pub fn new(reader: Reader, partition: u32, settings: Settings, observer: Arc<dyn WriterObserver>) -> Filler<K> {
        Filler {
            reader,
            partition,
            settings,
            observer,
            reads_at: None,
            stash: None,
            open: None,
            room: (0, 0),
            trickles: false,
            complained: None,
        }
    }

    /// Forgets what was read and is not in a finished block: the next block starts afresh.
    pub fn reset(&mut self) {
        (self.reads_at, self.stash, self.open) = (None, None, None);
    }

    /// Builds the block that starts at `from` and goes through `through`, or as far as size and age allow. `None` when
    /// there is nothing yet; what was read so far is kept for the next call.
    pub fn fill(
        &mut self,
        from: i64,
        through: Option<i64>,
        seen: &mut SeenKeys,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<Filled<K>>, FillError> {
        self.begin(from)?;
        while go_on() {
            if let Some(last) = self.complete(through) {
                return Ok(self.finish(last));
            }
            let record = match self.stash.take() {
                Some(record) => record,
                None => match self.next_record()? {
                    Some(record) => record,
                    None if self.is_empty() => return Ok(None),
                    None => {
                        self.open.iter_mut().for_each(|open| open.in_a_lull = true);
                        continue;
                    }
                },
            };
            if let Some(last) = self.ends_before(&record, through) {
                self.stash = Some(record);
                return Ok(self.finish(last));
            }
            if let Some(reason) = record.newer {
                self.reset();
                return Err(FillError::Newer(record.offset, reason));
            }
            if let Some(open) = &mut self.open {
                open.since = if open.last.is_none() { Instant::now() } else { open.since };
                open.builder.push(record.offset, record.timestamp_ms, &record.columns, seen);
                open.last = Some(record.offset);
                open.records += 1;
                open.passed_over.push(record.rejected);
                open.in_a_lull = false;
                if self.trickles && open.records == 1 && through.is_none() {
                    self.reader.rest((self.settings.range_age_max * GATHER_EIGHTHS / 8).min(GATHER_MAX));
                }
            }
        }
        Ok(None)
    }

    fn begin(&mut self, from: i64) -> Result<(), FillError> {
        if self.open.as_ref().is_none_or(|open| open.from != from) {
            let builder = BlockBuilder::with_room(self.room.0, self.room.1);
            self.open = Some(Open {
                from,
                builder,
                last: None,
                since: Instant::now(),
                records: 0,
                passed_over: PassedOver::default(),
                in_a_lull: false,
            });
        }
        let next = self.stash.as_ref().map(|record| record.offset).or(self.reads_at);
        let standing = self.open.as_ref().and_then(|open| open.last).map_or(from, |last| last + 1);
        // Behind a hole the next record lies further on than asked for.
        if next.is_none_or(|next| next < standing) || (self.reads_at.is_none()) {
            self.stash = None;
            self.reader.start_at(standing).map_err(|error| {
                tracing::warn!(kind = K::NAME, partition = self.partition, %error, "the reader could not be set to its offset");
                FillError::Stuck
            })?;
            self.reads_at = Some(standing);
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.last.is_none())
    }

    /// The block's last offset, when it is complete as it is.
    fn complete(&self, through: Option<i64>) -> Option<i64> {
        let open = self.open.as_ref()?;
        let last = open.last?;
        match through {
            Some(through) => (last >= through).then_some(through),
            None => {
                let full = open.builder.events() >= self.settings.range_events_max
                    || open.builder.bytes() as u64 >= RANGE_BYTES_MAX
                    || open.passed_over.is_full();
                let age_max = if open.in_a_lull { self.settings.range_age_max } else { self.age_max() };
                (full || open.since.elapsed() >= age_max).then_some(last)
            }
        }
    }

    /// The block's last offset, when this record is not part of it any more. Only a later record proves that a replayed
    /// range ends in a hole: the end of the log may be that of a broker that lags.
    fn ends_before(&self, record: &Decoded<K::Columns>, through: Option<i64>) -> Option<i64> {
        let open = self.open.as_ref()?;
        match through {
            Some(through) => (record.offset > through).then_some(through),
            None => {
                let events = open.builder.events() + record.events();
                open.last.filter(|_| events > self.settings.range_events_max || record.newer.is_some())
            }
        }
    }

    /// How long the open block may stay open: longer under load (see [`PATIENCE`]).
    fn age_max(&self) -> Duration {
        let events = self.open.as_ref().map_or(0, |open| open.builder.events());
        let patience = PATIENCE.iter().find(|(events_min, _)| events >= *events_min).map_or(1, |(_, times)| *times);
        self.settings.range_age_max * patience
    }

    fn finish(&mut self, last: i64) -> Option<Filled<K>> {
        let open = self.open.take()?;
        let block = open.builder.finish();
        self.trickles = TRICKLE_RECORDS.contains(&open.records) && block.events < TRICKLE_EVENTS_MAX;
        // A little less each time, so that one short range between long ones does not make the next one move about.
        let (rows, bytes) = self.room;
        self.room = (block.offsets.len().max(rows / 4 * 3), block.columns.bytes().max(bytes / 4 * 3));
        Some(Filled { block, last, rejected: open.passed_over.into_records() })
    }

    /// The next record; `None` when nothing came within a moment, or before the open block is old enough.
    fn next_record(&mut self) -> Result<Option<Decoded<K::Columns>>, FillError> {
        let age_left = match &self.open {
            Some(open) if open.last.is_some() => self.age_max().saturating_sub(open.since.elapsed()),
            _ => POLL_MAX,
        };
        let failure = match self.reader.poll(age_left.min(if self.is_empty() { POLL_MAX } else { LULL })) {
            Polled::Record(message) => {
                let decoded = decode::<K>(&message, self.partition, &*self.observer);
                self.reads_at = Some(decoded.offset + 1);
                return Ok(Some(decoded));
            }
            Polled::Nothing => return Ok(None),
            Polled::OutOfRange => return Err(FillError::OutOfRange),
            Polled::Failed(error) => error,
        };
        if self.complained.is_none_or(|when| when.elapsed() > COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!(kind = K::NAME, partition = self.partition, error = %failure, "the log cannot be read, trying on");
        }
        Ok(None)
    }
}
