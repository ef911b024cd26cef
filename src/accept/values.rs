//! Splits a body into JSON values, by its content alone.
//!
//! | content | becomes |
//! |---|---|
//! | lines of one value each (NDJSON) | one value for each line; a line that is not JSON is refused alone |
//! | several values on a line, with or without blanks between | one value each |
//! | a value over several lines (pretty-printed) | one value, at the line where it begins |
//! | one array and nothing else | one value for each element, at its index |
//! | a broken array at the body's start | refused whole, nothing of the body is taken |
//! | an array among other values | one value (which no kind takes) |
//! | a value followed, on the line where it ends, by text that no value begins with | refused with that text |
//!
//! A byte order mark, blanks, blank lines and CRLF are passed over. Lines are physical and count from 1, as do indexes.
//!
//! **Work is linear in the body**, whatever it holds. The first attempt takes each line for one value. Where that fails,
//! a scan looks for the value's end, also beyond the line. A scan that finds none is charged for each byte that it looked
//! beyond its line, against [`LOOK_AHEAD_FACTOR`] times the body (and [`LOOK_AHEAD_BYTES_MIN`]); once that is spent, values end with their lines. Honest
//! bodies stay far below: a scan stops at the first byte that does not fit the grammar, which is soon where lines are
//! values, so that only nested brackets left open line after line can spend it.

use simd_json::tape;

use super::parser::Parser;
use super::scan::{self, Break, Depth, Extent, Pace, is_blank};
use crate::kinds::{Rejection, excerpt};

/// The code of text that is not JSON.
pub const BAD_JSON: &str = "bad_json";

/// The code of a value that is longer than an event may be.
pub const TOO_LONG: &str = "too_long";

/// How many times its length a body may cost in scans that went beyond their line and found nothing.
const LOOK_AHEAD_FACTOR: usize = 4;

/// What any body may cost besides, so that small ones never come to the end of it.
const LOOK_AHEAD_BYTES_MIN: usize = 64 << 10;

/// Bytes that the longest excerpt can be made of.
const EXCERPT_BYTES_MAX: usize = excerpt::EXCERPT_CHARS_MAX * 4 + 1;

/// What is done with the values.
pub trait Visit {
    /// Takes a value that is written the way that almost all are, straight from its bytes; `false` leaves it to be read
    /// as JSON.
    fn plain(&mut self, raw: &[u8]) -> bool;
    /// A JSON value, at its line (or index).
    fn value(&mut self, line: u64, raw: &[u8], value: tape::Value<'_, '_>);
    /// Text that was refused: code [`BAD_JSON`], or [`TOO_LONG`] for a value that is not looked into.
    fn refused(&mut self, line: u64, raw: &[u8], rejection: Rejection);
}

/// Hands every value of `body` to `visit`, in order; a value of more than `event_bytes_max` bytes is refused.
pub fn each_value(body: &[u8], event_bytes_max: usize, parser: &mut Parser, pace: &mut Pace, visit: &mut impl Visit) {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let look_ahead_left = body.len().saturating_mul(LOOK_AHEAD_FACTOR).saturating_add(LOOK_AHEAD_BYTES_MIN);
    let mut split =
        Split { body, event_bytes_max, parser, pace, visit, depth: Depth::default(), line: 1, look_ahead_left };
    let Some(start) = body.iter().position(|byte| !is_blank(*byte)) else { return };
    split.line += newlines(&body[..start]);
    split.pace.work(start);
    if body[start] != b'[' || !split.array(start) {
        split.lines(start);
    }
}

struct Split<'s, V> {
    body: &'s [u8],
    event_bytes_max: usize,
    parser: &'s mut Parser,
    pace: &'s mut Pace,
    visit: &'s mut V,
    depth: Depth,
    /// The physical line of the place where the work is.
    line: u64,
    /// What is left for scans beyond their line, in bytes.
    look_ahead_left: usize,
}

