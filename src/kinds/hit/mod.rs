//! Hits: clicks and impressions of users, counted by UTC hour.
//!
//! A hit is `{"timestamp","user","action","event_id"?}`, or the same as a query. One with an `event_id` is counted once over
//! all history, one without is always new. [`parse`] and [`query`] read one, [`columns`] carries many, [`counters`] adds
//! them up by hour and user, [`report`] asks and answers.

pub mod columns;
pub mod counters;
pub mod parse;
pub mod query;
pub mod report;

use std::ops::Range;

pub use columns::HitColumns;
pub use counters::HitCounters;
pub use parse::{HitAction, HitEvent, HitId};

use simd_json::tape::Value;

use super::instant::INSTANTS_US;
use super::migrations::{Migration, migration};
use super::{CountersSql, Endpoints, Key, KeySql, Kind, QueryEvents, Rejection, Sent};
use crate::config::Config;
use report::HourReport;

/// The instants that a hit may have, in milliseconds: the years 1970 to 2100 in UTC.
pub const INSTANTS_MS: Range<i64> = INSTANTS_US.start / 1000..INSTANTS_US.end / 1000;

/// The longest name of a user, in bytes of UTF-8.
pub const USER_BYTES_MAX: usize = 256;

/// Milliseconds in an hour.
const HOUR_MS: i64 = 60 * 60 * 1000;

/// The start of the UTC hour that holds an instant of [`INSTANTS_MS`], in seconds since 1970.
#[inline]
pub fn hour_of(instant_ms: i64) -> u32 {
    // The last one, in 2100, is below 2^32.
    (instant_ms.div_euclid(HOUR_MS) * (HOUR_MS / 1000)) as u32
}

/// The kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Hit;

impl Kind for Hit {
    const NAME: &'static str = "hit";
    const SCHEMA_VERSION: u16 = 1;
    /// Lane 0 holds the identities that were sent, lane 1 those that were made from an `Idempotency-Key`.
    const KEY_LANES: u8 = 2;
    const KEY_SQL: KeySql = KeySql::EVENT_ID;
    const COUNTERS_SQL: CountersSql = CountersSql {
        key: &["hour", "user_hash"],
        recount_key: &[
            "toStartOfHour(toDateTime(timestamp, 'UTC'))",
            "reinterpretAsUInt128(sipHash128Reference(user))",
        ],
        name: "concat('hour ', toString(hour), ', user_hash ', toString(user_hash))",
        values: &["clicks", "impressions"],
        recount_values: &["countIf(action = 'click')", "countIf(action = 'impression')"],
    };
    const MIGRATIONS: &'static [Migration] =
        &[migration!("hit", 1, "events"), migration!("hit", 2, "counters"), migration!("hit", 3, "logs")];
    type Columns = HitColumns;
    type Counters = HitCounters;
    type Event<'v> = HitEvent<'v>;
    type Rules = ();

    fn open(_: &Config) -> Result<Hit, String> {
        Ok(Hit)
    }

    fn endpoints(on: &mut impl Endpoints<Hit>) {
        on.accept("/hits");
        on.accept_query("/analytics");
        on.report::<HourReport>("/analytics");
    }

    fn rules(&self) {}

    #[inline]
    fn parse<'v>(_: &(), value: Value<'_, 'v>, sent: Sent<'v>) -> Result<HitEvent<'v>, Rejection> {
        parse::parse(value, sent)
    }

    #[inline]
    fn parse_plain<'v>(_: &(), sent: Sent<'v>) -> Option<HitEvent<'v>> {
        parse::parse_plain(sent)
    }

    #[inline]
    fn partition_key<'e>(event: &'e HitEvent<'_>) -> &'e [u8] {
        match &event.id {
            HitId::None => event.user.as_bytes(),
            HitId::Sent(id) | HitId::Made(id) => id,
        }
    }

    #[inline]
    fn push(columns: &mut HitColumns, event: &HitEvent<'_>) {
        columns.push(event);
    }

    #[inline]
    fn key(columns: &HitColumns, row: usize) -> Option<Key> {
        match columns.id(row) {
            HitId::None => None,
            HitId::Sent(id) => Some(Key { lane: 0, id }),
            HitId::Made(id) => Some(Key { lane: 1, id }),
        }
    }
}

impl QueryEvents for Hit {
    fn from_query<'v>(_: &(), query: &'v str, sent: Sent<'v>) -> Result<HitEvent<'v>, String> {
        query::read(query, sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_begin_where_utc_says() {
        for (instant_ms, hour) in [
            (0, 0),
            (3_599_999, 0),
            (3_600_000, 3600),
            (1_611_583_199_999, 1_611_579_600),
            (1_611_583_200_000, 1_611_583_200),
            (INSTANTS_MS.end - 1, 4_133_977_200),
        ] {
            assert_eq!(hour_of(instant_ms), hour, "{instant_ms}");
        }
    }

    #[test]
    fn a_hit_lies_by_its_identity_or_else_by_its_user() {
        let hit = |id| HitEvent { timestamp_ms: 1, user: "anna".into(), action: HitAction::Click, id };
        assert_eq!(Hit::partition_key(&hit(HitId::None)), b"anna");
        assert_eq!(Hit::partition_key(&hit(HitId::Sent([7; 16]))), [7; 16]);
        assert_eq!(Hit::partition_key(&hit(HitId::Made([8; 16]))), [8; 16]);
        let mut columns = HitColumns::default();
        for id in [HitId::None, HitId::Sent([7; 16]), HitId::Made([7; 16]), HitId::Sent([0; 16])] {
            Hit::push(&mut columns, &hit(id));
        }
        let keys: Vec<_> = (0..4).map(|row| Hit::key(&columns, row)).collect();
        let key = |lane, id| Some(Key { lane, id });
        assert_eq!(keys, [None, key(0, [7; 16]), key(1, [7; 16]), key(0, [0; 16])]);
    }
}
