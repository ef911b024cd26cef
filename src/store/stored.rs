//! What ClickHouse holds of a log: how far a partition is stored, which keys, and which generations there have been.

use std::collections::HashMap;
use std::time::Duration;

use clickhouse::{Compression, Row};
use serde::Deserialize;

use super::{Store, StoreError};
use crate::kinds::{Key, KeySql, Kind};

/// The ledger of a partition: what its stored ranges add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct StoredLedger {
    /// The first offset of the first range.
    pub first: i64,
    /// One past the last offset of the last range.
    pub next: i64,
    /// The offsets of all ranges together.
    pub offsets: i64,
    /// How many of their events were new.
    pub new_events: u64,
}

/// How far a partition is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTo {
    /// Its ledger; `None` when nothing was stored.
    pub ledger: Option<StoredLedger>,
    /// How many events are stored below the ledger's end.
    pub rows: u64,
    /// The events beyond it.
    pub orphans: Option<StoredOrphans>,
}

/// Events beyond the ledger: those of a range whose counters are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct StoredOrphans {
    /// The smallest `range_last` among them.
    pub last_min: i64,
    /// The largest.
    pub last_max: i64,
    /// How many they are.
    pub rows: u64,
}

/// Up to where a partition is stored.
#[derive(Clone, Copy, Debug, Row, Deserialize)]
struct End {
    partition: u32,
    next: i64,
}

/// So many parts of counters are worth a merge.
const MERGED_PARTS_MIN: u64 = 8;
/// How long that is waited for; ClickHouse goes on with it.
const MERGE_MAX: Duration = Duration::from_secs(60);

/// How many rows there are.
#[derive(Clone, Copy, Debug, Row, Deserialize)]
struct Count {
    rows: u64,
}

/// One generation of a log, as recorded when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct LogRow {
    /// Counts from 1.
    pub generation: u32,
    /// The cluster's id.
    pub cluster_id: String,
    /// The topic's name.
    pub topic: String,
    /// The topic's id, empty where the broker does not tell.
    pub topic_id: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// The first offset of each partition that belongs to this generation.
    pub start_offsets: Vec<i64>,
}

impl Store {
    /// How far a partition of a generation, which begins at `start`, is stored: its ledger, and the events on either side
    /// of its end.
    ///
    /// The ledger is read before and after the events, and all is read again when it has moved meanwhile (another writer
    /// goes on with the partition), so that the two belong together.
    pub async fn stored_to<K: Kind>(
        &self,
        generation: u32,
        partition: u32,
        start: i64,
    ) -> Result<StoredTo, StoreError> {
        let mut ledger = self.ledger::<K>(generation, partition).await?;
        loop {
            let from = ledger.map_or(start, |ledger| ledger.next);
            let orphans: Vec<StoredOrphans> = self
                .rows(&format!(
                    "SELECT min(range_last) AS last_min, max(range_last) AS last_max, count() AS rows FROM {} \
                     WHERE log_generation = {generation} AND log_partition = {partition} AND log_offset >= {from} \
                     GROUP BY log_partition",
                    self.table(&events::<K>())
                ))
                .await?;
            let rows = self.count::<K>(&below(generation, partition, from)).await?;
            let after = self.ledger::<K>(generation, partition).await?;
            if after == ledger {
                return Ok(StoredTo { ledger, rows, orphans: orphans.first().copied() });
            }
            ledger = after;
        }
    }

    /// How many events of a partition are stored with offsets from the first to the last one.
    pub async fn rows_between<K: Kind>(
        &self,
        generation: u32,
        partition: u32,
        first: i64,
        last: i64,
    ) -> Result<u64, StoreError> {
        let upper = below(generation, partition, last.saturating_add(1));
        self.count::<K>(&format!("{upper} AND log_offset >= {first}")).await
    }

    /// The ledger of a partition; `None` when nothing of it is stored.
    pub async fn ledger<K: Kind>(&self, generation: u32, partition: u32) -> Result<Option<StoredLedger>, StoreError> {
        let ledger: Vec<StoredLedger> = self
            .rows(&format!(
                "SELECT min(range_first) AS first, max(range_last) + 1 AS next, sum(range_offsets) AS offsets, \
                 sum(new_events) AS new_events FROM {} \
                 WHERE log_generation = {generation} AND log_partition = {partition} GROUP BY log_partition",
                self.table(&counters::<K>())
            ))
            .await?;
        Ok(ledger.first().copied())
    }

    /// One past the last offset stored of each partition of a generation of which anything is.
    pub async fn stored_ends<K: Kind>(&self, generation: u32) -> Result<HashMap<u32, i64>, StoreError> {
        let ends: Vec<End> = self
            .rows(&format!(
                "SELECT log_partition AS partition, max(range_last) + 1 AS next FROM {} \
                 WHERE log_generation = {generation} GROUP BY log_partition",
                self.table(&counters::<K>())
            ))
            .await?;
        Ok(ends.into_iter().map(|end| (end.partition, end.next)).collect())
    }

