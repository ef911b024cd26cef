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
use crate::exchange::{Answer, Endpoint, Fault, Head};
use crate::kinds::{Columns, Kind};
use crate::log::produce::{DeliveryObserver, Producer, Record};
use crate::log::record;
use crate::log::topic::Inspector;
use crate::observe::health::{Condition, Duty};
use crate::observe::metrics::KindMetrics;

/// Bytes of events in one record: below Kafka's default `message.max.bytes` (1,048,588), with room for what frames them.
const RECORD_BYTES_MAX: usize = 960_000;
/// The pause before Kafka is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The pause that a client is asked to make.
const RETRY_AFTER_S: u16 = 1;

/// The accepting endpoint of one kind, which answers 503 until the log is known.
pub struct Intake<K: Kind> {
    acceptor: OnceLock<Acceptor<K>>,
    producer: Arc<Producer>,
    /// Whether Kafka was there when it was last asked.
    answers: Arc<AtomicBool>,
}

impl<K: Kind> Intake<K> {
    /// Waits until everything handed to Kafka is settled.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.producer.flush(timeout)
    }

    fn acceptor(&self) -> Result<&Acceptor<K>, Fault> {
        self.acceptor
            .get()
            .ok_or_else(|| unavailable("the log is not open yet, /health/ready says why: nothing can be accepted"))
    }
}

impl<K: Kind> Endpoint for Intake<K> {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        self.acceptor()?.admit(head)
    }

    fn takes_coded_bodies(&self) -> bool {
        true
    }

    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
        self.acceptor().map_or_else(|fault| fault.answer(), |acceptor| acceptor.answer(head, body))
    }
}

fn unavailable(message: &'static str) -> Fault {
    Fault::Unavailable { message: message.into(), retry_after_s: RETRY_AFTER_S }
}

/// The intake of a kind; it opens in the background, once the log is known.
pub fn open_intake<K: Kind + Default>(program: &Arc<Program>, topic: &str) -> Result<Arc<Intake<K>>, RunError> {
    let metrics = program.metrics.kind(K::NAME);
    let producer = Arc::new(Producer::new(&program.log_options, Box::new(Deliveries(metrics)))?);
    let intake = Arc::new(Intake { acceptor: OnceLock::new(), producer, answers: Arc::default() });
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
fn open_when_known<K: Kind + Default>(
    program: &Program,
    topic: &str,
    intake: &Intake<K>,
    condition: &Condition,
) -> Result<(), RunError> {
    let inspector = Inspector::new(&program.log_options)?;
    loop {
        match partitions::<K>(program, &inspector, topic) {
            Ok(partitions) => {
                let inlet = start_batchers::<K>(program, topic, partitions, intake.producer.clone())?;
                intake.answers.store(true, Ordering::Release);
                // Opened here only.
                let _ = intake.acceptor.set(acceptor::<K>(program, partitions, inlet, intake));
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
        let asked = ask(&inspector, topic, &intake.producer);
        if asked.is_ok() {
            intake.producer.renew_if_failing();
        }
        intake.answers.store(asked.is_ok(), Ordering::Release);
        match asked {
            Err(reason) => condition.missing(reason),
            Ok(()) if intake.producer.is_stalled() => condition.missing("Kafka does not acknowledge what it is sent"),
            Ok(()) => condition.holds(),
        }
    }
    Ok(())
}

/// Whether Kafka is there. It is asked even when nothing is sent, so that nothing has to wait in vain to find out; what
/// it acknowledges meanwhile counts more than an answer that is late.
fn ask(inspector: &Inspector, topic: &str, producer: &Producer) -> Result<(), String> {
    let acknowledged = producer.acknowledged();
    let reason = match inspector.partitions(topic) {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => format!("there is no topic {topic} in Kafka"),
        Err(error) => error.to_string(),
    };
    if producer.acknowledged() > acknowledged { Ok(()) } else { Err(reason) }
}

/// The accepting stage of a kind.
fn acceptor<K: Kind + Default>(
    program: &Program,
    partitions: u32,
    inlet: Inlet<K::Columns>,
    intake: &Intake<K>,
) -> Acceptor<K> {
    let http = &program.config.http;
    let options = AcceptOptions {
        partitions,
        event_bytes_max: http.event_bytes_max as usize,
        ack_timeout: Duration::from_millis(http.ack_ms_max),
        retry_after_s: RETRY_AFTER_S,
    };
    let (producer, answers) = (intake.producer.clone(), intake.answers.clone());
    let overload = move || match producer.is_stalled() || !answers.load(Ordering::Acquire) {
        true => Err(unavailable("Kafka does not answer at the moment: nothing can be accepted")),
        false => Ok(()),
    };
    let (rejects, observer) = (LogRejects::default(), Accepted(program.metrics.kind(K::NAME)));
    Acceptor::new(K::default(), options, Box::new(overload), Arc::new(inlet), Arc::new(rejects), Arc::new(observer))
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

fn start_batchers<K: Kind>(
    program: &Program,
    topic: &str,
    partitions: u32,
    producer: Arc<Producer>,
) -> Result<Inlet<K::Columns>, RunError> {
    let options = Options {
        events_max: program.config.kafka.batch_events_max as usize,
        bytes_max: RECORD_BYTES_MAX,
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
        };
        producer.produce(record, Instant::now() + patience);
    };
    Ok(batch::start(K::NAME, partitions, options, produce)?)
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
