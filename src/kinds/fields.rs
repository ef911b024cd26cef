//! The fields of an event: found in one pass over a JSON object, each at most once, and checked one by one.
//!
//! A kind asks for its fields in its schema's order and returns the first [`Rejection`]; so it is always the first bad
//! field that is blamed, however the object was ordered. The codes that all kinds share are made here and nowhere else:
//!
//! | code | when |
//! |---|---|
//! | `not_an_object` | the value is JSON, but no object |
//! | `missing_field` | a required field is not there |
//! | `repeated_field` | a known field is there twice (also when one of them is written with escapes) |
//! | `bad_time` | not an ISO 8601 instant of the years 1970 to 2100 |
//! | `bad_uuid` | not a UUID |
//!
//! A kind adds its own (`bad_type`), and the accepting stage those of what is not a value at all (`bad_json`,
//! `too_long`).

use simd_json::prelude::*;
use simd_json::tape::Value;

use super::instant::parse_instant;
use super::uuid_text::parse_uuid;
use super::{Rejection, excerpt};

/// The known fields of one object; `N` of them.
pub struct Fields<'t, 'v, const N: usize> {
    names: &'static [&'static str; N],
    values: [Option<Value<'t, 'v>>; N],
    repeated: [bool; N],
}

impl<'t, 'v, const N: usize> Fields<'t, 'v, N> {
    /// Finds the fields. `index` gives the place of a name within `names`, and is a parameter so that a kind can write
    /// it as one `match`; `None` is a field that nobody knows, which is ignored whatever it holds.
    #[inline]
    pub fn read(
        value: Value<'t, 'v>,
        names: &'static [&'static str; N],
        index: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, Rejection> {
        let Some(object) = value.as_object() else {
            return Err(not_an_object(value, names));
        };
        let mut fields = Fields { names, values: [None; N], repeated: [false; N] };
        for (name, value) in object.iter() {
            if let Some(place) = index(name) {
                fields.repeated[place] |= fields.values[place].replace(value).is_some();
            }
        }
        Ok(fields)
    }

    /// A field that may be absent.
    #[inline]
    pub fn optional(&self, place: usize) -> Result<Option<Value<'t, 'v>>, Rejection> {
        if self.repeated[place] {
            return Err(repeated(self.names[place]));
        }
        Ok(self.values[place])
    }

    /// A field that must be there.
    #[inline]
    pub fn required(&self, place: usize) -> Result<Value<'t, 'v>, Rejection> {
        self.optional(place)?.ok_or_else(|| missing(self.names, place))
    }

    /// A required instant, in microseconds since 1970.
    #[inline]
    pub fn instant(&self, place: usize) -> Result<i64, Rejection> {
        let value = self.required(place)?;
        let read = value.as_str().map_or(Err("not a text"), |text| parse_instant(text.as_bytes()));
        read.map_err(|reason| bad_time(self.names[place], value, reason))
    }

    /// A required UUID.
    #[inline]
    pub fn uuid(&self, place: usize) -> Result<[u8; 16], Rejection> {
        self.read_uuid(place, self.required(place)?)
    }

    /// A UUID that may be absent or null.
    #[inline]
    pub fn optional_uuid(&self, place: usize) -> Result<Option<[u8; 16]>, Rejection> {
        let value = self.optional(place)?.filter(|value| !value.is_null());
        value.map(|value| self.read_uuid(place, value)).transpose()
    }

    #[inline]
    fn read_uuid(&self, place: usize, value: Value<'t, 'v>) -> Result<[u8; 16], Rejection> {
        let read = value.as_str().and_then(|text| parse_uuid(text.as_bytes()));
        read.ok_or_else(|| bad_uuid(self.names[place], value))
    }
}

#[cold]
fn not_an_object(value: Value<'_, '_>, names: &[&str]) -> Rejection {
    let message = format!("expected an object with {}, found {}", names.join(", "), excerpt::value(value));
    Rejection { code: "not_an_object", field: None, message: message.into() }
}

#[cold]
fn repeated(name: &'static str) -> Rejection {
    let message = format!("expected `{name}` once, found it more than once");
    Rejection { code: "repeated_field", field: Some(name.into()), message: message.into() }
}

#[cold]
fn missing(names: &[&'static str], place: usize) -> Rejection {
    let name = names[place];
    let message = format!("expected the field `{name}`, found none");
    Rejection { code: "missing_field", field: Some(name.into()), message: message.into() }
}

#[cold]
fn bad_time(name: &'static str, value: Value<'_, '_>, reason: &str) -> Rejection {
    let found = excerpt::value(value);
    let message = format!("expected an ISO 8601 time such as 2021-01-22T18:20:42.159246Z, found {found}: {reason}");
    Rejection { code: "bad_time", field: Some(name.into()), message: message.into() }
}

#[cold]
fn bad_uuid(name: &'static str, value: Value<'_, '_>) -> Rejection {
    let found = excerpt::value(value);
    let message = format!("expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8, found {found}");
    Rejection { code: "bad_uuid", field: Some(name.into()), message: message.into() }
}
