//! The captcha report: from a query string to SQL over the counters, and from ClickHouse's rows to JSON.
//!
//! | parameter | value |
//! |---|---|
//! | `site_id` | a UUID in any form; repeated, either counts |
//! | `day` | `YYYY-MM-DD` in UTC; repeated, either counts |
//! | `from`, `to` | the first and the last day, both included; `day` besides them narrows further |
//! | `limit` | rows in one answer, 1 to [`LIMIT_MAX`], [`LIMIT_DEFAULT`] without |
//! | `cursor` | the `next` of an answer under the same filters |
//!
//! `site_id` and `day` may also stand in the path (see [`filter`](super::filter)).
//!
//! Rows come ordered by day, then by the site's text. Nothing of a query reaches SQL as text: days and UUIDs are parsed
//! and written anew. This file asks nobody and knows no stage: it is given bytes and gives bytes.

use std::fmt::Write;

use super::filter;
use crate::kinds::excerpt::quote;
use crate::kinds::instant::{DAYS, write_date};
use crate::kinds::json_text::write_number;
use crate::kinds::parameters::{DayFilters, Parameters, day_sql};
use crate::kinds::uuid_text::write_uuid;
use crate::kinds::{Question, Rendered, Report, Tables};
use crate::query_string;

/// Rows in an answer unless `limit` says otherwise.
pub const LIMIT_DEFAULT: usize = 10_000;

/// The highest `limit`: 13 MB of JSON.
pub const LIMIT_MAX: usize = 100_000;

const PARAMETERS: Parameters = Parameters(&["site_id", "day", "from", "to", "limit", "cursor"]);

/// The place of a row in the order of the report: its day since 1970 and its site.
type Place = (i32, [u8; 16]);

/// The report.
#[derive(Debug)]
pub struct CaptchaReport;

impl Report for CaptchaReport {
    type Query = ReportQuery;

    fn parse(question: Question<'_>) -> Result<ReportQuery, String> {
        ReportQuery::parse(question)
    }

    fn sql(query: &ReportQuery, tables: &Tables) -> String {
        query.sql(&tables.counters)
    }

    fn whole_sql(tables: &Tables, rows_max: usize) -> Option<String> {
        let whole = ReportQuery { limit: rows_max, ..ReportQuery::default() };
        // Adding up ends early where there are more.
        let limits = format!(" SETTINGS max_rows_to_group_by = {}, group_by_overflow_mode = 'break'", rows_max + 1);
        Some(whole.sql(&tables.counters) + &limits)
    }

    fn select(query: &ReportQuery, whole: &[u8], rows_max: usize) -> Option<Vec<u8>> {
        (whole.len() <= rows_max * ROW_BYTES).then(|| query.select(whole))
    }

    fn render(query: &ReportQuery, rows: &[u8]) -> Result<Rendered, String> {
        let rows = decode(rows).map_err(|error| error.to_string())?;
        Ok(Rendered::Json(query.render(&rows)))
    }
}

/// What a report is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportQuery {
    filters: Filters,
    limit: usize,
    /// Rows up to and with this one were on earlier pages.
    after: Option<Place>,
}

/// Sorted and without repetitions, so that equal filters are equal however they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Filters {
    /// Empty for all.
    sites: Vec<[u8; 16]>,
    days: DayFilters,
}

