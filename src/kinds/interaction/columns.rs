//! Interactions as columns, as they lie in the log.
//!
//! | column | Arrow type |
//! |---|---|
//! | `timestamp` | timestamp(us, "UTC") |
//! | `session_id` | fixed_size_binary(16), in the order of the text |
//! | `category`, `name` | large_utf8 |
//! | `data` | large_utf8: the JSON of an object, every byte as it was sent |
//! | `event_id` | fixed_size_binary(16), zeros where there is none |
//! | `event_id_origin` | int8: 0 none, 1 sent, 2 made from an `Idempotency-Key` |
//!
//! None of them is ever null. Whatever an [`InteractionColumns`] holds is valid: it comes from a parsed event or from a
//! record that was checked. Whether `data` fits a schema is checked when it is accepted, and never again.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Int8Array, LargeStringArray, RecordBatch, TimestampMicrosecondArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int8Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};

use super::parse::{InteractionEvent, Origin, text_fault};
use crate::kinds::instant::INSTANTS_US;
use crate::kinds::record_columns::{column, id_array, ids, numbers};
use crate::kinds::{BadRecord, Columns, Key, excerpt};

/// Bytes of one event beside its texts: 8 for the time, 16 for each identity, 1 for the origin, 8 for the end of each text.
const ROW_BYTES: usize = 8 + 2 * 16 + 1 + 3 * 8;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        Field::new("session_id", DataType::FixedSizeBinary(16), false),
        Field::new("category", DataType::LargeUtf8, false),
        Field::new("name", DataType::LargeUtf8, false),
        Field::new("data", DataType::LargeUtf8, false),
        Field::new("event_id", DataType::FixedSizeBinary(16), false),
        Field::new("event_id_origin", DataType::Int8, false),
    ]))
});

/// Interactions, one vector for each column.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct InteractionColumns {
    timestamps_us: Vec<i64>,
    session_ids: Vec<[u8; 16]>,
    categories: Texts,
    names: Texts,
    data: Texts,
    event_ids: Vec<[u8; 16]>,
    origins: Vec<i8>,
}

impl InteractionColumns {
    /// Adds one event.
    #[inline]
    pub fn push(&mut self, event: &InteractionEvent<'_>) {
        self.timestamps_us.push(event.timestamp_us);
        self.session_ids.push(event.session_id);
        self.categories.push(event.category);
        self.names.push(event.name);
        self.data.push(event.data);
        self.event_ids.push(event.event_id);
        self.origins.push(event.origin as i8);
    }

    /// The event of a row.
    #[inline]
    pub fn event(&self, row: usize) -> InteractionEvent<'_> {
        InteractionEvent {
            timestamp_us: self.timestamps_us[row],
            session_id: self.session_ids[row],
            category: self.categories.get(row),
            name: self.names.get(row),
            data: self.data.get(row),
            event_id: self.event_ids[row],
            // Whatever is in here was checked on its way in.
            origin: Origin::from_number(self.origins[row]).unwrap_or(Origin::None),
        }
    }

    /// The key of a row, where it has one.
    #[inline]
    pub fn key(&self, row: usize) -> Option<Key> {
        match self.origins[row] {
            0 => None,
            origin => Some(Key { lane: origin as u8 - 1, id: self.event_ids[row] }),
        }
    }
}

impl Columns for InteractionColumns {
    fn len(&self) -> usize {
        self.timestamps_us.len()
    }

    fn bytes_of(&self, rows: Range<usize>) -> usize {
        let texts = [&self.categories, &self.names, &self.data].map(|texts| texts.bytes_of(&rows));
        rows.len() * ROW_BYTES + texts.iter().sum::<usize>()
    }

    fn reserve(&mut self, rows: usize, bytes: usize) {
        self.timestamps_us.reserve(rows);
        self.session_ids.reserve(rows);
        for texts in [&mut self.categories, &mut self.names, &mut self.data] {
            texts.offsets.reserve(rows);
        }
        // Almost all of the text is data.
        self.data.bytes.reserve(bytes.saturating_sub(rows * ROW_BYTES));
        self.event_ids.reserve(rows);
        self.origins.reserve(rows);
    }

