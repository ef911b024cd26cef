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

use super::{Key, Kind, Rejection};

/// The kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Captcha;

impl Kind for Captcha {
    const NAME: &'static str = "captcha";
    const SCHEMA_VERSION: u16 = 1;
    /// Lane 0 holds what was served, lane 1 what was solved.
    const KEY_LANES: u8 = 2;
    const KEY_SQL: (&'static str, &'static str) = ("toUInt8(toInt8(type) - 1)", "UUIDToNum(correlation_id)");
    type Columns = CaptchaColumns;
    type Counters = CaptchaCounters;
    type Event<'v> = CaptchaEvent;

    #[inline]
    fn parse<'v>(&self, value: Value<'_, 'v>) -> Result<CaptchaEvent, Rejection> {
        parse::parse(value)
    }

    #[inline]
    fn partition_key<'e>(event: &'e CaptchaEvent) -> &'e [u8] {
        &event.correlation_id
    }

    #[inline]
    fn push(columns: &mut CaptchaColumns, event: &CaptchaEvent) {
        columns.push(event);
    }

    #[inline]
    fn key(columns: &CaptchaColumns, row: usize) -> Option<Key> {
        let lane = columns.captcha_type(row).lane();
        Some(Key { lane, id: *columns.correlation_id(row) })
    }
}
