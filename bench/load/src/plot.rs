//! The percentile plot, as SVG: latency over 1 / (1 - percentile), so that each nine takes the same room.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use crate::figures;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 64.0;
/// Beyond so much between the smallest and the largest latency a linear axis would show only the latter.
const LINEAR_SPAN_MAX: f64 = 25.0;
/// Colours that can be told apart by all.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// How latencies become heights.
enum Axis {
    Linear { max: f64 },
    Logarithmic { min: f64, max: f64 },
}

impl Axis {
    fn of(min: f64, max: f64) -> Axis {
        if max / min <= LINEAR_SPAN_MAX {
            Axis::Linear { max: round_up(max) }
        } else {
            let steps = logarithmic_steps(min, max);
            Axis::Logarithmic { min: steps[0], max: steps[steps.len() - 1] }
        }
    }

    fn y(&self, ns: f64) -> f64 {
        let share = match self {
            Axis::Linear { max } => ns / max,
            Axis::Logarithmic { min, max } => (ns / min).log10() / (max / min).log10(),
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<f64> {
        match self {
            Axis::Linear { max } => (0..=5).map(|fifth| max * f64::from(fifth) / 5.0).collect(),
            Axis::Logarithmic { min, max } => logarithmic_steps(*min, *max),
        }
    }
}

/// 1, 2 and 5 times powers of ten, from the last that is not above `min` to the first that is not below `max`.
fn logarithmic_steps(min: f64, max: f64) -> Vec<f64> {
    let decades = (min.log10().floor() as i32 - 1)..=(max.log10().ceil() as i32 + 1);
    let steps: Vec<f64> = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade))).collect();
    // A thousandth for what powers of ten lose in floating point.
    let first = steps.iter().rposition(|step| *step <= min * 1.001).unwrap_or(0);
    let last = steps.iter().position(|step| *step >= max * 0.999).unwrap_or(steps.len() - 1);
    steps[first..=last].to_vec()
}

/// The next of 1, 2, 2.5, 5, 10 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|step| step * power).find(|round| *round >= value).unwrap_or(value)
}

/// The plot of several histograms of nanoseconds; those without values are left out.
pub fn svg(title: &str, subtitle: &str, histograms: &[(String, &Histogram<u64>)]) -> String {
    let shown: Vec<_> = histograms.iter().filter(|(_, histogram)| !histogram.is_empty()).collect();
    let min = shown.iter().map(|(_, histogram)| figures::at(histogram, 0.0)).reduce(f64::min).unwrap_or(1e6).max(100.0);
    let max = shown.iter().map(|(_, histogram)| histogram.max() as f64).fold(min, f64::max);
    let axis = Axis::of(min, max);
    // One nine more than the largest number of values can show.
    let values = shown.iter().map(|(_, histogram)| histogram.len()).max().unwrap_or(1);
    let nines = ((values as f64).log10().ceil()).clamp(2.0, 8.0);
    let x = |inverse: f64| LEFT + (inverse.log10() / nines).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);

    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="24" font-size="16">{}</text>
<text x="{LEFT}" y="44" fill="#555">{}</text>"##,
        escape(title),
        escape(subtitle)
    );
    grid(&mut svg, &axis, nines, &x);
    for (number, (name, histogram)) in shown.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points = points(histogram, &axis, nines, &x);
        let _ = writeln!(
            svg,
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>"#
        );
        let at = LEFT + 8.0 + number as f64 * 290.0;
        let text = format!(
            "{name} (p50 {}, max {})",
            figures::time(figures::at(histogram, 50.0)),
            figures::time(histogram.max() as f64)
        );
        let _ = writeln!(
            svg,
            r#"<line x1="{at}" y1="64" x2="{}" y2="64" stroke="{colour}" stroke-width="3"/><text x="{}" y="68">{}</text>"#,
            at + 22.0,
            at + 28.0,
            escape(&text)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn grid(svg: &mut String, axis: &Axis, nines: f64, x: &impl Fn(f64) -> f64) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for ns in axis.ticks() {
        let y = axis.y(ns);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{}</text>"##,
            LEFT - 8.0,
            y + 4.5,
            figures::time(ns)
        );
    }
    let mut marks = vec![(0.0, "0%".to_owned()), (0.5, "50%".to_owned())];
    marks.extend((1..=nines as usize).map(|nine| {
        let text = if nine == 1 {
            "90%".to_owned()
        } else {
            format!("99{}{}%", if nine > 2 { "." } else { "" }, "9".repeat(nine - 2))
        };
        (1.0 - 10f64.powi(-(nine as i32)), text)
    }));
    for (share, text) in marks {
        let at = x(1.0 / (1.0 - share));
        let _ = writeln!(
            svg,
            r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{bottom}" stroke="#ddd"/><text x="{at:.1}" y="{}" text-anchor="middle">{text}</text>"##,
            bottom + 20.0
        );
    }
    let middle = (TOP + bottom) / 2.0;
    let kind = if matches!(axis, Axis::Logarithmic { .. }) { "latency (logarithmic)" } else { "latency" };
    let _ = writeln!(
        svg,
        r##"<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#222"/>
<text x="{}" y="{}" text-anchor="middle">percentile of requests (each step to the right: a tenth of those that are slower)</text>
<text transform="translate(20 {middle}) rotate(-90)" text-anchor="middle">{kind}</text>"##,
        (LEFT + right) / 2.0,
        HEIGHT - 16.0
    );
}

/// The line of a histogram: steps of a fiftieth of a nine.
fn points(histogram: &Histogram<u64>, axis: &Axis, nines: f64, x: &impl Fn(f64) -> f64) -> String {
    let mut points = String::new();
    // Beyond this share there is one value, the largest.
    let last = (histogram.len() as f64).log10().min(nines);
    let steps = (last * 50.0).ceil() as u32;
    for step in 0..=steps {
        let inverse = 10f64.powf((f64::from(step) / 50.0).min(last));
        let ns = figures::at(histogram, 100.0 * (1.0 - 1.0 / inverse));
        let _ = write!(points, "{:.1},{:.1} ", x(inverse), axis.y(ns));
    }
    let _ = write!(points, "{:.1},{:.1}", x(10f64.powf(last)), axis.y(histogram.max() as f64));
    points
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_each_histogram_with_values() {
        let mut histogram = crate::tally::histogram();
        (1..10_000u64).for_each(|value| histogram.record(value * 1000).unwrap());
        let (empty, name) = (crate::tally::histogram(), "a<b".to_owned());
        let plot = svg("title & more", "below", &[(name, &histogram), ("none".to_owned(), &empty)]);
        assert_eq!(plot.matches("<polyline").count(), 1);
        assert!(plot.contains("title &amp; more") && plot.contains("a&lt;b (p50 ") && plot.contains(">99.9%<"));
        assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
        let nothing = svg("", "", &[("none".to_owned(), &empty)]);
        assert!(!nothing.contains("NaN") && !nothing.contains("inf"), "{nothing}");
    }

    #[test]
    fn axes() {
        assert_eq!([0.9, 1.0, 1.1, 2.3, 4.0, 7.0].map(round_up), [1.0, 1.0, 2.0, 2.5, 5.0, 10.0]);
        assert!(matches!(Axis::of(1e6, 2e7), Axis::Linear { max } if max == 2e7));
        let axis = Axis::of(3e5, 2e8);
        assert!(matches!(axis, Axis::Logarithmic { .. }));
        assert_eq!((axis.y(2e5), axis.y(2e8)), (HEIGHT - BOTTOM, TOP));
        assert_eq!(axis.ticks(), [2e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2e7, 5e7, 1e8, 2e8]);
    }
}
