//! Recounts a kind from its stored events and compares with its counters.
//!
//! Exact while writers are at work: counters and ledger are read in one query of one table (an insert adds both at once),
//! and only the events that the ledger covers are recounted; a range's events are stored before its counters.

use std::collections::BTreeMap;

use clickhouse::Row;
use serde::Deserialize;

use super::stored::{counters, events};
use super::{Store, StoreError};
use crate::kinds::Kind;

/// Events whose keys are compared in one query: about 2 GiB of ClickHouse's memory.
const KEYS_PER_QUERY: u64 = 20_000_000;

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
    pub async fn recount<K: Kind>(&self) -> Result<Recount, StoreError> {
        let (ledgers, counted) = self.counters_and_ledgers::<K>().await?;
        let mut found = Recount { counters: counted.len(), ..Recount::default() };
        let covered = covered_sql(&ledgers);
        let recounted = self.recounted::<K>(&covered).await?;
        compare::<K>(&counted, &recounted, &mut found.differences);
        self.check_ledgers::<K>(&ledgers, &covered, &mut found).await?;
        self.check_keys::<K>(&covered, &mut found).await?;
        Ok(found)
    }

    /// The ledgers and the counters of one moment.
    async fn counters_and_ledgers<K: Kind>(&self) -> Result<(Vec<Ledger>, Counted), StoreError> {
        let sql = &K::COUNTERS_SQL;
        let values = sums(sql.values);
        let query = format!(
            "SELECT log_generation, log_partition, min(range_first), max(range_last) + 1, sum(range_offsets), \
             sum(new_events), {key}, {values} FROM {table} GROUP BY log_generation, log_partition, {key}",
            key = sql.key,
            table = self.table(&counters::<K>()),
        );
        let bytes = self.row_binary(&query).await?;
        let row = LEDGER_BYTES + sql.key_bytes + 8 * sql.values.len();
        let (mut ledgers, mut counted) = (Vec::new(), Counted::new());
        for bytes in whole_rows(&bytes, row)? {
            let (ledger, counter) = bytes.split_at(LEDGER_BYTES);
            let ledger = read_ledger(ledger);
            if ledger.generation > 0 {
                ledgers.push(ledger);
            } else {
                let (key, values) = counter.split_at(sql.key_bytes);
                counted.insert(key.to_vec(), read_values(values));
            }
        }
        ledgers.sort_by_key(|ledger| (ledger.generation, ledger.partition));
        Ok((ledgers, counted))
    }

    async fn recounted<K: Kind>(&self, covered: &str) -> Result<Counted, StoreError> {
        let sql = &K::COUNTERS_SQL;
        let values = sql.recount_values.join(", ");
        let query = format!(
            "SELECT {key}, {values} FROM {table} WHERE {covered} GROUP BY {key}",
            key = sql.recount_key,
            table = self.table(&events::<K>()),
        );
        let bytes = self.row_binary(&query).await?;
        let rows = whole_rows(&bytes, sql.key_bytes + 8 * sql.values.len())?;
        Ok(rows
            .map(|row| {
                let (key, values) = row.split_at(sql.key_bytes);
                (key.to_vec(), read_values(values))
            })
            .collect())
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
        let (lane, id) = K::KEY_SQL;
        let slices = found.events.div_ceil(KEYS_PER_QUERY).max(1);
        let mut twice = 0;
        for slice in 0..slices {
            let sql = format!(
                "SELECT toInt64(count()) - toInt64(uniqExact({lane}, {id})) FROM {} \
                 WHERE ({covered}) AND cityHash64({id}) % {slices} = {slice}",
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

/// Counters by their key, both in the form of a row of bytes.
type Counted = BTreeMap<Vec<u8>, Vec<u64>>;

/// generation 4, partition 4, first 8, next 8, offsets 8, new events 8.
const LEDGER_BYTES: usize = 40;

/// The rows of an answer in RowBinary with columns of fixed widths.
fn whole_rows(bytes: &[u8], row: usize) -> Result<std::slice::ChunksExact<'_, u8>, StoreError> {
    if !bytes.len().is_multiple_of(row) {
        return Err(StoreError::Unreadable(format!("{} bytes are no whole number of rows of {row}", bytes.len())));
    }
    Ok(bytes.chunks_exact(row))
}

fn read_ledger(bytes: &[u8]) -> Ledger {
    let long = |at: usize| i64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    let short = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    Ledger {
        generation: short(0),
        partition: short(4),
        first: long(8),
        next: long(16),
        offsets: long(24),
        new_events: long(32) as u64,
    }
}

fn read_values(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|value| u64::from_le_bytes(std::array::from_fn(|index| value[index]))).collect()
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
    let keys: std::collections::BTreeSet<_> = counted.keys().chain(recounted.keys()).collect();
    for key in keys {
        let (counters, events) = (counted.get(key).unwrap_or(&zero), recounted.get(key).unwrap_or(&zero));
        for ((name, counter), event) in K::COUNTERS_SQL.values.iter().zip(counters).zip(events) {
            if counter != event {
                let at = K::describe_counter(key);
                differences.push(format!("{at}: {name} is {counter} in the counters, {event} in the events"));
            }
        }
    }
}
