//! Hits as columns, as they lie in the log.
//!
//! | column | Arrow type |
//! |---|---|
//! | `timestamp` | timestamp(ms, "UTC") |
//! | `user` | utf8, 1 to 256 bytes |
//! | `action` | int8: 1 click, 2 impression |
//! | `event_id` | fixed_size_binary(16), in the order of the text; zero where the origin is 0 |
//! | `event_id_origin` | int8: 0 none, 1 sent, 2 made from an `Idempotency-Key` |
//!
//! None of them is ever null. Whatever a [`HitColumns`] holds is valid: it comes from a parsed event or from a record that
//! was checked.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Int8Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int8Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};

use super::parse::{HitAction, HitEvent, HitId};
use super::{INSTANTS_MS, USER_BYTES_MAX};
use crate::kinds::record_columns::{column, id_array, ids, numbers};
use crate::kinds::{BadRecord, Columns};

/// Bytes of one event besides its user's name: 8 for the time, 4 for where the name ends, 1 for the action, 16 and 1 for
/// the identity.
const ROW_BYTES: usize = 8 + 4 + 1 + 16 + 1;

/// The numbers of [`HitId`].
const NONE: i8 = 0;
const SENT: i8 = 1;
const MADE: i8 = 2;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        Field::new("user", DataType::Utf8, false),
        Field::new("action", DataType::Int8, false),
        Field::new("event_id", DataType::FixedSizeBinary(16), false),
        Field::new("event_id_origin", DataType::Int8, false),
    ]))
});

/// Hits, one vector for each column.
///
/// The users' names lie one behind the other; a block of a million rows holds 256 MB of them at most, far below what the
/// 32 bits of Arrow's `utf8` can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HitColumns {
    timestamps_ms: Vec<i64>,
    user_text: String,
    /// Where each name begins, and after them where the last one ends: one more than there are rows.
    user_offsets: Vec<i32>,
    actions: Vec<i8>,
    event_ids: Vec<[u8; 16]>,
    origins: Vec<i8>,
}

impl Default for HitColumns {
    fn default() -> Self {
        HitColumns {
            timestamps_ms: Vec::new(),
            user_text: String::new(),
            user_offsets: vec![0],
            actions: Vec::new(),
            event_ids: Vec::new(),
            origins: Vec::new(),
        }
    }
}

impl HitColumns {
    /// Adds one event.
    #[inline]
    pub fn push(&mut self, event: &HitEvent<'_>) {
        let (origin, event_id) = match event.id {
            HitId::None => (NONE, [0; 16]),
            HitId::Sent(id) => (SENT, id),
            HitId::Made(id) => (MADE, id),
        };
        self.timestamps_ms.push(event.timestamp_ms);
        self.push_user(&event.user);
        self.actions.push(event.action as i8);
        self.event_ids.push(event_id);
        self.origins.push(origin);
    }

    #[inline]
    fn push_user(&mut self, user: &str) {
        self.user_text.push_str(user);
        self.user_offsets.push(self.user_text.len() as i32);
    }

    /// When the event of a row happened, in milliseconds since 1970.
    #[inline]
    pub fn timestamp_ms(&self, row: usize) -> i64 {
        self.timestamps_ms[row]
    }

    /// Whose it is.
    #[inline]
    pub fn user(&self, row: usize) -> &str {
        &self.user_text[self.user_offsets[row] as usize..self.user_offsets[row + 1] as usize]
    }

    /// What happened.
    #[inline]
    pub fn action(&self, row: usize) -> HitAction {
        if self.actions[row] == HitAction::Click as i8 { HitAction::Click } else { HitAction::Impression }
    }

    /// Which it is.
    #[inline]
    pub fn id(&self, row: usize) -> HitId {
        match self.origins[row] {
            NONE => HitId::None,
            SENT => HitId::Sent(self.event_ids[row]),
            _ => HitId::Made(self.event_ids[row]),
        }
    }
}

impl Columns for HitColumns {
    fn len(&self) -> usize {
        self.timestamps_ms.len()
    }

    fn bytes_of(&self, rows: Range<usize>) -> usize {
        let text = self.user_offsets[rows.end] - self.user_offsets[rows.start];
        rows.len() * ROW_BYTES + text as usize
    }

