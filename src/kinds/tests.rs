//! What every kind that is registered must keep to, checked on its Rust and its SQL as they stand.
//!
//! ClickHouse would say some of it at the first insert, and some of it never: a table without a deduplication window, or
//! a counter that is not summed when parts are merged, goes wrong weeks later. Read are the `CREATE TABLE` statements; an
//! `ALTER TABLE` of a later migration has to be read here too once there is one.

use std::collections::BTreeMap;
use std::convert::Infallible;

use arrow::datatypes::{DataType, Schema};

use super::{ALL_MIGRATIONS, Columns, Counters, CountersSql, Kind, KindVisitor, visit_all};
use crate::config::limits::DEDUPLICATION_WINDOW;

/// What the log gives to each event; its type may be followed by a codec.
const LOG_COLUMNS: [(&str, &str); 8] = [
    ("accepted_at", "DateTime64(3, 'UTC')"),
    ("stored_at", "DateTime64(3, 'UTC') DEFAULT now64(3)"),
    ("log_generation", "UInt32"),
    ("log_partition", "UInt32"),
    ("log_offset", "Int64"),
    ("log_position", "UInt32"),
    ("range_last", "Int64"),
    ("log_month", "UInt32"),
];

/// The ledger.
const LEDGER_COLUMNS: [(&str, &str); 7] = [
    ("log_generation", "UInt32"),
    ("log_partition", "UInt32"),
    ("range_first", "SimpleAggregateFunction(min, Int64)"),
    ("range_last", "SimpleAggregateFunction(max, Int64)"),
    ("range_offsets", "SimpleAggregateFunction(sum, Int64)"),
    ("events", "SimpleAggregateFunction(sum, UInt64)"),
    ("new_events", "SimpleAggregateFunction(sum, UInt64)"),
];

/// A `CREATE TABLE` statement: what stands between its parentheses, and what follows them.
struct Table {
    columns: BTreeMap<String, String>,
    ending: String,
}

/// The statement that makes a table of a kind.
fn table<K: Kind>(suffix: &str) -> Table {
    let name = format!("{}_{suffix}", K::NAME);
    let start = format!("CREATE TABLE IF NOT EXISTS {{database}}.{name}\n(\n");
    let statements = K::MIGRATIONS.iter().find_map(|migration| migration.sql.split_once(&start));
    let (_, rest) = statements.unwrap_or_else(|| panic!("no migration of {} begins {start:?}", K::NAME));
    let (body, rest) = rest.split_once("\n)\n").unwrap_or_else(|| panic!("{name}: its columns have no end"));
    let (ending, _) = rest.split_once(';').unwrap_or_else(|| panic!("{name}: the statement has no end"));
    // A column's line is indented once and begins in lower case; indices, projections and constraints begin in upper case.
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let columns = lines
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()) && !line.contains(" ALIAS "))
        .map(|line| line.trim_end_matches(',').split_once(' ').unwrap_or((line, "")))
        .map(|(column, kind)| (column.to_owned(), kind.to_owned()))
        .collect();
    Table { columns, ending: ending.to_owned() }
}

fn names(schema: &Schema) -> Vec<&str> {
    schema.fields().iter().map(|field| field.name().as_str()).collect()
}

fn sorted<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<&'n str> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names
}

/// The table has these columns of its own and those of the log, and no others.
fn has_columns(name: &str, table: &Table, own: &[&str], of_the_log: &[(&str, &str)]) {
    let expected = sorted(own.iter().copied().chain(of_the_log.iter().map(|(column, _)| *column)));
    assert_eq!(sorted(table.columns.keys().map(String::as_str)), expected, "the columns of {name}");
    for (column, kind) in of_the_log {
        let found = &table.columns[*column];
        assert!(found.starts_with(kind), "{name}: {column} is {found}, not {kind}");
    }
}

fn windows() -> String {
    let settings = ["non_replicated_deduplication_window", "replicated_deduplication_window"];
    format!("SETTINGS {}", settings.map(|setting| format!("{setting} = {DEDUPLICATION_WINDOW}")).join(", "))
}

fn events_fit<K: Kind>() {
    let (name, table) = (format!("{}_events", K::NAME), table::<K>("events"));
    let schema = K::Columns::schema();
    has_columns(&name, &table, &names(&schema), &LOG_COLUMNS);
    assert!(schema.fields().iter().all(|field| !field.is_nullable()), "{name}: no column of the log is ever null");
    let ending = &table.ending;
    assert!(
        ending.starts_with("ENGINE = {replicated}MergeTree\nPARTITION BY log_month\nORDER BY "),
        "{name}: {ending}"
    );
    assert!(ending.ends_with(&windows()), "{name} ends {ending:?}, not {:?}", windows());
    assert_eq!(K::Columns::default().into_batch().schema(), schema, "{name}");
}

fn counters_fit<K: Kind>() {
    let (name, table) = (format!("{}_counters", K::NAME), table::<K>("counters"));
    let CountersSql { key, recount_key, values, recount_values, .. } = K::COUNTERS_SQL;
    assert_eq!((recount_key.len(), recount_values.len()), (key.len(), values.len()), "{name}: each has its recount");
    let own: Vec<&str> = key.iter().chain(values).copied().collect();
    has_columns(&name, &table, &own, &LEDGER_COLUMNS);
    for value in values {
        assert_eq!(table.columns[*value], "SimpleAggregateFunction(sum, UInt64)", "{name}: {value} must add up");
    }
    let key = key.join(", ");
    let ending = format!(
        "ENGINE = {{replicated}}AggregatingMergeTree\nORDER BY (log_generation, log_partition, {key})\n{}",
        windows()
    );
    assert_eq!(table.ending, ending, "{name}");
    let schema = K::Counters::default().to_batch().schema();
    assert_eq!(sorted(names(&schema)), sorted(own), "{name}: what the program sends");
    for value in values {
        assert_eq!(schema.field_with_name(value).unwrap().data_type(), &DataType::UInt64, "{name}: {value}");
    }
}

/// Fits the tables of one kind after the other.
struct Fits;

impl KindVisitor for Fits {
    type Error = Infallible;

    fn visit<K: Kind>(&mut self) -> Result<(), Infallible> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        assert!(K::NAME.bytes().all(plain), "{} names a topic, tables and a label", K::NAME);
        assert!(K::KEY_LANES > 0, "{} has no lane of keys", K::NAME);
        events_fit::<K>();
        counters_fit::<K>();
        // The program reads and writes the generations itself, in the same way for all kinds.
        let logs = table::<K>("logs");
        let pattern = table::<super::captcha::Captcha>("logs");
        assert_eq!((logs.columns, logs.ending), (pattern.columns, pattern.ending), "{}_logs", K::NAME);
        Ok(())
    }
}

#[test]
fn the_tables_of_every_kind_fit_its_code() {
    let Ok(()) = visit_all(&mut Fits);
}

#[test]
fn every_folder_of_sql_belongs_to_one_kind_or_to_all() {
    let folders = std::fs::read_dir("sql").unwrap().map(|folder| folder.unwrap().file_name().into_string().unwrap());
    let folders: Vec<String> = folders.collect();
    let kinds = ALL_MIGRATIONS.iter().map(|kind| kind.kind);
    assert_eq!(sorted(folders.iter().map(String::as_str)), sorted(kinds));
}
