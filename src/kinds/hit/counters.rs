//! How many clicks and impressions each user has in each UTC hour.
//!
//! | column | Arrow type | ClickHouse |
//! |---|---|---|
//! | `hour` | uint32, seconds since 1970 | DateTime |
//! | `user` | utf8 | String |
//! | `clicks`, `impressions` | uint64 | UInt64 |
//!
//! The users of an hour are the set of its counters, whichever writer and partition they come from: so their number is
//! exact.

use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::columns::{HitColumns, utf8};
use super::hour_of;
use super::parse::HitAction;
use crate::kinds::Counters;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("hour", DataType::UInt32, false),
        Field::new("user", DataType::Utf8, false),
        Field::new("clicks", DataType::UInt64, false),
        Field::new("impressions", DataType::UInt64, false),
    ]))
});

/// One counter; its user's name lies in [`HitCounters::names`].
#[derive(Debug)]
struct Counter {
    hash: u64,
    hour: u32,
    name_start: u32,
    name_bytes: u32,
    clicks: u64,
    impressions: u64,
}

/// The sums of one block.
///
/// A range has up to one counter for each of its hits, so a look-up allocates nothing: names lie one behind the other
/// (those of a block take 256 MB at most), and the table holds places within `counters`. The hashes are seeded at
/// random, so that a sender cannot choose names that collide.
#[derive(Debug, Default)]
pub struct HitCounters {
    places: HashTable<u32>,
    counters: Vec<Counter>,
    names: String,
    hasher: DefaultHashBuilder,
}

impl Counter {
    #[inline]
    fn name<'n>(&self, names: &'n str) -> &'n str {
        let start = self.name_start as usize;
        &names[start..start + self.name_bytes as usize]
    }
}

impl HitCounters {
    /// The counter of a user in an hour.
    #[inline]
    fn counter(&mut self, hour: u32, user: &str) -> &mut Counter {
        let HitCounters { places, counters, names, hasher } = self;
        let hash = hasher.hash_one((hour, user));
        let is_it = |place: &u32| {
            let counter = &counters[*place as usize];
            counter.hash == hash && counter.hour == hour && counter.name(names) == user
        };
        let place = match places.find(hash, is_it) {
            Some(place) => *place,
            None => {
                let place = counters.len() as u32;
                places.insert_unique(hash, place, |place| counters[*place as usize].hash);
                let (name_start, name_bytes) = (names.len() as u32, user.len() as u32);
                names.push_str(user);
                counters.push(Counter { hash, hour, name_start, name_bytes, clicks: 0, impressions: 0 });
                place
            }
        };
        &mut counters[place as usize]
    }
}

impl Counters<HitColumns> for HitCounters {
    #[inline]
    fn count(&mut self, columns: &HitColumns, row: usize) {
        let counter = self.counter(hour_of(columns.timestamp_ms(row)), columns.user(row));
        match columns.action(row) {
            HitAction::Click => counter.clicks += 1,
            HitAction::Impression => counter.impressions += 1,
        }
    }

    /// In the order of hour, then the user's bytes: the same events always make the same batch, and ClickHouse, which
    /// keeps them in this order, has nothing to sort.
    fn to_batch(&self) -> RecordBatch {
        let mut rows: Vec<&Counter> = self.counters.iter().collect();
        rows.sort_unstable_by_key(|counter| (counter.hour, counter.name(&self.names)));
        let (mut text, mut offsets) = (String::with_capacity(self.names.len()), Vec::with_capacity(rows.len() + 1));
        offsets.push(0);
        for counter in &rows {
            text.push_str(counter.name(&self.names));
            offsets.push(text.len() as i32);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|counter| counter.hour))),
            Arc::new(utf8(offsets, text)),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|counter| counter.clicks))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|counter| counter.impressions))),
        ];
        RecordBatch::try_new(SCHEMA.clone(), columns).expect("the columns have the schema's types and one length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::hit::{HitEvent, HitId};
    use arrow::array::AsArray;
    use arrow::datatypes::{UInt32Type, UInt64Type};
    use std::collections::BTreeMap;

    #[test]
    fn adds_up_in_order() {
        let mut dice = Dice::new("hits add up");
        // Names that begin alike, and whose bytes sort otherwise than their letters.
        let users: Vec<String> =
            (0..300).map(|n| format!("{}{}", ["a", "aa", "Z", "ä", "\0"][n % 5], "x".repeat(n / 5))).collect();
        let mut columns = HitColumns::default();
        let mut expected: BTreeMap<(u32, &str), (u64, u64)> = BTreeMap::new();
        for _ in 0..20_000 {
            let (hour, user) = (dice.below(5) as u32 * 3600 * 250_000, dice.pick(&users).as_str());
            // The first and the last millisecond of an hour belong to it.
            let timestamp_ms = i64::from(hour) * 1000 + dice.pick(&[0, 1, 3_599_999]);
            let action = *dice.pick(&[HitAction::Click, HitAction::Impression]);
            columns.push(&HitEvent { timestamp_ms, user: user.into(), action, id: HitId::None });
            let count = expected.entry((hour, user)).or_default();
            if action == HitAction::Click { count.0 += 1 } else { count.1 += 1 }
        }
        let mut counters = HitCounters::default();
        (0..20_000).for_each(|row| counters.count(&columns, row));
        let batch = counters.to_batch();
        let (hours, users) = (batch.column(0).as_primitive::<UInt32Type>(), batch.column(1).as_string::<i32>());
        let (clicks, impressions) =
            (batch.column(2).as_primitive::<UInt64Type>(), batch.column(3).as_primitive::<UInt64Type>());
        let read: Vec<_> = (0..batch.num_rows())
            .map(|row| ((hours.value(row), users.value(row)), (clicks.value(row), impressions.value(row))))
            .collect();
        assert_eq!(read, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_an_empty_batch() {
        assert_eq!(HitCounters::default().to_batch().num_rows(), 0);
    }
}
