//! The report of interactions: how many there were of each type on each UTC day. From a query string to SQL over the
//! counters, and from ClickHouse's rows to JSON.
//!
//! | parameter | value |
//! |---|---|
//! | `category`, `name` | a text; repeated, either counts |
//! | `day` | `YYYY-MM-DD` in UTC; repeated, either counts |
//! | `from`, `to` | the first and the last day, both included; `day` besides them narrows further |
//! | `limit` | rows in one answer, 1 to [`LIMIT_MAX`], [`LIMIT_DEFAULT`] without |
//! | `cursor` | the `next` of an answer under the same filters |
//!
//! Rows come ordered by day, then by the bytes of category and name.

use crate::kinds::instant::{DAYS, write_date};
use crate::kinds::json_text::{write_number, write_text};
use crate::kinds::parameters::{DayFilters, Parameters, day_sql, text_sql};
use crate::kinds::row_binary::RowBinary;
use crate::kinds::{Question, Rendered, Report, Tables};

use super::parse::text_fault;
use super::timeline::settle;

/// Rows in an answer unless `limit` says otherwise.
pub const LIMIT_DEFAULT: usize = 10_000;

/// The highest `limit`: 35 MB of JSON where categories and names are as long as they may be.
pub const LIMIT_MAX: usize = 100_000;

const PARAMETERS: Parameters = Parameters(&["category", "name", "day", "from", "to", "limit", "cursor"]);

/// The report.
#[derive(Debug)]
pub struct InteractionReport;

impl Report for InteractionReport {
    type Query = ReportQuery;

    fn parse(question: Question<'_>) -> Result<ReportQuery, String> {
        ReportQuery::parse(question.query)
    }

    fn sql(query: &ReportQuery, tables: &Tables) -> String {
        query.sql(&tables.counters)
    }

    fn render(query: &ReportQuery, rows: &[u8]) -> Result<Rendered, String> {
        query.render(rows).map(Rendered::Json)
    }
}

/// What a report is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportQuery {
    filters: Filters,
    limit: usize,
    /// Rows up to and with this one were on earlier pages: day, category, name.
    after: Option<(i32, String, String)>,
}

/// Sorted and without repetitions, so that equal filters are equal however they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Filters {
    /// Empty for all.
    categories: Vec<String>,
    /// Empty for all.
    names: Vec<String>,
    days: DayFilters,
}

impl ReportQuery {
    /// Reads a query string. The error names the parameter, what was expected and found, and what is allowed.
    pub fn parse(query: Option<&str>) -> Result<ReportQuery, String> {
        const P: Parameters = PARAMETERS;
        let mut filters = Filters::default();
        let (mut limit, mut cursor) = (None, None);
        for pair in P.pairs(query) {
            let pair = pair?;
            let value = pair.value.as_deref();
            match pair.name.as_ref() {
                name @ "category" => filters.categories.push(P.text(name, value, |text| text_fault(name, text))?),
                name @ "name" => filters.names.push(P.text(name, value, |text| text_fault(name, text))?),
                name @ "limit" => P.once(name, &mut limit, P.limit(value, LIMIT_MAX)?)?,
                name @ "cursor" => P.once(name, &mut cursor, value.unwrap_or_default().to_owned())?,
                other if filters.days.take(P, other, value)? => {}
                unknown => return Err(P.unknown(unknown)),
            }
        }
        filters.days.settle(P)?;
        settle(P, "category", &mut filters.categories)?;
        settle(P, "name", &mut filters.names)?;
        let place = |text: String| filters.place_of(&text).ok_or_else(|| P.bad_cursor(&text));
        let after = cursor.map(place).transpose()?;
        Ok(ReportQuery { filters, limit: limit.unwrap_or(LIMIT_DEFAULT), after })
    }

