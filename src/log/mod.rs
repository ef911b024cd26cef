//! The log: a Kafka topic for each kind, whose records are Arrow IPC streams.
//!
//! It is the only meeting point of the accepting side ([`produce`]) and the storing side ([`consume`], [`group`]).
//! Always holds: copies of one event lie in one partition, and what was acknowledged was written with `acks=all`.

pub mod client;
pub mod consume;
pub mod facts;
pub mod group;
pub mod groups;
pub mod produce;
pub mod record;
mod request;
pub mod topic;
pub mod topics;

use rdkafka::ClientConfig;

use crate::config;

/// How to reach the log.
#[derive(Clone, Debug)]
pub struct Options {
    /// The settings of Kafka.
    pub kafka: config::Kafka,
    /// Milliseconds after which a silent writer loses its partitions (`classic` only: with `consumer` the broker decides).
    pub session_ms: u64,
    /// Milliseconds within which a writer must ask for news of its group.
    pub poll_ms_max: u64,
    /// The largest record batch in bytes: [`config::limits::message_bytes_max`].
    pub message_bytes_max: u64,
}

impl Options {
    /// What every client of the running program starts from.
    fn client_config(&self) -> ClientConfig {
        let mut config = client::client_config(&self.kafka);
        config
            // A broker that is back is found within a second.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.nagle.disable", "true")
            .set("log.connection.close", "false");
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
