//! Topics: what the cluster has, and making the one that is missing.
//!
//! In: the configuration and a topic's name. Out: [`Cluster`] as the brokers describe it. Every call blocks its thread
//! and is bounded by the time given to it.

use std::ffi::{CStr, CString};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::bindings as sys;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::client_config;
use super::request::{self, Request};
use crate::config;

/// How long records stay: 7 days. What was acknowledged must be stored before it is deleted, so this is the longest
/// that ClickHouse (or the writers) may be away; a writer that falls behind it stops with an alarm.
pub const RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The topic's setting for its largest record batch.
const MESSAGE_BYTES_MAX: &str = "max.message.bytes";
/// Between two looks at a topic that is being made.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

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
    /// A setting of the topic is not changed.
    #[error("the settings of the topic {topic} cannot be changed: {error}")]
    NotAltered {
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

    /// Lets a topic that is there take record batches of so many bytes, and leaves its other settings as they are. Blocks.
    pub fn widen(&self, topic: &str, message_bytes_max: u64, timeout: Duration) -> Result<(), TopicError> {
        alter(self.client.inner(), topic, MESSAGE_BYTES_MAX, &message_bytes_max.to_string(), timeout)
            .map_err(|error| TopicError::NotAltered { topic: topic.to_owned(), error })
    }

    /// Makes a topic that takes record batches of so many bytes, unless it is there, and waits until every partition of
    /// it has a leader.
    pub async fn make(&self, topic: &str, message_bytes_max: u64, timeout: Duration) -> Result<Made, TopicError> {
        let deadline = Instant::now() + timeout;
        if self.describe(topic, timeout)?.topic.is_some() {
            return Ok(Made::Existed);
        }
        let not_created = |error: String| TopicError::NotCreated { topic: topic.to_owned(), error };
        let retention_ms = RETENTION_MS.to_string();
        let message_bytes_max = message_bytes_max.to_string();
        let partitions = i32::try_from(self.config.partitions).unwrap_or(i32::MAX);
        let replication = i32::try_from(self.config.replication).unwrap_or(i32::MAX);
        // With three replicas one broker may be away; with fewer a second copy is not required, or nothing would be
        // taken while one broker is away.
        let in_sync = if self.config.replication >= 3 { "2" } else { "1" };
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication))
            .set("cleanup.policy", "delete")
            .set("retention.ms", &retention_ms)
            .set("retention.bytes", "-1")
            // The clocks of those who send do not matter: one that is ahead would have its records refused, and one that is
            // behind would have them deleted early.
            .set("message.timestamp.type", "LogAppendTime")
            .set(MESSAGE_BYTES_MAX, &message_bytes_max)
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

/// The largest record batch that a topic with these settings takes, in bytes, where that is less than `needed`.
pub fn too_narrow(settings: &[(String, String)], needed: u64) -> Option<u64> {
    let (_, taken) = settings.iter().find(|(name, _)| name == MESSAGE_BYTES_MAX)?;
    taken.parse().ok().filter(|taken| *taken < needed)
}

/// Sets one setting of a topic and leaves the others, which the safe API cannot (it would reset them).
fn alter(client: &Client<QuietContext>, topic: &str, name: &str, value: &str, timeout: Duration) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| format!("{text:?} holds NUL"));
    let (topic, name, value) = (text(topic)?, text(name)?, text(value)?);
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS;
    // SAFETY: the texts outlive every call here, and librdkafka copies what it is given. The resource is destroyed once, after
    // the request was issued; the text of an error after it was copied. The answer's event is live while it is read.
    unsafe {
        let resource =
            sys::rd_kafka_ConfigResource_new(sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, topic.as_ptr());
        if resource.is_null() {
            return Err("not a topic's name".to_owned());
        }
        let set = sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET;
        let refused = sys::rd_kafka_ConfigResource_add_incremental_config(resource, name.as_ptr(), set, value.as_ptr());
        if !refused.is_null() {
            let said = CStr::from_ptr(sys::rd_kafka_error_string(refused)).to_string_lossy().into_owned();
            sys::rd_kafka_error_destroy(refused);
            sys::rd_kafka_ConfigResource_destroy(resource);
            return Err(said);
        }
        let issue = |request: &Request| {
            let (mut resources, Request { rk, options, queue }) = ([resource], request);
            sys::rd_kafka_IncrementalAlterConfigs(*rk, resources.as_mut_ptr(), resources.len(), *options, *queue);
            sys::rd_kafka_ConfigResource_destroy(resource);
        };
        request::ask(client, operation, timeout, issue, |event| altered(event))
    }
}

/// What the answer to an IncrementalAlterConfigs request of one resource says.
///
/// # Safety
/// `event` is a live event of librdkafka.
unsafe fn altered(event: *mut sys::rd_kafka_event_t) -> Result<(), String> {
    const NO_ERROR: sys::rd_kafka_resp_err_t = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    // SAFETY: the event is live for the whole function, and what is read here belongs to it.
    unsafe {
        let result = sys::rd_kafka_event_IncrementalAlterConfigs_result(event);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        let mut count = 0;
        let resources = sys::rd_kafka_IncrementalAlterConfigs_result_resources(result, &mut count);
        if resources.is_null() || count != 1 {
            return Err("an answer without the topic".to_owned());
        }
        let error = sys::rd_kafka_ConfigResource_error(*resources);
        if error == NO_ERROR {
            return Ok(());
        }
        let said = sys::rd_kafka_ConfigResource_error_string(*resources);
        let said = if said.is_null() { sys::rd_kafka_err2str(error) } else { said };
        Err(CStr::from_ptr(said).to_string_lossy().into_owned())
    }
}

/// What an error says, without the name of its own type.
fn said(error: &KafkaError) -> String {
    error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string())
}
