//! Events written the way that almost all are, read straight from their bytes.
//!
//! An object on one line, with names and texts in ASCII, without escapes, and with each field once, needs no JSON parser:
//! each value is checked by what reads it, and what stands between them is a handful of bytes. A kind asks for its fields
//! by their names in quotes; whatever is written in another way (unknown fields, escapes, line ends within, mistakes) is
//! `None`, and left to the kind's `parse`, which takes everything that is taken here, with the same result.

use super::instant::parse_instant;
use super::uuid_text::parse_uuid;

/// What is left of an object's text.
pub struct Plain<'v>(&'v [u8]);

impl<'v> Plain<'v> {
    /// The text of an object, without blanks around it; stands at the first name.
    #[inline]
    pub fn object(text: &'v [u8]) -> Option<Plain<'v>> {
        let [b'{', rest @ ..] = text else { return None };
        let mut text = Plain(rest);
        text.blanks();
        Some(text)
    }

    /// Whether this name, given with its quotes, is next; then it goes on to the name's value.
    #[inline]
    pub fn is_at(&mut self, quoted: &[u8]) -> bool {
        let Some(rest) = self.0.strip_prefix(quoted) else { return false };
        let mut text = Plain(rest);
        text.blanks();
        let [b':', rest @ ..] = text.0 else { return false };
        text.0 = rest;
        text.blanks();
        *self = text;
        true
    }

    /// Goes on behind a value: `true` at the next name, `false` at the end of the object and of the text.
    #[inline]
    pub fn has_more(&mut self) -> Option<bool> {
        self.blanks();
        match self.0 {
            [b'}'] => Some(false),
            [b',', rest @ ..] => {
                self.0 = rest;
                self.blanks();
                Some(true)
            }
            _ => None,
        }
    }

    /// The bytes between two quotes, unchecked: a backslash or a control character in them is for the caller to refuse.
    #[inline]
    pub fn quoted(&mut self) -> Option<&'v [u8]> {
        let [b'"', rest @ ..] = self.0 else { return None };
        let end = memchr::memchr(b'"', rest)?;
        self.0 = &rest[end + 1..];
        Some(&rest[..end])
    }

    /// A text of printable ASCII without backslashes.
    #[inline]
    pub fn text(&mut self) -> Option<&'v str> {
        let text = self.quoted()?;
        let is_plain = text.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\');
        if is_plain { std::str::from_utf8(text).ok() } else { None }
    }

    /// A UUID.
    #[inline]
    pub fn uuid(&mut self) -> Option<[u8; 16]> {
        // Its usual form ends at a known place.
        if let Some(([b'"', usual @ .., b'"'], rest)) = self.0.split_first_chunk::<38>()
            && let Some(id) = parse_uuid(usual)
        {
            self.0 = rest;
            return Some(id);
        }
        parse_uuid(self.quoted()?)
    }

    /// An instant, in microseconds since 1970.
    #[inline]
    pub fn instant(&mut self) -> Option<i64> {
        parse_instant(self.quoted()?).ok()
    }

    /// A whole number from 0 on, of at most 18 digits.
    #[inline]
    pub fn natural(&mut self) -> Option<i64> {
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at(digits);
        if number.is_empty() || digits > 18 || (number[0] == b'0' && digits > 1) {
            return None;
        }
        self.0 = rest;
        Some(number.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    #[inline]
    fn blanks(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.0 {
            self.0 = rest;
        }
    }
}

/// Keeps a field's value; `None` when the field was there before.
#[inline]
pub fn once<T>(field: &mut Option<T>, value: Option<T>) -> Option<()> {
    if field.is_some() {
        return None;
    }
    *field = value;
    field.is_some().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_plain() {
        let mut text = Plain::object(br#"{ "a" : 120,"b":"x y" ,	"c":"2021-01-25T00:00:00Z"}"#).unwrap();
        assert!(!text.is_at(b"\"b\""));
        assert!(text.is_at(b"\"a\""));
        assert_eq!((text.natural(), text.has_more()), (Some(120), Some(true)));
        assert!(text.is_at(b"\"b\""));
        assert_eq!((text.text(), text.has_more()), (Some("x y"), Some(true)));
        assert!(text.is_at(b"\"c\""));
        assert_eq!((text.instant(), text.has_more()), (Some(1_611_532_800_000_000), Some(false)));
    }

    #[test]
    fn leaves_the_rest_to_others() {
        for text in ["", "[1]", " {}", "\"a\"", "1"] {
            assert!(Plain::object(text.as_bytes()).is_none(), "{text}");
        }
        let value = |text: &'static str| Plain(text.as_bytes());
        for text in [r#""a\n""#, "\"ä\"", "\"a\tb\"", "\"a\u{7f}\"", "\"open", "a", ""] {
            assert_eq!(value(text).text(), None, "{text}");
        }
        for number in ["01", "-1", "+1", "", "1234567890123456789", "\"1\""] {
            assert_eq!(value(number).natural(), None, "{number}");
        }
        for (number, rest) in [("1.5", ".5"), ("1e3", "e3"), ("0x1", "x1")] {
            let mut number = value(number);
            assert!(number.natural().is_some());
            assert_eq!((number.0, number.has_more()), (rest.as_bytes(), None));
        }
        for end in ["", "} ", "}}", "},", "]", ", \"a\""] {
            let more = value(end).has_more();
            assert_eq!(more, (end == ", \"a\"").then_some(true), "{end:?}");
        }
    }

    #[test]
    fn reads_uuids_of_every_form() {
        let id = 0x67e5_5044_10b1_426f_9247_bb68_0e5f_e0c8_u128.to_be_bytes();
        for text in [
            "67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67E5504410B1426F9247BB680E5FE0C8",
            "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
            "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
        ] {
            let quoted = format!("\"{text}\"}}");
            let mut value = Plain(quoted.as_bytes());
            assert_eq!((value.uuid(), value.has_more()), (Some(id), Some(false)), "{text}");
        }
        for text in ["\"67e55044-10b1-426f-9247-bb680e5fe0c\"8\"", "\"67e55044-10b1-426f-9247-bb680e5fe0c8", "\"\"", ""]
        {
            assert_eq!(Plain(text.as_bytes()).uuid(), None, "{text}");
        }
    }

    #[test]
    fn a_field_is_kept_once() {
        let mut field = None;
        assert_eq!((once(&mut field, None), field), (None, None));
        assert_eq!((once(&mut field, Some(1)), field), (Some(()), Some(1)));
        assert_eq!((once(&mut field, Some(2)), field), (None, Some(1)));
    }
}
