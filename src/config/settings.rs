//! The list of all settings: their names, what each may be, and what it is for.
//!
//! Everything that deals with settings by name (the file, the environment, `--set`, the shown configuration, the check
//! that the example file is complete) goes through this list, so a setting is added here and in its section's type.

use super::value::{
    Brokers, Folder, Hidden, Listen, OneOf, Optional, Path, Raw, Rule, Show, Text, Whole, Whole32, host_and_port,
};
use super::{Compression, Config, GroupProtocol, LogFormat, UnknownTypes, limits};

/// One setting.
pub struct Setting {
    /// `section.name`.
    pub key: &'static str,
    /// What it is for, in a line.
    pub help: &'static str,
    /// Whether its value must never be shown, not even in an error.
    pub secret: bool,
    /// What is allowed, to stand after "expected".
    pub expected: fn() -> String,
    /// Reads a value into the configuration; `Err` holds a hint.
    pub(super) read: fn(&mut Config, &Raw) -> Result<(), String>,
    /// The value as TOML.
    pub(super) show: fn(&Config) -> String,
}

impl Setting {
    /// Its variable in the environment.
    pub fn variable(&self) -> String {
        variable(self.key)
    }
}

/// The variable of a setting: `http.listen` is `MILLRACE_HTTP_LISTEN`.
pub fn variable(key: &str) -> String {
    format!("MILLRACE_{}", key.replace('.', "_").to_ascii_uppercase())
}

macro_rules! setting {
    ($section:ident.$name:ident, $rule:expr, $help:literal) => {
        setting!($section.$name, $rule, $help, secret: false)
    };
    ($section:ident.$name:ident, $rule:expr, $help:literal, secret: $secret:literal) => {
        Setting {
            key: concat!(stringify!($section), ".", stringify!($name)),
            help: $help,
            secret: $secret,
            expected: || $rule.expected(),
            read: |config, raw| {
                config.$section.$name = $rule.read(raw)?;
                Ok(())
            },
            show: |config| config.$section.$name.show(),
        }
    };
}

impl Show for GroupProtocol {
    fn show(&self) -> String {
        format!("{:?}", self.name())
    }
}
impl Show for Compression {
    fn show(&self) -> String {
        format!("{:?}", self.name())
    }
}
impl Show for LogFormat {
    fn show(&self) -> String {
        LOG_FORMATS
            .0
            .iter()
            .find(|(_, format)| format == self)
            .map_or_else(String::new, |(word, _)| format!("{word:?}"))
    }
}

impl Show for UnknownTypes {
    fn show(&self) -> String {
        UNKNOWN_TYPES
            .0
            .iter()
            .find(|(_, choice)| choice == self)
            .map_or_else(String::new, |(word, _)| format!("{word:?}"))
    }
}

const UNKNOWN_TYPES: OneOf<UnknownTypes> = OneOf(&[("reject", UnknownTypes::Reject), ("accept", UnknownTypes::Accept)]);
const GROUP_PROTOCOLS: OneOf<GroupProtocol> =
    OneOf(&[("consumer", GroupProtocol::Consumer), ("classic", GroupProtocol::Classic)]);
const COMPRESSIONS: OneOf<Compression> = OneOf(&[
    ("none", Compression::None),
    ("lz4", Compression::Lz4),
    ("snappy", Compression::Snappy),
    ("gzip", Compression::Gzip),
]);
const LOG_FORMATS: OneOf<LogFormat> =
    OneOf(&[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)]);

