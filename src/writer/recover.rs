//! Where a writer goes on in a partition that it has taken over, from what the log, the group and the store know of it.
//!
//! The store is the truth: its ledger says what is stored and counted. The group's commit adds the claim on a range whose
//! inserts may be under way. Whatever does not fit together halts the partition; nothing is skipped in silence.

use super::claim::{Committed, LastCommit, Range};
use super::halt::{Why, quote_metadata};
use crate::store::stored::StoredTo;

/// What is known of a partition, read by the shell when asked to recover.
///
/// It is read after the partition was assigned, and in this order: the log's first offset, the commit, the ledger with the
/// events beside it (in one query), the log's end. What is compared with what grows is thus read before it, so that a
/// writer that stands still half-way, while another one goes on with the partition, does not halt over what it has read.
/// While the partition is assigned only inserts of the claimed range can still arrive, and those under its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The generation of the log now in force.
    pub generation: u32,
    /// The first offset of this generation.
    pub start: i64,
    /// The group's commit.
    pub committed: LastCommit,
    /// What the ledger holds of this generation; `None` when nothing.
    pub ledger: Option<Ledger>,
    /// Events that are stored but not counted; `None` when there are none.
    pub orphans: Option<Orphans>,
    /// The log's first offset.
    pub log_low: i64,
    /// One past the log's last offset (of committed records).
    pub log_high: i64,
}

/// The ledger's rows of one partition and generation, added up. They are in the same part as the counters, so that
/// what it holds is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// The first offset of the first range: `min(range_first)`.
    pub first: i64,
    /// One past the last offset of the last range: `max(range_last) + 1`.
    pub next: i64,
    /// The offsets of all ranges together: `sum(range_last - range_first + 1)`. Equal to `next - first` when they
    /// join without a gap and without an overlap.
    pub offsets: i64,
    /// The events of all ranges that were new: `sum(new_events)`.
    pub new_events: u64,
    /// How many events are stored below `next`: as many as were new, or some were lost since.
    pub stored: u64,
}

impl Ledger {
    /// Whether it begins where its generation does, and its ranges join.
    pub fn joins_from(&self, start: i64) -> bool {
        self.first == start && self.offsets == self.next - self.first
    }
}

/// Rows of the events table whose offset is not below [`Ledger::next`] (or the generation's start): the events of a
/// range that were inserted while its counters were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphans {
    /// The smallest `range_last` among them.
    pub last_min: i64,
    /// The largest `range_last` among them: the same, since only one range can be under way.
    pub last_max: i64,
    /// How many they are: as many as the range has new events, since an insert is atomic.
    pub rows: u64,
}

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Everything below is stored and nothing is claimed.
    Resume {
        /// The next offset to read.
        from: i64,
        /// Whether the group's commit says something else, and should be put right.
        settle: bool,
    },
    /// A range was claimed or begun: it is rebuilt exactly.
    Replay {
        /// The range.
        range: Range,
        /// How many of its events are stored; with a value all of them are, and only its counters are missing.
        events_stored: Option<u64>,
    },
}

/// What the store holds, as it is compared here.
pub fn of_store(found: &StoredTo) -> (Option<Ledger>, Option<Orphans>) {
    let ledger = found.ledger.map(|ledger| Ledger {
        first: ledger.first,
        next: ledger.next,
        offsets: ledger.offsets,
        new_events: ledger.new_events,
        stored: found.rows,
    });
    let orphans = found.orphans.map(|orphans| Orphans {
        last_min: orphans.last_min,
        last_max: orphans.last_max,
        rows: orphans.rows,
    });
    (ledger, orphans)
}

/// Why a writer that took the partition over would stand still.
pub fn complaint(known: &Recovered) -> Option<Why> {
    plan(known).err()
}

