//! The log: a Kafka topic for each kind, whose records are Arrow IPC streams.
//!
//! It is the only meeting point of the accepting side ([`produce`]) and the storing side ([`consume`], [`group`]).
//! Always holds: copies of one event lie in one partition, and what was acknowledged was written with `acks=all`.

pub mod consume;
pub mod group;
pub mod produce;
pub mod record;
pub mod topic;

use rdkafka::ClientConfig;

use crate::config::KafkaOptions;

/// How to reach the log.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// The consumer group of the writers.
    pub group: String,
    /// `consumer` (KIP-848) or `classic`.
    pub group_protocol: String,
    /// Milliseconds after which a silent writer loses its partitions (`classic` only: with `consumer` the broker decides).
    pub session_ms: u32,
    /// Milliseconds within which a writer must ask for news of its group.
    pub poll_ms_max: u32,
    /// Milliseconds within which Kafka must acknowledge a record.
    pub delivery_ms_max: u32,
    /// Compression of the records' batches.
    pub compression: String,
    /// Further settings of librdkafka, passed on as they are.
    pub extra: KafkaOptions,
}

impl Options {
    /// What every client of ours starts from.
    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "millrace")
            // A broker that is back is found within a second.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.nagle.disable", "true")
            .set("log.connection.close", "false");
        for (name, value) in self.extra.iter() {
            config.set(name, value);
        }
        config
    }
}

/// Kafka did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("Kafka at {brokers}: {what}: {cause}")]
pub struct LogError {
    /// Where.
    pub brokers: String,
    /// What was tried.
    pub what: &'static str,
    /// What came of it.
    pub cause: String,
}
