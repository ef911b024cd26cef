//! The timeline: the stored interactions themselves, page by page. From a query string to SQL over the events, and from
//! ClickHouse's rows to JSON.
//!
//! | parameter | value |
//! |---|---|
//! | `session_id` | a UUID in any form |
//! | `category`, `name` | a text; repeated, either counts |
//! | `from`, `to` | instants; `from` is included, `to` is not |
//! | `event_id` | a UUID that was sent; no such event is a 404 |
//! | `limit` | events in one answer, 1 to [`LIMIT_MAX`], [`LIMIT_DEFAULT`] without |
//! | `cursor` | the `next` of an answer under the same filters |
//!
//! Events come by time, those of one instant by their place in the log, which makes the order total. A page ends early
//! when its `data` comes to [`PAGE_BYTES`]; `next` tells, as always, whether there is more.

use std::fmt::Write as _;

use super::parse::text_fault;
use crate::kinds::instant::{INSTANTS_US, write_instant_ms, write_instant_us};
use crate::kinds::json_text::{write_number, write_text};
use crate::kinds::parameters::{Parameters, text_sql};
use crate::kinds::row_binary::RowBinary;
use crate::kinds::uuid_text::write_uuid;
use crate::kinds::{Question, Rendered, Report, Tables};

/// Events in an answer unless `limit` says otherwise.
pub const LIMIT_DEFAULT: usize = 100;

/// The highest `limit`.
pub const LIMIT_MAX: usize = 10_000;

/// A page holds no further event once its `data` has so many bytes: 16 MiB.
pub const PAGE_BYTES: u64 = 16 << 20;

/// How often `category` or `name` may be given.
pub const VALUES_MAX: usize = 100;

const PARAMETERS: Parameters =
    Parameters(&["session_id", "category", "name", "from", "to", "event_id", "limit", "cursor"]);

/// The columns that tell where in the log an event lies.
const PLACE: &str = "log_generation, log_partition, log_offset, log_position";

/// The report.
#[derive(Debug)]
pub struct Timeline;

impl Report for Timeline {
    type Query = TimelineQuery;

    fn parse(question: Question<'_>) -> Result<TimelineQuery, String> {
        TimelineQuery::parse(question.query)
    }

    fn sql(query: &TimelineQuery, tables: &Tables) -> String {
        query.sql(&tables.events)
    }

    fn render(query: &TimelineQuery, rows: &[u8]) -> Result<Rendered, String> {
        query.render(rows)
    }
}

/// What the timeline is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineQuery {
    filters: Filters,
    limit: usize,
    /// Events up to and with this one were on earlier pages.
    after: Option<Place>,
}

/// Sorted and without repetitions, so that equal filters are equal however they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Filters {
    session_id: Option<[u8; 16]>,
    /// Empty for all.
    categories: Vec<String>,
    /// Empty for all.
    names: Vec<String>,
    from: Option<i64>,
    to: Option<i64>,
    event_id: Option<[u8; 16]>,
}

/// The place of an event in the order of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    timestamp_us: i64,
    generation: u32,
    partition: u32,
    offset: i64,
    position: u32,
}

