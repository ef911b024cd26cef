//! The filter that `/api/report/FILTER` takes in place of a query: `site_id='...' and day='2021-01-25'`.
//!
//! Terms are joined by `&` or by `and` in any case; a value stands in single, double or no quotes. A column that comes
//! twice means either. Nothing here knows what a value means: the report reads it as it reads its parameters.

use crate::kinds::excerpt::quote;

/// The columns that a filter may name.
pub const COLUMNS: [&str; 2] = ["site_id", "day"];

/// The terms of a filter: a column and its value. The error says what was expected, what was found, and what is known.
pub fn terms(filter: &str) -> Result<Vec<(&'static str, &str)>, String> {
    let mut rest = filter.trim();
    let mut terms = Vec::new();
    loop {
        let (term, left) = term(rest)?;
        terms.push(term);
        if left.is_empty() {
            return Ok(terms);
        }
        rest = joined(left)?;
    }
}

/// One term at the start of a text, and what stands behind it.
fn term(text: &str) -> Result<((&'static str, &str), &str), String> {
    let (name, rest) = text.split_once('=').ok_or_else(|| refusal("COLUMN='VALUE'", text))?;
    let name = name.trim();
    let known = COLUMNS.into_iter().find(|column| *column == name);
    let column = known.ok_or_else(|| refusal("a known column", name))?;
    let rest = rest.trim_start();
    if let Some(quoted) = rest.strip_prefix(['\'', '"']) {
        let mark = &rest[..1];
        let (value, left) = quoted.split_once(mark).ok_or_else(|| refusal("a closing quote", rest))?;
        return Ok(((column, value), left.trim_start()));
    }
    let end = rest.find(|c: char| c == '&' || c.is_whitespace()).unwrap_or(rest.len());
    let (value, left) = rest.split_at(end);
    match value {
        "" => Err(refusal(&format!("a value for {column}"), rest)),
        _ => Ok(((column, value), left.trim_start())),
    }
}

/// What stands behind `&` or `and`.
fn joined(text: &str) -> Result<&str, String> {
    if let Some(rest) = text.strip_prefix('&') {
        return Ok(rest.trim_start());
    }
    let word = text.split_at_checked(3).filter(|(word, _)| word.eq_ignore_ascii_case("and"));
    match word {
        Some((_, rest)) if rest.starts_with(char::is_whitespace) => Ok(rest.trim_start()),
        _ => Err(refusal("`&` or `and` between terms", text)),
    }
}

fn refusal(expected: &str, found: &str) -> String {
    format!(
        "filter: expected {expected}, found {}; known columns are {}, as in site_id='67e55044-10b1-426f-9247-bb680e5fe0c8' \
         and day='2021-01-25'",
        quote(found),
        COLUMNS.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form() {
        let (site, day) = (("site_id", "x"), ("day", "2021-01-25"));
        for (filter, expected) in [
            ("site_id='x'", vec![site]),
            ("site_id=\"x\"", vec![site]),
            ("site_id=x", vec![site]),
            (" site_id = 'x' ", vec![site]),
            ("site_id='x'&day='2021-01-25'", vec![site, day]),
            ("site_id=x&day=2021-01-25", vec![site, day]),
            ("day=2021-01-25 and site_id=\"x\"", vec![day, site]),
            ("day='2021-01-25' AND site_id='x' And day=2021-01-25", vec![day, site, day]),
            ("site_id='x'and day=2021-01-25", vec![site, day]),
            ("site_id='a & b'", vec![("site_id", "a & b")]),
            ("site_id=''", vec![("site_id", "")]),
            ("site_id='it\"s'", vec![("site_id", "it\"s")]),
        ] {
            assert_eq!(terms(filter), Ok(expected), "{filter}");
        }
    }

    #[test]
    fn names_what_is_wrong_and_what_is_known() {
        for (filter, expected) in [
            ("", "expected COLUMN='VALUE', found \"\""),
            ("site_id", "expected COLUMN='VALUE', found \"site_id\""),
            ("type='serve'", "expected a known column, found \"type\""),
            ("1=1 or site_id='x'", "expected a known column, found \"1\""),
            ("site_id='x' or day='2021-01-25'", "expected `&` or `and` between terms, found \"or day"),
            ("site_id='x' and", "expected `&` or `and` between terms, found \"and\""),
            ("site_id='x' and &", "expected COLUMN='VALUE', found \"&\""),
            ("site_id='x'&", "expected COLUMN='VALUE', found \"\""),
            ("site_id='x", "expected a closing quote, found \"'x\""),
            ("site_id=&day=1", "expected a value for site_id, found \"&day=1\""),
            ("site_id='x'; DROP TABLE t", "expected `&` or `and` between terms, found \"; DROP TABLE t\""),
            ("site_id!='x'", "expected a known column, found \"site_id!\""),
            ("day>='2021-01-25'", "expected a known column, found \"day>\""),
            ("äöü", "expected COLUMN='VALUE'"),
            ("site_id=x äöü", "expected `&` or `and` between terms"),
        ] {
            let message = terms(filter).expect_err(filter);
            assert!(message.contains(expected) && message.contains("site_id, day"), "{filter}: {message}");
        }
    }
}
