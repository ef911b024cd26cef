//! One JSON value to one captcha event.
//!
//! All four fields are required and checked in the schema's order; fields beyond them are ignored. The codes are those
//! of [`fields`](crate::kinds::fields) and `bad_type`.

use simd_json::prelude::*;
use simd_json::tape::Value;

use crate::kinds::fields::Fields;
use crate::kinds::plain::{Plain, once};
use crate::kinds::{Rejection, excerpt};

/// What happened to the captcha; the numbers are those of the log and of ClickHouse's `Enum8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum CaptchaType {
    /// It was shown.
    Serve = 1,
    /// It was solved.
    Solve = 2,
}

impl CaptchaType {
    /// The type of a number in the log.
    #[inline]
    pub fn from_number(number: i8) -> Option<CaptchaType> {
        match number {
            1 => Some(CaptchaType::Serve),
            2 => Some(CaptchaType::Solve),
            _ => None,
        }
    }

    /// The type of a name in an event.
    #[inline]
    fn from_name(name: &[u8]) -> Option<CaptchaType> {
        match name {
            b"serve" => Some(CaptchaType::Serve),
            b"solve" => Some(CaptchaType::Solve),
            _ => None,
        }
    }

    /// The lane of its keys.
    #[inline]
    pub fn lane(self) -> u8 {
        self as u8 - 1
    }
}

/// A captcha event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptchaEvent {
    /// When, in microseconds since 1970, within [`INSTANTS_US`](crate::kinds::instant::INSTANTS_US).
    pub time_us: i64,
    /// What.
    pub captcha_type: CaptchaType,
    /// Which captcha.
    pub correlation_id: [u8; 16],
    /// Where.
    pub site_id: [u8; 16],
}

const NAMES: [&str; 4] = ["time", "type", "correlation_id", "site_id"];

#[inline]
fn place(name: &str) -> Option<usize> {
    match name {
        "time" => Some(0),
        "type" => Some(1),
        "correlation_id" => Some(2),
        "site_id" => Some(3),
        _ => None,
    }
}

/// Checks one value and takes the event out of it.
#[inline]
pub fn parse(value: Value<'_, '_>) -> Result<CaptchaEvent, Rejection> {
    let fields = Fields::read(value, &NAMES, place)?;
    Ok(CaptchaEvent {
        time_us: fields.instant(0)?,
        captcha_type: captcha_type(fields.required(1)?)?,
        correlation_id: fields.uuid(2)?,
        site_id: fields.uuid(3)?,
    })
}

/// The event of a value that is written as usual; `None` for any other.
#[inline]
pub fn parse_plain(text: &[u8]) -> Option<CaptchaEvent> {
    let mut text = Plain::object(text)?;
    let (mut time_us, mut captcha_type, mut correlation_id, mut site_id) = (None, None, None, None);
    loop {
        if text.is_at(b"\"time\"") {
            once(&mut time_us, text.instant())?;
        } else if text.is_at(b"\"type\"") {
            once(&mut captcha_type, CaptchaType::from_name(text.quoted()?))?;
        } else if text.is_at(b"\"correlation_id\"") {
            once(&mut correlation_id, text.uuid())?;
        } else if text.is_at(b"\"site_id\"") {
            once(&mut site_id, text.uuid())?;
        } else {
            return None;
        }
        if !text.has_more()? {
            break;
        }
    }
    Some(CaptchaEvent {
        time_us: time_us?,
        captcha_type: captcha_type?,
        correlation_id: correlation_id?,
        site_id: site_id?,
    })
}

#[inline]
fn captcha_type(value: Value<'_, '_>) -> Result<CaptchaType, Rejection> {
    let named = value.as_str().and_then(|name| CaptchaType::from_name(name.as_bytes()));
    named.ok_or_else(|| bad_type(value))
}

