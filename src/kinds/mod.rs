//! Event kinds: what one kind of event looks like in a request, in the log, in the store and in a report.
//!
//! A kind is a type that implements [`Kind`]; the stages are generic over it, so that nothing is dispatched per event.
//! A kind imports no stage. Adding one takes its folder here, its name in the list below, and `sql/NAME`.

pub mod captcha;
pub mod hit;
pub mod interaction;

pub mod excerpt;
pub mod fields;
pub mod instant;
pub mod json_text;
pub mod made_key;
pub mod migrations;
pub mod parameters;
pub mod plain;
pub mod record_columns;
pub mod row_binary;
pub mod uuid_text;

use std::borrow::Cow;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::config::Config;
use made_key::KeyMaker;
use migrations::{KindMigrations, Migration};

/// The list of all kinds: what visits each of them, and their migrations.
macro_rules! register {
    ($($kind:ty),+ $(,)?) => {
        /// Shows every kind to a visitor, in the order in which they are wired; the first error ends it.
        pub fn visit_all<V: KindVisitor>(visitor: &mut V) -> Result<(), V::Error> {
            $(visitor.visit::<$kind>()?;)+
            Ok(())
        }

        /// The migrations of all kinds, in the order in which they are applied.
        pub const MIGRATIONS: &[KindMigrations] =
            &[$(KindMigrations { kind: <$kind>::NAME, migrations: <$kind>::MIGRATIONS }),+];

        /// Those of what all kinds share, then those of all kinds: everything that is applied.
        pub const ALL_MIGRATIONS: &[KindMigrations] =
            &[SHARED, $(KindMigrations { kind: <$kind>::NAME, migrations: <$kind>::MIGRATIONS }),+];
    };
}

/// What all kinds share.
const SHARED: KindMigrations =
    KindMigrations { kind: "shared", migrations: &[migrations::shared_migration!(1, "rejected_records")] };

register!(captcha::Captcha, interaction::Interaction, hit::Hit);

/// What is done for every kind.
pub trait KindVisitor {
    /// Why it could not be done.
    type Error;
    /// Does it for one kind.
    fn visit<K: Kind>(&mut self) -> Result<(), Self::Error>;
}

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
    /// The field that is to blame, where there is one; a path within it is joined by dots (`data.host`).
    pub field: Option<Cow<'static, str>>,
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
    /// Makes room for so many events more, of about so many bytes altogether (as [`Columns::bytes`] tells them): what
    /// grows bit by bit is moved again and again.
    fn reserve(&mut self, _rows: usize, _bytes: usize) {}
    /// Adds events of `from`, in order: the rows `rows.start..rows.end`.
    fn append(&mut self, from: &Self, rows: std::ops::Range<usize>);
    /// The columns of a record of the log; those of the events table have the same names.
    fn schema() -> SchemaRef;
    /// As a batch with [`Columns::schema`].
    fn into_batch(self) -> RecordBatch;
    /// Reads a batch out of the log: columns are found by name, those that this version does not know are ignored.
    fn from_batch(batch: &RecordBatch) -> Result<Self, BadRecord>;
}

/// The counters that the events of one block add up to.
pub trait Counters<C>: Default + Send + 'static {
    /// Counts one new event, in at most one counter: so a range's counters are no more than its events.
    fn count(&mut self, columns: &C, row: usize);
    /// One row for each counter, with the columns of the kind's counters table: [`CountersSql::key`] and
    /// [`CountersSql::values`]. The same events always make the same batch.
    fn to_batch(&self) -> RecordBatch;
}

/// How a kind's counters are read back, and how they follow from its events.
pub struct CountersSql {
    /// Columns of the counters table that name a counter.
    pub key: &'static [&'static str],
    /// The same, with the same types, in terms of the events table.
    pub recount_key: &'static [&'static str],
    /// A counter's name for a person, as text over the columns of `key`; no two counters share one.
    pub name: &'static str,
    /// Columns of the counters table that are summed (UInt64).
    pub values: &'static [&'static str],
    /// The values in terms of the events table, as aggregates (UInt64).
    pub recount_values: &'static [&'static str],
}

