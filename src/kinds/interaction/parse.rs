//! One JSON value to one interaction.
//!
//! | field | |
//! |---|---|
//! | `session_id` | UUID |
//! | `category`, `name` | 1 to [`TEXT_BYTES_MAX`] bytes without control characters; a category has no dot |
//! | `data` | an object that fits the schema of the type `category.name` |
//! | `timestamp` | ISO 8601, not further in the future than allowed |
//! | `event_id` | UUID; may be absent or null |
//!
//! They are checked in this order; fields beyond them are ignored. The codes are those of
//! [`fields`](crate::kinds::fields) and
//!
//! | code | when |
//! |---|---|
//! | `bad_text` | `category` or `name` is not such a text |
//! | `unknown_type` | no schema for `category.name` |
//! | `too_deep` | `data` is nested deeper than [`DEPTH_MAX`] |
//! | `bad_data` | `data` is no object, or does not fit its schema |
//! | `future_time` | `timestamp` is further in the future than allowed |

use simd_json::prelude::*;
use simd_json::tape::Value;

use super::member::member;
use super::types::Types;
use crate::kinds::fields::Fields;
use crate::kinds::{Rejection, Sent, excerpt};

/// The longest category or name, in bytes.
pub const TEXT_BYTES_MAX: usize = 128;

/// How many objects and arrays of `data` may lie in each other, itself included.
pub const DEPTH_MAX: usize = 64;

/// Where an event's id comes from; the numbers are those of the log and of ClickHouse's `Enum8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum Origin {
    /// It has none, and is always new.
    None = 0,
    /// It was sent.
    Sent = 1,
    /// It was made from the request's `Idempotency-Key`.
    Made = 2,
}

impl Origin {
    /// The origin of a number in the log.
    pub fn from_number(number: i8) -> Option<Origin> {
        match number {
            0 => Some(Origin::None),
            1 => Some(Origin::Sent),
            2 => Some(Origin::Made),
            _ => None,
        }
    }
}

/// An interaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InteractionEvent<'v> {
    /// When, in microseconds since 1970, within [`INSTANTS_US`](crate::kinds::instant::INSTANTS_US).
    pub timestamp_us: i64,
    /// Whose.
    pub session_id: [u8; 16],
    /// The first half of its type.
    pub category: &'v str,
    /// The second half.
    pub name: &'v str,
    /// A JSON object, every byte as it was sent.
    pub data: &'v str,
    /// Zeros where the origin is none.
    pub event_id: [u8; 16],
    /// Where the id comes from.
    pub origin: Origin,
}

const NAMES: [&str; 6] = ["session_id", "category", "name", "data", "timestamp", "event_id"];

#[inline]
fn place(name: &str) -> Option<usize> {
    match name {
        "session_id" => Some(0),
        "category" => Some(1),
        "name" => Some(2),
        "data" => Some(3),
        "timestamp" => Some(4),
        "event_id" => Some(5),
        _ => None,
    }
}

/// Checks one value and takes the event out of it.
pub fn parse<'v>(types: &Types, value: Value<'_, 'v>, sent: Sent<'v>) -> Result<InteractionEvent<'v>, Rejection> {
    let fields = Fields::read(value, &NAMES, place)?;
    let session_id = fields.uuid(0)?;
    let category = text("category", fields.required(1)?)?;
    let name = text("name", fields.required(2)?)?;
    let schema = types.find(category, name)?;
    let data_value = fields.required(3)?;
    let (data, depth) = data(value, data_value, sent.raw)?;
    if let Some(schema) = schema {
        schema.check(data_value, depth)?;
    }
    let timestamp_us = fields.instant(4)?;
    if timestamp_us > sent.received_us.saturating_add(types.future_us_max) {
        return Err(future_time(fields.required(4)?, types.future_us_max));
    }
    let (event_id, origin) = match fields.optional_uuid(5)? {
        Some(id) => (id, Origin::Sent),
        None => sent.made_key().map_or(([0; 16], Origin::None), |key| (key, Origin::Made)),
    };
    Ok(InteractionEvent { timestamp_us, session_id, category, name, data, event_id, origin })
}

