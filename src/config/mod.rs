//! The typed configuration: what can be set, its defaults, and how a file, the environment and flags come together.
//!
//! Every setting is `section.name`. It is read from a TOML file (`[section]`, `name = ...`), then from the environment
//! (`MILLRACE_SECTION_NAME`), then from flags; a later source overrides an earlier one. A name that is not known is
//! refused wherever it stands. What comes out of [`load`] is valid: each value in its range and all relations of
//! [`limits`] held. Units stand last in a setting's name (`_ms`, `_bytes`), values are plain numbers.

pub mod kafka_options;
pub mod limits;
mod secret;
mod settings;
mod show;
mod source;
pub mod value;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

pub use kafka_options::KafkaOptions;
pub use secret::Secret;
pub use settings::{SETTINGS, Setting};
pub use show::show;
pub use source::{ConfigError, Loaded, Origin, Problem, Sources, load};

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// The accepting and reporting side.
    pub http: Http,
    /// The log.
    pub kafka: Kafka,
    /// The store.
    pub clickhouse: ClickHouse,
    /// What moves events from the log to the store.
    pub writer: Writer,
    /// What takes events while the log is away.
    pub spool: Spool,
    /// Events of the kind `interaction`.
    pub interaction: Interaction,
    /// What the program says.
    pub log: Log,
}

/// Settings of the HTTP door.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Threads that run coroutines; 0 for one per core.
    pub workers: u32,
    /// The largest body of one request.
    pub body_bytes_max: u64,
    /// The largest body of one request once its content coding is undone.
    pub decoded_bytes_max: u64,
    /// The largest sum of bodies being read, decoded or parsed at once.
    pub body_bytes_in_flight_max: u64,
    /// The most connections open at once.
    pub connections_max: u32,
    /// How long a request waits for Kafka to acknowledge before it is answered 503.
    pub ack_ms_max: u64,
    /// The largest single event.
    pub event_bytes_max: u64,
    /// The version of the API that `/latest/` stands for.
    pub latest_version: String,
    /// The longest an orderly end may take.
    pub shutdown_ms_max: u64,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            workers: 0,
            body_bytes_max: 32 * limits::MIB,
            decoded_bytes_max: 256 * limits::MIB,
            body_bytes_in_flight_max: 512 * limits::MIB,
            connections_max: 4_096,
            ack_ms_max: 10_000,
            event_bytes_max: limits::MIB,
            latest_version: "v1".into(),
            shutdown_ms_max: 9_000,
        }
    }
}

/// Settings of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Kafka {
    /// Bootstrap servers, `HOST:PORT` separated by commas.
    pub brokers: String,
    /// The topic of a kind is `PREFIX.KIND`.
    pub topic_prefix: String,
    /// What the writers' consumer groups, `GROUP.KIND`, begin with; `None` for [`Kafka::group`]'s default.
    pub group: Option<String>,
    /// Partitions of a topic that has to be created.
    pub partitions: u32,
    /// Replicas of a topic that has to be created.
    pub replication: u32,
    /// How writers share the partitions.
    pub group_protocol: GroupProtocol,
    /// How long an event may wait for others to share its record.
    pub linger_ms: u64,
    /// The most events in one record.
    pub batch_events_max: u32,
    /// How records are compressed.
    pub compression: Compression,
    /// How long Kafka may take to acknowledge a record.
    pub delivery_ms_max: u64,
    /// Passed through to librdkafka.
    pub options: KafkaOptions,
}

impl Default for Kafka {
    fn default() -> Kafka {
        Kafka {
            brokers: "127.0.0.1:9092".into(),
            topic_prefix: "millrace".into(),
            group: None,
            partitions: 4,
            replication: 1,
            group_protocol: GroupProtocol::Consumer,
            linger_ms: 2,
            batch_events_max: 16_384,
            compression: Compression::None,
            delivery_ms_max: 8_000,
            options: KafkaOptions::default(),
        }
    }
}

impl Kafka {
    /// What the writers' consumer groups begin with: as configured, else `PREFIX-writer`.
    pub fn group(&self) -> String {
        self.group.clone().unwrap_or_else(|| format!("{}-writer", self.topic_prefix))
    }

    /// The topic of a kind.
    pub fn topic(&self, kind: &str) -> String {
        format!("{}.{kind}", self.topic_prefix)
    }
}

/// The protocol by which consumers share partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupProtocol {
    /// KIP-848, Kafka 4.0 and later: joins in 0.2 s.
    Consumer,
    /// The older one: joins in 3 s.
    Classic,
}

