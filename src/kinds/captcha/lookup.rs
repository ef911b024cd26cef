//! `GET /v1/events/{correlation_id}`: the stored events of one captcha, and where in the log and when each was stored.
//!
//! It reads one column of all events (0.15 s at 12 million). An index would end that, and was found to cost uploads 8%.

use serde::Serialize;

use super::parse::CaptchaType;
use crate::kinds::excerpt::quote;
use crate::kinds::instant::{write_instant_ms, write_instant_us};
use crate::kinds::row_binary::RowBinary;
use crate::kinds::uuid_text::{parse_uuid, write_uuid};
use crate::kinds::{Question, Rendered, Report, Tables};
use crate::query_string;

/// The look-up.
#[derive(Debug)]
pub struct CaptchaLookup;

/// The columns of a row, in RowBinary.
const SELECT: &str = "toUnixTimestamp64Micro(time), toInt8(type), UUIDToNum(correlation_id), UUIDToNum(site_id), \
                      toUnixTimestamp64Milli(accepted_at), toUnixTimestamp64Milli(stored_at), \
                      log_generation, log_partition, log_offset, log_position";

#[derive(Serialize)]
struct Events {
    events: Vec<Event>,
}

#[derive(Serialize)]
struct Event {
    time: String,
    r#type: &'static str,
    correlation_id: String,
    site_id: String,
    accepted_at: String,
    stored_at: String,
    generation: u32,
    partition: u32,
    offset: i64,
    position: u32,
}

impl Report for CaptchaLookup {
    type Query = [u8; 16];

    fn parse(question: Question<'_>) -> Result<[u8; 16], String> {
        query_string::none(question.query)?;
        let segment = question.segment.unwrap_or_default();
        let id = query_string::decode_segment(segment).and_then(|text| parse_uuid(text.as_bytes()));
        id.ok_or_else(|| {
            let found = quote(segment);
            format!("expected a correlation_id such as 67e55044-10b1-426f-9247-bb680e5fe0c8 in the path, found {found}")
        })
    }

    fn sql(id: &[u8; 16], tables: &Tables) -> String {
        let id = text(&write_uuid(id));
        format!(
            "SELECT {SELECT} FROM {} WHERE correlation_id = toUUID('{id}') \
             ORDER BY log_generation, log_partition, log_offset, log_position",
            tables.events
        )
    }

    fn render(id: &[u8; 16], rows: &[u8]) -> Result<Rendered, String> {
        if rows.is_empty() {
            let id = text(&write_uuid(id));
            return Ok(Rendered::NotFound(format!(
                "no stored event has the correlation_id {id} (one that was just accepted is stored within a second)"
            )));
        }
        let mut rows = RowBinary(rows);
        let mut events = Vec::new();
        while !rows.is_empty() {
            events.push(event(&mut rows)?);
        }
        let mut json = serde_json::to_vec(&Events { events }).map_err(|error| error.to_string())?;
        json.push(b'\n');
        Ok(Rendered::Json(json))
    }
}

fn event(rows: &mut RowBinary<'_>) -> Result<Event, String> {
    let time = rows.i64()?;
    let number = rows.u8()?;
    let captcha_type = CaptchaType::from_number(number as i8).ok_or_else(|| format!("there is no type {number}"))?;
    let (correlation_id, site_id) = (rows.bytes()?, rows.bytes()?);
    let (accepted_at, stored_at) = (rows.i64()?, rows.i64()?);
    Ok(Event {
        time: write_instant_us(time),
        r#type: match captcha_type {
            CaptchaType::Serve => "serve",
            CaptchaType::Solve => "solve",
        },
        correlation_id: text(&write_uuid(&correlation_id)),
        site_id: text(&write_uuid(&site_id)),
        accepted_at: write_instant_ms(accepted_at),
        stored_at: write_instant_ms(stored_at),
        generation: rows.u32()?,
        partition: rows.u32()?,
        offset: rows.i64()?,
        position: rows.u32()?,
    })
}

fn text(ascii: &[u8]) -> String {
    String::from_utf8_lossy(ascii).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn ask(segment: &str, query: Option<&str>) -> Result<[u8; 16], String> {
        CaptchaLookup::parse(Question { query, segment: Some(segment) })
    }

    #[test]
    fn takes_a_uuid_in_any_form() {
        let id = ask(ID, None).unwrap();
        assert_eq!(ask("%7B67e5504410b1426f9247bb680e5fe0c8%7D", Some("")), Ok(id));
        assert!(ask("x", None).unwrap_err().contains("found \"x\""));
        assert!(ask("%ff", None).is_err());
        assert!(ask(ID, Some("limit=1")).unwrap_err().contains("\"limit\""));
    }

    #[test]
    fn renders_what_is_stored() {
        let id = ask(ID, None).unwrap();
        let mut row = vec![];
        row.extend(1_611_339_642_159_246i64.to_le_bytes());
        row.push(2);
        row.extend(id);
        row.extend([0; 16]);
        row.extend(1_700_000_000_123i64.to_le_bytes());
        row.extend(1_700_000_000_456i64.to_le_bytes());
        row.extend(1u32.to_le_bytes());
        row.extend(3u32.to_le_bytes());
        row.extend(77i64.to_le_bytes());
        row.extend(9u32.to_le_bytes());
        let Ok(Rendered::Json(json)) = CaptchaLookup::render(&id, &row) else { panic!("not rendered") };
        let expected = serde_json::json!({"events": [{
            "time": "2021-01-22T18:20:42.159246Z", "type": "solve", "correlation_id": ID,
            "site_id": "00000000-0000-0000-0000-000000000000",
            "accepted_at": "2023-11-14T22:13:20.123Z", "stored_at": "2023-11-14T22:13:20.456Z",
            "generation": 1, "partition": 3, "offset": 77, "position": 9,
        }]});
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&json).unwrap(), expected);
        assert!(matches!(CaptchaLookup::render(&id, &[]), Ok(Rendered::NotFound(message)) if message.contains(ID)));
        assert!(CaptchaLookup::render(&id, &row[1..]).is_err());
        row[8] = 9;
        assert!(CaptchaLookup::render(&id, &row).is_err());
    }
}
