//! Captcha events as columns, as they lie in the log.
//!
//! | column | Arrow type |
//! |---|---|
//! | `time` | timestamp(us, "UTC") |
//! | `type` | int8: 1 serve, 2 solve |
//! | `correlation_id` | fixed_size_binary(16), in the order of the text |
//! | `site_id` | fixed_size_binary(16) |
//!
//! None of them is ever null. Whatever a [`CaptchaColumns`] holds is valid: it comes from a parsed event or from a
//! record that was checked.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int8Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int8Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};

use super::parse::{CaptchaEvent, CaptchaType};
use crate::kinds::instant::INSTANTS_US;
use crate::kinds::record_columns::{id_array, ids, numbers};
use crate::kinds::{BadRecord, Columns};

/// Bytes of one event: 8 for the time, 1 for the type, 16 for each identity.
const ROW_BYTES: usize = 8 + 1 + 16 + 16;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("type", DataType::Int8, false),
        Field::new("correlation_id", DataType::FixedSizeBinary(16), false),
        Field::new("site_id", DataType::FixedSizeBinary(16), false),
    ]))
});

/// Captcha events, one vector for each column.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CaptchaColumns {
    times_us: Vec<i64>,
    types: Vec<i8>,
    correlation_ids: Vec<[u8; 16]>,
    site_ids: Vec<[u8; 16]>,
}

impl CaptchaColumns {
    /// Adds one event.
    #[inline]
    pub fn push(&mut self, event: &CaptchaEvent) {
        self.times_us.push(event.time_us);
        self.types.push(event.captcha_type as i8);
        self.correlation_ids.push(event.correlation_id);
        self.site_ids.push(event.site_id);
    }

    /// When the event of a row happened, in microseconds since 1970.
    #[inline]
    pub fn time_us(&self, row: usize) -> i64 {
        self.times_us[row]
    }

    /// What happened.
    #[inline]
    pub fn captcha_type(&self, row: usize) -> CaptchaType {
        if self.types[row] == CaptchaType::Serve as i8 { CaptchaType::Serve } else { CaptchaType::Solve }
    }

    /// Which captcha.
    #[inline]
    pub fn correlation_id(&self, row: usize) -> &[u8; 16] {
        &self.correlation_ids[row]
    }

    /// On which site.
    #[inline]
    pub fn site_id(&self, row: usize) -> &[u8; 16] {
        &self.site_ids[row]
    }
}

impl Columns for CaptchaColumns {
    fn len(&self) -> usize {
        self.times_us.len()
    }

    fn bytes_of(&self, rows: Range<usize>) -> usize {
        rows.len() * ROW_BYTES
    }

    fn reserve(&mut self, rows: usize, _bytes: usize) {
        self.times_us.reserve(rows);
        self.types.reserve(rows);
        self.correlation_ids.reserve(rows);
        self.site_ids.reserve(rows);
    }

    fn append(&mut self, from: &Self, rows: Range<usize>) {
        self.times_us.extend_from_slice(&from.times_us[rows.clone()]);
        self.types.extend_from_slice(&from.types[rows.clone()]);
        self.correlation_ids.extend_from_slice(&from.correlation_ids[rows.clone()]);
        self.site_ids.extend_from_slice(&from.site_ids[rows]);
    }

    fn schema() -> SchemaRef {
        SCHEMA.clone()
    }

