//! What was found, shown in a message: cut to a sane length, on one line, with nothing that could garble a terminal.

use simd_json::prelude::*;
use simd_json::tape::Value;

/// Longest excerpt in characters, before escapes: enough for any well-formed time, UUID or URN, and to see what is wrong.
pub const EXCERPT_CHARS_MAX: usize = 64;

/// Text in double quotes, with control and other unprintable characters escaped.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(EXCERPT_CHARS_MAX) + 8);
    out.push('"');
    escape(&mut out, text);
    out.push('"');
    out
}

/// Bytes that may not be UTF-8, as text without quotes.
pub fn raw(bytes: &[u8]) -> String {
    // Four bytes is the longest character; what an invalid sequence becomes is never more characters than bytes.
    let head = &bytes[..bytes.len().min(EXCERPT_CHARS_MAX * 4)];
    let mut out = String::new();
    escape(&mut out, &String::from_utf8_lossy(head));
    if head.len() < bytes.len() && !out.ends_with("...") {
        out.push_str("...");
    }
    out
}

fn escape(out: &mut String, text: &str) {
    for (shown, c) in text.chars().enumerate() {
        if shown == EXCERPT_CHARS_MAX {
            out.push_str("...");
            return;
        }
        match c {
            '"' | '\'' | '\\' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
}

/// A JSON value: text in quotes, numbers as read, objects and arrays by their names.
pub fn value(value: Value<'_, '_>) -> String {
    if let Some(text) = value.as_str() {
        return quote(text);
    }
    if let Some(truth) = value.as_bool() {
        return truth.to_string();
    }
    // In this order: an integer that fits is shown as it is, whatever else it could be read as.
    if let Some(number) = value.as_u64() {
        return format!("the number {number}");
    }
    if let Some(number) = value.as_i64() {
        return format!("the number {number}");
    }
    if let Some(number) = value.as_f64() {
        return format!("the number {number:e}");
    }
    match value.value_type() {
        ValueType::Object => "an object",
        ValueType::Array => "an array",
        _ => "null",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_a_character() {
        let long = "ä".repeat(1000);
        assert_eq!(quote(&long), format!("\"{}...\"", "ä".repeat(EXCERPT_CHARS_MAX)));
        assert_eq!(quote(&long[..EXCERPT_CHARS_MAX * 2]), format!("\"{}\"", "ä".repeat(EXCERPT_CHARS_MAX)));
        assert_eq!(raw(long.as_bytes()), format!("{}...", "ä".repeat(EXCERPT_CHARS_MAX)));
        assert_eq!(raw(&[b'x'; 65]), format!("{}...", "x".repeat(64)));
        assert_eq!(raw(&vec![0xff; 1 << 20]).chars().count(), EXCERPT_CHARS_MAX + 3);
    }

    #[test]
    fn escapes_what_could_garble() {
        assert_eq!(quote("a\nb\u{0}\u{1b}[31m\u{202e}"), r#""a\nb\0\u{1b}[31m\u{202e}""#);
        assert_eq!(quote(r#"it's "so""#), r#""it's "so"""#);
    }

    #[test]
    fn names_what_a_value_is() {
        for (json, expected) in [
            ("null", "null"),
            ("true", "true"),
            ("{\"a\":1}", "an object"),
            ("[1]", "an array"),
            ("12", "the number 12"),
            ("-12", "the number -12"),
            ("1.5", "the number 1.5e0"),
            ("\"x\"", "\"x\""),
        ] {
            let mut bytes = json.as_bytes().to_vec();
            let tape = simd_json::to_tape(&mut bytes).unwrap();
            assert_eq!(value(tape.as_value()), expected);
        }
    }
}
