//! The model of ClickHouse: atomic inserts into a table of events and a table of counters, de-duplicated by token in a
//! window that forgets, and inserts that are under way and arrive later, also when their sender is long dead.
//!
//! It looks at each insert that takes effect, and says at once what is wrong with it.

use std::collections::{BTreeSet, HashMap};

use super::log::{Fresh, Position, Truth};
use super::toy::ToyCounters;
use crate::writer::claim::Range;
use crate::writer::recover::{Ledger, Orphans};

/// What an insert carries.
#[derive(Clone, Debug)]
pub enum Rows {
    /// New events.
    Events(Vec<(Position, Fresh)>),
    /// Counters with the range's row of the ledger.
    Counters(ToyCounters),
}

/// An insert: one part.
#[derive(Clone, Debug)]
pub struct Part {
    /// The de-duplication token.
    pub token: String,
    /// The partition of the log.
    pub partition: usize,
    /// The generation of the log.
    pub generation: u32,
    /// The range.
    pub range: Range,
    /// The rows.
    pub rows: Rows,
}

impl Part {
    /// What is stored of events when their insert makes two parts, and the store ends in between.
    pub fn first_half(&self) -> Option<Part> {
        let Rows::Events(rows) = &self.rows else { return None };
        let half = rows.len().div_ceil(2);
        (half < rows.len()).then(|| Part { rows: Rows::Events(rows[..half].to_vec()), ..self.clone() })
    }
}

/// An insert under way.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// When it takes effect.
    pub at: u64,
    /// What its sender knows it by.
    pub id: u64,
    /// The insert.
    pub part: Part,
}

/// An event as stored, with the end of its range.
#[derive(Clone, Copy, Debug)]
struct Row {
    position: Position,
    key: Option<u8>,
    range_last: i64,
}

/// What is stored of one partition of the log.
#[derive(Clone, Debug, Default)]
struct Tables {
    events: Vec<Row>,
    positions: BTreeSet<Position>,
    counters: Vec<(u32, Range, ToyCounters)>,
}

/// The store.
#[derive(Clone, Debug, Default)]
pub struct Store {
    tables: Vec<Tables>,
    /// Token to the time at which it is forgotten.
    window: HashMap<String, u64>,
    /// Inserts under way.
    pub in_flight: Vec<InFlight>,
    /// Inserts that were under way and have taken effect, for senders that still wait.
    pub landed: Vec<u64>,
    /// How long a token is remembered. The window counts tokens, and all partitions share it; this is the worst case:
    /// how long it takes at least until so many others have come.
    pub window_ms: u64,
}

/// What became of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It was stored.
    Stored,
    /// Its token was remembered, so it was dropped.
    Dropped,
}

impl Store {
    /// An empty store.
    pub fn new(partitions: usize, window_ms: u64) -> Store {
        Store { tables: vec![Tables::default(); partitions], window_ms, ..Store::default() }
    }

    /// Notes the token of an insert whose rows are not kept.
    pub fn note_token(&mut self, part: &Part, now: u64) {
        let remembered = self.window.get(&part.token).is_some_and(|forgotten_at| now < *forgotten_at);
        if !remembered {
            self.window.insert(part.token.clone(), now + self.window_ms);
        }
    }

    /// An insert takes effect, or the error says what was broken by it.
    pub fn apply(&mut self, part: &Part, now: u64, truth: &Truth) -> Result<Applied, String> {
        if self.window.get(&part.token).is_some_and(|forgotten_at| now < *forgotten_at) {
            return Ok(Applied::Dropped);
        }
        self.window.insert(part.token.clone(), now + self.window_ms);
        let tables = &mut self.tables[part.partition];
        let Part { generation, range, .. } = *part;
        match &part.rows {
            Rows::Events(rows) => {
                let expected: Vec<(Position, Fresh)> = truth.of(generation, range).collect();
                if *rows != expected {
                    return Err(format!("events of {range} are {rows:?}, should be {expected:?}"));
                }
                for &(position, (key, _)) in rows {
                    if !tables.positions.insert(position) {
                        return Err(format!("the event at {position:?} is stored twice, the second time with {range}"));
                    }
                    tables.events.push(Row { position, key, range_last: range.last });
                }
            }
            Rows::Counters(counters) => {
                let expected = truth.counters(generation, range);
                if *counters != expected {
                    return Err(format!("counters of {range} are {counters:?}, should be {expected:?}"));
                }
                for (other_generation, other, _) in &tables.counters {
                    if *other_generation == generation && other.first <= range.last && range.first <= other.last {
                        return Err(format!("{range} is counted although {other} is"));
                    }
                }
                tables.counters.push((generation, range, *counters));
            }
        }
        Ok(Applied::Stored)
    }

