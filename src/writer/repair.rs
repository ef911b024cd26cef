//! What is missing of a partition after ClickHouse has lost rows: decided from what group and store know, without I/O.
//!
//! The events that are there are the truth, and everything else follows from them and the log. An insert is there as a
//! whole or not at all, so what may be missing lies between the stored ranges; a range without new events has no rows and looks
//! the same, which reading it again from the log tells apart.

use super::claim::{Committed, Range};
use super::recover::{Ledger, Orphans};
use crate::store::repair::StoredRange;

/// What is known of a partition of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its first offset.
    pub start: i64,
    /// The group's commit, when it speaks of this generation.
    pub committed: Option<Committed>,
    /// What the ledger holds; `None` when nothing.
    pub ledger: Option<Ledger>,
    /// Events beyond the ledger.
    pub orphans: Option<Orphans>,
}

/// What is to be put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What may be missing lies at this offset or later.
    pub from: i64,
    /// One past the last offset that any writer has finished or claimed: up to here everything is to be stored.
    pub to: i64,
    /// How many events there must be before an offset, where that is known.
    pub recorded: Option<Recorded>,
}

/// What an intact ledger says of events that are not intact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// One past the last offset that it covers.
    pub next: i64,
    /// How many events were new before it.
    pub new_events: u64,
    /// How many are stored before it.
    pub stored: u64,
}

impl Known {
    /// One past the last offset that is stored and counted.
    pub fn next(&self) -> i64 {
        self.ledger.map_or(self.start, |ledger| ledger.next)
    }

    /// One past the last offset that any writer has finished or claimed.
    ///
    /// A claimed range is finished here, and not left to a writer: ClickHouse may remember its tokens and have lost its
    /// rows, so that it would drop what the writer inserts again. For the same reason no range begins before this offset
    /// afterwards.
    pub fn reached(&self) -> i64 {
        let next = self.next();
        let finished = self.committed.map_or(next, |committed| committed.next);
        // A claim that begins before what is stored is an old one, and nothing was inserted under it.
        let claimed = self.committed.filter(|committed| committed.next >= next).and_then(|it| it.pending_last);
        let orphans = self.orphans.map(|orphans| orphans.last_max);
        next.max(finished).max(claimed.max(orphans).map_or(next, |last| last + 1))
    }

    /// What is to be put right; `None` when nothing is.
    pub fn damage(&self) -> Option<Damage> {
        let (next, to) = (self.next(), self.reached());
        let whole = self.ledger.is_none_or(|ledger| ledger.joins_from(self.start));
        let recorded = self.ledger.filter(|_| whole).map(|ledger| Recorded {
            next,
            new_events: ledger.new_events,
            stored: ledger.stored,
        });
        let complete = whole && recorded.is_none_or(|recorded| recorded.stored == recorded.new_events);
        if complete && to == next {
            return None;
        }
        Some(Damage { from: if complete { next } else { self.start }, to, recorded })
    }
}

/// The offsets between `from` and `to` that no stored range is known to hold.
pub fn gaps(from: i64, to: i64, stored: &[StoredRange]) -> Vec<Range> {
    let mut stored = stored.to_vec();
    stored.sort_by_key(|range| range.first);
    let (mut gaps, mut next) = (Vec::new(), from);
    for range in stored {
        if range.first > next {
            gaps.push(Range { first: next, last: range.first.min(to) - 1 });
        }
        next = next.max(range.last + 1);
        if next >= to {
            break;
        }
    }
    if next < to {
        gaps.push(Range { first: next, last: to - 1 });
    }
    gaps.retain(|gap| gap.first <= gap.last);
    gaps
}

