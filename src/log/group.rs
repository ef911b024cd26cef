//! Membership of the writers' group: which partitions this process may store, and the commits that prove it.
//!
//! The group's consumer fetches nothing: it holds the membership and commits offsets with metadata. Each assignment of a
//! partition opens a [`Tenure`]; losing the partition ends it before Kafka hears that it was given up, and a commit is
//! made under the tenure's lock. So no commit of an ended tenure can leave this process, and Kafka refuses those of a
//! process that lost its membership without knowing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::bindings as sys;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::client::{Bearings, complained, heard};
use super::{LogError, Options};
use crate::config::GroupProtocol;

/// How often a client is asked whether it is a member.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After so many looks in a row at which it was none it is given up. Looks are counted and not time, in which this process may
/// have stood still.
const LOOKS_OUTSIDE_MAX: u32 = 20;

/// How long a question for committed offsets may take.
const ASK_MAX: Duration = Duration::from_secs(5);

/// How long the end of a tenure waits for a commit before the client is taken for lost: it is not polled meanwhile, so that
/// it cannot tell.
const COMMIT_PATIENCE: Duration = Duration::from_secs(3);
/// How often the end of a tenure looks whether the commit is over.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The time between being given a partition and losing it.
pub struct Tenure {
    /// Which topic.
    pub topic: String,
    /// Which partition.
    pub partition: u32,
    /// When it began.
    pub opened: Instant,
    active: Mutex<bool>,
}

impl Tenure {
    /// Whether the partition is still ours, as far as this process knows.
    pub fn is_active(&self) -> bool {
        *lock(&self.active)
    }

    /// Ends it. While a commit is under way that waits; a commit lasts as long as its client does not find Kafka, so
    /// `meanwhile` is called now and then.
    fn end(&self, meanwhile: &dyn Fn()) {
        let mut since = Instant::now();
        loop {
            match self.active.try_lock() {
                Ok(mut active) => *active = false,
                Err(TryLockError::Poisoned(active)) => *active.into_inner() = false,
                Err(TryLockError::WouldBlock) => {
                    if since.elapsed() >= COMMIT_PATIENCE {
                        since = Instant::now();
                        meanwhile();
                    }
                    std::thread::sleep(LOOK_AGAIN);
                    continue;
                }
            }
            return;
        }
    }
}

/// A committed offset with its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The next offset to store.
    pub offset: i64,
    /// Free text kept beside it.
    pub metadata: String,
}

/// Why a commit was not made.
#[derive(Debug)]
pub enum CommitError {
    /// The tenure has ended.
    Ended,
    /// Kafka did not confirm it: it may or may not have been made.
    Unknown(KafkaError),
}

/// What happened in the group.
pub enum GroupEvent {
    /// A partition was given to this process.
    Assigned(Arc<Tenure>),
    /// The client cannot go on and must be made anew; all tenures have ended.
    Failed(String),
}

#[derive(Default)]
struct Tenures {
    active: HashMap<(String, u32), Arc<Tenure>>,
    fresh: Vec<Arc<Tenure>>,
}

impl Tenures {
    fn open(&mut self, topic: &str, partition: u32, meanwhile: &dyn Fn()) {
        let tenure =
            Arc::new(Tenure { topic: topic.to_owned(), partition, opened: Instant::now(), active: Mutex::new(true) });
        if let Some(old) = self.active.insert((topic.to_owned(), partition), tenure.clone()) {
            old.end(meanwhile);
        }
        self.fresh.push(tenure);
    }

    fn close(&mut self, topic: &str, partition: u32, meanwhile: &dyn Fn()) {
        if let Some(tenure) = self.active.remove(&(topic.to_owned(), partition)) {
            tenure.end(meanwhile);
        }
    }

    fn close_all(&mut self, meanwhile: &dyn Fn()) {
        for (_, tenure) in self.active.drain() {
            tenure.end(meanwhile);
        }
    }
}

struct Context {
    tenures: Mutex<Tenures>,
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

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let result = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assigned(consumer, partitions, cooperative)
        } else {
            self.revoked(consumer, partitions, cooperative)
        };
        if let Err(error) = result {
            tracing::error!(%error, "the change of partitions could not be carried out");
        }
    }
}

impl Context {
    fn assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        // Nothing is fetched through this client: it stands at the end, paused.
        partitions.set_all_offsets(Offset::End)?;
        if cooperative {
            consumer.incremental_assign(partitions)?
        } else {
            consumer.assign(partitions)?
        }
        if partitions.count() > 0 {
            consumer.pause(partitions)?;
        }
        let mut tenures = lock(&self.tenures);
        for element in partitions.elements() {
            tracing::info!(topic = element.topic(), partition = element.partition(), "partition assigned");
            tenures.open(element.topic(), element.partition() as u32, &|| self.bearings.restore(consumer.client()));
        }
        Ok(())
    }

    fn revoked(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        {
            let mut tenures = lock(&self.tenures);
            for element in partitions.elements() {
                tracing::info!(topic = element.topic(), partition = element.partition(), "partition given up");
                tenures
                    .close(element.topic(), element.partition() as u32, &|| self.bearings.restore(consumer.client()));
            }
        }
        if cooperative { consumer.incremental_unassign(partitions) } else { consumer.unassign() }
    }
}

/// This process as a member of the writers' group.
pub struct Group {
    consumer: BaseConsumer<Context>,
    /// With the classic protocol Kafka may rightly hold a join for as long as another member takes to poll.
    presence: Option<Mutex<Presence>>,
}

