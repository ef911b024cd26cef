//! Ranges of offsets, the claim on a range as it lies in Kafka, and the tokens under which a range is inserted.
//!
//! A range is claimed by committing its first offset with its last one in the commit's metadata, before anything of it is
//! inserted. Whoever takes the partition over finds the claim, rebuilds exactly that range and inserts it under the
//! same tokens, which ClickHouse drops where they had arrived.

use serde::{Deserialize, Serialize};

/// Offsets of one partition, both ends included. Not every offset in it needs to hold a record: transaction markers
/// and compaction leave holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first offset.
    pub first: i64,
    /// The last offset, never below `first`.
    pub last: i64,
}

impl Range {
    /// The offset after the range.
    pub fn next(self) -> i64 {
        self.last + 1
    }

    /// How many offsets it spans.
    pub fn offsets(self) -> i64 {
        self.last - self.first + 1
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}

/// What a writer commits to Kafka for a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The generation of the log that the offsets belong to.
    pub generation: u32,
    /// The committed offset: everything before it is stored and counted.
    pub next: i64,
    /// Where the claimed range ends that begins at `next`; `None` when nothing is claimed.
    pub pending_last: Option<i64>,
}

/// The metadata of a commit: JSON of at most 80 bytes (Kafka takes 4096). Unknown fields are ignored, so that a later
/// version can add some; a change of meaning raises the version.
#[derive(Serialize, Deserialize)]
struct Metadata {
    /// The version of this text, under a name that other programs do not use.
    millrace: u32,
    generation: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<i64>,
}

/// The version of [`Metadata`] that this program writes and understands.
const METADATA_VERSION: u32 = 1;

impl Committed {
    /// The text for the commit's metadata; `next` is the commit's offset itself.
    pub fn metadata(&self) -> String {
        let metadata = Metadata { millrace: METADATA_VERSION, generation: self.generation, pending: self.pending_last };
        // Three numbers always have a JSON form.
        serde_json::to_string(&metadata).unwrap_or_default()
    }
}

/// The group's last commit for a partition, as found in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastCommit {
    /// There is none: never committed, or forgotten.
    None,
    /// Made by a writer.
    Writer(Committed),
    /// Made by something else, or by a later version of the program: its metadata is not ours.
    Foreign {
        /// The committed offset.
        offset: i64,
        /// The commit's metadata, as it was found.
        metadata: String,
    },
}

impl LastCommit {
    /// Reads a commit as Kafka returns it: no offset (or a negative one) is no commit.
    pub fn read(offset: Option<i64>, metadata: &str) -> LastCommit {
        let Some(offset) = offset.filter(|offset| *offset >= 0) else {
            return LastCommit::None;
        };
        match serde_json::from_str::<Metadata>(metadata) {
            Ok(found) if found.millrace == METADATA_VERSION && found.pending.is_none_or(|last| last >= offset) => {
                LastCommit::Writer(Committed {
                    generation: found.generation,
                    next: offset,
                    pending_last: found.pending,
                })
            }
            _ => LastCommit::Foreign { offset, metadata: metadata.to_owned() },
        }
    }
}

/// Makes the de-duplication tokens of a partition's inserts.
///
/// A token that repeats with other rows is a silent loss, so it names the kind, the generation and identity of the log,
/// the partition, both ends of the range and the table.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The kind's name.
    pub kind: &'static str,
    /// The recorded identity of the log: [`crate::writer::identity::Generation::identity`].
    pub log: String,
    /// The partition.
    pub partition: i32,
}

impl Tokens {
    /// For the insert of a range's events; `again` is [`Insert::again`](super::step::Insert::again).
    pub fn events(&self, generation: u32, range: Range, again: u32) -> String {
        self.token(generation, range, "events", again)
    }

    /// For the insert of a range's counters and its row of the ledger.
    pub fn counters(&self, generation: u32, range: Range, again: u32) -> String {
        self.token(generation, range, "counters", again)
    }

    fn token(&self, generation: u32, range: Range, table: &str, again: u32) -> String {
        let Tokens { kind, log, partition } = self;
        let mut token = format!("{kind}/{generation}/{log}/{partition}/{}-{}/{table}", range.first, range.last);
        if again > 0 {
            token += &format!("/{again}");
        }
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_survives_its_text() {
        for pending_last in [None, Some(41), Some(i64::MAX)] {
            let committed = Committed { generation: 7, next: 41, pending_last };
            assert_eq!(LastCommit::read(Some(41), &committed.metadata()), LastCommit::Writer(committed));
        }
        let claim = Committed { generation: 1, next: 5, pending_last: Some(9) };
        assert_eq!(claim.metadata(), r#"{"millrace":1,"generation":1,"pending":9}"#);
    }

    #[test]
    fn a_field_of_a_later_version_is_ignored() {
        let found = LastCommit::read(Some(5), r#"{"millrace":1,"generation":2,"pending":9,"since":"noon"}"#);
        assert_eq!(found, LastCommit::Writer(Committed { generation: 2, next: 5, pending_last: Some(9) }));
    }

    #[test]
    fn foreign_metadata_is_told_apart() {
        let foreign = [
            "",
            "{}",
            "null",
            "\u{0}\u{1}garbage",
            r#"{"generation":1}"#,
            r#"{"millrace":2,"generation":1}"#,
            r#"{"millrace":1}"#,
            r#"{"millrace":1,"generation":-1}"#,
            r#"{"millrace":1,"generation":1,"pending":"9"}"#,
            // A claim that ends before it begins.
            r#"{"millrace":1,"generation":1,"pending":4}"#,
        ];
        for metadata in foreign {
            let found = LastCommit::read(Some(5), metadata);
            assert_eq!(found, LastCommit::Foreign { offset: 5, metadata: metadata.to_owned() });
        }
    }

    #[test]
    fn no_offset_is_no_commit() {
        assert_eq!(LastCommit::read(None, ""), LastCommit::None);
        assert_eq!(LastCommit::read(Some(-1001), ""), LastCommit::None);
    }

    #[test]
    fn tokens_differ_in_everything_they_name() {
        let tokens = Tokens { kind: "captcha", log: "cluster/topic/id".into(), partition: 3 };
        let range = Range { first: 1, last: 23 };
        assert_eq!(tokens.events(2, range, 0), "captcha/2/cluster/topic/id/3/1-23/events");
        let others = [
            tokens.counters(2, range, 0),
            tokens.events(2, range, 1),
            tokens.events(2, range, 11),
            tokens.events(1, range, 0),
            tokens.events(2, Range { first: 12, last: 23 }, 0),
            tokens.events(2, Range { first: 1, last: 2 }, 0),
            Tokens { partition: 4, ..tokens.clone() }.events(2, range, 0),
            Tokens { kind: "hit", ..tokens.clone() }.events(2, range, 0),
            Tokens { log: "cluster/topic/other".into(), ..tokens.clone() }.events(2, range, 0),
        ];
        assert!(others.iter().all(|other| *other != tokens.events(2, range, 0)));
    }
}
