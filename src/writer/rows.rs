//! A block as rows of the store's tables, encoded as Arrow streams.
//!
//! The rows of the events table carry their place in the log; the insert of the counters carries the range's entry of the
//! ledger: a row whose counter columns are all zero. Counters carry generation 0, so the two never meet.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, Int64Array, RecordBatch, TimestampMillisecondArray, UInt32Array, UInt64Array,
    make_array,
};
use arrow::buffer::Buffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamEncoder;
use bytes::Bytes;

use super::block::Block;
use super::claim::Range;
use crate::kinds::instant::{DAY_US, DAYS, civil_from_days};
use crate::kinds::{Columns, Counters, Kind};

/// Pieces of a stream that are shorter than this are sent together: each piece is a chunk of the request.
const PIECE_BYTES_MIN: usize = 16 << 10;

/// What an insert sends. Kept until it is confirmed, so that a repeat sends the same bytes.
#[derive(Clone)]
pub struct Encoded {
    /// An Arrow IPC stream of one batch, in pieces: long columns are sent from where they lie.
    pub stream: Vec<Bytes>,
    /// How many rows it has.
    pub rows: usize,
}

/// A range's two inserts.
pub struct Rows {
    /// For the events table.
    pub events: Encoded,
    /// For the counters table.
    pub counters: Encoded,
}

/// Encodes the block of a range.
pub fn encode<K: Kind>(block: Block<K>, generation: u32, partition: u32, range: Range) -> Result<Rows, ArrowError> {
    let counters = counters(&block, generation, partition, range)?;
    let events = events(block, generation, partition, range)?;
    Ok(Rows { events: stream(&events)?, counters: stream(&counters)? })
}

fn events<K: Kind>(block: Block<K>, generation: u32, partition: u32, range: Range) -> Result<RecordBatch, ArrowError> {
    let rows = block.offsets.len();
    let month = month_of(block.first_timestamp_ms().unwrap_or(0));
    let accepted = TimestampMillisecondArray::from(block.timestamps_ms).with_timezone("UTC");
    let place: [(&str, ArrayRef); 7] = [
        ("log_generation", Arc::new(UInt32Array::from_value(generation, rows))),
        ("log_partition", Arc::new(UInt32Array::from_value(partition, rows))),
        ("log_offset", Arc::new(Int64Array::from(block.offsets))),
        ("log_position", Arc::new(UInt32Array::from(block.positions))),
        ("range_last", Arc::new(Int64Array::from_value(range.last, rows))),
        ("accepted_at", Arc::new(accepted)),
        ("log_month", Arc::new(UInt32Array::from_value(month, rows))),
    ];
    beside(&block.columns.into_batch(), place)
}

fn counters<K: Kind>(
    block: &Block<K>,
    generation: u32,
    partition: u32,
    range: Range,
) -> Result<RecordBatch, ArrowError> {
    let counters = block.counters.to_batch();
    let rows = counters.num_rows();
    debug_assert!(rows as u64 <= block.new_events(), "an event counts in at most one counter");
    let totals = [block.events, block.new_events()];
    let entry = with_ledger(&zero_row(&counters)?, ledger_of(generation, partition, range), totals)?;
    let counted = with_ledger(&counters, [0; 5], [0; 2])?;
    debug_assert_eq!(counted.num_rows(), rows);
    concat_batches(&entry.schema(), [&counted, &entry])
}

/// The ledger's entry for a range alone, which stands for counters that come otherwise: how many events its records have,
/// and how many of them were new.
pub fn ledger_entry<K: Kind>(
    generation: u32,
    partition: u32,
    range: Range,
    totals: [u64; 2],
) -> Result<Encoded, ArrowError> {
    let no_counters = K::Counters::default().to_batch();
    stream(&with_ledger(&zero_row(&no_counters)?, ledger_of(generation, partition, range), totals)?)
}

fn ledger_of(generation: u32, partition: u32, range: Range) -> [i64; 5] {
    [i64::from(generation), i64::from(partition), range.first, range.last, range.offsets()]
}