impl GroupProtocol {
    /// As librdkafka calls it.
    pub fn name(self) -> &'static str {
        match self {
            GroupProtocol::Consumer => "consumer",
            GroupProtocol::Classic => "classic",
        }
    }
}

/// How records of the log are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Fast.
    Lz4,
    /// Fast.
    Snappy,
    /// Slow and small.
    Gzip,
}

impl Compression {
    /// As librdkafka calls it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Snappy => "snappy",
            Compression::Gzip => "gzip",
        }
    }
}

/// Settings of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct ClickHouse {
    /// The server's HTTP interface.
    pub url: String,
    /// The database of all tables.
    pub database: String,
    /// Who to be.
    pub user: String,
    /// That user's password: as configured, or read from `password_file`.
    pub password: Secret,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// How long one insert may take.
    pub insert_ms_max: u64,
    /// How long one query of a report may take.
    pub report_ms_max: u64,
    /// A report of at most so many rows is kept in memory for a moment.
    pub report_rows_kept_max: u32,
}

impl Default for ClickHouse {
    fn default() -> ClickHouse {
        ClickHouse {
            url: "http://127.0.0.1:8123".into(),
            database: "millrace".into(),
            user: "default".into(),
            password: Secret::default(),
            password_file: None,
            insert_ms_max: 30_000,
            report_ms_max: 10_000,
            report_rows_kept_max: 100_000,
        }
    }
}

/// Settings of the writer.
#[derive(Debug, Clone, PartialEq)]
pub struct Writer {
    /// A range closes when it would hold more events than this.
    pub range_events_max: u32,
    /// A range closes when it has been open for so long.
    pub range_age_ms: u64,
    /// A claim this old is given up rather than inserted.
    pub claim_age_ms_max: u64,
    /// After so much silence the group gives a writer's partitions to others (classic protocol only).
    pub session_ms: u64,
    /// How long a writer may go without polling.
    pub poll_ms_max: u64,
    /// The first wait after a failure; it doubles up to `backoff_ms_max`.
    pub backoff_ms_min: u64,
    /// The longest wait between two tries.
    pub backoff_ms_max: u64,
    /// The folder of the caches of stored keys; `None` for keeping all keys in memory.
    pub cache_dir: Option<PathBuf>,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer {
            range_events_max: 500_000,
            range_age_ms: 200,
            claim_age_ms_max: 60_000,
            session_ms: 10_000,
            poll_ms_max: 300_000,
            backoff_ms_min: 100,
            backoff_ms_max: 5_000,
            cache_dir: None,
        }
    }
}

/// Settings of the spool, which takes events while Kafka is away.
#[derive(Debug, Clone, PartialEq)]
pub struct Spool {
    /// Its folder; `None` for no spool.
    pub dir: Option<PathBuf>,
    /// The most that may lie in it.
    pub bytes_max: u64,
}

impl Default for Spool {
    fn default() -> Spool {
        Spool { dir: None, bytes_max: 4 * limits::GIB }
    }
}

/// Settings of the kind `interaction`.
#[derive(Debug, Clone, PartialEq)]
pub struct Interaction {
    /// The folder of the types' JSON Schemas; `None` for those that are built in.
    pub schemas: Option<PathBuf>,
    /// What becomes of an event whose type has no schema.
    pub unknown_types: UnknownTypes,
    /// How far in the future an event's time may lie.
    pub future_ms_max: u64,
}

impl Default for Interaction {
    fn default() -> Interaction {
        Interaction { schemas: None, unknown_types: UnknownTypes::Reject, future_ms_max: 300_000 }
    }
}

/// What becomes of an event whose type has no schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownTypes {
    /// It is rejected.
    Reject,
    /// It is taken, its data unchecked.
    Accept,
}

/// Settings of the program's own log.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// How lines are written.
    pub format: LogFormat,
    /// What is written: a level, or levels by module (`info,millrace::writer=debug`).
    pub level: String,
}

impl Default for Log {
    fn default() -> Log {
        Log { format: LogFormat::Auto, level: "info".into() }
    }
}

/// How lines of the log are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The name among `known` that is nearest to `name`.
///
/// A whole name is compared with whole names; of dotted ones the last parts count too, so that a right name in a wrong
/// section is found.
pub fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |other: &str| {
        let whole = strsim::normalized_damerau_levenshtein(name, other);
        whole.max(0.9 * strsim::normalized_damerau_levenshtein(&last(name), &last(other)))
    };
    known.into_iter().map(|other| (likeness(other), other)).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}