/// How the key of an event follows from its row of the events table.
pub struct KeySql {
    /// The lane (UInt8).
    pub lane: &'static str,
    /// The identity, as FixedString(16) in the order of its text.
    pub id: &'static str,
    /// Which rows have a key at all.
    pub present: &'static str,
}

impl KeySql {
    /// For events with an optional `event_id`: lane 0 holds those that were sent, lane 1 those that were made
    /// (`event_id_origin` 1 and 2).
    pub const EVENT_ID: KeySql = KeySql {
        lane: "toUInt8(toInt8(event_id_origin) - 1)",
        id: "UUIDToNum(event_id)",
        present: "event_id_origin != 'none'",
    };
}

/// What is known of an event besides its value.
#[derive(Clone, Copy)]
pub struct Sent<'v> {
    /// Its bytes, as they came.
    pub raw: &'v [u8],
    /// When its request was received, in microseconds since 1970.
    pub received_us: i64,
    /// Its place among the events of its request, from 0; those that were rejected count.
    pub position: u64,
    /// Makes keys for the events of a request that has an `Idempotency-Key`.
    pub key_maker: Option<&'v KeyMaker>,
}

impl Sent<'_> {
    /// The identity that the request's `Idempotency-Key` gives to an event without one of its own.
    #[inline]
    pub fn made_key(&self) -> Option<[u8; 16]> {
        self.key_maker.map(|maker| maker.key(self.position, self.raw))
    }
}

/// One kind of event.
pub trait Kind: Send + Sync + Sized + 'static {
    /// Names the topic, the tables, the migrations and the metrics.
    const NAME: &'static str;
    /// Goes into the header `schema` of each record: raised when a column changes its meaning.
    const SCHEMA_VERSION: u16;
    /// How many lanes its keys have.
    const KEY_LANES: u8;
    /// Its keys in the store.
    const KEY_SQL: KeySql;
    /// Its counters in the store.
    const COUNTERS_SQL: CountersSql;
    /// Makes its tables: `NAME_events`, `NAME_counters` and `NAME_logs`.
    const MIGRATIONS: &'static [Migration];
    /// Its events as columns.
    type Columns: Columns;
    /// What its events are counted in.
    type Counters: Counters<Self::Columns>;
    /// One event, as parsed; it may borrow from the request's body.
    type Event<'v>;
    /// What its events are checked against: the same for all events of a request, whatever is reloaded meanwhile.
    type Rules: 'static;

    /// The kind by the configuration; the error says which setting is wrong and what to do.
    fn open(config: &Config) -> Result<Self, String>;
    /// What is in force of its settings and files, for a person; `None` for a kind that has none.
    fn in_force(&self) -> Option<String> {
        None
    }
    /// Reads again what it has read of files. `Ok` says what is in force now; the error says why the old is still in force.
    fn reload(&self) -> Result<String, String> {
        Ok("reads no files".to_owned())
    }
    /// What it serves, and where.
    fn endpoints(on: &mut impl Endpoints<Self>);

    /// The rules that are in force.
    fn rules(&self) -> Self::Rules;
    /// Checks one JSON value and takes the event out of it. The rejection names the first bad field in the schema's order.
    fn parse<'v>(
        rules: &Self::Rules,
        value: simd_json::tape::Value<'_, 'v>,
        sent: Sent<'v>,
    ) -> Result<Self::Event<'v>, Rejection>;
    /// The event of a value (`sent.raw`) that is written the way that almost all are, without a JSON parser (see [`plain`]).
    /// `None` leaves the value to `parse`, which would give the same event.
    fn parse_plain<'v>(_rules: &Self::Rules, _sent: Sent<'v>) -> Option<Self::Event<'v>> {
        None
    }
    /// The bytes that decide on the partition (see [`partition_of`]): of an event with a key its `id`, so that its copies
    /// share a partition and its key is looked for there.
    fn partition_key<'e>(event: &'e Self::Event<'_>) -> &'e [u8];
    /// Adds an event to columns.
    fn push(columns: &mut Self::Columns, event: &Self::Event<'_>);
    /// The key of an event; `None` for one that is always new.
    fn key(columns: &Self::Columns, row: usize) -> Option<Key>;
}

