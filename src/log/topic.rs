//! What is known of a topic as a log: which cluster and which incarnation it is, and how far it reaches.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::Plain;
use super::facts::LogFacts;
use super::group::Commit;
use super::groups::{self, Members};
use super::request::{self, Request};
use super::{LogError, Options};

/// How long the tries of one question to Kafka may take. Each is made by a new client: one that has lost its brokers
/// waits in vain (see [`Bearings`](super::client::Bearings)), and a new one begins with those that are configured.
const TRIES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(3)];
/// How long a question may take whose answer can be done without.
const GLANCE: Duration = Duration::from_secs(1);

/// A client that only asks. After a try that failed it is made anew.
pub struct Inspector {
    options: Options,
    consumer: Mutex<Arc<BaseConsumer<Plain>>>,
}

impl Inspector {
    /// Connects lazily: errors come with the first question.
    pub fn new(options: &Options) -> Result<Inspector, LogError> {
        Ok(Inspector { consumer: Mutex::new(Arc::new(connect(options)?)), options: options.clone() })
    }

    /// How many partitions a topic has; `None` when there is no such topic.
    pub fn partitions(&self, topic: &str) -> Result<Option<u32>, LogError> {
        let metadata = self.ask("asking for the topic", |consumer, timeout| {
            match consumer.fetch_metadata(Some(topic), timeout) {
                // A broker that has just come back may not count itself yet: nothing can be written or read now.
                Ok(metadata) if metadata.brokers().is_empty() => Err("it names no broker yet".to_owned()),
                Ok(metadata) => Ok(metadata),
                Err(error) => Err(error.to_string()),
            }
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
        Ok(found.map(|found| found.partitions().len() as u32).filter(|partitions| *partitions > 0))
    }

    /// Everything that [`LogFacts`] holds.
    pub fn facts(&self, topic: &str) -> Result<LogFacts, LogError> {
        let partitions = self.partitions(topic)?.ok_or_else(|| {
            self.error("asking for the topic", format!("there is no topic {topic}: run `millrace migrate`"))
        })?;
        let cluster_id = self.ask("asking for the cluster's id", |consumer, timeout| {
            consumer.client().fetch_cluster_id(timeout).ok_or_else(|| "no answer in time".to_owned())
        })?;
        let watermarks =
            (0..partitions).map(|partition| self.watermarks(topic, partition)).collect::<Result<Vec<_>, _>>()?;
        let topic_id =
            self.ask("asking for the topic's id", |consumer, timeout| topic_id(consumer.client(), topic, timeout))?;
        Ok(LogFacts { cluster_id, topic: topic.to_owned(), topic_id, watermarks })
    }

    /// The oldest offset of a partition and one past its newest.
    pub fn watermarks(&self, topic: &str, partition: u32) -> Result<(i64, i64), LogError> {
        self.ask("asking for a partition's offsets", |consumer, timeout| {
            consumer.fetch_watermarks(topic, partition as i32, timeout).map_err(|error| error.to_string())
        })
    }

    /// How many records of each partition are not stored, as far as Kafka can tell: from what the group has committed, or
    /// else from the log's start.
    pub fn lags(&self, topic: &str) -> Result<Vec<i64>, LogError> {
        let partitions = self.partitions(topic)?.unwrap_or(0);
        let committed = self.ask("asking what is committed", |consumer, timeout| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(topic, 0, partitions.cast_signed() - 1);
            consumer.committed_offsets(asked, timeout).map_err(|error| error.to_string())
        })?;
        let lag = |partition: u32| {
            let (low, high) = self.watermarks(topic, partition)?;
            let next = match committed.find_partition(topic, partition.cast_signed()).map(|found| found.offset()) {
                Some(Offset::Offset(next)) => next,
                _ => low,
            };
            Ok((high - next).max(0))
        };
        (0..partitions).map(lag).collect()
    }

    /// What the group has committed for each partition of a topic.
    pub fn committed(&self, topic: &str, partitions: u32) -> Result<Vec<Option<Commit>>, LogError> {
        let answer = self.ask("asking what is committed", |consumer, timeout| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_range(topic, 0, partitions.cast_signed() - 1);
            let answer = consumer.committed_offsets(asked, timeout).map_err(|error| error.to_string())?;
            answer.elements().iter().try_for_each(|it| it.error()).map_err(|error| error.to_string())?;
            Ok(answer)
        })?;
        let commit = |partition: u32| {
            let found = answer.find_partition(topic, partition.cast_signed())?;
            let Offset::Offset(offset) = found.offset() else { return None };
            Some(Commit { offset, metadata: found.metadata().to_owned() })
        };
        Ok((0..partitions).map(commit).collect())
    }

