//! How many captchas were served and solved, by site and UTC day.
//!
//! | column | Arrow type | ClickHouse |
//! |---|---|---|
//! | `day` | date32 | Date32 |
//! | `site_id` | fixed_size_binary(16) | UUID |
//! | `served`, `solved` | uint64 | UInt64 |

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Date32Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashMap;

use super::columns::CaptchaColumns;
use super::parse::CaptchaType;
use crate::kinds::Counters;
use crate::kinds::instant::day_of;
use crate::kinds::record_columns::id_array;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("day", DataType::Date32, false),
        Field::new("site_id", DataType::FixedSizeBinary(16), false),
        Field::new("served", DataType::UInt64, false),
        Field::new("solved", DataType::UInt64, false),
    ]))
});

/// A block has fewer events than this can count.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    served: u32,
    solved: u32,
}

/// The sums of one block, by day (since 1970) and site.
///
/// Sites are numbered as they come, so that what is looked up for each event is small: a range under load has some
/// 30,000 counters, which would not fit into a core's own cache with the sites' 16 bytes in each.
#[derive(Debug, Default)]
pub struct CaptchaCounters {
    numbers: HashMap<[u8; 16], u32>,
    counts: HashMap<(i32, u32), Count>,
}

impl Counters<CaptchaColumns> for CaptchaCounters {
    #[inline]
    fn count(&mut self, columns: &CaptchaColumns, row: usize) {
        let next = self.numbers.len() as u32;
        let site = *self.numbers.entry(*columns.site_id(row)).or_insert(next);
        let count = self.counts.entry((day_of(columns.time_us(row)), site)).or_default();
        match columns.captcha_type(row) {
            CaptchaType::Serve => count.served += 1,
            CaptchaType::Solve => count.solved += 1,
        }
    }

    /// In the order of day, then site: the same events always make the same batch.
    fn to_batch(&self) -> RecordBatch {
        let mut sites: Vec<([u8; 16], u32)> = self.numbers.iter().map(|(site, number)| (*site, *number)).collect();
        sites.sort_unstable();
        let mut ranks = vec![0; sites.len()];
        for (rank, (_, number)) in (0u32..).zip(&sites) {
            ranks[*number as usize] = rank;
        }
        let ranked = self.counts.iter().map(|((day, number), count)| ((*day, ranks[*number as usize]), *count));
        let mut rows: Vec<((i32, u32), Count)> = ranked.collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let count = |of: fn(&Count) -> u32| -> ArrayRef {
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|(_, count)| u64::from(of(count)))))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Date32Array::from_iter_values(rows.iter().map(|((day, _), _)| *day))),
            id_array(rows.iter().map(|((_, rank), _)| sites[*rank as usize].0).collect()),
            count(|count| count.served),
            count(|count| count.solved),
        ];
        RecordBatch::try_new(SCHEMA.clone(), columns).expect("the columns have the schema's types and one length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::captcha::CaptchaEvent;
    use crate::kinds::instant::DAY_US;
    use arrow::array::AsArray;
    use arrow::datatypes::{Date32Type, UInt64Type};
    use std::collections::BTreeMap;

    #[test]
    fn adds_up_in_order() {
        let mut dice = Dice::new("adds_up_in_order");
        let sites: Vec<[u8; 16]> = (0..20).map(|_| dice.id()).collect();
        let mut columns = CaptchaColumns::default();
        let mut expected: BTreeMap<(i32, [u8; 16]), (u64, u64)> = BTreeMap::new();
        for _ in 0..10_000 {
            let (day, site) = (dice.below(40_000) as i32 % 7 * 3000, *dice.pick(&sites));
            let captcha_type = *dice.pick(&[CaptchaType::Serve, CaptchaType::Solve]);
            // The first and the last microsecond of a day belong to it.
            let within = *dice.pick(&[0, 1, DAY_US - 1]);
            let time_us = i64::from(day) * DAY_US + within;
            columns.push(&CaptchaEvent { time_us, captcha_type, correlation_id: dice.id(), site_id: site });
            let count = expected.entry((day, site)).or_default();
            if captcha_type == CaptchaType::Serve { count.0 += 1 } else { count.1 += 1 }
        }
        let mut counters = CaptchaCounters::default();
        (0..10_000).for_each(|row| counters.count(&columns, row));
        let batch = counters.to_batch();
        let (days, sites) = (batch.column(0).as_primitive::<Date32Type>(), batch.column(1).as_fixed_size_binary());
        let (served, solved) =
            (batch.column(2).as_primitive::<UInt64Type>(), batch.column(3).as_primitive::<UInt64Type>());
        let read: Vec<_> = (0..batch.num_rows())
            .map(|row| {
                ((days.value(row), sites.value(row).try_into().unwrap()), (served.value(row), solved.value(row)))
            })
            .collect();
        assert_eq!(read, expected.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_an_empty_batch() {
        assert_eq!(CaptchaCounters::default().to_batch().num_rows(), 0);
    }
}
