//! The storing side of one kind: recognises the log, then stores what it brings, until the program ends.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::others::Others;
use super::recognise::{Unknown, recognise_to_store};
use super::{Program, RunError};
use crate::backoff::{self, Backoff};
use crate::kinds::Kind;
use crate::log::Options;
use crate::log::topic::Inspector;
use crate::observe::health::{Condition, Duty, Health};
use crate::observe::metrics::{KindMetrics, LagMetric, Metrics, PartitionMetrics, TableMetrics};
use crate::writer::identity::Generation;
use crate::writer::tidy::Tidy;
use crate::writer::worker::Tools;
use crate::writer::{WriterObserver, members};

/// Makes sure that the log is still the recorded one.
type Recognition = Arc<dyn Fn(Instant) -> Result<(), String> + Send + Sync>;

/// The waits before Kafka or ClickHouse is asked again.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(500);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);

/// Stores a kind until the program ends. Blocks.
pub fn store_kind<K: Kind>(program: &Arc<Program>, topic: &str) -> Result<(), RunError> {
    let condition = program.health.condition(format!("{} log", K::NAME), &[Duty::Store], "not recognised yet");
    let options = options_of::<K>(&program.log_options);
    let inspector = Arc::new(Inspector::new(&options)?);
    let Some(log) = recognise_until_ending::<K>(program, &inspector, topic, &condition)? else { return Ok(()) };
    condition.holds();
    let log = Arc::new(log);
    let observer = Arc::new(Observer::new(K::NAME, &program.metrics, &program.health));
    let is_ending = {
        let shutdown = program.shutdown.clone();
        Arc::new(move || shutdown.is_requested())
    };
    let recognise = recognition::<K>(program.clone(), inspector.clone(), log.clone());
    let of_others = program.health.condition(format!("{} group", K::NAME), &[Duty::Store], "not looked at yet");
    let (store, runtime) = (program.store.clone(), program.runtime.clone());
    let others = Others::<K>::new(inspector.clone(), store, runtime, log.clone(), of_others);
    watch(program, inspector.clone(), topic, observer.clone(), recognise.clone(), others)?;
    let tidy = Tidy::new(K::NAME);
    let cache_dir: Option<Arc<Path>> = program.config.writer.cache_dir.as_deref().map(Arc::from);
    let tools = |group| Tools {
        options: options.clone(),
        settings: program.writer_settings,
        cache_dir: cache_dir.clone(),
        log: log.clone(),
        group,
        inspector: inspector.clone(),
        store: program.store.clone(),
        runtime: program.runtime.clone(),
        recognise: recognise.clone(),
        tidy: tidy.clone(),
        observer: observer.clone(),
        is_ending: is_ending.clone(),
    };
    members::store_log::<K>(&options, topic, &*is_ending, tools)?;
    Ok(())
}

/// How the writers of a kind reach the log. Kinds share no group: a writer that joins or leaves one kind's must not stop
/// the others'.
pub(super) fn options_of<K: Kind>(options: &Options) -> Options {
    let mut options = options.clone();
    options.kafka.group = Some(format!("{}.{}", options.kafka.group(), K::NAME));
    options
}

/// The log's generation, as soon as Kafka and ClickHouse tell; `None` when the program ends before.
fn recognise_until_ending<K: Kind>(
    program: &Program,
    inspector: &Inspector,
    topic: &str,
    condition: &Condition,
) -> Result<Option<Generation>, RunError> {
    let mut told = None;
    let mut backoff = Backoff::new(ASK_AGAIN_MIN, ASK_AGAIN_MAX, backoff::seed());
    // Until it is known what is stored, Kafka's word shows how much waits.
    let mut lags: Vec<LagMetric> = Vec::new();
    let mut looked_at: Option<Instant> = None;
    loop {
        match recognise_to_store::<K>(inspector, &program.store, &program.runtime, topic) {
            Ok(generation) => return Ok(Some(generation)),
            Err(Unknown::Refused(reason)) => return Err(RunError::LogRefused(reason)),
            Err(Unknown::NotYet(reason)) => {
                condition.missing(reason.clone());
                if told.as_ref() != Some(&reason) {
                    tracing::warn!(topic, %reason, "the log is not recognised yet, asking again");
                    told = Some(reason);
                }
            }
        }
        if looked_at.is_none_or(|then| then.elapsed() >= WATCH_EVERY) {
            looked_at = Some(Instant::now());
            // What keeps Kafka from telling is the reason above.
            for (partition, records) in (0..).zip(inspector.lags(topic).unwrap_or_default()) {
                if partition as usize == lags.len() {
                    lags.push(program.metrics.lag(K::NAME, partition));
                }
                lags[partition as usize].set(records);
            }
        }
        if program.shutdown.wait(backoff.next_wait()) {
            return Ok(None);
        }
    }
}

/// What makes sure that the log is still the generation that this process stores, as Kafka and ClickHouse tell it at a
/// given time or later; another log ends the program. The answer to one worker serves all that began before it was asked for.
fn recognition<K: Kind>(program: Arc<Program>, inspector: Arc<Inspector>, log: Arc<Generation>) -> Recognition {
    let known_at = Mutex::new(Instant::now());
    Arc::new(move |since| {
        let mut known_at = known_at.lock().unwrap_or_else(PoisonError::into_inner);
        if *known_at >= since {
            return Ok(());
        }
        let asked_at = Instant::now();
        let refused = match recognise_to_store::<K>(&inspector, &program.store, &program.runtime, &log.topic) {
            Ok(found) if found.number == log.number => {
                *known_at = asked_at;
                return Ok(());
            }
            Ok(found) => format!(
                "generation {} of the log was opened while this writer stored generation {}: start it again",
                found.number, log.number
            ),
            Err(Unknown::NotYet(reason)) => return Err(reason),
            Err(Unknown::Refused(reason)) => reason,
        };
        if !program.shutdown.is_requested() {
            program.fail(RunError::LogRefused(refused.clone()));
        }
        Err(refused)
    })
}

