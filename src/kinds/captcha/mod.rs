//! Captcha events: served and solved captchas, counted by site and UTC day.
//!
//! An event is `{"time","type","correlation_id","site_id"}`; `type` together with `correlation_id` identifies it over
//! all history. [`parse`] reads one, [`columns`] carries many, [`counters`] adds them up, [`report`] asks and answers.

pub mod columns;
pub mod counters;
pub mod parse;
pub mod report;

pub use columns::CaptchaColumns;
pub use counters::CaptchaCounters;
pub use parse::{CaptchaEvent, CaptchaType};

use simd_json::tape::Value;

use super::instant::write_date;
use super::uuid_text::write_uuid;
use super::{CountersSql, Key, Kind, Rejection};

/// The kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Captcha;

impl Kind for Captcha {
    const NAME: &'static str = "captcha";
    const SCHEMA_VERSION: u16 = 1;
    /// Lane 0 holds what was served, lane 1 what was solved.
    const KEY_LANES: u8 = 2;
    const KEY_SQL: (&'static str, &'static str) = ("toUInt8(toInt8(type) - 1)", "UUIDToNum(correlation_id)");
    const COUNTERS_SQL: CountersSql = CountersSql {
        key: "toInt32(day), UUIDToNum(site_id)",
        key_bytes: 20,
        values: &["served", "solved"],
        recount_key: "toInt32(toDate32(time)), UUIDToNum(site_id)",
        recount_values: &["countIf(type = 'serve')", "countIf(type = 'solve')"],
    };
    type Columns = CaptchaColumns;
    type Counters = CaptchaCounters;
    type Event<'v> = CaptchaEvent;

    #[inline]
    fn parse<'v>(&self, value: Value<'_, 'v>) -> Result<CaptchaEvent, Rejection> {
        parse::parse(value)
    }

    #[inline]
    fn partition_key(event: &CaptchaEvent) -> &[u8] {
        &event.correlation_id
    }

    #[inline]
    fn push(columns: &mut CaptchaColumns, event: &CaptchaEvent) {
        columns.push(event);
    }

    fn describe_counter(key: &[u8]) -> String {
        let (Some(day), Some(site)) = (key.first_chunk::<4>(), key.last_chunk::<16>()) else {
            return format!("counter {key:02x?}");
        };
        let (day, site) = (write_date(i32::from_le_bytes(*day)), write_uuid(site));
        format!("day {}, site {}", String::from_utf8_lossy(&day), String::from_utf8_lossy(&site))
    }

    #[inline]
    fn key(columns: &CaptchaColumns, row: usize) -> Option<Key> {
        let lane = columns.captcha_type(row).lane();
        Some(Key { lane, id: *columns.correlation_id(row) })
    }
}
