//! Event kinds: what one kind of event looks like in a request, in the log, in the store and in a report.
//!
//! A kind is a type that implements [`Kind`]; the stages are generic over it, so that nothing is dispatched per event.
//! A kind imports no stage. Adding one touches its folder here, one line of the registration in `run`, and `sql/NAME`.

pub mod captcha;
pub mod migrations;

pub mod excerpt;
pub mod fields;
pub mod instant;
pub mod uuid_text;

use std::borrow::Cow;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

/// What de-duplicates an event: 128 bits of identity within a lane.
///
/// Lanes are spaces of keys that do not meet (the types of a captcha event share a `correlation_id`); a kind states how
/// many it has, from 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Which space of keys, below [`Kind::KEY_LANES`].
    pub lane: u8,
    /// The identity, in the order of its text.
    pub id: [u8; 16],
}

/// Why one event of a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Stable, in `snake_case`: clients and metrics rely on it.
    pub code: &'static str,
    /// The field that is to blame, where there is one.
    pub field: Option<&'static str>,
    /// What was expected and what was found, for a person.
    pub message: Cow<'static, str>,
}

/// A record of the log that cannot be read as events of its kind.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadRecord(pub String);

/// Events of one kind as columns: the form in which they cross every stage.
pub trait Columns: Default + Send + 'static {
    /// How many events there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// About how many bytes they take in a record of the log.
    fn bytes(&self) -> usize {
        self.bytes_of(0..self.len())
    }
    /// About how many bytes some of them take. To be told in constant time; for one event at most its text's length in
    /// the request and [`EVENT_COLUMNS_BYTES`](crate::config::limits::EVENT_COLUMNS_BYTES).
    fn bytes_of(&self, rows: std::ops::Range<usize>) -> usize;
    /// Adds events of `from`, in order: the rows `rows.start..rows.end`.
    fn append(&mut self, from: &Self, rows: std::ops::Range<usize>);
    /// The columns of a record of the log.
    fn schema() -> SchemaRef;
    /// As a batch with [`Columns::schema`].
    fn into_batch(self) -> RecordBatch;
    /// Reads a batch out of the log: columns are found by name, those that this version does not know are ignored.
    fn from_batch(batch: &RecordBatch) -> Result<Self, BadRecord>;
}

/// The counters that the events of one block add up to.
pub trait Counters<C>: Default + Send + 'static {
    /// Counts one new event.
    fn count(&mut self, columns: &C, row: usize);
    /// One row for each counter, with the columns of the kind's counters table.
    fn to_batch(&self) -> RecordBatch;
}

/// How a kind's counters are read back, and how they follow from its events. Keys come as bytes of a fixed width.
pub struct CountersSql {
    /// Columns of the counters table that name a counter.
    pub key: &'static str,
    /// How many bytes they have in RowBinary.
    pub key_bytes: usize,
    /// Columns of the counters table that are summed (UInt64).
    pub values: &'static [&'static str],
    /// The key in terms of the events table.
    pub recount_key: &'static str,
    /// The values in terms of the events table, as aggregates (UInt64).
    pub recount_values: &'static [&'static str],
}

/// One kind of event.
pub trait Kind: Send + Sync + Sized + 'static {
    /// Names the topic, the tables, the migrations and the metrics.
    const NAME: &'static str;
    /// Goes into the header `schema` of each record: raised when a column changes its meaning.
    const SCHEMA_VERSION: u16;
    /// How many lanes its keys have.
    const KEY_LANES: u8;
    /// SQL for the lane (UInt8) and the identity (as FixedString(16), in text order) of a row of the events table.
    const KEY_SQL: (&'static str, &'static str);
    /// Its counters in the store.
    const COUNTERS_SQL: CountersSql;
    /// Its events as columns.
    type Columns: Columns;
    /// What its events are counted in.
    type Counters: Counters<Self::Columns>;
    /// One event, as parsed; it may borrow from the request's body.
    type Event<'v>;

    /// Checks one JSON value and takes the event out of it. The rejection names the first bad field in the schema's order.
    fn parse<'v>(&self, value: simd_json::tape::Value<'_, 'v>) -> Result<Self::Event<'v>, Rejection>;
    /// The bytes that decide on the partition (see [`partition_of`]).
    fn partition_key<'e>(event: &'e Self::Event<'_>) -> &'e [u8];
    /// Adds an event to columns.
    fn push(columns: &mut Self::Columns, event: &Self::Event<'_>);
    /// Names the counter whose key has these bytes, for a person.
    fn describe_counter(key: &[u8]) -> String;
    /// The key of an event; `None` for one that is always new.
    fn key(columns: &Self::Columns, row: usize) -> Option<Key>;
}

/// The partition of an event: XXH3 (64 bits, seed 0) of its partition key, modulo the number of partitions.
///
/// This is part of the data: copies of one event share a partition only as long as it never changes.
pub fn partition_of(partition_key: &[u8], partitions: u32) -> u32 {
    (xxhash_rust::xxh3::xxh3_64(partition_key) % u64::from(partitions)) as u32
}

/// A report of a kind: what may be asked, and how its counters answer it. Pure: the report stage runs the query.
pub trait Report: Send + Sync + 'static {
    /// A question, understood.
    type Query: Send + Sync;
    /// Reads the query of the request's target; the error says what is wrong with which parameter and what is allowed.
    fn parse(query: Option<&str>) -> Result<Self::Query, String>;
    /// The query of the kind's counters table (named in full), whose rows come in RowBinary.
    fn sql(query: &Self::Query, counters_table: &str) -> String;
    /// The answer's body, in JSON, out of the rows; the error is a mistake of ours.
    fn render(query: &Self::Query, rows: &[u8]) -> Result<Vec<u8>, String>;
}
