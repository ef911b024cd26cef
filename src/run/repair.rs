//! Repairs a kind after ClickHouse has lost rows, with every writer stopped: reads what is missing again from the log,
//! counts all events anew, and says what is gone for good.
//!
//! ```text
//! look ─▶ wait for late inserts ─▶ tables of its own ─▶ look ─▶ read the gaps ─▶ add events ─▶ count ─▶ swap counters
//! ```
//!
//! It can be killed at any place and run again: events are added by whole parts of a month, counters are swapped in one step,
//! and until then everything it makes lies in tables of its own. A writer that starts meanwhile drops these, so that
//! the repair fails and changes nothing more; what it has added by then are events that belong there.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::recognise::{Unknown, generations, recognise};
use crate::config::Config;
use crate::kinds::Kind;
use crate::log::Options;
use crate::log::consume::Reader;
use crate::log::groups::Members;
use crate::log::topic::Inspector;
use crate::store::repair::{NewLedger, Staging};
use crate::store::{Store, StoreError};
use crate::writer::claim::{Committed, LastCommit, Range};
use crate::writer::halt::{Halt, Place, Why};
use crate::writer::identity::{Decision, Generation, decide};
use crate::writer::recover::{Recovered, complaint, of_store};
use crate::writer::repair::{Damage, Known, gaps, within_log};
use crate::writer::reread::{Missing, RereadError, Rereader, stored_keys};
use crate::writer::{WriterObserver, rejected, rows};

/// How long one statement may take: one counts all that is stored.
const STATEMENT_MAX: Duration = Duration::from_secs(3600);
/// How often an insert into a table of the repair is tried.
const TRIES: u32 = 5;
/// The pause between two of them.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// How a repair ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Something is gone for good, or does not agree in spite of all.
    pub wanting: bool,
}

/// A partition of one generation.
type Part = (u32, u32);

/// What a repair works with.
struct Repair<'c> {
    config: &'c Config,
    options: Options,
    topic: String,
    inspector: Arc<Inspector>,
    store: Store,
    runtime: Runtime,
    recorded: Vec<Generation>,
    dry_run: bool,
    say: &'c mut dyn FnMut(String),
    outcome: Outcome,
}

/// Repairs one kind. What it finds and does is said line by line. Blocks.
pub fn repair<K: Kind>(config: &Config, dry_run: bool, say: &mut dyn FnMut(String)) -> Result<Outcome, Box<dyn Error>> {
    let options = super::storing::options_of::<K>(&super::log_options(config));
    let mut repair = Repair {
        config,
        topic: config.kafka.topic(K::NAME),
        inspector: Arc::new(Inspector::new(&options)?),
        options,
        store: Store::new(&config.clickhouse).with_read_timeout(STATEMENT_MAX),
        // With a thread of its own: what waits on a handle alone does not drive it.
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
        recorded: Vec::new(),
        dry_run,
        say,
        outcome: Outcome::default(),
    };
    repair.run::<K>()?;
    Ok(repair.outcome)
}