impl TimelineQuery {
    /// Reads a query string. The error names the parameter, what was expected and found, and what is allowed.
    pub fn parse(query: Option<&str>) -> Result<TimelineQuery, String> {
        const P: Parameters = PARAMETERS;
        let mut filters = Filters::default();
        let (mut limit, mut cursor) = (None, None);
        for pair in P.pairs(query) {
            let pair = pair?;
            let value = pair.value.as_deref();
            match pair.name.as_ref() {
                name @ "session_id" => P.once(name, &mut filters.session_id, P.uuid(name, value)?)?,
                name @ "event_id" => P.once(name, &mut filters.event_id, P.uuid(name, value)?)?,
                name @ "category" => filters.categories.push(P.text(name, value, |text| text_fault(name, text))?),
                name @ "name" => filters.names.push(P.text(name, value, |text| text_fault(name, text))?),
                name @ "from" => P.once(name, &mut filters.from, P.instant(name, value)?)?,
                name @ "to" => P.once(name, &mut filters.to, P.instant(name, value)?)?,
                name @ "limit" => P.once(name, &mut limit, P.limit(value, LIMIT_MAX)?)?,
                name @ "cursor" => P.once(name, &mut cursor, value.unwrap_or_default().to_owned())?,
                unknown => return Err(P.unknown(unknown)),
            }
        }
        if let (Some(from), Some(to)) = (filters.from, filters.to)
            && from > to
        {
            return Err(P.bad("from", "expected a time that is not after `to`, found a later one"));
        }
        settle(P, "category", &mut filters.categories)?;
        settle(P, "name", &mut filters.names)?;
        let place = |text: String| filters.place_of(&text).ok_or_else(|| P.bad_cursor(&text));
        let after = cursor.map(place).transpose()?;
        Ok(TimelineQuery { filters, limit: limit.unwrap_or(LIMIT_DEFAULT), after })
    }

    /// The query for an events table. `table` is a name of our own.
    ///
    /// Every page is a short read in the order of the table, or of its projection by session, at any depth. How far the
    /// page goes is found first, by the sizes of `data` alone, so that neither side ever holds more of it than a page.
    pub fn sql(&self, table: &str) -> String {
        let condition = self.condition();
        let order = match self.filters.session_id {
            Some(_) => format!("session_id, timestamp, {PLACE}"),
            None => format!("timestamp, {PLACE}"),
        };
        let (limit, rows) = (self.limit, self.limit + 1);
        let projections = u8::from(self.filters.session_id.is_some() && self.filters.event_id.is_none());
        format!(
            "WITH assumeNotNull((SELECT (max(place), count() < max(found)) FROM (SELECT place, count() OVER () AS found, \
             sum(size) OVER (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) - size AS before FROM \
             (SELECT (timestamp, {PLACE}) AS place, length(data) AS size FROM {table} WHERE {condition} \
             ORDER BY {order} LIMIT {limit})) WHERE before < {PAGE_BYTES})) AS cut \
             SELECT cut.2, UUIDToNum(session_id), toString(category), toString(name), data, \
             toUnixTimestamp64Micro(timestamp), UUIDToNum(event_id), event_id_origin = 'sent', \
             toUnixTimestamp64Milli(accepted_at), toUnixTimestamp64Milli(stored_at), {PLACE} FROM {table} \
             WHERE {condition} AND timestamp <= cut.1.1 AND (NOT cut.2 OR (timestamp, {PLACE}) <= cut.1) \
             ORDER BY {order} LIMIT {rows} \
             SETTINGS optimize_read_in_order = 1, optimize_use_projections = {projections}"
        )
    }

    /// The filters and the cursor as a condition.
    fn condition(&self) -> String {
        let Filters { session_id, categories, names, from, to, event_id } = &self.filters;
        let mut conditions = Vec::new();
        let uuid = |id: &[u8; 16]| format!("toUUID('{}')", String::from_utf8_lossy(&write_uuid(id)));
        if let Some(session) = session_id {
            conditions.push(format!("session_id = {}", uuid(session)));
        }
        if let Some(event) = event_id {
            conditions.push(format!("event_id = {} AND event_id_origin = 'sent'", uuid(event)));
        }
        for (column, texts) in [("category", categories), ("name", names)] {
            if !texts.is_empty() {
                let texts: Vec<String> = texts.iter().map(|text| text_sql(text)).collect();
                conditions.push(format!("{column} IN ({})", texts.join(", ")));
            }
        }
        if let Some(from) = from {
            conditions.push(format!("timestamp >= {}", instant_sql(*from)));
        }
        if let Some(to) = to {
            conditions.push(format!("timestamp < {}", instant_sql(*to)));
        }
        if let Some(Place { timestamp_us, generation, partition, offset, position }) = self.after {
            let instant = instant_sql(timestamp_us);
            // The first is for the index, which a comparison of tuples would not use.
            conditions.push(format!(
                "timestamp >= {instant} AND (timestamp > {instant} OR ({PLACE}) > \
                 ({generation}, {partition}, {offset}, {position}))"
            ));
        }
        if conditions.is_empty() { "1".to_owned() } else { conditions.join(" AND ") }
    }

