//! Migrations: what the database holds is compared with what this program embeds, and what is missing is applied.
//!
//! Each applied migration is recorded in `schema_migrations` with its file's SHA-256. Refused are: an edited file, a
//! database that a newer program has migrated, and a server that is too old. Statements have no effect when they are
//! repeated, so a migration that was cut short is run again; [`super::lock`] keeps two from running at once.

use std::collections::BTreeMap;
use std::fmt;

use clickhouse::Row;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::client::Store;
use super::error::StoreError;
use super::lock::Lock;
use super::sql::statements;
use crate::config::limits;
use crate::kinds::migrations::{KindMigrations, Migration};
use crate::kinds::{ALL_MIGRATIONS, MIGRATIONS};

/// The oldest server that is taken: 25.8 is the oldest long-term release with what the tables and inserts rest on
/// (per-insert de-duplication tokens on plain MergeTree tables, UUIDs in Arrow).
pub const VERSION_MIN: (u32, u32) = (25, 8);

/// Holds one row for each applied migration; made before the first.
const RECORDS: &str = "CREATE TABLE IF NOT EXISTS {database}.schema_migrations
(
    kind LowCardinality(String),
    number UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3),
    version String
)
ENGINE = {replicated}MergeTree
ORDER BY (kind, number)";

/// Why a database is not migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// ClickHouse says no, or nothing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A statement of a migration failed.
    #[error("{file}: {error}")]
    Statement {
        /// The migration's file.
        file: String,
        /// What ClickHouse said.
        error: StoreError,
    },
    /// The server is older than the program needs.
    #[error("clickhouse {found} is too old: {}.{} or newer is needed", VERSION_MIN.0, VERSION_MIN.1)]
    ServerTooOld {
        /// Its version.
        found: String,
    },
    /// A file changed after it was applied.
    #[error(
        "{file} was changed after it had been applied (sha-256 {recorded} then, {embedded} now): put it back and add a new migration instead"
    )]
    Edited {
        /// The migration's file.
        file: String,
        /// What was applied.
        recorded: String,
        /// What the program holds.
        embedded: String,
    },
    /// The database is ahead of the program.
    #[error(
        "the database was migrated to {kind} {number} ({name}) by millrace {version}, which this program ({}) does not know: use that version or a newer one",
        env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The kind.
        kind: String,
        /// The number that is not known here.
        number: u32,
        /// Its name.
        name: String,
        /// Who applied it.
        version: String,
    },
    /// The lease of the lock ran out.
    #[error("migrating took too long and was given up: run it again")]
    TookTooLong,
}

/// A migration that is to be applied.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Its kind.
    pub kind: &'static str,
    /// Its file.
    pub file: String,
    /// The migration.
    pub migration: Migration,
    /// Its statements, placeholders filled in.
    pub statements: Vec<String>,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)
    }
}

#[derive(Debug, Row, Deserialize)]
struct Recorded {
    kind: String,
    number: u32,
    name: String,
    checksum: String,
    version: String,
}

/// The version of a server that is new enough.
pub async fn version(store: &Store) -> Result<String, MigrateError> {
    let (version, text) = store.version().await?;
    if version < VERSION_MIN { Err(MigrateError::ServerTooOld { found: text }) } else { Ok(text) }
}