impl<V: Visit> Split<'_, V> {
    /// Takes the rest of the body, from `at` on, line by line.
    fn lines(&mut self, mut at: usize) {
        while at < self.body.len() {
            let end = line_end(self.body, at);
            let value = trim(&self.body[at..end]);
            self.pace.work(end - at + 1);
            if value.is_empty() || self.one_value(value) {
                at = end + 1;
            } else {
                at = self.entangled(at + blanks(&self.body[at..end]), end);
            }
            self.line += 1;
        }
    }

    /// The fast path: the line is one value.
    #[inline]
    fn one_value(&mut self, raw: &[u8]) -> bool {
        let (line, visit) = (self.line, &mut *self.visit);
        raw.len() <= self.event_bytes_max
            && (visit.plain(raw) || self.parser.parse(raw, |value| visit.value(line, raw, value)).is_some())
    }

    /// The line that ends at `end` is not one value: takes, from `at` on, what values there are, until one of them ends
    /// its line. Returns the start of the next line.
    fn entangled(&mut self, mut at: usize, mut end: usize) -> usize {
        let body = self.body;
        loop {
            let horizon = if self.look_ahead_left > 0 { body.len() } else { end };
            let (start, line) = (at, self.line);
            match scan::extent(&body[..horizon], at, &mut self.depth, self.pace) {
                Extent::Broken(broken) => {
                    self.look_ahead_left = self.look_ahead_left.saturating_sub(broken.at.saturating_sub(end));
                    self.broken(start, end, broken);
                    return end + 1;
                }
                Extent::Complete(value_end) => at = value_end,
            }
            if at > end {
                self.line += newlines(&body[start..at]);
                end = line_end(body, at);
                self.pace.work(end - start);
            }
            let next = at + blanks(&body[at..end]);
            if next < end && !scan::begins_value(&body[..end], next) {
                let line_now = std::mem::replace(&mut self.line, line);
                self.broken(start, end, Break { at: next, expected: "the end of the line or another value" });
                self.line = line_now;
                return end + 1;
            }
            self.complete(line, &body[start..at]);
            if next == end {
                return end + 1;
            }
            at = next;
        }
    }

    /// A value whose extent is known and whose grammar is right.
    fn complete(&mut self, line: u64, raw: &[u8]) {
        if raw.len() > self.event_bytes_max {
            return self.visit.refused(line, raw, too_long(raw.len(), self.event_bytes_max));
        }
        let broken = match scan::utf8_error(raw, self.pace) {
            Some(at) => Some(at),
            None => {
                self.pace.work(raw.len());
                let visit = &mut *self.visit;
                let read = self.parser.parse_valid(raw, |value| visit.value(line, raw, value));
                // Nothing is known that gets here: the scan and simd-json agree on what JSON is.
                read.is_none().then_some(0)
            }
        };
        if let Some(at) = broken {
            let found = excerpt::raw(&raw[at..]);
            let message = format!("not JSON: expected UTF-8 at byte {} of the value, found {found}", at + 1);
            self.visit.refused(line, raw, bad_json(message));
        }
    }

    /// Refuses the line from `start` to `end`, for what was found at a place there or further on.
    fn broken(&mut self, start: usize, end: usize, broken: Break) {
        let message = format!("not JSON: {}", self.describe(start, broken));
        self.visit.refused(self.line, trim(&self.body[start..end]), bad_json(message));
    }

    /// What was expected, where, and what was found; `start` lies in the current line, at or before the break.
    fn describe(&mut self, start: usize, Break { at, expected }: Break) -> String {
        let body = self.body;
        let line_start = memchr::memrchr(b'\n', &body[..at]).map_or(0, |newline| newline + 1);
        let byte = at - line_start + 1;
        self.pace.work(at - start);
        let place = match newlines(&body[start..at]) {
            0 => format!("at byte {byte} of the line"),
            further => format!("in line {}, byte {byte}", self.line + further),
        };
        // No further than an excerpt shows: many lines may break at one place, before one very long line.
        let end = line_end(&body[..body.len().min(at + EXCERPT_BYTES_MAX)], at);
        let found = match trim(&body[at..end]) {
            [] if end == body.len() => "the end of the body".into(),
            [] => "the end of the line".into(),
            rest => excerpt::raw(rest),
        };
        format!("expected {expected} {place}, found {found}")
    }

    /// The body begins with an array. Takes its elements when it is all there is, refuses the body when the array is
    /// broken; `false` when it is one value among others.
    fn array(&mut self, start: usize) -> bool {
        let measured =
            self.measure(start).and_then(|(lengths, end)| match scan::utf8_error(&self.body[start..end], self.pace) {
                Some(at) => Err(Break { at: start + at, expected: "UTF-8" }),
                None => Ok((lengths, end)),
            });
        let (lengths, end) = match measured {
            Ok(measured) => measured,
            Err(broken) => {
                let message =
                    format!("not JSON, so that nothing of the array is taken: {}", self.describe(start, broken));
                self.visit.refused(self.line, trim(&self.body[start..]), bad_json(message));
                return true;
            }
        };
        if !trim(&self.body[end..]).is_empty() {
            return false;
        }
        let (mut at, mut index) = (start + 1, 0);
        for length in lengths.iter() {
            at += self.body[at..].iter().take_while(|byte| is_blank(**byte) || **byte == b',').count();
            index += 1;
            self.element(index, &self.body[at..at + length]);
            at += length;
        }
        true
    }

    fn element(&mut self, index: u64, raw: &[u8]) {
        if raw.len() > self.event_bytes_max {
            return self.visit.refused(index, raw, too_long(raw.len(), self.event_bytes_max));
        }
        self.pace.work(raw.len());
        let visit = &mut *self.visit;
        if !visit.plain(raw) && self.parser.parse_valid(raw, |value| visit.value(index, raw, value)).is_none() {
            // As in `complete`: nothing is known that gets here.
            self.visit.refused(index, raw, bad_json(format!("not JSON: found {}", excerpt::raw(raw))));
        }
    }

    /// The lengths of the elements of the array that opens at `open`, and where it ends.
    fn measure(&mut self, open: usize) -> Result<(Lengths, usize), Break> {
        let body = self.body;
        let mut lengths = Lengths::default();
        let mut at = open + 1 + blanks(&body[open + 1..]);
        if body.get(at) == Some(&b']') {
            return Ok((lengths, at + 1));
        }
        loop {
            match scan::extent(body, at, &mut self.depth, self.pace) {
                Extent::Broken(broken) => return Err(broken),
                Extent::Complete(end) => {
                    lengths.push(end - at);
                    at = end + blanks(&body[end..]);
                    self.pace.work(at - end);
                }
            }
            match body.get(at) {
                Some(b']') => return Ok((lengths, at + 1)),
                Some(b',') => at += 1 + blanks(&body[at + 1..]),
                _ => return Err(Break { at, expected: "`,` or `]`" }),
            }
        }
    }
}

