//! Recognises a log: compares what Kafka tells with the generations that ClickHouse has recorded, and records new ones.

use tokio::runtime::Handle;

use crate::config::Config;
use crate::kinds::Kind;
use crate::log::topic::Inspector;
use crate::store::Store;
use crate::store::migrate;
use crate::store::stored::LogRow;
use crate::writer::identity::{self, Decision, Generation, Stored, decide};

/// Why the log's identity is not known (yet).
pub enum Unknown {
    /// Kafka or ClickHouse is away, or the schema is not there: it passes.
    NotYet(String),
    /// It is another log than the recorded one: it does not pass.
    Refused(String),
}

/// Compares the log with what is recorded of it; records the first generation.
pub fn recognise<K: Kind>(
    inspector: &Inspector,
    store: &Store,
    runtime: &Handle,
    topic: &str,
) -> Result<Generation, Unknown> {
    let not_yet = |error: &dyn std::fmt::Display| Unknown::NotYet(error.to_string());
    let log = inspector.facts(topic).map_err(|error| not_yet(&error))?;
    let mut recorded = generations::<K>(store, runtime)?;
    if let Decision::First(first) = decide(&recorded, &log) {
        runtime.block_on(store.open_log::<K>(&row_of(&first))).map_err(|error| not_yet(&error))?;
        tracing::info!(topic, cluster = first.cluster_id, topic_id = first.topic_id, "recorded the log");
        // Another writer may have come first: what is recorded counts.
        recorded = generations::<K>(store, runtime)?;
    }
    match decide(&recorded, &log) {
        Decision::Known(number) => recorded
            .into_iter()
            .find(|generation| generation.number == number)
            .ok_or_else(|| not_yet(&"the generation that was just read is gone")),
        Decision::First(_) => Err(not_yet(&"the log's generation was recorded, but is not there")),
        Decision::Refuse(reason) => Err(Unknown::Refused(reason)),
    }
}

/// As [`recognise`], for whoever stores: tables that remember too few inserts would take a repeated one for a new one.
pub fn recognise_to_store<K: Kind>(
    inspector: &Inspector,
    store: &Store,
    runtime: &Handle,
    topic: &str,
) -> Result<Generation, Unknown> {
    let generation = recognise::<K>(inspector, store, runtime, topic)?;
    let narrow =
        runtime.block_on(migrate::narrow_windows(store)).map_err(|error| Unknown::NotYet(error.to_string()))?;
    match narrow.first() {
        Some(narrow) => Err(Unknown::Refused(narrow.told(store))),
        None => Ok(generation),
    }
}

/// The recorded generations, oldest first.
pub(super) fn generations<K: Kind>(store: &Store, runtime: &Handle) -> Result<Vec<Generation>, Unknown> {
    let rows = runtime.block_on(store.logs::<K>()).map_err(|error| Unknown::NotYet(error.to_string()))?;
    Ok(rows.into_iter().map(generation_of).collect())
}

/// Records a new generation of the log, with every writer stopped: see [`identity::open`]. Blocks.
pub fn open_generation<K: Kind>(config: &Config, topic: &str) -> Result<Generation, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = Store::new(&config.clickhouse);
    let log = Inspector::new(&super::log_options(config))?.facts(topic)?;
    let recorded: Vec<_> = runtime.block_on(store.logs::<K>())?.into_iter().map(generation_of).collect();
    let mut stored = Vec::new();
    if let Some(newest) = recorded.last() {
        for (partition, start) in (0..).zip(&newest.start_offsets) {
            let found = runtime.block_on(store.stored_to::<K>(newest.number, partition, *start))?;
            stored.push(Stored { next: found.ledger.map(|ledger| ledger.next), uncounted: found.orphans.is_some() });
        }
    }
    let opened = identity::open(&recorded, &log, &stored)?;
    runtime.block_on(store.open_log::<K>(&row_of(&opened)))?;
    Ok(opened)
}

/// A recorded generation in the terms of the decision.
fn generation_of(row: LogRow) -> Generation {
    Generation {
        number: row.generation,
        cluster_id: row.cluster_id,
        topic: row.topic,
        topic_id: Some(row.topic_id).filter(|id| !id.is_empty()),
        start_offsets: row.start_offsets,
    }
}

/// A generation as it is recorded.
fn row_of(generation: &Generation) -> LogRow {
    LogRow {
        generation: generation.number,
        cluster_id: generation.cluster_id.clone(),
        topic: generation.topic.clone(),
        topic_id: generation.topic_id.clone().unwrap_or_default(),
        partitions: generation.partitions() as u32,
        start_offsets: generation.start_offsets.clone(),
    }
}
