//! What goes wrong, and what an operator does.

use super::group::Group;
use super::process::{Life, Process};
use super::world::{WITHOUT_MEMBERSHIP, World};
use crate::writer::halt::Why;
use crate::writer::identity::{self, Stored};

/// A week, short as it is here: longer than everything else.
const WEEK_MS: u64 = 100_000;

impl World {
    /// One thing or another goes wrong, or not.
    pub fn go_wrong(&mut self) {
        let faults = self.setup.faults.clone();
        let w = self.rng.below(self.processes.len() as u64) as usize;
        let up = self.processes[w].life == Life::Up;
        if up && self.rng.permille(faults.crashes) {
            let until = self.now + self.rng.between(1, faults.down_ms_max);
            self.processes[w].die(until);
            self.note(|| format!("writer {w} dies"));
        } else if up && self.rng.permille(faults.pauses) {
            let until = self.now + self.rng.between(10, faults.pause_ms_max);
            self.processes[w].life = Life::Paused(until);
            self.note(|| format!("writer {w} stands still until {until}"));
        } else if up && self.rng.permille(faults.leaves) {
            self.processes[w].leaving = true;
            self.note(|| format!("writer {w} is to leave"));
        }
        if self.rng.permille(faults.abandonments) {
            self.abandon();
        }
        if self.rng.permille(faults.kafka_away) {
            self.kafka_back_at = self.now + self.rng.between(5, 150);
            self.note(|| "kafka is away".to_owned());
        }
        if self.rng.permille(faults.store_away) {
            self.store_back_at = self.now + self.rng.between(5, 400);
            self.note(|| "the store is away".to_owned());
        }
        if self.rng.permille(faults.rebalances) {
            self.group.rebalance(&mut self.rng);
            self.note(|| "group: rebalance".to_owned());
        }
        if self.rng.permille(faults.cuts) {
            self.cut(w);
        }
        if self.rng.permille(faults.weeks) {
            self.cover("a week passes and the commits are forgotten");
            self.week(false);
            self.group.commits.fill(None);
        }
        if self.rng.permille(faults.retention) {
            let p = self.rng.below(self.partitions.len() as u64) as usize;
            let low = self.stored(p).max(self.partitions[p].log.low);
            self.partitions[p].log.retain_from(low);
        }
        let p = self.rng.below(self.partitions.len() as u64) as usize;
        if self.rng.permille(120) {
            let records = self.rng.between(1, 4);
            self.produce(p, records);
        }
    }

    /// A client's connection to Kafka is cut. What was sent on it is lost, or is still there to be read by Kafka beside what
    /// comes on the next connection.
    fn cut(&mut self, w: usize) {
        let lost = self.rng.permille(500);
        if let Some(requests) = self.connections.get_mut(self.processes[w].connection).filter(|_| lost) {
            requests.clear();
        }
        if self.processes[w].connection != usize::MAX {
            self.processes[w].connection = self.connect();
        }
        self.note(|| format!("writer {w}: its connection is cut, requests lost: {lost}"));
    }

    /// A writer has stood still for so long that its partitions went to others, which now die or stand still too: it goes on
    /// when the group has become empty, and its client does not ask for a membership before it sends what it was
    /// about to send.
    fn abandon(&mut self) {
        let went_on = |process: &Process| process.life == Life::Up && process.tenures.iter().any(Option::is_some);
        let expelled = |process: &Process| {
            matches!(process.life, Life::Paused(_))
                && process.membership.is_some_and(|(member, _)| !self.group.has(member))
        };
        if !self.processes.iter().any(expelled) || !self.processes.iter().any(went_on) {
            return;
        }
        self.cover("all writers die but those that lost their partitions without knowing");
        let empty_at = self.now + self.setup.session_ms + 1;
        for process in &mut self.processes {
            match process.life {
                Life::Paused(_) => process.life = Life::Paused(empty_at + self.rng.below(50)),
                Life::Up if self.rng.permille(500) => process.life = Life::Paused(empty_at + self.rng.below(200)),
                _ => process.die(empty_at + 200),
            }
        }
    }

    /// A writer stands still just as it is about to claim or to commit.
    pub fn stall(&mut self, w: usize) {
        if self.faulty && self.rng.permille(self.setup.faults.stalls) {
            let until = self.now + self.setup.faults.pause_ms_max;
            self.processes[w].life = Life::Paused(until);
            self.note(|| format!("writer {w} stands still until {until}, about to claim or commit"));
        }
    }

    /// The client may learn that its membership is lost just after the program has asked it.
    pub fn learn_before_commit(&mut self, w: usize) {
        if self.setup.commits_without_membership && self.rng.permille(400) {
            self.heartbeat(w);
        }
    }

