//! The JSON Schema of an event, for whoever sends them: the fields, and for each type in force the schema of its `data`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::parse::TEXT_BYTES_MAX;
use super::schema::{DRAFT, Schema};

/// What a UUID looks like within braces or behind its prefix.
const UUID_DIGITS: &str = "([0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})";

/// What an instant looks like; whether there is such a date is not seen by it.
const INSTANT: &str = "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})?\
                       ([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)?$";

/// The document, which is itself a schema. Each type's own is a resource of its own within it (by its `$id`), so that what
/// it refers to in itself is found.
pub fn write(schemas: &BTreeMap<String, Schema>, accept_unknown: bool) -> Vec<u8> {
    let uuid = format!("^(\\{{{UUID_DIGITS}\\}}|([Uu][Rr][Nn]:[Uu][Uu][Ii][Dd]:)?{UUID_DIGITS})$");
    let text = json!({"type": "string", "minLength": 1, "maxLength": TEXT_BYTES_MAX});
    let mut category = text.clone();
    category["pattern"] = "^[^.]*$".into();
    let mut definitions = Map::new();
    let mut types = Vec::new();
    for (full, schema) in schemas {
        let (category, name) = full.split_once('.').unwrap_or((full, ""));
        let mut own = schema.text().clone();
        let reference = match own.as_object_mut() {
            Some(members) => {
                members.entry("$id").or_insert_with(|| format!("urn:millrace:interaction:{}", urn(full)).into()).clone()
            }
            // `true` or `false`, which has no id.
            None => format!("#/$defs/{}", pointer(full)).into(),
        };
        definitions.insert(full.clone(), own);
        types.push(json!({
            "if": {"properties": {"category": {"const": category}, "name": {"const": name}}},
            "then": {"properties": {"data": {"$ref": reference}}},
        }));
    }
    let known: Vec<Value> = schemas
        .keys()
        .filter_map(|full| full.split_once('.'))
        .map(|(category, name)| json!({"properties": {"category": {"const": category}, "name": {"const": name}}}))
        .collect();
    let mut document = json!({
        "$schema": DRAFT,
        "title": "An interaction, as POST /v2/events takes it",
        "type": "object",
        "properties": {
            "session_id": {"type": "string", "pattern": uuid},
            "category": category,
            "name": text,
            "data": {"type": "object"},
            "timestamp": {"type": "string", "pattern": INSTANT},
            "event_id": {"type": ["string", "null"], "pattern": uuid},
        },
        "required": ["session_id", "category", "name", "data", "timestamp"],
        "$defs": definitions,
    });
    // An empty list would be no schema.
    if !types.is_empty() {
        document["allOf"] = types.into();
        if !accept_unknown {
            document["anyOf"] = known.into();
        }
    }
    let mut bytes = document.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// A type's name in a URN.
fn urn(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// A type's name in a JSON pointer within a URI's fragment.
fn pointer(name: &str) -> String {
    urn(&name.replace('~', "~0").replace('/', "~1")).replace("%7E", "~")
}
