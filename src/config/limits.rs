//! Every bound of the configuration in one place: what each setting may be, and how the settings bound each other.
//!
//! A range alone does not make a configuration sound: an answer must wait longer than Kafka may take to deliver, a
//! claim must be given up before the store forgets what it has already taken. Such relations are checked by
//! [`violations`] on what was configured, and asserted at compile time on the defaults' own building blocks.

use std::ops::RangeInclusive;

use super::Config;

/// 1024 bytes.
pub const KIB: u64 = 1024;
/// 1024 KiB.
pub const MIB: u64 = 1024 * KIB;
/// 1024 MiB.
pub const GIB: u64 = 1024 * MIB;

/// Threads that run coroutines; 0 stands for one per core.
pub const WORKERS: RangeInclusive<u64> = 0..=256;
/// One request's body. 1 GiB is what fits a bounded memory; larger files are sent in several requests.
pub const BODY_BYTES: RangeInclusive<u64> = KIB..=GIB;
/// One request's body once its content coding is undone.
pub const DECODED_BYTES: RangeInclusive<u64> = KIB..=4 * GIB;
/// What decoding holds besides the body as sent and as decoded: zstd's window of 8 MiB, its tables and buffers.
pub const DECODER_BYTES: u64 = 9 * MIB;
/// All bodies being read, decoded or parsed at once.
pub const BODY_BYTES_IN_FLIGHT: RangeInclusive<u64> = MIB..=64 * GIB;
/// Connections open at once; each takes two descriptors (the server's, and the guard's duplicate).
pub const CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;
/// Descriptors that the program needs beside its connections: files, Kafka, ClickHouse, runtimes.
pub const DESCRIPTORS_BESIDE_CONNECTIONS: u64 = 256;
/// How long a request waits for Kafka before it is answered 503.
pub const ACK_MS: RangeInclusive<u64> = 500..=60_000;
/// One event in any form.
pub const EVENT_BYTES: RangeInclusive<u64> = 256..=16 * MIB;
/// How long an orderly end may take. systemd's own patience is 90 s.
pub const SHUTDOWN_MS: RangeInclusive<u64> = 1_000..=60_000;

/// Partitions of a topic that is created. Each range of each partition is an insert of its own, so more cost more.
pub const PARTITIONS: RangeInclusive<u64> = 1..=1_024;
/// Copies of a topic that is created.
pub const REPLICATION: RangeInclusive<u64> = 1..=9;
/// A lone event waits at most 5 ms for company: this is the promise of the accepting side.
pub const LINGER_MS: RangeInclusive<u64> = 0..=5;
/// A record of many events, in bytes: below the brokers' default `message.max.bytes` of 1,048,588 with room for headers.
/// A record of one event may be larger: see [`message_bytes_max`].
pub const RECORD_BYTES_MAX: u64 = 1_000_000;
/// What frames the columns of a record: the schema, the batch's header (both below 200 bytes for each column) and the
/// padding of its buffers (three for each column, 64 bytes at most): 16 KiB frame 40 columns.
pub const RECORD_FRAMING_BYTES: u64 = 16 * KIB;
/// The columns of a record of many events.
pub const RECORD_COLUMNS_BYTES_MAX: u64 = RECORD_BYTES_MAX - RECORD_FRAMING_BYTES;
/// What the columns of one event may take beyond its text: identities, instants and offsets, of which a number, true or
/// null can be longer in a column than in JSON. 1 KiB is 64 columns of 16 bytes.
pub const EVENT_COLUMNS_BYTES: u64 = KIB;
/// What Kafka puts around a record: the batch's header of 61 bytes, lengths, and our two headers.
pub const MESSAGE_FRAMING_BYTES: u64 = KIB;
/// The brokers' own default of `message.max.bytes`: no topic is given less.
pub const MESSAGE_BYTES_MIN: u64 = 1_048_588;
/// A captcha event in a record: time 8, type 1, two UUIDs 32, accepted_at 8, rounded up for the columns' validity and padding.
pub const EVENT_RECORD_BYTES: u64 = 50;
/// Events of one record: 1,000,000 bytes hold 20,000 events of 50 bytes.
pub const BATCH_EVENTS: RangeInclusive<u64> = 1..=RECORD_BYTES_MAX / EVENT_RECORD_BYTES;
/// How long Kafka may take to acknowledge a record before it counts as failed.
pub const DELIVERY_MS: RangeInclusive<u64> = 500..=55_000;
/// Between a delivery that failed and the answer that says so lie the delivery report, the wake-up and the writing.
pub const ACK_MARGIN_MS: u64 = 500;

