//! Query strings of the form `a=b&c=d`: percent-decoded pairs, in order.
//!
//! As in HTML forms, `+` is a space. What cannot be decoded is an error that names its parameter.

use std::borrow::Cow;

use crate::kinds::excerpt;

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'q> {
    /// Its name, decoded.
    pub name: Cow<'q, str>,
    /// Its value, decoded; `None` where there is no `=` (`?click`), unlike an empty one (`?click=`).
    pub value: Option<Cow<'q, str>>,
}

/// The parameters of a query, in order. Empty pieces (`a=1&&b=2`) are passed over.
pub fn pairs(query: &str) -> impl Iterator<Item = Result<Pair<'_>, String>> {
    query.split('&').filter(|piece| !piece.is_empty()).map(|piece| {
        let (name, value) = piece.split_once('=').map_or((piece, None), |(name, value)| (name, Some(value)));
        let bad = || {
            format!(
                "parameter {}: expected percent-encoded UTF-8, found {}",
                excerpt::quote(name),
                excerpt::quote(piece)
            )
        };
        let name = decode(name).ok_or_else(bad)?;
        let value = value.map(|value| decode(value).ok_or_else(bad)).transpose()?;
        Ok(Pair { name, value })
    })
}

/// For a path that takes no parameters: an error that names the first.
pub fn none(query: Option<&str>) -> Result<(), String> {
    match pairs(query.unwrap_or_default()).next() {
        None => Ok(()),
        Some(pair) => Err(format!("unknown parameter {}: this path takes none", excerpt::quote(&pair?.name))),
    }
}

/// Undoes percent-encoding as in forms, where `+` is a space; `None` when it is malformed or not UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode(text, b' ')
}

/// Undoes percent-encoding in a segment of a path, where `+` is itself; `None` when it is malformed or not UTF-8.
pub fn decode_segment(text: &str) -> Option<Cow<'_, str>> {
    percent_decode(text, b'+')
}

fn percent_decode(text: &str, plus: u8) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => plus,
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(query: &str) -> Result<Vec<(String, Option<String>)>, String> {
        pairs(query).map(|pair| pair.map(|pair| (pair.name.into_owned(), pair.value.map(Cow::into_owned)))).collect()
    }

    fn pair(name: &str, value: Option<&str>) -> (String, Option<String>) {
        (name.into(), value.map(Into::into))
    }

    #[test]
    fn decodes_pairs_in_order() {
        assert_eq!(all(""), Ok(vec![]));
        assert_eq!(all("&&"), Ok(vec![]));
        let expected = vec![pair("a", Some("b")), pair("c", Some("d=e")), pair("a", Some(""))];
        assert_eq!(all("a=b&c=d=e&&a="), Ok(expected));
        assert_eq!(all("click&x=1"), Ok(vec![pair("click", None), pair("x", Some("1"))]));
        assert_eq!(all("a+b=%c3%A4+%2B%26%3D%25"), Ok(vec![pair("a b", Some("ä +&=%"))]));
        assert_eq!(all("=x"), Ok(vec![pair("", Some("x"))]));
        assert_eq!(all("site_id={x}"), Ok(vec![pair("site_id", Some("{x}"))]));
    }

    #[test]
    fn names_what_cannot_be_decoded() {
        for query in ["a=1&day=%", "day=%2", "day=%zz", "day=%+1", "day=x%ff", "day=%c3", "day=%ED%A0%80"] {
            let message = all(query).expect_err(query);
            assert!(
                message.starts_with("parameter \"day\": expected percent-encoded UTF-8, found \"day="),
                "{message}"
            );
        }
        assert!(all("%ff=1").unwrap_err().starts_with("parameter \"%ff\""));
    }

    #[test]
    fn a_plus_in_a_path_is_a_plus() {
        assert_eq!(decode_segment("a+b%2B%20c").as_deref(), Some("a+b+ c"));
        assert_eq!(decode_segment("%ff"), None);
        assert_eq!(decode_segment("%2"), None);
    }

    #[test]
    fn none_are_taken() {
        assert_eq!(none(None), Ok(()));
        assert_eq!(none(Some("")), Ok(()));
        assert_eq!(none(Some("&")), Ok(()));
        assert_eq!(none(Some("x=1&y=2")), Err("unknown parameter \"x\": this path takes none".into()));
        assert!(none(Some("x=%")).is_err());
    }
}
