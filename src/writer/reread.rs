//! Reads offsets of a partition again from the log and builds blocks of those of their events that are not stored.
//!
//! An event that has a key is missing when no stored event of the partition has it, wherever that lies; one without a key
//! when its offset is of those asked for, of which nothing is stored. The blocks are those of a writer; each lies within one
//! of the ranges asked for.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::WriterObserver;
use super::block::{Block, BlockBuilder};
use super::claim::Range;
use super::decode::{Decoded, Rejected, decode};
use super::load::{StoredKeys, add_stored};
use super::rejected::PassedOver;
use super::seen::SeenKeys;
use crate::config::limits::RANGE_BYTES_MAX;
use crate::kinds::Kind;
use crate::log::consume::{Polled, Reader};
use crate::store::{Store, StoreError};

/// How long the next record may take to come.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// One poll.
const POLL: Duration = Duration::from_millis(200);
/// A range that begins no more than so many offsets ahead is reached by reading on: going there takes about as long.
const READ_ON_MAX: i64 = 1_000;

/// Why it cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RereadError {
    /// ClickHouse does not answer as it should.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Kafka does not.
    #[error("the log cannot be read at offset {offset}: {cause}")]
    Log {
        /// Where.
        offset: i64,
        /// What came in place of a record.
        cause: String,
    },
    /// A later version of the program wrote a record.
    #[error(
        "the record at offset {offset} was written by a later version of the program: {reason}; repair with that one"
    )]
    Newer {
        /// Where it lies.
        offset: i64,
        /// What was found and what is known.
        reason: String,
    },
}

/// What was missing of a part of a range.
pub struct Missing<K: Kind> {
    /// Which part.
    pub range: Range,
    /// Its events that are not stored.
    pub block: Block<K>,
    /// Its records that cannot be read.
    pub rejected: Vec<Rejected>,
}

/// The keys of everything that is stored of a partition and of earlier generations, in memory.
pub fn stored_keys<K: Kind>(
    store: &Store,
    runtime: &Handle,
    generation: u32,
    partition: u32,
    partitions: u32,
) -> Result<SeenKeys, StoreError> {
    let mut seen = SeenKeys::new(K::KEY_LANES);
    let all = StoredKeys { generation, partition, partitions, from: None, below: i64::MAX };
    add_stored::<K>(store, runtime, all, &mut seen, || true)?;
    Ok(seen)
}

/// Reads ranges of one partition again.
pub struct Rereader<'r, K: Kind> {
    reader: Reader,
    partition: u32,
    /// Events of one block, at most, unless one record has more.
    events_max: u64,
    observer: &'r dyn WriterObserver,
    /// The offset after the last record taken from the reader; `None` when it stands nowhere.
    reads_at: Option<i64>,
    /// A record that was read and lies behind the range.
    stash: Option<Decoded<K::Columns>>,
}

impl<'r, K: Kind> Rereader<'r, K> {
    /// With the partition's reader.
    pub fn new(reader: Reader, partition: u32, events_max: u64, observer: &'r dyn WriterObserver) -> Rereader<'r, K> {
        Rereader { reader, partition, events_max, observer, reads_at: None, stash: None }
    }

    /// Hands on what is missing of a range, which the log must hold; ranges are asked for in their order.
    pub fn read<E: From<RereadError>>(
        &mut self,
        range: Range,
        seen: &mut SeenKeys,
        mut take: impl FnMut(Missing<K>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.go_to(range.first)?;
        let (mut first, mut builder, mut passed_over) = (range.first, BlockBuilder::<K>::new(), PassedOver::default());
        loop {
            let record = self.next_record(range.last)?;
            let Some(record) = record.filter(|record| record.offset <= range.last) else { break };
            if record.offset < range.first {
                continue;
            }
            let full = builder.events() > 0 && builder.events() + record.events() > self.events_max
                || builder.bytes() as u64 >= RANGE_BYTES_MAX
                || passed_over.is_full();
            if full {
                let block = std::mem::take(&mut builder).finish();
                let range = Range { first, last: record.offset - 1 };
                take(Missing { range, block, rejected: std::mem::take(&mut passed_over).into_records() })?;
                first = record.offset;
            }
            builder.push(record.offset, record.timestamp_ms, &record.columns, seen);
            passed_over.push(record.rejected);
        }
        take(Missing {
            range: Range { first, last: range.last },
            block: builder.finish(),
            rejected: passed_over.into_records(),
        })
    }

    fn go_to(&mut self, offset: i64) -> Result<(), RereadError> {
        let next = self.stash.as_ref().map(|record| record.offset).or(self.reads_at);
        if self.stash.as_ref().is_some_and(|record| record.offset >= offset)
            || next.is_some_and(|next| (0..=READ_ON_MAX).contains(&(offset - next)))
        {
            return Ok(());
        }
        self.stash = None;
        self.reads_at = Some(offset);
        self.reader.start_at(offset).map_err(|error| RereadError::Log { offset, cause: error.to_string() })
    }

    /// The next record up to an offset; a later one is kept, and `None` says that there is no more up to there.
    fn next_record(&mut self, through: i64) -> Result<Option<Decoded<K::Columns>>, RereadError> {
        if let Some(record) = self.stash.take_if(|record| record.offset <= through) {
            return self.readable(record).map(Some);
        }
        if self.stash.is_some() || self.reads_at.is_some_and(|next| next > through) {
            return Ok(None);
        }
        let offset = self.reads_at.unwrap_or(through);
        let since = Instant::now();
        let record = loop {
            let cause = match self.reader.poll(POLL) {
                Polled::Record(message) => break decode::<K>(&message, self.partition, self.observer),
                Polled::OutOfRange => {
                    return Err(RereadError::Log { offset, cause: "it is not in the log any more".to_owned() });
                }
                Polled::Nothing => "nothing comes although the log goes on".to_owned(),
                Polled::Failed(error) => error.to_string(),
            };
            if since.elapsed() > SILENCE_MAX {
                return Err(RereadError::Log { offset, cause });
            }
        };
        self.reads_at = Some(record.offset + 1);
        if record.offset > through {
            self.stash = Some(record);
            return Ok(None);
        }
        self.readable(record).map(Some)
    }

    fn readable(&self, record: Decoded<K::Columns>) -> Result<Decoded<K::Columns>, RereadError> {
        match record.newer {
            Some(reason) => Err(RereadError::Newer { offset: record.offset, reason }),
            None => Ok(record),
        }
    }
}
