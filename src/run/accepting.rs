//! The accepting side of one kind: from parsed chunks to acknowledged records.
//!
//! Requests can be answered before Kafka was ever reached (with a 503): the partitions are learnt in the background.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::recognise::{Unknown, recognise};
use super::{Program, RunError};
use crate::accept::{AcceptObserver, AcceptOptions, Acceptor, LogRejects};
use crate::batch::{self, Batch, Inlet, Options};
use crate::config::limits;
use crate::exchange::{Answer, Endpoint, Fault, Head, last_segment};
use crate::flow::{Chunk, Sink};
use crate::kinds::{Columns, Kind, QueryEvents};
use crate::log::produce::{DeliveryObserver, Producer, Record};
use crate::log::record;
use crate::log::topic::Inspector;
use crate::observe::health::{Condition, Duty};
use crate::observe::metrics::KindMetrics;

/// The pause before Kafka is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The pause that a client is asked to make.
const RETRY_AFTER_S: u16 = 1;

/// The way in for events of one kind, which answers 503 until the log is known.
pub struct Intake<K: Kind> {
    kind: Arc<K>,
    acceptor: OnceLock<Acceptor<K>>,
    lanes: Arc<Lanes>,
    /// Whether Kafka was there when it was last asked.
    answers: Arc<AtomicBool>,
}

impl<K: Kind> Intake<K> {
    /// Waits until everything handed to Kafka is settled.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.lanes.flush(timeout)
    }

    fn acceptor(&self) -> Result<&Acceptor<K>, Fault> {
        self.acceptor
            .get()
            .ok_or_else(|| unavailable("the log is not open yet, /health/ready says why: nothing can be accepted"))
    }
}

/// A chunk with fewer events, and fewer bytes, than this goes the way of the few.
const FEW_EVENTS: usize = 64;
const FEW_BYTES: usize = 64 << 10;

/// The two ways into the log, each with a connection of its own. Kafka answers a connection's requests one after the other,
/// so on a common one a single event would wait behind megabytes of a file that is being sent.
struct Lanes {
    few: Arc<Producer>,
    many: Arc<Producer>,
}

impl Lanes {
    fn each(&self) -> [&Producer; 2] {
        [&self.few, &self.many]
    }

    fn acknowledged(&self) -> u64 {
        self.each().map(Producer::acknowledged).iter().sum()
    }

    fn is_stalled(&self) -> bool {
        self.each().into_iter().any(Producer::is_stalled)
    }

    /// See [`Producer::keep`].
    fn keep(&self) {
        self.each().into_iter().for_each(Producer::keep);
    }

    fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.each().map(|lane| lane.flush(deadline.saturating_duration_since(Instant::now()))) == [true; 2]
    }
}

/// Puts each chunk into its lane's batcher.
struct Inlets<C> {
    few: Inlet<C>,
    many: Inlet<C>,
}

impl<C: Columns> Sink<C> for Inlets<C> {
    fn put(&self, partition: u32, chunk: Chunk<C>) -> Result<(), Chunk<C>> {
        let is_few = chunk.columns.len() < FEW_EVENTS && chunk.columns.bytes() < FEW_BYTES;
        if is_few { self.few.put(partition, chunk) } else { self.many.put(partition, chunk) }
    }
}

/// Events as bodies.
pub struct Bodies<K: Kind>(pub Arc<Intake<K>>);

impl<K: Kind> Endpoint for Bodies<K> {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        self.0.acceptor()?.admit(head)
    }

    fn takes_coded_bodies(&self) -> bool {
        true
    }

    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
        self.0.acceptor().map_or_else(|fault| fault.answer(), |acceptor| acceptor.answer(head, body))
    }
}

/// One event as the path's last segment.
pub struct Segments<K: Kind>(pub Arc<Intake<K>>);

impl<K: Kind> Endpoint for Segments<K> {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        self.0.acceptor()?.admit_segment(head)
    }

    fn answer(&self, head: &Head<'_>, _: &mut Vec<u8>) -> Answer {
        let segment = last_segment(head.path);
        self.0.acceptor().map_or_else(|fault| fault.answer(), |acceptor| acceptor.answer_segment(head, segment))
    }
}

