//! Numbers as people read them.

use hdrhistogram::Histogram;

/// The percentiles that are told.
pub const PERCENTILES: [(&str, f64); 7] =
    [("p50", 50.0), ("p75", 75.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];

/// Nanoseconds as a short text with a unit.
pub fn time(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{} µs", three(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", three(ns / 1e6)),
        ns => format!("{} s", three(ns / 1e9)),
    }
}

/// Three digits that count.
fn three(number: f64) -> String {
    let digits = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
    format!("{number:.digits$}")
}

/// A whole number with commas.
pub fn count(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate: fractions where it is low.
pub fn rate(number: f64) -> String {
    if number < 100.0 { format!("{number:.1}") } else { count(number) }
}

/// A percentile in nanoseconds.
pub fn at(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let times = [0.0, 999.0, 1234.0, 45_678.0, 999_400.0, 4_440_000.0, 123_456_789.0, 2.5e9, 61.3e9];
        let texts = times.map(time);
        assert_eq!(texts, ["0 ns", "999 ns", "1.23 µs", "45.7 µs", "999 µs", "4.44 ms", "123 ms", "2.50 s", "61.3 s"]);
        assert_eq!([0.0, 999.0, 1000.0, 1_234_567.4].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([9.96, 1234.5].map(rate), ["10.0", "1,234"]);
    }
}
