//! Dates and instants: text to days or microseconds since 1970-01-01T00:00:00Z, and back.
//!
//! The proleptic Gregorian calendar, without leap seconds, as in ISO 8601 and in ClickHouse. Parsing is exact: a date
//! that the calendar does not have is refused, nothing is rounded. What is kept lies in [`INSTANTS_US`].

use std::ops::Range;

/// Microseconds in a day.
pub const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

/// The days that events may have: the years 1970 to 2100.
pub const DAYS: Range<i32> = 0..days_from_civil(2101, 1, 1);

/// The instants that events may have, in microseconds: the years 1970 to 2100 in UTC.
pub const INSTANTS_US: Range<i64> = 0..DAYS.end as i64 * DAY_US;

/// Why a text is not an instant: a reason that can end a message.
pub type Reason = &'static str;

const NOT_ISO: Reason = "not of the form YYYY-MM-DDTHH:MM:SS";
const NO_SUCH_DATE: Reason = "there is no such date";
const NO_SUCH_TIME: Reason = "there is no such time of day";
const BAD_FRACTION: Reason = "a fraction has 1 to 9 digits";
const BAD_OFFSET: Reason = "after the seconds only Z or an offset such as +01:00 may follow";
const OUT_OF_RANGE: Reason = "the year is not within 1970 to 2100 in UTC";

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar; `month` from 1 to 12.
///
/// Howard Hinnant's `days_from_civil`: years begin in March, so that a leap day comes last.
pub const fn days_from_civil(year: i32, month: u32, day: u32) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) as i32 + 2) / 5 + day as i32 - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`]: year, month and day.
pub const fn civil_from_days(days: i32) -> (i32, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month as u32, day as u32)
}

/// The day that holds an instant.
#[inline]
pub fn day_of(instant_us: i64) -> i32 {
    // Within INSTANTS_US it fits; what a caller may hold beyond saturates.
    i32::try_from(instant_us.div_euclid(DAY_US)).unwrap_or(i32::MAX)
}

/// A date as `YYYY-MM-DD`; for the years 0 to 9999.
pub fn write_date(days: i32) -> [u8; 10] {
    let (year, month, day) = civil_from_days(days);
    let year = year.clamp(0, 9999) as u32;
    let digit = |value: u32| b'0' + (value % 10) as u8;
    [
        digit(year / 1000),
        digit(year / 100),
        digit(year / 10),
        digit(year),
        b'-',
        digit(month / 10),
        digit(month),
        b'-',
        digit(day / 10),
        digit(day),
    ]
}

/// An instant in UTC, to the microsecond: `2021-01-22T18:20:42.159246Z`.
pub fn write_instant_us(instant_us: i64) -> String {
    write_instant(instant_us, instant_us.rem_euclid(1_000_000), 6)
}

/// An instant in UTC, to the millisecond: `2021-01-22T18:20:42.159Z`.
pub fn write_instant_ms(instant_ms: i64) -> String {
    write_instant(instant_ms.saturating_mul(1000), instant_ms.rem_euclid(1000), 3)
}

fn write_instant(instant_us: i64, fraction: i64, digits: usize) -> String {
    let second = instant_us.rem_euclid(DAY_US) / 1_000_000;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let date = write_date(day_of(instant_us));
    let date = String::from_utf8_lossy(&date);
    format!("{date}T{hour:02}:{minute:02}:{second:02}.{fraction:0digits$}Z")
}

/// The number that two digits make; what is not a digit raises `bad`.
#[inline]
fn two(text: &[u8], at: usize, bad: &mut bool) -> u32 {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    *bad |= tens > 9 || ones > 9;
    u32::from(tens).wrapping_mul(10).wrapping_add(u32::from(ones))
}

#[inline]
fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[inline]
fn date(text: &[u8; 10]) -> Result<i32, Reason> {
    let mut bad = text[4] != b'-' || text[7] != b'-';
    let year = two(text, 0, &mut bad).wrapping_mul(100).wrapping_add(two(text, 2, &mut bad));
    let month = two(text, 5, &mut bad);
    let day = two(text, 8, &mut bad);
    if bad {
        return Err(NOT_ISO);
    }
    if month == 0 || month > 12 || day == 0 || day > days_in_month(year, month) {
        return Err(NO_SUCH_DATE);
    }
    Ok(days_from_civil(year as i32, month, day))
}

/// The day of a text of the form `YYYY-MM-DD`, which must be a real date (of any year from 0 to 9999).
pub fn parse_date(text: &[u8]) -> Result<i32, Reason> {
    date(text.try_into().map_err(|_| "not of the form YYYY-MM-DD")?)
        .map_err(|reason| if reason == NOT_ISO { "not of the form YYYY-MM-DD" } else { reason })
}

/// The instant of an ISO 8601 text, in microseconds.
///
/// A date and a time of day joined by `T`, `t` or one space; seconds required; then a fraction of 1 to 9 digits (cut to
/// microseconds) or none; then `Z`, `z`, an offset `+HH`, `+HHMM`, `+HH:MM` (hours to 23, minutes to 59, either sign) or
/// nothing, which means UTC. `24:00:00` with no other fraction than zeros is the next day's start. A second 60 is
/// refused. The year counts in UTC, after the offset: [`INSTANTS_US`].
#[inline]
pub fn parse_instant(text: &[u8]) -> Result<i64, Reason> {
    let Some((head, rest)) = text.split_first_chunk::<19>() else {
        return Err(NOT_ISO);
    };
    let mut bad = !matches!(head[10], b'T' | b't' | b' ') || head[13] != b':' || head[16] != b':';
    let hour = two(head, 11, &mut bad);
    let minute = two(head, 14, &mut bad);
    let second = two(head, 17, &mut bad);
    if bad {
        return Err(NOT_ISO);
    }
    let (head_date, _) = head.split_first_chunk::<10>().ok_or(NOT_ISO)?;
    let days = date(head_date)?;
    let (fraction, rest) = fraction(rest)?;
    let offset_minutes = offset(rest)?;
    let day_ended = hour == 24 && minute == 0 && second == 0 && fraction.is_zero;
    if (hour > 23 || minute > 59 || second > 59) && !day_ended {
        return Err(NO_SUCH_TIME);
    }
    let seconds = i64::from(hour * 3600 + minute * 60 + second) - i64::from(offset_minutes) * 60;
    let instant = i64::from(days) * DAY_US + seconds * 1_000_000 + i64::from(fraction.micros);
    if INSTANTS_US.contains(&instant) { Ok(instant) } else { Err(OUT_OF_RANGE) }
}

struct Fraction {
    micros: u32,
    /// No digit other than 0, also among those that were cut.
    is_zero: bool,
}

#[inline]
fn fraction(text: &[u8]) -> Result<(Fraction, &[u8]), Reason> {
    let Some((b'.', digits)) = text.split_first() else {
        return Ok((Fraction { micros: 0, is_zero: true }, text));
    };
    // Six digits are what most clocks write.
    if let Some((six, rest)) = digits.split_first_chunk::<6>() {
        let mut bad = false;
        let micros = two(six, 0, &mut bad) * 10_000 + two(six, 2, &mut bad) * 100 + two(six, 4, &mut bad);
        if !bad && !rest.first().is_some_and(u8::is_ascii_digit) {
            return Ok((Fraction { micros, is_zero: micros == 0 }, rest));
        }
    }
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 || count > 9 {
        return Err(BAD_FRACTION);
    }
    let nanos = (0..9).fold(0, |nanos, at| nanos * 10 + if at < count { u32::from(digits[at] - b'0') } else { 0 });
    Ok((Fraction { micros: nanos / 1000, is_zero: nanos == 0 }, &digits[count..]))
}

/// The minutes by which the text's clock is ahead of UTC.
#[inline]
fn offset(text: &[u8]) -> Result<i32, Reason> {
    let (sign, digits) = match text {
        [] | [b'Z' | b'z'] => return Ok(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return Err(BAD_OFFSET),
    };
    let mut bad = false;
    let (hours, minutes) = match digits.len() {
        2 => (two(digits, 0, &mut bad), 0),
        4 => (two(digits, 0, &mut bad), two(digits, 2, &mut bad)),
        5 if digits[2] == b':' => (two(digits, 0, &mut bad), two(digits, 3, &mut bad)),
        _ => return Err(BAD_OFFSET),
    };
    if bad || hours > 23 || minutes > 59 {
        return Err(BAD_OFFSET);
    }
    Ok(sign * (hours * 60 + minutes) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use chrono::{DateTime, Datelike, FixedOffset, NaiveDate};

    fn micros(text: &str) -> i64 {
        parse_instant(text.as_bytes()).unwrap_or_else(|reason| panic!("{text}: {reason}"))
    }

    /// By chrono, which shares no code with ours.
    fn reference(rfc3339: &str) -> i64 {
        DateTime::parse_from_rfc3339(rfc3339).unwrap_or_else(|error| panic!("{rfc3339}: {error}")).timestamp_micros()
    }

    #[test]
    fn writes_what_it_reads() {
        let mut dice = crate::dice::Dice::new("writes_what_it_reads");
        for _ in 0..10_000 {
            let instant_us = (dice.any() % INSTANTS_US.end as u64) as i64;
            let text = write_instant_us(instant_us);
            assert_eq!(parse_instant(text.as_bytes()), Ok(instant_us), "{text}");
            let text = write_instant_ms(instant_us / 1000);
            assert_eq!(parse_instant(text.as_bytes()), Ok(instant_us / 1000 * 1000), "{text}");
        }
        assert_eq!(write_instant_us(0), "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn takes_each_form() {
        let whole = reference("2021-01-22T18:20:42Z");
        for text in ["2021-01-22T18:20:42", "2021-01-22t18:20:42Z", "2021-01-22 18:20:42z", "2021-01-22T18:20:42+00"] {
            assert_eq!(micros(text), whole, "{text}");
        }
        assert_eq!(micros("2021-01-22T18:20:42.159246"), whole + 159_246);
        assert_eq!(micros("2021-01-22T18:20:42.1"), whole + 100_000);
        assert_eq!(micros("2021-01-22T18:20:42.000000001"), whole);
        assert_eq!(micros("2021-01-22T18:20:42.123456999Z"), whole + 123_456, "cut, not rounded");
        assert_eq!(micros("2021-01-22T18:20:42.999999999"), whole + 999_999);
        for text in ["2021-01-22T19:20:42+01", "2021-01-22T19:20:42+0100", "2021-01-22 19:20:42+01:00"] {
            assert_eq!(micros(text), whole, "{text}");
        }
        assert_eq!(micros("2021-01-22T12:50:42-05:30"), whole);
        assert_eq!(micros("2021-01-22T18:20:42-00:00"), whole);
        assert_eq!(micros("2021-01-23T18:19:42.5+23:59"), whole + 500_000);
    }

    #[test]
    fn midnight_at_the_end_of_a_day() {
        let next = reference("2021-01-01T00:00:00Z");
        for text in [
            "2020-12-31T24:00:00",
            "2020-12-31T24:00:00.000Z",
            "2020-12-31 24:00:00.000000000",
            "2020-12-31T24:00:00+00",
        ] {
            assert_eq!(micros(text), next, "{text}");
        }
        assert_eq!(micros("2021-01-01T24:00:00+23:00"), next + 3_600_000_000);
        for text in
            ["2020-12-31T24:00:01", "2020-12-31T24:01:00", "2020-12-31T24:00:00.000000001", "2020-12-31T25:00:00"]
        {
            assert_eq!(parse_instant(text.as_bytes()), Err(NO_SUCH_TIME), "{text}");
        }
    }

    #[test]
    fn years_count_in_utc() {
        assert_eq!(micros("1970-01-01T00:00:00"), 0);
        assert_eq!(micros("1969-12-31T23:30:00-01:00"), 1_800_000_000);
        assert_eq!(micros("2100-12-31T23:59:59.999999"), INSTANTS_US.end - 1);
        assert_eq!(micros("2101-01-01T00:30:00+01:00"), INSTANTS_US.end - 1_800_000_000);
        for text in [
            "1969-12-31T23:59:59.999999",
            "1970-01-01T00:30:00+01:00",
            "2100-12-31T24:00:00",
            "2101-01-01T00:00:00",
            "2100-12-31T23:30:00-01:00",
            "0000-01-01T00:00:00",
            "9999-12-31T23:59:59",
        ] {
            assert_eq!(parse_instant(text.as_bytes()), Err(OUT_OF_RANGE), "{text}");
        }
    }

    #[test]
    fn refuses_all_else() {
        for (text, reason) in [
            ("", NOT_ISO),
            ("2021-01-22", NOT_ISO),
            ("2021-01-22T18:20", NOT_ISO),
            ("2021-01-22T18:20Z", NOT_ISO),
            ("20210122T182042", NOT_ISO),
            ("2021-1-22T18:20:42Z", NOT_ISO),
            ("2021-01-22  18:20:42", NOT_ISO),
            ("2021-01-22_18:20:42", NOT_ISO),
            (" 2021-01-22T18:20:42", NOT_ISO),
            ("+2021-01-22T18:20:42", NOT_ISO),
            ("2021/01/22T18:20:42", NOT_ISO),
            ("2021-01-22T18-20-42", NOT_ISO),
            ("2021-01-2\u{0661}T18:20:42", NOT_ISO),
            ("1611339642", NOT_ISO),
            ("2021-02-29T00:00:00", NO_SUCH_DATE),
            ("2100-02-29T00:00:00", NO_SUCH_DATE),
            ("2021-04-31T00:00:00", NO_SUCH_DATE),
            ("2021-00-10T00:00:00", NO_SUCH_DATE),
            ("2021-13-10T00:00:00", NO_SUCH_DATE),
            ("2021-01-00T00:00:00", NO_SUCH_DATE),
            ("2021-01-32T00:00:00", NO_SUCH_DATE),
            ("2021-01-22T18:60:00", NO_SUCH_TIME),
            ("2016-12-31T23:59:60Z", NO_SUCH_TIME),
            ("2021-01-22T99:00:00", NO_SUCH_TIME),
            ("2021-01-22T18:20:42.", BAD_FRACTION),
            ("2021-01-22T18:20:42.Z", BAD_FRACTION),
            ("2021-01-22T18:20:42.1234567890", BAD_FRACTION),
            ("2021-01-22T18:20:42,5", BAD_OFFSET),
            ("2021-01-22T18:20:42 Z", BAD_OFFSET),
            ("2021-01-22T18:20:42Z ", BAD_OFFSET),
            ("2021-01-22T18:20:42ZZ", BAD_OFFSET),
            ("2021-01-22T18:20:42+", BAD_OFFSET),
            ("2021-01-22T18:20:42+1", BAD_OFFSET),
            ("2021-01-22T18:20:42+1:00", BAD_OFFSET),
            ("2021-01-22T18:20:42+01:0", BAD_OFFSET),
            ("2021-01-22T18:20:42+24:00", BAD_OFFSET),
            ("2021-01-22T18:20:42+01:60", BAD_OFFSET),
            ("2021-01-22T18:20:42+01:00:00", BAD_OFFSET),
            ("2021-01-22T18:20:42\u{2212}01:00", BAD_OFFSET),
            ("2021-01-22T18:20:42UTC", BAD_OFFSET),
            ("2020-02-29T00:00:00.5+00:00x", BAD_OFFSET),
        ] {
            assert_eq!(parse_instant(text.as_bytes()), Err(reason), "{text:?}");
        }
    }

    #[test]
    fn the_calendar_agrees_with_chrono() {
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        let mut date = NaiveDate::from_ymd_opt(0, 1, 1).unwrap();
        let mut days = (date - epoch).num_days() as i32;
        while date.year() < 2500 {
            assert_eq!(civil_from_days(days), (date.year(), date.month(), date.day()));
            assert_eq!(days_from_civil(date.year(), date.month(), date.day()), days);
            let text = date.format("%Y-%m-%d").to_string();
            assert_eq!(write_date(days), text.as_bytes());
            assert_eq!(parse_date(text.as_bytes()), Ok(days));
            date = date.succ_opt().unwrap();
            days += 1;
        }
        for text in ["2021-02-29", "2021-2-01", "2021-01-01T", "", "2021-01-0a"] {
            assert!(parse_date(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn instants_agree_with_chrono() {
        let mut dice = Dice::new("instants_agree_with_chrono");
        let mut in_range = 0;
        for _ in 0..200_000 {
            let (year, month, day) = (1968 + dice.below(135), dice.below(14), dice.below(33));
            let (hour, minute, second) = (dice.below(25), dice.below(61), dice.below(60));
            let digits = dice.below(10);
            let mut fraction = String::new();
            for digit in 0..digits {
                fraction += if digit == 0 { "." } else { "" };
                fraction.push(char::from(b'0' + dice.below(10) as u8));
            }
            let (sign, ahead_h, ahead_m) = (*dice.pick(&['+', '-']), dice.below(24), dice.below(60));
            let text = format!(
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{sign}{ahead_h:02}:{ahead_m:02}"
            );
            let ours = parse_instant(text.as_bytes());
            if hour == 24 {
                assert!(ours.is_err() || minute == 0 && second == 0, "{text}");
                continue;
            }
            let theirs: Result<DateTime<FixedOffset>, _> = DateTime::parse_from_rfc3339(&text);
            let theirs = theirs.map(|instant| instant.timestamp_micros()).ok();
            let expected = theirs.filter(|instant| INSTANTS_US.contains(instant));
            assert_eq!(ours.ok(), expected, "{text}: {ours:?}");
            in_range += usize::from(expected.is_some());
        }
        assert!(in_range > 100_000, "{in_range}");
    }

    #[test]
    fn one_byte_of_damage_never_panics() {
        let mut dice = Dice::new("one_byte_of_damage_never_panics");
        for _ in 0..200_000 {
            let mut text = b"2021-01-22T18:20:42.159246+01:00".to_vec();
            text.truncate(dice.below(text.len() + 1));
            if !text.is_empty() {
                let at = dice.below(text.len());
                text[at] = dice.any() as u8;
            }
            if let Ok(instant) = parse_instant(&text) {
                assert!(INSTANTS_US.contains(&instant));
            }
        }
    }
}