    /// `{"events":[...],"next"}` out of the rows.
    pub fn render(&self, rows: &[u8]) -> Result<Rendered, String> {
        let mut json = Vec::with_capacity(64 + rows.len() * 2);
        json.extend_from_slice(b"{\"events\":[");
        let mut rows = RowBinary(rows);
        let (mut shown, mut last, mut more) = (0, None, false);
        while !rows.is_empty() {
            let row = Row::read(&mut rows)?;
            more |= row.page_cut;
            if shown == self.limit {
                more = true;
                break;
            }
            if shown > 0 {
                json.push(b',');
            }
            row.write(&mut json);
            (shown, last) = (shown + 1, Some(row.place));
        }
        if shown == 0 && self.after.is_none() && self.filters.event_id.is_some() {
            return Ok(Rendered::NotFound(
                "no event with this event_id is stored (an accepted one is within a second)".to_owned(),
            ));
        }
        json.push(b']');
        if let (Some(last), true) = (last, more) {
            json.extend_from_slice(format!(",\"next\":\"{}\"", self.filters.cursor(last)).as_bytes());
        }
        json.extend_from_slice(b"}\n");
        Ok(Rendered::Json(json))
    }
}

/// Makes equal lists equal, and bounds them.
pub fn settle(parameters: Parameters, name: &str, values: &mut Vec<String>) -> Result<(), String> {
    values.sort_unstable();
    values.dedup();
    if values.len() > VALUES_MAX {
        return Err(parameters.bad(name, &format!("expected at most {VALUES_MAX} values, found {}", values.len())));
    }
    Ok(())
}

/// An instant as a literal.
fn instant_sql(instant_us: i64) -> String {
    format!("fromUnixTimestamp64Micro({instant_us}, 'UTC')")
}

impl Filters {
    /// The cursor that goes on after an event: 8 bytes that bind it to the filters, then its place, in hex.
    fn cursor(&self, place: Place) -> String {
        let Place { timestamp_us, generation, partition, offset, position } = place;
        let mut cursor = String::with_capacity(72);
        // Writing to a String cannot fail.
        let _ = write!(
            cursor,
            "{:016x}{timestamp_us:016x}{generation:08x}{partition:08x}{offset:016x}{position:08x}",
            self.seal(place)
        );
        cursor
    }

    /// The place that a cursor goes on after; `None` when it is damaged or was given under other filters.
    fn place_of(&self, cursor: &str) -> Option<Place> {
        if cursor.len() != 72 || !cursor.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let long = |at: usize| u64::from_str_radix(&cursor[at..at + 16], 16).ok();
        let short = |at: usize| u32::from_str_radix(&cursor[at..at + 8], 16).ok();
        let place = Place {
            timestamp_us: long(16)? as i64,
            generation: short(32)?,
            partition: short(40)?,
            offset: long(48)? as i64,
            position: short(64)?,
        };
        (INSTANTS_US.contains(&place.timestamp_us) && long(0)? == self.seal(place)).then_some(place)
    }

    /// Tells cursors of other filters apart. It keeps out mistakes, not attackers, who may ask for any event anyway.
    fn seal(&self, place: Place) -> u64 {
        xxhash_rust::xxh3::xxh3_64(format!("interaction 1 {self:?} {place:?}").as_bytes())
    }
}

