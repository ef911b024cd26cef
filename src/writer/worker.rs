//! Stores one partition under one tenure: carries out what the [`Machine`] decides.
//!
//! In: records of the partition, from its own reader. Out: inserts into ClickHouse and commits of the group. Everything
//! that can be lost or answered late happens here; everything that is decided about it happens in the machine. A worker
//! ends when its tenure ends, and leaves nothing behind that the next one could not take over.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::claim::{Committed, LastCommit, Tokens};
use super::fill::{FillError, Filled, Filler};
use super::halt::{Halt, Place};
use super::identity::Generation;
use super::load::{LoadError, Loading};
use super::machine::{Insert, Limits, Machine, Outcome, Step};
use super::recover::{Recovered, of_store};
use super::rejected;
use super::rows::{Encoded, Rows, encode};
use super::seen::SeenKeys;
use super::tidy::Tidy;
use super::{Settings, WriterObserver};
use crate::backoff;
use crate::kinds::Kind;
use crate::log::consume::Reader;
use crate::log::group::{Commit, CommitError, Group, Tenure};
use crate::log::topic::Inspector;
use crate::log::{LogError, Options};
use crate::shutdown::kill_itself;
use crate::store::stored::{counters, events};
use crate::store::{Store, Verdict};

/// The longest that a worker sleeps or polls before it looks whether its tenure has ended.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What a worker works with.
#[derive(Clone)]
pub struct Tools {
    /// How to reach the log.
    pub options: Options,
    /// How much and how long.
    pub settings: Settings,
    /// Where caches of seen keys lie; `None` for keeping the keys in memory.
    pub cache_dir: Option<Arc<Path>>,
    /// Which log.
    pub log: Arc<Generation>,
    /// Membership and commits.
    pub group: Arc<Group>,
    /// Questions to Kafka.
    pub inspector: Arc<Inspector>,
    /// ClickHouse.
    pub store: Store,
    /// Runs what the store does.
    pub runtime: Handle,
    /// Makes sure that the log is still the recorded one, as Kafka and ClickHouse tell it at the given time or later.
    /// `Err` says why that is not known; another log ends the program.
    pub recognise: Arc<dyn Fn(Instant) -> Result<(), String> + Send + Sync>,
    /// Keeps the counters few.
    pub tidy: Arc<Tidy>,
    /// Told what happens.
    pub observer: Arc<dyn WriterObserver>,
    /// Whether the program is ending.
    pub is_ending: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What a worker holds of the range it is at.
enum Held<K: Kind> {
    Nothing,
    Filled(Filled<K>),
    Encoded { rows: Rows, rejected: Option<Encoded>, events: u64, new_events: u64 },
}

/// Stores one partition.
pub struct Worker<K: Kind> {
    tools: Tools,
    tenure: Arc<Tenure>,
    machine: Machine,
    tokens: Tokens,
    filler: Filler<K>,
    seen: SeenKeys,
    held: Held<K>,
}

impl<K: Kind> Worker<K> {
    /// A worker for a partition that was just assigned.
    pub fn new(tools: Tools, tenure: Arc<Tenure>) -> Result<Worker<K>, LogError> {
        let partition = tenure.partition;
        let place = Place { topic: tenure.topic.as_str().into(), partition: partition as i32 };
        let Settings { claim_age_max, backoff_min, backoff_max, .. } = tools.settings;
        let limits = Limits { claim_age_max, backoff_min, backoff_max };
        let machine = Machine::new(place, limits, backoff::seed(), Instant::now());
        let reader = Reader::new(&tools.options, &tools.inspector, &tenure.topic, partition)?;
        Ok(Worker {
            tokens: Tokens { kind: K::NAME, log: tools.log.identity(), partition: partition as i32 },
            filler: Filler::new(reader, partition, tools.settings, tools.observer.clone()),
            seen: SeenKeys::new(K::KEY_LANES),
            held: Held::Nothing,
            machine,
            tenure,
            tools,
        })
    }

