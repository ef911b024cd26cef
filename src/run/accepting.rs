//! The accepting side of one kind: from parsed chunks to acknowledged records.
//!
//! Requests can be answered before Kafka was ever reached (with a 503): the partitions are learnt in the background.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::recognise::{Unknown, recognise};
use super::ways::{Inlets, RETRY_AFTER_S, Ways, unavailable};
use super::{Program, RunError, spooling};
use crate::accept::{AcceptObserver, AcceptOptions, Acceptor, LogRejects};
use crate::batch::{self, Batch, Inlet, Options};
use crate::config::limits;
use crate::exchange::{Answer, Endpoint, Fault, Head, last_segment};
use crate::kinds::{Columns, Kind, QueryEvents};
use crate::log::produce::{DeliveryObserver, Producer, Record};
use crate::log::record;
use crate::log::topic::Inspector;
use crate::observe::health::{Condition, Duty, Health};
use crate::observe::metrics::KindMetrics;
use crate::spool::{Folder, Spool};

/// The pause before Kafka is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The way in for events of one kind, which answers 503 until the log is known.
pub struct Intake<K: Kind> {
    kind: Arc<K>,
    acceptor: OnceLock<Acceptor<K>>,
    ways: Arc<Ways>,
}

impl<K: Kind> Intake<K> {
    /// Waits until everything handed to Kafka is settled.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.ways.flush(timeout)
    }

    fn acceptor(&self) -> Result<&Acceptor<K>, Fault> {
        self.acceptor
            .get()
            .ok_or_else(|| unavailable("the log is not open yet, /health/ready says why: nothing can be accepted"))
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

/// The intake of a kind; it opens in the background, once the log is known.
pub fn open_intake<K: Kind>(program: &Arc<Program>, kind: Arc<K>, topic: &str) -> Result<Arc<Intake<K>>, RunError> {
    let producer = || {
        let observer = Deliveries(program.metrics.kind(K::NAME));
        Producer::new(&program.log_options, Box::new(observer)).map(Arc::new)
    };
    let spool = program.spool.as_ref().map(|root| root.folder(K::NAME, topic)).transpose()?;
    if let Some(folder) = &spool {
        // Known from the start, although it may take a while until the spool itself can tell.
        program.metrics.spool(K::NAME).bytes.set(folder.bytes() as i64);
    }
    let ways = Arc::new(Ways {
        few: producer()?,
        many: producer()?,
        spooled: spool.as_ref().map(|_| producer()).transpose()?,
        spool: OnceLock::new(),
        answers: AtomicBool::default(),
    });
    let intake = Arc::new(Intake { kind, acceptor: OnceLock::new(), ways });
    let conditions = Conditions::new::<K>(&program.health, spool.is_some());
    let opening = Opening { program: program.clone(), topic: topic.to_owned(), intake: intake.clone(), spool };
    std::thread::Builder::new().name(format!("open-{}", K::NAME)).spawn(move || {
        let program = opening.program.clone();
        if let Err(error) = opening.run(&conditions) {
            program.fail(error);
        }
    })?;
    Ok(intake)
}

/// What the thread needs that opens an intake, and then keeps it true to whether Kafka takes what it is sent.
struct Opening<K: Kind> {
    program: Arc<Program>,
    topic: String,
    intake: Arc<Intake<K>>,
    /// Until the intake is open.
    spool: Option<Folder>,
}

impl<K: Kind> Opening<K> {
    fn run(mut self, conditions: &Conditions) -> Result<(), RunError> {
        let inspector = Inspector::new(&self.program.log_options)?;
        // What lies there goes first, so nothing is gained by waiting for Kafka.
        if self.spool.as_ref().is_some_and(|folder| folder.bytes() > 0) {
            self.start_as_noted()?;
            conditions.tell(Err("Kafka was not reached yet".to_owned()), &self.intake.ways);
        }
        loop {
            match partitions::<K>(&self.program, &inspector, &self.topic) {
                Ok(partitions) => {
                    self.open(partitions)?;
                    break;
                }
                Err(Unknown::Refused(reason)) => return Err(RunError::LogRefused(reason)),
                Err(Unknown::NotYet(reason)) => {
                    self.start_as_noted()?;
                    conditions.tell(Err(reason), &self.intake.ways);
                }
            }
            if self.program.shutdown.wait(ASK_AGAIN) {
                return Ok(());
            }
        }
        let ways = &self.intake.ways;
        ways.answers.store(true, Ordering::Release);
        conditions.tell(Ok(()), ways);
        while !self.program.shutdown.wait(ASK_AGAIN) {
            ways.keep();
            let mut asked = ask(&inspector, &self.topic, ways);
            ways.answers.store(asked.is_ok(), Ordering::Release);
            if asked.is_ok() && ways.is_stalled() {
                asked = Err("Kafka does not acknowledge what it is sent".to_owned());
            }
            conditions.tell(asked, ways);
        }
        Ok(())
    }

    /// Opens the intake for a log that was found to have so many partitions.
    fn open(&mut self, partitions: u32) -> Result<(), RunError> {
        if let Some(acceptor) = self.intake.acceptor.get() {
            let noted = acceptor.partitions();
            let other = || RunError::SpoolOfOther { topic: self.topic.clone(), noted, partitions };
            return if noted == partitions { Ok(()) } else { Err(other()) };
        }
        if let Some(folder) = &mut self.spool {
            folder.note(partitions)?;
        }
        self.start(partitions)
    }

    /// Starts with what the spool's folder says of the log, if it says something.
    fn start_as_noted(&mut self) -> Result<(), RunError> {
        self.spool.as_ref().and_then(Folder::partitions).map_or(Ok(()), |partitions| self.start(partitions))
    }

    /// Starts what takes events for a log of so many partitions.
    fn start(&mut self, partitions: u32) -> Result<(), RunError> {
        let (program, topic, ways) = (&self.program, self.topic.as_str(), &self.intake.ways);
        let inlets = Inlets {
            few: start_batcher::<K>(program, &format!("{}-few", K::NAME), topic, partitions, ways.few.clone())?,
            many: start_batcher::<K>(program, K::NAME, topic, partitions, ways.many.clone())?,
        };
        let mut acceptor = acceptor::<K>(program, partitions, inlets, &self.intake);
        if let (Some(folder), Some(producer)) = (self.spool.take(), &ways.spooled) {
            let options = batch_options(program);
            let inlet = spooling::start::<K>(program, folder, (topic, partitions), options, (ways, producer))?;
            acceptor = acceptor.with_spool(Arc::new(inlet));
        }
        // Opened here only.
        let _ = self.intake.acceptor.set(acceptor);
        tracing::info!(topic, partitions, "accepting");
        Ok(())
    }
}

/// What is told of an intake: whether events are taken, and whether they all reach the log.
struct Conditions {
    intake: Condition,
    spool: Option<Condition>,
}

impl Conditions {
    fn new<K: Kind>(health: &Arc<Health>, has_spool: bool) -> Conditions {
        let named =
            |name: &str, duties| health.condition(format!("{} {name}", K::NAME), duties, "Kafka was not reached yet");
        Conditions {
            intake: named("intake", &[Duty::Accept]),
            spool: has_spool.then(|| named("spool", &[Duty::Report])),
        }
    }

    /// Takes what Kafka answered. With a spool that takes events the intake is as good as with Kafka.
    fn tell(&self, asked: Result<(), String>, ways: &Ways) {
        let spool = ways.spool.get().map(|spool| (spool.bytes(), spool.refusal()));
        let has_refused = ways.spool.get().is_some_and(Spool::has_refused);
        match (&asked, spool) {
            (Err(reason), Some((_, Some(refusal)))) => self.intake.missing(format!("{reason}; and {refusal}")),
            (Err(reason), None) => self.intake.missing(reason.clone()),
            (Ok(()), _) | (Err(_), Some((_, None))) => self.intake.holds(),
        }
        let Some(condition) = &self.spool else { return };
        match (asked, spool) {
            (Ok(()), None | Some((0, _))) => condition.holds(),
            (Ok(()), Some((bytes, _))) if has_refused => condition.missing(format!(
                "{bytes} bytes of events wait on disk, some of which cannot be sent: the program's log says why"
            )),
            (Ok(()), Some((bytes, _))) => {
                condition.missing(format!("{bytes} bytes of events are on their way to Kafka"))
            }
            (Err(reason), Some((bytes, _))) => {
                condition.missing(format!("{reason}; {bytes} bytes of events wait on disk"))
            }
            (Err(reason), None) => condition.missing(reason),
        }
    }
}

/// Whether Kafka is there. It is asked even when nothing is sent, so that nothing has to wait in vain to find out; what
/// it acknowledges meanwhile counts more than an answer that is late.
fn ask(inspector: &Inspector, topic: &str, ways: &Ways) -> Result<(), String> {
    let acknowledged = ways.acknowledged();
    let reason = match inspector.partitions(topic) {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => format!("there is no topic {topic} in Kafka"),
        Err(error) => error.to_string(),
    };
    if ways.acknowledged() > acknowledged { Ok(()) } else { Err(reason) }
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
    let ways = intake.ways.clone();
    let (rejects, observer) = (LogRejects::default(), Accepted(program.metrics.kind(K::NAME)));
    Acceptor::new(
        intake.kind.clone(),
        options,
        Box::new(move || ways.room()),
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
    let metrics = program.metrics.kind(K::NAME);
    let patience = Duration::from_millis(program.config.kafka.delivery_ms_max);
    let (topic, headers) = (topic.to_owned(), record::headers::<K>(K::SCHEMA_VERSION));
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
    Ok(batch::start(name, partitions, batch_options(program), produce)?)
}

fn batch_options(program: &Program) -> Options {
    Options {
        events_max: program.config.kafka.batch_events_max as usize,
        bytes_max: limits::RECORD_COLUMNS_BYTES_MAX as usize,
        linger: Duration::from_millis(program.config.kafka.linger_ms),
    }
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
