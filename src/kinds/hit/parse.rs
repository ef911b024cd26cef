//! One JSON value to one hit.
//!
//! `timestamp`, `user` and `action` are required, `event_id` may be absent or null; they are checked in this order, and
//! fields beyond them are ignored. The codes are those of [`fields`](crate::kinds::fields) and
//!
//! | code | when |
//! |---|---|
//! | `bad_timestamp` | not an integer number of milliseconds of the years 1970 to 2100; `1e3` and `1000.0` are no integers here, since what writes them holds a float, in which the current time in finer units has lost digits |
//! | `bad_user` | not a text of 1 to 256 bytes of UTF-8 |
//! | `bad_action` | neither `click` nor `impression` |

use std::borrow::Cow;

use simd_json::prelude::*;
use simd_json::tape::Value;

use super::{INSTANTS_MS, USER_BYTES_MAX};
use crate::kinds::fields::Fields;
use crate::kinds::plain::{Plain, once};
use crate::kinds::{Rejection, Sent, excerpt};

/// What a user did; the numbers are those of the log and of ClickHouse's `Enum8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum HitAction {
    /// They clicked.
    Click = 1,
    /// They were shown something.
    Impression = 2,
}

impl HitAction {
    /// The action of a name in an event.
    #[inline]
    fn from_name(name: &[u8]) -> Option<HitAction> {
        match name {
            b"click" => Some(HitAction::Click),
            b"impression" => Some(HitAction::Impression),
            _ => None,
        }
    }

    /// The action of a number in the log.
    #[inline]
    pub fn from_number(number: i8) -> Option<HitAction> {
        match number {
            1 => Some(HitAction::Click),
            2 => Some(HitAction::Impression),
            _ => None,
        }
    }
}

/// What a hit is de-duplicated on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HitId {
    /// Nothing: it is always new.
    None,
    /// The `event_id` that came with it.
    Sent([u8; 16]),
    /// One made from its request's `Idempotency-Key`.
    Made([u8; 16]),
}

impl HitId {
    /// The identity that was sent, or else the one that the request gives.
    #[inline]
    pub fn new(sent_id: Option<[u8; 16]>, sent: &Sent<'_>) -> HitId {
        match sent_id {
            Some(id) => HitId::Sent(id),
            None => sent.made_key().map_or(HitId::None, HitId::Made),
        }
    }
}

/// A hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HitEvent<'v> {
    /// When, in milliseconds since 1970, within [`INSTANTS_MS`].
    pub timestamp_ms: i64,
    /// Whose: 1 to [`USER_BYTES_MAX`] bytes.
    pub user: Cow<'v, str>,
    /// What.
    pub action: HitAction,
    /// Which.
    pub id: HitId,
}

const NAMES: [&str; 4] = ["timestamp", "user", "action", "event_id"];

#[inline]
fn place(name: &str) -> Option<usize> {
    match name {
        "timestamp" => Some(0),
        "user" => Some(1),
        "action" => Some(2),
        "event_id" => Some(3),
        _ => None,
    }
}

/// Checks one value and takes the hit out of it.
#[inline]
pub fn parse<'v>(value: Value<'_, 'v>, sent: Sent<'v>) -> Result<HitEvent<'v>, Rejection> {
    let fields = Fields::read(value, &NAMES, place)?;
    Ok(HitEvent {
        timestamp_ms: timestamp(fields.required(0)?)?,
        user: Cow::Borrowed(user(fields.required(1)?, sent.raw)?),
        action: action(fields.required(2)?)?,
        id: HitId::new(fields.optional_uuid(3)?, &sent),
    })
}

