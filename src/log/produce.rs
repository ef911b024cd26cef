//! Writes records to the log and settles the requests whose events they carry.
//!
//! In: [`Record`]s, from the batchers' threads. Out: acknowledgements, from the producer's own thread. The producer is
//! idempotent with `acks=all`; what it holds is bounded, and a record that Kafka does not take in time fails.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::client::{Bearings, complained, heard};
use super::{LogError, Options};
use crate::flow::{AckPart, UnderWay};
use crate::observe::rate::Rate;

/// Bytes that may wait for Kafka in the producer: about 1.5 million captcha events, or a second of full load.
const QUEUE_KIB_MAX: u32 = 64 * 1024;
/// Kafka counts as stalled when nothing was acknowledged for this long although something waits.
const STALL_MAX: Duration = Duration::from_millis(2500);
/// Records that failed which are logged each second; the others are counted, and the metrics have them all.
const COMPLAINTS_PER_SECOND_MAX: u64 = 2;
/// How long one poll waits at most. Acknowledgements end it at once.
const POLL_MAX: Duration = Duration::from_secs(5);
/// Pause before a full queue is tried again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

/// One record to be written.
pub struct Record<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Which partition.
    pub partition: u32,
    /// Names the kind and the schema.
    pub headers: OwnedHeaders,
    /// The Arrow IPC stream.
    pub value: &'a [u8],
    /// How many events it holds.
    pub events: usize,
    /// Who waits for it.
    pub acks: Vec<AckPart>,
    /// Kept until it is settled.
    pub under_way: UnderWay,
}

/// Told about every record once it is settled.
pub trait DeliveryObserver: Send + Sync + 'static {
    /// `events` in one record, acknowledged or not, `elapsed` after it was handed to the producer.
    fn delivered(&self, acknowledged: bool, events: usize, elapsed: Duration);
}

struct InFlight {
    acks: Vec<AckPart>,
    _under_way: UnderWay,
    events: usize,
    since: Instant,
}

struct Deliveries {
    observer: Box<dyn DeliveryObserver>,
    started: Instant,
    in_flight: AtomicI64,
    /// Milliseconds after `started` at which a record was last acknowledged, or the first one was handed over.
    progress_ms: AtomicU64,
    /// Records acknowledged so far.
    acknowledged: AtomicU64,
    /// While Kafka is away thousands of records can fail in a second.
    complaints: Rate,
}

impl Deliveries {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn begin(&self) {
        if self.in_flight.fetch_add(1, Ordering::AcqRel) == 0 {
            self.progress_ms.store(self.now_ms(), Ordering::Release);
        }
    }

    fn end(&self, in_flight: InFlight, failure: Option<&KafkaError>) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        match failure {
            None => {
                self.progress_ms.store(self.now_ms(), Ordering::Release);
                self.acknowledged.fetch_add(1, Ordering::AcqRel);
            }
            Some(error) => {
                let (log, left_out) = self.complaints.ask();
                if log {
                    let events = in_flight.events;
                    tracing::warn!(%error, events, left_out, "a record was not acknowledged: its requests get a 503, and what came from the spool stays there");
                }
            }
        }
        self.observer.delivered(failure.is_none(), in_flight.events, in_flight.since.elapsed());
        for ack in in_flight.acks {
            ack.settle(failure.is_none());
        }
    }
}

struct Context {
    deliveries: Arc<Deliveries>,
    bearings: Bearings,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        heard(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.bearings.told(statistics);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Box<InFlight>) {
        self.deliveries.end(*in_flight, result.as_ref().err().map(|(error, _)| error));
    }
}

/// The producer of a process.
pub struct Producer {
    options: Options,
    deliveries: Arc<Deliveries>,
    /// Replaced when a client ends in a fatal error.
    client: Mutex<Arc<Polled>>,
}

/// A client and the thread that takes its acknowledgements.
///
/// rdkafka's own `ThreadedProducer` polls for 100 ms at a time, the last of which it spins for: 1% of a core for each
/// producer, doing nothing.
struct Polled {
    client: Arc<BaseProducer<Context>>,
    is_over: Arc<AtomicBool>,
}

impl Polled {
    fn start(client: BaseProducer<Context>) -> std::io::Result<Polled> {
        let polled = Polled { client: Arc::new(client), is_over: Arc::default() };
        let (client, is_over) = (polled.client.clone(), polled.is_over.clone());
        std::thread::Builder::new().name("acknowledge".into()).spawn(move || {
            while !is_over.load(Ordering::Acquire) {
                client.poll(POLL_MAX);
            }
        })?;
        Ok(polled)
    }
}

