//! The model of one partition of the log, and of what must come of it.

use std::collections::{BTreeMap, HashSet};

use super::rng::Rng;
use super::toy::{SITES, ToyCounters, ToyEvents};
use crate::writer::claim::Range;

/// A record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Its events.
    pub events: ToyEvents,
}

/// One partition: records with holes between them.
#[derive(Clone, Debug, Default)]
pub struct ModelLog {
    /// The first offset.
    pub low: i64,
    /// One past the last offset.
    pub high: i64,
    /// In the order of their offsets.
    pub records: Vec<Record>,
}

impl ModelLog {
    /// An empty log that begins at `low`.
    pub fn new(low: i64) -> ModelLog {
        ModelLog { low, high: low, records: Vec::new() }
    }

    /// Adds a record with up to four events, sometimes holes before it or after it.
    pub fn append(&mut self, rng: &mut Rng, keys: u64) -> Record {
        if rng.permille(150) {
            self.high += rng.between(1, 3) as i64;
        }
        let mut events = ToyEvents::default();
        for _ in 0..rng.below(5) {
            events.keys.push(if rng.permille(100) { None } else { Some(rng.below(keys) as u8) });
            events.sites.push(rng.below(SITES as u64) as u8);
        }
        let record = Record { offset: self.high, events };
        self.high += 1;
        self.records.push(record.clone());
        if rng.permille(50) {
            self.high += 1;
        }
        record
    }

    /// The records with offsets in `from..=through`.
    pub fn records(&self, from: i64, through: i64) -> &[Record] {
        let begin = self.records.partition_point(|record| record.offset < from);
        let end = self.records.partition_point(|record| record.offset <= through);
        &self.records[begin.min(end)..end]
    }

    /// Retention: removes what lies before `low`.
    pub fn retain_from(&mut self, low: i64) {
        self.low = low;
        self.records.retain(|record| record.offset >= low);
    }

    /// A lost tail: removes what lies at or after `high`.
    pub fn truncate(&mut self, high: i64) {
        self.high = high;
        self.low = self.low.min(high);
        self.records.retain(|record| record.offset < high);
    }
}

/// Where an event lies: generation, offset, place in its record.
pub type Position = (u32, i64, u32);

/// An event that must be stored and counted: key and site.
pub type Fresh = (Option<u8>, u8);

/// What must come of a partition: an oracle that shares nothing with the writer.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// The events that must be stored, by their position.
    pub fresh: BTreeMap<Position, Fresh>,
    keys: HashSet<u8>,
}

impl Truth {
    /// Takes notice of a record that was added to the log of a generation.
    pub fn append(&mut self, generation: u32, record: &Record) {
        for (row, key) in record.events.keys.iter().enumerate() {
            if key.is_none_or(|key| self.keys.insert(key)) {
                self.fresh.insert((generation, record.offset, row as u32), (*key, record.events.sites[row]));
            }
        }
    }

    /// A new generation begins: of the old ones only what lies in front of `end` was stored and stays, and the log is
    /// read from `start`.
    pub fn begin_generation(&mut self, end: (u32, i64), generation: u32, log: &ModelLog, start: i64) {
        self.fresh.retain(|position, _| (position.0, position.1) < end);
        self.keys = self.fresh.values().filter_map(|(key, _)| *key).collect();
        for record in log.records(start, log.high) {
            self.append(generation, record);
        }
    }

    /// The events of a range that must be stored.
    pub fn of(&self, generation: u32, range: Range) -> impl Iterator<Item = (Position, Fresh)> + '_ {
        let positions = (generation, range.first, 0)..=(generation, range.last, u32::MAX);
        self.fresh.range(positions).map(|(position, fresh)| (*position, *fresh))
    }

    /// The counters of a range.
    pub fn counters(&self, generation: u32, range: Range) -> ToyCounters {
        let mut counters = ToyCounters::default();
        for (_, (_, site)) in self.of(generation, range) {
            counters.0[usize::from(site)] += 1;
        }
        counters
    }
}