/// One event as the query.
pub struct Queries<K: QueryEvents>(pub Arc<Intake<K>>);

impl<K: QueryEvents> Endpoint for Queries<K> {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        self.0.acceptor()?.admit_query(head)
    }

    fn answer(&self, head: &Head<'_>, _: &mut Vec<u8>) -> Answer {
        self.0.acceptor().map_or_else(|fault| fault.answer(), |acceptor| acceptor.answer_query(head))
    }
}

fn unavailable(message: &'static str) -> Fault {
    Fault::Unavailable { message: message.into(), retry_after_s: RETRY_AFTER_S }
}

/// The intake of a kind; it opens in the background, once the log is known.
pub fn open_intake<K: Kind>(program: &Arc<Program>, kind: Arc<K>, topic: &str) -> Result<Arc<Intake<K>>, RunError> {
    let producer = || {
        let observer = Deliveries(program.metrics.kind(K::NAME));
        Producer::new(&program.log_options, Box::new(observer)).map(Arc::new)
    };
    let lanes = Arc::new(Lanes { few: producer()?, many: producer()? });
    let intake = Arc::new(Intake { kind, acceptor: OnceLock::new(), lanes, answers: Arc::default() });
    let condition =
        program.health.condition(format!("{} intake", K::NAME), &[Duty::Accept], "Kafka was not reached yet");
    let (program, topic, opening) = (program.clone(), topic.to_owned(), intake.clone());
    std::thread::Builder::new().name(format!("open-{}", K::NAME)).spawn(move || {
        if let Err(error) = open_when_known::<K>(&program, &topic, &opening, &condition) {
            program.fail(error);
        }
    })?;
    Ok(intake)
}

/// Opens the intake, then keeps it and the condition true to whether Kafka takes what it is sent.
fn open_when_known<K: Kind>(
    program: &Program,
    topic: &str,
    intake: &Intake<K>,
    condition: &Condition,
) -> Result<(), RunError> {
    let inspector = Inspector::new(&program.log_options)?;
    loop {
        match partitions::<K>(program, &inspector, topic) {
            Ok(partitions) => {
                let start = |name: String, lane: &Arc<Producer>| {
                    start_batcher::<K>(program, &name, topic, partitions, lane.clone())
                };
                let inlets = Inlets {
                    few: start(format!("{}-few", K::NAME), &intake.lanes.few)?,
                    many: start(K::NAME.to_owned(), &intake.lanes.many)?,
                };
                intake.answers.store(true, Ordering::Release);
                // Opened here only.
                let _ = intake.acceptor.set(acceptor::<K>(program, partitions, inlets, intake));
                condition.holds();
                tracing::info!(topic, partitions, "accepting");
                break;
            }
            Err(Unknown::Refused(reason)) => return Err(RunError::LogRefused(reason)),
            Err(Unknown::NotYet(reason)) => condition.missing(reason),
        }
        if program.shutdown.wait(ASK_AGAIN) {
            return Ok(());
        }
    }
    while !program.shutdown.wait(ASK_AGAIN) {
        intake.lanes.keep();
        let asked = ask(&inspector, topic, &intake.lanes);
        intake.answers.store(asked.is_ok(), Ordering::Release);
        match asked {
            Err(reason) => condition.missing(reason),
            Ok(()) if intake.lanes.is_stalled() => condition.missing("Kafka does not acknowledge what it is sent"),
            Ok(()) => condition.holds(),
        }
    }
    Ok(())
}

/// Whether Kafka is there. It is asked even when nothing is sent, so that nothing has to wait in vain to find out; what
/// it acknowledges meanwhile counts more than an answer that is late.
fn ask(inspector: &Inspector, topic: &str, lanes: &Lanes) -> Result<(), String> {
    let acknowledged = lanes.acknowledged();
    let reason = match inspector.partitions(topic) {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => format!("there is no topic {topic} in Kafka"),
        Err(error) => error.to_string(),
    };
    if lanes.acknowledged() > acknowledged { Ok(()) } else { Err(reason) }
}