#[cold]
fn bad_type(value: Value<'_, '_>) -> Rejection {
    let message = format!("expected \"serve\" or \"solve\", found {}", excerpt::value(value));
    Rejection { code: "bad_type", field: Some("type".into()), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use std::borrow::Cow;

    fn read(json: &str) -> Result<CaptchaEvent, Rejection> {
        let mut bytes = json.as_bytes().to_vec();
        let tape = simd_json::to_tape(&mut bytes).unwrap_or_else(|error| panic!("{json}: {error}"));
        parse(tape.as_value())
    }

    const TIME: &str = r#""time":"2021-01-22T18:20:42.159246""#;
    const TYPE: &str = r#""type":"serve""#;
    const CORRELATION: &str = r#""correlation_id":"67e55044-10b1-426f-9247-bb680e5fe0c8""#;
    const SITE: &str = r#""site_id":"00000000-0000-0000-0000-000000000001""#;

    fn object(fields: &[&str]) -> String {
        format!("{{{}}}", fields.join(","))
    }

    /// Code, field and a part of the message.
    fn blame(json: &str) -> (&'static str, Option<String>, String) {
        let rejection = read(json).expect_err(json);
        (rejection.code, rejection.field.map(Cow::into_owned), rejection.message.into_owned())
    }

    #[test]
    fn reads_an_event_in_any_order() {
        let expected = CaptchaEvent {
            time_us: 1_611_339_642_159_246,
            captcha_type: CaptchaType::Serve,
            correlation_id: *uuid::Uuid::parse_str("67e55044-10b1-426f-9247-bb680e5fe0c8").unwrap().as_bytes(),
            site_id: 1u128.to_be_bytes(),
        };
        assert_eq!(read(&object(&[TIME, TYPE, CORRELATION, SITE])), Ok(expected));
        assert_eq!(read(&object(&[SITE, CORRELATION, TYPE, TIME])), Ok(expected));
        let solved = CaptchaEvent { captcha_type: CaptchaType::Solve, ..expected };
        assert_eq!(read(&object(&[TIME, r#""type":"solve""#, CORRELATION, SITE])), Ok(solved));
        assert_eq!(
            read(&object(&[r#""ti\u006de":"2021-01-22T18:20:42.159246""#, TYPE, CORRELATION, SITE])),
            Ok(expected)
        );
        assert_eq!(read(&object(&[TIME, r#""type":"s\u0065rve""#, CORRELATION, SITE])), Ok(expected));
    }

    #[test]
    fn ignores_unknown_fields() {
        let deep = format!(r#""deep":{}{}"#, "[".repeat(500), "]".repeat(500));
        for unknown in [
            r#""x":{"time":1,"type":[{}]}"#,
            r#""x":1,"x":2,"x":null"#,
            r#""x":1234567890123456789012345678901234567890"#,
            r#""Time":5,"TYPE":5,"time ":5,"":5"#,
            deep.as_str(),
        ] {
            assert!(read(&object(&[unknown, TIME, TYPE, CORRELATION, SITE])).is_ok(), "{unknown}");
            assert!(read(&object(&[TIME, TYPE, CORRELATION, SITE, unknown])).is_ok(), "{unknown}");
        }
    }

    #[test]
    fn blames_the_first_bad_field_of_the_schema() {
        let (bad_time, bad_type) = (r#""time":5"#, r#""type":"served""#);
        let (bad_correlation, bad_site) = (r#""correlation_id":null"#, r#""site_id":"x""#);
        let all = object(&[bad_site, bad_correlation, bad_type, bad_time]);
        assert_eq!(blame(&all).1.as_deref(), Some("time"));
        assert_eq!(blame(&object(&[bad_site, bad_correlation, bad_type, TIME])).1.as_deref(), Some("type"));
        assert_eq!(blame(&object(&[bad_site, bad_correlation, TYPE, TIME])).1.as_deref(), Some("correlation_id"));
        assert_eq!(blame(&object(&[bad_site, CORRELATION, TYPE, TIME])).1.as_deref(), Some("site_id"));
        assert_eq!(blame(&object(&[bad_site, bad_correlation, bad_type])).0, "missing_field");
        // A missing field comes before a repeated one that stands later in the schema.
        let (code, field, _) = blame(&object(&[SITE, SITE, TIME, TYPE]));
        assert_eq!((code, field.as_deref()), ("missing_field", Some("correlation_id")));
    }

    #[test]
    fn missing_and_repeated() {
        let good = [("time", TIME), ("type", TYPE), ("correlation_id", CORRELATION), ("site_id", SITE)];
        for (place, (name, text)) in good.iter().enumerate() {
            let mut fields = good.map(|(_, text)| text).to_vec();
            fields.remove(place);
            let (code, field, _) = blame(&object(&fields));
            assert_eq!((code, field.as_deref()), ("missing_field", Some(*name)));
            fields.extend([*text, *text]);
            let (code, field, _) = blame(&object(&fields));
            assert_eq!((code, field.as_deref()), ("repeated_field", Some(*name)));
        }
        let escaped =
            object(&[TIME, TYPE, CORRELATION, SITE, r#""s\u0069te_id":"00000000-0000-0000-0000-000000000001""#]);
        assert_eq!(blame(&escaped).0, "repeated_field");
        assert_eq!(blame("{}").1.as_deref(), Some("time"));
    }

    #[test]
    fn says_what_was_expected_and_found() {
        let (code, field, message) = blame(&object(&[r#""time":"2021-02-30T00:00:00""#, TYPE, CORRELATION, SITE]));
        assert_eq!((code, field.as_deref()), ("bad_time", Some("time")));
        assert!(message.ends_with("found \"2021-02-30T00:00:00\": there is no such date"), "{message}");
        let (code, _, message) = blame(&object(&[r#""time":1611339642"#, TYPE, CORRELATION, SITE]));
        assert_eq!(code, "bad_time");
        assert!(message.contains("found the number 1611339642"), "{message}");
        for (found, shown) in [
            ("\"Serve\"", "\"Serve\""),
            ("\"\"", "\"\""),
            ("1", "the number 1"),
            ("[\"serve\"]", "an array"),
            ("null", "null"),
        ] {
            let (code, field, message) = blame(&object(&[TIME, &format!("\"type\":{found}"), CORRELATION, SITE]));
            assert_eq!((code, field.as_deref()), ("bad_type", Some("type")));
            assert_eq!(message, format!("expected \"serve\" or \"solve\", found {shown}"));
        }
        let long = format!(r#""site_id":"{}""#, "z".repeat(5000));
        let (code, field, message) = blame(&object(&[TIME, TYPE, CORRELATION, &long]));
        assert_eq!((code, field.as_deref()), ("bad_uuid", Some("site_id")));
        assert!(message.ends_with("zzz...\"") && message.len() < 200, "{message}");
    }

    /// What is taken as plain must be taken as JSON too, and as the same event.
    #[test]
    fn plain_text_and_json_give_the_same_event() {
        let mut dice = Dice::new("plain_text_and_json_give_the_same_event");
        let fields = [
            &[TIME, r#""time": "2021-01-22 18:20:42Z""#, r#""time" :"2021-01-22T24:00:00+01:00""#, r#""time":5"#][..],
            &[TYPE, r#""type": "solve""#, r#""type":"Solve""#, r#""type":"s\u0065rve""#],
            &[CORRELATION, r#""correlation_id": "67E5504410B1426F9247BB680E5FE0C8""#, r#""correlation_id":null"#],
            &[SITE, r#""site_id":"{00000000-0000-0000-0000-000000000001}""#, r#""site_id":"x""#, r#""x":1"#],
        ];
        let pool = b"{}[]\",:\\u0159aefT+-. \t\n\r/\x01\x7f\xc3\xa4\xff\x00";
        let (mut plain, mut other) = (0, 0);
        for _ in 0..100_000 {
            let mut order = [0, 1, 2, 3];
            (0..4).for_each(|place| order.swap(place, dice.below(4)));
            let usual = dice.once_in(2);
            let chosen = order.map(|field| if usual { fields[field][0] } else { *dice.pick(fields[field]) });
            let joined = chosen.join(*dice.pick(&[",", ", ", " ,\t"]));
            let mut text = dice.pick(&[format!("{{{joined}}}"), format!("{{ {joined} }}")]).clone().into_bytes();
            dice.damage(&mut text, pool);
            let Some(event) = parse_plain(&text) else {
                other += 1;
                continue;
            };
            plain += 1;
            let shown = text.escape_ascii().to_string();
            let tape = simd_json::to_tape(&mut text).unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_eq!(parse(tape.as_value()), Ok(event), "{shown}");
        }
        assert!(plain > 15_000 && other > 20_000, "{plain} {other}");
    }

    #[test]
    fn the_usual_text_is_plain() {
        for fields in [[TIME, TYPE, CORRELATION, SITE], [SITE, CORRELATION, TYPE, TIME]] {
            let text = object(&fields);
            assert_eq!(parse_plain(text.as_bytes()), read(&text).ok(), "{text}");
            assert!(parse_plain(text.as_bytes()).is_some(), "{text}");
        }
        for fields in [&[TIME, TYPE, CORRELATION][..], &[TIME, TYPE, CORRELATION, SITE, SITE], &[]] {
            assert_eq!(parse_plain(object(fields).as_bytes()), None);
        }
    }

    #[test]
    fn only_objects() {
        for (json, found) in [("[1]", "an array"), ("1", "the number 1"), ("\"x\"", "\"x\""), ("null", "null")] {
            let (code, field, message) = blame(json);
            assert_eq!((code, field.as_deref()), ("not_an_object", None));
            assert_eq!(message, format!("expected an object with time, type, correlation_id, site_id, found {found}"));
        }
    }
}