    /// Works until the tenure ends, or the program.
    pub fn run(mut self) {
        let partition = self.tenure.partition;
        self.tools.observer.joined(partition);
        loop {
            if !self.tenure.is_active() {
                break;
            }
            if (self.tools.is_ending)() {
                self.machine.leave();
            }
            match self.machine.next(Instant::now()) {
                Step::Leave => break,
                Step::Wait(pause) => std::thread::sleep(pause.min(LOOK_UP)),
                Step::Halt(halt) => {
                    self.stand_still(&halt);
                    break;
                }
                step => {
                    let outcome = self.perform(step);
                    self.machine.on(outcome, Instant::now());
                }
            }
        }
        self.seen.close();
        self.tools.observer.left(partition);
    }

    /// Says why and waits for the end of the tenure.
    fn stand_still(&self, halt: &Halt) {
        tracing::error!(kind = K::NAME, partition = self.tenure.partition, reason = %halt, "a partition stands still");
        self.tools.observer.halted(self.tenure.partition, &halt.to_string());
        while self.tenure.is_active() && !(self.tools.is_ending)() {
            std::thread::sleep(LOOK_UP);
        }
    }

    fn perform(&mut self, step: Step) -> Outcome {
        match step {
            Step::Recover => self.recover(),
            Step::LoadSeen { generation, below } => self.load_seen(generation, below),
            Step::Read { from, through } => self.read(from, through),
            Step::Claim(claim) => {
                fail::fail_point!("writer::before_claim", |_| end_process());
                let outcome = self.commit(claim);
                fail::fail_point!("writer::after_claim", |_| end_process());
                outcome
            }
            Step::InsertEvents(insert) => {
                let outcome = self.insert(&insert, Table::Events);
                fail::fail_point!("writer::after_events", |_| end_process());
                outcome
            }
            Step::InsertCounters(insert) => {
                let outcome = self.insert(&insert, Table::Counters);
                fail::fail_point!("writer::after_counters", |_| end_process());
                outcome
            }
            Step::Commit(committed) => {
                fail::fail_point!("writer::before_commit", |_| end_process());
                self.commit(committed)
            }
            // Carried out by `run`.
            Step::Wait(_) | Step::Leave | Step::Halt(_) => Outcome::Unknown,
        }
    }

    /// In the order that [`Recovered`] asks for.
    fn recover(&mut self) -> Outcome {
        let (tenure, log) = (&self.tenure, &self.tools.log);
        // Partitions of a topic that was created again come as a new tenure, and their offsets mean something else.
        if let Err(reason) = (self.tools.recognise)(tenure.opened) {
            tracing::warn!(
                kind = K::NAME,
                partition = tenure.partition,
                reason,
                "the log is not recognised, asking again"
            );
            return Outcome::Unknown;
        }
        let start = log.start_offsets.get(tenure.partition as usize).copied().unwrap_or(0);
        let watermarks = || self.tools.inspector.watermarks(&tenure.topic, tenure.partition);
        let (log_low, _) = match watermarks() {
            Ok(found) => found,
            Err(error) => return self.not_yet("asking Kafka how far the log reaches", &error),
        };
        let committed = match self.tools.group.committed(tenure) {
            Ok(commit) => commit,
            Err(error) => return self.not_yet("asking Kafka what is committed", &error),
        };
        let stored = async {
            // A repair that is under way, or was killed, must not put into place what it made before this tenure.
            self.tools.store.drop_repairs::<K>().await?;
            self.tools.store.stored_to::<K>(log.number, tenure.partition, start).await
        };
        let stored = match self.tools.runtime.block_on(stored) {
            Ok(found) => found,
            Err(error) => return self.not_yet("asking ClickHouse what is stored", &error),
        };
        let (_, log_high) = match watermarks() {
            Ok(found) => found,
            Err(error) => return self.not_yet("asking Kafka how far the log reaches", &error),
        };
        let (ledger, orphans) = of_store(&stored);
        let known = Recovered {
            generation: log.number,
            start,
            committed: committed
                .map_or(LastCommit::None, |commit| LastCommit::read(Some(commit.offset), &commit.metadata)),
            ledger,
            orphans,
            log_low,
            log_high,
        };
        tracing::info!(kind = K::NAME, partition = tenure.partition, ?known, "took a partition over");
        Outcome::Recovered(known)
    }