/// Rows of counters with the columns of the ledger.
fn with_ledger(batch: &RecordBatch, ledger: [i64; 5], totals: [u64; 2]) -> Result<RecordBatch, ArrowError> {
    let short = |value: i64| -> ArrayRef { Arc::new(UInt32Array::from_value(value as u32, batch.num_rows())) };
    let long = |value: i64| -> ArrayRef { Arc::new(Int64Array::from_value(value, batch.num_rows())) };
    let total = |value: u64| -> ArrayRef { Arc::new(UInt64Array::from_value(value, batch.num_rows())) };
    let [generation, partition, first, last, offsets] = ledger;
    beside(
        batch,
        [
            ("log_generation", short(generation)),
            ("log_partition", short(partition)),
            ("range_first", long(first)),
            ("range_last", long(last)),
            ("range_offsets", long(offsets)),
            ("events", total(totals[0])),
            ("new_events", total(totals[1])),
        ],
    )
}

/// A batch with further columns.
fn beside<const N: usize>(batch: &RecordBatch, more: [(&str, ArrayRef); N]) -> Result<RecordBatch, ArrowError> {
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    let mut columns = batch.columns().to_vec();
    for (name, column) in more {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// One row of zeros (empty text) with a batch's schema.
fn zero_row(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let zero = |kind: &DataType| -> Result<ArrayRef, ArrowError> {
        let empty = ArrayData::new_null(kind, 1);
        let buffers = empty.buffers().iter().map(|buffer| Buffer::from(vec![0u8; buffer.len()])).collect();
        let data = ArrayData::builder(kind.clone()).len(1).buffers(buffers).build()?;
        Ok(make_array(data))
    };
    let columns = batch.columns().iter().map(|column| zero(column.data_type())).collect::<Result<_, _>>()?;
    RecordBatch::try_new(batch.schema(), columns)
}

/// A batch as it is sent.
pub(super) fn stream(batch: &RecordBatch) -> Result<Encoded, ArrowError> {
    let mut encoder = StreamEncoder::try_new(&batch.schema())?;
    let mut buffers = encoder.encode(batch)?;
    buffers.extend(encoder.finish()?);
    Ok(Encoded { stream: pieces(buffers), rows: batch.num_rows() })
}

/// The same bytes in fewer pieces: only short ones are copied.
fn pieces(buffers: Vec<Buffer>) -> Vec<Bytes> {
    let (mut pieces, mut short) = (Vec::new(), Vec::new());
    for buffer in buffers {
        if buffer.len() < PIECE_BYTES_MIN {
            short.extend_from_slice(&buffer);
            continue;
        }
        if !short.is_empty() {
            pieces.push(Bytes::from(std::mem::take(&mut short)));
        }
        pieces.push(Bytes::from_owner(buffer));
    }
    if !short.is_empty() {
        pieces.push(Bytes::from(short));
    }
    pieces
}

/// The UTC month of an instant (milliseconds since 1970) as YYYYMM: the partition of the events table, one for a block.
fn month_of(timestamp_ms: i64) -> u32 {
    let days = timestamp_ms.div_euclid(DAY_US / 1000).clamp(0, i64::from(DAYS.end));
    let (year, month, _) = civil_from_days(days as i32);
    year as u32 * 100 + month
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::ipc::reader::StreamDecoder;

    #[test]
    fn pieces_are_the_stream() {
        let numbers = |count: usize| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(0..count as u64)) };
        for rows in [0, 1, 100, PIECE_BYTES_MIN, 3 * PIECE_BYTES_MIN] {
            let columns = [("a", numbers(rows)), ("b", Arc::new(UInt32Array::from_value(7, rows)) as ArrayRef)];
            let batch = RecordBatch::try_from_iter(columns).unwrap();
            let encoded = stream(&batch).unwrap();
            let mut decoder = StreamDecoder::new();
            let mut whole = Buffer::from_vec(encoded.stream.concat());
            let read = decoder.decode(&mut whole).unwrap().unwrap();
            assert_eq!((read, encoded.rows), (batch, rows));
            assert!(decoder.decode(&mut whole).unwrap().is_none() && whole.is_empty());
            decoder.finish().unwrap();
            assert!(encoded.stream.len() <= 5, "{} pieces", encoded.stream.len());
        }
    }

    #[test]
    fn months() {
        for (seconds, month) in [
            (0, 197_001),
            (951_782_399, 200_002),
            (951_868_799, 200_002),
            (951_868_800, 200_003),
            (1_609_459_199, 202_012),
            (1_609_459_200, 202_101),
            (4_133_980_799, 210_012),
        ] {
            assert_eq!(month_of(seconds * 1000), month, "{seconds}");
        }
    }
}