    /// Every key stored for a partition of `generation` from offset `from`, where it is given, to before `below`; without it
    /// also those of all older generations.
    ///
    /// Keys of older generations come unfiltered by partition, because an older log may have had another number of them:
    /// the caller keeps what belongs to its partition. Those of this generation, which `each` is told, count wherever
    /// they belong: another producer may have put them into the wrong partition, and a replay must see them again.
    /// `each` says whether to go on; `false` ends the reading.
    pub async fn stored_keys<K: Kind>(
        &self,
        generation: u32,
        partition: u32,
        from: Option<i64>,
        below: i64,
        mut each: impl FnMut(Key, bool) -> bool,
    ) -> Result<(), StoreError> {
        let KeySql { lane, id, present } = K::KEY_SQL;
        let (from, older) = match from {
            Some(from) => (format!("log_offset >= {from} AND "), String::new()),
            None => (String::new(), format!("log_generation < {generation} OR ")),
        };
        let sql = format!(
            "SELECT {lane}, log_generation = {generation}, {id} FROM {} WHERE {present} AND ({older}\
             (log_generation = {generation} AND log_partition = {partition} AND {from}log_offset < {below}))",
            self.table(&events::<K>())
        );
        // One byte for the lane, one for the generation and sixteen for the identity.
        const ROW: usize = 18;
        // The answer is as long as the history, so it is neither gathered by the server first nor bounded in time here:
        // each piece of it is. The client tells an error within the answer from data.
        let client = self.client().clone().with_compression(Compression::None);
        let query = client.query_raw(&sql).with_setting("wait_end_of_query", "0");
        let mut cursor = query.fetch_bytes("RowBinary")?;
        let mut rest: Vec<u8> = Vec::new();
        while let Some(bytes) = self.bounded_read(cursor.next()).await? {
            rest.extend_from_slice(&bytes);
            let whole = rest.len() / ROW * ROW;
            for row in rest[..whole].chunks_exact(ROW) {
                let id = std::array::from_fn(|index| row[2 + index]);
                if !each(Key { lane: row[0], id }, row[1] != 0) {
                    return Ok(());
                }
            }
            rest.drain(..whole);
        }
        if rest.is_empty() { Ok(()) } else { Err(StoreError::Unreadable("the stored keys end within a row".into())) }
    }

    /// How many events are stored of all generations older than `generation`, and of this one in the partition before offset
    /// `below`.
    pub async fn stored_rows<K: Kind>(
        &self,
        generation: u32,
        partition: u32,
        below: i64,
    ) -> Result<(u64, u64), StoreError> {
        let older = self.count::<K>(&format!("log_generation < {generation}")).await?;
        Ok((older, self.count::<K>(&self::below(generation, partition, below)).await?))
    }

    /// The table's order, or a projection's, answers this nearly without reading.
    pub(super) async fn count<K: Kind>(&self, condition: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT count() AS rows FROM {} WHERE {condition}", self.table(&events::<K>()));
        let counts: Vec<Count> = self.rows(&sql).await?;
        Ok(counts.first().map_or(0, |count| count.rows))
    }

    /// Merges counters of many small parts into few rows; does nothing while there are few parts, since it would then
    /// rewrite the large ones for little.
    pub async fn merge_counters<K: Kind>(&self) -> Result<(), StoreError> {
        let (database, name) = (self.database(), counters::<K>());
        let sql = format!(
            "SELECT count() AS rows FROM system.parts WHERE active AND database = '{database}' AND table = '{name}'"
        );
        let parts: Vec<Count> = self.rows(&sql).await?;
        if parts.iter().all(|count| count.rows < MERGED_PARTS_MIN) {
            return Ok(());
        }
        self.clone().with_read_timeout(MERGE_MAX).execute(&format!("OPTIMIZE TABLE {}", self.table(&name))).await
    }

    /// The generations of a kind's log, oldest first. Of two that were recorded at once the first one counts.
    pub async fn logs<K: Kind>(&self) -> Result<Vec<LogRow>, StoreError> {
        self.rows(&format!(
            "SELECT generation, cluster_id, topic, topic_id, partitions, start_offsets FROM {} \
             ORDER BY generation, opened_at, cluster_id, topic_id LIMIT 1 BY generation",
            self.table(&logs::<K>())
        ))
        .await
    }

    /// Records a new generation. Read it back with [`Store::logs`]: another one may have come first.
    pub async fn open_log<K: Kind>(&self, log: &LogRow) -> Result<(), StoreError> {
        let offsets = log.start_offsets.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let sql = format!(
            "INSERT INTO {} (generation, cluster_id, topic, topic_id, partitions, start_offsets) \
             SETTINGS async_insert = 0 SELECT {}, ?, ?, ?, {}, [{offsets}]::Array(Int64)",
            self.table(&logs::<K>()),
            log.generation,
            log.partitions
        );
        let query = self.client().query(&sql).bind(&log.cluster_id).bind(&log.topic).bind(&log.topic_id);
        query.execute().await.map_err(StoreError::from)
    }
}

/// The condition for a partition's events in front of an offset.
fn below(generation: u32, partition: u32, offset: i64) -> String {
    format!("log_generation = {generation} AND log_partition = {partition} AND log_offset < {offset}")
}

/// The table of a kind's events.
pub fn events<K: Kind>() -> String {
    format!("{}_events", K::NAME)
}

/// The table of a kind's counters and its ledger.
pub fn counters<K: Kind>() -> String {
    format!("{}_counters", K::NAME)
}

/// The table of a kind's log generations.
pub fn logs<K: Kind>() -> String {
    format!("{}_logs", K::NAME)
}
