//! The client of ClickHouse: made in one place, with every setting pinned that correctness rests on.
//!
//! In: the configuration. Out: statements, reads and inserts, each bounded in time, with errors as [`StoreError`].
//! It needs a tokio runtime around its calls; it starts no connection by itself.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use clickhouse::{Client, Compression, RowOwned, RowRead};

use super::error::StoreError;
use crate::config;

/// What an insert must not inherit from a server's or a user's profile.
///
/// - `async_insert`: an acknowledged insert must be on disk (it is on by default since 26.3);
/// - `insert_deduplicate`: a repeated insert is dropped by its token;
/// - `max_insert_block_size`, `min_insert_block_size_*`: one block for each insert, so that it makes one part;
/// - `deduplicate_blocks_in_dependent_materialized_views`: a view that a user adds sees a block once too;
/// - `input_format_null_as_default`: a missing value must not become a default silently.
const INSERT_SETTINGS: [(&str, &str); 8] = [
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("max_insert_block_size", "1048449"),
    ("min_insert_block_size_rows", "1048449"),
    ("min_insert_block_size_bytes", "0"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("input_format_null_as_default", "0"),
    ("wait_end_of_query", "1"),
];

/// A connection to the store. Clones share its pool.
#[derive(Clone)]
pub struct Store {
    client: Client,
    database: String,
    url: String,
    insert_timeout: Duration,
    read_timeout: Duration,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url).field("database", &self.database).finish_non_exhaustive()
    }
}

impl Store {
    /// A client as configured; nothing is connected yet.
    pub fn new(config: &config::ClickHouse) -> Store {
        let read_timeout = Duration::from_millis(config.report_ms_max);
        let mut client = Client::default()
            .with_url(&config.url)
            .with_user(&config.user)
            // Over loopback or a fast network compressing costs more than it saves.
            .with_compression(Compression::None)
            // An error must be an error of the whole answer, never a text at the end of half of it.
            .with_setting("wait_end_of_query", "1");
        if !config.password.is_empty() {
            client = client.with_password(config.password.expose());
        }
        Store {
            client,
            database: config.database.clone(),
            url: config.url.clone(),
            insert_timeout: Duration::from_millis(config.insert_ms_max),
            read_timeout,
        }
    }

    /// The same with another bound on each statement and read.
    pub fn with_read_timeout(mut self, timeout: Duration) -> Store {
        self.read_timeout = timeout;
        self
    }

    /// The database of all tables: a plain identifier, safe to stand in SQL.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The server's address, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A table by its full name, quoted.
    pub fn table(&self, name: &str) -> String {
        format!("`{}`.`{name}`", self.database)
    }

    /// The client underneath, without a database, with the settings for reading: for what is streamed.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a statement that answers nothing. `?` has no meaning in it.
    pub async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        bounded(self.read_timeout, self.client.query_raw(sql).execute()).await
    }

    /// All rows of a query, each `?` of which is bound beforehand (see [`Store::client`]) or absent.
    pub async fn rows<T: RowOwned + RowRead>(&self, sql: &str) -> Result<Vec<T>, StoreError> {
        self.fetch(self.client.query(sql)).await
    }

    /// All rows of a query made from [`Store::client`]. The server gives it up after the same time as we do.
    pub async fn fetch<T: RowOwned + RowRead>(&self, query: clickhouse::query::Query) -> Result<Vec<T>, StoreError> {
        // Rounded up: the server counts whole seconds, and 0 would stand for "no bound".
        let seconds = self.read_timeout.as_millis().div_ceil(1000).to_string();
        let query = query.with_setting("max_execution_time", seconds);
        bounded(self.read_timeout, query.fetch_all::<T>()).await
    }

    /// A query's answer in RowBinary, whole.
    pub async fn row_binary(&self, sql: &str) -> Result<Bytes, StoreError> {
        self.answer(self.client.query_raw(sql), "RowBinary").await
    }

    /// A query's answer as an Arrow IPC stream, whole.
    pub async fn arrow_stream(&self, sql: &str) -> Result<Bytes, StoreError> {
        // Compressed ones are more than the Arrow library can read as it is built here.
        let query = self.client.query_raw(sql).with_setting("output_format_arrow_compression_method", "none");
        self.answer(query, "ArrowStream").await
    }

    async fn answer(&self, query: clickhouse::query::Query, format: &str) -> Result<Bytes, StoreError> {
        let seconds = self.read_timeout.as_millis().div_ceil(1000).to_string();
        let query = query.with_setting("max_execution_time", seconds);
        bounded(self.read_timeout, async move { query.fetch_bytes(format)?.collect().await }).await
    }

    /// One piece of a long answer, bounded in time.
    pub(super) async fn bounded_read<T>(
        &self,
        reading: impl Future<Output = clickhouse::error::Result<T>>,
    ) -> Result<T, StoreError> {
        bounded(self.read_timeout, reading).await
    }

    /// Inserts one block into a table: the pieces of `arrow` are a whole Arrow IPC stream with one record batch of at most
    /// a million rows, which all fall into one partition of the table; `token` names it, so that a repetition is dropped.
    ///
    /// After an error other than [`StoreError::Refused`] the block may have arrived all the same. The body is sent as it
    /// is: on one machine LZ4 took twice the time (0.35 s instead of 0.16 s for 500,000 events of 81 bytes) and 0.09
    /// CPU seconds more for each million; what a slow network needs belongs into the Arrow stream.
    pub async fn insert(&self, table: &str, token: &str, arrow: &[Bytes]) -> Result<(), StoreError> {
        let sql = format!("INSERT INTO {} FORMAT ArrowStream", self.table(table));
        let client = self.client.clone().with_compression(Compression::None);
        let mut insert = client.insert_formatted_with(sql).with_setting("insert_deduplication_token", token);
        for (name, value) in INSERT_SETTINGS {
            insert = insert.with_setting(name, value);
        }
        let seconds = self.insert_timeout.as_millis().div_ceil(1000).to_string();
        let mut insert = insert.with_setting("max_execution_time", seconds);
        bounded(self.insert_timeout, async move {
            for piece in arrow {
                insert.send(piece.clone()).await?;
            }
            insert.end().await
        })
        .await
    }

    /// The server's version, as `(major, minor)` and as text.
    pub async fn version(&self) -> Result<((u32, u32), String), StoreError> {
        let rows: Vec<String> = self.rows("SELECT version()").await?;
        let text = rows.into_iter().next().unwrap_or_default();
        let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) => Ok(((major, minor), text)),
            _ => Err(StoreError::Foreign(format!("it says that its version is {text:?}"))),
        }
    }
}

async fn bounded<T>(
    timeout: Duration,
    doing: impl Future<Output = clickhouse::error::Result<T>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(timeout, doing).await {
        Ok(done) => done.map_err(StoreError::from),
        Err(_) => Err(StoreError::TimedOut(timeout)),
    }
}
