//! The model of the shell: performs the machine's steps on the model of the world, a little at a time, so that anything
//! can happen between asking, sending, taking effect and being told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::caches::no_keys;
use super::group::{MemberId, Refused};
use super::recovering::Reading;
use super::rules::Rule;
use super::store::{Applied, InFlight, Part, Rows};
use super::toy::Toy;
use super::world::{Faults, Request, World};
use crate::kinds::Kind;
use crate::writer::block::{Block, BlockBuilder};
use crate::writer::claim::{Committed, Tokens};
use crate::writer::halt::Place;
use crate::writer::machine::{Insert, Machine, Outcome, Step};
use crate::writer::seen::SeenKeys;

/// One partition in the hands of one process.
pub struct Tenure {
    machine: Machine,
    /// Under which membership it began.
    member: MemberId,
    /// The keys that it knows.
    pub seen: SeenKeys,
    /// A block under construction, with the next offset to read.
    building: Option<(BlockBuilder<Toy>, i64)>,
    block: Option<Block<Toy>>,
    /// The machine's step.
    asked: Step,
    /// What is left to do of the machine's step: itself, unless a rule is broken.
    todo: VecDeque<Step>,
    /// A claim that a broken rule puts off.
    put_off: Option<Committed>,
    doing: Doing,
}

/// Where the shell is.
pub enum Doing {
    /// It asks for the next step.
    Asking,
    /// It waits until then.
    Waiting(u64),
    /// It has a step to do.
    Starting(Step),
    /// It reads what is known.
    Recovering(Reading),
    /// It loads the seen keys.
    Loading { generation: u32, below: i64, until: u64 },
    /// It is about to send a commit; the membership was there a moment ago.
    Composing(Committed),
    /// A commit is sent.
    Committing { id: u64, until: u64 },
    /// An insert is sent.
    Inserting { id: u64, until: u64 },
    /// The machine is to be told.
    Telling(Outcome),
    /// The partition stands still.
    Halted,
}

impl Tenure {
    /// Forgets what was read.
    pub fn forget_blocks(&mut self) {
        (self.building, self.block) = (None, None);
    }

    /// How many new events the block has that is held.
    pub fn block_events(&self) -> Option<u64> {
        self.block.as_ref().map(Block::new_events)
    }

    /// The keys of its events.
    pub fn block_keys(&self) -> impl Iterator<Item = u8> {
        self.block.iter().flat_map(|block| block.columns.keys.iter().copied().flatten())
    }

    /// Leave in good order.
    pub fn leave(&mut self) {
        self.machine.leave();
    }
}

/// What is left to do of a step, or the end of it.
fn next_todo(t: &mut Tenure) -> Doing {
    t.todo.pop_front().map_or(Doing::Telling(Outcome::Done), Doing::Starting)
}

impl World {
    /// A new tenure.
    pub fn tenure(&mut self, p: usize, member: MemberId) -> Tenure {
        let place = Place { topic: Arc::from("toys"), partition: p as i32 };
        let machine = Machine::new(place, self.setup.limits, self.rng.bits(), self.instant());
        Tenure {
            machine,
            member,
            seen: no_keys(),
            building: None,
            block: None,
            asked: Step::Recover,
            todo: VecDeque::new(),
            put_off: None,
            doing: Doing::Asking,
        }
    }

    /// A tenure does a little.
    pub fn advance(&mut self, w: usize, p: usize) {
        let Some(mut tenure) = self.processes[w].tenures[p].take() else { return };
        let doing = std::mem::replace(&mut tenure.doing, Doing::Asking);
        let t = &mut *tenure;
        let doing = match doing {
            Doing::Asking => match self.ask(w, p, t) {
                Some(doing) => doing,
                None => return,
            },
            Doing::Waiting(until) if until <= self.now => Doing::Asking,
            Doing::Starting(step) => self.start_step(w, p, t, step),
            Doing::Recovering(reading) => self.recover(p, reading),
            Doing::Loading { generation, below, until } if until <= self.now => {
                self.load_seen(w, p, t, generation, below)
            }
            Doing::Composing(committed) => self.send_commit(w, p, committed),
            Doing::Committing { id, until } => self.await_commit(w, t, id, until),
            Doing::Inserting { id, until } => self.await_insert(p, t, id, until),
            Doing::Telling(outcome) => self.tell(w, p, t, outcome),
            unchanged @ (Doing::Waiting(_) | Doing::Loading { .. } | Doing::Halted) => unchanged,
        };
        tenure.doing = doing;
        self.processes[w].tenures[p] = Some(tenure);
    }