impl ReportQuery {
    /// Reads a filter in the path and a query string; what they ask for together counts. The error names the parameter,
    /// what was expected and found, and what is allowed.
    pub fn parse(question: Question<'_>) -> Result<ReportQuery, String> {
        let mut filters = Filters::default();
        filters.add_segment(question.segment)?;
        let (mut limit, mut cursor) = (None, None);
        for pair in PARAMETERS.pairs(question.query) {
            let pair = pair?;
            let value = pair.value.as_deref();
            match pair.name.as_ref() {
                "site_id" => filters.sites.push(PARAMETERS.uuid("site_id", value)?),
                "limit" => PARAMETERS.once("limit", &mut limit, PARAMETERS.limit(value, LIMIT_MAX)?)?,
                "cursor" => PARAMETERS.once("cursor", &mut cursor, value.unwrap_or_default().to_owned())?,
                other if filters.days.take(PARAMETERS, other, value)? => {}
                unknown => return Err(PARAMETERS.unknown(unknown)),
            }
        }
        filters.days.settle(PARAMETERS)?;
        filters.sites.sort_unstable();
        filters.sites.dedup();
        let place = |text: String| filters.place_of(&text).ok_or_else(|| PARAMETERS.bad_cursor(&text));
        let after = cursor.map(place).transpose()?;
        Ok(ReportQuery { filters, limit: limit.unwrap_or(LIMIT_DEFAULT), after })
    }

    /// The query for a counters table, answered in `RowBinary`: [`decode`] reads it.
    ///
    /// It asks for one row more than the limit, which tells whether there is a next page. `table` is a name of our own.
    pub fn sql(&self, table: &str) -> String {
        let mut sql = format!(
            "SELECT toInt32(day), UUIDToNum(site_id), sum(served), sum(solved) FROM {table} WHERE log_generation = 0"
        );
        self.filters.write_sql(&mut sql);
        if let Some((day, site)) = self.after {
            let (day, site) = (day_sql(day), u128::from_be_bytes(site));
            sql += &format!(
                " AND (day > {day} OR day = {day} AND UUIDToNum(site_id) > toFixedString(unhex('{site:032x}'), 16))"
            );
        }
        let rows = self.limit + 1;
        sql += &format!(" GROUP BY day, site_id ORDER BY day, UUIDToNum(site_id) LIMIT {rows}");
        sql
    }

    /// The rows of [`sql`](Self::sql), out of those of a query without filters. What is no whole row at the end is handed on,
    /// for [`decode`] to refuse.
    fn select(&self, whole: &[u8]) -> Vec<u8> {
        let (rows, rest) = whole.as_chunks::<ROW_BYTES>();
        let is_asked = |row: &&[u8; ROW_BYTES]| {
            let (day, after_day) = take(row.as_slice());
            let (site, _) = take(after_day);
            let day = i32::from_le_bytes(day);
            let Filters { sites, days } = &self.filters;
            (sites.is_empty() || sites.binary_search(&site).is_ok())
                && days.allow(day)
                && self.after.is_none_or(|after| (day, site) > after)
        };
        let mut asked = Vec::new();
        rows.iter().filter(is_asked).take(self.limit + 1).for_each(|row| asked.extend_from_slice(row));
        asked.extend_from_slice(rest);
        asked
    }

    /// The answer's JSON: `{"counters":[{"time","site_id","served","solved"}]}`, with `next` when there is more.
    pub fn render(&self, rows: &[Row]) -> Vec<u8> {
        let shown = &rows[..rows.len().min(self.limit)];
        let mut json = Vec::with_capacity(64 + shown.len() * 140);
        json.extend_from_slice(b"{\"counters\":[");
        for (nth, row) in shown.iter().enumerate() {
            json.extend_from_slice(if nth == 0 { b"{\"time\":\"" } else { b",{\"time\":\"" });
            json.extend_from_slice(&write_date(row.day));
            json.extend_from_slice(b"T00:00:00\",\"site_id\":\"");
            json.extend_from_slice(&write_uuid(&row.site_id));
            json.extend_from_slice(b"\",\"served\":");
            write_number(&mut json, row.served);
            json.extend_from_slice(b",\"solved\":");
            write_number(&mut json, row.solved);
            json.push(b'}');
        }
        json.push(b']');
        if let (Some(last), true) = (shown.last(), rows.len() > shown.len()) {
            let cursor = self.filters.cursor((last.day, last.site_id));
            json.extend_from_slice(format!(",\"next\":\"{cursor}\"").as_bytes());
        }
        json.extend_from_slice(b"}\n");
        json
    }
}

