//! The model of the shell: reads what is known of a partition, one thing after the other.

use super::group::Commit;
use super::perform::Doing;
use super::rules::Rule;
use super::world::World;
use crate::writer::claim::{Committed, LastCommit};
use crate::writer::machine::Outcome;
use crate::writer::recover::{Ledger, Orphans, Recovered};

/// What was read so far of what is known.
#[derive(Default)]
pub struct Reading {
    low: Option<i64>,
    committed: Option<Option<Commit>>,
    stored: Option<(Option<Ledger>, Option<Orphans>)>,
    high: Option<i64>,
}

impl World {
    /// Reads one thing that is known: the log's start, the commit, the store, the log's end.
    pub fn recover(&mut self, p: usize, mut reading: Reading) -> Doing {
        if self.rng.permille(self.setup.slow_reads) {
            return Doing::Recovering(reading);
        }
        let (kafka_away, store_away) = (self.now < self.kafka_back_at, self.now < self.store_back_at);
        let Some(newest) = self.recorded.last() else { unreachable!("a generation is always recorded") };
        let (generation, start) = (newest.number, newest.start_offsets[p]);
        let in_order = [reading.low.is_none(), reading.committed.is_none(), reading.stored.is_none(), true];
        let in_order = in_order.iter().position(|missing| *missing).unwrap_or(3);
        let log = &self.partitions[p].log;
        match if self.obeys(Rule::OrderOfReading) { in_order } else { self.rng.below(4) as usize } {
            2 if store_away => return Doing::Telling(Outcome::Unknown),
            0 | 1 | 3 if kafka_away => return Doing::Telling(Outcome::Unknown),
            0 => reading.low = Some(log.low),
            1 => reading.committed = Some(self.group.commits[p].clone()),
            2 => {
                let ledger = self.store.ledger(p, generation);
                let next = ledger.map_or(start, |ledger| ledger.next);
                reading.stored = Some((ledger, self.store.orphans(p, generation, next)));
            }
            _ => reading.high = Some(log.high),
        }
        let Reading {
            low: Some(log_low),
            committed: Some(commit),
            stored: Some((ledger, orphans)),
            high: Some(log_high),
        } = reading
        else {
            return Doing::Recovering(reading);
        };
        let committed = match commit {
            None => LastCommit::read(None, ""),
            Some((offset, metadata)) => LastCommit::read(Some(offset), &metadata),
        };
        let known = Recovered { generation, start, committed, ledger, orphans, log_low, log_high };
        self.cover_recovery(&known);
        Doing::Telling(Outcome::Recovered(self.misread(known)))
    }

    /// What is known, as a broken rule would have it.
    fn misread(&self, mut known: Recovered) -> Recovered {
        let next = known.ledger.map_or(known.start, |ledger| ledger.next);
        if !self.obeys(Rule::LedgerWhenForgotten) && known.committed == LastCommit::None {
            (known.ledger, known.orphans) = (None, None);
        }
        if let LastCommit::Writer(committed) = &mut known.committed {
            if !self.obeys(Rule::GenerationOfCommit) {
                committed.generation = known.generation;
            }
            if !self.obeys(Rule::PendingReplayed) {
                committed.pending_last = None;
            }
            if !self.obeys(Rule::LedgerOverCommit) && committed.next < next {
                let first = known.start;
                let (next, offsets) = (committed.next, committed.next - first);
                known.ledger = Some(Ledger { first, next, offsets, new_events: 0, stored: 0 });
                known.orphans = None;
            }
        }
        if !self.obeys(Rule::EventsCounted)
            && let Some(ledger) = &mut known.ledger
        {
            ledger.stored = ledger.new_events;
        }
        if !self.obeys(Rule::OrphansKept) {
            known.orphans = None;
        }
        if !self.obeys(Rule::LostLogHalts) {
            known.log_low = known.log_low.min(next);
        }
        if !self.obeys(Rule::TruncatedLogHalts) {
            known.log_high = i64::MAX;
        }
        known
    }

    fn cover_recovery(&mut self, known: &Recovered) {
        let next = known.ledger.map_or(known.start, |ledger| ledger.next);
        match (&known.committed, known.orphans) {
            (LastCommit::None, Some(_)) => self.cover("recovery without a commit finds events without counters"),
            (LastCommit::None, None) if known.ledger.is_some() => {
                self.cover("recovery without a commit goes by the ledger")
            }
            (LastCommit::Writer(Committed { generation, .. }), _) if *generation < known.generation => {
                self.cover("recovery finds a commit of an earlier generation");
            }
            (LastCommit::Writer(Committed { pending_last: Some(last), .. }), _) if last + 1 == next => {
                self.cover("recovery finds a claim whose range is stored");
            }
            (LastCommit::Writer(committed), _) if committed.next < next => self.cover("recovery finds a stale commit"),
            (LastCommit::Writer(Committed { pending_last: Some(_), .. }), Some(_)) => {
                self.cover("recovery finds a claim with events and without counters");
            }
            (LastCommit::Writer(Committed { pending_last: Some(_), .. }), None) => {
                self.cover("recovery finds a claim of which nothing is stored");
            }
            _ => {}
        }
    }
}
