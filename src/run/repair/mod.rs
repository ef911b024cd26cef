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

mod gaps;

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::recognise::{Unknown, generations, recognise};
use crate::config::Config;
use crate::kinds::Kind;
use crate::log::Options;
use crate::log::groups::Members;
use crate::log::topic::Inspector;
use crate::shutdown::kill_itself;
use crate::store::Store;
use crate::store::repair::{NewLedger, Staging};
use crate::writer::claim::{Committed, LastCommit, Range};
use crate::writer::halt::{Halt, Place, Why};
use crate::writer::identity::{Decision, Generation, decide};
use crate::writer::recover::{Recovered, complaint, of_store};
use crate::writer::repair::Known;
use crate::writer::rows;

/// How long one statement may take: one counts all that is stored.
const STATEMENT_MAX: Duration = Duration::from_secs(3600);

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
        let known = self.look::<K>()?;
        if known.values().all(|known| known.damage().is_none()) {
            (self.say)("nothing is missing".to_owned());
            return self.complaints::<K>();
        }
        if self.dry_run {
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

/// For the places at which a test ends the process.
#[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
fn end_process() -> Result<(), Box<dyn Error>> {
    kill_itself();
    Ok(())
}
