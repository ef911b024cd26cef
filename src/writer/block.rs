//! The block of a range: its new events in the order of the log, and what they add up to.
//!
//! A pure function of the log and of the keys stored below the range: an event is new when no earlier event of its
//! partition has its key. Decoded records go in one by one, so that a record's memory is given back before the next is
//! decoded; only new events are kept.

use super::seen::SeenKeys;
use crate::kinds::{Columns, Counters, Kind};

/// The new events of a range.
///
/// The rows' vectors have one entry for each row of `columns`.
pub struct Block<K: Kind> {
    /// The new events.
    pub columns: K::Columns,
    /// The offset of the record that carried each of them.
    pub offsets: Vec<i64>,
    /// The place of each of them in its record, from 0 and counting those that are not new: with the offset it names an
    /// event of the partition.
    pub positions: Vec<u32>,
    /// When Kafka took the record of each of them, in milliseconds since 1970.
    pub timestamps_ms: Vec<i64>,
    /// What the new events are counted in.
    pub counters: K::Counters,
    /// How many events the range's records carry, those that are not new included.
    pub events: u64,
}

impl<K: Kind> Block<K> {
    /// How many events are new.
    pub fn new_events(&self) -> u64 {
        self.offsets.len() as u64
    }

    /// When Kafka took the first record with a new event, in milliseconds since 1970.
    pub fn first_timestamp_ms(&self) -> Option<i64> {
        self.timestamps_ms.first().copied()
    }
}

/// Builds a [`Block`] from records in the order of the log.
pub struct BlockBuilder<K: Kind> {
    block: Block<K>,
}

impl<K: Kind> BlockBuilder<K> {
    /// A block without records.
    pub fn new() -> BlockBuilder<K> {
        BlockBuilder {
            block: Block {
                columns: K::Columns::default(),
                offsets: Vec::new(),
                positions: Vec::new(),
                timestamps_ms: Vec::new(),
                counters: K::Counters::default(),
                events: 0,
            },
        }
    }

    /// Adds the events of one record that are new, and adds their keys to those seen.
    ///
    /// From then on `seen` is ahead of the store: a builder that is dropped unfinished leaves it to be loaded again.
    pub fn push(&mut self, offset: i64, timestamp_ms: i64, columns: &K::Columns, seen: &mut SeenKeys) {
        let block = &mut self.block;
        let events = columns.len();
        block.events += events as u64;
        // Runs of new events are copied as a whole: duplicates are rare.
        let mut run_start = 0;
        for row in 0..=events {
            let new = row < events && K::key(columns, row).is_none_or(|key| seen.insert(key));
            if new {
                block.counters.count(columns, row);
                continue;
            }
            if run_start < row {
                block.columns.append(columns, run_start..row);
                block.offsets.resize(block.offsets.len() + row - run_start, offset);
                block.timestamps_ms.resize(block.timestamps_ms.len() + row - run_start, timestamp_ms);
                block.positions.extend(run_start as u32..row as u32);
            }
            run_start = row + 1;
        }
    }

    /// How many events were added, those that are not new included.
    pub fn events(&self) -> u64 {
        self.block.events
    }

    /// How many new events were added.
    pub fn new_events(&self) -> u64 {
        self.block.new_events()
    }

    /// The block of all records added.
    pub fn finish(self) -> Block<K> {
        self.block
    }
}

impl<K: Kind> Default for BlockBuilder<K> {
    fn default() -> Self {
        BlockBuilder::new()
    }
}