    fn ask(&mut self, w: usize, p: usize, t: &mut Tenure) -> Option<Doing> {
        let now = self.instant();
        let mut step = t.machine.next(now);
        if step == Step::Recover && !self.obeys(Rule::AgeFromRecovery) {
            step = t.machine.next(now + Duration::from_secs(3600));
        }
        self.note(|| format!("writer {w}/{p}: {step:?}"));
        match step {
            Step::Leave => return None,
            Step::Halt(halt) => {
                self.halts[p] = Some(halt.why);
                return Some(Doing::Halted);
            }
            Step::Wait(wait) => return Some(Doing::Waiting(self.now + wait.as_millis() as u64 + 1)),
            Step::Recover if t.block.is_some() => self.cover("a claim grew too old and its block was kept"),
            _ => {}
        }
        t.asked = step.clone();
        t.todo = self.todo(t, step);
        Some(next_todo(t))
    }

    /// What is done for a step: the step, unless a rule is broken.
    fn todo(&self, t: &mut Tenure, step: Step) -> VecDeque<Step> {
        match step {
            Step::Claim(committed) if !self.obeys(Rule::ClaimBeforeInsert) => {
                t.put_off = Some(committed);
                VecDeque::new()
            }
            Step::InsertEvents(_) | Step::InsertCounters(_) if t.put_off.is_some() => {
                let put_off = t.put_off.take().map(Step::Claim);
                std::iter::once(step).chain(put_off).collect()
            }
            Step::InsertCounters(Insert { generation, range, .. }) if !self.obeys(Rule::CountersBeforeCommit) => {
                let committed = Committed { generation, next: range.next(), pending_last: None };
                [Step::Commit(committed), step].into()
            }
            Step::LoadSeen { generation, .. } if !self.obeys(Rule::SeenBelowRange) => {
                [Step::LoadSeen { generation, below: i64::MAX }].into()
            }
            step => [step].into(),
        }
    }

    fn start_step(&mut self, w: usize, p: usize, t: &mut Tenure, step: Step) -> Doing {
        match step {
            Step::Recover => Doing::Recovering(Reading::default()),
            Step::LoadSeen { generation, below } => {
                let until = self.now + self.rng.below(self.setup.load_ms_max);
                Doing::Loading { generation, below, until }
            }
            Step::Read { from, through } => {
                let doing = self.read(p, t, from, through);
                if matches!(doing, Doing::Telling(Outcome::Read { .. })) {
                    self.stall(w);
                }
                doing
            }
            Step::Claim(committed) | Step::Commit(committed) => {
                if self.processes[w].is_member(t.member) || !self.obeys(Rule::FenceObeyed) {
                    self.learn_before_commit(w);
                    self.stall(w);
                    Doing::Composing(committed)
                } else {
                    Doing::Telling(Outcome::Fenced)
                }
            }
            Step::InsertEvents(insert) => self.insert(p, t, insert, true),
            Step::InsertCounters(insert) => self.insert(p, t, insert, false),
            Step::Wait(_) | Step::Leave | Step::Halt(_) => unreachable!("nothing to do for {step:?}"),
        }
    }

