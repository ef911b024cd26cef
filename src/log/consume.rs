//! Reads one partition of the log from a given offset, outside of any group: who may read it is decided in [`super::group`].

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::Plain;
use super::{LogError, Options};

/// Bytes of records that may lie ready for one partition: this bounds a writer's memory however long the log is.
const AHEAD_KIB_MAX: u32 = 32 * 1024;

/// What a poll brought.
pub enum Polled<'a> {
    /// The next record.
    Record(BorrowedMessage<'a>),
    /// Nothing came in time.
    Nothing,
    /// The offset asked for is not in the log (any more, or yet).
    OutOfRange,
    /// Something else; the client goes on by itself where it can.
    Failed(KafkaError),
}

/// Reads one partition.
pub struct Reader {
    consumer: BaseConsumer<Plain>,
    topic: String,
    partition: u32,
}

impl Reader {
    /// A reader that stands nowhere until [`Reader::start_at`].
    pub fn new(options: &Options, topic: &str, partition: u32) -> Result<Reader, LogError> {
        let mut config = options.client_config();
        config
            // Needed by the client, never joined: nothing is subscribed or committed here.
            .set("group.id", format!("{}-reader", options.kafka.group()))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // An offset that is not there is never replaced by another one.
            .set("auto.offset.reset", "error")
            .set("fetch.wait.max.ms", "500")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.message.max.bytes", "4194304")
            .set("queued.min.messages", "100000")
            .set("queued.max.messages.kbytes", AHEAD_KIB_MAX.to_string())
            .set("check.crcs", "true");
        let consumer = config.create_with_context(Plain).map_err(|error| LogError {
            brokers: options.kafka.brokers.clone(),
            what: "setting up a reader",
            cause: error.to_string(),
        })?;
        Ok(Reader { consumer, topic: topic.to_owned(), partition })
    }

    /// Goes to an offset; what was fetched before is dropped.
    pub fn start_at(&self, offset: i64) -> Result<(), KafkaError> {
        self.consumer.unassign()?;
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.topic, self.partition as i32, Offset::Offset(offset))?;
        self.consumer.assign(&place)
    }

    /// The next event of the partition.
    pub fn poll(&self, timeout: Duration) -> Polled<'_> {
        match self.consumer.poll(timeout) {
            None => Polled::Nothing,
            Some(Ok(message)) => Polled::Record(message),
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset) => Polled::OutOfRange,
                _ => Polled::Failed(error),
            },
        }
    }
}