/// The hit of a value that is written as usual; `None` for any other.
#[inline]
pub fn parse_plain<'v>(sent: Sent<'v>) -> Option<HitEvent<'v>> {
    let mut text = Plain::object(sent.raw)?;
    let (mut timestamp_ms, mut user, mut action, mut event_id) = (None, None, None, None);
    loop {
        if text.is_at(b"\"timestamp\"") {
            once(&mut timestamp_ms, text.natural().filter(|instant| INSTANTS_MS.contains(instant)))?;
        } else if text.is_at(b"\"user\"") {
            once(&mut user, text.text().filter(|user| !user.is_empty() && user.len() <= USER_BYTES_MAX))?;
        } else if text.is_at(b"\"action\"") {
            once(&mut action, HitAction::from_name(text.quoted()?))?;
        } else if text.is_at(b"\"event_id\"") {
            once(&mut event_id, text.uuid())?;
        } else {
            return None;
        }
        if !text.has_more()? {
            break;
        }
    }
    Some(HitEvent {
        timestamp_ms: timestamp_ms?,
        user: Cow::Borrowed(user?),
        action: action?,
        id: HitId::new(event_id, &sent),
    })
}

#[inline]
fn timestamp(value: Value<'_, '_>) -> Result<i64, Rejection> {
    // A number with a fraction or an exponent is a float to the parser, whatever its value, and no i64.
    value.as_i64().filter(|instant| INSTANTS_MS.contains(instant)).ok_or_else(|| bad_timestamp(value))
}

#[inline]
fn user<'v>(value: Value<'_, 'v>, raw: &[u8]) -> Result<&'v str, Rejection> {
    let Some(user) = value.into_string() else {
        return Err(bad_user(&excerpt::value(value)));
    };
    if user.is_empty() || user.len() > USER_BYTES_MAX {
        return Err(bad_user(&user_found(user)));
    }
    // The accepting stage puts U+FFFD in the place of half a surrogate pair, which no UTF-8 can hold.
    if user.contains(char::REPLACEMENT_CHARACTER) && has_half_of_a_pair(raw) {
        return Err(bad_user("half of a surrogate pair in it"));
    }
    Ok(user)
}

#[inline]
fn action(value: Value<'_, '_>) -> Result<HitAction, Rejection> {
    let named = value.as_str().and_then(|name| HitAction::from_name(name.as_bytes()));
    named.ok_or_else(|| bad_action(value))
}

/// Whether a valid JSON text has an escape such as `\ud800` that is no half of a whole pair.
#[cold]
fn has_half_of_a_pair(raw: &[u8]) -> bool {
    let mut rest = raw;
    let mut high_before = false;
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            if high_before {
                return true;
            }
            rest = after;
            continue;
        }
        let unit = after.strip_prefix(b"u").and_then(|after| after.split_first_chunk::<4>());
        let unit = unit.and_then(|(digits, _)| u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        let (high, low) = (unit.is_some_and(|u| u & 0xfc00 == 0xd800), unit.is_some_and(|u| u & 0xfc00 == 0xdc00));
        if low != high_before {
            return true;
        }
        high_before = high;
        // `\u` and four digits, or an escape of two bytes.
        rest = rest.get(if unit.is_some() { 6 } else { 2 }..).unwrap_or_default();
    }
    high_before
}

/// A user's name that is too long or empty, for a message.
pub(super) fn user_found(user: &str) -> String {
    match user.len() {
        0 => "an empty text".to_owned(),
        bytes => format!("{bytes} bytes"),
    }
}

#[cold]
fn bad_timestamp(value: Value<'_, '_>) -> Rejection {
    let found = match value.as_f64() {
        // Shown with the point or the exponent that is to blame.
        Some(number) => format!("the number {number:?}"),
        None => excerpt::value(value),
    };
    let message = format!(
        "expected an integer, milliseconds since 1970 such as 1611339642159 (to the end of 2100), found {found}"
    );
    Rejection { code: "bad_timestamp", field: Some("timestamp".into()), message: message.into() }
}

#[cold]
fn bad_user(found: &str) -> Rejection {
    let message = format!("expected a text of 1 to {USER_BYTES_MAX} bytes of UTF-8, found {found}");
    Rejection { code: "bad_user", field: Some("user".into()), message: message.into() }
}

