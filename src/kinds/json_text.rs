//! Writes values into the JSON of an answer.

use super::instant::{DAY_US, write_date};

/// A text, quoted and escaped.
pub fn write_text(json: &mut Vec<u8>, text: &str) {
    // Writing to memory cannot fail, and a text is always JSON.
    let _ = serde_json::to_writer(json, text);
}

/// A number.
pub fn write_number(json: &mut Vec<u8>, mut number: u64) {
    // The longest, u64::MAX, has 20 digits.
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    json.extend_from_slice(&digits[first..]);
}

/// An instant (microseconds since 1970) of the years 0 to 9999 as `"YYYY-MM-DDTHH:MM:SS.ffffffZ"`, with so many digits of
/// its fraction (6 at most).
pub fn write_instant(json: &mut Vec<u8>, instant_us: i64, digits: u32) {
    let days = i32::try_from(instant_us.div_euclid(DAY_US)).unwrap_or(i32::MAX / 2);
    let of_day = instant_us.rem_euclid(DAY_US) as u64;
    let (seconds, micros) = (of_day / 1_000_000, of_day % 1_000_000);
    json.push(b'"');
    json.extend_from_slice(&write_date(days));
    for (before, value, width) in [
        (b'T', seconds / 3600, 2),
        (b':', seconds / 60 % 60, 2),
        (b':', seconds % 60, 2),
        (b'.', micros / 10u64.pow(6 - digits), digits),
    ] {
        json.push(before);
        json.extend((0..width).rev().map(|place| b'0' + (value / 10u64.pow(place) % 10) as u8));
    }
    json.extend_from_slice(b"Z\"");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::instant::parse_instant;

    #[test]
    fn instants_are_read_back() {
        for text in ["1970-01-01T00:00:00.000000Z", "2021-01-25T18:20:42.159246Z", "2100-12-31T23:59:59.999999Z"] {
            let mut json = Vec::new();
            write_instant(&mut json, parse_instant(text.as_bytes()).unwrap(), 6);
            assert_eq!(json, format!("\"{text}\"").as_bytes());
        }
        let mut json = Vec::new();
        write_instant(&mut json, 1_611_598_842_159_246, 3);
        assert_eq!(json, b"\"2021-01-25T18:20:42.159Z\"");
        for beyond in [i64::MIN, i64::MAX] {
            write_instant(&mut json, beyond, 6);
        }
    }

    #[test]
    fn texts_and_numbers() {
        let mut json = Vec::new();
        write_text(&mut json, "a\"\u{1}é");
        assert_eq!(json, "\"a\\\"\\u0001é\"".as_bytes());
        json.clear();
        write_number(&mut json, 0);
        write_number(&mut json, u64::MAX);
        assert_eq!(json, b"018446744073709551615");
    }
}
