//! Decides what is done next for one partition during one tenure: the time between being assigned the partition and
//! losing it. No I/O, no clock, no threads.
//!
//! ```text
//! Recover ─▶ (Commit) ─▶ LoadSeen ─▶ Read ─▶ Claim ─▶ InsertEvents ─▶ InsertCounters ─▶ Commit ─┐
//!    ▲                                ▲                                                         │
//!    │ claim too old                  └─────────────────────────────────────────────────────────┘
//!    └── or the log no longer holds the next offset
//! ```
//!
//! What always holds:
//!
//! - A range is claimed in Kafka before anything of it is inserted, and no other range is claimed before its events and
//!   counters are stored. So at any time at most one range of a partition is unfinished, and its claim says which.
//! - An accepted claim proves ownership, as long as the membership that it was made under is unbroken.
//! - An insert whose outcome is unknown is repeated under the same token. It is given up when the claim, or for a
//!   replayed range what was read of the store before it, is older than [`Limits::claim_age_max`]: the store may forget
//!   tokens after that.
//! - What is seen is every key stored below the range, so a replay decides as the first attempt did.

use std::time::{Duration, Instant};

use super::claim::{Committed, Range};
use super::halt::{Halt, Place, Why};
use super::recover::{Plan, Recovered, plan};
pub use super::step::{Insert, Outcome, Step};
use crate::backoff::Backoff;

/// The machine's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How old a claim may be when an insert under it is sent.
    ///
    /// Together with the longest time that an insert can be under way (until it has taken effect or never will) it must be
    /// shorter than the time for which the store's de-duplication window surely remembers a token, and shorter than the
    /// group's session time-out: Kafka takes commits without membership while a group is empty, and such
    /// a commit does no harm when no insert under the claim that it overwrites can still arrive.
    pub claim_age_max: Duration,
    /// The first wait before something is tried again; it doubles up to [`Limits::backoff_max`].
    pub backoff_min: Duration,
    /// The longest wait before something is tried again.
    pub backoff_max: Duration,
}

/// Decides for one partition during one tenure.
#[derive(Debug)]
pub struct Machine {
    place: Place,
    limits: Limits,
    state: State,
    generation: u32,
    /// Where the log ended when what is known was read: whatever any writer had inserted by then lies before it.
    log_end: i64,
    /// When the step now under way was asked for.
    asked_at: Instant,
    /// When what is known of the store was asked for.
    recovered_at: Instant,
    /// Reset when something was got done.
    backoff: Backoff,
    /// Nothing is tried before this time.
    not_before: Option<Instant>,
    /// Whether to leave as soon as no claimed range is unfinished.
    leaving: bool,
}

/// What is going on.
#[derive(Clone, Debug)]
enum State {
    /// `held` is the claimed range whose block the shell still holds.
    Recover {
        held: Option<Held>,
    },
    LoadSeen {
        plan: Plan,
    },
    Read {
        plan: Plan,
    },
    Claim(Held),
    InsertEvents(Held, Instant),
    InsertCounters(Held, Instant),
    Commit {
        next: i64,
        then: After,
    },
    Left,
    Halted(Halt),
}

/// A range whose block the shell holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    range: Range,
    new_events: u64,
    /// How many of its events are known to be stored; with a value all of them must be.
    events_stored: Option<u64>,
    /// For a range that may have been tried before: when the store was asked what it holds of it.
    known_at: Option<Instant>,
    /// See [`Insert::again`].
    again: u32,
    /// Whether an attempt at the insert that is next has ended in the dark.
    tried: bool,
}

/// How often an insert is repeated under another token. Each time means that the store was killed in the same moment
/// of the same insert; more than a few, that something else is wrong.
const AGAIN_MAX: u32 = 8;

/// What follows a commit.
#[derive(Clone, Copy, Debug)]
enum After {
    LoadSeen,
    Read,
}

impl Machine {
    /// A new tenure. `seed` is that of the spread of the waits: different for each machine.
    pub fn new(place: Place, limits: Limits, seed: u64, now: Instant) -> Machine {
        Machine {
            place,
            limits,
            state: State::Recover { held: None },
            generation: 0,
            log_end: i64::MAX,
            asked_at: now,
            recovered_at: now,
            backoff: Backoff::new(limits.backoff_min, limits.backoff_max, seed),
            not_before: None,
            leaving: false,
        }
    }

