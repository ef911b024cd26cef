//! Where a JSON value ends: a strict scan by the grammar of RFC 8259, without recursion and without building anything.
//!
//! It serves whatever is not simply one value on one line. It looks at brackets, strings, numbers and literals, so that
//! text which opens a bracket and never closes it is found out at the first byte that cannot belong, and not at the
//! body's end. UTF-8 is checked apart ([`utf8_error`]). Depth costs one bit for each level.

/// How far one may work before the next pause is due: 256 KiB, which take less than a millisecond.
pub const SLICE_BYTES: usize = 256 << 10;

/// Counts the bytes worked on and pauses after each [`SLICE_BYTES`] of them, so that a large body leaves room for others.
pub struct Pace {
    since_pause: usize,
    #[cfg(test)]
    worked: u64,
    pause: fn(),
}

impl Pace {
    /// `pause` is called between slices.
    pub fn new(pause: fn()) -> Pace {
        Pace {
            since_pause: 0,
            #[cfg(test)]
            worked: 0,
            pause,
        }
    }

    /// Says that `bytes` were worked on.
    #[inline]
    pub fn work(&mut self, bytes: usize) {
        #[cfg(test)]
        {
            self.worked += bytes as u64;
        }
        self.since_pause += bytes;
        if self.since_pause >= SLICE_BYTES {
            self.since_pause = 0;
            (self.pause)();
        }
    }

    /// How many bytes were worked on altogether; a byte looked at twice counts twice.
    #[cfg(test)]
    pub fn worked(&self) -> u64 {
        self.worked
    }
}

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One complete value, which ends before this place.
    Complete(usize),
    /// No value can begin so: what was expected at which place.
    Broken(Break),
}

/// Where a text stops being JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    /// The first byte that does not fit; the length of the text when more was expected.
    pub at: usize,
    /// What could have stood there.
    pub expected: &'static str,
}

/// The open brackets: one bit for each, set for an object.
#[derive(Default)]
pub struct Depth {
    bits: Vec<u64>,
    levels: usize,
}

impl Depth {
    fn clear(&mut self) {
        self.bits.clear();
        self.levels = 0;
    }

    #[inline]
    fn push(&mut self, object: bool) {
        let (word, bit) = (self.levels / 64, self.levels % 64);
        if bit == 0 {
            self.bits.push(0);
        }
        self.bits[word] |= u64::from(object) << bit;
        self.levels += 1;
    }

    /// Closes the innermost bracket.
    #[inline]
    fn pop(&mut self) {
        self.levels -= 1;
        let (word, bit) = (self.levels / 64, self.levels % 64);
        self.bits[word] &= !(1 << bit);
        if bit == 0 {
            self.bits.pop();
        }
    }

    /// Whether the innermost bracket is an object's.
    #[inline]
    fn in_object(&self) -> bool {
        let top = self.levels - 1;
        self.bits[top / 64] >> (top % 64) & 1 == 1
    }
}

/// What may stand at the next place that is not blank.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

impl Next {
    fn expected(self, depth: &Depth) -> &'static str {
        match self {
            Next::Value => "a value",
            Next::ValueOrEnd => "a value or `]`",
            Next::Key => "a key in double quotes",
            Next::KeyOrEnd => "a key in double quotes or `}`",
            Next::Colon => "`:` after a key",
            Next::CommaOrEnd if depth.in_object() => "`,` or `}`",
            Next::CommaOrEnd => "`,` or `]`",
        }
    }
}