impl Filters {
    /// Adds the terms of a filter that stands in the path.
    fn add_segment(&mut self, segment: Option<&str>) -> Result<(), String> {
        let Some(segment) = segment else { return Ok(()) };
        let text = query_string::decode(segment)
            .ok_or_else(|| format!("filter: expected percent-encoded UTF-8, found {}", quote(segment)))?;
        for (column, value) in filter::terms(&text)? {
            match column {
                "site_id" => self.sites.push(PARAMETERS.uuid(column, Some(value))?),
                _ => self.days.days.push(PARAMETERS.day(column, Some(value))?),
            }
        }
        Ok(())
    }

    fn write_sql(&self, sql: &mut String) {
        if !self.sites.is_empty() {
            let sites = self.sites.iter().map(|site| format!("toUUID('{}')", text(&write_uuid(site))));
            *sql += &format!(" AND site_id IN ({})", sites.collect::<Vec<_>>().join(", "));
        }
        self.days.write_sql(sql);
    }

    /// The cursor that goes on after a row: 8 bytes that bind it to the filters, 4 of its day, 16 of its site, in hex.
    fn cursor(&self, place: Place) -> String {
        let mut cursor = String::with_capacity(56);
        let seal = self.seal(place);
        // Writing to a String cannot fail.
        let _ = write!(cursor, "{seal:016x}{:08x}{:032x}", place.0, u128::from_be_bytes(place.1));
        cursor
    }

    /// The row that a cursor goes on after; `None` when it is damaged or was given under other filters.
    fn place_of(&self, cursor: &str) -> Option<Place> {
        if cursor.len() != 56 || !cursor.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let seal = u64::from_str_radix(&cursor[..16], 16).ok()?;
        let day = u32::from_str_radix(&cursor[16..24], 16).ok()? as i32;
        let site = u128::from_str_radix(&cursor[24..], 16).ok()?.to_be_bytes();
        (DAYS.contains(&day) && seal == self.seal((day, site))).then_some((day, site))
    }

    /// Tells cursors of other filters apart. It keeps out mistakes, not attackers, who may ask for any row anyway.
    fn seal(&self, (day, site): Place) -> u64 {
        let Filters { sites, days: DayFilters { days, from, to } } = self;
        let text = format!("captcha 1 {sites:?} {days:?} {from:?} {to:?} {day} {site:?}");
        xxhash_rust::xxh3::xxh3_64(text.as_bytes())
    }
}

/// One row of the report: the sums of a site on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Days since 1970.
    pub day: i32,
    /// Which site.
    pub site_id: [u8; 16],
    /// How many captchas were served.
    pub served: u64,
    /// How many were solved.
    pub solved: u64,
}

/// Bytes of a row in ClickHouse's `RowBinary`: Int32, FixedString(16), UInt64, UInt64, numbers in little-endian.
const ROW_BYTES: usize = 4 + 16 + 8 + 8;

/// ClickHouse's answer is not what [`ReportQuery::sql`] asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRows {
    /// It was cut, or is something else.
    #[error("{0} bytes are no whole number of rows of {ROW_BYTES} bytes")]
    Length(usize),
    /// A day that no event can have.
    #[error("row {row}: day {day} is outside the years 1970 to 2100")]
    Day {
        /// Which row, from 0.
        row: usize,
        /// Days since 1970.
        day: i32,
    },
}

/// Reads the rows that ClickHouse answered.
pub fn decode(bytes: &[u8]) -> Result<Vec<Row>, BadRows> {
    let (rows, []) = bytes.as_chunks::<ROW_BYTES>() else {
        return Err(BadRows::Length(bytes.len()));
    };
    let read = |(row, bytes): (usize, &[u8; ROW_BYTES])| {
        let (day, rest) = take(bytes);
        let (site_id, rest) = take(rest);
        let (served, rest) = take(rest);
        let (solved, _) = take(rest);
        let day = i32::from_le_bytes(day);
        if !DAYS.contains(&day) {
            return Err(BadRows::Day { row, day });
        }
        Ok(Row { day, site_id, served: u64::from_le_bytes(served), solved: u64::from_le_bytes(solved) })
    };
    rows.iter().enumerate().map(read).collect()
}

