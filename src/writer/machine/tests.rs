//! The order of the steps, one situation at a time; the random schedules try them in all combinations.

use super::*;
use crate::writer::claim::LastCommit;
use crate::writer::recover::{Ledger, Orphans};

const LIMITS: Limits = Limits {
    claim_age_max: Duration::from_secs(20),
    backoff_min: Duration::from_millis(100),
    backoff_max: Duration::from_secs(5),
};

/// A machine and its clock.
struct Bench {
    machine: Machine,
    now: Instant,
}

fn bench() -> Bench {
    let now = Instant::now();
    let place = Place { topic: "captcha".into(), partition: 2 };
    Bench { machine: Machine::new(place, LIMITS, 1, now), now }
}

/// A log of offsets 10..=99 with everything before 40 stored and committed.
fn known() -> Recovered {
    Recovered {
        generation: 3,
        start: 10,
        committed: LastCommit::Writer(Committed { generation: 3, next: 40, pending_last: None }),
        ledger: Some(LEDGER),
        orphans: None,
        log_low: 10,
        log_high: 100,
    }
}

fn pending(last: i64) -> LastCommit {
    LastCommit::Writer(Committed { generation: 3, next: 40, pending_last: Some(last) })
}

const LEDGER: Ledger = Ledger { first: 10, next: 40, offsets: 30, new_events: 20, stored: 20 };
const BELOW_40: Step = Step::LoadSeen { generation: 3, below: 40 };
const RANGE: Range = Range { first: 40, last: 49 };

impl Bench {
    fn next(&mut self) -> Step {
        self.machine.next(self.now)
    }

    fn on(&mut self, outcome: Outcome) {
        self.machine.on(outcome, self.now);
    }

    fn expect(&mut self, step: Step, outcome: Outcome) {
        assert_eq!(self.next(), step);
        self.on(outcome);
    }

    fn insert(&self) -> Insert {
        Insert { generation: 3, range: RANGE, checked: true, again: 0, deadline: self.now + LIMITS.claim_age_max }
    }

    /// Up to the insert of the events of offsets 40 to 49.
    fn claimed(new_events: u64) -> Bench {
        let mut bench = bench();
        bench.expect(Step::Recover, Outcome::Recovered(known()));
        bench.expect(BELOW_40, Outcome::Done);
        bench.expect(Step::Read { from: 40, through: None }, Outcome::Read { last: 49, new_events });
        bench.expect(Step::Claim(Committed { generation: 3, next: 40, pending_last: Some(49) }), Outcome::Done);
        bench
    }

    /// Waits out the back-off.
    fn skip_wait(&mut self) -> Duration {
        let Step::Wait(wait) = self.next() else { panic!("no wait") };
        self.now += wait;
        wait
    }
}

#[test]
fn a_range_is_claimed_inserted_counted_and_committed() {
    let mut bench = Bench::claimed(7);
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Done);
    bench.expect(Step::InsertCounters(bench.insert()), Outcome::Done);
    bench.expect(Step::Commit(Committed { generation: 3, next: 50, pending_last: None }), Outcome::Done);
    bench.expect(Step::Read { from: 50, through: None }, Outcome::Idle);
    assert_eq!(bench.next(), Step::Read { from: 50, through: None });
}

#[test]
fn without_new_events_only_counters_are_inserted() {
    let mut bench = Bench::claimed(0);
    assert_eq!(bench.next(), Step::InsertCounters(bench.insert()));
}

#[test]
fn a_step_is_the_same_until_it_is_answered() {
    let mut bench = Bench::claimed(7);
    assert_eq!(bench.next(), bench.next());
}

#[test]
fn without_a_commit_the_place_is_committed_first() {
    let mut bench = bench();
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: LastCommit::None, ..known() }));
    bench.expect(Step::Commit(Committed { generation: 3, next: 40, pending_last: None }), Outcome::Done);
    assert_eq!(bench.next(), BELOW_40);
}

#[test]
fn a_claimed_range_is_rebuilt_exactly() {
    let mut bench = bench();
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: pending(49), ..known() }));
    bench.expect(BELOW_40, Outcome::Done);
    bench.expect(Step::Read { from: 40, through: Some(49) }, Outcome::Read { last: 49, new_events: 7 });
    bench.expect(Step::Claim(Committed { generation: 3, next: 40, pending_last: Some(49) }), Outcome::Done);
    assert_eq!(bench.next(), Step::InsertEvents(bench.insert()));
}