/// The lengths of an array's elements, seven bits to a byte (LEB128), so that they never need more room than the array
/// itself, be it full of `0,0,0`.
#[derive(Default)]
struct Lengths(Vec<u8>);

impl Lengths {
    fn push(&mut self, mut length: usize) {
        while length > 0x7f {
            self.0.push(length as u8 | 0x80);
            length >>= 7;
        }
        self.0.push(length as u8);
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let mut bytes = self.0.iter();
        std::iter::from_fn(move || {
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = *bytes.next()?;
                length |= usize::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    return Some(length);
                }
                shift += 7;
            }
        })
    }
}

#[cold]
fn bad_json(message: String) -> Rejection {
    Rejection { code: BAD_JSON, field: None, message: message.into() }
}

#[cold]
fn too_long(found: usize, event_bytes_max: usize) -> Rejection {
    let message = format!("expected an event of at most {event_bytes_max} bytes, found one of {found}");
    Rejection { code: TOO_LONG, field: None, message: message.into() }
}

fn newlines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// Where the line that holds `at` ends: at its newline or at the body's end.
#[inline]
fn line_end(body: &[u8], at: usize) -> usize {
    memchr::memchr(b'\n', &body[at..]).map_or(body.len(), |length| at + length)
}

/// How many blanks (newlines among them) stand at the start of a text.
#[inline]
fn blanks(text: &[u8]) -> usize {
    text.iter().take_while(|byte| is_blank(**byte)).count()
}

