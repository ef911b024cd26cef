//! One type's JSON Schema (draft 2020-12), compiled: whether an event's `data` fits it, and if not, where and why.
//!
//! A schema stands alone: it may refer to parts of itself, never to other files or the network. Patterns are matched in
//! linear time, so they have no look-around and no back-references. `format` is an annotation, as the draft has it.
//!
//! **Stack.** Events are checked in a coroutine, whose stack is small. How deep the validator goes is bounded by the
//! schema's own nesting where nothing in it refers to another place, else by its size times the depth of `data` (a place
//! is visited once for each value). Where that could be too much, the check runs on a larger stack of its own.

use std::fmt::{self, Write as _};

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::{Map, Number};
use simd_json::prelude::*;
use simd_json::tape;

use crate::kinds::{Rejection, excerpt};

/// Objects and arrays of one schema, at most.
pub const CONTAINERS_MAX: usize = 2048;

/// What the validator needs of the stack for each level of a schema, at most: a test has measured 370 bytes.
const LEVEL_BYTES: usize = 1 << 10;

/// What may be used of the stack of a coroutine (256 KiB) beside what stands on it already.
const STACK_BYTES_HERE: usize = 96 << 10;

/// For what the check needs besides its levels, on a stack of its own.
const STACK_BYTES_BESIDE: usize = 128 << 10;

/// The longest reason in a message, in characters.
const REASON_CHARS_MAX: usize = 200;

/// The longest path of a field, in characters.
const PATH_CHARS_MAX: usize = 200;

/// A schema that is in force.
#[derive(Debug)]
pub struct Schema {
    /// `category.name`.
    name: String,
    text: serde_json::Value,
    validator: Validator,
    shape: Shape,
}

/// What bounds the depth of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    containers: usize,
    depth: usize,
    refers: bool,
}

impl Schema {
    /// Compiles the schema of a type; the error says what is wrong and where.
    pub fn compile(name: String, text: serde_json::Value) -> Result<Schema, String> {
        let mut shape = Shape::default();
        measure(&text, 1, &mut shape);
        if shape.containers > CONTAINERS_MAX {
            return Err(format!("it has {} objects and arrays, {CONTAINERS_MAX} are allowed", shape.containers));
        }
        if let Some(draft) = text.get("$schema")
            && draft.as_str().is_none_or(|draft| draft.trim_end_matches('#') != DRAFT)
        {
            return Err(format!("$schema: expected \"{DRAFT}\" or none, found {}", brief(&draft)));
        }
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .with_pattern_options(PatternOptions::regex())
            .offline()
            .build(&text)
            .map_err(|error| match error.instance_path().as_str() {
                "" => brief(&error),
                place => format!("at {place}: {}", brief(&error)),
            })?;
        Ok(Schema { name, text, validator, shape })
    }

    /// As it was written.
    pub fn text(&self) -> &serde_json::Value {
        &self.text
    }

    /// Whether `data`, in which values lie `depth` deep, fits.
    pub fn check(&self, data: tape::Value<'_, '_>, depth: usize) -> Result<(), Rejection> {
        let data = to_json(data);
        let levels = if self.shape.refers { self.shape.containers * (depth + 1) } else { self.shape.depth };
        let stack_bytes = levels * LEVEL_BYTES;
        if stack_bytes <= STACK_BYTES_HERE {
            return self.validate(&data);
        }
        // Nothing in there yields, so that the coroutine stays with its thread.
        stacker::grow(stack_bytes + STACK_BYTES_BESIDE, || self.validate(&data))
    }

    fn validate(&self, data: &serde_json::Value) -> Result<(), Rejection> {
        if self.validator.is_valid(data) {
            return Ok(());
        }
        match self.validator.iter_errors(data).next() {
            Some(error) => Err(self.rejection(&error)),
            None => Ok(()),
        }
    }

