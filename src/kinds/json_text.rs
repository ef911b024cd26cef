//! Writes values into the JSON of an answer.

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

#[cfg(test)]
mod tests {
    use super::*;

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