/// What remains to be applied; nothing is changed. A database that does not exist has everything before it.
pub async fn pending(store: &Store) -> Result<Vec<Pending>, MigrateError> {
    let recorded = match recorded(store).await {
        Ok(recorded) => recorded,
        Err(error) if error.is_missing() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    remaining(ALL_MIGRATIONS, &recorded, store.database())
}

/// A table that forgets inserts too soon, so that a repeated one could count twice.
#[derive(Debug, Row, Deserialize, PartialEq, Eq)]
pub struct NarrowWindow {
    /// The table.
    #[serde(rename = "name")]
    pub table: String,
    /// How many inserts it remembers.
    pub window: u64,
}

impl NarrowWindow {
    /// What is wrong, and what to do about it.
    pub fn told(&self, store: &Store) -> String {
        let table = store.table(&self.table);
        format!(
            "{table} remembers {} inserts, too few to recognise a repeated one: run ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = {}",
            self.window,
            limits::DEDUPLICATION_WINDOW
        )
    }
}

/// Tables of events and counters whose de-duplication window was narrowed after they were made: what each insert's
/// safety rests on is looked at, not taken for granted.
pub async fn narrow_windows(store: &Store) -> Result<Vec<NarrowWindow>, MigrateError> {
    let tables: Vec<String> =
        MIGRATIONS.iter().flat_map(|kind| ["events", "counters"].map(|name| format!("{}_{name}", kind.kind))).collect();
    let query = store
        .client()
        .query(
            "SELECT name, toUInt64OrZero(extract(engine_full, 'non_replicated_deduplication_window = ([0-9]+)')) AS window \
             FROM system.tables WHERE database = ? AND name IN ? AND window < ? ORDER BY name",
        )
        .bind(store.database())
        .bind(tables)
        .bind(limits::DEDUPLICATION_WINDOW);
    Ok(store.fetch(query).await?)
}

/// Applies what remains. `told` hears of each step as it is done, in words for a person.
pub async fn apply(store: &Store, mut told: impl FnMut(&str)) -> Result<(), MigrateError> {
    let store = &store.clone().with_read_timeout(super::lock::STATEMENT_MAX);
    version(store).await?;
    if pending(store).await?.is_empty() {
        return Ok(());
    }
    store.execute(&filled("CREATE DATABASE IF NOT EXISTS {database}", store.database())).await?;
    let lock = Lock::take(store, |other| told(&format!("waiting for {other}, which is migrating"))).await?;
    let done = apply_locked(store, &lock, &mut told).await;
    let released = lock.release(store).await;
    done?;
    Ok(released?)
}

async fn apply_locked(store: &Store, lock: &Lock, told: &mut impl FnMut(&str)) -> Result<(), MigrateError> {
    store.execute(&filled(RECORDS, store.database())).await?;
    // Read again: another may have migrated while this one waited.
    for pending in pending(store).await? {
        for statement in &pending.statements {
            if !lock.holds() {
                return Err(MigrateError::TookTooLong);
            }
            let failed = |error| MigrateError::Statement { file: pending.file.clone(), error };
            store.execute(statement).await.map_err(failed)?;
        }
        let record =
            format!("INSERT INTO {} (kind, number, name, checksum, version) VALUES", store.table("schema_migrations"));
        let Migration { number, name, sql } = pending.migration;
        let (kind, checksum, version) = (pending.kind, checksum(sql), env!("CARGO_PKG_VERSION"));
        store.execute(&format!("{record} ('{kind}', {number}, '{name}', '{checksum}', '{version}')")).await?;
        told(&format!("applied {}", pending.file));
    }
    Ok(())
}

async fn recorded(store: &Store) -> Result<Vec<Recorded>, StoreError> {
    let table = store.table("schema_migrations");
    let columns = "kind, number, name, checksum, version";
    // A migration that two recorded is there twice, with one checksum.
    store
        .rows(&format!(
            "SELECT DISTINCT toString(kind) AS kind, number, name, checksum, version FROM {table} ORDER BY {columns}"
        ))
        .await
}

fn remaining(
    kinds: &'static [KindMigrations],
    recorded: &[Recorded],
    database: &str,
) -> Result<Vec<Pending>, MigrateError> {
    let mut applied: BTreeMap<(&str, u32), &Recorded> =
        recorded.iter().map(|record| ((record.kind.as_str(), record.number), record)).collect();
    let mut remaining = Vec::new();
    for kind in kinds {
        for migration in kind.migrations {
            let file = kind.file(migration);
            match applied.remove(&(kind.kind, migration.number)) {
                None => {
                    let statements = statements(migration.sql).into_iter().map(|text| filled(text, database)).collect();
                    remaining.push(Pending { kind: kind.kind, file, migration: *migration, statements });
                }
                Some(record) if record.checksum != checksum(migration.sql) => {
                    let (recorded, embedded) = (record.checksum.clone(), checksum(migration.sql));
                    return Err(MigrateError::Edited { file, recorded, embedded });
                }
                Some(_) => {}
            }
        }
    }
    match applied.values().next_back() {
        None => Ok(remaining),
        Some(unknown) => Err(MigrateError::Newer {
            kind: unknown.kind.clone(),
            number: unknown.number,
            name: unknown.name.clone(),
            version: unknown.version.clone(),
        }),
    }
}

/// Fills in the placeholders. The database's name was checked to be a plain identifier.
fn filled(sql: &str, database: &str) -> String {
    // Replicated engines take their place here once the configuration names a cluster.
    sql.replace("{database}", &format!("`{database}`")).replace("{replicated}", "")
}

fn checksum(sql: &str) -> String {
    Sha256::digest(sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    static KINDS: [KindMigrations; 1] = [KindMigrations {
        kind: "k",
        migrations: &[
            Migration { number: 1, name: "a", sql: "CREATE TABLE IF NOT EXISTS {database}.a; b;" },
            Migration { number: 2, name: "b", sql: "c" },
        ],
    }];

    fn record(number: u32, checksum: String) -> Recorded {
        Recorded { kind: "k".into(), number, name: "n".into(), checksum, version: "9.9.9".into() }
    }

    #[test]
    fn what_is_not_recorded_remains() {
        let all = remaining(&KINDS, &[], "db").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].statements, ["CREATE TABLE IF NOT EXISTS `db`.a", "b"]);
        assert_eq!(all[0].file, "sql/k/0001_a.sql");
        let first = record(1, checksum(KINDS[0].migrations[0].sql));
        let rest = remaining(&KINDS, &[first], "db").unwrap();
        assert_eq!(rest.iter().map(|pending| pending.migration.number).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn edited_and_newer_are_refused() {
        let error = remaining(&KINDS, &[record(1, "0".into())], "db").unwrap_err();
        assert!(error.to_string().starts_with("sql/k/0001_a.sql was changed"), "{error}");
        let error = remaining(&KINDS, &[record(3, "0".into())], "db").unwrap_err();
        assert!(error.to_string().contains("migrated to k 3 (n) by millrace 9.9.9"), "{error}");
    }

    #[test]
    fn every_statement_can_be_repeated_and_every_placeholder_is_known() {
        for kind in ALL_MIGRATIONS {
            for pending in remaining(ALL_MIGRATIONS, &[], "db").unwrap() {
                assert!(!pending.statements.is_empty(), "{pending}");
                for statement in &pending.statements {
                    assert!(statement.contains("IF NOT EXISTS") || statement.contains("IF EXISTS"), "{statement}");
                    assert!(!statement.contains('{'), "{statement}");
                }
            }
            let window = format!("non_replicated_deduplication_window = {}", limits::DEDUPLICATION_WINDOW);
            for migration in kind.migrations {
                let tables = migration.sql.matches("CREATE TABLE").count();
                assert_eq!(migration.sql.matches(&window).count(), tables, "{}", kind.file(migration));
            }
        }
    }
}