/// One row of the answer.
struct Row<'r> {
    /// Whether the page was cut because of its size.
    page_cut: bool,
    session_id: [u8; 16],
    category: &'r str,
    name: &'r str,
    data: &'r str,
    /// Where one was sent.
    event_id: Option<[u8; 16]>,
    accepted_ms: i64,
    stored_ms: i64,
    place: Place,
}

impl<'r> Row<'r> {
    fn read(rows: &mut RowBinary<'r>) -> Result<Row<'r>, String> {
        let page_cut = rows.u8()? != 0;
        let session_id = rows.bytes()?;
        let (category, name, data) = (rows.text()?, rows.text()?, rows.text()?);
        let timestamp_us = rows.i64()?;
        let (id, sent) = (rows.bytes()?, rows.u8()? != 0);
        let event_id = sent.then_some(id);
        let (accepted_ms, stored_ms) = (rows.i64()?, rows.i64()?);
        let (generation, partition, offset, position) = (rows.u32()?, rows.u32()?, rows.i64()?, rows.u32()?);
        for instant_us in [timestamp_us, accepted_ms.saturating_mul(1000), stored_ms.saturating_mul(1000)] {
            if !INSTANTS_US.contains(&instant_us) {
                return Err(format!("an instant of {instant_us} us is outside the years 1970 to 2100"));
            }
        }
        let place = Place { timestamp_us, generation, partition, offset, position };
        Ok(Row { page_cut, session_id, category, name, data, event_id, accepted_ms, stored_ms, place })
    }

    fn write(&self, json: &mut Vec<u8>) {
        json.extend_from_slice(b"{\"session_id\":\"");
        json.extend_from_slice(&write_uuid(&self.session_id));
        json.extend_from_slice(b"\",\"category\":");
        write_text(json, self.category);
        json.extend_from_slice(b",\"name\":");
        write_text(json, self.name);
        json.extend_from_slice(b",\"data\":");
        json.extend_from_slice(self.data.as_bytes());
        json.extend_from_slice(format!(",\"timestamp\":\"{}\"", write_instant_us(self.place.timestamp_us)).as_bytes());
        if let Some(id) = self.event_id {
            json.extend_from_slice(b",\"event_id\":\"");
            json.extend_from_slice(&write_uuid(&id));
            json.push(b'"');
        }
        let (accepted, stored) = (write_instant_ms(self.accepted_ms), write_instant_ms(self.stored_ms));
        json.extend_from_slice(format!(",\"accepted_at\":\"{accepted}\",\"stored_at\":\"{stored}\"").as_bytes());
        let Place { generation, partition, offset, position, .. } = self.place;
        for (name, number) in [
            ("generation", u64::from(generation)),
            ("partition", u64::from(partition)),
            ("offset", offset.cast_unsigned()),
            ("position", u64::from(position)),
        ] {
            json.extend_from_slice(format!(",\"{name}\":").as_bytes());
            write_number(json, number);
        }
        json.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    const SESSION: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn parse(query: &str) -> TimelineQuery {
        TimelineQuery::parse(Some(query)).unwrap_or_else(|message| panic!("{query}: {message}"))
    }

    #[test]
    fn filters_become_literals() {
        assert_eq!(parse("").condition(), "1");
        assert_eq!(TimelineQuery::parse(None).unwrap(), parse("&"));
        assert_eq!(
            parse(&format!("session_id=%7B{SESSION}%7D&name=b&category=a%27&category=a%27&name=%C3%A9&from=1970-01-01T00:00:01Z&to=1970-01-01T00:00:01.5")).condition(),
            format!(
                "session_id = toUUID('{SESSION}') AND category IN (unhex('6127')) AND name IN (unhex('62'), unhex('c3a9')) \
                 AND timestamp >= fromUnixTimestamp64Micro(1000000, 'UTC') AND timestamp < fromUnixTimestamp64Micro(1500000, 'UTC')"
            )
        );
        assert_eq!(
            parse(&format!("event_id={SESSION}")).condition(),
            format!("event_id = toUUID('{SESSION}') AND event_id_origin = 'sent'")
        );
        let sql = parse("limit=7").sql("t");
        assert!(sql.contains("LIMIT 7)") && sql.contains("LIMIT 8 ") && sql.ends_with("optimize_use_projections = 0"));
        assert!(parse(&format!("session_id={SESSION}")).sql("t").ends_with("optimize_use_projections = 1"));
    }

    #[test]
    fn refuses_and_names_what_is_wrong() {
        for (query, message) in [
            ("session=x", "unknown parameter \"session\""),
            ("day=2021-01-25", "unknown parameter \"day\""),
            ("nam=x", "unknown parameter \"nam\", did you mean \"name\"?"),
            (
                "session_id=x",
                "parameter \"session_id\": expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8, found \"x\"",
            ),
            ("category=", "parameter \"category\": expected a text, found \"\": it is empty"),
            ("category=a.b", "parameter \"category\": expected a text, found \"a.b\": a category has no dot"),
            ("name", "parameter \"name\": expected a text, found no value"),
            (
                "from=2021-01-25",
                "parameter \"from\": expected a time such as 2021-01-25T18:20:42Z, found \"2021-01-25\": not of the form YYYY-MM-DDTHH:MM:SS",
            ),
            (
                "from=2021-01-25T00:00:01Z&to=2021-01-25T00:00:00Z",
                "parameter \"from\": expected a time that is not after `to`, found a later one",
            ),
            ("limit=0", "parameter \"limit\": expected a number from 1 to 10000, found \"0\""),
            ("limit=10001", "parameter \"limit\": expected a number from 1 to 10000, found \"10001\""),
            ("limit=1&limit=1", "parameter \"limit\": expected it once, found it more than once"),
            ("cursor=x", "parameter \"cursor\": expected the `next` of an answer under the same filters, found \"x\""),
            ("name=%ff", "parameter \"name\": expected percent-encoded UTF-8, found \"name=%ff\""),
        ] {
            let expected =
                format!("{message}; allowed are session_id, category, name, from, to, event_id, limit, cursor");
            assert_eq!(TimelineQuery::parse(Some(query)), Err(expected));
        }
        let twice = format!("session_id={SESSION}&session_id={SESSION}");
        assert!(TimelineQuery::parse(Some(&twice)).unwrap_err().contains("found it more than once"));
        let many: String = (0..=VALUES_MAX).map(|n| format!("name=n{n}&")).collect();
        assert!(TimelineQuery::parse(Some(&many)).unwrap_err().contains("expected at most 100 values, found 101"));
    }

    fn text(bytes: &mut Vec<u8>, text: &str) {
        let mut length = text.len();
        while length > 0x7f {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(text.as_bytes());
    }

    fn row(place: Place, page_cut: bool, sent: bool, data: &str) -> Vec<u8> {
        let mut bytes = vec![u8::from(page_cut)];
        bytes.extend([0x11; 16]);
        text(&mut bytes, "a\"");
        text(&mut bytes, "b");
        text(&mut bytes, data);
        bytes.extend(place.timestamp_us.to_le_bytes());
        bytes.extend([0x22; 16]);
        bytes.push(u8::from(sent));
        bytes.extend(1_000i64.to_le_bytes());
        bytes.extend(2_001i64.to_le_bytes());
        bytes.extend(place.generation.to_le_bytes());
        bytes.extend(place.partition.to_le_bytes());
        bytes.extend(place.offset.to_le_bytes());
        bytes.extend(place.position.to_le_bytes());
        bytes
    }

    const PLACE_1: Place =
        Place { timestamp_us: 1_611_598_842_000_005, generation: 1, partition: 2, offset: 3, position: 4 };

    fn json(query: &TimelineQuery, rows: &[u8]) -> String {
        match query.render(rows).unwrap() {
            Rendered::Json(json) => String::from_utf8(json).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn renders_the_documented_json() {
        let data = r#"{ "n":1.10, "big":1e999 }"#;
        let (session, id) = ("11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222");
        let event = |id: &str| {
            format!(
                "{{\"session_id\":\"{session}\",\"category\":\"a\\\"\",\"name\":\"b\",\"data\":{data},\
                 \"timestamp\":\"2021-01-25T18:20:42.000005Z\"{id},\"accepted_at\":\"1970-01-01T00:00:01.000Z\",\
                 \"stored_at\":\"1970-01-01T00:00:02.001Z\",\"generation\":1,\"partition\":2,\"offset\":3,\"position\":4}}"
            )
        };
        let rows = [row(PLACE_1, false, true, data), row(PLACE_1, false, false, data)].concat();
        let with_id = event(&format!(",\"event_id\":\"{id}\""));
        assert_eq!(json(&parse(""), &rows), format!("{{\"events\":[{with_id},{}]}}\n", event("")));
        assert_eq!(json(&parse(""), &[]), "{\"events\":[]}\n");
        let missing = parse(&format!("event_id={SESSION}"));
        assert!(matches!(missing.render(&[]), Ok(Rendered::NotFound(_))));
        for cut in 1..rows.len() {
            let whole = cut == rows.len() / 2 + 8;
            assert!(whole || parse("").render(&rows[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_page_that_was_cut_goes_on() {
        let query = parse("limit=2");
        let three =
            [row(PLACE_1, false, false, "{}"), row(PLACE_1, false, false, "{}"), row(PLACE_1, false, false, "{}")];
        let cursor = query.filters.cursor(PLACE_1);
        let next = format!(",\"next\":\"{cursor}\"}}\n");
        assert!(json(&query, &three.concat()).ends_with(&next));
        assert!(!json(&query, &three[..2].concat()).contains("next"));
        assert!(json(&query, &row(PLACE_1, true, false, "{}")).ends_with(&next));
        let going_on = parse(&format!("limit=5&cursor={cursor}"));
        assert_eq!(going_on.after, Some(PLACE_1));
        assert_eq!(
            going_on.condition(),
            "timestamp >= fromUnixTimestamp64Micro(1611598842000005, 'UTC') AND \
             (timestamp > fromUnixTimestamp64Micro(1611598842000005, 'UTC') OR \
             (log_generation, log_partition, log_offset, log_position) > (1, 2, 3, 4))"
        );
    }

    #[test]
    fn a_cursor_belongs_to_its_filters() {
        let mut dice = Dice::new("a_cursor_belongs_to_its_filters");
        let filters = format!("session_id={SESSION}&name=a&name=b&from=2021-01-01T00:00:00");
        for _ in 0..100 {
            let place = Place {
                timestamp_us: dice.below(INSTANTS_US.end as usize) as i64,
                generation: dice.any() as u32,
                partition: dice.any() as u32,
                offset: (dice.any() >> 1) as i64,
                position: dice.any() as u32,
            };
            let cursor = parse(&filters).filters.cursor(place);
            let turned = format!(
                "from=2021-01-01T01:00:00+01:00&name=b&limit=3&cursor={cursor}&name=a&name=b&session_id={SESSION}"
            );
            assert_eq!(parse(&turned).after, Some(place));
            for other in
                ["", "name=a", &format!("{filters}&to=2021-02-01T00:00:00"), &filters.replace("name=b", "name=c")]
            {
                assert!(TimelineQuery::parse(Some(&format!("{other}&cursor={cursor}"))).is_err());
            }
            let mut damaged = cursor.into_bytes();
            let at = dice.below(damaged.len());
            damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(TimelineQuery::parse(Some(&format!("{filters}&cursor={damaged}"))).is_err(), "{at}");
        }
        assert!(TimelineQuery::parse(Some(&format!("cursor={}", "ä".repeat(36)))).is_err());
    }
}
