//! What stops a partition until an operator has looked at it: going on would lose events or count some twice.
//!
//! Every message says what was found, where, and what can be done. Accepting goes on meanwhile: the log keeps what
//! comes in.

use std::sync::Arc;

use super::claim::Range;

/// A partition of the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "partition {} of topic {}", self.partition, self.topic)
    }
}

/// Why a partition stands still.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {why}")]
pub struct Halt {
    /// Where.
    pub place: Place,
    /// What was found, and what can be done.
    pub why: Why,
}

/// The reasons for a [`Halt`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// ClickHouse holds less than was committed as stored.
    #[error(
        "clickhouse has stored the log up to offset {stored} (excluded), but offset {committed} was committed after \
         everything before it had been stored: clickhouse has lost its newest rows (a power cut, an older backup) or the \
         program is connected to another database; check the connection, then bring the newer data back, or stop all \
         writers and let `millrace repair` read what is missing from the log"
    )]
    StoreBehind {
        /// One past the last offset that is stored.
        stored: i64,
        /// The committed offset.
        committed: i64,
    },
    /// ClickHouse holds fewer events than it has recorded as stored.
    #[error(
        "clickhouse holds {stored} of the {recorded} events that were stored of the offsets before {next}: it has lost \
         rows (a power cut, an older backup); bring them back, or stop all writers and let `millrace repair` read what is \
         missing from the log"
    )]
    EventsLost {
        /// One past the last offset that the ledger covers.
        next: i64,
        /// How many events were new, by the ledger.
        recorded: u64,
        /// How many there are.
        stored: u64,
    },
    /// ClickHouse remembers an insert whose rows it does not have.
    #[error(
        "clickhouse takes the insert of the {what} of offsets {range} again and again for one that it has stored already, and does not have \
         them: it has lost rows (a power cut, an older backup); bring them back, or stop all writers and let \
         `millrace repair` read what is missing from the log"
    )]
    InsertLost {
        /// Events or counters.
        what: &'static str,
        /// Of which range.
        range: Range,
    },
    /// The group's commit belongs to a generation of the log that ClickHouse does not know.
    #[error(
        "the group's commit is of generation {committed} of the log, but the newest that clickhouse knows is \
         {recorded}: clickhouse came back from a backup made before the new generation was opened, or the program is \
         connected to another database; check the connection, bring the newer data back, or open a later generation \
         with `millrace migrate --new-generation`"
    )]
    GenerationBehind {
        /// The generation that ClickHouse knows.
        recorded: u32,
        /// The generation in the commit.
        committed: u32,
    },
    /// The log ends before what was stored or claimed from it.
    #[error(
        "the log ends at offset {log_high} (excluded), but it was read up to {read} (excluded): it lost its tail, or the \
         topic was deleted and created again; bring the log back, or open a new generation of it \
         with `millrace migrate --new-generation`"
    )]
    LogTruncated {
        /// One past the log's last offset.
        log_high: i64,
        /// One past the last offset that is known to have been read.
        read: i64,
    },
    /// The log begins after what is still to be read from it.
    #[error(
        "the log begins at offset {log_low}, but offset {next} is the next to be stored: retention has removed \
         {} offsets that were never stored; bring them back, or accept the loss and go on \
         at {log_low} with `millrace migrate --new-generation`; then raise the topic's retention", .log_low - .next
    )]
    LogLost {
        /// The log's first offset.
        log_low: i64,
        /// The first offset that is not stored.
        next: i64,
    },
    /// The group's commit was not made by a writer of this version.
    #[error(
        "the group's commit at offset {offset} was not made by this program or by a later version of it (its \
         metadata is {metadata}): another program uses the same group, or a tool has moved its offsets; give \
         this installation a group of its own, or delete the group's offsets for the topic with \
         `kafka-consumer-groups.sh --delete-offsets` (reading goes on after what clickhouse has stored)"
    )]
    ForeignCommit {
        /// The committed offset.
        offset: i64,
        /// The commit's metadata, quoted and cut.
        metadata: String,
    },
    /// A later version of the program wrote the next record.
    #[error(
        "the record at offset {offset} was written by a later version of the program: {reason}; upgrade this writer (its \
         events were acknowledged and are not passed over, what comes in is kept by the log meanwhile)"
    )]
    RecordNewer {
        /// Where it lies.
        offset: i64,
        /// What was found and what is known.
        reason: String,
    },
    /// What the group and the store say contradicts itself.
    #[error(
        "the stored state contradicts itself: {0}; compare with `millrace verify`, make sure that no other \
         installation writes into this database, then bring it back from a backup, or stop all writers and let \
         `millrace repair` put it right out of the log"
    )]
    Inconsistent(String),
    /// ClickHouse refuses an insert, and will do so again.
    #[error(
        "clickhouse refuses the insert of offsets {range}: {reason}; mend the cause and start the writer again (the range \
         stays claimed and nothing of it is lost)"
    )]
    StoreRefuses {
        /// The range whose insert was refused.
        range: Range,
        /// What ClickHouse said.
        reason: String,
    },
}

/// Metadata of a foreign commit for a message: quoted, without control characters, at most 100 characters.
pub(super) fn quote_metadata(metadata: &str) -> String {
    const CHARS_MAX: usize = 100;
    if metadata.is_empty() {
        return "empty".to_owned();
    }
    let cut: String = metadata.chars().take(CHARS_MAX).collect();
    let more = if cut.len() < metadata.len() { ", cut" } else { "" };
    format!("{cut:?}{more}")
}
