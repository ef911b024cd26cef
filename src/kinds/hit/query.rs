//! One query string to one hit: `timestamp={millis}&user={name}&click` or `&impression`, also `&event_id={uuid}`.
//!
//! Percent-encoded as in forms. Each parameter at most once, and none besides these, so that a slip of the pen is not
//! counted as something else. A flag is bare, empty, `1` or `true`.

use std::borrow::Cow;

use super::parse::{HitAction, HitEvent, HitId, user_found};
use super::{INSTANTS_MS, USER_BYTES_MAX};
use crate::kinds::Sent;
use crate::kinds::parameters::{self, Parameters};
use crate::query_string::Pair;

const PARAMETERS: Parameters = Parameters(&["timestamp", "user", "event_id", "click", "impression"]);

/// The parameters that have been found so far.
#[derive(Default)]
struct Found<'q> {
    timestamp_ms: Option<i64>,
    user: Option<Cow<'q, str>>,
    click: Option<()>,
    impression: Option<()>,
    event_id: Option<[u8; 16]>,
}

/// Reads a hit; the error names the parameter, what was expected and found, and what is allowed.
pub fn read<'q>(query: &'q str, sent: Sent<'_>) -> Result<HitEvent<'q>, String> {
    let mut found = Found::default();
    for pair in PARAMETERS.pairs(Some(query)) {
        let Pair { name, value } = pair?;
        let text = value.as_deref();
        match name.as_ref() {
            "timestamp" => once("timestamp", &mut found.timestamp_ms, timestamp(PARAMETERS, text)?)?,
            "click" => once("click", &mut found.click, flag("click", text)?)?,
            "impression" => once("impression", &mut found.impression, flag("impression", text)?)?,
            "event_id" => once("event_id", &mut found.event_id, PARAMETERS.uuid("event_id", text)?)?,
            "user" => once("user", &mut found.user, user(value)?)?,
            unknown => return Err(PARAMETERS.unknown(unknown)),
        }
    }
    let action = match (found.click, found.impression) {
        (Some(()), None) => HitAction::Click,
        (None, Some(())) => HitAction::Impression,
        (None, None) => return Err(PARAMETERS.bad("click", "expected it or `impression`, found neither")),
        (Some(()), Some(())) => return Err(PARAMETERS.bad("click", "expected it or `impression`, found both")),
    };
    Ok(HitEvent {
        timestamp_ms: found.timestamp_ms.ok_or_else(|| missing(PARAMETERS, "timestamp"))?,
        user: found.user.ok_or_else(|| missing(PARAMETERS, "user"))?,
        action,
        id: HitId::new(found.event_id, &sent),
    })
}

/// The instant that a parameter holds: decimal digits and nothing else.
pub(super) fn timestamp(parameters: Parameters, value: Option<&str>) -> Result<i64, String> {
    let digits = value.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let instant = digits.and_then(|digits| digits.parse().ok()).filter(|instant| INSTANTS_MS.contains(instant));
    instant.ok_or_else(|| {
        let expected = "milliseconds since 1970 such as 1611339642159 (digits only, to the end of 2100)";
        parameters.bad("timestamp", &format!("expected {expected}, found {}", parameters::found(value)))
    })
}

/// A parameter that must be there and is not.
pub(super) fn missing(parameters: Parameters, name: &str) -> String {
    parameters.bad(name, "expected it, found none")
}