/// What is wrong with a category or a name, if anything.
pub fn text_fault(field: &str, text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("it is empty")
    } else if text.len() > TEXT_BYTES_MAX {
        Some("it is longer")
    } else if text.contains(char::is_control) {
        Some("it holds a control character")
    } else if field == "category" && text.contains('.') {
        Some("a category has no dot")
    } else {
        None
    }
}

#[inline]
fn text<'v>(field: &'static str, value: Value<'_, 'v>) -> Result<&'v str, Rejection> {
    match value.into_string() {
        Some(text) => match text_fault(field, text) {
            None => Ok(text),
            Some(fault) => Err(bad_text(field, value, fault)),
        },
        None => Err(bad_text(field, value, "it is no text")),
    }
}

/// The bytes of the member `data`, as they came, and how deep values lie in it.
fn data<'v>(object: Value<'_, 'v>, data: Value<'_, 'v>, raw: &'v [u8]) -> Result<(&'v str, usize), Rejection> {
    if !data.is_object() {
        let message = format!("expected an object, found {}", excerpt::value(data));
        return Err(bad_data(message));
    }
    let names = object.as_object();
    let place = names.and_then(|object| object.iter().position(|(name, _)| name == "data"));
    // The tape was made of these bytes, so the member is there, and it is UTF-8.
    let found = place.and_then(|place| member(raw, place));
    let found = found.and_then(|found| Some((std::str::from_utf8(found.raw).ok()?, found.depth)));
    match found {
        Some((text, depth)) if depth <= DEPTH_MAX => Ok((text, depth)),
        Some((_, depth)) => Err(too_deep(depth)),
        None => Err(bad_data("expected an object in UTF-8".to_owned())),
    }
}

#[cold]
fn bad_data(message: String) -> Rejection {
    Rejection { code: "bad_data", field: Some("data".into()), message: message.into() }
}

#[cold]
fn too_deep(depth: usize) -> Rejection {
    let message = format!("expected at most {DEPTH_MAX} objects and arrays within each other, found {depth}");
    Rejection { code: "too_deep", field: Some("data".into()), message: message.into() }
}

#[cold]
fn bad_text(field: &'static str, value: Value<'_, '_>, fault: &str) -> Rejection {
    let found = excerpt::value(value);
    let message = format!("expected a text of 1 to {TEXT_BYTES_MAX} bytes, found {found}: {fault}");
    Rejection { code: "bad_text", field: Some(field.into()), message: message.into() }
}