/// When a client was last asked whether it is a member, and how often in a row it was none.
struct Presence {
    looked: Instant,
    outside: u32,
}

impl Group {
    /// Joins in the background: partitions come through [`Group::poll`].
    pub fn join(options: &Options, topics: &[&str]) -> Result<Group, LogError> {
        let failed = |what| {
            move |error: KafkaError| LogError { brokers: options.kafka.brokers.clone(), what, cause: error.to_string() }
        };
        let mut config = options.client_config();
        config
            .set("group.id", options.kafka.group())
            .set("group.protocol", options.kafka.group_protocol.name())
            .set("max.poll.interval.ms", options.poll_ms_max.to_string())
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "latest");
        if options.kafka.group_protocol == GroupProtocol::Classic {
            config
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", options.session_ms.to_string())
                .set("heartbeat.interval.ms", (options.session_ms / 4).max(1).to_string());
        }
        let bearings = Bearings::new(&options.kafka, &mut config);
        let context = Context { tenures: Mutex::default(), bearings };
        let consumer: BaseConsumer<Context> =
            config.create_with_context(context).map_err(failed("setting up the group's client"))?;
        consumer.subscribe(topics).map_err(failed("subscribing to the topics"))?;
        let presence = (options.kafka.group_protocol == GroupProtocol::Consumer)
            .then(|| Mutex::new(Presence { looked: Instant::now(), outside: 0 }));
        Ok(Group { consumer, presence })
    }

    /// Serves the membership; to be called at least every few seconds.
    pub fn poll(&self, timeout: Duration) -> Vec<GroupEvent> {
        self.consumer.context().bearings.keep(self.consumer.client());
        let failure = match self.consumer.poll(timeout) {
            Some(Err(error)) => self.fatal(error),
            // A record that slipped in before the pause: the partition's own reader has it too.
            Some(Ok(_)) | None => None,
        }
        .or_else(|| self.left_out(Instant::now()));
        let mut events: Vec<GroupEvent> = {
            let mut tenures = lock(&self.consumer.context().tenures);
            if failure.is_some() {
                tenures.close_all(&|| self.restore());
            }
            tenures.fresh.drain(..).filter(|tenure| tenure.is_active()).map(GroupEvent::Assigned).collect()
        };
        events.extend(failure.map(GroupEvent::Failed));
        events
    }

    /// For when the client cannot be polled.
    fn restore(&self) {
        self.consumer.context().bearings.restore(self.consumer.client());
    }

    /// Why the client is given up, when it is no member for too long, although Kafka may well answer others.
    fn left_out(&self, now: Instant) -> Option<String> {
        let mut presence = lock(self.presence.as_ref()?);
        if now < presence.looked + LOOK_EVERY {
            return None;
        }
        presence.looked = now;
        presence.outside = if self.is_member() { 0 } else { presence.outside + 1 };
        (presence.outside >= LOOKS_OUTSIDE_MAX)
            .then(|| format!("Kafka has not let it into the group for {} s", (LOOK_EVERY * presence.outside).as_secs()))
    }

    fn is_member(&self) -> bool {
        fail::fail_point!("log::is_member", |_| false);
        // SAFETY: the client is alive; what it hands out is read and destroyed here, and NULL is handed out by clients without a
        // group alone.
        let epoch = unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(self.consumer.client().native_ptr());
            if metadata.is_null() {
                return false;
            }
            let epoch = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            epoch
        };
        // Kafka counts from 1; before a client has joined it is 0 or -1.
        epoch > 0
    }

    fn fatal(&self, error: KafkaError) -> Option<String> {
        let ended = matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::PollExceeded | RDKafkaErrorCode::FencedInstanceId)
        ) || self.consumer.client().fatal_error().is_some();
        if !ended {
            tracing::warn!(%error, "the group's client reports a problem and goes on");
        }
        ended.then(|| error.to_string())
    }

    /// Commits an offset for a partition under its tenure.
    pub fn commit(&self, tenure: &Tenure, commit: &Commit) -> Result<(), CommitError> {
        let active = lock(&tenure.active);
        // Between losing the membership and being told so, a commit would go out without one.
        if !*active || self.consumer.assignment_lost() {
            return Err(CommitError::Ended);
        }
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(&tenure.topic, tenure.partition as i32, Offset::Offset(commit.offset))
            .map_err(CommitError::Unknown)?;
        if let Some(mut element) = offsets.find_partition(&tenure.topic, tenure.partition as i32) {
            element.set_metadata(&commit.metadata);
        }
        self.consumer.commit(&offsets, CommitMode::Sync).map_err(CommitError::Unknown)?;
        // While a group is empty Kafka takes commits of any process, so that its yes alone proves nothing.
        if self.consumer.assignment_lost() { Err(CommitError::Ended) } else { Ok(()) }
    }

    /// What is committed for a partition.
    pub fn committed(&self, tenure: &Tenure) -> Result<Option<Commit>, KafkaError> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(&tenure.topic, tenure.partition as i32);
        let answer = self.consumer.committed_offsets(asked, ASK_MAX)?;
        let Some(element) = answer.find_partition(&tenure.topic, tenure.partition as i32) else { return Ok(None) };
        element.error()?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(Commit { offset, metadata: element.metadata().to_owned() }),
            _ => None,
        })
    }

    /// Ends all tenures and leaves the group, so that others take over at once.
    pub fn leave(&self) {
        lock(&self.consumer.context().tenures).close_all(&|| self.restore());
        self.consumer.unsubscribe();
    }
}

/// A poisoned lock only means that another thread panicked while it held it; what is behind it is a plain value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