/// The spool's segments, of all kinds: from a few segments of 16 MiB on.
pub const SPOOL_BYTES: RangeInclusive<u64> = 64 * MIB..=16 * 1024 * GIB;

/// One insert, from its first byte to the server's answer.
pub const INSERT_MS: RangeInclusive<u64> = 1_000..=300_000;
/// One query of a report.
pub const REPORT_MS: RangeInclusive<u64> = 100..=300_000;
/// Rows of a whole report, 36 bytes each: 36 MB.
pub const REPORT_ROWS_KEPT: RangeInclusive<u64> = 0..=1_000_000;

/// Events of one range. One insert of at most 1,048,449 rows (ClickHouse's `max_insert_block_size`) makes one part,
/// which is what makes it atomic; 1,000,000 stays below it.
pub const RANGE_EVENTS: RangeInclusive<u64> = 1_000..=1_000_000;
/// New events of one range, in bytes: 128 MiB, and one record more. It is held as columns and as the encoded insert at
/// once, in each partition; a million captcha events are 61 MB, so that only long events meet this bound.
pub const RANGE_BYTES_MAX: u64 = 128 * MIB;
/// How long a range may stay open.
pub const RANGE_AGE_MS: RangeInclusive<u64> = 10..=60_000;
/// After how long a claim is given up rather than inserted (see [`DEDUPLICATION_WINDOW`]).
pub const CLAIM_AGE_MS: RangeInclusive<u64> = 2_000..=600_000;
/// Brokers take session timeouts of 6 s and more (`group.min.session.timeout.ms`).
pub const SESSION_MS: RangeInclusive<u64> = 6_000..=300_000;
/// How long a writer may go without polling before the group takes its partitions away.
pub const POLL_MS: RangeInclusive<u64> = 10_000..=3_600_000;
/// The first wait after a failure.
pub const BACKOFF_MS_MIN: RangeInclusive<u64> = 10..=10_000;
/// The longest wait between two tries.
pub const BACKOFF_MS_MAX: RangeInclusive<u64> = 100..=60_000;

/// How far in the future an interaction may lie: from not at all to a year.
pub const FUTURE_MS: RangeInclusive<u64> = 0..=366 * 24 * 60 * 60 * 1000;

/// How many inserts each table remembers (`non_replicated_deduplication_window` in `sql/`): an insert that is repeated
/// while it is among the last so many is dropped, a later one would count twice. Measured with 26.7: a full window of
/// 100,000 costs 8 MB of disk, less memory than could be told from noise, 0.3 s when the table is loaded, and nothing
/// for each insert (1.4 ms with windows of 1,000, 10,000 and 100,000 alike).
pub const DEDUPLICATION_WINDOW: u64 = 100_000;
/// A claim is given up when at most half of the window can have passed since it was made.
pub const DEDUPLICATION_WINDOW_USED: u64 = DEDUPLICATION_WINDOW / 2;
/// More events a second than one ClickHouse takes (up to 7.5 million were measured): ranges closed by size come no faster.
pub const EVENTS_PER_S_MAX: u64 = 8_000_000;