fn with_orphans(rows: u64) -> Bench {
    let orphans = Some(Orphans { last_min: 49, last_max: 49, rows });
    let mut bench = bench();
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: pending(49), orphans, ..known() }));
    bench.expect(BELOW_40, Outcome::Done);
    bench.expect(Step::Read { from: 40, through: Some(49) }, Outcome::Read { last: 49, new_events: 7 });
    bench
}

#[test]
fn events_that_are_stored_are_only_counted() {
    let mut bench = with_orphans(7);
    bench.expect(Step::Claim(Committed { generation: 3, next: 40, pending_last: Some(49) }), Outcome::Done);
    assert_eq!(bench.next(), Step::InsertCounters(bench.insert()));
}

#[test]
fn stored_events_that_the_log_does_not_have_halt() {
    let mut bench = with_orphans(6);
    assert!(matches!(bench.next(), Step::Halt(Halt { why: Why::Inconsistent(_), .. })));
}

#[test]
fn the_age_of_a_replay_counts_from_the_recovery() {
    let mut bench = bench();
    let recovered_at = bench.now;
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: pending(49), ..known() }));
    bench.now += Duration::from_secs(5);
    bench.expect(BELOW_40, Outcome::Done);
    bench.expect(Step::Read { from: 40, through: Some(49) }, Outcome::Read { last: 49, new_events: 7 });
    bench.expect(Step::Claim(Committed { generation: 3, next: 40, pending_last: Some(49) }), Outcome::Done);
    let deadline = recovered_at + LIMITS.claim_age_max;
    assert_eq!(
        bench.next(),
        Step::InsertEvents(Insert { generation: 3, range: RANGE, checked: true, again: 0, deadline })
    );
}

#[test]
fn an_unanswered_insert_is_repeated_until_its_claim_is_too_old() {
    let mut bench = Bench::claimed(7);
    let insert = Step::InsertEvents(bench.insert());
    let mut repeated = 0;
    while bench.next() == insert {
        bench.on(Outcome::Unknown);
        bench.skip_wait();
        repeated += 1;
    }
    assert!(repeated > 3, "{repeated}");
    // The block is still there: it is claimed afresh, and neither built nor are keys loaded again.
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: pending(49), ..known() }));
    bench.expect(Step::Claim(Committed { generation: 3, next: 40, pending_last: Some(49) }), Outcome::Done);
    assert_eq!(bench.next(), Step::InsertEvents(bench.insert()));
}

#[test]
fn a_dropped_insert_is_repeated_under_another_token() {
    let mut bench = Bench::claimed(7);
    let insert = bench.insert();
    bench.expect(Step::InsertEvents(insert), Outcome::Dropped);
    bench.expect(Step::InsertEvents(Insert { again: 1, ..insert }), Outcome::Unknown);
    bench.skip_wait();
    bench.expect(Step::InsertEvents(Insert { again: 1, ..insert }), Outcome::Dropped);
    bench.expect(Step::InsertEvents(Insert { again: 2, ..insert }), Outcome::Done);
    // Its counters have tokens of their own.
    for again in 0..=8 {
        bench.expect(Step::InsertCounters(Insert { again, ..insert }), Outcome::Dropped);
    }
    assert!(matches!(bench.next(), Step::Halt(Halt { why: Why::InsertLost { what: "counters", .. }, .. })));
}

#[test]
fn a_late_insert_is_claimed_afresh_even_if_the_claim_was_forgotten() {
    let mut bench = Bench::claimed(7);
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Late);
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: LastCommit::None, ..known() }));
    assert_eq!(bench.next(), Step::Claim(Committed { generation: 3, next: 40, pending_last: Some(49) }));
}