    fn load_seen(&mut self, generation: u32, below: i64) -> Outcome {
        let partition = self.tenure.partition;
        self.tools.observer.recovered(partition, below);
        // Gone before the next ones come, which may lie in the same files.
        self.seen = SeenKeys::new(K::KEY_LANES);
        self.held = Held::Nothing;
        self.filler.reset();
        let kind = PhantomData::<K>;
        match (Loading { tools: &self.tools, tenure: &self.tenure, generation, below, kind }).load() {
            Ok(seen) => {
                self.seen = seen;
                self.tools.observer.seen(partition, self.seen.len() as u64, self.seen.bytes() as u64);
                Outcome::Done
            }
            Err(LoadError::Ended) => Outcome::Fenced,
            Err(LoadError::Store(error)) => self.not_yet("reading the stored keys", &error),
        }
    }

    fn read(&mut self, from: i64, through: Option<i64>) -> Outcome {
        self.held = Held::Nothing;
        let (tenure, ending) = (self.tenure.clone(), self.tools.is_ending.clone());
        let go_on = move || tenure.is_active() && !ending();
        let filled = self.filler.fill(from, through, &mut self.seen, &go_on);
        match filled {
            Ok(Some(filled)) => {
                let outcome = Outcome::Read { last: filled.last, new_events: filled.block.new_events() };
                self.seen.reached(from, filled.last + 1);
                self.held = Held::Filled(filled);
                outcome
            }
            Ok(None) => Outcome::Idle,
            Err(FillError::OutOfRange) => Outcome::OutOfRange,
            Err(FillError::Stuck) => Outcome::Unknown,
            Err(FillError::Newer(offset, reason)) => Outcome::Newer { offset, reason },
        }
    }

    fn insert(&mut self, insert: &Insert, table: Table) -> Outcome {
        self.encode(insert);
        let (tools, partition) = (&self.tools, self.tenure.partition);
        let Held::Encoded { rows, rejected, .. } = &self.held else {
            return Outcome::Refused("the block could not be encoded: see the log".to_owned());
        };
        let Insert { generation, range, again, .. } = *insert;
        let (encoded, name, token) = match table {
            Table::Events => (&rows.events, events::<K>(), self.tokens.events(generation, range, again)),
            Table::Counters => (&rows.counters, counters::<K>(), self.tokens.counters(generation, range, again)),
        };
        let began = Instant::now();
        if began > insert.deadline {
            return Outcome::Late;
        }
        let inserted = tools.runtime.block_on(async {
            if let (Table::Counters, Some(rejected)) = (table, rejected) {
                tools.store.insert(rejected::TABLE, &rejected::token(&token), &rejected.stream).await?;
            }
            tools.store.insert(&name, &token, &encoded.stream).await
        });
        tools.observer.inserted(table.name(), encoded.rows as u64, began.elapsed(), inserted.is_ok());
        if let (Table::Counters, Ok(())) = (table, &inserted) {
            let store = tools.store.clone();
            tools.tidy.inserted(
                encoded.rows as u64,
                &tools.runtime,
                || async move { store.merge_counters::<K>().await },
            );
        }
        match inserted {
            Ok(()) if insert.checked => self.check_inserted(insert, table, encoded.rows as u64),
            Ok(()) => Outcome::Done,
            Err(error) => match error.verdict() {
                Verdict::Retry | Verdict::RetryWithAlarm => self.not_yet("inserting into ClickHouse", &error),
                Verdict::Stop | Verdict::SetAside => {
                    tracing::error!(kind = K::NAME, partition, %error, "ClickHouse refuses an insert");
                    Outcome::Refused(error.to_string())
                }
            },
        }
    }