    #[cold]
    fn rejection(&self, error: &ValidationError<'_>) -> Rejection {
        let mut path = Bounded::new(PATH_CHARS_MAX);
        // Cut when it is too long, which is all that the error can mean.
        let _ = write!(path, "data");
        for segment in error.instance_path().segments() {
            let _ = write!(path, ".{segment}");
        }
        let found = match error.kind() {
            ValidationErrorKind::Required { property } => {
                let _ = write!(path, ".{}", property.as_str().unwrap_or_default());
                "none".to_owned()
            }
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                let _ = write!(path, ".{}", unexpected.first().map_or("", String::as_str));
                "it".to_owned()
            }
            _ => found(error.instance()),
        };
        let mut reason = Bounded::new(REASON_CHARS_MAX);
        let _ = write!(reason, "{}", error.masked_with("it"));
        let message = format!("expected what the schema of {} allows, found {found}: {}", self.name, reason.text);
        Rejection { code: "bad_data", field: Some(path.text.into()), message: message.into() }
    }
}

/// The only draft that schemas are written in.
pub const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

fn measure(schema: &serde_json::Value, depth: usize, shape: &mut Shape) {
    shape.containers += usize::from(schema.is_object() || schema.is_array());
    shape.depth = shape.depth.max(depth);
    match schema {
        serde_json::Value::Object(members) => {
            shape.refers |= members.contains_key("$ref") || members.contains_key("$dynamicRef");
            members.values().for_each(|value| measure(value, depth + 1, shape));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| measure(value, depth + 1, shape)),
        _ => {}
    }
}

/// A value of the tape for the validator. Recursive: the depth is bounded by who calls. Of a repeated key the last counts.
fn to_json(value: tape::Value<'_, '_>) -> serde_json::Value {
    if let Some(object) = value.as_object() {
        let members: Map<String, serde_json::Value> =
            object.iter().map(|(name, value)| (name.to_owned(), to_json(value))).collect();
        return members.into();
    }
    if let Some(array) = value.as_array() {
        return array.iter().map(to_json).collect();
    }
    if let Some(text) = value.as_str() {
        return text.into();
    }
    if let Some(truth) = value.as_bool() {
        return truth.into();
    }
    // In this order: an integer that fits stays one.
    if let Some(number) = value.as_u64() {
        return number.into();
    }
    if let Some(number) = value.as_i64() {
        return number.into();
    }
    value.as_f64().and_then(Number::from_f64).map_or(serde_json::Value::Null, serde_json::Value::Number)
}

/// What was found, for a message.
fn found(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => excerpt::quote(text),
        serde_json::Value::Object(_) => "an object".to_owned(),
        serde_json::Value::Array(_) => "an array".to_owned(),
        serde_json::Value::Number(number) => format!("the number {number}"),
        other => other.to_string(),
    }
}

/// As text of a bounded length.
fn brief(shown: &impl fmt::Display) -> String {
    let mut text = Bounded::new(REASON_CHARS_MAX);
    let _ = write!(text, "{shown}");
    text.text
}

/// Text that takes so many characters and no more, on one line; the writer is told, so that it can stop.
struct Bounded {
    text: String,
    left: usize,
}