#[inline]
fn trim(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_blank(*first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && is_blank(*last)
    {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    /// What became of a value or a line.
    #[derive(Debug, PartialEq, Eq, Clone)]
    enum Found {
        Value(u64, String),
        Refused(u64, &'static str),
    }
    use Found::{Refused, Value};

    #[derive(Default)]
    struct List {
        found: Vec<Found>,
        messages: Vec<String>,
    }

    impl Visit for List {
        fn plain(&mut self, _: &[u8]) -> bool {
            false
        }
        fn value(&mut self, line: u64, raw: &[u8], _: tape::Value<'_, '_>) {
            self.found.push(Value(line, String::from_utf8(raw.to_vec()).unwrap()));
        }
        fn refused(&mut self, line: u64, _: &[u8], rejection: Rejection) {
            assert_eq!(rejection.field, None);
            self.found.push(Refused(line, rejection.code));
            self.messages.push(rejection.message.into_owned());
        }
    }

    const MAX: usize = 1 << 20;

    fn list(body: &[u8], event_bytes_max: usize) -> List {
        let mut list = List::default();
        each_value(body, event_bytes_max, &mut Parser::default(), &mut Pace::new(|| ()), &mut list);
        list
    }

    fn split(body: &str) -> Vec<Found> {
        list(body.as_bytes(), MAX).found
    }

    fn value(line: u64, text: &str) -> Found {
        Value(line, text.into())
    }

    fn broken(line: u64) -> Found {
        Refused(line, BAD_JSON)
    }

    #[test]
    fn lines() {
        let (a, b) = (value(1, r#"{"a":1}"#), value(2, r#"{"b":2}"#));
        for body in [
            "{\"a\":1}\n{\"b\":2}\n",
            "{\"a\":1}\n{\"b\":2}",
            "{\"a\":1}\r\n{\"b\":2}\r\n",
            "\u{feff}{\"a\":1}\n{\"b\":2}\n\n \t\n",
            "  {\"a\":1}  \n\t{\"b\":2}",
        ] {
            assert_eq!(split(body), [a.clone(), b.clone()], "{body:?}");
        }
        assert_eq!(split("\n\r\n{\"a\":1}\n \n{\"b\":2}"), [value(3, "{\"a\":1}"), value(5, "{\"b\":2}")]);
        for body in ["", " ", "\n", "\r\n\r\n", "\u{feff}", "\u{feff}\n ", "[]", " [ \n ] \n"] {
            assert_eq!(split(body), [], "{body:?}");
        }
    }

    #[test]
    fn a_broken_line_costs_that_line_only() {
        for line in [
            "{",
            "}",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":",
            "{\"a\":1}}",
            "{\"a\":1},",
            "{\"a\":1} x",
            "{\"a\":1}]",
            "garbage",
            "\"open",
            "[1,2",
            "[",
            "nul",
            "+1",
            "{\"a\":01}",
            "{'a':1}",
            "{\"a\":1}\u{0}",
            "\u{0}",
            "\u{feff}{\"a\":1}",
            "\u{c}",
        ] {
            let body = format!("{{\"x\":1}}\n{line}\n{{\"y\":2}}\n");
            assert_eq!(split(&body), [value(1, "{\"x\":1}"), broken(2), value(3, "{\"y\":2}")], "{line:?}");
            let last = format!("{{\"x\":1}}\n{line}");
            assert_eq!(split(&last), [value(1, "{\"x\":1}"), broken(2)], "{line:?}");
        }
        let body = b"{\"x\":\"\xff\"}\n{\"y\":2}\n{\"z\":\"\xc3\"}";
        assert_eq!(list(body, MAX).found, [broken(1), value(2, "{\"y\":2}"), broken(3)]);
    }

    #[test]
    fn says_what_is_broken() {
        for (body, message) in [
            ("{\"a\":1", "not JSON: expected `,` or `}` at byte 7 of the line, found the end of the body"),
            ("{\"a\":1\n{\"b\":2}", "not JSON: expected `,` or `}` in line 2, byte 1, found {\"b\":2}"),
            ("{\"a\":1},\n", "not JSON: expected the end of the line or another value at byte 8 of the line, found ,"),
            ("\n  garbage here", "not JSON: expected a value at byte 3 of the line, found garbage here"),
            (
                "\n[{\"a\":1},\n{]",
                "not JSON, so that nothing of the array is taken: expected a key in double quotes or `}` in line 3, byte 2, found ]",
            ),
            (
                "{\"a\n\":1}",
                "not JSON: expected no control character in a text (nor a line end) at byte 4 of the line, found the end of the line",
            ),
        ] {
            assert_eq!(list(body.as_bytes(), MAX).messages[0], message, "{body:?}");
        }
    }

    #[test]
    fn several_values_on_a_line() {
        let both = [value(1, "{\"a\":1}"), value(1, "{\"b\":2}")];
        for body in ["{\"a\":1}{\"b\":2}", " {\"a\":1} \t{\"b\":2} ", "{\"a\":1}{\"b\":2}\r\n"] {
            assert_eq!(split(body), both, "{body:?}");
        }
        // What follows a value must be able to begin another, or the line is broken from that value on.
        assert_eq!(split("{\"a\":1}{\"b\":2},"), [value(1, "{\"a\":1}"), broken(1)]);
        assert_eq!(split("{\"a\":1}{\"b\":"), [value(1, "{\"a\":1}"), broken(1)]);
        assert_eq!(split("{\"a\":1},{\"b\":2}\n{}"), [broken(1), value(2, "{}")]);
        let scalars = ["1", "\"a\"", "null", "[]", "-2.5", "true", "{}"].map(|text| value(1, text));
        assert_eq!(split("1\"a\"null[]-2.5 true{}"), scalars);
    }

    #[test]
    fn a_value_over_several_lines() {
        let pretty = "{\n  \"a\": [\n    1\n  ]\n}";
        assert_eq!(split(pretty), [value(1, pretty)]);
        let body = format!("{pretty}\n{pretty} {{}}\n\n{{\"b\":1}}\n{pretty}{pretty}");
        let expected = [
            value(1, pretty),
            value(6, pretty),
            value(10, "{}"),
            value(12, "{\"b\":1}"),
            value(13, pretty),
            value(17, pretty),
        ];
        assert_eq!(split(&body), expected);
        assert_eq!(split(&body.replace('\n', "\r\n")).len(), 6);
        // The unfinished one costs its lines, the next is whole again.
        let cut = pretty.strip_suffix("\n}").unwrap();
        assert_eq!(split(&format!("{cut}\n{pretty}"))[4..], [value(5, pretty)]);
        assert_eq!(split(&format!("{pretty},\n{pretty}")), [broken(1), value(6, pretty)]);
    }

    #[test]
    fn one_array() {
        let elements = [value(1, "{\"a\":1}"), value(2, "2"), value(3, "[3]")];
        for body in ["[{\"a\":1},2,[3]]", "\u{feff} \n[ {\"a\":1}\n,\n2\n,\n[3] ]\r\n\n"] {
            assert_eq!(split(body), elements, "{body:?}");
        }
    }

    #[test]
    fn a_broken_array_is_refused_whole() {
        for body in [
            "[",
            "[{\"a\":1}",
            "[{\"a\":1},",
            "[{\"a\":1},]",
            "[{\"a\":1}}",
            "[{\"a\":1} {\"b\":1}]",
            "[{\"a\":1},{\"b\":}]",
            "[{\"a\":1},\n{\"b\":1}\n",
            "[\n{\"a\":1}\n{\"b\":1}\n]",
            "[{\"a\":1}]]",
            "[{\"a\":1}],",
        ] {
            assert_eq!(split(body), [broken(1)], "{body:?}");
            assert_eq!(split(&format!("\n\n{body}")), [broken(3)], "{body:?}");
        }
        assert_eq!(list(b"[{\"a\":1},{\"b\":\"\xff\"}]", MAX).found, [broken(1)]);
    }

    #[test]
    fn an_array_among_other_values_is_one_value() {
        assert_eq!(split("[1,2]\n{}"), [value(1, "[1,2]"), value(2, "{}")]);
        assert_eq!(split("[1,2]{}"), [value(1, "[1,2]"), value(1, "{}")]);
        assert_eq!(split("{}\n[1,2]\n"), [value(1, "{}"), value(2, "[1,2]")]);
        assert_eq!(split("[1,\n2]\n[3]\n"), [value(1, "[1,\n2]"), value(3, "[3]")]);
        assert_eq!(split("[1]\ngarbage"), [value(1, "[1]"), broken(2)]);
    }

    #[test]
    fn a_value_that_is_too_long_is_refused_alone() {
        let (long, edge) = (format!("\"{}\"", "x".repeat(99)), format!("\"{}\"", "x".repeat(98)));
        let refused = Refused(1, TOO_LONG);
        for (body, expected) in [
            (format!("{edge}\n{{}}"), vec![value(1, &edge), value(2, "{}")]),
            (format!("{long}\n{{}}"), vec![refused.clone(), value(2, "{}")]),
            (format!("  {edge}   \n{{}}"), vec![value(1, &edge), value(2, "{}")]),
            (format!("{long}{{}}"), vec![refused.clone(), value(1, "{}")]),
            (format!("{}\n", edge.repeat(50)), vec![value(1, &edge); 50]),
            (format!("[{long},{{}}]"), vec![refused.clone(), value(2, "{}")]),
            (format!("[{edge},{{}}]"), vec![value(1, &edge), value(2, "{}")]),
            (format!("{{\"a\":\n{long}}}\n{{}}"), vec![refused, value(3, "{}")]),
        ] {
            assert_eq!(list(body.as_bytes(), 100).found, expected, "{body}");
        }
    }

    /// The same rules, as plainly as they can be put, with serde_json to find where values end.
    fn reference(body: &[u8], event_bytes_max: usize) -> Vec<Found> {
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let value_end = |at: usize| -> Option<usize> {
            let mut values = serde_json::Deserializer::from_slice(&body[at..]).into_iter::<serde::de::IgnoredAny>();
            values.next()?.ok()?;
            Some(at + values.byte_offset())
        };
        let line_of = |at: usize| body[..at].iter().filter(|byte| **byte == b'\n').count() as u64 + 1;
        let blanks = |at: usize, stop: &[u8]| {
            at + body[at..].iter().take_while(|byte| b" \t\r\n".contains(byte) && !stop.contains(byte)).count()
        };
        let outcome = |place: u64, raw: &[u8]| match std::str::from_utf8(raw) {
            _ if raw.len() > event_bytes_max => Refused(place, TOO_LONG),
            Ok(text) => Value(place, text.into()),
            Err(_) => broken(place),
        };
        let first = blanks(0, b"");
        if body.get(first) == Some(&b'[') {
            match value_end(first) {
                None => return vec![broken(line_of(first))],
                Some(end) if std::str::from_utf8(&body[first..end]).is_err() => return vec![broken(line_of(first))],
                Some(end) if blanks(end, b"") == body.len() => {
                    let (mut at, mut found) = (first + 1, vec![]);
                    loop {
                        at = blanks(at, b"");
                        match body[at] {
                            b']' => return found,
                            b',' => at += 1,
                            _ => {
                                let end = value_end(at).unwrap();
                                found.push(outcome(found.len() as u64 + 1, &body[at..end]));
                                at = end;
                            }
                        }
                    }
                }
                Some(_) => {}
            }
        }
        let (mut at, mut found) = (first, vec![]);
        loop {
            at = blanks(at, b"");
            if at == body.len() {
                return found;
            }
            let newline = |at: usize| at + body[at..].iter().take_while(|byte| **byte != b'\n').count();
            let Some(end) = value_end(at) else {
                found.push(broken(line_of(at)));
                at = newline(at);
                continue;
            };
            let next = blanks(end, b"\n");
            let rest = &body[next..newline(next)];
            let can_begin = rest.is_empty()
                || b"{[\"-0123456789".contains(&rest[0])
                || [&b"true"[..], b"false", b"null"].iter().any(|word| {
                    rest.strip_prefix(*word)
                        .is_some_and(|after| after.first().is_none_or(|byte| b" \t\r\n,]}{[\"".contains(byte)))
                });
            if can_begin {
                found.push(outcome(line_of(at), &body[at..end]));
                at = end;
            } else {
                found.push(broken(line_of(at)));
                at = newline(end);
            }
        }
    }

    #[test]
    fn agrees_with_a_plain_reference_on_random_bodies() {
        let mut dice = Dice::new("agrees_with_a_plain_reference_on_random_bodies");
        let pieces: [&[u8]; 34] = [
            b"{\"a\":1}",
            b"{\"a\":1}",
            b"{\"a\":[1,{\"b\":\"x\\n\\u00e4\"}]}",
            b"\n",
            b"\n",
            b"\n",
            b"\r\n",
            b" ",
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"\"k\"",
            b"1",
            b"-2.5e3",
            b"true",
            b"null",
            b"tru",
            b"{\n \"a\": 1\n}",
            b"[1,\n2]",
            b"[{\"a\":1},{\"b\":2}]",
            b"\"\xc3\xa4\"",
            b"\"\xff\"",
            b"\xff",
            b"\x00",
            b"\"",
            b"\\",
            b"{\"a\":",
            b"1e999",
            b"\"\\ud800\"",
            b"\xef\xbb\xbf",
            b"\"0123456789012345678901234567890123456789\"",
        ];
        for _ in 0..100_000 {
            let mut body = if dice.once_in(5) { b"[".to_vec() } else { vec![] };
            for _ in 0..dice.below(14) {
                body.extend_from_slice(pieces[dice.below(pieces.len())]);
                if dice.once_in(3) {
                    body.push(b'\n');
                }
            }
            if dice.once_in(8) {
                body.push(b']');
            }
            assert_eq!(list(&body, 40).found, reference(&body, 40), "{}", body.escape_ascii());
        }
    }

    /// By counting the bytes that were looked at, and not by the clock.
    #[test]
    fn work_is_linear_whatever_the_body_holds() {
        let lines = [
            "{",
            "[",
            "[1,",
            "{\"a\":",
            "{\"a\":[",
            "[[[[",
            "{\"a\":{\"b\":[1,",
            "\"",
            "\"\\",
            "{\"a\":\"",
            "]",
            "}",
            "{}",
            "{}{}",
            "{}x",
            "[]",
            "[1,2],",
            "1e999",
            "0",
            "0,",
            ",",
            "\u{0}",
            "{\"a\":1}",
            "{\"a\":1},",
            "[\"\\ud800\"]",
            "tru",
            "-",
            "",
            " ",
        ];
        let long = |text: &str| text.repeat((128 << 10) / text.len().max(1) + 1);
        let mut bodies: Vec<(String, String)> = vec![];
        for line in lines {
            bodies.push((format!("lines of {line}"), long(&format!("{line}\n"))));
            bodies.push((format!("padded lines of {line}"), long(&format!("{line}{}\n", " ".repeat(1000)))));
            bodies.push((format!("one line of {line}"), long(&format!("{line} "))));
            bodies.push((format!("an array of {line}"), format!("[{}0]", long(&format!("{line},")))));
            bodies.push((format!("a value, lines of {line}"), format!("{{}}\n{}", long(&format!("{line}\n")))));
            let many = format!("{line}\n").repeat(1000);
            bodies.push((format!("{line} before a long line"), format!("{{}}\n{many}{}", "x".repeat(256 << 10))));
            bodies.push((format!("{line} in turns with ["), long(&format!("[\n{line}\n"))));
            bodies.push((format!("{line} in turns with a key"), long(&format!("{{\"a\":\n{line}\n"))));
        }
        for (name, body) in bodies {
            let mut pace = Pace::new(|| ());
            each_value(body.as_bytes(), MAX, &mut Parser::default(), &mut pace, &mut List::default());
            let bound = 16 * body.len() as u64 + (1 << 20);
            assert!(pace.worked() <= bound, "{name}: {} of {} bytes", pace.worked(), body.len());
        }
    }

    #[test]
    fn pauses_between_slices() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static PAUSES: AtomicUsize = AtomicUsize::new(0);
        for body in [
            "{\"a\":1}\n".repeat(500_000),
            format!("[{}]", vec!["{}"; 1_500_000].join(",")),
            format!("{{}} {}", "{\"a\":".repeat(700_000)),
        ] {
            PAUSES.store(0, Ordering::Relaxed);
            let mut pace = Pace::new(|| {
                PAUSES.fetch_add(1, Ordering::Relaxed);
            });
            each_value(body.as_bytes(), MAX, &mut Parser::default(), &mut pace, &mut List::default());
            assert!(PAUSES.load(Ordering::Relaxed) >= body.len() / scan::SLICE_BYTES - 1);
        }
    }
}