const TOPIC_PREFIX: Text =
    Text("1 to 200 of the characters a-z A-Z 0-9 . _ -, the first one a letter or digit", |text| {
        text.len() <= 200
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    });
const GROUP: Text = Text("a group's name of 1 to 255 visible ASCII characters", |text| {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
});
const URL: Text = Text("http://HOST:PORT, without user, password or query (https is not built in)", |text| {
    let Some(rest) = text.strip_prefix("http://") else { return false };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    host_and_port(authority) && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte))
});
const DATABASE: Text = Text("1 to 63 of the characters a-z A-Z 0-9 _, the first one no digit", |text| {
    (1..=63).contains(&text.len())
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
});
const VERSION: Text = Text("a version of the API such as v1", |text| {
    text.strip_prefix('v')
        .is_some_and(|digits| (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()))
});
const USER: Text = Text("a user's name", |text| !text.is_empty() && !text.contains(char::is_control));
const LEVEL: Text = Text(
    "one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", \"off\", or levels by module such as \"info,millrace::writer=debug\"",
    |text| {
        // A lone word that is no level would be taken for a module's name, and nothing else would be logged.
        let level = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word);
        !text.is_empty()
            && text.split(',').all(|part| part.contains('=') || level(part.trim()))
            && tracing_subscriber::EnvFilter::builder().parse(text).is_ok()
    },
);

