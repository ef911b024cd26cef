//! Which media types are taken: JSON, NDJSON and their relatives, what `curl -d` says it sends, and none at all.
//!
//! The type is only a gate. What the body holds is told by its content (see [`values`](super::values)).

use crate::exchange::Fault;
use crate::kinds::excerpt;

/// The types that are taken besides `*+json`.
const TAKEN: [&str; 8] = [
    "application/json",
    "text/json",
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/jsonlines",
    "application/x-www-form-urlencoded",
];

/// Refuses a `Content-Type` that is none of ours, or that names a charset other than UTF-8.
pub fn check(content_type: Option<&str>) -> Result<(), Fault> {
    let Some(content_type) = content_type.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(());
    };
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    if is_taken(media_type) && parts.all(is_utf8_or_no_charset) {
        return Ok(());
    }
    Err(Fault::UnsupportedMediaType(excerpt::quote(content_type)))
}

fn is_taken(media_type: &str) -> bool {
    let suffixed = media_type.split_once('/').is_some_and(|(kind, name)| {
        let Some(at) = name.len().checked_sub("+json".len()) else { return false };
        let suffix = name.as_bytes()[at..].eq_ignore_ascii_case(b"+json");
        !kind.is_empty() && at > 0 && suffix && media_type.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
    });
    suffixed || TAKEN.iter().any(|taken| media_type.eq_ignore_ascii_case(taken))
}

fn is_utf8_or_no_charset(parameter: &str) -> bool {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    if !name.trim().eq_ignore_ascii_case("charset") {
        return true;
    }
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_json_and_relatives() {
        assert_eq!(check(None), Ok(()));
        for taken in TAKEN {
            assert_eq!(check(Some(taken)), Ok(()));
            assert_eq!(check(Some(&taken.to_uppercase())), Ok(()));
            for parameters in
                ["; charset=utf-8", ";charset=UTF-8", " ; Charset=\"Utf-8\" ", ";charset=utf8", ";q=1; x", ";"]
            {
                assert_eq!(check(Some(&format!("{taken}{parameters}"))), Ok(()), "{parameters}");
            }
        }
        for taken in ["", "  ", "application/vnd.acme.event+json", "Application/LD+JSON; charset=utf-8", "a/b+json"] {
            assert_eq!(check(Some(taken)), Ok(()), "{taken}");
        }
    }

    #[test]
    fn refuses_all_else() {
        for refused in [
            "text/plain",
            "application/xml",
            "multipart/form-data; boundary=x",
            "application/octet-stream",
            "json",
            "application/jsonx",
            "application/+json",
            "/x+json",
            "application/x+jsonä",
            "application/json, text/plain",
            "text/plain, a/b+json",
            "application/json; charset=latin1",
            "application/json; charset=\"utf-16\"",
            "application/json; charset",
            "application/json; charset=",
            ";charset=utf-8",
            "*/*",
        ] {
            let fault = check(Some(refused)).expect_err(refused);
            assert_eq!(fault.answer().status, 415, "{refused}");
        }
    }
}