impl Drop for Polled {
    /// The thread ends after its poll, and the client with it.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
    }
}

impl Producer {
    /// Connects lazily: a Kafka that is away shows when records are not acknowledged.
    pub fn new(options: &Options, observer: Box<dyn DeliveryObserver>) -> Result<Producer, LogError> {
        let deliveries = Arc::new(Deliveries {
            observer,
            started: Instant::now(),
            in_flight: AtomicI64::new(0),
            progress_ms: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            complaints: Rate::new(COMPLAINTS_PER_SECOND_MAX, Duration::from_secs(1)),
        });
        let client = connect(options, &deliveries)?;
        Ok(Producer { options: options.clone(), deliveries, client: Mutex::new(Arc::new(client)) })
    }

    /// Hands a record over. Blocks while the producer is full, until `deadline`; a record that is not taken by then (or
    /// that Kafka refuses) fails, and its requests with it.
    pub fn produce(&self, record: Record<'_>, deadline: Instant) {
        let polled = self.client();
        let client = &polled.client;
        let in_flight =
            InFlight { acks: record.acks, _under_way: record.under_way, events: record.events, since: Instant::now() };
        self.deliveries.begin();
        let mut message = BaseRecord::<(), [u8], Box<InFlight>>::with_opaque_to(record.topic, Box::new(in_flight))
            .partition(record.partition as i32)
            .headers(record.headers)
            .payload(record.value);
        loop {
            let Err((error, back)) = client.send(message) else { return };
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if full && Instant::now() < deadline {
                std::thread::sleep(QUEUE_FULL_PAUSE);
                message = back;
                continue;
            }
            self.deliveries.end(*back.delivery_opaque, Some(&error));
            if client.client().fatal_error().is_some() {
                self.replace(&polled);
            }
            return;
        }
    }

    /// How many records Kafka has acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.deliveries.acknowledged.load(Ordering::Acquire)
    }

    /// Whether something waits for Kafka and nothing has been acknowledged for a while.
    pub fn is_stalled(&self) -> bool {
        let waiting = self.deliveries.in_flight.load(Ordering::Acquire) > 0;
        let since_ms = self.deliveries.now_ms().saturating_sub(self.deliveries.progress_ms.load(Ordering::Acquire));
        waiting && since_ms > STALL_MAX.as_millis() as u64
    }

    /// To be called every second or so: see [`Bearings::keep`].
    pub fn keep(&self) {
        let client = &self.client().client;
        client.context().bearings.keep(client.client());
    }

    /// Waits until everything handed over is settled; `false` when `timeout` passed first.
    pub fn flush(&self, timeout: Duration) -> bool {
        self.client().client.flush(timeout).is_ok()
    }

    fn client(&self) -> Arc<Polled> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, failed: &Arc<Polled>) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&client, failed) {
            return;
        }
        let reason =
            failed.client.client().fatal_error().map_or_else(String::new, |(code, reason)| format!("{code}: {reason}"));
        tracing::error!(reason, "the producer does not go on and is made anew");
        match connect(&self.options, &self.deliveries) {
            Ok(fresh) => *client = Arc::new(fresh),
            Err(error) => tracing::error!(%error, "the producer could not be made anew"),
        }
    }
}

fn connect(options: &Options, deliveries: &Arc<Deliveries>) -> Result<Polled, LogError> {
    let mut config = options.client_config();
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.codec", options.kafka.compression.name())
        .set("message.timeout.ms", options.kafka.delivery_ms_max.to_string())
        .set("request.timeout.ms", options.kafka.delivery_ms_max.min(5000).to_string())
        .set("message.max.bytes", options.message_bytes_max.to_string())
        // The batchers have grouped already: nothing is gained by waiting again.
        .set("queue.buffering.max.ms", "0")
        .set("queue.buffering.max.kbytes", QUEUE_KIB_MAX.to_string())
        .set("queue.buffering.max.messages", "100000");
    let bearings = Bearings::new(&options.kafka, &mut config);
    let context = Context { deliveries: deliveries.clone(), bearings };
    let failed =
        |cause: String| LogError { brokers: options.kafka.brokers.clone(), what: "setting up the producer", cause };
    let client = config.create_with_context(context).map_err(|error| failed(error.to_string()))?;
    Polled::start(client).map_err(|error| failed(error.to_string()))
}
