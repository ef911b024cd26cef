//! The spool of one kind, wired to the log.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ways::Ways;
use super::{Program, RunError};
use crate::batch::{self, Batch, Inlet, Options};
use crate::kinds::{Columns, Kind};
use crate::log::produce::{Producer, Record};
use crate::log::record;
use crate::observe::metrics::SpoolMetrics;
use crate::spool::{self, Folder, Log, Spool, SpoolObserver, Waiting};

/// Starts the spool of a kind, and a batcher that fills it.
pub fn start<K: Kind>(
    program: &Program,
    folder: Folder,
    (topic, partitions): (&str, u32),
    options: Options,
    (ways, producer): (&Arc<Ways>, &Arc<Producer>),
) -> Result<Inlet<K::Columns>, RunError> {
    let log = ToLog::<K> {
        topic: topic.to_owned(),
        partitions,
        patience: Duration::from_millis(program.config.kafka.delivery_ms_max),
        ways: ways.clone(),
        producer: producer.clone(),
        kind: PhantomData,
    };
    let spool = Spool::start(K::NAME, folder, log, Observer(program.metrics.spool(K::NAME)))?;
    // Started once for each kind.
    let _ = ways.spool.set(spool.clone());
    let put = move |batch: Batch<K::Columns>| {
        let Batch { partition, columns, acks, under_way } = batch;
        let (events, schema) = (columns.len() as u32, K::SCHEMA_VERSION);
        let record = spool::Record { partition, events, schema, value: record::encode(columns) };
        spool.put(Waiting { record, acks, under_way });
    };
    Ok(batch::start(&format!("{}-spool", K::NAME), partitions, options, put)?)
}

/// The log as the spool sees it, with a producer for it alone, which keeps the order of what it is handed.
struct ToLog<K> {
    topic: String,
    partitions: u32,
    /// How long a record may wait for room.
    patience: Duration,
    ways: Arc<Ways>,
    producer: Arc<Producer>,
    kind: PhantomData<K>,
}

impl<K: Kind> Log for ToLog<K> {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn takes(&self) -> bool {
        self.ways.log_takes()
    }

    fn produce(&self, waiting: Waiting) {
        let Waiting { record: spool::Record { partition, events, schema, value }, acks, under_way } = waiting;
        let record = Record {
            topic: &self.topic,
            partition,
            // A program of another version may have written it.
            headers: record::headers::<K>(schema),
            value: &value,
            events: events as usize,
            acks,
            under_way,
        };
        self.producer.produce(record, Instant::now() + self.patience);
    }
}

/// Turns what becomes of spooled events into metrics.
struct Observer(SpoolMetrics);

impl SpoolObserver for Observer {
    fn spooled(&self, events: u64) {
        self.0.spooled.inc_by(events);
    }

    fn sent_on(&self, events: u64) {
        self.0.sent_on.inc_by(events);
    }

    fn damaged(&self, bytes: u64) {
        self.0.damaged_bytes.inc_by(bytes);
    }

    fn holds(&self, bytes: u64) {
        self.0.bytes.set(bytes as i64);
    }
}
