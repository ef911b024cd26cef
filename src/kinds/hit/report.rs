//! `GET /analytics?timestamp={millis}`: the users, clicks and impressions of the UTC hour that holds an instant.
//!
//! The answer is plain text, `unique_users,N\nclicks,N\nimpressions,N\n`. Users are counted as a set over the counters of
//! all writers and partitions, so their number is exact.

use std::time::Duration;

use super::hour_of;
use super::query::timestamp_of;
use crate::kinds::excerpt::quote;
use crate::kinds::{Question, Rendered, Report, Tables};
use crate::query_string::pairs;

/// The report.
#[derive(Debug)]
pub struct HourReport;

/// Which hour is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HourQuery {
    /// Its start, in seconds since 1970.
    hour: u32,
}

/// Bytes of the one row in ClickHouse's `RowBinary`: three UInt64 in little-endian.
const ROW_BYTES: usize = 3 * 8;

impl Report for HourReport {
    /// Most reads ask for the current hour. An answer may be one second behind what is stored; the rest is for the way.
    const AGE_MAX: Duration = Duration::from_millis(900);

    type Query = HourQuery;

    fn parse(question: Question<'_>) -> Result<HourQuery, String> {
        let mut instant_ms = None;
        for pair in pairs(question.query.unwrap_or_default()) {
            let pair = pair.map_err(allowed)?;
            if pair.name != "timestamp" {
                return Err(allowed(format!("unknown parameter {}", quote(&pair.name))));
            }
            if instant_ms.replace(timestamp_of(pair.value.as_deref()).map_err(allowed)?).is_some() {
                return Err(allowed("parameter \"timestamp\": expected it once, found it more than once".to_owned()));
            }
        }
        let missing = || allowed("expected the parameter `timestamp`, found none".to_owned());
        Ok(HourQuery { hour: hour_of(instant_ms.ok_or_else(missing)?) })
    }

    fn sql(query: &HourQuery, tables: &Tables) -> String {
        format!(
            "SELECT uniqExact(user_hash), sum(clicks), sum(impressions) FROM {} \
             WHERE log_generation = 0 AND log_partition = 0 AND hour = toDateTime({}, 'UTC')",
            tables.counters, query.hour
        )
    }

    fn render(_: &HourQuery, rows: &[u8]) -> Result<Rendered, String> {
        let row: &[u8; ROW_BYTES] =
            rows.try_into().map_err(|_| format!("{} bytes are not one row of {ROW_BYTES} bytes", rows.len()))?;
        let [users, clicks, impressions] =
            std::array::from_fn(|nth| u64::from_le_bytes(std::array::from_fn(|index| row[nth * 8 + index])));
        let text = format!("unique_users,{users}\nclicks,{clicks}\nimpressions,{impressions}\n");
        Ok(Rendered::Text(text.into_bytes()))
    }
}

/// Ends a message with what is allowed.
fn allowed(message: String) -> String {
    format!("{message}; allowed is timestamp, once")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: Option<&str>) -> Result<u32, String> {
        HourReport::parse(Question { query, segment: None }).map(|query| query.hour)
    }

    #[test]
    fn an_instant_names_its_hour() {
        for (query, hour) in [
            ("timestamp=0", 0),
            ("timestamp=3599999", 0),
            ("&timestamp=3600000&", 3600),
            ("timestamp=%31611339642159", 1_611_338_400),
            ("timestamp=4133980799999", 4_133_977_200),
        ] {
            assert_eq!(parse(Some(query)), Ok(hour), "{query}");
        }
        let tables = Tables { events: "e".into(), counters: "`m`.`hit_counters`".into() };
        let sql = HourReport::sql(&HourQuery { hour: 3600 }, &tables);
        assert!(sql.contains("FROM `m`.`hit_counters` WHERE log_generation = 0"), "{sql}");
        assert!(sql.contains("hour = toDateTime(3600, 'UTC')"), "{sql}");
    }

    #[test]
    fn all_else_is_refused() {
        for (query, reason) in [
            (None, "expected the parameter `timestamp`, found none"),
            (Some(""), "expected the parameter `timestamp`, found none"),
            (Some("timestamp=1&timestamp=1"), "parameter \"timestamp\": expected it once"),
            (Some("timestamp=1&user=a"), "unknown parameter \"user\""),
            (Some("time=1"), "unknown parameter \"time\""),
            (Some("timestamp"), "parameter \"timestamp\": expected milliseconds"),
            (Some("timestamp=-1"), "parameter \"timestamp\": expected milliseconds"),
            (Some("timestamp=1.5"), "parameter \"timestamp\": expected milliseconds"),
            (Some("timestamp=4133980800000"), "parameter \"timestamp\": expected milliseconds"),
            (Some("timestamp=%zz"), "parameter \"timestamp\": expected percent-encoded UTF-8"),
        ] {
            let message = parse(query).expect_err("refused");
            assert!(message.starts_with(reason) && message.ends_with("allowed is timestamp, once"), "{message}");
        }
    }

    #[test]
    fn rows_become_three_lines() {
        let row: Vec<u8> = [7u64, u64::MAX, 0].iter().flat_map(|number| number.to_le_bytes()).collect();
        let rendered = HourReport::render(&HourQuery { hour: 0 }, &row).unwrap();
        let text = "unique_users,7\nclicks,18446744073709551615\nimpressions,0\n";
        assert_eq!(rendered, Rendered::Text(text.as_bytes().to_vec()));
        assert!(HourReport::render(&HourQuery { hour: 0 }, &row[1..]).is_err());
    }
}