/// The accepting stage of a kind.
fn acceptor<K: Kind>(
    program: &Program,
    partitions: u32,
    inlets: Inlets<K::Columns>,
    intake: &Intake<K>,
) -> Acceptor<K> {
    let http = &program.config.http;
    let options = AcceptOptions {
        partitions,
        event_bytes_max: http.event_bytes_max as usize,
        ack_timeout: Duration::from_millis(http.ack_ms_max),
        retry_after_s: RETRY_AFTER_S,
    };
    let (lanes, answers) = (intake.lanes.clone(), intake.answers.clone());
    let overload = move || match lanes.is_stalled() || !answers.load(Ordering::Acquire) {
        true => Err(unavailable("Kafka does not answer at the moment: nothing can be accepted")),
        false => Ok(()),
    };
    let (rejects, observer) = (LogRejects::default(), Accepted(program.metrics.kind(K::NAME)));
    Acceptor::new(
        intake.kind.clone(),
        options,
        Box::new(overload),
        Arc::new(inlets),
        Arc::new(rejects),
        Arc::new(observer),
    )
}

/// How many partitions the log has. The count is part of the data, so it is compared with what is recorded; only while
/// ClickHouse, which holds the record, is away at the start is Kafka's word enough.
fn partitions<K: Kind>(program: &Program, inspector: &Inspector, topic: &str) -> Result<u32, Unknown> {
    let found = inspector
        .partitions(topic)
        .map_err(|error| Unknown::NotYet(error.to_string()))?
        .ok_or_else(|| Unknown::NotYet(format!("there is no topic {topic} in Kafka: run `millrace migrate`")))?;
    match recognise::<K>(inspector, &program.store, &program.runtime, topic) {
        Ok(_) => {}
        Err(Unknown::NotYet(reason)) => {
            tracing::warn!(topic, %reason, "accepting without having compared the log with its record");
        }
        Err(refused) => return Err(refused),
    }
    Ok(found)
}

fn start_batcher<K: Kind>(
    program: &Program,
    name: &str,
    topic: &str,
    partitions: u32,
    producer: Arc<Producer>,
) -> Result<Inlet<K::Columns>, RunError> {
    let options = Options {
        events_max: program.config.kafka.batch_events_max as usize,
        bytes_max: limits::RECORD_COLUMNS_BYTES_MAX as usize,
        linger: Duration::from_millis(program.config.kafka.linger_ms),
    };
    let metrics = program.metrics.kind(K::NAME);
    let patience = Duration::from_millis(program.config.kafka.delivery_ms_max);
    let (topic, headers) = (topic.to_owned(), record::headers::<K>());
    let produce = move |batch: Batch<K::Columns>| {
        let events = batch.columns.len();
        metrics.batch_events.observe(events as f64);
        let value = record::encode(batch.columns);
        let record = Record {
            topic: &topic,
            partition: batch.partition,
            headers: headers.clone(),
            value: &value,
            events,
            acks: batch.acks,
            under_way: batch.under_way,
        };
        producer.produce(record, Instant::now() + patience);
    };
    Ok(batch::start(name, partitions, options, produce)?)
}

/// Turns deliveries into metrics.
struct Deliveries(KindMetrics);

impl DeliveryObserver for Deliveries {
    fn delivered(&self, acknowledged: bool, _events: usize, elapsed: Duration) {
        self.0.produce_seconds.observe(elapsed.as_secs_f64());
        if !acknowledged {
            self.0.produce_failures.inc();
        }
    }
}

/// Turns what was accepted into metrics.
struct Accepted(KindMetrics);

impl AcceptObserver for Accepted {
    fn accepted(&self, events: u64) {
        self.0.accepted.inc_by(events);
    }

    fn rejected(&self, code: &'static str, events: u64) {
        self.0.rejected(code, events);
    }
}
