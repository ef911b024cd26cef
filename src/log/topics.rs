//! Topics: what the cluster has, and making the one that is missing.
//!
//! In: the configuration and a topic's name. Out: [`Cluster`] as the brokers describe it. Every call blocks its thread
//! and is bounded by the time given to it.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::client_config;
use crate::config;

/// How long records stay: 7 days. What was acknowledged must be stored before it is deleted, so this is the longest
/// that ClickHouse (or the writers) may be away; a writer that falls behind it stops with an alarm.
pub const RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The largest record batch that a topic takes: Kafka's own default, stated so that a broker's cannot be below it.
pub const MESSAGE_BYTES_MAX: u64 = 1_048_588;
/// Between two looks at a topic that is being made.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

const _: () = assert!(config::limits::RECORD_BYTES_MAX < MESSAGE_BYTES_MAX);

/// Kafka does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// No broker answers.
    #[error("kafka cannot be reached at {brokers}: {error}")]
    Unreachable {
        /// The brokers that were tried.
        brokers: String,
        /// What the client says.
        error: String,
    },
    /// The topic is not made.
    #[error("the topic {topic} cannot be created: {error}")]
    NotCreated {
        /// Its name.
        topic: String,
        /// Why.
        error: String,
    },
    /// The configuration of the client is refused.
    #[error("the settings for kafka are refused: {0}")]
    Settings(String),
}

/// What the brokers say of themselves and of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// How many brokers there are.
    pub brokers: usize,
    /// The topic; `None` when there is none of that name.
    pub topic: Option<Topic>,
}

/// A topic as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// How many partitions it has.
    pub partitions: u32,
    /// The fewest replicas that one of them has.
    pub replicas_min: usize,
    /// How many of them have no leader, so that nothing can be written to them.
    pub leaderless: usize,
}

/// Whether a topic was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was.
    Created,
    /// It was there.
    Existed,
}

/// An administrator's connection. librdkafka's own lines are left out of the log: what fails is said by the errors.
pub struct Admin<'c> {
    config: &'c config::Kafka,
    client: AdminClient<QuietContext>,
}

/// A client that leaves it to its user to say what failed.
pub struct QuietContext(DefaultClientContext);

impl ClientContext for QuietContext {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
    }
}

impl<'c> Admin<'c> {
    /// Makes the client; it connects by itself when it is used.
    pub fn new(config: &'c config::Kafka) -> Result<Admin<'c>, TopicError> {
        let client = client_config(config)
            .create_with_context(QuietContext(DefaultClientContext))
            .map_err(|error| TopicError::Settings(error.to_string()))?;
        Ok(Admin { config, client })
    }

    /// What the brokers say.
    pub fn describe(&self, topic: &str, timeout: Duration) -> Result<Cluster, TopicError> {
        let unreachable =
            |error: KafkaError| TopicError::Unreachable { brokers: self.config.brokers.clone(), error: said(&error) };
        // All topics are asked for: asking for one by name can create it, where brokers are set so.
        let metadata = self.client.inner().fetch_metadata(None, timeout).map_err(unreachable)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let topic = found.map(|found| Topic {
            partitions: u32::try_from(found.partitions().len()).unwrap_or(u32::MAX),
            replicas_min: found.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
            leaderless: found.partitions().iter().filter(|partition| partition.leader() < 0).count(),
        });
        Ok(Cluster { brokers: metadata.brokers().len(), topic })
    }

    /// Settings of a topic that matter here, by name.
    pub async fn settings(&self, topic: &str, timeout: Duration) -> Result<Vec<(String, String)>, TopicError> {
        let options = AdminOptions::new().request_timeout(Some(timeout));
        let described = self.client.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
        let unreachable = |error: String| TopicError::Unreachable { brokers: self.config.brokers.clone(), error };
        let described = described.map_err(|error| unreachable(said(&error)))?;
        let mut found = Vec::new();
        for resource in described {
            let resource = resource.map_err(|code| unreachable(code.to_string()))?;
            for entry in resource.entries {
                found.extend(entry.value.map(|value| (entry.name, value)));
            }
        }
        Ok(found)
    }

    /// Makes a topic, unless it is there, and waits until every partition of it has a leader.
    pub async fn make(&self, topic: &str, timeout: Duration) -> Result<Made, TopicError> {
        let deadline = Instant::now() + timeout;
        if self.describe(topic, timeout)?.topic.is_some() {
            return Ok(Made::Existed);
        }
        let not_created = |error: String| TopicError::NotCreated { topic: topic.to_owned(), error };
        let retention_ms = RETENTION_MS.to_string();
        let message_bytes_max = MESSAGE_BYTES_MAX.to_string();
        let partitions = i32::try_from(self.config.partitions).unwrap_or(i32::MAX);
        let replication = i32::try_from(self.config.replication).unwrap_or(i32::MAX);
        // With three replicas one broker may be away; with fewer a second copy is not required, or nothing would be
        // taken while one broker is away.
        let in_sync = if self.config.replication >= 3 { "2" } else { "1" };
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication))
            .set("cleanup.policy", "delete")
            .set("retention.ms", &retention_ms)
            .set("retention.bytes", "-1")
            .set("message.timestamp.type", "CreateTime")
            .set("max.message.bytes", &message_bytes_max)
            .set("min.insync.replicas", in_sync)
            .set("unclean.leader.election.enable", "false");
        let options = AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
        let made = self.client.create_topics([&new], &options).await.map_err(|error| not_created(said(&error)))?;
        let created = match made.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Made::Existed,
            Some(Err((_, code))) => return Err(not_created(code.to_string())),
            _ => Made::Created,
        };
        while Instant::now() < deadline {
            let found = self.describe(topic, timeout)?.topic;
            if found.is_some_and(|found| found.leaderless == 0 && found.partitions > 0) {
                return Ok(created);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Err(not_created("its partitions have no leader yet".into()))
    }
}

/// What an error says, without the name of its own type.
fn said(error: &KafkaError) -> String {
    error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string())
}
