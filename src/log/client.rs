//! How every client of Kafka begins: its brokers, its name, the options that are passed through, and where its own lines
//! go; and how it finds its way back when it has lost all brokers.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, ClientContext};
use serde::Deserialize;

use crate::config;
use crate::observe::rate::Rate;

/// While Kafka is away each of our clients complains several times a second: one line in so much time is logged.
const COMPLAINT_EVERY: Duration = Duration::from_secs(5);

/// Where to connect and how. What a producer, a consumer or an administrator needs beyond it comes afterwards, so that
/// the options passed through cannot override it (those that matter are refused by the configuration besides).
pub fn client_config(config: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("client.id", "millrace");
    // A connection that cannot be made is given up in less time than a record may take to be delivered.
    client.set("socket.connection.setup.timeout.ms", "5000");
    // A peer that lost its power closes no connection: what waits for it there is asked again on a new one. Until then a member
    // of a group tells nothing of itself.
    client.set("socket.timeout.ms", "10000");
    for (name, value) in config.options.iter() {
        client.set(name, value);
    }
    client.set("bootstrap.servers", &config.brokers);
    client
}

/// How often a client tells which brokers it knows.
const TELL_EVERY_MS: &str = "1000";

/// Keeps one client that is polled all the time able to find Kafka; a part of the client's context.
///
/// A broker that has just come back can name a topic and no broker at all. librdkafka (2.12.1, its issue 5301) then drops
/// every broker that it knows, the configured ones too, and tries none again. A client whose statistics show no broker is
/// given the configured ones once more: it goes on as the same client, with its membership and its records.
pub struct Bearings {
    brokers: CString,
    lost: AtomicBool,
}

/// What is read of a client's statistics.
#[derive(Deserialize)]
struct Statistics {
    brokers: HashMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    /// `configured` or `learned`, for a broker; `logical` and `internal` are none.
    source: String,
}

impl Bearings {
    /// For one client of the Kafka that is configured, whose options are completed.
    pub fn new(kafka: &config::Kafka, client: &mut ClientConfig) -> Bearings {
        client.set("statistics.interval.ms", TELL_EVERY_MS);
        // The configuration takes hosts and ports alone, which hold no NUL.
        Bearings { brokers: CString::new(kafka.brokers.as_str()).unwrap_or_default(), lost: AtomicBool::new(false) }
    }

    /// Takes the client's statistics, as JSON.
    pub fn told(&self, statistics: &[u8]) {
        let Ok(told) = serde_json::from_slice::<Statistics>(statistics) else { return };
        let known = told.brokers.values().any(|broker| matches!(broker.source.as_str(), "configured" | "learned"));
        self.lost.store(!known, Ordering::Release);
    }

    /// To be called every second or so: gives a client that has no broker left the configured ones.
    pub fn keep<C: ClientContext>(&self, client: &Client<C>) {
        // The client keeps each list that it is given: it is given one for each time that it tells of none.
        if self.lost.swap(false, Ordering::AcqRel) {
            tracing::info!("a client of Kafka has lost all brokers and begins again with the configured ones");
            self.restore(client);
        }
    }

    /// Gives a client the configured brokers, whatever it knows: those that it does not need it drops by itself.
    pub fn restore<C: ClientContext>(&self, client: &Client<C>) {
        // SAFETY: the client is alive, and the text, which ends with NUL, is copied before the call returns.
        let brokers = unsafe { sys::rd_kafka_brokers_add(client.native_ptr(), self.brokers.as_ptr()) };
        tracing::debug!(brokers, "gave a client of Kafka the configured brokers");
    }
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
    static RATE: LazyLock<Rate> = LazyLock::new(|| Rate::new(1, COMPLAINT_EVERY));
    let (log, left_out) = RATE.ask();
    if log {
        tracing::warn!(target: "librdkafka", %error, reason, left_out, "Kafka client: trying on");
    } else {
        tracing::debug!(target: "librdkafka", %error, reason, "Kafka client: trying on");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rdkafka::consumer::{BaseConsumer, Consumer as _};

    use super::*;

    const NONE: &[u8] = br#"{"name":"rdkafka#consumer-1","brokers":{
        "GroupCoordinator":{"name":"GroupCoordinator","nodeid":-1,"source":"logical","state":"INIT"},
        ":0/internal":{"name":":0/internal","nodeid":-1,"source":"internal","state":"UP"}},"topics":{}}"#;
    const ONE: &[u8] =
        br#"{"brokers":{"h:1/1":{"source":"learned","state":"DOWN"},":0/internal":{"source":"internal"}}}"#;

    /// A client of nothing, which hands what it tells to its bearings.
    struct Kept(Bearings);

    impl ClientContext for Kept {
        fn stats_raw(&self, statistics: &[u8]) {
            self.0.told(statistics);
        }
    }

    impl ConsumerContext for Kept {}

    #[test]
    fn a_client_without_brokers_is_given_the_configured_ones() {
        // Made without brokers it is as lost as one that dropped them.
        let mut options = ClientConfig::new();
        let bearings = Bearings::new(&config::Kafka::default(), &mut options);
        options.set("statistics.interval.ms", "20");
        let client: BaseConsumer<Kept> = options.create_with_context(Kept(bearings)).unwrap();
        let bearings = &client.context().0;
        let wait = |lost| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while bearings.lost.load(Ordering::Acquire) != lost {
                assert!(Instant::now() < deadline, "waited in vain for lost = {lost}");
                client.poll(Duration::from_millis(5));
            }
        };
        wait(true);
        bearings.keep(client.client());
        // What it told before may still be under way.
        client.poll(Duration::from_millis(100));
        wait(false);
        client.poll(Duration::from_millis(100));
        assert!(!bearings.lost.load(Ordering::Acquire));
    }

    #[test]
    fn only_brokers_count() {
        let bearings = Bearings::new(&config::Kafka::default(), &mut ClientConfig::new());
        let lost = |statistics| {
            bearings.told(statistics);
            bearings.lost.load(Ordering::Acquire)
        };
        assert!(lost(NONE) && !lost(ONE) && lost(NONE) && lost(b"no JSON"));
    }
}