    /// The next step. Asking again without an answer gives the same step.
    pub fn next(&mut self, now: Instant) -> Step {
        if self.leaving && !self.finishing() {
            self.state = State::Left;
        }
        match &self.state {
            State::Left => return Step::Leave,
            State::Halted(halt) => return Step::Halt(halt.clone()),
            _ => {}
        }
        if let Some(not_before) = self.not_before {
            if now < not_before {
                return Step::Wait(not_before - now);
            }
            self.not_before = None;
        }
        if let State::InsertEvents(held, deadline) | State::InsertCounters(held, deadline) = self.state
            && now > deadline
        {
            self.give_up(held);
        }
        self.asked_at = now;
        self.step()
    }

    /// Tells how the last step ended.
    ///
    /// # Panics
    ///
    /// When the outcome cannot be one of the step's, which is a mistake of the shell.
    pub fn on(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            _ if matches!(self.state, State::Left | State::Halted(_)) => {}
            Outcome::Fenced => self.state = State::Left,
            Outcome::Unknown => {
                if let State::InsertEvents(held, _) | State::InsertCounters(held, _) = &mut self.state {
                    held.tried = true;
                }
                self.back_off(now);
            }
            // Read over such a time, by a process that stood still meanwhile, its parts need not belong together.
            Outcome::Recovered(_) if now > self.asked_at + self.limits.claim_age_max => self.back_off(now),
            Outcome::Recovered(known) => self.on_recovered(&known),
            Outcome::Read { last, new_events } => self.on_read(last, new_events),
            Outcome::Idle => self.backoff.reset(),
            Outcome::OutOfRange => {
                self.state = State::Recover { held: None };
                self.back_off(now);
            }
            Outcome::Newer { offset, reason } => self.halt(Why::RecordNewer { offset, reason }),
            Outcome::Done => self.on_done(),
            Outcome::Late => match self.state {
                State::InsertEvents(held, _) | State::InsertCounters(held, _) => self.give_up(held),
                ref state => unreachable!("a late insert while {state:?}"),
            },
            Outcome::Dropped => self.on_dropped(),
            Outcome::Refused(reason) => match self.state {
                State::InsertEvents(held, _) | State::InsertCounters(held, _) => {
                    self.halt(Why::StoreRefuses { range: held.range, reason });
                }
                ref state => unreachable!("a refused insert while {state:?}"),
            },
        }
    }

    /// Asks to leave in good order, for a shutdown or a revocation: a claimed range is finished when that goes at the
    /// first attempt, nothing else is begun, and then the step is [`Step::Leave`]. Dropping the machine instead is
    /// as safe, and leaves more to replay.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Whether a claimed range is about to be finished.
    fn finishing(&self) -> bool {
        match self.state {
            State::InsertEvents(..) | State::InsertCounters(..) | State::Commit { then: After::Read, .. } => {
                self.backoff.is_reset()
            }
            _ => false,
        }
    }

    fn step(&self) -> Step {
        let generation = self.generation;
        match self.state {
            State::Recover { .. } => Step::Recover,
            State::LoadSeen { plan } => Step::LoadSeen { generation, below: plan.from() },
            State::Read { plan } => Step::Read { from: plan.from(), through: plan.through() },
            State::Claim(Held { range, .. }) => {
                Step::Claim(Committed { generation, next: range.first, pending_last: Some(range.last) })
            }
            State::InsertEvents(held, deadline) => Step::InsertEvents(self.insert(held, deadline)),
            State::InsertCounters(held, deadline) => Step::InsertCounters(self.insert(held, deadline)),
            State::Commit { next, .. } => Step::Commit(Committed { generation, next, pending_last: None }),
            State::Left => Step::Leave,
            State::Halted(ref halt) => Step::Halt(halt.clone()),
        }
    }

    fn insert(&self, held: Held, deadline: Instant) -> Insert {
        let Held { range, again, tried, .. } = held;
        Insert { generation: self.generation, range, checked: tried || range.first < self.log_end, again, deadline }
    }

    /// Goes on to the next token: under this one nothing can be stored any more.
    fn on_dropped(&mut self) {
        let what = if matches!(self.state, State::InsertEvents(..)) { "events" } else { "counters" };
        match &mut self.state {
            State::InsertEvents(held, _) | State::InsertCounters(held, _) if held.again < AGAIN_MAX => held.again += 1,
            State::InsertEvents(held, _) | State::InsertCounters(held, _) => {
                let range = held.range;
                self.halt(Why::InsertLost { what, range });
            }
            state => unreachable!("a dropped insert while {state:?}"),
        }
    }

    fn on_recovered(&mut self, known: &Recovered) {
        let State::Recover { held } = self.state else {
            unreachable!("an unasked recovery while {:?}", self.state);
        };
        self.recovered_at = self.asked_at;
        let held = held.filter(|_| known.generation == self.generation);
        self.generation = known.generation;
        self.log_end = known.log_high;
        let plan = match plan(known) {
            Ok(plan) => plan,
            Err(why) => return self.halt(why),
        };
        let state = match (plan, held) {
            // The block of the very range is still there, and no one else has stored anything since: it need not be
            // built again.
            (Plan::Replay { range, events_stored }, Some(held)) if range == held.range => {
                return self.claim(Held { events_stored, known_at: Some(self.recovered_at), ..held });
            }
            (Plan::Resume { from, .. }, Some(held)) if from == held.range.first => {
                return self.claim(Held { events_stored: None, known_at: Some(self.recovered_at), ..held });
            }
            (Plan::Resume { from, .. }, Some(held)) if from == held.range.next() => {
                State::Commit { next: from, then: After::Read }
            }
            (Plan::Resume { from, settle: true }, _) => State::Commit { next: from, then: After::LoadSeen },
            (plan, _) => State::LoadSeen { plan },
        };
        self.state = state;
    }

    fn on_read(&mut self, last: i64, new_events: u64) {
        let State::Read { plan } = self.state else {
            unreachable!("an unasked read while {:?}", self.state);
        };
        assert!(
            last >= plan.from() && plan.through().is_none_or(|through| through == last),
            "read to {last} of {plan:?}"
        );
        let (events_stored, known_at) = match plan {
            Plan::Resume { .. } => (None, None),
            Plan::Replay { events_stored, .. } => (events_stored, Some(self.recovered_at)),
        };
        self.backoff.reset();
        self.claim(Held {
            range: Range { first: plan.from(), last },
            new_events,
            events_stored,
            known_at,
            again: 0,
            tried: false,
        });
    }

    /// Goes on to claim the range of the block held, unless what is stored of it cannot be its events.
    fn claim(&mut self, held: Held) {
        let Held { range, new_events, events_stored, .. } = held;
        match events_stored {
            Some(rows) if rows != new_events => self.halt(Why::Inconsistent(format!(
                "{rows} events of the offsets {range} are stored and not counted, while the log has {new_events} new \
                 events there"
            ))),
            // Whoever claims a range begins with its first token.
            _ => self.state = State::Claim(Held { again: 0, ..held }),
        }
    }

    fn on_done(&mut self) {
        // Recovering and loading is not yet progress: what fails after it again and again must wait longer each time.
        if !matches!(self.state, State::LoadSeen { .. }) {
            self.backoff.reset();
        }
        self.state = match self.state {
            State::LoadSeen { plan } => State::Read { plan },
            State::Claim(held) => {
                let since = held.known_at.unwrap_or(self.asked_at).min(self.asked_at);
                let deadline = since + self.limits.claim_age_max;
                if held.events_stored.is_some() || held.new_events == 0 {
                    State::InsertCounters(held, deadline)
                } else {
                    State::InsertEvents(held, deadline)
                }
            }
            State::InsertEvents(held, deadline) => {
                State::InsertCounters(Held { again: 0, tried: false, ..held }, deadline)
            }
            State::InsertCounters(held, _) => State::Commit { next: held.range.next(), then: After::Read },
            State::Commit { next, then } => {
                let plan = Plan::Resume { from: next, settle: false };
                match then {
                    After::LoadSeen => State::LoadSeen { plan },
                    After::Read => State::Read { plan },
                }
            }
            ref state => unreachable!("done while {state:?}"),
        };
    }

    /// The insert cannot go on under this claim: find out what is stored, and claim the range again.
    fn give_up(&mut self, held: Held) {
        self.state = State::Recover { held: Some(held) };
    }

    fn halt(&mut self, why: Why) {
        self.state = State::Halted(Halt { place: self.place.clone(), why });
    }

    fn back_off(&mut self, now: Instant) {
        self.not_before = Some(now + self.backoff.next_wait());
    }
}

impl Plan {
    fn from(self) -> i64 {
        match self {
            Plan::Resume { from, .. } => from,
            Plan::Replay { range, .. } => range.first,
        }
    }

    fn through(self) -> Option<i64> {
        match self {
            Plan::Resume { .. } => None,
            Plan::Replay { range, .. } => Some(range.last),
        }
    }
}

#[cfg(test)]
mod tests;
