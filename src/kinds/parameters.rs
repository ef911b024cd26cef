//! The parameters of a report's query: reading each sort of value, with messages that name the parameter, what was expected
//! and found, and what is allowed.

use std::fmt::Write as _;

use super::excerpt::quote;
use super::instant::{DAYS, parse_date, parse_instant, write_date};
use super::uuid_text::parse_uuid;
use crate::query_string::{self, Pair};

/// The names of the parameters that a report takes.
#[derive(Debug, Clone, Copy)]
pub struct Parameters(pub &'static [&'static str]);

impl Parameters {
    /// The parameters of a query string, in order, decoded.
    pub fn pairs<'q>(self, query: Option<&'q str>) -> impl Iterator<Item = Result<Pair<'q>, String>> {
        query_string::pairs(query.unwrap_or_default()).map(move |pair| pair.map_err(|error| self.allowed(error)))
    }

    /// Ends a message with what is allowed.
    fn allowed(self, message: String) -> String {
        format!("{message}; allowed are {}", self.0.join(", "))
    }

    /// What is wrong with a parameter.
    pub fn bad(self, name: &str, message: &str) -> String {
        self.allowed(format!("parameter \"{name}\": {message}"))
    }

    /// A parameter that there is not.
    pub fn unknown(self, name: &str) -> String {
        // Up to two slips of the pen; a long name is not worth the comparison.
        let near = self
            .0
            .iter()
            .filter(|_| name.len() <= 32)
            .map(|known| (strsim::damerau_levenshtein(name, known), known))
            .filter(|(slips, known)| *slips <= 2 && *slips < known.len())
            .min();
        let hint = near.map(|(_, known)| format!(", did you mean \"{known}\"?")).unwrap_or_default();
        self.allowed(format!("unknown parameter {}{hint}", quote(name)))
    }

    /// Puts a value where none was.
    pub fn once<T>(self, name: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
        match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(self.bad(name, "expected it once, found it more than once")),
        }
    }

    /// A UUID in any form.
    pub fn uuid(self, name: &str, value: Option<&str>) -> Result<[u8; 16], String> {
        value.and_then(|text| parse_uuid(text.as_bytes())).ok_or_else(|| {
            let found = found(value);
            self.bad(name, &format!("expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8, found {found}"))
        })
    }

    /// A day, since 1970.
    pub fn day(self, name: &str, value: Option<&str>) -> Result<i32, String> {
        parse_date(value.unwrap_or_default().as_bytes()).map_err(|reason| {
            self.bad(name, &format!("expected a day such as 2021-01-25, found {}: {reason}", found(value)))
        })
    }

    /// An instant, in microseconds since 1970. A `+` before an offset may have been decoded to a space.
    pub fn instant(self, name: &str, value: Option<&str>) -> Result<i64, String> {
        let mut text = value.unwrap_or_default().as_bytes().to_vec();
        if let Some(sign) = text.iter().rposition(|byte| *byte == b' ').filter(|place| *place >= 19) {
            text[sign] = b'+';
        }
        parse_instant(&text).map_err(|reason| {
            let found = found(value);
            self.bad(name, &format!("expected a time such as 2021-01-25T18:20:42Z, found {found}: {reason}"))
        })
    }

    /// A text that `fault` finds nothing wrong with.
    pub fn text(
        self,
        name: &str,
        value: Option<&str>,
        fault: impl Fn(&str) -> Option<&'static str>,
    ) -> Result<String, String> {
        let Some(text) = value else { return Err(self.bad(name, "expected a text, found no value")) };
        match fault(text) {
            None => Ok(text.to_owned()),
            Some(fault) => Err(self.bad(name, &format!("expected a text, found {}: {fault}", quote(text)))),
        }
    }

    /// How many rows are asked for.
    pub fn limit(self, value: Option<&str>, max: usize) -> Result<usize, String> {
        let digits = value.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let limit = digits.and_then(|text| text.parse().ok()).filter(|limit| (1..=max).contains(limit));
        limit.ok_or_else(|| self.bad("limit", &format!("expected a number from 1 to {max}, found {}", found(value))))
    }

    /// A cursor that is damaged, or belongs to other filters.
    pub fn bad_cursor(self, text: &str) -> String {
        self.bad("cursor", &format!("expected the `next` of an answer under the same filters, found {}", quote(text)))
    }
}