    /// The query for a counters table. It asks for one row more than the limit, which tells whether there is a next page.
    /// `table` is a name of our own.
    pub fn sql(&self, table: &str) -> String {
        let mut sql = format!(
            "SELECT toInt32(day), toString(category) AS c, toString(name) AS n, sum(count) FROM {table} \
             WHERE log_generation = 0"
        );
        for (column, texts) in [("category", &self.filters.categories), ("name", &self.filters.names)] {
            if !texts.is_empty() {
                let texts: Vec<String> = texts.iter().map(|text| text_sql(text)).collect();
                sql += &format!(" AND {column} IN ({})", texts.join(", "));
            }
        }
        self.filters.days.write_sql(&mut sql);
        if let Some((day, category, name)) = &self.after {
            let (day, category, name) = (day_sql(*day), text_sql(category), text_sql(name));
            sql += &format!(
                " AND day >= {day} AND (day, toString(category), toString(name)) > ({day}, {category}, {name})"
            );
        }
        sql += &format!(" GROUP BY day, c, n ORDER BY day, c, n LIMIT {}", self.limit + 1);
        sql
    }

    /// `{"counters":[{"time","category","name","count"}],"next"}` out of the rows.
    pub fn render(&self, rows: &[u8]) -> Result<Vec<u8>, String> {
        let mut json = Vec::with_capacity(64 + rows.len() * 3);
        json.extend_from_slice(b"{\"counters\":[");
        let mut rows = RowBinary(rows);
        let (mut shown, mut last) = (0, None);
        while !rows.is_empty() && shown < self.limit {
            let (day, category, name, count) = (rows.i32()?, rows.text()?, rows.text()?, rows.u64()?);
            if !DAYS.contains(&day) {
                return Err(format!("day {day} is outside the years 1970 to 2100"));
            }
            json.extend_from_slice(if shown == 0 { b"{\"time\":\"" } else { b",{\"time\":\"" });
            json.extend_from_slice(&write_date(day));
            json.extend_from_slice(b"T00:00:00\",\"category\":");
            write_text(&mut json, category);
            json.extend_from_slice(b",\"name\":");
            write_text(&mut json, name);
            json.extend_from_slice(b",\"count\":");
            write_number(&mut json, count);
            json.push(b'}');
            (shown, last) = (shown + 1, Some((day, category, name)));
        }
        json.push(b']');
        if let (Some((day, category, name)), false) = (last, rows.is_empty()) {
            json.extend_from_slice(format!(",\"next\":\"{}\"", self.filters.cursor(day, category, name)).as_bytes());
        }
        json.extend_from_slice(b"}\n");
        Ok(json)
    }
}

impl Filters {
    /// The cursor that goes on after a row: 8 bytes that bind it to the filters, 4 of its day, then `category.name`, in hex.
    fn cursor(&self, day: i32, category: &str, name: &str) -> String {
        let text: String = format!("{category}.{name}").bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("{:016x}{day:08x}{text}", self.seal(day, category, name))
    }

