//! How many clicks and impressions each user has in each UTC hour.
//!
//! | column | Arrow type | ClickHouse |
//! |---|---|---|
//! | `hour` | uint32, seconds since 1970 | DateTime |
//! | `user_hash` | fixed_size_binary(16), little-endian | UInt128 |
//! | `clicks`, `impressions` | uint64 | UInt64 |
//!
//! The users of an hour are the set of its counters, whichever writer and partition they come from: so their number is
//! exact. A user is 128 bits of a hash here ([`hash_of`]): what ClickHouse's own exact count keeps of a text, at less than
//! half its cost. The texts are in the events.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashMap;
use siphasher::sip128::SipHasher24;

use super::columns::HitColumns;
use super::hour_of;
use super::parse::HitAction;
use crate::kinds::Counters;
use crate::kinds::record_columns::id_array;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("hour", DataType::UInt32, false),
        Field::new("user_hash", DataType::FixedSizeBinary(16), false),
        Field::new("clicks", DataType::UInt64, false),
        Field::new("impressions", DataType::UInt64, false),
    ]))
});

/// SipHash-2-4 with 128 bits under a zero key, as a little-endian number: in ClickHouse
/// `reinterpretAsUInt128(sipHash128Reference(user))`. Part of the data: it never changes.
#[inline]
pub fn hash_of(user: &str) -> u128 {
    let hash = SipHasher24::new().hash(user.as_bytes());
    u128::from(hash.h1) | u128::from(hash.h2) << 64
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    clicks: u64,
    impressions: u64,
}

/// The sums of one block, by hour (its start in seconds since 1970) and the user's hash. There may be one for each hit.
#[derive(Debug, Default)]
pub struct HitCounters {
    counts: HashMap<(u32, u128), Count>,
}

impl Counters<HitColumns> for HitCounters {
    #[inline]
    fn count(&mut self, columns: &HitColumns, row: usize) {
        let key = (hour_of(columns.timestamp_ms(row)), hash_of(columns.user(row)));
        let count = self.counts.entry(key).or_default();
        match columns.action(row) {
            HitAction::Click => count.clicks += 1,
            HitAction::Impression => count.impressions += 1,
        }
    }

    /// In the order of hour, then hash: the same events always make the same batch, and ClickHouse, which keeps them in
    /// this order, has nothing to sort.
    fn to_batch(&self) -> RecordBatch {
        let mut rows: Vec<_> = self.counts.iter().map(|(key, count)| (*key, *count)).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let hashes: Vec<[u8; 16]> = rows.iter().map(|((_, hash), _)| hash.to_le_bytes()).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|((hour, _), _)| *hour))),
            id_array(hashes),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, count)| count.clicks))),
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, count)| count.impressions))),
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
        let users: Vec<String> =
            (0..300).map(|n| format!("{}{}", ["a", "aa", "Z", "ä", "\0"][n % 5], "x".repeat(n / 5))).collect();
        let mut columns = HitColumns::default();
        let mut expected: BTreeMap<(u32, u128), (u64, u64)> = BTreeMap::new();
        for _ in 0..20_000 {
            let (hour, user) = (dice.below(5) as u32 * 3600 * 250_000, dice.pick(&users).as_str());
            // The first and the last millisecond of an hour belong to it.
            let timestamp_ms = i64::from(hour) * 1000 + dice.pick(&[0, 1, 3_599_999]);
            let action = *dice.pick(&[HitAction::Click, HitAction::Impression]);
            columns.push(&HitEvent { timestamp_ms, user: user.into(), action, id: HitId::None });
            let count = expected.entry((hour, hash_of(user))).or_default();
            if action == HitAction::Click { count.0 += 1 } else { count.1 += 1 }
        }
        let mut counters = HitCounters::default();
        (0..20_000).for_each(|row| counters.count(&columns, row));
        let batch = counters.to_batch();
        let (hours, hashes) = (batch.column(0).as_primitive::<UInt32Type>(), batch.column(1).as_fixed_size_binary());
        let (clicks, impressions) =
            (batch.column(2).as_primitive::<UInt64Type>(), batch.column(3).as_primitive::<UInt64Type>());
        let read: Vec<_> = (0..batch.num_rows())
            .map(|row| ((hours.value(row), u128::from_le_bytes(hashes.value(row).try_into().unwrap())), row))
            .map(|(key, row)| (key, (clicks.value(row), impressions.value(row))))
            .collect();
        assert_eq!(read, expected.into_iter().collect::<Vec<_>>());
    }

    /// They are stored, and `millrace verify` has ClickHouse make them again, which made these.
    #[test]
    fn hashes_never_change() {
        for (user, hash) in [
            ("anna", 317_085_519_461_793_975_530_873_878_183_209_342_948),
            ("ä😀 name", 82_212_596_109_580_125_814_337_451_026_012_160_679),
        ] {
            assert_eq!(hash_of(user), hash, "{user}");
        }
    }

    #[test]
    fn nothing_is_an_empty_batch() {
        assert_eq!(HitCounters::default().to_batch().num_rows(), 0);
    }
}
