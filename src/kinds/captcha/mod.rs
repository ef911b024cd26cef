//! Captcha events: served and solved captchas, counted by site and UTC day.
//!
//! An event is `{"time","type","correlation_id","site_id"}`; `type` together with `correlation_id` identifies it over
//! all history. [`parse`] reads one, [`columns`] carries many, [`counters`] adds them up, [`report`] asks and answers,
//! [`lookup`] finds one captcha's.

pub mod columns;
pub mod counters;
pub mod filter;
pub mod lookup;
pub mod parse;
pub mod report;

pub use columns::CaptchaColumns;
pub use counters::CaptchaCounters;
pub use parse::{CaptchaEvent, CaptchaType};

use simd_json::tape::Value;

use super::migrations::{Migration, migration};
use super::{CountersSql, Endpoints, Key, KeySql, Kind, Rejection, Sent};
use crate::config::Config;
use lookup::CaptchaLookup;
use report::CaptchaReport;

/// The kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Captcha;

impl Kind for Captcha {
    const NAME: &'static str = "captcha";
    const SCHEMA_VERSION: u16 = 1;
    /// Lane 0 holds what was served, lane 1 what was solved.
    const KEY_LANES: u8 = 2;
    const KEY_SQL: KeySql = KeySql { lane: "toUInt8(toInt8(type) - 1)", id: "UUIDToNum(correlation_id)", present: "1" };
    const COUNTERS_SQL: CountersSql = CountersSql {
        key: &["day", "site_id"],
        recount_key: &["toDate32(time)", "site_id"],
        name: "concat('day ', toString(day), ', site ', toString(site_id))",
        values: &["served", "solved"],
        recount_values: &["countIf(type = 'serve')", "countIf(type = 'solve')"],
    };
    const MIGRATIONS: &'static [Migration] =
        &[migration!("captcha", 1, "events"), migration!("captcha", 2, "counters"), migration!("captcha", 3, "logs")];
    type Columns = CaptchaColumns;
    type Counters = CaptchaCounters;
    type Event<'v> = CaptchaEvent;
    type Rules = ();

    fn open(_: &Config) -> Result<Captcha, String> {
        Ok(Captcha)
    }

    fn endpoints(on: &mut impl Endpoints<Captcha>) {
        ["/v1/events", "/v1/event", "/api/event"].into_iter().for_each(|path| on.accept(path));
        on.accept_segment("/api/event/{event}");
        let reports = ["/v1/report", "/v1/report/{filter}", "/api/report", "/api/report/{filter}"];
        reports.into_iter().for_each(|path| on.report::<CaptchaReport>(path));
        on.report::<CaptchaLookup>("/v1/events/{correlation_id}");
        on.document("/v1/schema", |_| include_bytes!("schema.json").to_vec());
    }

    fn rules(&self) {}

    #[inline]
    fn parse<'v>(_: &(), value: Value<'_, 'v>, _: Sent<'v>) -> Result<CaptchaEvent, Rejection> {
        parse::parse(value)
    }

    #[inline]
    fn parse_plain(_: &(), sent: Sent<'_>) -> Option<CaptchaEvent> {
        parse::parse_plain(sent.raw)
    }

    #[inline]
    fn partition_key(event: &CaptchaEvent) -> &[u8] {
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
