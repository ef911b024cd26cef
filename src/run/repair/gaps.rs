//! The gaps between what is stored: read again from the log as far as it reaches, and what is gone for good.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use super::{Part, Repair};
use crate::kinds::Kind;
use crate::log::consume::Reader;
use crate::store::StoreError;
use crate::store::repair::Staging;
use crate::writer::claim::Range;
use crate::writer::repair::{Damage, Known, gaps, within_log};
use crate::writer::reread::{Missing, RereadError, Rereader, stored_keys};
use crate::writer::{WriterObserver, rejected, rows};

/// How often an insert into a table of the repair is tried.
const TRIES: u32 = 5;
/// The pause between two of them.
const TRY_AGAIN: Duration = Duration::from_secs(2);

impl Repair<'_> {
    /// Reads all gaps; without tables to put it into it only says what is there.
    pub(super) fn fill_gaps<K: Kind>(
        &mut self,
        known: &BTreeMap<Part, Known>,
        staging: Option<&Staging>,
    ) -> Result<(), Box<dyn Error>> {
        for (&part, known) in known {
            let Some(damage) = known.damage() else { continue };
            let stored = self.runtime.block_on(self.store.stored_ranges::<K>(part.0, part.1, damage.from))?;
            let gaps = gaps(damage.from, damage.to, &stored);
            let (low, high) = if part.0 == self.newest()?.number {
                self.inspector.watermarks(&self.topic, part.1)?
            } else {
                // Its log is another one, or is not read to its end any more.
                (i64::MAX, i64::MAX)
            };
            let (readable, gone) = within_log(&gaps, low, high);
            let read = self.reread::<K>(part, &damage, &readable, staging)?;
            self.tell_gone(part, &damage, gone, read);
        }
        Ok(())
    }

    /// Reads ranges of a partition again and tells how many events of those that the ledger had recorded were missing.
    fn reread<K: Kind>(
        &mut self,
        part: Part,
        damage: &Damage,
        ranges: &[Range],
        staging: Option<&Staging>,
    ) -> Result<u64, Box<dyn Error>> {
        if ranges.is_empty() {
            return Ok(0);
        }
        let (generation, partition) = part;
        let partitions = self.newest()?.partitions() as u32;
        let mut seen = stored_keys::<K>(&self.store, self.runtime.handle(), generation, partition, partitions)?;
        let reader = Reader::new(&self.options, &self.inspector, &self.topic, partition)?;
        let mut rereader =
            Rereader::<K>::new(reader, partition, u64::from(self.config.writer.range_events_max), &Silent);
        let recorded_next = damage.recorded.map_or(damage.from, |recorded| recorded.next);
        let mut recorded = 0;
        for &range in ranges {
            let mut found = 0;
            rereader.read(range, &mut seen, |missing: Missing<K>| {
                found += missing.block.new_events();
                recorded += missing.block.offsets.iter().filter(|offset| **offset < recorded_next).count() as u64;
                match staging {
                    Some(staging) => self.put_aside(part, missing, staging),
                    None => Ok(()),
                }
            })?;
            let would = if staging.is_some() { "" } else { "would be " };
            if found > 0 {
                let Range { first, last } = range;
                (self.say)(format!("{}: offsets {first} to {last}: {found} events {would}read again", named(part)));
            }
        }
        Ok(recorded)
    }

    /// Puts what was missing into the tables of the repair; records that cannot be read go where a writer puts them.
    fn put_aside<K: Kind>(
        &self,
        (generation, partition): Part,
        missing: Missing<K>,
        staging: &Staging,
    ) -> Result<(), Failed> {
        let Missing { range, block, rejected } = missing;
        let token = format!("{}/{partition}/{range}", staging.events);
        if !rejected.is_empty() {
            let encoded = rejected::encode::<K>(&rejected, generation, partition)?;
            self.insert(rejected::TABLE, &rejected::token(&token), &encoded)?;
        }
        if block.new_events() > 0 {
            let encoded = rows::encode(block, generation, partition, range)?.events;
            self.insert(&staging.events, &token, &encoded)?;
        }
        Ok(())
    }

    pub(super) fn insert(&self, table: &str, token: &str, rows: &rows::Encoded) -> Result<(), StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.runtime.block_on(self.store.insert(table, token, &rows.stream)) {
                Err(error) if tries < TRIES && error.code().is_none() => std::thread::sleep(TRY_AGAIN),
                done => return done,
            }
        }
    }

    /// Says what is gone. Where the ledger was whole, it tells how many events are missing; where it tells that none is,
    /// the gaps had none.
    fn tell_gone(&mut self, part: Part, damage: &Damage, gone: Vec<Range>, read: u64) {
        let missing = damage
            .recorded
            .map(|recorded| (recorded.next, recorded.new_events.saturating_sub(recorded.stored).saturating_sub(read)));
        let gone: Vec<Range> = match missing {
            Some((next, 0)) => gone
                .into_iter()
                .filter(|gap| gap.last >= next)
                .map(|gap| Range { first: gap.first.max(next), last: gap.last })
                .collect(),
            _ => gone,
        };
        let would = if self.dry_run { "cannot" } else { "could not" };
        for gap in &gone {
            let (Range { first, last }, records) = (gap, gap.offsets());
            (self.say)(format!(
                "{}: offsets {first} to {last} {would} be recovered: they are not in the log, {records} records at most",
                named(part)
            ));
        }
        if let Some((next, events @ 1..)) = missing {
            let how = if gone.is_empty() {
                "were deleted from among others of the same inserts, and are not read again"
            } else {
                "are lost with them"
            };
            (self.say)(format!("{}: {events} events before offset {next} {how}", named(part)));
            self.outcome.wanting = true;
        }
        self.outcome.wanting |= !gone.is_empty();
    }
}

/// Why a gap could not be filled.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Reread(#[from] RereadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a block could not be encoded: {0}")]
    Encode(#[from] arrow::error::ArrowError),
}

fn named((generation, partition): Part) -> String {
    format!("generation {generation}, partition {partition}")
}

/// Nobody watches: everything is said.
struct Silent;

impl WriterObserver for Silent {
    fn inserted(&self, _: &'static str, _: u64, _: Duration, _: bool) {}
    fn joined(&self, _: u32) {}
    fn recovered(&self, _: u32, _: i64) {}
    fn stored(&self, _: u32, _: u64, _: u64, _: i64) {}
    fn seen(&self, _: u32, _: u64, _: u64) {}
    fn bad_record(&self, _: u32) {}
    fn halted(&self, _: u32, _: &str) {}
    fn left(&self, _: u32) {}
}
