//! How every client of Kafka begins: its brokers, its name, the options that are passed through, and where its own lines
//! go.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, ClientContext};

use crate::config;

/// While Kafka is away each of our clients complains several times a second: one line in so many seconds is logged.
const COMPLAINT_EVERY_S: u64 = 5;

/// Where to connect and how. What a producer, a consumer or an administrator needs beyond it comes afterwards, so that
/// the options passed through cannot override it (those that matter are refused by the configuration besides).
pub fn client_config(config: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("client.id", "millrace");
    // A connection that cannot be made is given up in less time than a record may take to be delivered.
    client.set("socket.connection.setup.timeout.ms", "5000");
    for (name, value) in config.options.iter() {
        client.set(name, value);
    }
    client.set("bootstrap.servers", &config.brokers);
    client
}

/// For clients that need no context of their own.
pub struct Plain;

impl ClientContext for Plain {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        heard(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        complained(&error, reason);
    }
}

impl ConsumerContext for Plain {}

/// Takes a line of librdkafka's. Everything of note comes as an error too, so it is for debugging.
pub fn heard(level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", ?level, facility, message);
}

/// Takes an error that librdkafka reports and goes on from; all clients together are logged at a bounded rate.
pub fn complained(error: &KafkaError, reason: &str) {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    /// The second (from 1) of the last line, 0 for none.
    static SAID_AT_S: AtomicU64 = AtomicU64::new(0);
    static LEFT_OUT: AtomicU64 = AtomicU64::new(0);
    let (now_s, said_s) = (STARTED.elapsed().as_secs() + 1, SAID_AT_S.load(Ordering::Relaxed));
    let due = said_s == 0 || now_s >= said_s + COMPLAINT_EVERY_S;
    if due && SAID_AT_S.compare_exchange(said_s, now_s, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
        tracing::warn!(target: "librdkafka", %error, reason, left_out, "Kafka client: trying on");
    } else {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "librdkafka", %error, reason, "Kafka client: trying on");
    }
}