    /// Reads a few records; a block is complete after one or several calls.
    fn read(&mut self, p: usize, t: &mut Tenure, from: i64, through: Option<i64>) -> Doing {
        let log = &self.partitions[p].log;
        if self.now < self.kafka_back_at || (self.faulty && self.rng.permille(20)) {
            return Doing::Telling(Outcome::Unknown);
        }
        let (mut builder, mut next) = t.building.take().unwrap_or_else(|| (BlockBuilder::new(), from));
        let lost_passed_over = !self.obeys(Rule::LostLogHalts);
        if next < log.low && !lost_passed_over || next > log.high {
            return Doing::Telling(Outcome::OutOfRange);
        }
        let begun = next > from;
        let end = through.unwrap_or(i64::MAX - 1);
        let records = log.records(next, end);
        let taken = records.len().min(self.rng.between(1, 4) as usize);
        for record in &records[..taken] {
            builder.push(record.offset, 0, &record.events, &mut t.seen);
            next = record.offset + 1;
        }
        let left = records.len() - taken;
        if left == 0 && self.rng.permille(500) {
            // The client passes over the holes that follow.
            next = next.max(log.high.min(end.saturating_add(1)));
        }
        let full = match through {
            Some(_) => left == 0,
            None => next > from && (left == 0 || self.rng.permille(300)),
        };
        if !full {
            let idle = next == from && !begun;
            t.building = Some((builder, next));
            let step = Step::Read { from, through };
            return if idle { Doing::Telling(Outcome::Idle) } else { Doing::Starting(step) };
        }
        let block = builder.finish();
        let new_events = block.new_events();
        if block.events == 0 {
            self.cover("a range without events");
        } else if new_events == 0 {
            self.cover("a range without new events");
        }
        t.seen.reached(from, through.unwrap_or(next - 1) + 1);
        t.block = Some(block);
        Doing::Telling(Outcome::Read { last: through.unwrap_or(next - 1), new_events })
    }

    fn send_commit(&mut self, w: usize, p: usize, committed: Committed) -> Doing {
        let process = &self.processes[w];
        // A client that knows that its membership is lost sends none.
        let by = process.membership.filter(|_| !(process.lost && self.setup.commits_without_membership));
        let (connection, until) = (process.connection, self.now + self.rng.between(5, 40));
        let id = self.id();
        let commit = (committed.next, committed.metadata());
        self.note(|| format!("writer {w}/{p}: sends commit {commit:?} as {by:?}"));
        self.connections[connection].push_back(Request { id, by, partition: p, commit });
        Doing::Committing { id, until }
    }

    fn await_commit(&mut self, w: usize, t: &mut Tenure, id: u64, until: u64) -> Doing {
        let Some(answer) = self.answers.remove(&id) else {
            return if self.now > until { Doing::Telling(Outcome::Unknown) } else { Doing::Committing { id, until } };
        };
        let is_member = self.processes[w].is_member(t.member);
        match answer {
            Ok(()) if is_member || !self.obeys(Rule::MembershipAtAck) => Doing::Telling(Outcome::Done),
            Err(Refused::StaleEpoch) if is_member => Doing::Telling(Outcome::Unknown),
            Err(_) if !self.obeys(Rule::FenceObeyed) => Doing::Telling(Outcome::Done),
            refused => {
                if refused == Err(Refused::UnknownMember) {
                    self.processes[w].lost = true;
                }
                self.cover("a commit is refused");
                Doing::Telling(Outcome::Fenced)
            }
        }
    }

    fn insert(&mut self, p: usize, t: &mut Tenure, insert: Insert, events: bool) -> Doing {
        if self.instant() > insert.deadline && self.obeys(Rule::DeadlineAtSending) {
            self.cover("an insert is too late to be sent");
            return Doing::Telling(Outcome::Late);
        }
        let Some(block) = &t.block else { unreachable!("an insert without a block") };
        let part = self.part(p, block, insert, events);
        let Faults { lost_answers, late_inserts, .. } = self.setup.faults;
        let (id, delay) = (self.id(), self.rng.between(1, self.setup.insert_ms_max));
        let away = self.now < self.store_back_at;
        let late = self.faulty && self.rng.permille(late_inserts);
        if away || late {
            // It may never arrive, or arrive later.
            if self.rng.permille(if away { 400 } else { 800 }) {
                self.store.in_flight.push(InFlight { at: self.now + delay, id, part });
            }
            return Doing::Inserting { id, until: self.now + self.rng.between(1, delay) };
        }
        if !self.take_effect(&part, self.now) || self.faulty && self.rng.permille(lost_answers) {
            self.unanswered()
        } else {
            Doing::Telling(self.inserted(p, t, insert, events))
        }
    }