#[cold]
fn future_time(value: Value<'_, '_>, future_us_max: i64) -> Rejection {
    let (found, seconds) = (excerpt::value(value), future_us_max as f64 / 1e6);
    let message = format!("expected a time at most {seconds} s in the future, found {found}");
    Rejection { code: "future_time", field: Some("timestamp".into()), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::made_key::KeyMaker;
    use std::borrow::Cow;

    /// 2021-01-25T18:20:42Z.
    const NOW_US: i64 = 1_611_598_842_000_000;
    const SESSION: &str = r#""session_id":"67e55044-10b1-426f-9247-bb680e5fe0c8""#;
    const CATEGORY: &str = r#""category":"page_interaction""#;
    const NAME: &str = r#""name":"pageview""#;
    const DATA: &str = r#""data":{"host":"h","path":"/"}"#;
    const TIMESTAMP: &str = r#""timestamp":"2021-01-25T18:20:42.159246Z""#;
    const GOOD: [&str; 5] = [SESSION, CATEGORY, NAME, DATA, TIMESTAMP];

    fn object(fields: &[&str]) -> String {
        format!("{{{}}}", fields.join(","))
    }

    fn read<R>(
        json: &str,
        accept_unknown: bool,
        maker: Option<&KeyMaker>,
        with: impl FnOnce(Result<InteractionEvent<'_>, Rejection>) -> R,
    ) -> R {
        let types = Types::load(None, accept_unknown, 300_000_000).unwrap();
        let mut bytes = json.as_bytes().to_vec();
        let tape = simd_json::to_tape(&mut bytes).unwrap_or_else(|error| panic!("{json}: {error}"));
        let sent = Sent { raw: json.as_bytes(), received_us: NOW_US, position: 3, key_maker: maker };
        with(parse(&types, tape.as_value(), sent))
    }

    /// Code, field and message.
    fn blame(json: &str) -> (&'static str, Option<String>, String) {
        read(json, false, None, |result| {
            let rejection = result.expect_err(json);
            (rejection.code, rejection.field.map(Cow::into_owned), rejection.message.into_owned())
        })
    }

    /// The good fields, one of them another.
    fn with(place: usize, field: &str) -> String {
        let mut fields = GOOD;
        fields[place] = field;
        object(&fields)
    }

    #[test]
    fn reads_an_event_in_any_order() {
        let expected = InteractionEvent {
            timestamp_us: NOW_US + 159_246,
            session_id: *uuid::Uuid::parse_str("67e55044-10b1-426f-9247-bb680e5fe0c8").unwrap().as_bytes(),
            category: "page_interaction",
            name: "pageview",
            data: r#"{"host":"h","path":"/"}"#,
            event_id: [0; 16],
            origin: Origin::None,
        };
        let mut turned = GOOD;
        turned.reverse();
        for fields in [
            &GOOD[..],
            &turned,
            &[&[r#""x":{"data":1}"#], &GOOD[..]].concat(),
            &[&GOOD[..], &[r#""event_id":null"#]].concat(),
        ] {
            assert_eq!(read(&object(fields), false, None, |result| result.map(|event| event == expected)), Ok(true));
        }
        let id = r#""event_id":"00000000-0000-0000-0000-000000000000""#;
        let sent = InteractionEvent { origin: Origin::Sent, ..expected };
        assert!(
            read(&object(&[&GOOD[..], &[id]].concat()), false, None, |result| result == Ok(sent)),
            "the nil UUID is one"
        );
    }

    #[test]
    fn an_idempotency_key_makes_an_id_where_none_was_sent() {
        let maker = KeyMaker::new("upload");
        let json = object(&GOOD);
        let made = maker.key(3, json.as_bytes());
        read(&json, false, Some(&maker), |result| {
            let event = result.unwrap();
            assert_eq!((event.event_id, event.origin), (made, Origin::Made));
        });
        let own = object(&[&GOOD[..], &[r#""event_id":"00000000-0000-0000-0000-000000000001""#]].concat());
        read(&own, false, Some(&maker), |result| {
            let event = result.unwrap();
            assert_eq!((event.event_id, event.origin), (1u128.to_be_bytes(), Origin::Sent));
        });
    }

    #[test]
    fn data_is_kept_to_the_byte() {
        for data in [
            r#"{"host":"h","path":"/","n":1.10,"big":12345678901234567890123,"neg":-0.0,"e":1E+2}"#,
            "{ \"path\" : \"\\u002f\\/\" ,\n\t\"host\":\"\\ud83d\\ude00é\",\"z\":1,\"a\":[ ] }",
            r#"{"host":"x","host":"h","path":"/","path":"/"}"#,
        ] {
            for json in [with(3, &format!("\"data\":{data}")), with(3, &format!("\"d\\u0061ta\" : {data} "))] {
                assert_eq!(
                    read(&json, false, None, |result| result.map(|event| event.data.to_owned())),
                    Ok(data.to_owned())
                );
            }
        }
    }

    #[test]
    fn blames_the_first_bad_field_of_the_schema() {
        let bad = [
            r#""session_id":1"#,
            r#""category":"""#,
            r#""name":"none""#,
            r#""data":[]"#,
            r#""timestamp":"2021-01-25T18:30:42Z""#,
            r#""event_id":"x""#,
        ];
        let codes = ["bad_uuid", "bad_text", "unknown_type", "bad_data", "future_time", "bad_uuid"];
        let names = ["session_id", "category", "name", "data", "timestamp", "event_id"];
        for first in 0..6 {
            let fields: Vec<&str> =
                (0..6).rev().map(|place| if place < first { GOOD[place] } else { bad[place] }).collect();
            let (code, field, _) = blame(&object(&fields));
            assert_eq!((code, field.as_deref()), (codes[first], Some(names[first])));
        }
        for (place, name) in names[..5].iter().enumerate() {
            let mut fields = GOOD.to_vec();
            let field = fields.remove(place);
            assert_eq!(blame(&object(&fields)).0, "missing_field");
            assert_eq!(blame(&object(&fields)).1.as_deref(), Some(*name));
            fields.extend([field, field]);
            assert_eq!(blame(&object(&fields)).0, "repeated_field");
        }
    }

    #[test]
    fn texts_are_bounded() {
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        for (text, fault) in [
            ("\"\"", "it is empty"),
            (&format!("\"{long}\"") as &str, "it is longer"),
            (r#""a\nb""#, "it holds a control character"),
            (r#""a\u0000""#, "it holds a control character"),
            (r#""a\u0085b""#, "it holds a control character"),
            ("5", "it is no text"),
            ("null", "it is no text"),
        ] {
            for (place, name) in [(1, "category"), (2, "name")] {
                let (code, field, message) = blame(&with(place, &format!("\"{name}\":{text}")));
                assert_eq!((code, field.as_deref()), ("bad_text", Some(name)));
                assert!(message.ends_with(fault) && message.len() < 300, "{message}");
            }
        }
        assert_eq!(blame(&with(1, r#""category":"a.b""#)).0, "bad_text");
        assert_eq!(blame(&with(2, r#""name":"a.b""#)).0, "unknown_type");
        let longest = "é".repeat(TEXT_BYTES_MAX / 2);
        let json = with(1, &format!("\"category\":\"{longest}\""));
        assert!(read(&json, true, None, |result| result.is_ok()));
    }

    #[test]
    fn times_of_the_near_future_alone() {
        for (time, good) in [
            ("2021-01-25T18:25:42.000000Z", true),
            ("2021-01-25T18:25:42.000001Z", false),
            ("2021-01-25T19:25:42+01:00", true),
            ("2100-12-31T00:00:00", false),
            ("1970-01-01T00:00:00", true),
        ] {
            let json = with(4, &format!("\"timestamp\":\"{time}\""));
            if good {
                assert!(read(&json, false, None, |result| result.is_ok()), "{time}");
            } else {
                let (code, _, message) = blame(&json);
                assert_eq!(code, "future_time");
                assert!(message.starts_with("expected a time at most 300 s in the future, found"), "{message}");
            }
        }
    }

    #[test]
    fn depth_is_bounded_for_every_type() {
        let nested =
            |depth: usize| format!("\"data\":{}{}{}", "{\"a\":".repeat(depth - 1), "{}", "}".repeat(depth - 1));
        for accept_unknown in [true, false] {
            let mut fields = GOOD;
            if accept_unknown {
                fields[2] = "\"name\":\"other\"";
            }
            let deepest = nested(DEPTH_MAX).replacen("{\"a\"", "{\"host\":\"h\",\"path\":\"/\",\"a\"", 1);
            fields[3] = &deepest;
            assert!(read(&object(&fields), accept_unknown, None, |result| result.is_ok()));
            let deeper = nested(DEPTH_MAX + 1);
            fields[3] = &deeper;
            read(&object(&fields), accept_unknown, None, |result| {
                let rejection = result.unwrap_err();
                assert_eq!((rejection.code, rejection.field.as_deref()), ("too_deep", Some("data")));
            });
        }
    }
}