/// White space between the tokens of JSON.
#[inline]
pub fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// The extent of the value that begins at `start`, where no blank stands; it looks no further than the end of `text`.
pub fn extent(text: &[u8], start: usize, depth: &mut Depth, pace: &mut Pace) -> Extent {
    depth.clear();
    let (mut at, mut paced) = (start, start);
    let mut next = Next::Value;
    let found = loop {
        if at - paced >= SLICE_BYTES {
            pace.work(at - paced);
            paced = at;
        }
        let Some(&byte) = text.get(at) else {
            break Err(Break { at, expected: next.expected(depth) });
        };
        if is_blank(byte) {
            at += 1;
            continue;
        }
        match step(text, at, byte, next, depth) {
            Ok((end, after)) => {
                at = end;
                if depth.levels == 0 {
                    break Ok(end);
                }
                next = after;
            }
            Err(broken) => break Err(broken),
        }
    };
    let (Ok(end) | Err(Break { at: end, .. })) = found;
    // A broken place that lies behind what was paced cannot be: places only grow.
    pace.work(end.saturating_sub(paced) + 1);
    found.map_or_else(Extent::Broken, Extent::Complete)
}

/// One token: where it ends and what may follow it.
#[inline]
fn step(text: &[u8], at: usize, byte: u8, next: Next, depth: &mut Depth) -> Result<(usize, Next), Break> {
    match (next, byte) {
        (Next::Value | Next::ValueOrEnd, b'{') => {
            depth.push(true);
            Ok((at + 1, Next::KeyOrEnd))
        }
        (Next::Value | Next::ValueOrEnd, b'[') => {
            depth.push(false);
            Ok((at + 1, Next::ValueOrEnd))
        }
        (Next::ValueOrEnd, b']') => {
            depth.pop();
            Ok((at + 1, Next::CommaOrEnd))
        }
        (Next::Value | Next::ValueOrEnd, b'"') => Ok((string(text, at)?, Next::CommaOrEnd)),
        (Next::Value | Next::ValueOrEnd, b'-' | b'0'..=b'9') => Ok((number(text, at)?, Next::CommaOrEnd)),
        (Next::Value | Next::ValueOrEnd, b't' | b'f' | b'n') => Ok((literal(text, at)?, Next::CommaOrEnd)),
        (Next::Key | Next::KeyOrEnd, b'"') => Ok((string(text, at)?, Next::Colon)),
        (Next::KeyOrEnd, b'}') => {
            depth.pop();
            Ok((at + 1, Next::CommaOrEnd))
        }
        (Next::Colon, b':') => Ok((at + 1, Next::Value)),
        (Next::CommaOrEnd, b',') => Ok((at + 1, if depth.in_object() { Next::Key } else { Next::Value })),
        (Next::CommaOrEnd, b'}' | b']') if depth.in_object() == (byte == b'}') => {
            depth.pop();
            Ok((at + 1, Next::CommaOrEnd))
        }
        _ => Err(Break { at, expected: next.expected(depth) }),
    }
}

/// The end of the string whose opening quote stands at `open`.
fn string(text: &[u8], open: usize) -> Result<usize, Break> {
    let mut at = open + 1;
    loop {
        at = plain(text, at);
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at = escape(text, at)?,
            Some(_) => return Err(Break { at, expected: "no control character in a text (nor a line end)" }),
            None => return Err(Break { at, expected: "`\"` at the end of a text" }),
        }
    }
}

/// The first place from `at` on that holds a quote, a backslash or a control character.
#[inline]
fn plain(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    while let Some(eight) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        // The lowest set bit of each is exact; what borrows make of those above it does not matter.
        let (quote, backslash) = (word ^ (ONES * 0x22), word ^ (ONES * 0x5c));
        let hits = (word.wrapping_sub(ONES * 0x20) & !word)
            | (quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash);
        let hits = hits & HIGHS;
        if hits != 0 {
            return at + (hits.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while text.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | ..=0x1f)) {
        at += 1;
    }
    at
}

/// The end of the escape whose backslash stands at `at`.
fn escape(text: &[u8], at: usize) -> Result<usize, Break> {
    match text.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => {
            let digits =
                (at + 2..at + 6).take_while(|&place| text.get(place).is_some_and(u8::is_ascii_hexdigit)).count();
            if digits == 4 {
                Ok(at + 6)
            } else {
                Err(Break { at: at + 2 + digits, expected: "four hex digits after `\\u`" })
            }
        }
        _ => Err(Break { at: at + 1, expected: "one of `\"\\/bfnrtu` after a backslash" }),
    }
}