    fn reserve(&mut self, rows: usize, bytes: usize) {
        self.timestamps_ms.reserve(rows);
        self.user_text.reserve(bytes.saturating_sub(rows * ROW_BYTES));
        self.user_offsets.reserve(rows);
        self.actions.reserve(rows);
        self.event_ids.reserve(rows);
        self.origins.reserve(rows);
    }

    fn append(&mut self, from: &Self, rows: Range<usize>) {
        let text = from.user_offsets[rows.start] as usize..from.user_offsets[rows.end] as usize;
        let shift = self.user_text.len() as i32 - text.start as i32;
        self.user_text.push_str(&from.user_text[text]);
        self.user_offsets.extend(from.user_offsets[rows.start + 1..=rows.end].iter().map(|offset| offset + shift));
        self.timestamps_ms.extend_from_slice(&from.timestamps_ms[rows.clone()]);
        self.actions.extend_from_slice(&from.actions[rows.clone()]);
        self.event_ids.extend_from_slice(&from.event_ids[rows.clone()]);
        self.origins.extend_from_slice(&from.origins[rows]);
    }

    fn schema() -> SchemaRef {
        SCHEMA.clone()
    }

    fn into_batch(self) -> RecordBatch {
        let offsets = OffsetBuffer::new(ScalarBuffer::from(self.user_offsets));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMillisecondArray::from(self.timestamps_ms).with_timezone("UTC")),
            Arc::new(StringArray::new(offsets, Buffer::from_vec(self.user_text.into_bytes()), None)),
            Arc::new(Int8Array::from(self.actions)),
            id_array(self.event_ids),
            Arc::new(Int8Array::from(self.origins)),
        ];
        RecordBatch::try_new(Self::schema(), columns).expect("the columns have the schema's types and one length")
    }

    fn from_batch(batch: &RecordBatch) -> Result<Self, BadRecord> {
        let timestamps_ms = numbers::<TimestampMillisecondType>(batch, SCHEMA.field(0))?;
        let (user_text, user_offsets) = users(batch, SCHEMA.field(1))?;
        let actions = numbers::<Int8Type>(batch, SCHEMA.field(2))?;
        let event_ids = ids(batch, SCHEMA.field(3))?;
        let origins = numbers::<Int8Type>(batch, SCHEMA.field(4))?;
        let bad =
            |column: &str, row: usize, what: String| Err(BadRecord(format!("column {column}, row {row}: {what}")));
        if let Some(row) = timestamps_ms.iter().position(|instant| !INSTANTS_MS.contains(instant)) {
            return bad("timestamp", row, format!("{} ms is outside the years 1970 to 2100", timestamps_ms[row]));
        }
        if let Some(row) = actions.iter().position(|number| HitAction::from_number(*number).is_none()) {
            return bad("action", row, format!("expected 1 (click) or 2 (impression), found {}", actions[row]));
        }
        if let Some(row) = origins.iter().position(|origin| !(NONE..=MADE).contains(origin)) {
            let found = origins[row];
            return bad("event_id_origin", row, format!("expected 0 (none), 1 (sent) or 2 (made), found {found}"));
        }
        // An identity that counts for nothing would be stored all the same.
        if let Some(row) = (0..origins.len()).find(|row| origins[*row] == NONE && event_ids[*row] != [0; 16]) {
            return bad("event_id", row, "expected zeros, because its origin is 0 (none)".to_owned());
        }
        Ok(HitColumns { timestamps_ms, user_text, user_offsets, actions, event_ids, origins })
    }
}