impl Bounded {
    fn new(chars_max: usize) -> Bounded {
        Bounded { text: String::new(), left: chars_max }
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        for c in more.chars() {
            if self.left == 0 {
                if !self.text.ends_with("...") {
                    self.text.push_str("...");
                }
                return Err(fmt::Error);
            }
            self.left -= 1;
            match c {
                '"' | '\'' | '\\' => self.text.push(c),
                _ => self.text.extend(c.escape_debug()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn compile(schema: Value) -> Schema {
        Schema::compile("a.b".to_owned(), schema).unwrap_or_else(|error| panic!("{error}"))
    }

    fn depth_of(value: &Value) -> usize {
        match value {
            Value::Object(members) => 1 + members.values().map(depth_of).max().unwrap_or(0),
            Value::Array(values) => 1 + values.iter().map(depth_of).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn check(schema: &Schema, data: &str) -> Result<(), Rejection> {
        let depth = depth_of(&serde_json::from_str(data).unwrap());
        let mut bytes = data.as_bytes().to_vec();
        let tape = simd_json::to_tape(&mut bytes).unwrap();
        schema.check(tape.as_value(), depth)
    }

    fn blame(schema: &Schema, data: &str) -> (String, String) {
        let rejection = check(schema, data).expect_err(data);
        assert_eq!(rejection.code, "bad_data");
        (rejection.field.unwrap().into_owned(), rejection.message.into_owned())
    }

    #[test]
    fn blames_a_path_and_says_why() {
        let schema = compile(json!({
            "properties": {
                "host": {"type": "string", "minLength": 1, "maxLength": 5},
                "n": {"type": "integer", "maximum": 10},
                "list": {"items": {"enum": ["x", "y"]}},
                "o": {"additionalProperties": false, "properties": {"a": true}},
            },
            "required": ["host"],
        }));
        assert_eq!(check(&schema, r#"{"host":"h","n":10,"list":["x","y"],"o":{"a":[]},"more":1e308}"#), Ok(()));
        let start = "expected what the schema of a.b allows, found ";
        for (data, path, message) in [
            ("{}", "data.host", "none: \"host\" is a required property"),
            (r#"{"host":5}"#, "data.host", "the number 5: it is not of type \"string\""),
            (r#"{"host":"abcdef"}"#, "data.host", "\"abcdef\": it is longer than 5 characters"),
            (r#"{"host":"h","n":1.5}"#, "data.n", "the number 1.5: it is not of type \"integer\""),
            (r#"{"host":"h","n":11}"#, "data.n", "the number 11: it is greater than the maximum of 10"),
            (r#"{"host":"h","list":["x","z"]}"#, "data.list.1", "\"z\": it is not one of \"x\" or \"y\""),
        ] {
            assert_eq!(blame(&schema, data), (path.to_owned(), format!("{start}{message}")));
        }
        let (path, message) = blame(&schema, r#"{"host":"h","o":{"b/c~":1}}"#);
        assert_eq!(path, "data.o.b/c~");
        assert!(message.contains("found it: Additional properties are not allowed"), "{message}");
    }

    #[test]
    fn messages_are_bounded_whatever_is_sent() {
        let schema = compile(json!({
            "additionalProperties": false,
            "patternProperties": {"^p": {"type": "null"}},
            "properties": {"t": {"type": "integer"}},
        }));
        let long = "\u{202e}x".repeat(100_000);
        for data in [
            json!({"t": long}),
            json!({(format!("p{long}")): 1}),
            json!({(long.clone()): 1}),
            Value::Object((0..10_000).map(|n| (format!("q{n}"), Value::Null)).collect()),
        ] {
            let (path, message) = blame(&schema, &data.to_string());
            assert!(path.chars().count() < 1000 && message.chars().count() < 1000, "{path} {message}");
            assert!(!path.contains('\u{202e}') && !message.contains('\u{202e}'));
        }
    }

    #[test]
    fn refuses_what_is_no_schema() {
        for (schema, expected) in [
            (json!({"type": "strin"}), "at /type: "),
            (json!({"properties": {"a": {"minLength": -1}}}), "at /properties/a/minLength: "),
            (json!({"pattern": "("}), "\"(\" is not"),
            (json!({"pattern": "(?=a)b"}), "\"(?=a)b\" is not"),
            (json!({"$ref": "other.json"}), ""),
            (json!({"$ref": "http://127.0.0.1:9/x.json"}), ""),
            (json!({"$ref": "file:///etc/passwd"}), ""),
            (json!({"$ref": "#/$defs/none"}), ""),
            (json!({"$schema": "http://json-schema.org/draft-07/schema#"}), "$schema: expected"),
            (json!("x"), ""),
            (json!({"enum": vec![json!([]); CONTAINERS_MAX]}), "it has 2050 objects and arrays"),
        ] {
            let error = Schema::compile("a.b".to_owned(), schema.clone()).expect_err(&schema.to_string());
            assert!(error.contains(expected) && error.chars().count() < 1000, "{schema}: {error}");
        }
        for schema in [json!(true), json!({}), json!({"$schema": DRAFT}), json!({"pattern": "^\\d+\\p{L}$"})] {
            compile(schema);
        }
        assert_eq!(blame(&compile(json!(false)), "{}").0, "data");
    }

    /// What one level takes of the stack, measured by how much of it a chain of so many levels needs: a validator that
    /// stands at its end tells where it was called.
    #[test]
    fn a_level_takes_no_more_than_is_reckoned_with() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static DEEPEST: AtomicUsize = AtomicUsize::new(usize::MAX);
        struct Probe;
        fn note() {
            let here = 0u8;
            DEEPEST.fetch_min(std::ptr::from_ref(&here) as usize, Ordering::Relaxed);
        }
        impl jsonschema::Keyword<'_> for Probe {
            fn validate<'i>(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
                note();
                Err(ValidationError::custom("probe"))
            }
            fn is_valid(&self, _: &Value) -> bool {
                note();
                false
            }
        }
        type Wrap = fn(Value) -> Value;
        let wrap: [(&str, Wrap, Wrap); 9] = [
            ("allOf", |schema| json!({"allOf": [schema]}), |data| data),
            ("anyOf", |schema| json!({"anyOf": [schema, {"probe": 1}]}), |data| data),
            ("oneOf", |schema| json!({"oneOf": [schema]}), |data| data),
            ("if", |schema| json!({"if": true, "then": schema}), |data| data),
            ("properties", |schema| json!({"properties": {"a": schema}}), |data| json!({"a": data})),
            ("additional", |schema| json!({"additionalProperties": schema}), |data| json!({"a": data})),
            ("items", |schema| json!({"items": schema}), |data| json!([data])),
            ("contains", |schema| json!({"contains": schema}), |data| json!([data])),
            ("unevaluated", |schema| json!({"unevaluatedProperties": schema}), |data| json!({"a": data})),
        ];
        let levels = 60;
        for (name, schema, data) in wrap {
            let used = [0, levels].map(|levels| {
                let schema = (0..levels).fold(json!({"probe": 1}), |inner, _| schema(inner));
                let data = (0..levels).fold(json!({}), |inner, _| data(inner));
                let validator = jsonschema::options()
                    .with_draft(Draft::Draft202012)
                    .with_keyword("probe", |_, _, _| Ok(Box::new(Probe)))
                    .build(&schema)
                    .unwrap();
                DEEPEST.store(usize::MAX, Ordering::Relaxed);
                let here = 0u8;
                assert!(!validator.is_valid(&data));
                assert!(validator.iter_errors(&data).next().is_some());
                std::ptr::from_ref(&here) as usize - DEEPEST.load(Ordering::Relaxed)
            });
            let level_bytes = (used[1] - used[0]) / levels;
            println!("{name}: {level_bytes} bytes a level");
            assert!(level_bytes <= LEVEL_BYTES, "{name} takes {level_bytes} bytes a level");
        }
    }

    /// The worst that is allowed, on a stack as small as a coroutine's.
    #[test]
    fn the_deepest_data_and_the_largest_schema_fit_the_stack() {
        let deep = |levels: usize, inner: Value| (0..levels).fold(inner, |inner, _| json!({"a": inner}));
        // Each place refers to the next one for the same value, and the last one to the first for the value within.
        let count = CONTAINERS_MAX / 2 - 4;
        let mut places: Map<String, Value> =
            (0..count).map(|n| (format!("p{n}"), json!({"$ref": format!("#/$defs/p{}", n + 1)}))).collect();
        places.insert(format!("p{count}"), json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/p0"}}}));
        let recursive = json!({"$ref": "#/$defs/p0", "$defs": places});
        let nested = (0..60).fold(json!({"type": "object"}), |inner, _| json!({"properties": {"a": inner}}));
        let looped = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}});
        let compiled = std::thread::Builder::new()
            .stack_size(64 << 20)
            .spawn(|| [recursive, nested, looped].map(compile))
            .unwrap()
            .join()
            .unwrap();
        let small = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            let [recursive, nested, looped] = compiled;
            for (schema, fails) in [(&recursive, true), (&nested, false), (&looped, false)] {
                assert_eq!(check(schema, &deep(63, json!({})).to_string()), Ok(()));
                if fails {
                    let (path, _) = blame(schema, &deep(63, json!(1)).to_string());
                    assert!(path.starts_with("data.a.a.a"), "{path}");
                }
            }
        });
        small.unwrap().join().unwrap();
    }
}