    /// The ledger of a partition, added up.
    pub fn ledger(&self, partition: usize, generation: u32) -> Option<Ledger> {
        let rows = || self.tables[partition].counters.iter().filter(|row| row.0 == generation);
        let ranges = || rows().map(|row| row.1);
        let next = ranges().map(Range::next).max()?;
        Some(Ledger {
            first: ranges().map(|range| range.first).min()?,
            next,
            offsets: ranges().map(Range::offsets).sum(),
            new_events: rows().map(|row| row.2.0.iter().sum::<u64>()).sum(),
            stored: self.rows(partition, (generation, i64::MIN), (generation, next)),
        })
    }

    /// The events at or after an offset, as the ends of their ranges.
    pub fn orphans(&self, partition: usize, generation: u32, next: i64) -> Option<Orphans> {
        let lasts = || {
            let rows = self.tables[partition].events.iter();
            rows.filter(move |row| row.position.0 == generation && row.position.1 >= next).map(|row| row.range_last)
        };
        Some(Orphans { last_min: lasts().min()?, last_max: lasts().max()?, rows: lasts().count() as u64 })
    }

    /// The keys stored in front of an offset of a generation, and where it is given not in front of another one.
    pub fn keys(&self, partition: usize, from: Option<(u32, i64)>, below: (u32, i64)) -> impl Iterator<Item = u8> + '_ {
        let rows = self.tables[partition].events.iter().map(|row| ((row.position.0, row.position.1), row.key));
        rows.filter(move |(place, _)| *place < below && from.is_none_or(|from| *place >= from))
            .filter_map(|(_, key)| key)
    }

    /// How many events are stored from one offset to before another one.
    pub fn rows(&self, partition: usize, from: (u32, i64), below: (u32, i64)) -> u64 {
        let rows = self.tables[partition].events.iter();
        rows.filter(|row| (from..below).contains(&(row.position.0, row.position.1))).count() as u64
    }

    /// The newest counters of a partition are lost, and of their events some are.
    pub fn lose_tail(&mut self, partition: usize, ranges: usize, mut lose_events: impl FnMut() -> bool) {
        let tables = &mut self.tables[partition];
        tables.counters.sort_by_key(|(generation, range, _)| (*generation, range.first));
        for _ in 0..ranges {
            let Some((generation, range, _)) = tables.counters.pop() else { return };
            if lose_events() {
                let lost =
                    |position: &Position| position.0 == generation && (range.first..=range.last).contains(&position.1);
                tables.events.retain(|row| !lost(&row.position));
                tables.positions.retain(|position| !lost(position));
            }
        }
    }

    /// The events of the newest range that has some are lost, and their counters are not.
    pub fn lose_events(&mut self, partition: usize) {
        let tables = &mut self.tables[partition];
        let newest = tables.events.iter().map(|row| (row.position.0, row.range_last)).max();
        let is_lost = |row: &Row| Some((row.position.0, row.range_last)) == newest;
        tables.events.iter().filter(|row| is_lost(row)).for_each(|row| _ = tables.positions.remove(&row.position));
        tables.events.retain(|row| !is_lost(row));
    }

    /// All tokens so far are remembered for ever: that of an insert is not lost with its rows.
    pub fn remember_tokens(&mut self) {
        self.window.values_mut().for_each(|forgotten_at| *forgotten_at = u64::MAX);
    }

    /// Whether a range's insert is there: so many events, or without a number its counters
    /// (or those of what another writer has stored since).
    pub fn has(&self, partition: usize, generation: u32, range: Range, events: Option<u64>) -> bool {
        match events {
            Some(sent) => self.rows(partition, (generation, range.first), (generation, range.next())) == sent,
            None => self.ledger(partition, generation).is_some_and(|ledger| ledger.next >= range.next()),
        }
    }

    /// At the end: everything of `truth` is stored once and counted once.
    pub fn check(&self, partition: usize, truth: &Truth) -> Result<(), String> {
        let tables = &self.tables[partition];
        let missing = truth.fresh.keys().find(|position| !tables.positions.contains(*position));
        if let Some(position) = missing {
            return Err(format!("the event at {position:?} of partition {partition} is not stored"));
        }
        if tables.events.len() != truth.fresh.len() {
            return Err(format!("{} events are stored instead of {}", tables.events.len(), truth.fresh.len()));
        }
        let mut expected = ToyCounters::default();
        for (_, site) in truth.fresh.values() {
            expected.0[usize::from(*site)] += 1;
        }
        let mut counted = ToyCounters::default();
        for (_, _, counters) in &tables.counters {
            for (sum, count) in counted.0.iter_mut().zip(counters.0) {
                *sum += count;
            }
        }
        if counted != expected {
            return Err(format!("partition {partition} counts {counted:?}, should be {expected:?}"));
        }
        Ok(())
    }
}