impl Repair<'_> {
    fn run<K: Kind>(&mut self) -> Result<(), Box<dyn Error>> {
        self.writers_are_stopped()?;
        let stopped = Instant::now();
        self.recognise::<K>()?;
        if self.look::<K>()?.values().all(|known| known.damage().is_none()) {
            (self.say)("nothing is missing".to_owned());
            return self.complaints::<K>();
        }
        if self.dry_run {
            let known = self.look::<K>()?;
            return self.fill_gaps::<K>(&known, None);
        }
        self.let_late_inserts_arrive(stopped);
        for left in self.runtime.block_on(self.store.drop_repairs::<K>())? {
            (self.say)(format!("dropped {left}, which a repair that did not end has left"));
        }
        let word = uuid::Uuid::new_v4().simple().to_string();
        let staging = self.runtime.block_on(self.store.make_staging::<K>(&word))?;
        // A writer that took a partition over before these tables were there is seen in the group; a later one drops them.
        self.writers_are_stopped()?;
        self.put_right::<K>(&staging).map_err(|error| interrupted(error, &staging))?;
        self.runtime.block_on(self.store.drop_repairs::<K>())?;
        self.verify::<K>()?;
        self.complaints::<K>()
    }

    fn put_right<K: Kind>(&mut self, staging: &Staging) -> Result<(), Box<dyn Error>> {
        let known = self.look::<K>()?;
        self.fill_gaps::<K>(&known, Some(staging))?;
        fail::fail_point!("repair::read", |_| end_process());
        self.writers_are_stopped()?;
        self.runtime.block_on(self.store.attach_events::<K>(staging))?;
        fail::fail_point!("repair::events_added", |_| end_process());
        let ledgers: Vec<NewLedger> = known
            .iter()
            .map(|(&(generation, partition), known)| NewLedger {
                generation,
                partition,
                first: known.start,
                next: known.reached(),
            })
            .filter(|ledger| ledger.next > ledger.first)
            .collect();
        self.runtime.block_on(self.store.fill_counters::<K>(staging, &ledgers))?;
        for ledger in &ledgers {
            // How many copies its records carry besides is known no more.
            let events = self.runtime.block_on(self.store.covered_events::<K>(ledger))?;
            let NewLedger { generation, partition, first, next } = *ledger;
            let range = Range { first, last: next - 1 };
            let entry = rows::ledger_entry::<K>(generation, partition, range, [events; 2])?;
            let token = format!("{}/{generation}/{partition}", staging.counters);
            self.insert(&staging.counters, &token, &entry)?;
        }
        fail::fail_point!("repair::counted", |_| end_process());
        self.writers_are_stopped()?;
        self.runtime.block_on(self.store.swap_counters::<K>(staging))?;
        fail::fail_point!("repair::swapped", |_| end_process());
        (self.say)("all events are counted anew".to_owned());
        Ok(())
    }

    fn writers_are_stopped(&self) -> Result<(), Box<dyn Error>> {
        let group = self.options.kafka.group();
        match self.inspector.members(&group)? {
            Members::None => Ok(()),
            Members::Some => Err(format!(
                "writers are at work (the group {group} has members): stop every `millrace run` and `millrace write`, then \
                 repair again (one that was killed counts until Kafka gives it up, for up to a minute)"
            )
            .into()),
        }
    }

    /// The log must be the newest that is recorded.
    fn recognise<K: Kind>(&mut self) -> Result<(), Box<dyn Error>> {
        if self.dry_run {
            let facts = self.inspector.facts(&self.topic)?;
            self.recorded = generations::<K>(&self.store, self.runtime.handle()).map_err(reason)?;
            match decide(&self.recorded, &facts) {
                Decision::Known(_) => {}
                Decision::First(first) => self.recorded.push(first),
                Decision::Refuse(reason) => return Err(reason.into()),
            }
            return Ok(());
        }
        recognise::<K>(&self.inspector, &self.store, self.runtime.handle(), &self.topic).map_err(reason)?;
        self.recorded = generations::<K>(&self.store, self.runtime.handle()).map_err(reason)?;
        Ok(())
    }

    /// The log in force.
    fn newest(&self) -> Result<&Generation, Box<dyn Error>> {
        self.recorded.last().ok_or_else(|| "no generation of the log is recorded".into())
    }

    /// What is known of every partition of every generation.
    fn look<K: Kind>(&self) -> Result<BTreeMap<Part, Known>, Box<dyn Error>> {
        let commits = self.commits()?;
        let mut found = BTreeMap::new();
        for log in &self.recorded {
            let newest = log.number == self.newest()?.number;
            for (partition, &start) in (0..).zip(&log.start_offsets) {
                let stored = self.runtime.block_on(self.store.stored_to::<K>(log.number, partition, start))?;
                let (ledger, orphans) = of_store(&stored);
                let committed = commits.get(partition as usize).copied().flatten().filter(|_| newest);
                found.insert((log.number, partition), Known { start, committed, ledger, orphans });
            }
        }
        Ok(found)
    }

    /// The group's commits that speak of the log in force. Those of another program or of a later generation are refused,
    /// as by a writer.
    fn commits(&self) -> Result<Vec<Option<Committed>>, Box<dyn Error>> {
        let newest = self.newest()?;
        let commits = self.inspector.committed(&self.topic, newest.partitions() as u32)?;
        let read = (0..).zip(commits).map(|(partition, commit)| {
            let last = commit.map_or(LastCommit::None, |it| LastCommit::read(Some(it.offset), &it.metadata));
            let why = match last {
                LastCommit::None => return Ok(None),
                LastCommit::Writer(committed) if committed.generation <= newest.number => {
                    return Ok(Some(committed).filter(|committed| committed.generation == newest.number));
                }
                LastCommit::Writer(committed) => {
                    Why::GenerationBehind { recorded: newest.number, committed: committed.generation }
                }
                LastCommit::Foreign { offset, metadata } => Why::ForeignCommit { offset, metadata },
            };
            Err(Halt { place: self.place(partition), why }.into())
        });
        read.collect()
    }

    fn place(&self, partition: i32) -> Place {
        Place { topic: self.topic.as_str().into(), partition }
    }

    /// An insert that a writer had claimed and sent before it was stopped, or killed, may still be under way; no older one
    /// than a claim may be.
    fn let_late_inserts_arrive(&mut self, stopped: Instant) {
        let ms = self.config.writer.claim_age_ms_max + self.config.clickhouse.insert_ms_max;
        let left = Duration::from_millis(ms).saturating_sub(stopped.elapsed());
        (self.say)(format!("waiting {} s until no insert of a writer can be under way", left.as_secs() + 1));
        std::thread::sleep(left);
    }

    /// Reads all gaps; without tables to put it into it only says what is there.
    fn fill_gaps<K: Kind>(
        &mut self,
        known: &BTreeMap<Part, Known>,
        staging: Option<&Staging>,
    ) -> Result<(), Box<dyn Error>> {
        for (&part, known) in known {
            let Some(damage) = known.damage() else { continue };
            let stored = self.runtime.block_on(self.store.stored_ranges::<K>(part.0, part.1, damage.from))?;
            let gaps = gaps(damage.from, damage.to, &stored);
            let (low, high) = if part.0 == self.newest()?.number {
                self.inspector.watermarks(&self.topic, part.1)?
            } else {
                // Its log is another one, or is not read to its end any more.
                (i64::MAX, i64::MAX)
            };
            let (readable, gone) = within_log(&gaps, low, high);
            let read = self.reread::<K>(part, &damage, &readable, staging)?;
            self.tell_gone(part, &damage, gone, read);
        }
        Ok(())
    }

    /// Reads ranges of a partition again and tells how many events of those that the ledger had recorded were missing.
    fn reread<K: Kind>(
        &mut self,
        part: Part,
        damage: &Damage,
        ranges: &[Range],
        staging: Option<&Staging>,
    ) -> Result<u64, Box<dyn Error>> {
        if ranges.is_empty() {
            return Ok(0);
        }
        let (generation, partition) = part;
        let partitions = self.newest()?.partitions() as u32;
        let mut seen = stored_keys::<K>(&self.store, self.runtime.handle(), generation, partition, partitions)?;
        let reader = Reader::new(&self.options, &self.inspector, &self.topic, partition)?;
        let mut rereader =
            Rereader::<K>::new(reader, partition, u64::from(self.config.writer.range_events_max), &Silent);
        let recorded_next = damage.recorded.map_or(damage.from, |recorded| recorded.next);
        let mut recorded = 0;
        for &range in ranges {
            let mut found = 0;
            rereader.read(range, &mut seen, |missing: Missing<K>| {
                found += missing.block.new_events();
                recorded += missing.block.offsets.iter().filter(|offset| **offset < recorded_next).count() as u64;
                match staging {
                    Some(staging) => self.put_aside(part, missing, staging),
                    None => Ok(()),
                }
            })?;
            let would = if staging.is_some() { "" } else { "would be " };
            if found > 0 {
                let Range { first, last } = range;
                (self.say)(format!("{}: offsets {first} to {last}: {found} events {would}read again", named(part)));
            }
        }
        Ok(recorded)
    }

    /// Puts what was missing into the tables of the repair; records that cannot be read go where a writer puts them.
    fn put_aside<K: Kind>(
        &self,
        (generation, partition): Part,
        missing: Missing<K>,
        staging: &Staging,
    ) -> Result<(), Failed> {
        let Missing { range, block, rejected } = missing;
        let token = format!("{}/{partition}/{range}", staging.events);
        if !rejected.is_empty() {
            let encoded = rejected::encode::<K>(&rejected, generation, partition)?;
            self.insert(rejected::TABLE, &rejected::token(&token), &encoded)?;
        }
        if block.new_events() > 0 {
            let encoded = rows::encode(block, generation, partition, range)?.events;
            self.insert(&staging.events, &token, &encoded)?;
        }
        Ok(())
    }

    fn insert(&self, table: &str, token: &str, rows: &rows::Encoded) -> Result<(), StoreError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.runtime.block_on(self.store.insert(table, token, &rows.stream)) {
                Err(error) if tries < TRIES && error.code().is_none() => std::thread::sleep(TRY_AGAIN),
                done => return done,
            }
        }
    }

    /// Says what is gone. Where the ledger was whole, it tells how many events are missing; where it tells that none is,
    /// the gaps had none.
    fn tell_gone(&mut self, part: Part, damage: &Damage, gone: Vec<Range>, read: u64) {
        let missing = damage
            .recorded
            .map(|recorded| (recorded.next, recorded.new_events.saturating_sub(recorded.stored).saturating_sub(read)));
        let mut gone: Vec<Range> = match missing {
            Some((next, 0)) => gone
                .into_iter()
                .filter(|gap| gap.last >= next)
                .map(|gap| Range { first: gap.first.max(next), last: gap.last })
                .collect(),
            _ => gone,
        };
        if let (true, Some((next, 1..))) = (gone.is_empty(), missing) {
            gone.push(Range { first: damage.from, last: next - 1 });
        }
        let would = if self.dry_run { "cannot" } else { "could not" };
        for gap in &gone {
            let (Range { first, last }, records) = (gap, gap.offsets());
            (self.say)(format!(
                "{}: offsets {first} to {last} {would} be recovered: they are not in the log, {records} records at most",
                named(part)
            ));
        }
        if let Some((next, events @ 1..)) = missing {
            (self.say)(format!("{}: {events} events before offset {next} are lost with them", named(part)));
        }
        self.outcome.wanting |= !gone.is_empty();
    }

    /// Recounts everything, as `millrace verify` does.
    fn verify<K: Kind>(&mut self) -> Result<(), Box<dyn Error>> {
        let found = self.runtime.block_on(self.store.recount::<K>())?;
        for difference in &found.differences {
            (self.say)(format!("still: {difference}"));
        }
        let (events, counters) = (found.events, found.counters);
        (self.say)(format!("{events} events, {counters} counters, {} differences", found.differences.len()));
        self.outcome.wanting |= !found.differences.is_empty();
        Ok(())
    }

    /// What would keep a writer from going on all the same.
    fn complaints<K: Kind>(&mut self) -> Result<(), Box<dyn Error>> {
        let newest = self.newest()?.clone();
        let commits = self.commits()?;
        for (partition, (&start, committed)) in (0..).zip(newest.start_offsets.iter().zip(commits)) {
            let (log_low, log_high) = self.inspector.watermarks(&newest.topic, partition)?;
            let stored = self.runtime.block_on(self.store.stored_to::<K>(newest.number, partition, start))?;
            let (ledger, orphans) = of_store(&stored);
            let committed = committed.map_or(LastCommit::None, LastCommit::Writer);
            let known = Recovered { generation: newest.number, start, committed, ledger, orphans, log_low, log_high };
            if let Some(why) = complaint(&known) {
                let halt = Halt { place: self.place(partition as i32), why };
                (self.say)(halt.to_string());
                self.outcome.wanting = true;
            }
        }
        Ok(())
    }
}