/// The end of the number that begins at `at`.
fn number(text: &[u8], at: usize) -> Result<usize, Break> {
    let digits = |from: usize| -> Result<usize, Break> {
        let count = text[from.min(text.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 { Err(Break { at: from, expected: "a digit" }) } else { Ok(from + count) }
    };
    let first = at + usize::from(text[at] == b'-');
    let mut end = if text.get(first) == Some(&b'0') { first + 1 } else { digits(first)? };
    if text.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if let Some(b'e' | b'E') = text.get(end) {
        let signed = matches!(text.get(end + 1), Some(b'+' | b'-'));
        end = digits(end + 1 + usize::from(signed))?;
    }
    ended(text, end)
}

fn literal(text: &[u8], at: usize) -> Result<usize, Break> {
    let word: &[u8] = match text[at] {
        b't' => b"true",
        b'f' => b"false",
        _ => b"null",
    };
    if text[at..].starts_with(word) { ended(text, at + word.len()) } else { Err(Break { at, expected: "a value" }) }
}

/// A number or a literal must not run into what follows it.
fn ended(text: &[u8], end: usize) -> Result<usize, Break> {
    match text.get(end) {
        None | Some(b' ' | b'\t' | b'\r' | b'\n' | b',' | b']' | b'}' | b'{' | b'[' | b'"') => Ok(end),
        Some(_) => Err(Break { at: end, expected: "the end of a number or word" }),
    }
}

/// Whether a value could begin at `at`, judged by its first byte or word.
pub fn begins_value(text: &[u8], at: usize) -> bool {
    match text.get(at) {
        Some(b'{' | b'[' | b'"' | b'-' | b'0'..=b'9') => true,
        Some(b't' | b'f' | b'n') => literal(text, at).is_ok(),
        _ => false,
    }
}

/// Where `text` stops being UTF-8; checked in slices.
pub fn utf8_error(text: &[u8], pace: &mut Pace) -> Option<usize> {
    let mut done = 0;
    while done < text.len() {
        let slice = &text[done..text.len().min(done + SLICE_BYTES)];
        pace.work(slice.len());
        match std::str::from_utf8(slice) {
            Ok(_) => done += slice.len(),
            // A character that the slice's end cut in two: the next slice begins with it.
            Err(error) if error.error_len().is_none() && done + slice.len() < text.len() => done += error.valid_up_to(),
            Err(error) => return Some(done + error.valid_up_to()),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn scan(text: &[u8]) -> Extent {
        extent(text, 0, &mut Depth::default(), &mut Pace::new(|| ()))
    }

    /// Whether `text` is one JSON value, by serde_json, which looks at the grammar alone when it ignores a value.
    fn reference(text: &[u8]) -> bool {
        serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
    }

    #[test]
    fn finds_the_end() {
        for value in [
            "{}",
            "[]",
            r#"{"a":[1,2,{"b":null}],"c":"}\"]"}"#,
            r#""\u00e4\ud800 \\""#,
            "-0",
            "1e999",
            "12345678901234567890123456789012345678901234567890",
            "-1.5E+10",
            "true",
            "[ { } , [ ] ]",
        ] {
            for rest in ["", " ", "\n{\"x\":1}", "{", "[", "\""] {
                let text = format!("{value}{rest}");
                assert_eq!(scan(text.as_bytes()), Extent::Complete(value.len()), "{text}");
            }
        }
    }

    #[test]
    fn says_where_it_breaks_and_what_was_expected() {
        for (text, at, expected) in [
            ("{", 1, "a key in double quotes or `}`"),
            ("{\"a\"", 4, "`:` after a key"),
            ("{\"a\":1,}", 7, "a key in double quotes"),
            ("{\"a\":1]", 6, "`,` or `}`"),
            ("[1}", 2, "`,` or `]`"),
            ("[1,]", 3, "a value"),
            ("{\"a\":\n{\"b\":1}\n{\"c\":1}", 14, "`,` or `}`"),
            ("{\"a\n\":1}", 3, "no control character in a text (nor a line end)"),
            ("\"abc", 4, "`\"` at the end of a text"),
            ("\"\\x\"", 2, "one of `\"\\/bfnrtu` after a backslash"),
            ("\"\\u12g4\"", 5, "four hex digits after `\\u`"),
            ("01", 1, "the end of a number or word"),
            ("1.", 2, "a digit"),
            ("-", 1, "a digit"),
            ("1e+", 3, "a digit"),
            ("+1", 0, "a value"),
            ("nul", 0, "a value"),
            ("nullx", 4, "the end of a number or word"),
            ("garbage", 0, "a value"),
            ("\u{0}", 0, "a value"),
        ] {
            assert_eq!(scan(text.as_bytes()), Extent::Broken(Break { at, expected }), "{text:?}");
        }
    }

    #[test]
    fn depth_is_only_bounded_by_the_text() {
        let deep = "[{\"a\":".repeat(100_000) + "1" + &"}]".repeat(100_000);
        assert_eq!(scan(deep.as_bytes()), Extent::Complete(deep.len()));
        assert!(matches!(scan(&deep.as_bytes()[..deep.len() - 1]), Extent::Broken(_)));
        let mixed = deep.replace("1}]", "1]}");
        assert!(matches!(scan(mixed.as_bytes()), Extent::Broken(Break { at: 600_001, .. })));
    }

    #[test]
    fn agrees_with_serde_json_on_damaged_values() {
        let mut dice = Dice::new("agrees_with_serde_json_on_damaged_values");
        let seeds = [
            r#"{"time":"2021-01-22T18:20:42.159246","type":"serve","n":-12.5e+3,"x":[true,false,null,{"y":"\u00e4\n\\"}]}"#,
            r#"[1,2.5,0,-0,1e5,"a","\ud83d\ude00",{},[],{"k":{"l":[[]]}}]"#,
            r#"{"a":"a long text without any escape in it, longer than eight bytes","b":"short"}"#,
        ];
        let pool = b"{}[]\",:\\u0123456789eE+-. \n\ttruefalsn/\x01\x7f";
        let (mut good, mut bad) = (0, 0);
        for _ in 0..200_000 {
            let mut text = dice.pick(&seeds).as_bytes().to_vec();
            dice.damage(&mut text, pool);
            let start = text.iter().position(|byte| !is_blank(*byte)).unwrap();
            let whole = match extent(&text, start, &mut Depth::default(), &mut Pace::new(|| ())) {
                Extent::Complete(end) => text[end..].iter().all(|byte| is_blank(*byte)),
                Extent::Broken(_) => false,
            };
            assert_eq!(whole, reference(&text), "{}", text.escape_ascii());
            if whole { good += 1 } else { bad += 1 }
        }
        assert!(good > 10_000 && bad > 10_000, "{good} {bad}");
    }

    #[test]
    fn finds_broken_utf8_across_slices() {
        let mut pace = Pace::new(|| ());
        let text = "ä".repeat(SLICE_BYTES);
        for cut in [0, 1] {
            assert_eq!(utf8_error(&text.as_bytes()[cut * 2..], &mut pace), None);
            let odd = format!("x{text}");
            assert_eq!(utf8_error(odd.as_bytes(), &mut pace), None);
        }
        let mut broken = text.into_bytes();
        let last = broken.len() - 1;
        assert_eq!(utf8_error(&broken[..last], &mut pace), Some(last - 1));
        broken[SLICE_BYTES] = b'x';
        assert_eq!(utf8_error(&broken, &mut pace), Some(SLICE_BYTES + 1));
    }
}