    fn append(&mut self, from: &Self, rows: Range<usize>) {
        self.timestamps_us.extend_from_slice(&from.timestamps_us[rows.clone()]);
        self.session_ids.extend_from_slice(&from.session_ids[rows.clone()]);
        self.categories.append(&from.categories, rows.clone());
        self.names.append(&from.names, rows.clone());
        self.data.append(&from.data, rows.clone());
        self.event_ids.extend_from_slice(&from.event_ids[rows.clone()]);
        self.origins.extend_from_slice(&from.origins[rows]);
    }

    fn schema() -> SchemaRef {
        SCHEMA.clone()
    }

    fn into_batch(self) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(self.timestamps_us).with_timezone("UTC")),
            id_array(self.session_ids),
            self.categories.into_array(),
            self.names.into_array(),
            self.data.into_array(),
            id_array(self.event_ids),
            Arc::new(Int8Array::from(self.origins)),
        ];
        RecordBatch::try_new(Self::schema(), columns).expect("the columns have the schema's types and one length")
    }

    fn from_batch(batch: &RecordBatch) -> Result<Self, BadRecord> {
        let columns = InteractionColumns {
            timestamps_us: numbers::<TimestampMicrosecondType>(batch, SCHEMA.field(0))?,
            session_ids: ids(batch, SCHEMA.field(1))?,
            categories: texts(batch, SCHEMA.field(2))?,
            names: texts(batch, SCHEMA.field(3))?,
            data: texts(batch, SCHEMA.field(4))?,
            event_ids: ids(batch, SCHEMA.field(5))?,
            origins: numbers::<Int8Type>(batch, SCHEMA.field(6))?,
        };
        (0..columns.len()).try_for_each(|row| columns.check(row))?;
        Ok(columns)
    }
}

impl InteractionColumns {
    /// Whether a row out of the log is an event.
    fn check(&self, row: usize) -> Result<(), BadRecord> {
        let time = self.timestamps_us[row];
        if !INSTANTS_US.contains(&time) {
            return Err(BadRecord(format!("column timestamp, row {row}: {time} us is outside the years 1970 to 2100")));
        }
        for (field, text) in [("category", self.categories.get(row)), ("name", self.names.get(row))] {
            if let Some(fault) = text_fault(field, text) {
                let found = excerpt::quote(text);
                return Err(BadRecord(format!("column {field}, row {row}: found {found}: {fault}")));
            }
        }
        let data = self.data.get(row);
        // Reports hand it on as it is, so it must be JSON whoever wrote the record.
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(data).is_ok();
        if !(is_json && data.starts_with('{')) {
            let found = excerpt::quote(data);
            return Err(BadRecord(format!("column data, row {row}: expected the JSON of an object, found {found}")));
        }
        match Origin::from_number(self.origins[row]) {
            Some(Origin::None) if self.event_ids[row] != [0; 16] => {
                Err(BadRecord(format!("column event_id, row {row}: expected zeros where the origin is 0")))
            }
            Some(_) => Ok(()),
            None => {
                let found = self.origins[row];
                Err(BadRecord(format!("column event_id_origin, row {row}: expected 0, 1 or 2, found {found}")))
            }
        }
    }
}

/// Texts one behind the other, with the place where each begins and, at last, where the last one ends.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Texts {
    bytes: Vec<u8>,
    offsets: Vec<i64>,
}

impl Default for Texts {
    fn default() -> Texts {
        Texts { bytes: Vec::new(), offsets: vec![0] }
    }
}

impl Texts {
    #[inline]
    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.offsets.push(self.bytes.len() as i64);
    }

    #[inline]
    fn get(&self, row: usize) -> &str {
        let bytes = &self.bytes[self.offsets[row] as usize..self.offsets[row + 1] as usize];
        std::str::from_utf8(bytes).expect("whole texts were put in")
    }

    fn bytes_of(&self, rows: &Range<usize>) -> usize {
        (self.offsets[rows.end] - self.offsets[rows.start]) as usize
    }

    fn append(&mut self, from: &Texts, rows: Range<usize>) {
        let start = from.offsets[rows.start];
        let shift = self.bytes.len() as i64 - start;
        self.bytes.extend_from_slice(&from.bytes[start as usize..from.offsets[rows.end] as usize]);
        self.offsets.extend(from.offsets[rows.start + 1..=rows.end].iter().map(|offset| offset + shift));
    }

    fn into_array(self) -> ArrayRef {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.offsets));
        Arc::new(LargeStringArray::new(offsets, Buffer::from_vec(self.bytes), None))
    }
}

