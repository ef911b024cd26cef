//! The model of a writer's process: the Kafka client with its membership, and a tenure for each partition it has.

use super::group::{MemberId, Membership};
use super::perform::Tenure;
use super::world::World;

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Up,
    /// It stands still (SIGSTOP, a paused machine) with everything it knows, until this time.
    Paused(u64),
    /// It is dead, and is started again at this time.
    Down(u64),
    /// It refused to run: the log is not the recorded one.
    Refused,
}

/// A partition in the client's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Not assigned.
    No,
    /// Assigned; the program was not told yet.
    Granted,
    /// Assigned, with a tenure.
    Owned,
    /// To be given back.
    Revoking,
}

/// A process.
pub struct Process {
    /// Whether it runs.
    pub life: Life,
    /// What the client sends with its commits.
    pub membership: Option<Membership>,
    /// Whether the client knows that its membership is lost, and the program was not told yet.
    pub lost: bool,
    /// Whether it is about to leave the group in good order.
    pub leaving: bool,
    /// Its partitions.
    pub held: Vec<Held>,
    /// Its tenures.
    pub tenures: Vec<Option<Box<Tenure>>>,
    /// Its connection to Kafka.
    pub connection: usize,
}

impl Process {
    /// A process that is about to be started.
    pub fn new(partitions: usize) -> Process {
        Process {
            life: Life::Down(0),
            membership: None,
            lost: false,
            leaving: false,
            held: vec![Held::No; partitions],
            tenures: (0..partitions).map(|_| None).collect(),
            connection: usize::MAX,
        }
    }

    /// Whether it is still the member it was.
    pub fn is_member(&self, member: MemberId) -> bool {
        !self.lost && self.membership.is_some_and(|(id, _)| id == member)
    }

    /// It ends and loses everything it knows.
    pub fn die(&mut self, until: u64) {
        *self = Process { life: Life::Down(until), ..Process::new(self.held.len()) };
    }

    fn forget_membership(&mut self) {
        let partitions = self.held.len();
        let fresh = Process::new(partitions);
        *self = Process { life: self.life, connection: self.connection, ..fresh };
    }
}

impl World {
    /// Processes whose time has come go on or start.
    pub fn wake(&mut self) {
        for w in 0..self.processes.len() {
            match self.processes[w].life {
                Life::Paused(until) if until <= self.now => {
                    self.note(|| format!("writer {w} goes on"));
                    self.processes[w].life = Life::Up;
                    if self.rng.permille(300) {
                        self.heartbeat(w);
                    }
                }
                Life::Down(until) if until <= self.now => self.start(w),
                _ => {}
            }
        }
    }

    fn start(&mut self, w: usize) {
        self.processes[w].connection = self.connect();
        self.processes[w].life = if self.identity_known() { Life::Up } else { Life::Refused };
        self.note(|| format!("writer {w} starts"));
    }

    /// The client's heartbeat, in the background: it does not depend on what the program does.
    pub fn heartbeat(&mut self, w: usize) {
        let process = &mut self.processes[w];
        let Some((id, _)) = process.membership.filter(|_| !process.lost) else { return };
        if self.now < self.kafka_back_at {
            return;
        }
        let held: Vec<bool> = process.held.iter().map(|held| *held != Held::No).collect();
        match self.group.heartbeat(id, &held, self.now + self.setup.session_ms) {
            None => {
                process.lost = true;
                self.note(|| format!("writer {w}: its client learns that its membership is lost"));
            }
            Some((epoch, assigned)) => {
                process.membership = Some((id, epoch));
                for (held, assigned) in process.held.iter_mut().zip(assigned) {
                    *held = match (*held, assigned) {
                        (Held::No, true) => Held::Granted,
                        (Held::Granted, false) => Held::No,
                        (Held::Owned, false) => Held::Revoking,
                        (unchanged, _) => unchanged,
                    };
                }
            }
        }
    }

    /// The program polls its consumer and is told what changed.
    pub fn poll(&mut self, w: usize) {
        let (now, session_ms) = (self.now, self.setup.session_ms);
        if self.processes[w].lost {
            self.note(|| format!("writer {w} is told that its partitions are lost"));
            self.cover("a membership is lost");
            self.processes[w].forget_membership();
            return;
        }
        let Some((member, _)) = self.processes[w].membership else {
            if now >= self.kafka_back_at {
                self.processes[w].membership = Some(self.group.join(now + session_ms, &mut self.rng));
                self.note(|| format!("writer {w} joins"));
            }
            return;
        };
        for p in 0..self.partitions.len() {
            self.poll_partition(w, p, member);
        }
        let process = &mut self.processes[w];
        if process.leaving && process.tenures.iter().all(Option::is_none) {
            process.forget_membership();
            self.group.leave(member, &mut self.rng);
            self.note(|| format!("writer {w} leaves the group"));
        }
    }

    fn poll_partition(&mut self, w: usize, p: usize, member: MemberId) {
        let abruptly = self.rng.permille(300);
        let process = &mut self.processes[w];
        let leaving = process.leaving;
        match (process.held[p], &mut process.tenures[p]) {
            (Held::Granted | Held::Owned, None) if !leaving => {
                self.processes[w].held[p] = Held::Owned;
                self.processes[w].tenures[p] = Some(Box::new(self.tenure(p, member)));
                self.note(|| format!("writer {w} is assigned partition {p}"));
            }
            (Held::Owned, Some(tenure)) if leaving => tenure.leave(),
            (Held::Revoking, None) => process.held[p] = Held::No,
            (Held::Revoking, Some(tenure)) if !abruptly => tenure.leave(),
            (Held::Revoking, tenure) => {
                *tenure = None;
                process.held[p] = Held::No;
                self.note(|| format!("writer {w} drops partition {p}"));
            }
            _ => {}
        }
    }
}