/// All settings but the free table `kafka.options`, by section.
pub const SETTINGS: &[Setting] = &[
    setting!(http.listen, Listen, "where to listen for HTTP"),
    setting!(http.workers, Whole32(limits::WORKERS, ""), "threads that serve HTTP; 0 for one per core"),
    setting!(http.body_bytes_max, Whole(limits::BODY_BYTES, "bytes"), "largest body of one request"),
    setting!(
        http.decoded_bytes_max,
        Whole(limits::DECODED_BYTES, "bytes"),
        "largest body of one request once gzip or zstd is undone"
    ),
    setting!(
        http.body_bytes_in_flight_max,
        Whole(limits::BODY_BYTES_IN_FLIGHT, "bytes"),
        "largest sum of bodies being read, decoded or parsed at once"
    ),
    setting!(http.connections_max, Whole32(limits::CONNECTIONS, ""), "most connections open at once"),
    setting!(
        http.ack_ms_max,
        Whole(limits::ACK_MS, "ms"),
        "how long a request waits for Kafka before it is answered 503"
    ),
    setting!(http.event_bytes_max, Whole(limits::EVENT_BYTES, "bytes"), "largest single event"),
    setting!(http.latest_version, VERSION, "the version that /latest/ stands for"),
    setting!(http.shutdown_ms_max, Whole(limits::SHUTDOWN_MS, "ms"), "longest that an orderly end may take"),
    setting!(kafka.brokers, Brokers, "Kafka's bootstrap servers"),
    setting!(kafka.topic_prefix, TOPIC_PREFIX, "a kind's topic is PREFIX.KIND"),
    setting!(
        kafka.group,
        Optional(GROUP),
        "the consumer group of a kind's writers is GROUP.KIND; PREFIX-writer by default"
    ),
    setting!(kafka.partitions, Whole32(limits::PARTITIONS, ""), "partitions of a topic that has to be created"),
    setting!(kafka.replication, Whole32(limits::REPLICATION, ""), "replicas of a topic that has to be created"),
    setting!(kafka.group_protocol, GROUP_PROTOCOLS, "how writers share partitions; \"consumer\" needs Kafka 4"),
    setting!(kafka.linger_ms, Whole(limits::LINGER_MS, "ms"), "how long an event waits for others to share its record"),
    setting!(kafka.batch_events_max, Whole32(limits::BATCH_EVENTS, ""), "most events in one record"),
    setting!(kafka.compression, COMPRESSIONS, "how records are compressed"),
    setting!(
        kafka.delivery_ms_max,
        Whole(limits::DELIVERY_MS, "ms"),
        "how long Kafka may take to acknowledge a record"
    ),
    setting!(clickhouse.url, URL, "ClickHouse's HTTP interface"),
    setting!(clickhouse.database, DATABASE, "database of all tables"),
    setting!(clickhouse.user, USER, "user to be in ClickHouse"),
    setting!(clickhouse.password, Hidden, "that user's password", secret: true),
    setting!(clickhouse.password_file, Optional(Path), "file that holds the password"),
    setting!(clickhouse.insert_ms_max, Whole(limits::INSERT_MS, "ms"), "how long one insert may take"),
    setting!(clickhouse.report_ms_max, Whole(limits::REPORT_MS, "ms"), "how long one query of a report may take"),
    setting!(
        clickhouse.report_rows_kept_max,
        Whole32(limits::REPORT_ROWS_KEPT, "rows"),
        "rows of a report that is kept in memory for a moment"
    ),
    setting!(writer.range_events_max, Whole32(limits::RANGE_EVENTS, ""), "most events stored by one insert"),
    setting!(writer.range_age_ms, Whole(limits::RANGE_AGE_MS, "ms"), "how long events are gathered for one insert"),
    setting!(
        writer.claim_age_ms_max,
        Whole(limits::CLAIM_AGE_MS, "ms"),
        "a claim this old is given up rather than inserted"
    ),
    setting!(
        writer.session_ms,
        Whole(limits::SESSION_MS, "ms"),
        "silence after which others take over (group_protocol \"classic\"; else the brokers decide)"
    ),
    setting!(writer.poll_ms_max, Whole(limits::POLL_MS, "ms"), "how long a writer may go without polling Kafka"),
    setting!(writer.backoff_ms_min, Whole(limits::BACKOFF_MS_MIN, "ms"), "first wait after a failure"),
    setting!(writer.backoff_ms_max, Whole(limits::BACKOFF_MS_MAX, "ms"), "longest wait between two tries"),
    setting!(
        writer.cache_dir,
        Optional(Folder),
        "folder that keeps the stored keys over a restart; \"\" for keeping them in memory alone"
    ),
    setting!(spool.dir, Optional(Folder), "folder that takes events while Kafka is away; \"\" for answering 503 then"),
    setting!(spool.bytes_max, Whole(limits::SPOOL_BYTES, "bytes"), "most that may lie in the spool"),
    setting!(interaction.schemas, Optional(Folder), "folder of CATEGORY.NAME.json; \"\" for the built-in types"),
    setting!(interaction.unknown_types, UNKNOWN_TYPES, "what becomes of an event whose type has no schema"),
    setting!(
        interaction.future_ms_max,
        Whole(limits::FUTURE_MS, "ms"),
        "how far in the future an interaction's time may lie"
    ),
    setting!(log.format, LOG_FORMATS, "how log lines are written"),
    setting!(log.level, LEVEL, "what is logged"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &str, text: &str) -> Result<String, String> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
        let mut config = Config::default();
        (setting.read)(&mut config, &Raw::Text(text.into()))?;
        Ok((setting.show)(&config))
    }

    #[test]
    fn every_default_is_allowed() {
        for setting in SETTINGS.iter().filter(|setting| !setting.secret) {
            let shown = (setting.show)(&Config::default());
            let text = shown.trim_matches('"');
            assert_eq!(read(setting.key, text).as_deref(), Ok(shown.as_str()), "{}", setting.key);
        }
    }

    #[test]
    fn text_rules() {
        for (key, good, bad) in [
            ("kafka.topic_prefix", &["a", "a.b-c_9"][..], &["", ".a", "a b", "a/b", "ä"][..]),
            (
                "clickhouse.url",
                &["http://h:1", "http://h:1/", "http://[::1]:1/a/b"],
                &["h:1", "https://h:1", "http://h", "http://u:p@h:1", "http://h:1/?a=b"],
            ),
            ("clickhouse.database", &["a", "_a9"], &["", "9a", "a-b", "a`b", "a.b"]),
            ("log.level", &["debug", "info,a::b=trace"], &["", "loud", "info,loud", "a=loud"]),
            ("kafka.group", &["", "g"], &["a b"]),
        ] {
            for text in good {
                assert!(read(key, text).is_ok(), "{key} {text}");
            }
            for text in bad {
                assert!(read(key, text).is_err(), "{key} {text}");
            }
        }
    }
}