#[cold]
fn bad_action(value: Value<'_, '_>) -> Rejection {
    let message = format!("expected \"click\" or \"impression\", found {}", excerpt::value(value));
    Rejection { code: "bad_action", field: Some("action".into()), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::made_key::KeyMaker;

    /// An event that owns its parts.
    fn read_sent(json: &str, key_maker: Option<&KeyMaker>) -> Result<HitEvent<'static>, Rejection> {
        let mut bytes = json.as_bytes().to_vec();
        let tape = simd_json::to_tape(&mut bytes).unwrap_or_else(|error| panic!("{json}: {error}"));
        let sent = Sent { raw: json.as_bytes(), received_us: 0, position: 3, key_maker };
        let event = parse(tape.as_value(), sent)?;
        Ok(HitEvent { user: Cow::Owned(event.user.into_owned()), ..event })
    }

    fn read(json: &str) -> Result<HitEvent<'static>, Rejection> {
        read_sent(json, None)
    }

    const TIMESTAMP: &str = r#""timestamp":1611339642159"#;
    const USER: &str = r#""user":"anna""#;
    const ACTION: &str = r#""action":"click""#;
    const EVENT_ID: &str = r#""event_id":"67e55044-10b1-426f-9247-bb680e5fe0c8""#;

    fn object(fields: &[&str]) -> String {
        format!("{{{}}}", fields.join(","))
    }

    /// Code, field and the message.
    fn blame(json: &str) -> (&'static str, Option<String>, String) {
        let rejection = read(json).expect_err(json);
        (rejection.code, rejection.field.map(Cow::into_owned), rejection.message.into_owned())
    }

    fn anna() -> HitEvent<'static> {
        HitEvent { timestamp_ms: 1_611_339_642_159, user: "anna".into(), action: HitAction::Click, id: HitId::None }
    }

    #[test]
    fn reads_a_hit_in_any_order() {
        assert_eq!(read(&object(&[TIMESTAMP, USER, ACTION])), Ok(anna()));
        assert_eq!(read(&object(&[ACTION, r#""x":{"user":1}"#, USER, TIMESTAMP])), Ok(anna()));
        let shown = HitEvent { action: HitAction::Impression, ..anna() };
        assert_eq!(read(&object(&[TIMESTAMP, USER, r#""action":"impression""#])), Ok(shown));
        let id = *uuid::Uuid::parse_str("67e55044-10b1-426f-9247-bb680e5fe0c8").unwrap().as_bytes();
        let known = HitEvent { id: HitId::Sent(id), ..anna() };
        assert_eq!(read(&object(&[EVENT_ID, TIMESTAMP, USER, ACTION])), Ok(known));
        assert_eq!(read(&object(&[TIMESTAMP, USER, ACTION, r#""event_id":null"#])), Ok(anna()));
        let nil = format!(r#""event_id":"{}""#, uuid::Uuid::nil());
        assert_eq!(read(&object(&[TIMESTAMP, USER, ACTION, &nil])).unwrap().id, HitId::Sent([0; 16]));
    }

    /// What is taken as plain must be taken as JSON too, and as the same hit.
    #[test]
    fn plain_text_and_json_give_the_same_hit() {
        let mut dice = Dice::new("plain_text_and_json_give_the_same_hit");
        let fields = [
            &[
                TIMESTAMP,
                r#""timestamp": 0"#,
                r#""timestamp" :4133980799999"#,
                r#""timestamp":-0"#,
                r#""timestamp":1e3"#,
            ][..],
            &[USER, r#""user": "a name""#, r#""user":"ä""#, r#""user":"\u00e4\ud83d""#, r#""user":"""#],
            &[ACTION, r#""action": "impression""#, r#""action":"clicked""#, r#""action":null"#],
            &[EVENT_ID, r#""event_id": "{00000000000000000000000000000001}""#, r#""event_id":null"#, r#""x":1"#],
        ];
        let pool = b"{}[]\",:\\u0159aefT+-. \t\n\r/\x01\x7f\xc3\xa4\xff\x00";
        let maker = KeyMaker::new("upload-1");
        let (mut plain, mut other) = (0, 0);
        for _ in 0..100_000 {
            let usual = dice.once_in(2);
            let mut chosen = fields.map(|field| if usual { field[0] } else { *dice.pick(field) }).to_vec();
            (0..4).for_each(|place| chosen.swap(place, dice.below(4)));
            chosen.truncate(*dice.pick(&[4, 4, 4, 3]));
            let mut text = format!("{{{}}}", chosen.join(*dice.pick(&[",", ", ", " ,\t"]))).into_bytes();
            dice.damage(&mut text, pool);
            let raw = text.clone();
            let sent = Sent { raw: &raw, received_us: 0, position: 3, key_maker: Some(&maker).filter(|_| usual) };
            let Some(hit) = parse_plain(sent) else {
                other += 1;
                continue;
            };
            plain += 1;
            let shown = raw.escape_ascii();
            let tape = simd_json::to_tape(&mut text).unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert_eq!(parse(tape.as_value(), sent), Ok(hit), "{shown}");
        }
        assert!(plain > 15_000 && other > 20_000, "{plain} {other}");
    }

    #[test]
    fn the_usual_text_is_plain() {
        let orders = [
            &[TIMESTAMP, USER, ACTION, EVENT_ID][..],
            &[EVENT_ID, ACTION, USER, TIMESTAMP],
            &[USER, TIMESTAMP, ACTION],
        ];
        for fields in orders {
            let text = object(fields);
            let sent = Sent { raw: text.as_bytes(), received_us: 0, position: 3, key_maker: None };
            assert!(parse_plain(sent).is_some(), "{text}");
        }
    }

    #[test]
    fn a_request_gives_identities_to_those_without() {
        let maker = KeyMaker::new("upload-1");
        let without = object(&[TIMESTAMP, USER, ACTION]);
        let made = maker.key(3, without.as_bytes());
        assert_eq!(read_sent(&without, Some(&maker)).unwrap().id, HitId::Made(made));
        let with = object(&[TIMESTAMP, USER, ACTION, EVENT_ID]);
        assert!(matches!(read_sent(&with, Some(&maker)).unwrap().id, HitId::Sent(_)));
        let null = object(&[TIMESTAMP, USER, ACTION, r#""event_id":null"#]);
        assert!(matches!(read_sent(&null, Some(&maker)).unwrap().id, HitId::Made(_)));
    }

    #[test]
    fn a_timestamp_is_an_integer_of_its_years() {
        for (text, expected) in [("0", 0), ("4133980799999", 4_133_980_799_999), ("-0", 0)] {
            let event = read(&object(&[&format!("\"timestamp\":{text}"), USER, ACTION]));
            assert_eq!(event.map(|event| event.timestamp_ms), Ok(expected), "{text}");
        }
        for (text, found) in [
            ("-1", "the number -1"),
            ("4133980800000", "the number 4133980800000"),
            ("18446744073709551615", "the number 18446744073709551615"),
            ("1e3", "the number 1000.0"),
            ("1000.0", "the number 1000.0"),
            ("1611339642159.5", "the number 1611339642159.5"),
            ("123456789012345678901234567890", "the number 1.2345678901234568e29"),
            ("\"1611339642159\"", "\"1611339642159\""),
            ("null", "null"),
            ("[1]", "an array"),
            ("true", "true"),
        ] {
            let (code, field, message) = blame(&object(&[&format!("\"timestamp\":{text}"), USER, ACTION]));
            assert_eq!((code, field.as_deref()), ("bad_timestamp", Some("timestamp")), "{text}");
            assert!(message.ends_with(&format!("found {found}")), "{text}: {message}");
        }
    }

    #[test]
    fn a_user_is_a_text_of_1_to_256_bytes() {
        let with = |user: &str| object(&[TIMESTAMP, &format!("\"user\":{user}"), ACTION]);
        let longest = "ä".repeat(128);
        for (text, expected) in [
            (r#"" ""#, " "),
            (r#""\u0000\n\"""#, "\0\n\""),
            (r#""\ud83d\ude00""#, "😀"),
            ("\"\u{fffd}\"", "\u{fffd}"),
            (r#""\ufffd\\ud800""#, "\u{fffd}\\ud800"),
            (&format!("\"{longest}\""), &longest),
        ] {
            assert_eq!(read(&with(text)).map(|event| event.user.into_owned()).as_deref(), Ok(expected), "{text}");
        }
        for (text, found) in [
            (r#""""#, "an empty text"),
            (&*format!("\"{longest}x\""), "257 bytes"),
            ("7", "the number 7"),
            ("null", "null"),
            ("[\"a\"]", "an array"),
        ] {
            let (code, field, message) = blame(&with(text));
            assert_eq!((code, field.as_deref()), ("bad_user", Some("user")), "{text}");
            assert_eq!(message, format!("expected a text of 1 to 256 bytes of UTF-8, found {found}"));
        }
    }

    #[test]
    fn half_a_pair_is_found() {
        for half in
            [r#"["\ud800"]"#, r#"["\udc00"]"#, r#"["\ud800x"]"#, r#"["\ud800\ud800"]"#, r#"["\uD83D\uDE00\uDE00"]"#]
        {
            assert!(has_half_of_a_pair(half.as_bytes()), "{half}");
        }
        for whole in [r#"["\ud83d\ude00"]"#, r#"["\\ud800"]"#, r#"["\ufffd\n\"\\"]"#, "[]", "\"\u{fffd}\""] {
            assert!(!has_half_of_a_pair(whole.as_bytes()), "{whole}");
        }
    }

    #[test]
    fn blames_the_first_bad_field_of_the_schema() {
        let bad = [r#""timestamp":"x""#, r#""user":"""#, r#""action":"clicked""#, r#""event_id":"x""#];
        let good = [TIMESTAMP, USER, ACTION, EVENT_ID];
        for (first, name) in NAMES.iter().enumerate() {
            let mut fields: Vec<&str> = good[..first].iter().chain(&bad[first..]).copied().collect();
            fields.reverse();
            assert_eq!(blame(&object(&fields)).1.as_deref(), Some(*name));
            let repeated = object(&[&good[..], &[good[first]]].concat());
            let (code, field, _) = blame(&repeated);
            assert_eq!((code, field.as_deref()), ("repeated_field", Some(*name)));
        }
        for (missing, name) in NAMES[..3].iter().enumerate() {
            let mut fields = good.to_vec();
            fields.remove(missing);
            let (code, field, _) = blame(&object(&fields));
            assert_eq!((code, field.as_deref()), ("missing_field", Some(*name)));
        }
        assert_eq!(blame("[]").0, "not_an_object");
    }

    #[test]
    fn says_what_was_expected_and_found() {
        for (found, shown) in [("\"Click\"", "\"Click\""), ("1", "the number 1"), ("true", "true"), ("null", "null")] {
            let (code, field, message) = blame(&object(&[TIMESTAMP, USER, &format!("\"action\":{found}")]));
            assert_eq!((code, field.as_deref()), ("bad_action", Some("action")));
            assert_eq!(message, format!("expected \"click\" or \"impression\", found {shown}"));
        }
        for found in ["\"\"", "7", "\"67e55044\"", "[]", "false"] {
            let (code, field, _) = blame(&object(&[TIMESTAMP, USER, ACTION, &format!("\"event_id\":{found}")]));
            assert_eq!((code, field.as_deref()), ("bad_uuid", Some("event_id")), "{found}");
        }
    }
}
