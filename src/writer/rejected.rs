//! Records that cannot be read as rows of the store's table `rejected_records`.
//!
//! They are inserted before the range that passes over them is counted, so that none is passed over without being kept. A
//! range that is tried again inserts them again: the table shows each place once.

use std::sync::Arc;

use arrow::array::{Array, BinaryBuilder};
use arrow::array::{
    ArrayRef, BinaryArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMillisecondArray,
    UInt32Array,
};
use arrow::datatypes::{Field, Schema};
use arrow::error::ArrowError;

use super::decode::Rejected;
use super::rows::{Encoded, stream};
use crate::kinds::Kind;

/// The table.
pub const TABLE: &str = "rejected_records";
/// A range ends when it has so many, or so many bytes of them: what is held of them at once is this and one record more.
const RECORDS_MAX: usize = 10_000;
/// See [`RECORDS_MAX`].
const BYTES_MAX: usize = 32 << 20;
/// The last instant that is kept as it was found, in milliseconds since 1970: whoever writes into the topic can claim any.
const TIMESTAMP_MS_MAX: i64 = 4_133_980_800_000;

/// What a range passes over.
#[derive(Default)]
pub struct PassedOver {
    records: Vec<Rejected>,
    bytes: usize,
}

impl PassedOver {
    /// Adds a record, where there is one.
    pub fn push(&mut self, record: Option<Rejected>) {
        self.bytes += record.as_ref().map_or(0, Rejected::bytes);
        self.records.extend(record);
    }

    /// Whether the range has to end.
    pub fn is_full(&self) -> bool {
        self.records.len() >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    /// In the order of the log.
    pub fn into_records(self) -> Vec<Rejected> {
        self.records
    }
}

/// Encodes what was set aside of a partition.
pub fn encode<K: Kind>(rejected: &[Rejected], generation: u32, partition: u32) -> Result<Encoded, ArrowError> {
    let (rows, mut names, mut values) =
        (rejected.len(), ListBuilder::new(StringBuilder::new()), ListBuilder::new(BinaryBuilder::new()));
    for record in rejected {
        for (name, value) in &record.headers {
            names.values().append_value(name);
            values.values().append_value(value);
        }
        names.append(true);
        values.append(true);
    }
    let times = rejected.iter().map(|record| record.timestamp_ms.clamp(0, TIMESTAMP_MS_MAX));
    let columns: [(&str, ArrayRef); 9] = [
        ("kind", Arc::new(StringArray::from(vec![K::NAME; rows]))),
        ("log_generation", Arc::new(UInt32Array::from_value(generation, rows))),
        ("log_partition", Arc::new(UInt32Array::from_value(partition, rows))),
        ("log_offset", Arc::new(Int64Array::from_iter_values(rejected.iter().map(|record| record.offset)))),
        ("reason", Arc::new(StringArray::from_iter_values(rejected.iter().map(|record| &record.reason)))),
        ("value", Arc::new(BinaryArray::from_iter(rejected.iter().map(|record| record.value.as_deref())))),
        ("header_names", Arc::new(names.finish())),
        ("header_values", Arc::new(values.finish())),
        ("accepted_at", Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC"))),
    ];
    let nullable = |name: &str| matches!(name, "value");
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), nullable(name))).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    stream(&RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The token of the insert for a range: a repetition within the window is not even stored.
pub fn token(of_events: &str) -> String {
    format!("{of_events}/rejected")
}