fn user(value: Option<Cow<'_, str>>) -> Result<Cow<'_, str>, String> {
    let found = match value {
        Some(user) if (1..=USER_BYTES_MAX).contains(&user.len()) => return Ok(user),
        Some(user) => user_found(&user),
        None => "no value".to_owned(),
    };
    Err(PARAMETERS.bad("user", &format!("expected 1 to {USER_BYTES_MAX} bytes of UTF-8, found {found}")))
}

fn flag(name: &str, value: Option<&str>) -> Result<(), String> {
    match value {
        None | Some("" | "1" | "true") => Ok(()),
        Some(_) => Err(PARAMETERS
            .bad(name, &format!("expected it without a value, or with 1 or true, found {}", parameters::found(value)))),
    }
}

fn once<T>(name: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
    PARAMETERS.once(name, place, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::made_key::KeyMaker;

    fn sent<'v>(query: &'v str, key_maker: Option<&'v KeyMaker>) -> Sent<'v> {
        Sent { raw: query.as_bytes(), received_us: 0, position: 0, key_maker }
    }

    fn hit(query: &str) -> HitEvent<'_> {
        read(query, sent(query, None)).unwrap_or_else(|message| panic!("{query}: {message}"))
    }

    fn refusal(query: &str) -> String {
        let message = read(query, sent(query, None)).expect_err(query);
        let (message, _) =
            message.split_once("; allowed are timestamp, user, event_id, click, impression").expect(query);
        message.to_owned()
    }

    #[test]
    fn reads_a_hit_in_any_order() {
        let click =
            HitEvent { timestamp_ms: 1000, user: Cow::Borrowed("anna"), action: HitAction::Click, id: HitId::None };
        for query in [
            "timestamp=1000&user=anna&click",
            "click&user=anna&timestamp=1000",
            "&timestamp=0001000&&user=anna&click=&",
            "timestamp=1000&user=anna&click=1",
            "timestamp=1000&user=anna&click=true",
            "t%69mestamp=%31000&user=%61nna&cl%69ck=tru%65",
        ] {
            assert_eq!(hit(query), click, "{query}");
        }
        assert_eq!(hit("timestamp=1000&user=anna&impression"), HitEvent { action: HitAction::Impression, ..click });
        let id = "event_id=67E55044-10b1-426f-9247-bb680e5fe0c8";
        let bytes = *uuid::Uuid::parse_str(&id[9..]).unwrap().as_bytes();
        assert_eq!(hit(&format!("timestamp=1000&user=anna&click&{id}")).id, HitId::Sent(bytes));
    }

    #[test]
    fn decodes_users_as_forms_do() {
        for (text, user) in [
            ("anna+maria", "anna maria"),
            ("%2B%26%3D%25%00", "+&=%\0"),
            ("%C3%A4%f0%9f%98%80", "ä😀"),
            ("a=b", "a=b"),
            (" +", "  "),
        ] {
            assert_eq!(hit(&format!("user={text}&timestamp=0&click")).user, user, "{text}");
        }
        let longest = "%c3%a4".repeat(128);
        assert_eq!(hit(&format!("user={longest}&timestamp=0&click")).user, "ä".repeat(128));
        let long = refusal(&format!("user={longest}x&timestamp=0&click"));
        assert_eq!(long, "parameter \"user\": expected 1 to 256 bytes of UTF-8, found 257 bytes");
        assert!(refusal("user=&timestamp=0&click").ends_with("found an empty text"));
        assert!(refusal("user&timestamp=0&click").ends_with("found no value"));
        for broken in ["%", "%4", "%zz", "%ff", "%ed%a0%80", "x%c3"] {
            let message = refusal(&format!("timestamp=0&click&user={broken}"));
            assert!(message.starts_with("parameter \"user\": expected percent-encoded UTF-8"), "{message}");
        }
    }

    #[test]
    fn a_timestamp_is_digits_of_its_years() {
        for (text, timestamp_ms) in [("0", 0), ("4133980799999", 4_133_980_799_999)] {
            assert_eq!(hit(&format!("timestamp={text}&user=a&click")).timestamp_ms, timestamp_ms);
        }
        for text in [
            "",
            "-1",
            "+1",
            "%2B1",
            "1.0",
            "1e3",
            "0x1",
            "4133980800000",
            "99999999999999999999",
            "١",
            "2021-01-25",
            "1 ",
        ] {
            let message = refusal(&format!("timestamp={text}&user=a&click"));
            assert!(message.starts_with("parameter \"timestamp\": expected milliseconds since 1970"), "{message}");
        }
        assert!(refusal("timestamp&user=a&click").ends_with("found no value"));
    }

    #[test]
    fn exactly_one_action_and_everything_once() {
        assert_eq!(refusal("timestamp=0&user=a"), "parameter \"click\": expected it or `impression`, found neither");
        assert_eq!(
            refusal("timestamp=0&user=a&click&impression"),
            "parameter \"click\": expected it or `impression`, found both"
        );
        assert_eq!(refusal("user=a&click"), "parameter \"timestamp\": expected it, found none");
        assert_eq!(refusal("timestamp=0&click"), "parameter \"user\": expected it, found none");
        assert_eq!(refusal(""), "parameter \"click\": expected it or `impression`, found neither");
        let id = "event_id=67e5504410b1426f9247bb680e5fe0c8";
        for twice in ["timestamp=0", "user=b", "click", id] {
            let message = refusal(&format!("timestamp=0&user=a&click&{id}&{twice}"));
            let name = twice.split('=').next().unwrap();
            assert_eq!(message, format!("parameter \"{name}\": expected it once, found it more than once"));
        }
        for value in ["0", "false", "yes", "True"] {
            let message = refusal(&format!("timestamp=0&user=a&click={value}"));
            assert!(message.starts_with("parameter \"click\": expected it without a value"), "{message}");
        }
        assert_eq!(refusal("timestamp=0&user=a&click&time=1"), "unknown parameter \"time\"");
        let slip = "unknown parameter \"User\", did you mean \"user\"?";
        assert_eq!(refusal("timestamp=0&User=a&click"), slip);
        for id in ["event_id", "event_id=", "event_id=null", "event_id=7"] {
            assert!(refusal(&format!("timestamp=0&user=a&click&{id}")).starts_with("parameter \"event_id\""), "{id}");
        }
    }

    #[test]
    fn a_request_gives_an_identity() {
        let maker = KeyMaker::new("again");
        let query = "timestamp=0&user=a&click";
        let made = read(query, sent(query, Some(&maker))).unwrap().id;
        assert_eq!(made, HitId::Made(maker.key(0, query.as_bytes())));
    }
}
