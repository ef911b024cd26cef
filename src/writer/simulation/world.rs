//! The world of a schedule: log, group, store, the writers' processes, the time, and what goes wrong.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::caches::Cache;
use super::group::{Commit, Group, Membership, Refused};
use super::log::{ModelLog, Truth};
use super::process::{Life, Process};
use super::rng::Rng;
use super::rules::Rule;
use super::store::Store;
use crate::log::facts::LogFacts;
use crate::writer::halt::Why;
use crate::writer::identity::{self, Decision, Generation};
use crate::writer::machine::Limits;

/// What is covered when the coordinator takes a commit without membership.
pub const WITHOUT_MEMBERSHIP: &str = "a commit without membership is taken";

/// How a schedule is set up; all times in milliseconds.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The machine's bounds.
    pub limits: Limits,
    /// After how long without a heartbeat a member is expelled.
    pub session_ms: u64,
    /// How often a client sends its heartbeat, in a thousand ticks.
    pub heartbeats: u64,
    /// How often a program polls its consumer, in a thousand ticks.
    pub polls: u64,
    /// For how long an insert can be under way.
    pub insert_ms_max: u64,
    /// How long the store remembers a token.
    pub window_ms: u64,
    /// How long it can take to load the seen keys.
    pub load_ms_max: u64,
    /// How often a question about what is known takes a little longer, in a thousand.
    pub slow_reads: u64,
    /// How many keys events are drawn from.
    pub keys: u64,
    /// Whether a client that knows that its membership is lost sends commits that are under way without one.
    pub commits_without_membership: bool,
    /// What goes wrong.
    pub faults: Faults,
    /// Which rule is broken.
    pub broken: Option<Rule>,
}

/// How often things go wrong, in a thousand: of ticks, of inserts.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A process dies.
    pub crashes: u64,
    /// How long it may stay dead.
    pub down_ms_max: u64,
    /// A process stands still.
    pub pauses: u64,
    /// A process stands still just as it is about to claim or to commit.
    pub stalls: u64,
    /// All processes die but one that stands still and has lost its partitions.
    pub abandonments: u64,
    /// How long it may stand still.
    pub pause_ms_max: u64,
    /// Kafka is away for a while.
    pub kafka_away: u64,
    /// ClickHouse is away for a while.
    pub store_away: u64,
    /// The partitions are given to other members.
    pub rebalances: u64,
    /// A process leaves the group in good order.
    pub leaves: u64,
    /// A connection to Kafka is cut.
    pub cuts: u64,
    /// A week passes with every process stopped, and Kafka forgets the commits.
    pub weeks: u64,
    /// Retention removes what is stored.
    pub retention: u64,
    /// Inserts whose answer is lost.
    pub lost_answers: u64,
    /// Of a thousand inserts, those in whose middle the store is killed: the token stays, the rows do not.
    pub store_kills: u64,
    /// Inserts that arrive late or never.
    pub late_inserts: u64,
}

/// A commit on its way to Kafka.
pub struct Request {
    /// What its sender knows it by.
    pub id: u64,
    /// The membership that it was sent under.
    pub by: Option<Membership>,
    /// The partition.
    pub partition: usize,
    /// The commit.
    pub commit: Commit,
}

/// A partition and what must come of it.
pub struct Partition {
    /// The log.
    pub log: ModelLog,
    /// What must come of it.
    pub truth: Truth,
}

/// Everything.
pub struct World {
    /// How it was set up.
    pub setup: Setup,
    /// Where chance comes from.
    pub rng: Rng,
    /// The time, in milliseconds.
    pub now: u64,
    epoch: Instant,
    /// The partitions of the log.
    pub partitions: Vec<Partition>,
    /// The generation that records are added to, whether the writers know it or not.
    pub generation: u32,
    /// The topic's id.
    pub topic_id: u32,
    /// The generations recorded in the store.
    pub recorded: Vec<Generation>,
    /// The coordinator.
    pub group: Group,
    /// The store.
    pub store: Store,
    /// The writers.
    pub processes: Vec<Process>,
    /// What they keep on their disks of the seen keys, by process and partition.
    pub caches: HashMap<(usize, usize), Cache>,
    /// Requests to Kafka by connection: each connection keeps their order, and outlives its process.
    pub connections: Vec<VecDeque<Request>>,
    /// Kafka's answers that were not read yet.
    pub answers: HashMap<u64, Result<(), Refused>>,
    /// When Kafka is back.
    pub kafka_back_at: u64,
    /// When the store is back.
    pub store_back_at: u64,
    /// Whether things go wrong.
    pub faulty: bool,
    /// Why partitions stand still.
    pub halts: Vec<Option<Why>>,
    /// Whether there is nothing more to see.
    pub abandoned: bool,
    /// What was broken first.
    pub violation: Option<String>,
    /// How often interesting things happened.
    pub covered: BTreeMap<&'static str, u64>,
    /// What happened, when it is to be shown.
    pub trace: Option<Vec<String>>,
    ids: u64,
}

