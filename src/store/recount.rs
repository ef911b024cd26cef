//! Recounts a kind from its stored events and compares with its counters.
//!
//! Exact while writers are at work: counters and ledger are read in one query of one table (an insert adds both at once),
//! and only the events that the ledger covers are recounted; a range's events are stored before its counters.

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Row;
use serde::Deserialize;

use super::stored::{counters, events};
use super::{Store, StoreError};
use crate::kinds::row_binary::RowBinary;
use crate::kinds::{CountersSql, KeySql, Kind};

/// Events whose keys are compared in one query: about 2 GiB of ClickHouse's memory.
const KEYS_PER_QUERY: u64 = 20_000_000;

/// Rows of counters compared at once: about 500 MB here.
const COUNTERS_PER_SLICE: u64 = 2_000_000;

/// What a recount found.
#[derive(Debug, Default)]
pub struct Recount {
    /// Events stored, as far as the ledger covers them.
    pub events: u64,
    /// Counters compared.
    pub counters: usize,
    /// Everything that does not agree, for a person; empty when all is well.
    pub differences: Vec<String>,
}

/// A partition's ledger: what its ranges add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Row, Deserialize)]
struct Ledger {
    generation: u32,
    partition: u32,
    first: i64,
    next: i64,
    offsets: i64,
    new_events: u64,
}

#[derive(Row, Deserialize)]
struct PartitionCount {
    generation: u32,
    partition: u32,
    events: u64,
}

impl Store {
    /// Recounts everything that is stored of a kind.
    ///
    /// Counters are compared in slices of their names, so that the memory it takes is bounded; each slice is read together
    /// with the ledger that it belongs to.
    pub async fn recount<K: Kind>(&self) -> Result<Recount, StoreError> {
        let rows: Vec<u64> = self.rows(&format!("SELECT count() FROM {}", self.table(&counters::<K>()))).await?;
        let slices = rows.iter().sum::<u64>().div_ceil(COUNTERS_PER_SLICE).max(1);
        let mut found = Recount::default();
        for slice in 0..slices {
            let (ledgers, counted) = self.counters_and_ledgers::<K>(slice, slices).await?;
            found.counters += counted.len();
            let covered = covered_sql(&ledgers);
            let recounted = self.recounted::<K>(&covered, slice, slices).await?;
            compare::<K>(&counted, &recounted, &mut found.differences);
            if slice == 0 {
                self.check_ledgers::<K>(&ledgers, &covered, &mut found).await?;
                self.check_keys::<K>(&covered, &mut found).await?;
                found.differences.extend(self.compare_keys::<K>(&covered).await?);
            }
        }
        Ok(found)
    }

    /// The ledgers and a slice of the counters, of one moment.
    async fn counters_and_ledgers<K: Kind>(
        &self,
        slice: u64,
        slices: u64,
    ) -> Result<(Vec<Ledger>, Counted), StoreError> {
        let CountersSql { key, name, values, .. } = K::COUNTERS_SQL;
        let (key, sums) = (key.join(", "), sums(values));
        let query = format!(
            "SELECT log_generation, log_partition, min(range_first), max(range_last) + 1, sum(range_offsets), \
             sum(new_events), {name}, {sums} FROM {table} WHERE log_generation > 0 OR {in_slice} \
             GROUP BY log_generation, log_partition, {key}",
            table = self.table(&counters::<K>()),
            in_slice = in_slice(&key, slice, slices),
        );
        let bytes = self.row_binary(&query).await?;
        let mut rows = RowBinary(&bytes);
        let (mut ledgers, mut counted) = (Vec::new(), Counted::new());
        while !rows.is_empty() {
            let ledger = read_ledger(&mut rows)?;
            let (name, values) = read_counter(&mut rows, values.len())?;
            if ledger.generation > 0 {
                ledgers.push(ledger);
            } else {
                counted.insert(name, values);
            }
        }
        ledgers.sort_by_key(|ledger| (ledger.generation, ledger.partition));
        Ok((ledgers, counted))
    }

