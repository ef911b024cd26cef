//! Reads one partition of the log from a given offset, outside of any group: who may read it is decided in [`super::group`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::Plain;
use super::topic::Inspector;
use super::{LogError, Options};
use crate::config::limits::MIB;

/// Bytes of records that may lie ready for one partition: this bounds a writer's memory however long the log is.
const AHEAD_KIB_MAX: u32 = 32 * 1024;

/// Bytes fetched at once, at least: four records of the usual size.
const FETCH_BYTES_MIN: u64 = 4 * MIB;

/// How often the log is looked at while nothing comes from it, and how often that time may double.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_DOUBLINGS_MAX: u32 = 5;

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
///
/// Its client can lose its way to Kafka for good (see [`Bearings`](super::client::Bearings)), and it is not polled while
/// its records are being stored, so that it cannot be asked what it knows. A reader that gets nothing although the
/// inspector twice sees more in the log makes its client anew.
pub struct Reader {
    options: Options,
    inspector: Arc<Inspector>,
    consumer: BaseConsumer<Plain>,
    topic: String,
    partition: u32,
    /// The offset after the last record; `None` when it stands nowhere.
    next: Option<i64>,
    silence: Silence,
}

impl Reader {
    /// A reader that stands nowhere until [`Reader::start_at`].
    pub fn new(options: &Options, inspector: &Arc<Inspector>, topic: &str, partition: u32) -> Result<Reader, LogError> {
        Ok(Reader {
            consumer: connect(options)?,
            options: options.clone(),
            inspector: inspector.clone(),
            topic: topic.to_owned(),
            partition,
            next: None,
            silence: Silence::default(),
        })
    }

    /// Goes to an offset; what was fetched before is dropped.
    pub fn start_at(&mut self, offset: i64) -> Result<(), KafkaError> {
        self.next = Some(offset);
        self.consumer.unassign()?;
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.topic, self.partition as i32, Offset::Offset(offset))?;
        self.consumer.assign(&place)
    }

    /// The next event of the partition. May ask the inspector when nothing comes.
    pub fn poll(&mut self, timeout: Duration) -> Polled<'_> {
        let Reader { inspector, topic, partition, .. } = self;
        if let Some(next) = self.next
            // Kafka answers, and the log holds more than was read.
            && self.silence.is_suspect(Instant::now(), || inspector.end(topic, *partition).is_some_and(|end| end > next))
        {
            tracing::warn!(partition, next, "nothing comes although the log holds more: reading anew");
            self.renew(next);
        }
        match self.consumer.poll(timeout) {
            None => {
                self.silence.nothing_came(Instant::now());
                Polled::Nothing
            }
            Some(Ok(message)) => {
                self.silence = Silence::default();
                self.next = Some(message.offset() + 1);
                Polled::Record(message)
            }
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset) => Polled::OutOfRange,
                _ => Polled::Failed(error),
            },
        }
    }

    /// Leaves the log alone for so long. Each record that comes is a request to Kafka and its answer: where they are many
    /// and small, it is better to take them together. What was fetched and not polled is fetched again.
    pub fn rest(&mut self, pause: Duration) {
        let mut place = TopicPartitionList::new();
        place.add_partition(&self.topic, self.partition as i32);
        let paused = self.consumer.pause(&place);
        std::thread::sleep(pause);
        if let (Err(error), Some(next)) = (paused.and_then(|()| self.consumer.resume(&place)), self.next) {
            tracing::warn!(partition = self.partition, next, %error, "reading cannot be paused and resumed: reading anew");
            self.renew(next);
        }
    }

    fn renew(&mut self, next: i64) {
        let renewed =
            connect(&self.options).map(|consumer| self.consumer = consumer).map_err(|error| error.to_string());
        if let Err(error) = renewed.and_then(|()| self.start_at(next).map_err(|error| error.to_string())) {
            tracing::error!(partition = self.partition, error, "the log could not be read anew");
        }
    }
}

fn connect(options: &Options) -> Result<BaseConsumer<Plain>, LogError> {
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
        .set("fetch.message.max.bytes", options.message_bytes_max.max(FETCH_BYTES_MIN).to_string())
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", AHEAD_KIB_MAX.to_string())
        .set("check.crcs", "true");
    config.create_with_context(Plain).map_err(|error| LogError {
        brokers: options.kafka.brokers.clone(),
        what: "setting up a reader",
        cause: error.to_string(),
    })
}

/// For how long nothing has come, and what was made of it.
#[derive(Debug, Default)]
struct Silence {
    /// When nothing came for the first time, or when the log was last looked at.
    since: Option<Instant>,
    /// Whether the log held more when it was last looked at.
    behind: bool,
    /// How often it was found suspect. The end of a log may be no record (but the mark of a transaction), which never
    /// comes, so that each time is followed by a longer wait.
    times: u32,
}

impl Silence {
    fn nothing_came(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Whether something should have come: the log held more at two looks with a wait between them, so that what has just
    /// arrived is not taken for missing.
    fn is_suspect(&mut self, now: Instant, is_behind: impl FnOnce() -> bool) -> bool {
        let wait = LOOK_EVERY * (1 << self.times.min(LOOK_DOUBLINGS_MAX));
        if self.since.is_none_or(|since| now.saturating_duration_since(since) < wait) {
            return false;
        }
        let was_behind = std::mem::replace(&mut self.behind, is_behind());
        self.since = Some(now);
        let suspect = was_behind && self.behind;
        if suspect {
            self.behind = false;
            self.times += 1;
        }
        suspect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_suspect_when_the_log_twice_held_more() {
        let mut now = Instant::now();
        let mut silence = Silence::default();
        assert!(!silence.is_suspect(now, || panic!("something has just come")));
        silence.nothing_came(now);
        assert!(!silence.is_suspect(now, || panic!("nothing came for a moment only")));
        now += LOOK_EVERY;
        assert!(!silence.is_suspect(now, || true));
        assert!(!silence.is_suspect(now, || panic!("looked at just now")));
        now += LOOK_EVERY;
        assert!(silence.is_suspect(now, || true));
        // The next look is not as near, and one that finds nothing more makes the count of two begin again.
        now += LOOK_EVERY;
        assert!(!silence.is_suspect(now, || panic!("waits for longer now")));
        for (behind, suspect) in [(true, false), (false, false), (true, false), (true, true)] {
            now += 2 * LOOK_EVERY;
            assert_eq!(silence.is_suspect(now, || behind), suspect);
        }
    }
}