impl World {
    /// A world at its beginning.
    pub fn new(setup: Setup, mut rng: Rng, partitions: usize, writers: usize, traced: bool) -> World {
        let partition = |rng: &mut Rng| Partition { log: ModelLog::new(rng.below(30) as i64), truth: Truth::default() };
        let mut world = World {
            partitions: (0..partitions).map(|_| partition(&mut rng)).collect(),
            group: Group::new(partitions),
            store: Store::new(partitions, setup.window_ms),
            caches: HashMap::new(),
            processes: (0..writers).map(|_| Process::new(partitions)).collect(),
            halts: vec![None; partitions],
            setup,
            rng,
            now: 1,
            epoch: Instant::now(),
            generation: 1,
            topic_id: 1,
            recorded: Vec::new(),
            connections: Vec::new(),
            answers: HashMap::new(),
            kafka_back_at: 0,
            store_back_at: 0,
            faulty: true,
            abandoned: false,
            violation: None,
            covered: BTreeMap::new(),
            trace: traced.then(Vec::new),
            ids: 0,
        };
        let Decision::First(first) = identity::decide(&[], &world.log_now()) else {
            unreachable!("nothing is recorded")
        };
        world.recorded.push(first);
        world
    }

    /// Whether a rule is kept.
    pub fn obeys(&self, rule: Rule) -> bool {
        self.setup.broken != Some(rule)
    }

    /// The time as the machine is told it.
    pub fn instant(&self) -> Instant {
        self.epoch + Duration::from_millis(self.now)
    }

    /// A name for a request.
    pub fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// A new connection to Kafka.
    pub fn connect(&mut self) -> usize {
        self.connections.push(VecDeque::new());
        self.connections.len() - 1
    }

    /// Counts something interesting.
    pub fn cover(&mut self, what: &'static str) {
        *self.covered.entry(what).or_default() += 1;
        self.note(|| format!("({what})"));
    }

    /// Writes down what happens, when it is to be shown.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{now:>6} {}", what()));
        }
    }

    /// Something was broken.
    pub fn violate(&mut self, violation: String) {
        self.note(|| format!("VIOLATION: {violation}"));
        self.violation.get_or_insert(violation);
    }

    /// Whether the schedule is at its end.
    pub fn is_over(&self) -> bool {
        self.abandoned || self.violation.is_some()
    }

    /// The log as the brokers describe it.
    pub fn log_now(&self) -> LogFacts {
        LogFacts {
            cluster_id: "cluster".to_owned(),
            topic: "toys".to_owned(),
            topic_id: Some(self.topic_id.to_string()),
            watermarks: self.partitions.iter().map(|partition| (partition.log.low, partition.log.high)).collect(),
        }
    }

    /// Whether the log is the recorded one, as a process looks at its start.
    pub fn identity_known(&mut self) -> bool {
        let decision = identity::decide(&self.recorded, &self.log_now());
        self.note(|| format!("identity: {decision:?}"));
        matches!(decision, Decision::Known(_)) || !self.obeys(Rule::IdentityChecked)
    }

    /// Adds records to the log.
    pub fn produce(&mut self, p: usize, records: u64) {
        for _ in 0..records {
            let Partition { log, truth } = &mut self.partitions[p];
            let record = log.append(&mut self.rng, self.setup.keys);
            truth.append(self.generation, &record);
            self.note(|| format!("log {p}: {record:?}"));
        }
    }

    /// A little time passes, in which every process does a little.
    pub fn tick(&mut self) {
        self.now += self.rng.below(4);
        self.land();
        if self.now >= self.kafka_back_at && self.group.expire(self.now, &mut self.rng) {
            self.note(|| "group: a member is expelled".to_owned());
        }
        self.wake();
        if self.faulty {
            self.go_wrong();
        }
        for connection in 0..self.connections.len() {
            self.deliver(connection);
        }
        for w in 0..self.processes.len() {
            if self.processes[w].life != Life::Up {
                continue;
            }
            if self.rng.permille(self.setup.heartbeats) {
                self.heartbeat(w);
            }
            if self.rng.permille(self.setup.polls) {
                self.poll(w);
            }
            for p in 0..self.partitions.len() {
                if self.rng.permille(700) {
                    self.advance(w, p);
                }
            }
        }
    }

    /// Inserts that were under way take effect, each at its time.
    pub fn land(&mut self) {
        self.store.in_flight.sort_by_key(|insert| insert.at);
        while self.store.in_flight.first().is_some_and(|insert| insert.at <= self.now) {
            let landed = self.store.in_flight.remove(0);
            self.cover("an insert arrives late");
            if self.take_effect(&landed.part, landed.at) {
                self.store.landed.push(landed.id);
            }
        }
    }

    /// Kafka takes the oldest request of a connection.
    fn deliver(&mut self, connection: usize) {
        if self.now < self.kafka_back_at || self.connections[connection].is_empty() || self.rng.permille(300) {
            return;
        }
        let Some(Request { id, by, partition, commit }) = self.connections[connection].pop_front() else { return };
        let told = format!("{commit:?}");
        let answer = self.group.commit(by, partition, commit);
        self.note(|| format!("group: commit of partition {partition} {told} by {by:?}: {answer:?}"));
        if by.is_none() && answer.is_ok() {
            self.cover(WITHOUT_MEMBERSHIP);
        }
        if !(self.faulty && self.rng.permille(self.setup.faults.lost_answers)) {
            self.answers.insert(id, answer);
        }
    }
}