/// What was found in the place of a value, for a message.
pub fn found(value: Option<&str>) -> String {
    value.map_or_else(|| "no value".into(), quote)
}

/// The filters by day of a report: `day` (repeatable), `from`, `to` (both included). What each allows is allowed by all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DayFilters {
    /// Since 1970; empty for all. Sorted and without repetitions once they are settled.
    pub days: Vec<i32>,
    /// The first day.
    pub from: Option<i32>,
    /// The last day.
    pub to: Option<i32>,
}

impl DayFilters {
    /// Takes a parameter if it is one of these; whether it was.
    pub fn take(&mut self, parameters: Parameters, name: &str, value: Option<&str>) -> Result<bool, String> {
        match name {
            "day" => self.days.push(parameters.day(name, value)?),
            "from" => parameters.once(name, &mut self.from, parameters.day(name, value)?)?,
            "to" => parameters.once(name, &mut self.to, parameters.day(name, value)?)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks them together, and makes equal filters equal however they were written.
    pub fn settle(&mut self, parameters: Parameters) -> Result<(), String> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from > to
        {
            let message = format!("expected a day that is not after `to` ({}), found {}", date(to), date(from));
            return Err(parameters.bad("from", &message));
        }
        self.days.sort_unstable();
        self.days.dedup();
        Ok(())
    }

    /// Whether they let a day through, once they are settled.
    pub fn allow(&self, day: i32) -> bool {
        (self.days.is_empty() || self.days.binary_search(&day).is_ok())
            && self.from.is_none_or(|from| day >= from)
            && self.to.is_none_or(|to| day <= to)
    }

    /// Adds them as conditions on the column `day`.
    pub fn write_sql(&self, sql: &mut String) {
        // Days that no event can have are left out here: ClickHouse's dates do not reach that far.
        let days: Vec<String> = self.days.iter().filter(|day| DAYS.contains(day)).map(|day| day_sql(*day)).collect();
        let nothing = days.is_empty() && !self.days.is_empty()
            || self.from.is_some_and(|from| from >= DAYS.end)
            || self.to.is_some_and(|to| to < DAYS.start);
        if nothing {
            *sql += " AND 0";
            return;
        }
        if !days.is_empty() {
            *sql += &format!(" AND day IN ({})", days.join(", "));
        }
        if let Some(from) = self.from.filter(|from| DAYS.contains(from)) {
            *sql += &format!(" AND day >= {}", day_sql(from));
        }
        if let Some(to) = self.to.filter(|to| DAYS.contains(to)) {
            *sql += &format!(" AND day <= {}", day_sql(to));
        }
    }
}

fn date(days: i32) -> String {
    String::from_utf8_lossy(&write_date(days)).into_owned()
}

/// A day as a literal.
pub fn day_sql(days: i32) -> String {
    format!("toDate32('{}')", date(days))
}

/// A text as a literal in which no character of it stands as itself.
pub fn text_sql(text: &str) -> String {
    let mut sql = String::from("unhex('");
    for byte in text.bytes() {
        // Writing to a String cannot fail.
        let _ = write!(sql, "{byte:02x}");
    }
    sql + "')"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Parameters = Parameters(&["from", "text"]);

    #[test]
    fn instants_as_queries_carry_them() {
        let us = SOME.instant("from", Some("2021-01-25T18:20:42+01:00")).unwrap();
        assert_eq!(SOME.instant("from", Some("2021-01-25T18:20:42 01:00")), Ok(us));
        assert_eq!(SOME.instant("from", Some("2021-01-25 17:20:42")), Ok(us));
        assert!(
            SOME.instant("from", Some("2021-01-25")).unwrap_err().starts_with("parameter \"from\": expected a time")
        );
        assert!(SOME.instant("from", None).unwrap_err().contains("found no value"));
    }

    #[test]
    fn no_text_reaches_sql_as_it_is() {
        assert_eq!(text_sql("a'\\é"), "unhex('61275cc3a9')");
        assert_eq!(text_sql(""), "unhex('')");
        let refused = SOME.text("text", Some("x'"), |_| Some("it is odd"));
        let expected = "parameter \"text\": expected a text, found \"x'\": it is odd; allowed are from, text";
        assert_eq!(refused, Err(expected.to_owned()));
    }
}