    fn into_batch(self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(self.times_us).with_timezone("UTC")),
            Arc::new(Int8Array::from(self.types)),
            id_array(self.correlation_ids),
            id_array(self.site_ids),
        ];
        RecordBatch::try_new(Self::schema(), columns).expect("the columns have the schema's types and one length")
    }

    fn from_batch(batch: &RecordBatch) -> Result<Self, BadRecord> {
        let times_us = numbers::<TimestampMicrosecondType>(batch, SCHEMA.field(0))?;
        let types = numbers::<Int8Type>(batch, SCHEMA.field(1))?;
        if let Some(row) = times_us.iter().position(|time| !INSTANTS_US.contains(time)) {
            let found = times_us[row];
            return Err(BadRecord(format!("column time, row {row}: {found} us is outside the years 1970 to 2100")));
        }
        if let Some(row) = types.iter().position(|number| CaptchaType::from_number(*number).is_none()) {
            let found = types[row];
            return Err(BadRecord(format!("column type, row {row}: expected 1 (serve) or 2 (solve), found {found}")));
        }
        let correlation_ids = ids(batch, SCHEMA.field(2))?;
        Ok(CaptchaColumns { times_us, types, correlation_ids, site_ids: ids(batch, SCHEMA.field(3))? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use arrow::array::{Array as _, FixedSizeBinaryArray, Int32Array, StringArray, TimestampMillisecondArray};
    use arrow::buffer::Buffer;

    pub(super) fn random_event(dice: &mut Dice) -> CaptchaEvent {
        CaptchaEvent {
            time_us: dice.below(INSTANTS_US.end as usize) as i64,
            captcha_type: *dice.pick(&[CaptchaType::Serve, CaptchaType::Solve]),
            correlation_id: dice.id(),
            site_id: dice.id(),
        }
    }

    fn some(rows: usize) -> (CaptchaColumns, Vec<CaptchaEvent>) {
        let mut dice = Dice::new("columns");
        let events: Vec<CaptchaEvent> = (0..rows).map(|_| random_event(&mut dice)).collect();
        let mut columns = CaptchaColumns::default();
        events.iter().for_each(|event| columns.push(event));
        (columns, events)
    }

    fn event(columns: &CaptchaColumns, row: usize) -> CaptchaEvent {
        CaptchaEvent {
            time_us: columns.time_us(row),
            captcha_type: columns.captcha_type(row),
            correlation_id: *columns.correlation_id(row),
            site_id: *columns.site_id(row),
        }
    }

    /// A good batch in which one column is another.
    fn with_column(name: &str, array: ArrayRef) -> RecordBatch {
        let batch = some(2).0.into_batch();
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let column = if field.name() == name { array.clone() } else { column.clone() };
            (field.name().clone(), column, true)
        });
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn refusal(batch: &RecordBatch) -> String {
        CaptchaColumns::from_batch(batch).expect_err("refused").to_string()
    }

    #[test]
    fn a_batch_keeps_every_event() {
        let (columns, events) = some(1000);
        assert_eq!((columns.len(), columns.bytes()), (1000, 41_000));
        let batch = columns.clone().into_batch();
        assert_eq!(batch.schema(), CaptchaColumns::schema());
        let read = CaptchaColumns::from_batch(&batch).unwrap();
        assert_eq!(read, columns);
        for (row, expected) in events.iter().enumerate() {
            assert_eq!(event(&read, row), *expected);
        }
        let empty = CaptchaColumns::default().into_batch();
        assert!(CaptchaColumns::from_batch(&empty).unwrap().is_empty());
    }

    #[test]
    fn a_batch_is_made_without_copies() {
        let (columns, _) = some(100);
        let (times, ids) = (columns.times_us.as_ptr().cast::<u8>(), columns.site_ids.as_ptr().cast::<u8>());
        let batch = columns.into_batch();
        assert_eq!(batch.column(0).to_data().buffers()[0].as_ptr(), times);
        assert_eq!(batch.column(3).to_data().buffers()[0].as_ptr(), ids);
    }

    #[test]
    fn appends_ranges() {
        let (columns, events) = some(100);
        let mut joined = CaptchaColumns::default();
        joined.append(&columns, 90..100);
        joined.append(&columns, 0..0);
        joined.append(&columns, 0..5);
        let expected: Vec<CaptchaEvent> = events[90..].iter().chain(&events[..5]).copied().collect();
        assert_eq!((0..joined.len()).map(|row| event(&joined, row)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn reads_slices_other_orders_and_more_columns() {
        let (columns, _) = some(50);
        let batch = columns.clone().into_batch();
        let mut part = CaptchaColumns::default();
        part.append(&columns, 10..30);
        assert_eq!(CaptchaColumns::from_batch(&batch.slice(10, 20)).unwrap(), part);
        let more: ArrayRef = Arc::new(Int32Array::from(vec![7; 50]));
        let turned = ["site_id", "type", "time", "correlation_id"]
            .map(|name| (name, batch.column_by_name(name).unwrap().clone()));
        let turned = RecordBatch::try_from_iter([("more", more)].into_iter().chain(turned)).unwrap();
        assert_eq!(CaptchaColumns::from_batch(&turned).unwrap(), columns);
    }

    #[test]
    fn refuses_what_is_no_event() {
        let batch = some(2).0.into_batch();
        let part = batch.project(&[0, 1, 2]).unwrap();
        assert_eq!(refusal(&part), "column site_id is missing");
        let utc = |times: Vec<Option<i64>>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
        };
        assert_eq!(refusal(&with_column("time", utc(vec![Some(1), None]))), "column time holds 1 nulls");
        for time in [-1, INSTANTS_US.end] {
            let message = format!("column time, row 1: {time} us is outside the years 1970 to 2100");
            assert_eq!(refusal(&with_column("time", utc(vec![Some(0), Some(time)]))), message);
        }
        let millis: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1, 2]).with_timezone("UTC"));
        assert!(refusal(&with_column("time", millis)).starts_with("column time: expected Timestamp("));
        let local: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, 2]));
        assert!(refusal(&with_column("time", local)).starts_with("column time: expected Timestamp("));
        for number in [0, 3, -1, i8::MIN] {
            let message = format!("column type, row 1: expected 1 (serve) or 2 (solve), found {number}");
            assert_eq!(refusal(&with_column("type", Arc::new(Int8Array::from(vec![2, number])))), message);
        }
        let text: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        assert!(
            refusal(&with_column("correlation_id", text))
                .starts_with("column correlation_id: expected FixedSizeBinary(16)")
        );
        let short: ArrayRef = Arc::new(FixedSizeBinaryArray::new(8, Buffer::from_vec(vec![0u8; 16]), None));
        assert!(refusal(&with_column("site_id", short)).starts_with("column site_id: expected FixedSizeBinary(16)"));
    }
}