#[inline]
fn take<const N: usize>(bytes: &[u8]) -> ([u8; N], &[u8]) {
    let (head, rest) = bytes.split_first_chunk::<N>().expect("a row has ROW_BYTES bytes");
    (*head, rest)
}

fn text(ascii: &[u8]) -> &str {
    std::str::from_utf8(ascii).expect("UUIDs are written in ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::instant::parse_date;
    use crate::kinds::uuid_text::parse_uuid;

    const SITE: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn asked(query: &str) -> Result<ReportQuery, String> {
        ReportQuery::parse(Question { query: Some(query), segment: None })
    }

    fn parse(query: &str) -> ReportQuery {
        asked(query).unwrap_or_else(|message| panic!("{query}: {message}"))
    }

    fn where_of(query: &str) -> String {
        let sql = parse(query).sql("counters");
        let (_, rest) = sql.split_once(" WHERE log_generation = 0").unwrap();
        rest.split_once(" GROUP BY").unwrap().0.to_owned()
    }

    #[test]
    fn everything_without_filters() {
        let query = ReportQuery::parse(Question::default()).unwrap();
        assert_eq!(query, parse(""));
        assert_eq!(
            query.sql("millrace.captcha_counters"),
            "SELECT toInt32(day), UUIDToNum(site_id), sum(served), sum(solved) FROM millrace.captcha_counters \
             WHERE log_generation = 0 GROUP BY day, site_id ORDER BY day, UUIDToNum(site_id) LIMIT 10001"
        );
    }

    #[test]
    fn a_filter_in_the_path_is_as_good() {
        let in_path =
            |segment: &str, query: Option<&str>| ReportQuery::parse(Question { query, segment: Some(segment) });
        let expected = Ok(parse(&format!("site_id={SITE}&day=2021-01-25")));
        for segment in [
            format!("site_id='{SITE}'&day='2021-01-25'"),
            format!("day=2021-01-25%20AND%20site_id=%27{SITE}%27"),
            format!("day=2021-01-25+and+site_id=%22{SITE}%22"),
            format!("site_id='{SITE}'%26day=2021-01-25&day='2021-01-25'"),
        ] {
            assert_eq!(in_path(&segment, None), expected, "{segment}");
        }
        assert_eq!(in_path("day=2021-01-25", Some(&format!("site_id={SITE}"))), expected);
        for (segment, wrong) in [
            ("type='serve'", "known columns"),
            ("day='x'", "expected a day"),
            ("site_id='x'", "UUID"),
            ("%ff", "UTF-8"),
        ] {
            let message = in_path(segment, None).expect_err(segment);
            assert!(message.contains(wrong), "{message}");
        }
    }

    #[test]
    fn filters_become_literals() {
        let site = format!("toUUID('{SITE}')");
        assert_eq!(where_of(&format!("site_id={SITE}")), format!(" AND site_id IN ({site})"));
        let braced = format!("site_id=%7B{}%7d&site_id=urn:uuid:{SITE}", SITE.to_uppercase());
        assert_eq!(where_of(&braced), format!(" AND site_id IN ({site})"));
        assert_eq!(where_of("day=2021-01-25"), " AND day IN (toDate32('2021-01-25'))");
        assert_eq!(
            where_of("day=2021-01-26&day=2021-01-25&day=2021-01-26&from=2021-01-01&to=2021-01-31"),
            " AND day IN (toDate32('2021-01-25'), toDate32('2021-01-26')) \
             AND day >= toDate32('2021-01-01') AND day <= toDate32('2021-01-31')"
        );
        assert_eq!(where_of("from=2021-01-25&to=2021-01-25").matches("2021-01-25").count(), 2);
        assert!(parse("limit=7").sql("t").contains(" LIMIT 8"));
        assert_eq!(parse("limit=1").limit, 1);
        assert_eq!(parse("limit=100000").limit, LIMIT_MAX);
    }

    #[test]
    fn days_beyond_all_events() {
        assert_eq!(where_of("day=1969-12-31"), " AND 0");
        assert_eq!(where_of("day=0001-01-01&day=9999-12-31"), " AND 0");
        assert_eq!(where_of("day=1969-12-31&day=1970-01-01"), " AND day IN (toDate32('1970-01-01'))");
        assert_eq!(where_of("from=1000-01-01&to=9999-12-31"), "");
        assert_eq!(where_of("from=2101-01-01"), " AND 0");
        assert_eq!(where_of("to=1969-12-31"), " AND 0");
        assert_eq!(where_of("to=2100-12-31"), " AND day <= toDate32('2100-12-31')");
    }

    #[test]
    fn refuses_and_names_what_is_wrong() {
        for (query, message) in [
            ("site=x", "unknown parameter \"site\""),
            ("sit_id=x", "unknown parameter \"sit_id\", did you mean \"site_id\"?"),
            ("Day=2021-01-25", "unknown parameter \"Day\", did you mean \"day\"?"),
            ("form=2021-01-25", "unknown parameter \"form\", did you mean \"from\"?"),
            ("=1", "unknown parameter \"\""),
            ("xyz=1", "unknown parameter \"xyz\""),
            (
                "site_id=",
                "parameter \"site_id\": expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8, found \"\"",
            ),
            (
                "site_id",
                "parameter \"site_id\": expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8, found no value",
            ),
            (
                "day=2021-1-25",
                "parameter \"day\": expected a day such as 2021-01-25, found \"2021-1-25\": not of the form YYYY-MM-DD",
            ),
            (
                "day=2021-02-29",
                "parameter \"day\": expected a day such as 2021-01-25, found \"2021-02-29\": there is no such date",
            ),
            ("day=", "parameter \"day\": expected a day such as 2021-01-25, found \"\": not of the form YYYY-MM-DD"),
            (
                "day=%27",
                "parameter \"day\": expected a day such as 2021-01-25, found \"'\": not of the form YYYY-MM-DD",
            ),
            (
                "from=2021-01-26&to=2021-01-25",
                "parameter \"from\": expected a day that is not after `to` (2021-01-25), found 2021-01-26",
            ),
            ("from=2021-01-25&from=2021-01-25", "parameter \"from\": expected it once, found it more than once"),
            ("to=2021-01-25&to=2021-01-26", "parameter \"to\": expected it once, found it more than once"),
            ("limit=5&limit=5", "parameter \"limit\": expected it once, found it more than once"),
            ("cursor=&cursor=", "parameter \"cursor\": expected it once, found it more than once"),
            ("limit=0", "parameter \"limit\": expected a number from 1 to 100000, found \"0\""),
            ("limit=100001", "parameter \"limit\": expected a number from 1 to 100000, found \"100001\""),
            ("limit=-1", "parameter \"limit\": expected a number from 1 to 100000, found \"-1\""),
            ("limit=1e3", "parameter \"limit\": expected a number from 1 to 100000, found \"1e3\""),
            ("limit=", "parameter \"limit\": expected a number from 1 to 100000, found \"\""),
            (
                "limit=99999999999999999999999",
                "parameter \"limit\": expected a number from 1 to 100000, found \"99999999999999999999999\"",
            ),
            ("cursor=x", "parameter \"cursor\": expected the `next` of an answer under the same filters, found \"x\""),
            ("cursor=", "parameter \"cursor\": expected the `next` of an answer under the same filters, found \"\""),
            ("day=%zz", "parameter \"day\": expected percent-encoded UTF-8, found \"day=%zz\""),
        ] {
            let expected = format!("{message}; allowed are site_id, day, from, to, limit, cursor");
            assert_eq!(asked(query), Err(expected));
        }
        let long = format!("{}=1", "x".repeat(100_000));
        assert!(asked(&long).unwrap_err().len() < 300);
    }

    fn rows(count: usize) -> Vec<Row> {
        let mut dice = Dice::new("rows");
        let mut rows: Vec<Row> = (0..count)
            .map(|_| Row {
                day: dice.below(DAYS.end as usize) as i32,
                site_id: dice.id(),
                served: dice.any() >> dice.below(64),
                solved: dice.any() >> dice.below(64),
            })
            .collect();
        rows.sort_unstable_by_key(|row| (row.day, row.site_id));
        rows
    }

    fn binary(rows: &[Row]) -> Vec<u8> {
        let mut bytes = vec![];
        for row in rows {
            bytes.extend(row.day.to_le_bytes());
            bytes.extend(row.site_id);
            bytes.extend(row.served.to_le_bytes());
            bytes.extend(row.solved.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn decodes_whole_rows_only() {
        let rows = rows(100);
        let bytes = binary(&rows);
        assert_eq!(decode(&bytes), Ok(rows));
        assert_eq!(decode(&[]), Ok(vec![]));
        assert_eq!(decode(&bytes[..3599]), Err(BadRows::Length(3599)));
        let far = Row { day: DAYS.end, site_id: [0; 16], served: 1, solved: 0 };
        assert_eq!(decode(&binary(&[far])), Err(BadRows::Day { row: 0, day: DAYS.end }));
    }

    #[test]
    fn renders_the_documented_json() {
        let site_id = parse_uuid(SITE.as_bytes()).unwrap();
        let row = Row { day: parse_date(b"2021-01-25").unwrap(), site_id, served: 10, solved: u64::MAX };
        let expected = format!(
            "{{\"counters\":[{{\"time\":\"2021-01-25T00:00:00\",\"site_id\":\"{SITE}\",\"served\":10,\"solved\":18446744073709551615}}]}}\n"
        );
        assert_eq!(parse("").render(&[row]), expected.as_bytes());
        assert_eq!(parse("").render(&[]), b"{\"counters\":[]}\n");
    }

    #[test]
    fn renders_as_serde_json_would() {
        let rows = rows(1000);
        let json: serde_json::Value = serde_json::from_slice(&parse("").render(&rows)).unwrap();
        assert_eq!(json.as_object().unwrap().len(), 1);
        let counters = json["counters"].as_array().unwrap();
        assert_eq!(counters.len(), rows.len());
        let epoch = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        for (row, counter) in rows.iter().zip(counters) {
            let day = epoch + chrono::Days::new(row.day as u64);
            let expected = serde_json::json!({
                "time": format!("{day}T00:00:00"),
                "site_id": uuid::Uuid::from_bytes(row.site_id).to_string(),
                "served": row.served,
                "solved": row.solved,
            });
            assert_eq!(*counter, expected);
        }
    }

    #[test]
    fn a_whole_has_every_answer() {
        let tables = Tables { events: "e".into(), counters: "c".into() };
        assert_eq!(
            CaptchaReport::whole_sql(&tables, 7).unwrap(),
            parse("limit=7").sql("c") + " SETTINGS max_rows_to_group_by = 8, group_by_overflow_mode = 'break'"
        );
        let (rows, mut dice) = (rows(300), Dice::new("a whole"));
        let whole = binary(&rows);
        for _ in 0..2000 {
            let some = |dice: &mut Dice| rows[dice.below(rows.len())];
            let mut query = ReportQuery { limit: 1 + dice.below(40), ..ReportQuery::default() };
            let Filters { sites, days } = &mut query.filters;
            sites.extend((0..dice.below(3) * 60).map(|_| some(&mut dice).site_id));
            sites.sort_unstable();
            days.days.extend((0..dice.below(3) * 60).map(|_| some(&mut dice).day));
            days.from = (dice.below(2) == 0).then(|| some(&mut dice).day);
            days.to = (dice.below(2) == 0).then(|| some(&mut dice).day);
            days.days.sort_unstable();
            let after = some(&mut dice);
            query.after = (dice.below(2) == 0).then_some((after.day, after.site_id));
            let ReportQuery { filters: Filters { sites, days }, after, limit } = &query;
            let mut asked = rows.clone();
            asked.retain(|row| sites.is_empty() || sites.contains(&row.site_id));
            asked.retain(|row| days.days.is_empty() || days.days.contains(&row.day));
            asked.retain(|row| row.day >= days.from.unwrap_or(i32::MIN) && row.day <= days.to.unwrap_or(i32::MAX));
            asked.retain(|row| after.is_none_or(|(day, site)| row.day > day || row.day == day && row.site_id > site));
            asked.truncate(limit + 1);
            assert_eq!(CaptchaReport::select(&query, &whole, 300), Some(binary(&asked)), "{query:?}");
        }
        assert_eq!(CaptchaReport::select(&parse(""), &whole, 299), None);
        // A whole that was cut is found out, whichever part of it is asked for.
        let cut = &whole[..whole.len() - 1];
        for query in [parse(""), parse(&format!("site_id={SITE}"))] {
            let part = CaptchaReport::select(&query, cut, 300).unwrap();
            assert!(CaptchaReport::render(&query, &part).unwrap_err().contains("no whole number of rows"));
        }
    }

    #[test]
    fn pages_join_without_a_gap() {
        let rows = rows(95);
        let (mut seen, mut cursor) = (vec![], String::new());
        for page in 0.. {
            let query = parse(&format!("from=1970-01-01&limit=10{cursor}"));
            let start = query.after.map_or(0, |place| rows.partition_point(|row| (row.day, row.site_id) <= place));
            let json: serde_json::Value =
                serde_json::from_slice(&query.render(&rows[start..rows.len().min(start + 11)])).unwrap();
            seen.extend(json["counters"].as_array().unwrap().iter().map(|counter| counter["site_id"].clone()));
            match json.get("next") {
                Some(next) => cursor = format!("&cursor={}", next.as_str().unwrap()),
                None => {
                    assert_eq!(page, 9);
                    break;
                }
            }
        }
        let expected: Vec<serde_json::Value> =
            rows.iter().map(|row| uuid::Uuid::from_bytes(row.site_id).to_string().into()).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_cursor_belongs_to_its_filters() {
        let filters = format!("site_id={SITE}&day=2021-01-25&day=2021-01-26&from=2021-01-01");
        let site = parse_uuid(SITE.as_bytes()).unwrap();
        let cursor = parse(&filters).filters.cursor((18_652, site));
        let going_on = parse(&format!("{filters}&limit=3&cursor={cursor}"));
        assert_eq!(going_on.after, Some((18_652, site)));
        assert!(going_on.sql("t").contains(
            " AND (day > toDate32('2021-01-25') OR day = toDate32('2021-01-25') \
             AND UUIDToNum(site_id) > toFixedString(unhex('67e5504410b1426f9247bb680e5fe0c8'), 16))"
        ));
        // The order of filters, their repetition and the limit do not matter.
        let turned =
            format!("day=2021-01-26&cursor={cursor}&day=2021-01-25&day=2021-01-25&from=2021-01-01&site_id={SITE}");
        assert_eq!(parse(&turned).after, going_on.after);
        for other in
            ["", "day=2021-01-25", &format!("{filters}&to=2021-02-01"), &filters.replace("2021-01-26", "2021-01-27")]
        {
            assert!(asked(&format!("{other}&cursor={cursor}")).unwrap_err().contains("\"cursor\""));
        }
        for at in 0..cursor.len() {
            let mut damaged = cursor.clone().into_bytes();
            damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(asked(&format!("{filters}&cursor={damaged}")).is_err(), "{at}");
        }
        let foreign = "ä".repeat(28);
        assert!(asked(&format!("{filters}&cursor={foreign}")).is_err());
    }
}
