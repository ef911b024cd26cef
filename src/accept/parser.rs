//! simd-json with its buffers kept: one value at a time, out of a copy, so that the body stays as it was sent.
//!
//! simd-json unescapes texts in place, needs padding behind its input, and refuses some valid JSON: numbers beyond a
//! double (`1e999`) and halves of surrogate pairs (`"\ud800"`). Neither may cost an event that holds them in a field
//! nobody reads, so [`Parser::parse_valid`] replaces just those and reads again: such a number by 1e308, which no field
//! takes either, such a half by U+FFFD.

use crossbeam::queue::ArrayQueue;
use simd_json::tape::{self, Tape};
use simd_json::{Buffers, INPUT_PADDING, fill_tape_padded};

/// Bytes of a value for which a parser keeps its buffers: what larger ones made them grow to is given back at once,
/// since simd-json needs up to 52 bytes for each byte of `[[[[[[`.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Parsers that are kept for the next request; each holds at most about 3 MiB (52 bytes x [`KEPT_BYTES_MAX`]).
const POOLED_MAX: usize = 64;

/// A value is as deep as it likes: the tape is flat, nothing recurses, and its length bounds its depth.
const DEPTH_MAX: usize = u32::MAX as usize;

/// One simd-json parser.
pub struct Parser {
    copy: Vec<u8>,
    buffers: Buffers,
    /// Empty between values, so that it borrows from nothing.
    tape: Tape<'static>,
}

impl Default for Parser {
    fn default() -> Parser {
        let buffers = Buffers::with_max_depth(1024, DEPTH_MAX);
        Parser { copy: vec![0; 1024 + INPUT_PADDING], buffers, tape: Tape(Vec::new()) }
    }
}

impl Parser {
    /// Reads `text` as one JSON value (with or without blanks around it) and hands it to `with`; `None` when it is not
    /// one, or is one that simd-json does not take.
    #[inline]
    pub fn parse<R>(&mut self, text: &[u8], with: impl FnOnce(tape::Value<'_, '_>) -> R) -> Option<R> {
        self.load(text);
        let result = self.read(text.len(), with);
        self.shrink(text.len());
        result
    }

    /// Reads `text`, which is one JSON value by grammar and valid UTF-8.
    pub fn parse_valid<R>(&mut self, text: &[u8], mut with: impl FnMut(tape::Value<'_, '_>) -> R) -> Option<R> {
        if let Some(result) = self.parse(text, &mut with) {
            return Some(result);
        }
        self.load(text);
        soften(&mut self.copy[..text.len()]);
        let result = self.read(text.len(), with);
        self.shrink(text.len());
        result
    }

    #[inline]
    fn load(&mut self, text: &[u8]) {
        if self.copy.len() < text.len() + INPUT_PADDING {
            self.copy.resize(text.len() + INPUT_PADDING, 0);
        }
        self.copy[..text.len()].copy_from_slice(text);
    }

    #[inline]
    fn read<R>(&mut self, length: usize, with: impl FnOnce(tape::Value<'_, '_>) -> R) -> Option<R> {
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        let read = fill_tape_padded(&mut self.copy, length, &mut self.buffers, &mut tape);
        let result = match read {
            Ok(()) => Some(with(tape.as_value())),
            Err(_) => None,
        };
        self.tape = tape.reset();
        result
    }

    #[inline]
    fn shrink(&mut self, length: usize) {
        if length > KEPT_BYTES_MAX {
            *self = Parser::default();
        }
    }
}

/// Replaces, in a valid JSON text, what simd-json refuses.
fn soften(text: &mut [u8]) {
    let mut at = 0;
    while at < text.len() {
        at = match text[at] {
            b'"' => soften_string(text, at + 1),
            b'-' | b'0'..=b'9' => soften_number(text, at),
            _ => at + 1,
        };
    }
}

fn soften_number(text: &mut [u8], start: usize) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let length = text[start..].iter().take_while(|byte| is_part(byte)).count();
    let number = &mut text[start..start + length];
    let value = std::str::from_utf8(number).ok().and_then(|digits| digits.parse::<f64>().ok());
    if value.is_some_and(f64::is_infinite) {
        let huge: &[u8] = if number[0] == b'-' { b"-1e308" } else { b"1e308" };
        // The shortest number beyond a double, 2e308, is as long; a negative one has its sign besides.
        number.fill(b' ');
        number[..huge.len()].copy_from_slice(huge);
    }
    start + length
}