#[test]
fn a_late_insert_that_had_arrived_is_committed() {
    let mut bench = Bench::claimed(7);
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Done);
    bench.expect(Step::InsertCounters(bench.insert()), Outcome::Late);
    let ledger = Some(Ledger { next: 50, offsets: 40, ..LEDGER });
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { committed: pending(49), ledger, ..known() }));
    bench.expect(Step::Commit(Committed { generation: 3, next: 50, pending_last: None }), Outcome::Done);
    assert_eq!(bench.next(), Step::Read { from: 50, through: None });
}

#[test]
fn a_block_of_another_generation_is_not_kept() {
    let mut bench = Bench::claimed(7);
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Late);
    let next_generation = Recovered { generation: 4, start: 40, ledger: None, committed: pending(49), ..known() };
    bench.expect(Step::Recover, Outcome::Recovered(next_generation));
    bench.expect(Step::Commit(Committed { generation: 4, next: 40, pending_last: None }), Outcome::Done);
    assert_eq!(bench.next(), Step::LoadSeen { generation: 4, below: 40 });
}

#[test]
fn a_refused_insert_halts() {
    let mut bench = Bench::claimed(7);
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Refused("no such column".into()));
    let Step::Halt(halt) = bench.next() else { panic!("no halt") };
    let message = halt.to_string();
    assert!(
        message.starts_with("partition 2 of topic captcha: clickhouse refuses the insert of offsets 40..=49: no such")
    );
    bench.on(Outcome::Done);
    assert_eq!(bench.next(), Step::Halt(halt));
}

#[test]
fn a_lost_partition_ends_the_tenure_at_any_step() {
    let mut bench = Bench::claimed(7);
    bench.on(Outcome::Unknown);
    assert!(matches!(bench.next(), Step::Wait(_)));
    bench.on(Outcome::Fenced);
    assert_eq!(bench.next(), Step::Leave);
}

#[test]
fn an_offset_that_the_log_does_not_hold_leads_back_to_recovery() {
    let mut bench = bench();
    bench.expect(Step::Recover, Outcome::Recovered(known()));
    bench.expect(BELOW_40, Outcome::Done);
    bench.expect(Step::Read { from: 40, through: None }, Outcome::OutOfRange);
    bench.skip_wait();
    bench.expect(Step::Recover, Outcome::Recovered(Recovered { log_low: 45, ..known() }));
    assert!(matches!(bench.next(), Step::Halt(Halt { why: Why::LogLost { log_low: 45, next: 40 }, .. })));
}

#[test]
fn waits_double_up_to_a_bound_and_begin_afresh_after_success() {
    let mut bench = bench();
    let mut bound = LIMITS.backoff_min;
    for _ in 0..12 {
        bench.expect(Step::Recover, Outcome::Unknown);
        let wait = bench.skip_wait();
        assert!(bound / 2 <= wait && wait <= bound, "{wait:?}, at most {bound:?}");
        bound = (bound * 2).min(LIMITS.backoff_max);
    }
    bench.expect(Step::Recover, Outcome::Recovered(known()));
    bench.expect(BELOW_40, Outcome::Done);
    bench.expect(Step::Read { from: 40, through: None }, Outcome::Idle);
    bench.expect(Step::Read { from: 40, through: None }, Outcome::Unknown);
    assert!(bench.skip_wait() <= LIMITS.backoff_min);
}

#[test]
fn leaving_finishes_a_claimed_range_and_begins_nothing() {
    let mut bench = Bench::claimed(7);
    bench.machine.leave();
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Done);
    bench.expect(Step::InsertCounters(bench.insert()), Outcome::Done);
    bench.expect(Step::Commit(Committed { generation: 3, next: 50, pending_last: None }), Outcome::Done);
    assert_eq!(bench.next(), Step::Leave);
}

#[test]
fn leaving_does_not_wait_for_a_store_that_is_away() {
    let mut bench = Bench::claimed(7);
    bench.machine.leave();
    bench.expect(Step::InsertEvents(bench.insert()), Outcome::Unknown);
    assert_eq!(bench.next(), Step::Leave);
}

#[test]
fn what_took_too_long_to_read_is_read_again() {
    let mut bench = bench();
    assert_eq!(bench.next(), Step::Recover);
    bench.now += LIMITS.claim_age_max + Duration::from_millis(1);
    bench.on(Outcome::Recovered(known()));
    bench.skip_wait();
    assert_eq!(bench.next(), Step::Recover);
}