/// A partition that this process stores.
struct Served {
    metrics: PartitionMetrics,
    /// Names the partition in `/health/ready` while it stands still.
    condition: Condition,
    next: AtomicI64,
    /// A partition that comes back soon has two: the last one may still wait for an answer.
    workers: AtomicU32,
}

/// Turns what the workers do into metrics and conditions.
struct Observer {
    kind: &'static str,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    totals: KindMetrics,
    tables: HashMap<&'static str, TableMetrics>,
    served: Mutex<HashMap<u32, Served>>,
}

impl Observer {
    fn new(kind: &'static str, metrics: &Arc<Metrics>, health: &Arc<Health>) -> Observer {
        Observer {
            kind,
            totals: metrics.kind(kind),
            // Leaked once for each table: they live as long as the program.
            tables: ["events", "counters"].map(|table| (table, metrics.table(format!("{kind}_{table}").leak()))).into(),
            metrics: metrics.clone(),
            health: health.clone(),
            served: Mutex::default(),
        }
    }

    fn with<R>(&self, partition: u32, act: impl FnOnce(&Served) -> R) -> R {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        act(served.entry(partition).or_insert_with(|| {
            let name = format!("{} partition {partition}", self.kind);
            let condition = self.health.condition(name, &[Duty::Store], "");
            condition.holds();
            Served {
                metrics: self.metrics.partition(self.kind, partition),
                condition,
                next: AtomicI64::new(-1),
                workers: AtomicU32::new(0),
            }
        }))
    }

    /// Only for a partition that is served still.
    fn lag(&self, partition: u32, records: i64) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = served.get(&partition) {
            served.metrics.lag.set(records);
        }
    }

    /// The partitions served, each with the next offset to be stored (-1 while that is not known).
    fn served(&self) -> Vec<(u32, i64)> {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        served.iter().map(|(partition, served)| (*partition, served.next.load(Ordering::Relaxed))).collect()
    }
}

impl WriterObserver for Observer {
    fn inserted(&self, table: &'static str, _rows: u64, elapsed: Duration, ok: bool) {
        if let Some(table) = self.tables.get(table) {
            table.insert_seconds.observe(elapsed.as_secs_f64());
            if !ok {
                table.insert_failures.inc();
            }
        }
    }

    fn joined(&self, partition: u32) {
        self.with(partition, |served| served.workers.fetch_add(1, Ordering::Relaxed));
    }

    fn recovered(&self, partition: u32, next: i64) {
        self.with(partition, |served| {
            served.next.store(next, Ordering::Relaxed);
            served.metrics.halted.set(0);
            served.condition.holds();
        });
    }

    fn stored(&self, partition: u32, events: u64, new_events: u64, next: i64) {
        self.totals.stored.inc_by(new_events);
        self.totals.duplicates.inc_by(events - new_events);
        self.totals.range_events.observe(events as f64);
        self.with(partition, |served| served.next.store(next, Ordering::Relaxed));
    }

    fn seen(&self, partition: u32, keys: u64, bytes: u64) {
        self.with(partition, |served| {
            served.metrics.seen_keys.set(keys as i64);
            served.metrics.seen_bytes.set(bytes as i64);
        });
    }

    fn bad_record(&self, _partition: u32) {
        self.totals.rejected("bad_record", 1);
    }

    fn halted(&self, partition: u32, reason: &str) {
        self.with(partition, |served| {
            served.metrics.halted.set(1);
            served.condition.missing(reason);
        });
    }

    fn left(&self, partition: u32) {
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.get(&partition).is_some_and(|served| served.workers.fetch_sub(1, Ordering::Relaxed) <= 1) {
            served.remove(&partition);
        }
    }
}

/// How often the log is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// Keeps the lag of the partitions that this process serves up to date, and makes sure that the log is still the recorded
/// one (with the classic protocol a topic that is created again with as many partitions changes hands unnoticed), and that
/// others who store it do so here.
fn watch<K: Kind>(
    program: &Program,
    inspector: Arc<Inspector>,
    topic: &str,
    observer: Arc<Observer>,
    recognise: Recognition,
    mut others: Others<K>,
) -> Result<(), RunError> {
    let (shutdown, topic) = (program.shutdown.clone(), topic.to_owned());
    std::thread::Builder::new().name(format!("watch-{}", observer.kind)).spawn(move || {
        while !shutdown.wait(WATCH_EVERY) {
            // What keeps Kafka or ClickHouse from telling is said by their own conditions.
            let _ = recognise(Instant::now());
            let served = observer.served();
            others.look(&served.iter().map(|(partition, _)| *partition).collect::<Vec<_>>());
            // A partition that is being taken over waits for ClickHouse: until then Kafka's word shows its lag.
            let unknown = served.iter().any(|(_, next)| *next < 0);
            let lags = if unknown { inspector.lags(&topic).unwrap_or_default() } else { Vec::new() };
            for (partition, next) in served {
                match next {
                    0.. => {
                        if let Ok((_, high)) = inspector.watermarks(&topic, partition) {
                            observer.lag(partition, (high - next).max(0));
                        }
                    }
                    _ => lags.get(partition as usize).into_iter().for_each(|lag| observer.lag(partition, *lag)),
                }
            }
        }
    })?;
    Ok(())
}