/// From behind the opening quote to behind the closing one.
fn soften_string(text: &mut [u8], mut at: usize) -> usize {
    while at < text.len() && text[at] != b'"' {
        if text[at] != b'\\' {
            at += 1;
            continue;
        }
        match unit(text, at) {
            None => at += 2,
            Some(0xd800..=0xdbff) if matches!(unit(text, at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                text[at + 2..at + 6].copy_from_slice(b"fffd");
                at += 6;
            }
            Some(_) => at += 6,
        }
    }
    at + 1
}

/// The code unit of a `\uXXXX` at `at`.
fn unit(text: &[u8], at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Parsers that wait for the next request.
pub struct Parsers {
    idle: ArrayQueue<Parser>,
}

impl Default for Parsers {
    fn default() -> Parsers {
        Parsers { idle: ArrayQueue::new(POOLED_MAX) }
    }
}

impl Parsers {
    /// One of them, or a new one.
    pub fn take(&self) -> Parser {
        self.idle.pop().unwrap_or_default()
    }

    /// Gives one back; when enough of them wait, it is dropped.
    pub fn give(&self, parser: Parser) {
        drop(self.idle.push(parser));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::scan::{Depth, Extent, Pace, extent, is_blank};
    use crate::dice::Dice;
    use simd_json::prelude::*;

    #[test]
    fn reads_what_simd_json_refuses() {
        let mut parser = Parser::default();
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for value in [
            "1e999",
            "-1e999",
            "2e308",
            "-2e308",
            "1234567890123456789012345678901234567890",
            "1e99999999999",
            "0e99999999999",
            "-0",
            "-0.0e-0",
            r#""\ud800""#,
            r#""\udc00\ud800""#,
            r#""\ud83d\ude00\ud83d""#,
            r#""\\ud800\"""#,
            deep.as_str(),
            &"9".repeat(400),
            &format!("-{}", "9".repeat(400)),
            &format!("1.{}e400", "9".repeat(400)),
        ] {
            let text = format!("{{\"x\":{value},\"time\":\"t\\u0041\"}}");
            let time = parser.parse_valid(text.as_bytes(), |value| value.get_str("time").map(str::to_owned));
            assert_eq!(time, Some(Some("tA".to_owned())), "{text:.200}");
        }
        let huge = parser.parse_valid(b"[1e999,-1e999]", |value| {
            let array = value.as_array().unwrap();
            (array.get(0).and_then(|v| v.as_f64()), array.get(1).and_then(|v| v.as_f64()))
        });
        assert_eq!(huge, Some((Some(1e308), Some(-1e308))));
    }

    #[test]
    fn leaves_the_text_as_it_was() {
        let text = br#" {"a":"x\u0041y"} "#.to_vec();
        let mut parser = Parser::default();
        let read = |value: tape::Value<'_, '_>| value.get_str("a").map(str::to_owned);
        assert_eq!(parser.parse(&text, read), Some(Some("xAy".to_owned())));
        assert_eq!(text, br#" {"a":"x\u0041y"} "#);
    }

    #[test]
    fn gives_back_what_a_large_value_needed() {
        let mut parser = Parser::default();
        let large = format!("[{}1]", "1,".repeat(KEPT_BYTES_MAX));
        assert!(parser.parse(large.as_bytes(), |_| ()).is_some());
        assert!(parser.tape.0.capacity() < 1000 && parser.copy.len() < 10_000);
    }

    /// simd-json and our scan must agree on what is one value, or an event could hide behind the other's mistake.
    #[test]
    fn agrees_with_the_scan() {
        let mut dice = Dice::new("agrees_with_the_scan");
        let mut parser = Parser::default();
        let mut depth = Depth::default();
        let seeds = [
            r#"{"time":"2021-01-22T18:20:42.159246","type":"serve","n":-12.5e+3,"x":[true,false,null,{"y":"\u00e4\n\\"}]}"#,
            r#"[1,2.5,0,-0,1e5,"a","\ud83d\ude00",{},[],{"k":{"l":[[]]}},123456789012345678901234567890]"#,
            r#"{"a":"a text without any escape in it, which is longer than two times thirty-two bytes in all","b":"s"}"#,
            "12345678",
            "\"text\"",
            "true",
        ];
        let pool = b"{}[]\",:\\u0123456789eE+-. \n\ttruefalsn/\x01\x7f\xc3\xa4\xff\x00\x0c";
        let mut good = 0;
        for _ in 0..300_000 {
            let mut text = dice.pick(&seeds).as_bytes().to_vec();
            dice.damage(&mut text, pool);
            let Some(start) = text.iter().position(|byte| !is_blank(*byte)) else { continue };
            let whole = std::str::from_utf8(&text).is_ok()
                && match extent(&text, start, &mut depth, &mut Pace::new(|| ())) {
                    Extent::Complete(end) => text[end..].iter().all(|byte| is_blank(*byte)),
                    Extent::Broken(_) => false,
                };
            if whole {
                good += 1;
                assert!(parser.parse_valid(&text, |_| ()).is_some(), "refused: {}", text.escape_ascii());
            } else {
                assert!(parser.parse(&text, |_| ()).is_none(), "taken: {}", text.escape_ascii());
            }
        }
        assert!(good > 10_000, "{good}");
    }
}
