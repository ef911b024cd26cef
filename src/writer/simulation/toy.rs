//! A kind of event just rich enough: optional keys in two lanes, and a site to count by.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};

use crate::config::Config;
use crate::kinds::migrations::Migration;
use crate::kinds::{BadRecord, Columns, Counters, CountersSql, Endpoints, Key, KeySql, Kind, Rejection, Sent};

/// How many sites events are counted by.
pub const SITES: usize = 3;

/// The kind.
pub struct Toy;

/// Its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToyEvents {
    /// What they are de-duplicated on.
    pub keys: Vec<Option<u8>>,
    /// What they are counted by. Copies of an event may differ in it: the first one counts.
    pub sites: Vec<u8>,
}

/// Its counters: how many new events each site has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToyCounters(pub [u64; SITES]);

/// The key of an event as the writer sees it.
pub fn toy_key(key: u8) -> Key {
    let mut id = [0; 16];
    id[15] = key / 2;
    Key { lane: key % 2, id }
}

impl Columns for ToyEvents {
    fn len(&self) -> usize {
        self.keys.len()
    }

    fn bytes_of(&self, rows: Range<usize>) -> usize {
        2 * rows.len()
    }

    fn append(&mut self, from: &Self, rows: Range<usize>) {
        self.keys.extend_from_slice(&from.keys[rows.clone()]);
        self.sites.extend_from_slice(&from.sites[rows]);
    }

    fn schema() -> SchemaRef {
        Arc::new(Schema::empty())
    }

    fn into_batch(self) -> RecordBatch {
        RecordBatch::new_empty(Self::schema())
    }

    fn from_batch(_: &RecordBatch) -> Result<Self, BadRecord> {
        Ok(ToyEvents::default())
    }
}

impl Counters<ToyEvents> for ToyCounters {
    fn count(&mut self, columns: &ToyEvents, row: usize) {
        self.0[usize::from(columns.sites[row])] += 1;
    }

    fn to_batch(&self) -> RecordBatch {
        RecordBatch::new_empty(ToyEvents::schema())
    }
}

impl Kind for Toy {
    const NAME: &'static str = "toy";
    const SCHEMA_VERSION: u16 = 1;
    const KEY_LANES: u8 = 2;
    const KEY_SQL: KeySql = KeySql { lane: "lane", id: "id", present: "present" };
    const COUNTERS_SQL: CountersSql =
        CountersSql { key: &[], recount_key: &[], name: "''", values: &[], recount_values: &[] };
    const MIGRATIONS: &'static [Migration] = &[];
    type Columns = ToyEvents;
    type Counters = ToyCounters;
    type Event<'v> = (u8, u8);
    type Rules = ();

    fn open(_: &Config) -> Result<Toy, String> {
        Ok(Toy)
    }

    fn endpoints(_: &mut impl Endpoints<Toy>) {}

    fn rules(&self) {}

    fn parse<'v>(_: &(), _: simd_json::tape::Value<'_, 'v>, _: Sent<'v>) -> Result<Self::Event<'v>, Rejection> {
        Err(Rejection { code: "toy", field: None, message: "toys are not sent".into() })
    }

    fn partition_key<'e>(event: &'e Self::Event<'_>) -> &'e [u8] {
        std::slice::from_ref(&event.0)
    }

    fn push(columns: &mut Self::Columns, event: &Self::Event<'_>) {
        columns.keys.push(Some(event.0));
        columns.sites.push(event.1);
    }

    fn key(columns: &Self::Columns, row: usize) -> Option<Key> {
        columns.keys[row].map(toy_key)
    }
}