    /// What a shell makes of an acknowledged insert.
    fn inserted(&mut self, p: usize, t: &Tenure, insert: Insert, events: bool) -> Outcome {
        let sent = t.block_events().filter(|_| events);
        if !insert.checked
            || !self.obeys(Rule::InsertsChecked)
            || self.store.has(p, insert.generation, insert.range, sent)
        {
            return Outcome::Done;
        }
        self.cover("an insert is dropped whose rows are lost");
        Outcome::Dropped
    }

    fn part(&mut self, p: usize, block: &Block<Toy>, insert: Insert, events: bool) -> Part {
        let Insert { generation, range, again, .. } = insert;
        let tokens = Tokens { kind: Toy::NAME, log: "log".to_owned(), partition: p as i32 };
        let mut token =
            if events { tokens.events(generation, range, again) } else { tokens.counters(generation, range, again) };
        if !self.obeys(Rule::RangeInToken) {
            token = format!("{p}/{events}");
        }
        if !self.obeys(Rule::SameTokenAgain) {
            token = format!("{token}/{}", self.id());
        }
        let row = |row: usize| {
            let position = (generation, block.offsets[row], block.positions[row]);
            (position, (block.columns.keys[row], block.columns.sites[row]))
        };
        let rows = if events {
            Rows::Events((0..block.offsets.len()).map(row).collect())
        } else {
            Rows::Counters(block.counters)
        };
        Part { token, partition: p, generation, range, rows }
    }

    fn await_insert(&mut self, p: usize, t: &Tenure, id: u64, until: u64) -> Doing {
        if let Some(at) = self.store.landed.iter().position(|landed| *landed == id) {
            self.store.landed.swap_remove(at);
            return Doing::Telling(match t.asked {
                Step::InsertEvents(insert) => self.inserted(p, t, insert, true),
                Step::InsertCounters(insert) => self.inserted(p, t, insert, false),
                _ => Outcome::Done,
            });
        }
        if self.now <= until {
            return Doing::Inserting { id, until };
        }
        self.unanswered()
    }

    /// What a shell makes of an insert without an answer.
    fn unanswered(&self) -> Doing {
        Doing::Telling(if self.obeys(Rule::UnknownRepeated) { Outcome::Unknown } else { Outcome::Done })
    }

    fn tell(&mut self, w: usize, p: usize, t: &mut Tenure, outcome: Outcome) -> Doing {
        if outcome == Outcome::Done && !t.todo.is_empty() {
            return next_todo(t);
        }
        self.note(|| format!("writer {w}/{p}: {outcome:?}"));
        if let (Outcome::Done, Step::Commit(Committed { generation, next, .. })) = (&outcome, &t.asked) {
            let (generation, next) = (*generation, *next);
            self.record_seen(w, p, t, generation, next);
        }
        if let (Outcome::Done, Step::Claim(Committed { generation, pending_last: Some(last), .. })) =
            (&outcome, &t.asked)
        {
            self.record_too_early(w, p, t, *generation, *last + 1);
        }
        t.machine.on(outcome, self.instant());
        Doing::Asking
    }

    /// An insert takes effect in the store. `false` when nobody can be answered, as the store is killed by then.
    pub fn take_effect(&mut self, part: &Part, at: u64) -> bool {
        let kills = self.setup.faults.store_kills;
        if kills > 0 && self.faulty && self.rng.permille(kills) {
            self.note(|| format!("store: killed at {} of partition {}", part.token, part.partition));
            self.cover("the store is killed between a token and its rows");
            self.store.note_token(part, at);
            return false;
        }
        let truth = &self.partitions[part.partition].truth;
        let first_part = if self.obeys(Rule::OnePart) { None } else { part.first_half() };
        let applied = self.store.apply(first_part.as_ref().unwrap_or(part), at, truth);
        self.note(|| format!("store: {} of partition {}: {applied:?}", part.token, part.partition));
        match applied {
            Ok(Applied::Stored) => {}
            Ok(Applied::Dropped) => self.cover("an insert is dropped for its token"),
            Err(violation) => self.violate(violation),
        }
        true
    }
}