/// A kind whose events are also sent as the query of a request.
pub trait QueryEvents: Kind {
    /// Reads one event out of a query string (`sent.raw`); the error names the parameter, and what was expected and found.
    fn from_query<'v>(rules: &Self::Rules, query: &'v str, sent: Sent<'v>) -> Result<Self::Event<'v>, String>;
}

/// Takes what a kind serves. A path's last segment may be a parameter, `{name}`.
///
/// The first segment of a path is its API version (`/v1/...`), or a name of its own. Several methods of one path may come
/// from several calls.
pub trait Endpoints<K: Kind> {
    /// `POST` of JSON or NDJSON with any number of events.
    fn accept(&mut self, path: &'static str);
    /// `POST` of one event, percent-encoded as the path's last segment.
    fn accept_segment(&mut self, path: &'static str);
    /// `POST` of one event as the query, answered 204.
    fn accept_query(&mut self, path: &'static str)
    where
        K: QueryEvents;
    /// `GET` of a report.
    fn report<R: Report>(&mut self, path: &'static str);
    /// `GET` of a JSON document that describes the kind.
    fn document(&mut self, path: &'static str, write: fn(&K) -> Vec<u8>);
}

/// The partition of an event: XXH3 (64 bits, seed 0) of its partition key, modulo the number of partitions.
///
/// This is part of the data: copies of one event share a partition only as long as it never changes.
pub fn partition_of(partition_key: &[u8], partitions: u32) -> u32 {
    (xxhash_rust::xxh3::xxh3_64(partition_key) % u64::from(partitions)) as u32
}

/// What a report is asked, still percent-encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question<'q> {
    /// The query string.
    pub query: Option<&'q str>,
    /// The path's last segment, where it is a parameter.
    pub segment: Option<&'q str>,
}

/// The tables of a kind, named in full.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Its events, with the place in the log of each.
    pub events: String,
    /// Its counters (`log_generation` 0) and its ledger.
    pub counters: String,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rendered {
    /// 200, `application/json`.
    Json(Vec<u8>),
    /// 200, `text/plain`.
    Text(Vec<u8>),
    /// 404, with what was not found.
    NotFound(String),
}

/// A report of a kind: what may be asked, and how its tables answer it. Pure: the report stage runs the query.
pub trait Report: Send + Sync + 'static {
    /// How old an answer may be that is given again, counted from the start of its query; zero for asking each time. Only
    /// short answers are kept.
    const AGE_MAX: Duration = Duration::ZERO;
    /// A question, understood.
    type Query: Send + Sync;
    /// Reads the question; the error says what is wrong with which parameter and what is allowed.
    fn parse(question: Question<'_>) -> Result<Self::Query, String>;
    /// The query of the kind's tables, whose rows come in RowBinary.
    fn sql(query: &Self::Query, tables: &Tables) -> String;
    /// The query of all that can be asked for, of which every answer is a part: as many rows, and one more when there are
    /// more. `None` where the answers have no common whole.
    fn whole_sql(_tables: &Tables, _rows_max: usize) -> Option<String> {
        None
    }
    /// What [`sql`](Report::sql) would give, out of the rows of a [`whole_sql`](Report::whole_sql) with the same bound;
    /// `None` when there were more.
    fn select(_query: &Self::Query, _whole: &[u8], _rows_max: usize) -> Option<Vec<u8>> {
        None
    }
    /// The answer out of the rows; the error is a mistake of ours.
    fn render(query: &Self::Query, rows: &[u8]) -> Result<Rendered, String>;
}

#[cfg(test)]
mod tests;
