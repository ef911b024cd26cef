//! The block of a range: its new events in the order of the log, and what they add up to.
//!
//! A pure function of the log and of the keys stored below the range: an event is new when no earlier event of its
//! partition has its key. Decoded records go in one by one, so that a record's memory is given back before the next is
//! decoded; only new events are kept.

use super::seen::SeenKeys;
use crate::kinds::{Columns, Counters, Kind};

/// Bytes of an event's place: offset 8, position 4, timestamp 8.
const PLACE_BYTES: usize = 8 + 4 + 8;

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
        BlockBuilder::with_room(0, 0)
    }

    /// A block without records that has room for so many new events, of so many bytes as columns.
    pub fn with_room(rows: usize, bytes: usize) -> BlockBuilder<K> {
        let mut columns = K::Columns::default();
        columns.reserve(rows, bytes);
        BlockBuilder {
            block: Block {
                columns,
                offsets: Vec::with_capacity(rows),
                positions: Vec::with_capacity(rows),
                timestamps_ms: Vec::with_capacity(rows),
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
        let new = seen.insert_all(events, |row| K::key(columns, row));
        let mut run_start = 0;
        for row in 0..=events {
            if new.get(row) == Some(&true) {
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

    /// About how many bytes the new events take in memory; those that are not new are not kept.
    pub fn bytes(&self) -> usize {
        self.block.columns.bytes() + self.block.offsets.len() * PLACE_BYTES
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::simulation::toy::{Toy, ToyCounters, ToyEvents, toy_key};

    fn events(keys: &[u8]) -> ToyEvents {
        let keys: Vec<Option<u8>> = keys.iter().map(|key| Some(*key).filter(|key| *key > 0)).collect();
        ToyEvents { sites: vec![1; keys.len()], keys }
    }

    #[test]
    fn the_first_event_of_a_key_is_new_and_an_event_without_a_key_always() {
        let mut seen = SeenKeys::new(Toy::KEY_LANES);
        seen.insert(toy_key(9));
        let mut builder = BlockBuilder::<Toy>::new();
        builder.push(5, 50, &events(&[9, 1, 2, 1, 0, 0, 3, 9]), &mut seen);
        builder.push(7, 70, &events(&[]), &mut seen);
        builder.push(8, 80, &events(&[1, 2, 3]), &mut seen);
        builder.push(9, 90, &events(&[4]), &mut seen);
        assert_eq!((builder.events(), builder.new_events()), (12, 6));
        // A toy takes 2 bytes.
        assert_eq!(builder.bytes(), 6 * (2 + PLACE_BYTES));
        let block = builder.finish();
        assert_eq!(block.columns, events(&[1, 2, 0, 0, 3, 4]));
        assert_eq!(block.offsets, [5, 5, 5, 5, 5, 9]);
        assert_eq!(block.positions, [1, 2, 4, 5, 6, 0]);
        assert_eq!(block.timestamps_ms, [50, 50, 50, 50, 50, 90]);
        assert_eq!(block.counters, ToyCounters([0, 6, 0]));
        assert_eq!((block.events, block.new_events(), block.first_timestamp_ms()), (12, 6, Some(50)));
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn a_range_may_have_no_records() {
        let block = BlockBuilder::<Toy>::new().finish();
        assert_eq!((block.events, block.new_events(), block.first_timestamp_ms()), (0, 0, None));
    }
}
