//! `GET /analytics?timestamp={millis}`: the users, clicks and impressions of the UTC hour that holds an instant.
//!
//! The answer is plain text, `unique_users,N\nclicks,N\nimpressions,N\n`. Users are counted as a set over the counters of
//! all writers and partitions, so their number is exact.

use std::time::Duration;

use super::hour_of;
use super::query::{missing, timestamp};
use crate::kinds::parameters::Parameters;
use crate::kinds::row_binary::RowBinary;
use crate::kinds::{Question, Rendered, Report, Tables};

const PARAMETERS: Parameters = Parameters(&["timestamp"]);

/// The report.
#[derive(Debug)]
pub struct HourReport;

/// Which hour is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HourQuery {
    /// Its start, in seconds since 1970.
    hour: u32,
}

impl Report for HourReport {
    /// Most reads ask for the current hour. An answer may be one second behind what is stored; the rest is for the way.
    const AGE_MAX: Duration = Duration::from_millis(900);

    type Query = HourQuery;

    fn parse(question: Question<'_>) -> Result<HourQuery, String> {
        let mut instant_ms = None;
        for pair in PARAMETERS.pairs(question.query) {
            let pair = pair?;
            if pair.name != "timestamp" {
                return Err(PARAMETERS.unknown(&pair.name));
            }
            PARAMETERS.once("timestamp", &mut instant_ms, timestamp(PARAMETERS, pair.value.as_deref())?)?;
        }
        let instant_ms = instant_ms.ok_or_else(|| missing(PARAMETERS, "timestamp"))?;
        Ok(HourQuery { hour: hour_of(instant_ms) })
    }

    fn sql(query: &HourQuery, tables: &Tables) -> String {
        format!(
            "SELECT uniqExact(user_hash), sum(clicks), sum(impressions) FROM {} \
             WHERE log_generation = 0 AND log_partition = 0 AND hour = toDateTime({}, 'UTC')",
            tables.counters, query.hour
        )
    }

    fn render(_: &HourQuery, rows: &[u8]) -> Result<Rendered, String> {
        // One row of three UInt64.
        let mut row = RowBinary(rows);
        let (users, clicks, impressions) = (row.u64()?, row.u64()?, row.u64()?);
        if !row.is_empty() {
            return Err(format!("{} bytes are more than one row", rows.len()));
        }
        let text = format!("unique_users,{users}\nclicks,{clicks}\nimpressions,{impressions}\n");
        Ok(Rendered::Text(text.into_bytes()))
    }
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
            (None, "parameter \"timestamp\": expected it, found none"),
            (Some(""), "parameter \"timestamp\": expected it, found none"),
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
            assert!(message.starts_with(reason) && message.ends_with("allowed are timestamp"), "{message}");
        }
    }

    #[test]
    fn rows_become_three_lines() {
        let row: Vec<u8> = [7u64, u64::MAX, 0].iter().flat_map(|number| number.to_le_bytes()).collect();
        let rendered = HourReport::render(&HourQuery { hour: 0 }, &row).unwrap();
        let text = "unique_users,7\nclicks,18446744073709551615\nimpressions,0\n";
        assert_eq!(rendered, Rendered::Text(text.as_bytes().to_vec()));
        for other in [&row[1..], &[&row[..], &[0]].concat(), &[]] {
            assert!(HourReport::render(&HourQuery { hour: 0 }, other).is_err());
        }
    }
}