    /// The row that a cursor goes on after; `None` when it is damaged or was given under other filters.
    fn place_of(&self, cursor: &str) -> Option<(i32, String, String)> {
        if cursor.len() < 24 || !cursor.len().is_multiple_of(2) || !cursor.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return None;
        }
        let seal = u64::from_str_radix(&cursor[..16], 16).ok()?;
        let day = u32::from_str_radix(&cursor[16..24], 16).ok()? as i32;
        let bytes = (24..cursor.len()).step_by(2).map(|at| u8::from_str_radix(&cursor[at..at + 2], 16));
        let text = String::from_utf8(bytes.collect::<Result<_, _>>().ok()?).ok()?;
        // A category has no dot.
        let (category, name) = text.split_once('.')?;
        (DAYS.contains(&day) && seal == self.seal(day, category, name))
            .then(|| (day, category.to_owned(), name.to_owned()))
    }

    /// Tells cursors of other filters apart. It keeps out mistakes, not attackers, who may ask for any row anyway.
    fn seal(&self, day: i32, category: &str, name: &str) -> u64 {
        xxhash_rust::xxh3::xxh3_64(format!("interaction counters 1 {self:?} {day} {category:?} {name:?}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::instant::parse_date;

    fn parse(query: &str) -> ReportQuery {
        ReportQuery::parse(Some(query)).unwrap_or_else(|message| panic!("{query}: {message}"))
    }

    #[test]
    fn filters_become_literals() {
        let everything = "SELECT toInt32(day), toString(category) AS c, toString(name) AS n, sum(count) FROM t \
                          WHERE log_generation = 0 GROUP BY day, c, n ORDER BY day, c, n LIMIT 10001";
        assert_eq!(ReportQuery::parse(None).unwrap().sql("t"), everything);
        let sql = parse("name=a%27b&category=x&category=w&category=x&day=2021-01-25&from=2021-01-01&limit=1").sql("t");
        assert!(sql.contains(
            " AND category IN (unhex('77'), unhex('78')) AND name IN (unhex('612762')) \
             AND day IN (toDate32('2021-01-25')) AND day >= toDate32('2021-01-01') GROUP BY"
        ));
        assert!(sql.ends_with(" LIMIT 2"));
    }

    #[test]
    fn refuses_and_names_what_is_wrong() {
        for (query, message) in [
            ("site_id=x", "unknown parameter \"site_id\""),
            ("category=a.b", "parameter \"category\": expected a text, found \"a.b\": a category has no dot"),
            ("day=x", "parameter \"day\": expected a day such as 2021-01-25, found \"x\": not of the form YYYY-MM-DD"),
            ("limit=100001", "parameter \"limit\": expected a number from 1 to 100000, found \"100001\""),
        ] {
            let expected = format!("{message}; allowed are category, name, day, from, to, limit, cursor");
            assert_eq!(ReportQuery::parse(Some(query)), Err(expected));
        }
    }

    fn rows(rows: &[(&str, &str, &str, u64)]) -> Vec<u8> {
        let mut bytes = vec![];
        for (day, category, name, count) in rows {
            bytes.extend(parse_date(day.as_bytes()).unwrap().to_le_bytes());
            for text in [category, name] {
                bytes.push(text.len() as u8);
                bytes.extend(text.as_bytes());
            }
            bytes.extend(count.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn renders_the_documented_json_and_goes_on() {
        let three =
            rows(&[("2021-01-25", "a", "b.c", 7), ("2021-01-25", "é", "\"", u64::MAX), ("2021-01-26", "a", "b", 1)]);
        let json = String::from_utf8(parse("").render(&three).unwrap()).unwrap();
        assert_eq!(
            json,
            "{\"counters\":[{\"time\":\"2021-01-25T00:00:00\",\"category\":\"a\",\"name\":\"b.c\",\"count\":7},\
             {\"time\":\"2021-01-25T00:00:00\",\"category\":\"é\",\"name\":\"\\\"\",\"count\":18446744073709551615},\
             {\"time\":\"2021-01-26T00:00:00\",\"category\":\"a\",\"name\":\"b\",\"count\":1}]}\n"
        );
        let page: serde_json::Value = serde_json::from_slice(&parse("limit=2").render(&three).unwrap()).unwrap();
        assert_eq!(page["counters"].as_array().unwrap().len(), 2);
        let cursor = page["next"].as_str().unwrap();
        let going_on = parse(&format!("cursor={cursor}&limit=9"));
        assert_eq!(going_on.after, Some((18_652, "é".to_owned(), "\"".to_owned())));
        assert!(going_on.sql("t").contains(
            " AND day >= toDate32('2021-01-25') AND (day, toString(category), toString(name)) > \
             (toDate32('2021-01-25'), unhex('c3a9'), unhex('22'))"
        ));
        assert!(ReportQuery::parse(Some(&format!("name=b&cursor={cursor}"))).is_err());
        for damaged in [&cursor[2..], &cursor[..cursor.len() - 2], &format!("{cursor}00"), "zz", ""] {
            assert!(ReportQuery::parse(Some(&format!("cursor={damaged}"))).is_err(), "{damaged}");
        }
        for cut in 1..three.len() {
            let _ = parse("").render(&three[..cut]);
        }
        assert!(parse("").render(&three[..three.len() - 1]).is_err());
    }
}
