//! Values of the command line: times, rates, shares, days.

use std::time::Duration;

use crate::days;

pub fn duration(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("a time is a number with ms, s, m or h, such as 30s".to_owned()),
    };
    match number.parse::<f64>() {
        Ok(number) if (0.0..=86_400.0).contains(&(number * unit)) => Ok(Duration::from_secs_f64(number * unit)),
        _ => Err("a time is a number with ms, s, m or h, such as 30s, at most 24h".to_owned()),
    }
}

pub fn rate(text: &str) -> Result<f64, String> {
    match text.replace([',', '_'], "").parse() {
        Ok(rate) if (0.001..=1e8).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number above 0, such as 5000".to_owned()),
    }
}

pub fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(connections) if (1..=60_000).contains(&connections) => Ok(connections),
        _ => Err("connections are 1 to 60000".to_owned()),
    }
}

pub fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share lies from 0 to 1, such as 0.01".to_owned()),
    }
}

pub fn day(text: &str) -> Result<i64, String> {
    days::parse(text).ok_or_else(|| "a day is a date such as 2021-01-25, from 1970 to 2100".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "-1s", "1d", "NaN", "25h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate("10,000"), Ok(10_000.0));
        assert!(rate("0").is_err() && rate("inf").is_err() && share("1.1").is_err() && share("NaN").is_err());
    }
}
