//! Answers as bytes.
//!
//! In: an [`Answer`] and what the door adds to it (the request's id, whether the connection stays open). Out: the head,
//! in exactly the form in which `may_minihttp` writes it, because an answer that is partly in its buffer is completed
//! from here.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::exchange::Answer;

/// What an answer says about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    /// Nothing: it stays open, as is usual.
    Stays,
    /// It stays open for a client of HTTP/1.0, which needs to be told.
    Kept,
    /// It is closed after this answer.
    Closes,
}

/// Writes the header fields that the server does not write itself, as one text without a newline at its end.
pub(super) fn fields(into: &mut String, answer: &Answer, request_id: &str, connection: Connection) {
    into.clear();
    // Writing to a String cannot fail.
    if !answer.content_type.is_empty() {
        let _ = write!(into, "Content-Type: {}\r\n", answer.content_type);
    }
    let _ = write!(into, "X-Request-Id: {request_id}");
    if let Some(seconds) = answer.retry_after_s {
        let _ = write!(into, "\r\nRetry-After: {seconds}");
    }
    if let Some(allow) = answer.allow {
        let _ = write!(into, "\r\nAllow: {allow}");
    }
    into.push_str(match connection {
        Connection::Stays => "",
        Connection::Kept => "\r\nConnection: keep-alive",
        Connection::Closes => "\r\nConnection: close",
    });
}

/// Appends a head as the server writes it; without a length, which it always writes, for an answer without content.
pub(super) fn head(into: &mut Vec<u8>, status: u16, length: Option<usize>, date: &mut Date, fields: &str) {
    into.extend_from_slice(b"HTTP/1.1 ");
    number(into, usize::from(status));
    into.push(b' ');
    into.extend_from_slice(reason(status).as_bytes());
    into.extend_from_slice(b"\r\nServer: M\r\nDate: ");
    into.extend_from_slice(date.text());
    if let Some(length) = length {
        into.extend_from_slice(b"\r\nContent-Length: ");
        number(into, length);
    }
    into.extend_from_slice(b"\r\n");
    into.extend_from_slice(fields.as_bytes());
    into.extend_from_slice(b"\r\n\r\n");
}

fn number(into: &mut Vec<u8>, mut n: usize) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    into.extend_from_slice(&digits[start..]);
}

/// The reason phrase of a status.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        // The server writes 200 without asking.
        200 => "Ok",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Other",
    }
}

/// The current date as HTTP writes it, computed once a second.
#[derive(Debug, Default)]
pub(super) struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn text(&mut self) -> &[u8] {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text = format_date(second);
        }
        self.text.as_bytes()
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` of seconds since 1970.
fn format_date(second: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    let (days, time) = (second / 86_400, second % 86_400);
    // Howard Hinnant's civil_from_days: years begin in March, so that a leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era + u64::from(month >= 10);
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (second, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(format_date(second), text);
        }
    }

    #[test]
    fn heads() {
        let mut text = String::new();
        let answer = Answer { retry_after_s: Some(5), allow: Some("GET"), ..Answer::json(503, b"{}".to_vec()) };
        fields(&mut text, &answer, "id", Connection::Closes);
        let mut bytes = Vec::new();
        head(&mut bytes, 503, Some(1_234_567_890), &mut Date { second: 0, text: String::new() }, &text);
        let bytes = String::from_utf8(bytes).expect("text");
        let (first, rest) = bytes.split_once("\r\nDate: ").expect("a date");
        assert_eq!(first, "HTTP/1.1 503 Service Unavailable\r\nServer: M");
        assert_eq!(
            &rest[29..],
            "\r\nContent-Length: 1234567890\r\nContent-Type: application/json\r\nX-Request-Id: id\r\nRetry-After: 5\
             \r\nAllow: GET\r\nConnection: close\r\n\r\n"
        );
        fields(&mut text, &Answer::no_content(), "id", Connection::Stays);
        let mut bytes = Vec::new();
        head(&mut bytes, 204, None, &mut Date { second: 0, text: String::new() }, &text);
        let bytes = String::from_utf8(bytes).expect("text");
        assert!(bytes.starts_with("HTTP/1.1 204 No Content\r\nServer: M\r\nDate: "));
        assert!(bytes.ends_with(" GMT\r\nX-Request-Id: id\r\n\r\n"), "{bytes}");
        let mut zero = Vec::new();
        number(&mut zero, 0);
        assert_eq!(zero, b"0");
    }
}