/// The names one behind the other, and where each begins. They are copied one by one, because a batch may be a slice, and
/// what lies between its names need not be text.
fn users(batch: &RecordBatch, field: &Field) -> Result<(String, Vec<i32>), BadRecord> {
    let array: &StringArray = column(batch, field)?;
    let mut users = HitColumns::default();
    users.user_offsets.reserve(array.len());
    for (row, user) in array.iter().enumerate() {
        // There are no nulls, and an empty name is refused like one.
        let user = user.unwrap_or_default();
        if !(1..=USER_BYTES_MAX).contains(&user.len()) {
            let bytes = user.len();
            return Err(BadRecord(format!(
                "column user, row {row}: expected 1 to {USER_BYTES_MAX} bytes, found {bytes}"
            )));
        }
        users.push_user(user);
    }
    Ok((users.user_text, users.user_offsets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::hit::Hit;
    use crate::log::record::{decode, encode};
    use arrow::array::{
        FixedSizeBinaryArray, Int32Array, LargeStringArray, StringViewArray, TimestampMicrosecondArray,
    };

    fn random_event(dice: &mut Dice) -> HitEvent<'static> {
        let users = ["a", "anna", "ä😀", "a name with spaces"];
        let user = if dice.once_in(50) { "ü".repeat(128) } else { (*dice.pick(&users)).to_owned() };
        HitEvent {
            timestamp_ms: dice.below(INSTANTS_MS.end as usize) as i64,
            user: user.into(),
            action: *dice.pick(&[HitAction::Click, HitAction::Impression]),
            id: match dice.below(3) {
                0 => HitId::None,
                1 => HitId::Sent(dice.id()),
                _ => HitId::Made(dice.id()),
            },
        }
    }

    fn some(rows: usize) -> (HitColumns, Vec<HitEvent<'static>>) {
        let mut dice = Dice::new("columns");
        let events: Vec<HitEvent> = (0..rows).map(|_| random_event(&mut dice)).collect();
        let mut columns = HitColumns::default();
        events.iter().for_each(|event| columns.push(event));
        (columns, events)
    }

    fn events(columns: &HitColumns) -> Vec<HitEvent<'static>> {
        let event = |row| HitEvent {
            timestamp_ms: columns.timestamp_ms(row),
            user: columns.user(row).to_owned().into(),
            action: columns.action(row),
            id: columns.id(row),
        };
        (0..columns.len()).map(event).collect()
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
        HitColumns::from_batch(batch).expect_err("refused").to_string()
    }

    #[test]
    fn a_batch_keeps_every_event() {
        let (columns, expected) = some(1000);
        let text: usize = expected.iter().map(|event| event.user.len()).sum();
        assert_eq!((columns.len(), columns.bytes()), (1000, 30_000 + text));
        assert_eq!(columns.bytes_of(3..5), 60 + expected[3].user.len() + expected[4].user.len());
        assert_eq!(columns.bytes_of(1000..1000), 0);
        assert_eq!(events(&columns), expected);
        let batch = columns.clone().into_batch();
        assert_eq!(batch.schema(), HitColumns::schema());
        assert_eq!(HitColumns::from_batch(&batch).unwrap(), columns);
        let empty = HitColumns::default().into_batch();
        assert!(HitColumns::from_batch(&empty).unwrap().is_empty());
    }

    #[test]
    fn a_batch_is_made_without_copies() {
        let (columns, _) = some(100);
        let (text, offsets) = (columns.user_text.as_ptr(), columns.user_offsets.as_ptr().cast::<u8>());
        let user = columns.into_batch().column(1).to_data();
        assert_eq!([user.buffers()[0].as_ptr(), user.buffers()[1].as_ptr()], [offsets, text]);
    }

    #[test]
    fn appends_ranges() {
        let (columns, expected) = some(100);
        let mut joined = HitColumns::default();
        joined.append(&columns, 90..100);
        joined.append(&columns, 0..0);
        joined.append(&columns, 100..100);
        joined.append(&columns, 0..5);
        assert_eq!(events(&joined), [&expected[90..], &expected[..5]].concat());
        assert_eq!(HitColumns::from_batch(&joined.clone().into_batch()).unwrap(), joined);
    }

    #[test]
    fn reads_slices_other_orders_and_more_columns() {
        let (columns, _) = some(50);
        let batch = columns.clone().into_batch();
        let mut part = HitColumns::default();
        part.append(&columns, 10..30);
        assert_eq!(HitColumns::from_batch(&batch.slice(10, 20)).unwrap(), part);
        let more: ArrayRef = Arc::new(Int32Array::from(vec![7; 50]));
        let turned = ["event_id_origin", "user", "action", "timestamp", "event_id"]
            .map(|name| (name, batch.column_by_name(name).unwrap().clone()));
        let turned = RecordBatch::try_from_iter([("more", more)].into_iter().chain(turned)).unwrap();
        assert_eq!(HitColumns::from_batch(&turned).unwrap(), columns);
    }

    #[test]
    fn refuses_what_is_no_event() {
        let batch = some(2).0.into_batch();
        for (missing, name) in ["timestamp", "user", "action", "event_id", "event_id_origin"].iter().enumerate() {
            let rest: Vec<usize> = (0..5).filter(|column| *column != missing).collect();
            assert_eq!(refusal(&batch.project(&rest).unwrap()), format!("column {name} is missing"));
        }
        let utc = |times: Vec<Option<i64>>| -> ArrayRef {
            Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC"))
        };
        assert_eq!(refusal(&with_column("timestamp", utc(vec![Some(1), None]))), "column timestamp holds 1 nulls");
        for time in [-1, INSTANTS_MS.end] {
            let message = format!("column timestamp, row 1: {time} ms is outside the years 1970 to 2100");
            assert_eq!(refusal(&with_column("timestamp", utc(vec![Some(0), Some(time)]))), message);
        }
        let micros: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("UTC"));
        assert!(refusal(&with_column("timestamp", micros)).starts_with("column timestamp: expected Timestamp("));
        for (name, allowed, numbers) in [
            ("action", "1 (click) or 2 (impression)", [0, 3, -1, i8::MIN]),
            ("event_id_origin", "0 (none), 1 (sent) or 2 (made)", [3, 4, -1, i8::MIN]),
        ] {
            for number in numbers {
                let message = format!("column {name}, row 1: expected {allowed}, found {number}");
                assert_eq!(refusal(&with_column(name, Arc::new(Int8Array::from(vec![2, number])))), message);
            }
        }
        let short: ArrayRef = Arc::new(FixedSizeBinaryArray::new(8, Buffer::from_vec(vec![0u8; 16]), None));
        assert!(refusal(&with_column("event_id", short)).starts_with("column event_id: expected FixedSizeBinary(16)"));
        let mut one = HitColumns::default();
        one.push(&HitEvent { id: HitId::Sent([7; 16]), ..some(1).1.remove(0) });
        one.origins[0] = NONE;
        assert!(refusal(&one.into_batch()).starts_with("column event_id, row 0: expected zeros"));
    }

    #[test]
    fn refuses_what_is_no_user() {
        for (user, found) in [("", "0"), (&*"x".repeat(257), "257"), (&*"ä".repeat(129), "258")] {
            let message = format!("column user, row 1: expected 1 to 256 bytes, found {found}");
            assert_eq!(refusal(&with_column("user", Arc::new(StringArray::from(vec!["a", user])))), message);
        }
        let nulls: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        assert_eq!(refusal(&with_column("user", nulls)), "column user holds 1 nulls");
        let others: [ArrayRef; 3] = [
            Arc::new(LargeStringArray::from(vec!["a", "b"])),
            Arc::new(StringViewArray::from(vec!["a", "b"])),
            Arc::new(Int8Array::from(vec![1, 2])),
        ];
        for other in others {
            assert!(refusal(&with_column("user", other)).starts_with("column user: expected Utf8, found"));
        }
    }

    /// Whoever can write to the topic can write anything: offsets that point elsewhere, text that is none.
    #[test]
    fn damaged_records_never_panic() {
        let mut dice = Dice::new("damaged hits");
        let (columns, _) = some(20);
        let whole = encode(columns.clone());
        assert_eq!(decode::<Hit>(&[], &whole).unwrap(), columns);
        let mut refused = 0;
        for _ in 0..30_000 {
            let mut value = whole.clone();
            for _ in 0..=dice.below(3) {
                let at = dice.below(value.len());
                match dice.below(3) {
                    0 => value[at] = dice.below(256) as u8,
                    1 => value[at] ^= 1 << dice.below(8),
                    _ => value.truncate(at.max(1)),
                }
            }
            match decode::<Hit>(&[], &value) {
                Ok(read) => assert!(HitColumns::from_batch(&read.into_batch()).is_ok()),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 5000, "{refused} of 30000 damaged records were refused");
    }
}
