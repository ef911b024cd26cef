//! Everything that was measured, as one JSON object.

use std::time::UNIX_EPOCH;

use serde_json::{Map, Value, json};

use crate::figures::{self, PERCENTILES};
use crate::summary::Phase;
use crate::tally::{Tally, Trouble};
use crate::verify::Comparison;

/// What the whole run is called by.
pub struct Run<'a> {
    pub mode: &'a str,
    pub address: String,
    pub seed: u64,
    pub run_id: u64,
    pub arguments: Vec<String>,
}

/// The object. `verdict` is None without --verify.
pub fn of(run: &Run, phases: &[Phase], verdict: Option<&Result<Comparison, String>>, exit: u8) -> Value {
    json!({
        "program": concat!("millrace-load ", env!("CARGO_PKG_VERSION")),
        "mode": run.mode,
        "target": run.address,
        "seed": run.seed,
        "run_id": run.run_id,
        "arguments": run.arguments,
        "exit_code": exit,
        "phases": phases.iter().map(phase).collect::<Vec<_>>(),
        "verify": verdict.map(comparison),
    })
}

fn phase(phase: &Phase) -> Value {
    let outcome = &phase.outcome;
    let streams: Map<String, Value> =
        outcome.streams.iter().map(|(name, tally)| ((*name).to_owned(), stream(phase, tally))).collect();
    let all = outcome.all();
    let troubles: Map<String, Value> =
        outcome.first_troubles.iter().map(|(trouble, text)| (trouble.name().to_owned(), json!(text))).collect();
    json!({
        "name": if phase.suffix.is_empty() { "pass-1" } else { phase.suffix.trim_start_matches(' ') },
        "started_at_unix_s": outcome.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
        "seconds": outcome.seconds,
        "seconds_with_warm_up": outcome.all_seconds,
        "streams": streams,
        "first_errors": troubles,
        "warm_up_errors": outcome.warm_up.failed(),
        "events_accepted_with_warm_up": all.accepted,
        "requests_answered_with_warm_up": all.answered,
        "gave_up": outcome.gave_up,
        "interrupted": outcome.interrupted,
        "own_cpu_s": outcome.cpu.as_secs_f64(),
        "own_worker_cpu_s": outcome.workers_cpu.as_secs_f64(),
        "server_cpu_s": phase.servers.iter().map(|(name, used)| (name.clone(), json!(used))).collect::<Map<_, _>>(),
        "visible_s": phase.visible_s,
        "visible_events_per_s": phase.visible_s.filter(|visible| *visible > 0.0).map(|visible| all.accepted as f64 / visible),
    })
}

fn stream(phase: &Phase, tally: &Tally) -> Value {
    let errors: Map<String, Value> = Trouble::ALL
        .iter()
        .map(|trouble| (trouble.name().to_owned(), json!(tally.troubles(*trouble))))
        .filter(|(_, count)| *count != 0)
        .collect();
    let statuses: Map<String, Value> =
        tally.statuses.iter().map(|(status, count)| (status.to_string(), json!(count))).collect();
    json!({
        "requests_sent": tally.sent,
        "requests_answered": tally.answered,
        "requests_failed": tally.failed(),
        "requests_unsent": tally.unsent,
        "requests_per_s": phase.requests_per_s(tally),
        "events_sent": tally.events,
        "events_accepted": tally.accepted,
        "events_rejected": tally.rejected,
        "events_per_s": phase.events_per_s(tally),
        "bytes_sent": tally.bytes_sent,
        "bytes_received": tally.bytes_received,
        "statuses": statuses,
        "errors": errors,
        "latency_ms": latency(tally),
    })
}

fn latency(tally: &Tally) -> Value {
    let (histogram, ms) = (&tally.latency, |ns: f64| ns / 1e6);
    if histogram.is_empty() {
        return Value::Null;
    }
    let mut values = Map::new();
    values.insert("count".to_owned(), json!(histogram.len()));
    values.insert("min".to_owned(), json!(ms(histogram.min() as f64)));
    values.insert("mean".to_owned(), json!(ms(histogram.mean())));
    for (name, percentile) in PERCENTILES {
        values.insert(name.to_owned(), json!(ms(figures::at(histogram, percentile))));
    }
    values.insert("max".to_owned(), json!(ms(histogram.max() as f64)));
    Value::Object(values)
}

fn comparison(verdict: &Result<Comparison, String>) -> Value {
    let found = match verdict {
        Ok(found) => found,
        Err(error) => return json!({ "agrees": false, "error": error }),
    };
    let differences: Vec<Value> = found
        .differences
        .iter()
        .take(1000)
        .map(|one| json!({ "counter": one.counter, "found": one.found, "at_least": one.at_least, "at_most": one.at_most }))
        .collect();
    json!({
        "agrees": found.differences.is_empty(),
        "counters": found.counters,
        "events_acknowledged": found.acknowledged,
        "events_uncertain": found.uncertain,
        "differing": found.differences.len(),
        "differences": differences,
    })
}