const _: () = assert!(*BODY_BYTES.start() >= *EVENT_BYTES.start());
const _: () = assert!(*DECODED_BYTES.end() >= *BODY_BYTES.end());
const _: () = assert!(*BODY_BYTES_IN_FLIGHT.end() >= *BODY_BYTES.end() + *DECODED_BYTES.end() + DECODER_BYTES);
const _: () = assert!(*ACK_MS.end() >= *DELIVERY_MS.end() + *LINGER_MS.end() + ACK_MARGIN_MS);
const _: () = assert!(*SHUTDOWN_MS.end() >= *DELIVERY_MS.end() + *LINGER_MS.end() + ACK_MARGIN_MS);
const _: () = assert!(*RANGE_EVENTS.end() < 1_048_449);
const _: () = assert!(*RANGE_EVENTS.end() >= *BATCH_EVENTS.end());
const _: () = assert!(*BATCH_EVENTS.end() * EVENT_RECORD_BYTES <= RECORD_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX + MESSAGE_FRAMING_BYTES <= MESSAGE_BYTES_MIN);
// librdkafka fetches 50 MiB at once by default, and a reader holds 32 MiB ahead: the largest record fits into both.
const _: () = assert!(message_bytes_max(*EVENT_BYTES.end()) < 32 * MIB);
const _: () = assert!(*POLL_MS.end() > *CLAIM_AGE_MS.end());
const _: () = assert!(*CLAIM_AGE_MS.end() > *INSERT_MS.end());

/// The largest record batch that Kafka must take, in bytes, as `max.message.bytes` of a topic counts it: many events in a
/// record, or one alone of `http.event_bytes_max` with all that frames it. 1 MiB makes 1,067,008.
pub const fn message_bytes_max(event_bytes_max: u64) -> u64 {
    let lone = event_bytes_max + EVENT_COLUMNS_BYTES + RECORD_FRAMING_BYTES + MESSAGE_FRAMING_BYTES;
    if lone > MESSAGE_BYTES_MIN { lone } else { MESSAGE_BYTES_MIN }
}

/// Two settings (or a setting and what follows from others) that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The settings involved; the first is the one to change, as far as one can tell.
    pub keys: Vec<&'static str>,
    /// What must hold, and why.
    pub rule: String,
}

/// How many inserts each table may see in `ms` milliseconds: every partition closes a range by age, and what is closed
/// by size cannot come faster than events do.
pub fn inserts_within(config: &Config, ms: u64) -> u64 {
    let by_age = u64::from(config.kafka.partitions) * ms.div_ceil(config.writer.range_age_ms.max(1));
    let by_size = (EVENTS_PER_S_MAX * ms / 1000) / u64::from(config.writer.range_events_max.max(1));
    by_age + by_size
}

