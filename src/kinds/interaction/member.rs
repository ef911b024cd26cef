//! The bytes of one member of a JSON object, as they came.
//!
//! In: an object that is valid JSON, and which of its members. Out: the slice of that member's value, and how deep
//! values lie in it. One pass over the bytes before it and over its own, without memory of its own.

use memchr::memchr2;

/// A value within the text of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'r> {
    /// Its bytes, without blanks around it.
    pub raw: &'r [u8],
    /// How many objects and arrays lie in each other, itself included; 0 for a text, a number or a word.
    pub depth: usize,
}

/// The value of the member at `place`, from 0, in the order of the text. `None` when there is no such member, or when the
/// text is no object.
pub fn member(object: &[u8], place: usize) -> Option<Member<'_>> {
    let mut at = blanks(object, 0);
    if object.get(at) != Some(&b'{') {
        return None;
    }
    for before in 0..=place {
        // Behind the brace, or behind the comma of the member before.
        at = blanks(object, at + 1);
        at = blanks(object, string_end(object, at)?);
        if object.get(at) != Some(&b':') {
            return None;
        }
        let start = blanks(object, at + 1);
        let (end, depth) = value_end(object, start)?;
        if before == place {
            return Some(Member { raw: &object[start..end], depth });
        }
        at = blanks(object, end);
        if object.get(at) != Some(&b',') {
            return None;
        }
    }
    None
}

/// The first place from `at` on that is no blank.
fn blanks(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// Behind the string that opens at `at`.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        match text[at] {
            b'"' => return Some(at + 1),
            // Whatever it escapes, a quote or a backslash above all, does not end the string.
            _ => at += 2,
        }
    }
}

/// Behind the value that begins at `start`, and its depth.
fn value_end(text: &[u8], start: usize) -> Option<(usize, usize)> {
    let (mut at, mut open, mut deepest) = (start, 0usize, 0);
    loop {
        match *text.get(at)? {
            b'"' => at = string_end(text, at)?,
            b'{' | b'[' => {
                open += 1;
                deepest = deepest.max(open);
                at += 1;
            }
            b'}' | b']' => {
                open = open.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if open > 0 => {
                at += 1;
                continue;
            }
            _ => {
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b':' | b' ' | b'\t' | b'\n' | b'\r');
                let length = text[at..].iter().position(ends)?;
                if length == 0 {
                    return None;
                }
                at += length;
            }
        }
        if open == 0 {
            return Some((at, deepest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn found(object: &str, place: usize) -> Option<(&str, usize)> {
        member(object.as_bytes(), place).map(|found| (std::str::from_utf8(found.raw).unwrap(), found.depth))
    }

    #[test]
    fn finds_values_of_every_sort() {
        let object = r#" { "a" : 1 ,"b":"x\"},{\\", "c": {"d":[{"e":"]"}],"f":{}} ,"":[],"\u0061":true,"g" :-1.5e+999 , "h":null}"#;
        for (place, expected) in [
            ("1", 0),
            (r#""x\"},{\\""#, 0),
            (r#"{"d":[{"e":"]"}],"f":{}}"#, 3),
            ("[]", 1),
            ("true", 0),
            ("-1.5e+999", 0),
            ("null", 0),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(found(object, place), Some(expected));
        }
        assert_eq!(found(object, 7), None);
        assert_eq!(found("{}", 0), None);
        assert_eq!(found("{ \n }", 0), None);
        assert_eq!(found("[1]", 0), None);
    }

    const PLAIN: [&str; 7] = ["0", "-0.0", "1e999", "12345678901234567890123", "1.50", "true", "null"];

    const PIECES: [&str; 15] =
        ["a", "data", "\\\"", "\\\\", "\\u0022", "{", "}", "[", "]", ",", ":", " ", "é", "😀", "\\n"];

    /// A random value as text, with its depth.
    fn write(dice: &mut Dice, json: &mut String, levels: usize) -> usize {
        let blank = |dice: &mut Dice, json: &mut String| {
            (0..dice.below(3)).for_each(|_| json.push(*dice.pick(&[' ', '\t', '\n', '\r'])));
        };
        match dice.below(if levels == 0 { 3 } else { 5 }) {
            0 => json.push_str(dice.pick::<&str>(&PLAIN)),
            1 | 2 => string(dice, json),
            shape => {
                json.push(if shape == 3 { '[' } else { '{' });
                let mut deepest = 0;
                blank(dice, json);
                for nth in 0..dice.below(4) {
                    if nth > 0 {
                        json.push(',');
                    }
                    blank(dice, json);
                    if shape == 4 {
                        string(dice, json);
                        blank(dice, json);
                        json.push(':');
                        blank(dice, json);
                    }
                    deepest = deepest.max(write(dice, json, levels - 1));
                    blank(dice, json);
                }
                json.push(if shape == 3 { ']' } else { '}' });
                return deepest + 1;
            }
        }
        0
    }

    fn string(dice: &mut Dice, json: &mut String) {
        json.push('"');
        for _ in 0..dice.below(6) {
            json.push_str(dice.pick::<&str>(&PIECES));
        }
        json.push('"');
    }

    #[test]
    fn finds_every_member_of_random_objects() {
        let mut dice = Dice::new("finds_every_member_of_random_objects");
        for _ in 0..20_000 {
            let mut json = String::from("{");
            let mut values = vec![];
            for nth in 0..dice.below(6) {
                json += if nth > 0 { " ," } else { " " };
                string(&mut dice, &mut json);
                json += *dice.pick(&[":", " : ", "\n:"]);
                let start = json.len();
                let depth = write(&mut dice, &mut json, 4);
                values.push((start..json.len(), depth));
            }
            json += *dice.pick(&["}", " }", "\n}  "]);
            for (place, (range, depth)) in values.iter().enumerate() {
                assert_eq!(found(&json, place), Some((&json[range.clone()], *depth)), "{json}");
            }
            assert_eq!(found(&json, values.len()), None, "{json}");
        }
    }

    #[test]
    fn damage_never_panics() {
        let mut dice = Dice::new("damage_never_panics");
        for _ in 0..50_000 {
            let mut bytes = br#"{"a":{"b":["c\"",1]},"d":"e","f":[{}]}"#.to_vec();
            bytes.truncate(dice.below(bytes.len() + 1));
            for _ in 0..3 {
                if !bytes.is_empty() {
                    let at = dice.below(bytes.len());
                    bytes[at] = *dice.pick(b"\"\\{}[],: a1");
                }
            }
            let found = (0..4).filter(|place| member(&bytes, *place).is_some()).count();
            assert!(found <= 4);
        }
    }
}