fn texts(batch: &RecordBatch, field: &Field) -> Result<Texts, BadRecord> {
    let array: &LargeStringArray = column(batch, field)?;
    let (first, last) = (array.value_offsets()[0], array.value_offsets()[array.len()]);
    let bytes = array.value_data()[first as usize..last as usize].to_vec();
    let offsets = array.value_offsets().iter().map(|offset| offset - first).collect();
    let texts = Texts { bytes, offsets };
    // The array has been checked when it was read; this is what `get` rests on.
    match (0..array.len()).all(|row| texts.is_text(row)) {
        true => Ok(texts),
        false => Err(BadRecord(format!("column {} holds what is not UTF-8", field.name()))),
    }
}

impl Texts {
    fn is_text(&self, row: usize) -> bool {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        self.bytes.get(range).is_some_and(|bytes| std::str::from_utf8(bytes).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use arrow::array::{FixedSizeBinaryArray, Int32Array, StringArray};
    use arrow::ipc::reader::StreamReader;
    use arrow::ipc::writer::StreamWriter;

    const DATA: [&str; 5] =
        ["{}", r#"{"a":1e999}"#, r#"{ "é" : "\ud800" }"#, r#"{"a":[{"b":null}]}"#, "{\"x\":\"\u{1f600}\"}"];

    fn random_event<'v>(dice: &mut Dice) -> InteractionEvent<'v> {
        let origin = *dice.pick(&[Origin::None, Origin::Sent, Origin::Made]);
        InteractionEvent {
            timestamp_us: dice.below(INSTANTS_US.end as usize) as i64,
            session_id: dice.id(),
            category: dice.pick::<&str>(&["page_interaction", "é"]),
            name: dice.pick::<&str>(&["pageview", "a.b", "x"]),
            data: dice.pick::<&str>(&DATA),
            event_id: if origin == Origin::None { [0; 16] } else { dice.id() },
            origin,
        }
    }

    fn some(rows: usize) -> (InteractionColumns, Vec<InteractionEvent<'static>>) {
        let mut dice = Dice::new("columns");
        let events: Vec<_> = (0..rows).map(|_| random_event(&mut dice)).collect();
        let mut columns = InteractionColumns::default();
        events.iter().for_each(|event| columns.push(event));
        (columns, events)
    }

    fn events(columns: &InteractionColumns) -> Vec<InteractionEvent<'_>> {
        (0..columns.len()).map(|row| columns.event(row)).collect()
    }

    fn with_column(name: &str, array: ArrayRef) -> RecordBatch {
        let mut columns = InteractionColumns::default();
        let event = InteractionEvent {
            timestamp_us: 1,
            session_id: [1; 16],
            category: "a",
            name: "b",
            data: "{}",
            event_id: [0; 16],
            origin: Origin::None,
        };
        columns.push(&event);
        columns.push(&event);
        let batch = columns.into_batch();
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let column = if field.name() == name { array.clone() } else { column.clone() };
            (field.name().clone(), column, true)
        });
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn refusal(batch: &RecordBatch) -> String {
        InteractionColumns::from_batch(batch).expect_err("refused").to_string()
    }

    #[test]
    fn a_batch_keeps_every_event() {
        let (columns, expected) = some(1000);
        let texts: usize =
            expected.iter().map(|event| event.category.len() + event.name.len() + event.data.len()).sum();
        assert_eq!((columns.len(), columns.bytes()), (1000, 65 * 1000 + texts));
        let batch = columns.clone().into_batch();
        assert_eq!(batch.schema(), InteractionColumns::schema());
        let read = InteractionColumns::from_batch(&batch).unwrap();
        assert_eq!(read, columns);
        assert_eq!(events(&read), expected);
        for (row, event) in expected.iter().enumerate() {
            let lane = match event.origin {
                Origin::None => None,
                Origin::Sent => Some(0),
                Origin::Made => Some(1),
            };
            assert_eq!(read.key(row), lane.map(|lane| Key { lane, id: event.event_id }));
        }
        assert!(InteractionColumns::from_batch(&InteractionColumns::default().into_batch()).unwrap().is_empty());
    }

    #[test]
    fn appends_ranges_and_reads_slices() {
        let (columns, all) = some(100);
        let mut joined = InteractionColumns::default();
        joined.append(&columns, 90..100);
        joined.append(&columns, 0..0);
        joined.append(&columns, 0..5);
        let expected: Vec<_> = all[90..].iter().chain(&all[..5]).copied().collect();
        assert_eq!(events(&joined), expected);
        let read = InteractionColumns::from_batch(&columns.into_batch().slice(10, 20)).unwrap();
        assert_eq!(events(&read), all[10..30]);
    }

    #[test]
    fn reads_other_orders_and_more_columns() {
        let (columns, _) = some(50);
        let batch = columns.clone().into_batch();
        let more: ArrayRef = Arc::new(Int32Array::from(vec![7; 50]));
        let turned = batch.schema().fields().iter().rev().map(|field| field.name().clone()).collect::<Vec<_>>();
        let turned = turned.iter().map(|name| (name.as_str(), batch.column_by_name(name).unwrap().clone()));
        let turned = RecordBatch::try_from_iter([("more", more)].into_iter().chain(turned)).unwrap();
        assert_eq!(InteractionColumns::from_batch(&turned).unwrap(), columns);
    }

    #[test]
    fn refuses_what_is_no_event() {
        let texts = |values: [&str; 2]| -> ArrayRef { Arc::new(LargeStringArray::from(values.to_vec())) };
        let ids = |second: u8| -> ArrayRef {
            Arc::new(FixedSizeBinaryArray::new(16, Buffer::from_vec([[0; 16], [second; 16]].concat()), None))
        };
        let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0, INSTANTS_US.end]).with_timezone("UTC"));
        for (name, array, expected) in [
            ("timestamp", time, "column timestamp, row 1: 4133980800000000 us is outside the years 1970 to 2100"),
            ("category", texts(["a", ""]), "column category, row 1: found \"\": it is empty"),
            ("category", texts(["a", "a.b"]), "column category, row 1: found \"a.b\": a category has no dot"),
            ("name", texts(["a.b", "a\n"]), "column name, row 1: found \"a\\n\": it holds a control character"),
            ("data", texts(["{}", "[]"]), "column data, row 1: expected the JSON of an object, found \"[]\""),
            ("data", texts(["{}", "{"]), "column data, row 1: expected the JSON of an object, found \"{\""),
            ("data", texts(["{}", "{}}"]), "column data, row 1: expected the JSON of an object, found \"{}}\""),
            ("event_id", ids(1), "column event_id, row 1: expected zeros where the origin is 0"),
            (
                "event_id_origin",
                Arc::new(Int8Array::from(vec![0, 3])),
                "column event_id_origin, row 1: expected 0, 1 or 2, found 3",
            ),
            ("event_id_origin", Arc::new(Int8Array::from(vec![Some(0), None])), "column event_id_origin holds 1 nulls"),
            ("name", Arc::new(StringArray::from(vec!["a", "b"])), "column name: expected LargeUtf8, found Utf8"),
        ] {
            assert_eq!(refusal(&with_column(name, array)), expected);
        }
        let part = with_column("", texts(["", ""])).project(&[0, 1, 2, 3, 4, 6]).unwrap();
        assert_eq!(refusal(&part), "column event_id is missing");
    }

    #[test]
    fn damage_is_refused_or_yields_events_that_can_be_read() {
        let mut stream = Vec::new();
        let batch = some(20).0.into_batch();
        let mut writer = StreamWriter::try_new(&mut stream, &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        let mut dice = Dice::new("damage");
        let mut read_anyway = 0;
        for _ in 0..5_000 {
            let mut damaged = stream.clone();
            for _ in 0..=dice.below(3) {
                let at = dice.below(damaged.len());
                damaged[at] = dice.any() as u8;
            }
            // The library panics on some damage, as whoever reads records knows; what it makes a batch of must not.
            let batches = std::panic::catch_unwind(|| {
                StreamReader::try_new(damaged.as_slice(), None).into_iter().flatten().flatten().collect::<Vec<_>>()
            });
            for batch in batches.unwrap_or_default() {
                if let Ok(columns) = InteractionColumns::from_batch(&batch) {
                    read_anyway += events(&columns).len();
                }
            }
        }
        assert!(read_anyway > 0);
    }
}