    /// Whether what was inserted is there: ClickHouse notes a token before it keeps the rows, and drops an insert whose token
    /// it has noted, also when it was killed in between or has lost the rows since.
    fn check_inserted(&self, insert: &Insert, table: Table, sent: u64) -> Outcome {
        let (store, runtime, partition) = (&self.tools.store, &self.tools.runtime, self.tenure.partition);
        let Insert { generation, range, again, .. } = *insert;
        let found = match table {
            Table::Events => runtime
                .block_on(store.rows_between::<K>(generation, partition, range.first, range.last))
                .map(|stored| (stored == sent, stored == 0)),
            // Another writer may have gone on meanwhile, where this one stood still.
            Table::Counters => runtime.block_on(store.ledger::<K>(generation, partition)).map(|ledger| {
                let next = ledger.map_or(range.first, |ledger| ledger.next);
                (next >= range.next(), next <= range.first)
            }),
        };
        match found {
            Ok((true, _)) => Outcome::Done,
            Ok((false, true)) => {
                let (kind, table) = (K::NAME, table.name());
                tracing::warn!(kind, partition, table, %range, again, "ClickHouse knows an insert and does not have its rows: inserting again");
                Outcome::Dropped
            }
            Ok((false, false)) => {
                Outcome::Refused(format!("it holds a part of the {} of offsets {range}", table.name()))
            }
            Err(error) => self.not_yet("looking for what was inserted", &error),
        }
    }

    /// Encodes the block held, once: a repeated insert sends the same bytes.
    fn encode(&mut self, insert: &Insert) {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Filled(filled) => {
                let (seen_events, new_events) = (filled.block.events, filled.block.new_events());
                let (generation, partition) = (insert.generation, self.tenure.partition);
                let rejected = (!filled.rejected.is_empty())
                    .then(|| rejected::encode::<K>(&filled.rejected, generation, partition))
                    .transpose();
                let rows = encode(filled.block, generation, partition, insert.range);
                match rows.and_then(|rows| Ok((rows, rejected?))) {
                    Ok((rows, rejected)) => {
                        self.held = Held::Encoded { rows, rejected, events: seen_events, new_events };
                    }
                    Err(error) => tracing::error!(kind = K::NAME, %error, "a block could not be encoded"),
                }
            }
            held => self.held = held,
        }
    }

    fn commit(&mut self, committed: Committed) -> Outcome {
        let commit = Commit { offset: committed.next, metadata: committed.metadata() };
        match self.tools.group.commit(&self.tenure, &commit) {
            Ok(()) => {
                if committed.pending_last.is_none() {
                    self.finished(committed.next);
                }
                Outcome::Done
            }
            Err(CommitError::Ended) => Outcome::Fenced,
            Err(CommitError::Unknown(error)) => self.not_yet("committing to Kafka", &error),
        }
    }

    /// A range is stored and committed.
    fn finished(&mut self, next: i64) {
        let partition = self.tenure.partition;
        if let Held::Encoded { events, new_events, .. } = std::mem::replace(&mut self.held, Held::Nothing) {
            self.tools.observer.stored(partition, events, new_events, next);
            self.seen.finished(next, new_events);
            self.tools.observer.seen(partition, self.seen.len() as u64, self.seen.bytes() as u64);
        }
    }

    /// For what may have happened, or may happen when it is tried again.
    fn not_yet(&self, what: &str, error: &dyn std::error::Error) -> Outcome {
        tracing::warn!(kind = K::NAME, partition = self.tenure.partition, what, %error, "not done yet, trying again");
        Outcome::Unknown
    }
}

/// Where an insert goes.
#[derive(Clone, Copy)]
enum Table {
    Events,
    Counters,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::Counters => "counters",
        }
    }
}

/// For the places at which a test ends the process.
#[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
fn end_process() -> Outcome {
    kill_itself();
    Outcome::Unknown
}