/// Divides gaps into what the log still holds and what it does not (any more, or yet).
pub fn within_log(gaps: &[Range], log_low: i64, log_high: i64) -> (Vec<Range>, Vec<Range>) {
    let clipped = |low: i64, high: i64| {
        let cut = move |gap: &Range| Range { first: gap.first.max(low), last: gap.last.min(high - 1) };
        gaps.iter().map(cut).filter(|gap| gap.first <= gap.last)
    };
    let mut outside: Vec<Range> = clipped(i64::MIN, log_low).chain(clipped(log_high.max(log_low), i64::MAX)).collect();
    outside.sort_by_key(|gap| gap.first);
    (clipped(log_low, log_high).collect(), outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEDGER: Ledger = Ledger { first: 10, next: 40, offsets: 30, new_events: 20, stored: 20 };

    fn known(next: i64, pending_last: Option<i64>) -> Known {
        let committed = Some(Committed { generation: 3, next, pending_last });
        Known { start: 10, committed, ledger: Some(LEDGER), orphans: None }
    }

    fn orphans(last: i64) -> Option<Orphans> {
        Some(Orphans { last_min: last, last_max: last, rows: 5 })
    }

    fn range(first: i64, last: i64) -> Range {
        Range { first, last }
    }

    #[test]
    fn what_is_well_is_left_alone() {
        assert_eq!(known(40, None).damage(), None);
        // A commit that was lost, or is behind, or an old claim.
        assert_eq!(Known { committed: None, ..known(40, None) }.damage(), None);
        assert_eq!(known(30, Some(39)).damage(), None);
        assert_eq!(known(30, Some(45)).damage(), None);
        assert_eq!(Known { start: 10, committed: None, ledger: None, orphans: None }.damage(), None);
    }

    #[test]
    fn all_that_was_finished_or_claimed_is_to_be_stored() {
        let recorded = Some(Recorded { next: 40, new_events: 20, stored: 20 });
        let expect = |known: Known, to| assert_eq!(known.damage(), Some(Damage { from: 40, to, recorded }));
        expect(known(90, None), 90);
        expect(known(90, Some(95)), 96);
        expect(known(40, Some(49)), 50);
        expect(Known { orphans: orphans(59), ..known(40, None) }, 60);
        expect(Known { orphans: orphans(59), ..known(90, None) }, 90);
        expect(Known { orphans: orphans(59), committed: None, ..known(90, None) }, 60);
    }

    #[test]
    fn what_the_ledger_does_not_vouch_for_is_looked_at_from_the_start() {
        let ledger = Ledger { stored: 19, ..LEDGER };
        let recorded = Some(Recorded { next: 40, new_events: 20, stored: 19 });
        let fewer = Known { ledger: Some(ledger), ..known(40, None) };
        assert_eq!(fewer.damage(), Some(Damage { from: 10, to: 40, recorded }));
        let holed = Known { ledger: Some(Ledger { offsets: 29, ..LEDGER }), ..known(40, None) };
        assert_eq!(holed.damage(), Some(Damage { from: 10, to: 40, recorded: None }));
        let nothing = Known { ledger: None, ..known(90, None) };
        assert_eq!(nothing.damage(), Some(Damage { from: 10, to: 90, recorded: None }));
    }

    #[test]
    fn gaps_lie_between_what_is_stored() {
        let stored = |ranges: &[(i64, i64)]| -> Vec<StoredRange> {
            ranges.iter().map(|&(first, last)| StoredRange { first, last }).collect()
        };
        assert_eq!(gaps(10, 20, &[]), [range(10, 19)]);
        assert_eq!(gaps(10, 10, &[]), []);
        assert_eq!(gaps(10, 20, &stored(&[(10, 19)])), []);
        assert_eq!(gaps(10, 20, &stored(&[(5, 30)])), []);
        assert_eq!(
            gaps(10, 40, &stored(&[(12, 19), (20, 24), (30, 33)])),
            [range(10, 11), range(25, 29), range(34, 39)]
        );
        // Of what reaches beyond the end only the beginning counts, and ranges may lie within each other.
        assert_eq!(gaps(10, 40, &stored(&[(35, 60), (12, 20), (11, 30), (80, 90)])), [range(10, 10), range(31, 34)]);
        assert_eq!(gaps(10, 40, &stored(&[(80, 90)])), [range(10, 39)]);
    }

    #[test]
    fn gaps_are_divided_at_the_ends_of_the_log() {
        let all = [range(10, 19), range(25, 34), range(50, 59)];
        assert_eq!(within_log(&all, 0, 100), (all.to_vec(), vec![]));
        assert_eq!(
            within_log(&all, 15, 55),
            (vec![range(15, 19), range(25, 34), range(50, 54)], vec![range(10, 14), range(55, 59)])
        );
        assert_eq!(within_log(&all, 100, 100), (vec![], all.to_vec()));
        assert_eq!(within_log(&all, 0, 0), (vec![], all.to_vec()));
    }
}