/// Why a gap could not be filled.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Reread(#[from] RereadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a block could not be encoded: {0}")]
    Encode(#[from] arrow::error::ArrowError),
}

/// Tells a repair whose tables were dropped from one that failed.
fn interrupted(error: Box<dyn Error>, staging: &Staging) -> Box<dyn Error> {
    let text = error.to_string();
    if text.contains(&staging.events) || text.contains(&staging.counters) {
        return format!("a writer or another repair was started meanwhile: stop it, and repair again ({text})").into();
    }
    error
}

fn reason(unknown: Unknown) -> String {
    match unknown {
        Unknown::NotYet(reason) | Unknown::Refused(reason) => reason,
    }
}

fn named((generation, partition): Part) -> String {
    format!("generation {generation}, partition {partition}")
}

/// Nobody watches: everything is said.
struct Silent;

impl WriterObserver for Silent {
    fn inserted(&self, _: &'static str, _: u64, _: Duration, _: bool) {}
    fn joined(&self, _: u32) {}
    fn recovered(&self, _: u32, _: i64) {}
    fn stored(&self, _: u32, _: u64, _: u64, _: i64) {}
    fn seen(&self, _: u32, _: u64, _: u64) {}
    fn bad_record(&self, _: u32) {}
    fn halted(&self, _: u32, _: &str) {}
    fn left(&self, _: u32) {}
}

/// For the places at which a test ends the process.
#[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
fn end_process() -> Result<(), Box<dyn Error>> {
    // SAFETY: sends a signal to this very process; touches no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    Ok(())
}
