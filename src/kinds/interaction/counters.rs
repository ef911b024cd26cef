//! How many interactions there were, by UTC day and type.
//!
//! | column | Arrow type | ClickHouse |
//! |---|---|---|
//! | `day` | date32 | Date32 |
//! | `category`, `name` | utf8 | LowCardinality(String) |
//! | `count` | uint64 | UInt64 |

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Date32Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::{Equivalent, HashMap};

use super::columns::InteractionColumns;
use crate::kinds::Counters;
use crate::kinds::instant::day_of;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("day", DataType::Date32, false),
        Field::new("category", DataType::Utf8, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("count", DataType::UInt64, false),
    ]))
});

/// The name of a counter: day (since 1970), category, name.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name(i32, String, String);

/// The same, borrowed: hashes alike.
#[derive(Hash)]
struct NameRef<'n>(i32, &'n str, &'n str);

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.0 == name.0 && self.1 == name.1 && self.2 == name.2
    }
}

/// The sums of one block.
#[derive(Debug, Default)]
pub struct InteractionCounters {
    counts: HashMap<Name, u64>,
}

impl Counters<InteractionColumns> for InteractionCounters {
    fn count(&mut self, columns: &InteractionColumns, row: usize) {
        let event = columns.event(row);
        let day = day_of(event.timestamp_us);
        match self.counts.get_mut(&NameRef(day, event.category, event.name)) {
            Some(count) => *count += 1,
            None => {
                self.counts.insert(Name(day, event.category.to_owned(), event.name.to_owned()), 1);
            }
        }
    }

    /// In the order of day, category, name: the same events always make the same batch.
    fn to_batch(&self) -> RecordBatch {
        let mut rows: Vec<_> = self.counts.iter().collect();
        rows.sort_unstable();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Date32Array::from_iter_values(rows.iter().map(|(name, _)| name.0))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(name, _)| &name.1))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(name, _)| &name.2))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, count)| **count))),
        ];
        RecordBatch::try_new(SCHEMA.clone(), columns).expect("the columns have the schema's types and one length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::instant::DAY_US;
    use crate::kinds::interaction::{InteractionEvent, Origin};
    use arrow::array::AsArray;
    use arrow::datatypes::{Date32Type, UInt64Type};
    use std::collections::BTreeMap;

    #[test]
    fn adds_up_in_order() {
        let mut dice = Dice::new("adds_up_in_order");
        let mut columns = InteractionColumns::default();
        let mut expected: BTreeMap<(i32, String, String), u64> = BTreeMap::new();
        for _ in 0..10_000 {
            let (day, category, name) =
                (dice.below(40_000) as i32 % 7 * 3000, *dice.pick(&["a", "b", "ab"]), *dice.pick(&["b", "c", "é"]));
            // The first and the last microsecond of a day belong to it.
            let within = *dice.pick(&[0, 1, DAY_US - 1]);
            let timestamp_us = i64::from(day) * DAY_US + within;
            let session_id = dice.id();
            columns.push(&InteractionEvent {
                timestamp_us,
                session_id,
                category,
                name,
                data: "{}",
                event_id: [0; 16],
                origin: Origin::None,
            });
            *expected.entry((day, category.to_owned(), name.to_owned())).or_default() += 1;
        }
        let mut counters = InteractionCounters::default();
        (0..10_000).for_each(|row| counters.count(&columns, row));
        let batch = counters.to_batch();
        let days = batch.column(0).as_primitive::<Date32Type>();
        let (categories, names) = (batch.column(1).as_string::<i32>(), batch.column(2).as_string::<i32>());
        let counts = batch.column(3).as_primitive::<UInt64Type>();
        let read: Vec<_> = (0..batch.num_rows())
            .map(|row| {
                let name = (days.value(row), categories.value(row).to_owned(), names.value(row).to_owned());
                (name, counts.value(row))
            })
            .collect();
        assert_eq!(read, expected.into_iter().collect::<Vec<_>>());
        assert_eq!(InteractionCounters::default().to_batch().num_rows(), 0);
    }
}