    /// Whether a group has members.
    pub fn members(&self, group: &str) -> Result<Members, LogError> {
        self.ask("asking for a group's members", |consumer, timeout| groups::members(consumer.client(), group, timeout))
    }

    /// One past the newest offset of a partition; `None` when Kafka does not tell at once.
    pub fn end(&self, topic: &str, partition: u32) -> Option<i64> {
        let question = |consumer: &BaseConsumer<Plain>, timeout| {
            consumer.fetch_watermarks(topic, partition as i32, timeout).map_err(|error| error.to_string())
        };
        self.try_for(&[GLANCE], "asking for a partition's end", question).ok().map(|(_, end)| end)
    }

    fn ask<T>(
        &self,
        what: &'static str,
        question: impl Fn(&BaseConsumer<Plain>, Duration) -> Result<T, String>,
    ) -> Result<T, LogError> {
        self.try_for(&TRIES, what, question)
    }

    fn try_for<T>(
        &self,
        tries: &[Duration],
        what: &'static str,
        question: impl Fn(&BaseConsumer<Plain>, Duration) -> Result<T, String>,
    ) -> Result<T, LogError> {
        let mut cause = String::new();
        for timeout in tries.iter().copied() {
            let asked = self.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match question(&asked, timeout) {
                Ok(answer) => return Ok(answer),
                Err(error) => cause = error,
            }
            self.replace(&asked)?;
        }
        Err(self.error(what, cause))
    }

    /// Of several questions that failed together only the first one makes a new client.
    fn replace(&self, failed: &Arc<BaseConsumer<Plain>>) -> Result<(), LogError> {
        let mut current = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, failed) {
            *current = Arc::new(connect(&self.options)?);
        }
        Ok(())
    }

    fn error(&self, what: &'static str, cause: String) -> LogError {
        LogError { brokers: self.options.kafka.brokers.clone(), what, cause }
    }
}

fn connect(options: &Options) -> Result<BaseConsumer<Plain>, LogError> {
    let mut config = options.client_config();
    config.set("group.id", options.kafka.group()).set("enable.auto.commit", "false");
    config.create_with_context(Plain).map_err(|error| LogError {
        brokers: options.kafka.brokers.clone(),
        what: "setting up a client",
        cause: error.to_string(),
    })
}

/// Asks for a topic's id, which the safe API does not offer.
fn topic_id<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> Result<Option<String>, String> {
    let name = CString::new(topic).map_err(|_| "a topic's name cannot hold NUL".to_owned())?;
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: one request with what it needs; the collection is destroyed after librdkafka has copied it. The answer's event is
    // live while it is read.
    unsafe {
        let issue = |request: &Request| {
            let mut names = [name.as_ptr()];
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            sys::rd_kafka_DescribeTopics(request.rk, topics, request.options, request.queue);
            sys::rd_kafka_TopicCollection_destroy(topics);
        };
        request::ask(client, operation, timeout, issue, |event| described_id(event))
    }
}

/// The id in the answer to a DescribeTopics request.
///
/// # Safety
/// `event` is a live event of librdkafka.
unsafe fn described_id(event: *mut sys::rd_kafka_event_t) -> Result<Option<String>, String> {
    // SAFETY: the event is live for the whole function, and what is read here belongs to it.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        let mut count = 0;
        let descriptions = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if descriptions.is_null() || count != 1 {
            return Err("an answer without the topic".to_owned());
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(*descriptions);
        let none = id.is_null()
            || (sys::rd_kafka_Uuid_most_significant_bits(id) == 0
                && sys::rd_kafka_Uuid_least_significant_bits(id) == 0);
        if none {
            return Ok(None);
        }
        Ok(Some(CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id)).to_string_lossy().into_owned()))
    }
}