    /// One past what is stored and counted in the newest recorded generation.
    pub fn stored(&self, p: usize) -> i64 {
        let Some(newest) = self.recorded.last() else { return 0 };
        self.store.ledger(p, newest.number).map_or(newest.start_offsets[p], |ledger| ledger.next)
    }

    /// Every process dies, a week passes, and what was under way has arrived or is gone. Processes that stand still keep
    /// what they know, unless `all`, and go on afterwards.
    pub fn week(&mut self, all: bool) {
        for process in &mut self.processes {
            match process.life {
                Life::Paused(until) if !all => process.life = Life::Paused(until + WEEK_MS),
                _ => process.die(self.now + WEEK_MS + 1),
            }
        }
        for requests in &mut self.connections {
            requests.clear();
        }
        self.now += WEEK_MS;
        (self.kafka_back_at, self.store_back_at) = (0, 0);
        self.land();
        self.group.expire(self.now, &mut self.rng);
        self.note(|| "a week has passed".to_owned());
    }

    /// Everything works again.
    pub fn heal(&mut self) {
        self.note(|| "everything works again".to_owned());
        self.faulty = false;
        (self.kafka_back_at, self.store_back_at) = (0, 0);
        for process in &mut self.processes {
            process.life = match process.life {
                Life::Paused(_) => Life::Paused(self.now),
                Life::Down(_) => Life::Down(self.now),
                life => life,
            };
        }
    }

    /// Whether everything is stored and nothing is under way.
    pub fn drained(&self) -> bool {
        let stored = |p: usize| {
            let next = self.stored(p);
            self.partitions[p].log.records.last().is_none_or(|record| record.offset < next)
        };
        self.store.in_flight.is_empty() && (0..self.partitions.len()).all(stored)
    }

    /// Ticks until everything is stored; a violation when that takes too long or something stands still.
    pub fn drain(&mut self) {
        const TICKS_MAX: u32 = 30_000;
        for _ in 0..TICKS_MAX {
            self.look_at_halts();
            if self.drained() || self.is_over() {
                return;
            }
            self.tick();
        }
        self.violate("not everything is stored in time".to_owned());
    }

    /// Nothing may halt without need. A commit without membership can leave a claim and events behind that contradict
    /// each other: a halt is the safe end of that.
    pub fn look_at_halts(&mut self) {
        let Some(why) = self.halts.iter().flatten().next() else { return };
        if matches!(why, Why::Inconsistent(_)) && self.covered.contains_key(WITHOUT_MEMBERSHIP) {
            self.cover("a halt after a commit without membership");
            self.abandoned = true;
        } else {
            let violation = format!("halted without need: {why}");
            self.violate(violation);
        }
    }

    /// At the end: everything is stored once and counted once.
    pub fn check(&mut self) {
        for p in 0..self.partitions.len() {
            if let Err(violation) = self.store.check(p, &self.partitions[p].truth) {
                self.violate(violation);
            }
        }
    }

    /// The operator stops all writers and opens a new generation for the log as it is now; `false` when that is refused.
    pub fn open_generation(&mut self) -> bool {
        self.week(true);
        let newest = self.recorded.last().map_or(0, |newest| newest.number);
        let stored: Vec<Stored> = (0..self.partitions.len())
            .map(|p| {
                let next = self.stored(p);
                Stored {
                    next: self.store.ledger(p, newest).map(|ledger| ledger.next),
                    uncounted: self.store.orphans(p, newest, next).is_some(),
                }
            })
            .collect();
        let opened = identity::open(&self.recorded, &self.log_now(), &stored);
        self.note(|| format!("the operator opens a generation: {opened:?}"));
        let Ok(generation) = opened else { return false };
        self.generation = generation.number;
        for p in 0..self.partitions.len() {
            let end = (newest, self.stored(p));
            let partition = &mut self.partitions[p];
            partition.truth.begin_generation(end, generation.number, &partition.log, generation.start_offsets[p]);
        }
        self.recorded.push(generation);
        self.halts.fill(None);
        true
    }

    /// The topic is deleted and created again; the group's commits went with it, or did not.
    pub fn recreate_topic(&mut self, keep_commits: bool) {
        self.topic_id += 1;
        let commits = self.group.commits.clone();
        self.group = Group::new(self.partitions.len());
        if keep_commits {
            self.group.commits = commits;
        }
        for partition in &mut self.partitions {
            partition.log = super::log::ModelLog::new(0);
        }
        self.processes.iter_mut().for_each(|process| *process = Process::new(process.held.len()));
        self.note(|| "the topic is deleted and created again".to_owned());
    }
}