    async fn recounted<K: Kind>(&self, covered: &str, slice: u64, slices: u64) -> Result<Counted, StoreError> {
        let CountersSql { key, recount_key, name, values, recount_values } = K::COUNTERS_SQL;
        let named = |expressions: &[&str], names: &[&str]| {
            let pairs = expressions.iter().zip(names).map(|(expression, name)| format!("{expression} AS r_{name}"));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let query = format!(
            "WITH {renamed} SELECT {name}, {totals} FROM (SELECT {keys}, {values} FROM {table} \
             WHERE ({covered}) AND {in_slice} GROUP BY {group})",
            renamed = key.iter().map(|name| format!("r_{name} AS {name}")).collect::<Vec<_>>().join(", "),
            totals = values.iter().map(|name| format!("r_{name}")).collect::<Vec<_>>().join(", "),
            keys = named(recount_key, key),
            values = named(recount_values, values),
            table = self.table(&events::<K>()),
            in_slice = in_slice(&recount_key.join(", "), slice, slices),
            group = key.iter().map(|name| format!("r_{name}")).collect::<Vec<_>>().join(", "),
        );
        let bytes = self.row_binary(&query).await?;
        let mut rows = RowBinary(&bytes);
        let mut counted = Counted::new();
        while !rows.is_empty() {
            counted.extend([read_counter(&mut rows, values.len())?]);
        }
        Ok(counted)
    }

    /// Each partition's ranges must join without gap or overlap, and add up to the events that are stored.
    async fn check_ledgers<K: Kind>(
        &self,
        ledgers: &[Ledger],
        covered: &str,
        found: &mut Recount,
    ) -> Result<(), StoreError> {
        let stored: Vec<PartitionCount> = self
            .rows(&format!(
                "SELECT log_generation AS generation, log_partition AS partition, count() AS events \
                 FROM {} WHERE {covered} GROUP BY generation, partition",
                self.table(&events::<K>())
            ))
            .await?;
        let stored: BTreeMap<_, _> =
            stored.iter().map(|count| ((count.generation, count.partition), count.events)).collect();
        for ledger in ledgers {
            let at = format!("generation {}, partition {}", ledger.generation, ledger.partition);
            let span = ledger.next - ledger.first;
            if ledger.offsets != span {
                found.differences.push(format!(
                    "{at}: the ranges cover {} offsets, but reach over {span} ({} to {})",
                    ledger.offsets,
                    ledger.first,
                    ledger.next - 1
                ));
            }
            let events = stored.get(&(ledger.generation, ledger.partition)).copied().unwrap_or(0);
            found.events += events;
            if events != ledger.new_events {
                found
                    .differences
                    .push(format!("{at}: {} events were recorded, {events} are stored", ledger.new_events));
            }
        }
        Ok(())
    }

    /// No key may be stored twice. Compared in slices, so that the memory it takes is bounded.
    async fn check_keys<K: Kind>(&self, covered: &str, found: &mut Recount) -> Result<(), StoreError> {
        let KeySql { lane, id, present } = K::KEY_SQL;
        let slices = found.events.div_ceil(KEYS_PER_QUERY).max(1);
        let mut twice = 0;
        for slice in 0..slices {
            let sql = format!(
                "SELECT toInt64(count()) - toInt64(uniqExact({lane}, {id})) FROM {} \
                 WHERE ({covered}) AND {present} AND cityHash64({id}) % {slices} = {slice}",
                self.table(&events::<K>())
            );
            twice += self.rows::<i64>(&sql).await?.into_iter().sum::<i64>();
        }
        if twice != 0 {
            found.differences.push(format!("{twice} events are stored although their key had been stored before"));
        }
        Ok(())
    }
}

/// The columns of a kind's counters, and a `SELECT` of the same out of its events, grouped by all that is not added up.
pub(super) fn sums_of_events<K: Kind>() -> (String, String) {
    let CountersSql { key, recount_key, values, recount_values, .. } = K::COUNTERS_SQL;
    let columns = [key, values].concat().join(", ");
    let expressions = recount_key.iter().chain(recount_values).zip(key.iter().chain(values));
    // Under other names than the events' columns, which would take their place.
    let sums: Vec<String> = expressions.map(|(expression, name)| format!("{expression} AS r_{name}")).collect();
    (columns, format!("SELECT {}", sums.join(", ")))
}

/// Counters by their name.
type Counted = BTreeMap<String, Vec<u64>>;

/// A counter's name and its values.
fn read_counter(rows: &mut RowBinary<'_>, values: usize) -> Result<(String, Vec<u64>), StoreError> {
    let mut read = || {
        let name = String::from_utf8_lossy(rows.string()?).into_owned();
        Ok((name, (0..values).map(|_| rows.u64()).collect::<Result<_, _>>()?))
    };
    read().map_err(StoreError::Unreadable)
}

/// The condition for one slice of the counters.
fn in_slice(key: &str, slice: u64, slices: u64) -> String {
    format!("cityHash64({key}) % {slices} = {slice}")
}

fn read_ledger(rows: &mut RowBinary<'_>) -> Result<Ledger, StoreError> {
    let mut read = || {
        Ok(Ledger {
            generation: rows.u32()?,
            partition: rows.u32()?,
            first: rows.i64()?,
            next: rows.i64()?,
            offsets: rows.i64()?,
            new_events: rows.u64()?,
        })
    };
    read().map_err(StoreError::Unreadable)
}

fn sums(values: &[&str]) -> String {
    values.iter().map(|value| format!("sum({value})")).collect::<Vec<_>>().join(", ")
}

/// The condition for events that the ledgers cover.
fn covered_sql(ledgers: &[Ledger]) -> String {
    if ledgers.is_empty() {
        return "0".to_owned();
    }
    let parts = ledgers.iter().map(|ledger| {
        let Ledger { generation, partition, next, .. } = ledger;
        format!("(log_generation = {generation} AND log_partition = {partition} AND log_offset < {next})")
    });
    parts.collect::<Vec<_>>().join(" OR ")
}

fn compare<K: Kind>(counted: &Counted, recounted: &Counted, differences: &mut Vec<String>) {
    let zero = vec![0; K::COUNTERS_SQL.values.len()];
    let names: BTreeSet<_> = counted.keys().chain(recounted.keys()).collect();
    for name in names {
        let (counters, events) = (counted.get(name).unwrap_or(&zero), recounted.get(name).unwrap_or(&zero));
        for ((value, counter), event) in K::COUNTERS_SQL.values.iter().zip(counters).zip(events) {
            if counter != event {
                differences.push(format!("{name}: {value} is {counter} in the counters, {event} in the events"));
            }
        }
    }
}
