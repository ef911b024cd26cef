//! What a repair asks of ClickHouse and does there: tables of its own beside the kind's, filled, then put in their place.
//!
//! The names of these tables end in a word that no other repair has. Whoever takes a partition over, and every later
//! repair, first drops such tables and waits until nothing uses them: a statement of a repair that was killed or stood still
//! then fails, however late it arrives, since it names a table that is gone. So nothing is put in place over what a
//! writer has stored meanwhile.

use clickhouse::Row;
use serde::Deserialize;

use super::recount::sums_of_events;
use super::stored::{counters, events};
use super::{Store, StoreError};
use crate::kinds::Kind;

/// How much memory the recount may take before it goes on in files.
const GROUPS_BYTES_MAX: u64 = 2_000_000_000;
/// What an insert into a table of a repair does not inherit from a profile. Nothing is repeated there.
const FILL_SETTINGS: &str = "SETTINGS async_insert = 0, insert_deduplicate = 0";

/// The tables of one repair.
#[derive(Clone, Debug)]
pub struct Staging {
    /// Events that are to be added.
    pub events: String,
    /// Counters that are to replace all there are.
    pub counters: String,
}

/// What the ledger is to say of a partition of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLedger {
    /// The generation.
    pub generation: u32,
    /// The partition.
    pub partition: u32,
    /// The first offset.
    pub first: i64,
    /// One past the last one.
    pub next: i64,
}

/// Offsets whose events are stored together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct StoredRange {
    /// The first offset that has an event.
    pub first: i64,
    /// The last offset of the range.
    pub last: i64,
}

impl Store {
    /// Drops what repairs have left, and waits until nothing uses it. Tells the names.
    pub async fn drop_repairs<K: Kind>(&self) -> Result<Vec<String>, StoreError> {
        let query = self
            .client()
            .query("SELECT name FROM system.tables WHERE database = ? AND (startsWith(name, ?) OR startsWith(name, ?))")
            .bind(self.database())
            .bind(prefix(&events::<K>()))
            .bind(prefix(&counters::<K>()));
        let left: Vec<String> = self.fetch(query).await?;
        for name in &left {
            self.drop_repair_table(name).await?;
        }
        Ok(left)
    }

    async fn drop_repair_table(&self, name: &str) -> Result<(), StoreError> {
        let table = self.table(name);
        self.execute(&format!("DROP TABLE IF EXISTS {table} SYNC SETTINGS max_table_size_to_drop = 0")).await
    }

    /// Makes the tables of a repair; `word` is in its names alone.
    pub async fn make_staging<K: Kind>(&self, word: &str) -> Result<Staging, StoreError> {
        let (events, counters) = (events::<K>(), counters::<K>());
        let staging =
            Staging { events: format!("{}{word}", prefix(&events)), counters: format!("{}{word}", prefix(&counters)) };
        for (copy, of) in [(&staging.events, events), (&staging.counters, counters)] {
            self.execute(&format!("CREATE TABLE {} AS {}", self.table(copy), self.table(&of))).await?;
        }
        Ok(staging)
    }

    /// What is stored of a partition from an offset on, by ranges. An insert is there as a whole or not at all, so whatever
    /// the log holds from a range's first event to its end is stored.
    pub async fn stored_ranges<K: Kind>(
        &self,
        generation: u32,
        partition: u32,
        from: i64,
    ) -> Result<Vec<StoredRange>, StoreError> {
        self.rows(&format!(
            "SELECT min(log_offset) AS first, range_last AS last FROM {} WHERE log_generation = {generation} \
             AND log_partition = {partition} AND log_offset >= {from} GROUP BY range_last ORDER BY range_last",
            self.table(&events::<K>())
        ))
        .await
    }

    /// Adds the events of a repair to those that are stored: of each month all at once.
    pub async fn attach_events<K: Kind>(&self, staging: &Staging) -> Result<(), StoreError> {
        let (from, to) = (self.table(&staging.events), self.table(&events::<K>()));
        let months: Vec<String> = self.rows(&format!("SELECT DISTINCT _partition_id FROM {from}")).await?;
        for month in months {
            self.execute(&format!("ALTER TABLE {to} ATTACH PARTITION ID '{month}' FROM {from}")).await?;
        }
        Ok(())
    }

    /// Counts the stored events that `ledgers` cover into a repair's table. The ledger's own rows are left to the caller.
    pub async fn fill_counters<K: Kind>(&self, staging: &Staging, ledgers: &[NewLedger]) -> Result<(), StoreError> {
        if ledgers.is_empty() {
            return Ok(());
        }
        let (to, from) = (self.table(&staging.counters), self.table(&events::<K>()));
        let covered: Vec<String> = ledgers.iter().map(NewLedger::covers).collect();
        let (columns, sums) = sums_of_events::<K>();
        self.execute(&format!(
            "INSERT INTO {to} ({columns}) {FILL_SETTINGS}, max_bytes_before_external_group_by = {GROUPS_BYTES_MAX} \
             {sums} FROM {from} WHERE {} GROUP BY ALL",
            covered.join(" OR ")
        ))
        .await
    }

    /// How many events are stored of what a ledger is to cover.
    pub async fn covered_events<K: Kind>(&self, ledger: &NewLedger) -> Result<u64, StoreError> {
        self.count::<K>(&ledger.covers()).await
    }

    /// Puts a repair's counters in the place of those there are, in one step.
    pub async fn swap_counters<K: Kind>(&self, staging: &Staging) -> Result<(), StoreError> {
        let (ours, theirs) = (self.table(&staging.counters), self.table(&counters::<K>()));
        self.execute(&format!("EXCHANGE TABLES {ours} AND {theirs}")).await
    }
}

impl NewLedger {
    /// The condition for the events that it covers.
    fn covers(&self) -> String {
        let NewLedger { generation, partition, next, .. } = self;
        format!("(log_generation = {generation} AND log_partition = {partition} AND log_offset < {next})")
    }
}

/// How the names of the tables that stand beside one during a repair begin.
fn prefix(table: &str) -> String {
    format!("{table}_repair_")
}