/// Decides where to go on.
pub(super) fn plan(known: &Recovered) -> Result<Plan, Why> {
    let committed = committed(known)?;
    let next = stored_next(known)?;
    let orphans = orphans(known, next)?;
    let orphan_last = orphans.map(|orphans| orphans.last_max);
    if let Some(committed) = committed
        && committed.next > next
    {
        return Err(Why::StoreBehind { stored: next, committed: committed.next });
    }
    let claimed_last = committed.and_then(|committed| committed.pending_last);
    let read = next.max(claimed_last.unwrap_or(-1) + 1).max(orphan_last.unwrap_or(-1) + 1);
    if known.log_high < read {
        return Err(Why::LogTruncated { log_high: known.log_high, read });
    }
    if known.log_low > next {
        return Err(Why::LogLost { log_low: known.log_low, next });
    }
    // A claim that begins earlier is an old one: its range is in the ledger, or it was made by a writer that had lost the
    // partition without knowing, and nothing was inserted under it.
    let pending_last = claimed_last.filter(|_| committed.is_some_and(|committed| committed.next == next));
    if let (Some(orphan), Some(claimed)) = (orphan_last, claimed_last)
        && claimed >= next
        && (pending_last.is_some() != (orphan == claimed))
    {
        return Err(Why::Inconsistent(format!(
            "events of a range that ends at offset {orphan} are stored and not counted, while the range claimed \
             from {} ends at {claimed}, and the ledger reaches {next} (excluded)",
            committed.map_or(next, |committed| committed.next)
        )));
    }
    Ok(match pending_last.or(orphan_last) {
        Some(last) => {
            Plan::Replay { range: Range { first: next, last }, events_stored: orphans.map(|orphans| orphans.rows) }
        }
        None => {
            let settled = Committed { generation: known.generation, next, pending_last: None };
            Plan::Resume { from: next, settle: committed != Some(settled) }
        }
    })
}

/// The group's commit, when it speaks of this generation.
fn committed(known: &Recovered) -> Result<Option<Committed>, Why> {
    match &known.committed {
        LastCommit::None => Ok(None),
        LastCommit::Foreign { offset, metadata } => {
            Err(Why::ForeignCommit { offset: *offset, metadata: quote_metadata(metadata) })
        }
        LastCommit::Writer(committed) if committed.generation > known.generation => {
            Err(Why::GenerationBehind { recorded: known.generation, committed: committed.generation })
        }
        LastCommit::Writer(committed) => Ok(Some(*committed).filter(|it| it.generation == known.generation)),
    }
}

/// One past the last offset whose events and counters are stored.
fn stored_next(known: &Recovered) -> Result<i64, Why> {
    let Some(ledger) = known.ledger else {
        return Ok(known.start);
    };
    let Ledger { first, next, offsets, new_events, stored } = ledger;
    if !ledger.joins_from(known.start) {
        return Err(Why::Inconsistent(format!(
            "the ledger's ranges span offsets {first} to {next} (excluded) and add up to {offsets} offsets, while \
             the generation begins at {}: ranges are missing or overlap",
            known.start
        )));
    }
    match stored {
        fewer if fewer < new_events => Err(Why::EventsLost { next, recorded: new_events, stored }),
        more if more > new_events => Err(Why::Inconsistent(format!(
            "{more} events are stored of the offsets before {next}, of which {new_events} were recorded as new"
        ))),
        _ => Ok(next),
    }
}

