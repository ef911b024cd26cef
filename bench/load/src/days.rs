//! Days as numbers since 1970 and as text.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2021-01-25` of days since 1970 (Howard Hinnant's civil_from_days: years begin in March).
pub fn text(day: i64) -> String {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month < 3);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days since 1970 of a text like `2021-01-25`; None when that is no day.
pub fn parse(wanted: &str) -> Option<i64> {
    let mut parts = wanted.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1970..=2100).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let number = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - 719_468;
    (text(number) == wanted).then_some(number)
}

/// Seconds since 1970.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_their_text() {
        for (number, written) in
            [(0, "1970-01-01"), (18_652, "2021-01-25"), (11_016, "2000-02-29"), (47_847, "2101-01-01")]
        {
            assert_eq!(text(number), written);
        }
        assert!((0..47_800).all(|day| parse(&text(day)) == Some(day)));
        for wrong in ["", "2021-01", "2021-02-29", "2021-1-5", "2021-13-01", "1969-12-31", "2021-01-25T", "x-y-z"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