/// All relations between settings that do not hold.
pub fn violations(config: &Config) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut require = |holds: bool, keys: &[&'static str], rule: String| {
        if !holds {
            found.push(Violation { keys: keys.to_vec(), rule });
        }
    };
    let Config { http, kafka, clickhouse, writer, .. } = config;
    require(
        http.event_bytes_max <= http.body_bytes_max,
        &["http.event_bytes_max", "http.body_bytes_max"],
        "one event must fit into a body".into(),
    );
    require(
        http.decoded_bytes_max >= http.body_bytes_max,
        &["http.decoded_bytes_max", "http.body_bytes_max"],
        "what may be sent as it is may be sent compressed".into(),
    );
    let held = http.body_bytes_max + http.decoded_bytes_max + DECODER_BYTES;
    require(
        http.body_bytes_in_flight_max >= held,
        &["http.body_bytes_in_flight_max", "http.body_bytes_max", "http.decoded_bytes_max"],
        format!(
            "the bytes in flight must hold at least one body of the largest size, as sent and as decoded, and {} MiB for the decoder, {held} or more",
            DECODER_BYTES / MIB
        ),
    );
    let delivered_ms = kafka.delivery_ms_max + kafka.linger_ms + ACK_MARGIN_MS;
    require(
        http.ack_ms_max >= delivered_ms,
        &["http.ack_ms_max", "kafka.delivery_ms_max", "kafka.linger_ms"],
        format!(
            "a request must wait until Kafka has said yes or no: delivery, linger and {ACK_MARGIN_MS} ms of margin, {delivered_ms} ms or more"
        ),
    );
    require(
        http.shutdown_ms_max >= delivered_ms,
        &["http.shutdown_ms_max", "kafka.delivery_ms_max", "kafka.linger_ms"],
        format!(
            "an orderly end must outlast what is in flight to Kafka: delivery, linger and {ACK_MARGIN_MS} ms of margin, {delivered_ms} ms or more"
        ),
    );
    require(
        u64::from(writer.range_events_max) >= u64::from(kafka.batch_events_max),
        &["writer.range_events_max", "kafka.batch_events_max"],
        "a range holds whole records, so it must hold at least one of the largest size".into(),
    );
    require(
        writer.claim_age_ms_max > clickhouse.insert_ms_max,
        &["writer.claim_age_ms_max", "clickhouse.insert_ms_max"],
        "a claim must live longer than one insert may take".into(),
    );
    require(
        writer.poll_ms_max > writer.claim_age_ms_max,
        &["writer.poll_ms_max", "writer.claim_age_ms_max"],
        "a writer must not lose its partitions while its claim is still good".into(),
    );
    require(
        writer.backoff_ms_max >= writer.backoff_ms_min,
        &["writer.backoff_ms_max", "writer.backoff_ms_min"],
        "the longest wait is at least the first".into(),
    );
    let inserts = inserts_within(config, writer.claim_age_ms_max);
    require(
        inserts <= DEDUPLICATION_WINDOW_USED,
        &["writer.range_age_ms", "writer.claim_age_ms_max", "kafka.partitions", "writer.range_events_max"],
        format!(
            "within the age of a claim there may be {DEDUPLICATION_WINDOW_USED} inserts at most (half of what ClickHouse remembers to drop repetitions), and these settings allow {inserts}: raise the range's age, or lower the claim's"
        ),
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        assert_eq!(violations(&Config::default()), []);
    }

    #[test]
    fn a_topic_takes_the_largest_event() {
        assert_eq!(message_bytes_max(Config::default().http.event_bytes_max), 1_067_008);
        assert_eq!(message_bytes_max(256), MESSAGE_BYTES_MIN);
        assert_eq!(message_bytes_max(16 * MIB), 16 * MIB + 18 * KIB);
    }

    #[test]
    fn each_relation_is_seen() {
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 10] = [
            (|c| c.http.event_bytes_max = c.http.body_bytes_max + 1, "http.event_bytes_max"),
            (|c| c.http.decoded_bytes_max = c.http.body_bytes_max - 1, "http.decoded_bytes_max"),
            (
                |c| c.http.body_bytes_in_flight_max = c.http.body_bytes_max + c.http.decoded_bytes_max,
                "http.body_bytes_in_flight_max",
            ),
            (|c| c.http.ack_ms_max = 8_500, "http.ack_ms_max"),
            (|c| c.http.shutdown_ms_max = 8_000, "http.shutdown_ms_max"),
            (|c| c.writer.range_events_max = 16_000, "writer.range_events_max"),
            (|c| c.clickhouse.insert_ms_max = 60_000, "writer.claim_age_ms_max"),
            (|c| c.writer.poll_ms_max = 60_000, "writer.poll_ms_max"),
            (|c| c.writer.backoff_ms_max = 100 - 1, "writer.backoff_ms_max"),
            (|c| (c.writer.range_age_ms, c.kafka.partitions) = (10, 16), "writer.range_age_ms"),
        ];
        for (change, key) in cases {
            let mut config = Config::default();
            change(&mut config);
            let found = violations(&config);
            assert!(found.iter().any(|violation| violation.keys[0] == key), "{key}: {found:?}");
        }
    }
}