/// The events that are stored but not counted, when they can be of one range that begins at `next`.
fn orphans(known: &Recovered, next: i64) -> Result<Option<Orphans>, Why> {
    match known.orphans {
        Some(Orphans { last_min, last_max, .. }) if last_min != last_max || last_min < next => {
            Err(Why::Inconsistent(format!(
                "events at or after offset {next} are stored and not counted, and belong to ranges that end at \
                 {last_min} and {last_max}: there can be one such range, ending at or after {next}"
            )))
        }
        orphans => Ok(orphans),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEDGER: Ledger = Ledger { first: 10, next: 40, offsets: 30, new_events: 20, stored: 20 };

    /// A log of offsets 10..=99 with everything before 40 stored, and this commit.
    fn known(committed: LastCommit) -> Recovered {
        Recovered {
            generation: 3,
            start: 10,
            committed,
            ledger: Some(LEDGER),
            orphans: None,
            log_low: 10,
            log_high: 100,
        }
    }

    fn commit(next: i64, pending_last: Option<i64>) -> LastCommit {
        LastCommit::Writer(Committed { generation: 3, next, pending_last })
    }

    fn orphans(last: i64) -> Option<Orphans> {
        Some(Orphans { last_min: last, last_max: last, rows: 5 })
    }

    fn resume(from: i64, settle: bool) -> Result<Plan, Why> {
        Ok(Plan::Resume { from, settle })
    }

    fn replay(last: i64, events_stored: Option<u64>) -> Result<Plan, Why> {
        Ok(Plan::Replay { range: Range { first: 40, last }, events_stored })
    }

    #[test]
    fn what_is_stored_says_where_to_go_on() {
        assert_eq!(plan(&known(commit(40, None))), resume(40, false));
        // Forgotten, of a range that was stored and not committed, or taken from a writer that had lost the partition.
        for stale in [LastCommit::None, commit(30, Some(39)), commit(30, None), commit(30, Some(45))] {
            assert_eq!(plan(&known(stale)), resume(40, true));
        }
        let fresh = Recovered { ledger: None, ..known(LastCommit::None) };
        assert_eq!(plan(&fresh), resume(10, true));
    }

    #[test]
    fn a_claim_is_replayed() {
        assert_eq!(plan(&known(commit(40, Some(49)))), replay(49, None));
        assert_eq!(plan(&Recovered { orphans: orphans(49), ..known(commit(40, Some(49))) }), replay(49, Some(5)));
    }

    #[test]
    fn events_without_counters_are_counted_whatever_became_of_their_claim() {
        for lost in [LastCommit::None, commit(40, None), commit(30, Some(39)), commit(30, Some(45))] {
            assert_eq!(plan(&Recovered { orphans: orphans(49), ..known(lost) }), replay(49, Some(5)));
        }
    }

    #[test]
    fn a_commit_of_another_generation_is_ignored_or_halts() {
        let of = |generation| LastCommit::Writer(Committed { generation, next: 70, pending_last: Some(79) });
        assert_eq!(plan(&known(of(2))), resume(40, true));
        assert_eq!(plan(&known(of(4))), Err(Why::GenerationBehind { recorded: 3, committed: 4 }));
    }

    #[test]
    fn contradictions_halt() {
        let inconsistent = |known: Recovered| matches!(plan(&known), Err(Why::Inconsistent(_)));
        let claimed = || known(commit(40, Some(49)));
        assert!(inconsistent(Recovered { orphans: orphans(45), ..claimed() }));
        assert!(inconsistent(Recovered { orphans: orphans(45), ..known(commit(30, Some(45))) }));
        assert!(inconsistent(Recovered { orphans: orphans(39), ..claimed() }));
        let two = Some(Orphans { last_min: 49, last_max: 59, rows: 5 });
        assert!(inconsistent(Recovered { orphans: two, ..claimed() }));
        for (first, offsets) in [(10, 29), (10, 31), (11, 29), (9, 31)] {
            assert!(inconsistent(Recovered { ledger: Some(Ledger { first, offsets, ..LEDGER }), ..claimed() }));
        }
    }

    #[test]
    fn losses_halt() {
        let behind = Err(Why::StoreBehind { stored: 40, committed: 50 });
        assert_eq!(plan(&known(commit(50, None))), behind);
        assert_eq!(plan(&known(commit(50, Some(59)))), behind);
        let fewer = Recovered { ledger: Some(Ledger { stored: 19, ..LEDGER }), ..known(commit(40, None)) };
        assert_eq!(plan(&fewer), Err(Why::EventsLost { next: 40, recorded: 20, stored: 19 }));
        let more = Recovered { ledger: Some(Ledger { stored: 21, ..LEDGER }), ..known(commit(40, None)) };
        assert!(matches!(plan(&more), Err(Why::Inconsistent(_))));
        let nothing = Recovered { ledger: None, ..known(commit(50, None)) };
        assert_eq!(plan(&nothing), Err(Why::StoreBehind { stored: 10, committed: 50 }));

        let truncated = |known: Recovered, log_high, read| {
            assert_eq!(plan(&Recovered { log_high, ..known }), Err(Why::LogTruncated { log_high, read }));
        };
        truncated(known(LastCommit::None), 39, 40);
        truncated(known(commit(40, Some(49))), 49, 50);
        truncated(Recovered { orphans: orphans(49), ..known(commit(40, None)) }, 45, 50);
        let all = known(commit(40, None));
        assert_eq!(plan(&Recovered { log_low: 40, log_high: 40, ..all.clone() }), resume(40, false));
        assert_eq!(plan(&Recovered { log_low: 41, ..all }), Err(Why::LogLost { log_low: 41, next: 40 }));
    }

    #[test]
    fn a_foreign_commit_halts_and_is_quoted() {
        for (metadata, quoted) in [("", "empty"), ("a\n\"b\"", r#""a\n\"b\"""#)] {
            let foreign = LastCommit::Foreign { offset: 5, metadata: metadata.to_owned() };
            assert_eq!(plan(&known(foreign)), Err(Why::ForeignCommit { offset: 5, metadata: quoted.to_owned() }));
        }
        let long = LastCommit::Foreign { offset: 5, metadata: "é".repeat(3000) };
        let Err(why) = plan(&known(long)) else { panic!("no halt") };
        assert!(why.to_string().contains("é\", cut)") && why.to_string().len() < 800);
    }
}
