//! The result as a person reads it.

use crate::drive::Outcome;
use crate::figures::{self, PERCENTILES};
use crate::out;
use crate::tally::{Tally, Trouble};
use crate::verify::Comparison;

/// Differences that are printed; all are counted.
const DIFFERENCES_SHOWN: usize = 10;

/// One stretch of the run that was measured by itself: a pass, or all there is.
pub struct Phase {
    /// What its streams' names end with, where there are several phases.
    pub suffix: String,
    pub outcome: Outcome,
    /// CPU seconds of other processes, by name.
    pub servers: Vec<(String, f64)>,
    /// Seconds from its start until the report showed all of it.
    pub visible_s: Option<f64>,
}

impl Phase {
    pub fn streams(&self) -> impl Iterator<Item = (String, &Tally)> {
        self.outcome.streams.iter().map(|(name, tally)| (format!("{name}{}", self.suffix), tally))
    }

    pub fn failed(&self) -> u64 {
        self.outcome.warm_up.failed() + self.outcome.streams.iter().map(|(_, tally)| tally.failed()).sum::<u64>()
    }

    /// Good answers a second.
    pub fn requests_per_s(&self, tally: &Tally) -> f64 {
        per(tally.answered as f64, self.outcome.seconds)
    }

    pub fn events_per_s(&self, tally: &Tally) -> f64 {
        per((tally.accepted + tally.rejected) as f64, self.outcome.seconds)
    }
}

pub fn per(what: f64, of: f64) -> f64 {
    if of > 0.0 { what / of } else { 0.0 }
}

/// Rates, answers and failures, then percentiles, then what it cost.
pub fn print(phases: &[Phase]) {
    let width = phases.iter().flat_map(Phase::streams).map(|(name, _)| name.len()).max().unwrap_or(0).max(8);
    out::line(format!(
        "{:width$} {:>12} {:>12} {:>12} {:>9} {:>9}  answers",
        "", "requests/s", "events/s", "requests", "failed", "unsent"
    ));
    for phase in phases {
        for (name, tally) in phase.streams() {
            let statuses: Vec<_> = tally
                .statuses
                .iter()
                .map(|(status, count)| format!("{status}: {}", figures::count(*count as f64)))
                .collect();
            out::line(format!(
                "{name:width$} {:>12} {:>12} {:>9} {:>9}  {}",
                figures::rate(phase.requests_per_s(tally)),
                if tally.events > 0 { figures::rate(phase.events_per_s(tally)) } else { "-".to_owned() },
                figures::count(tally.failed() as f64),
                figures::count(tally.unsent as f64),
                statuses.join(", ")
            ));
        }
    }
    out::line("");
    let heads: String = PERCENTILES.iter().map(|(name, _)| format!(" {name:>9}")).collect();
    out::line(format!("{:width$}{heads} {:>9} {:>9}", "latency", "max", "mean"));
    for (name, tally) in phases.iter().flat_map(Phase::streams) {
        let latency = &tally.latency;
        if latency.is_empty() {
            continue;
        }
        let values = PERCENTILES.iter().map(|(_, percentile)| figures::at(latency, *percentile));
        let cells: String = values
            .chain([latency.max() as f64, latency.mean()])
            .map(|ns| format!(" {:>9}", figures::time(ns)))
            .collect();
        out::line(format!("{name:width$}{cells}"));
    }
    out::line("");
    phases.iter().for_each(print_costs);
}

fn print_costs(phase: &Phase) {
    let (outcome, title) = (&phase.outcome, format!("cpu{}", phase.suffix));
    let all = outcome.all();
    let (requests, events) = (all.answered, all.accepted + all.rejected);
    let own = outcome.cpu.as_secs_f64();
    let mut line = format!("{title}: millrace-load {own:.2} s in {:.1} s", outcome.all_seconds);
    if events > requests {
        line += &format!(", {} an event", figures::time(own * 1e9 / events.max(1) as f64));
    } else {
        line += &format!(", {} a request", figures::time(own * 1e9 / requests.max(1) as f64));
    }
    for (name, seconds) in &phase.servers {
        line += &format!("; {name} {seconds:.2} s");
    }
    let driven: f64 = phase.servers.iter().map(|(_, seconds)| seconds).sum();
    if driven > 0.0 {
        line += &format!("; own / driven {:.2}", own / driven);
    }
    out::line(line);
    if let Some(visible) = phase.visible_s {
        out::line(format!(
            "visible{}: all of it in the report after {visible:.2} s ({} events/s)",
            phase.suffix,
            figures::rate(per(all.accepted as f64, visible))
        ));
    }
}

/// What went wrong, for standard error.
pub fn complaints(phase: &Phase, address: &str) -> Vec<String> {
    let outcome = &phase.outcome;
    let mut lines = Vec::new();
    for (trouble, text) in &outcome.first_troubles {
        let count: u64 = outcome.streams.iter().map(|(_, tally)| tally.troubles(*trouble)).sum();
        let (what, todo) = match trouble {
            Trouble::Connect => {
                ("connections could not be opened", "is the server running, and has it room for so many?")
            }
            Trouble::Cut => ("requests were cut off without an answer", "look at the server's log"),
            Trouble::Timeout => ("requests had no answer in time", "look at the server's log, or raise --timeout"),
            Trouble::Status => ("requests had another answer than they should", "the answer says why"),
            Trouble::Counts => ("bodies were answered with other counts than they should", "look at what is rejected"),
            Trouble::Broken => ("answers could not be understood", "is this millrace?"),
        };
        let when = if count == 0 { " (in the warm-up)" } else { "" };
        let count = if count == 0 { "some".to_owned() } else { figures::count(count as f64) };
        lines.push(format!("{address}: {count} {what}{when}, first: {text}: {todo}"));
    }
    for (name, tally) in phase.streams().filter(|(_, tally)| tally.unsent > 0) {
        let unsent = figures::count(tally.unsent as f64);
        lines.push(format!(
            "{name}: {unsent} requests were due and not sent: all connections were busy. They count in the latencies with the time they waited; \
             lower --rate or add --connections"
        ));
    }
    lines
}

/// The comparison: on standard output when it agrees, else the differences.
pub fn print_comparison(comparison: &Comparison) {
    let (counters, events) =
        (figures::count(comparison.counters as f64), figures::count(comparison.acknowledged as f64));
    let uncertain = match comparison.uncertain {
        0 => String::new(),
        some => format!(" and up to {} that were not answered", figures::count(some as f64)),
    };
    if comparison.differences.is_empty() {
        out::line(format!("verified: the report shows the {events} distinct events{uncertain} in {counters} counters"));
        return;
    }
    for difference in comparison.differences.iter().take(DIFFERENCES_SHOWN) {
        let expected = if difference.at_least == difference.at_most {
            format!("{}", difference.at_least)
        } else {
            format!("{} to {}", difference.at_least, difference.at_most)
        };
        out::line(format!(
            "differs: {}: the report shows {}, sent were {expected}",
            difference.counter, difference.found
        ));
    }
    let differing = figures::count(comparison.differences.len() as f64);
    out::error(format!(
        "the report differs from what was sent in {differing} of {counters} counters ({events} events{uncertain})"
    ));
}
