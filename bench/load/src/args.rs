//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::source::Coding;
use crate::values::{connections, day, duration, rate, share};

/// Loads millrace with events or reads, and tells how fast and how soon it answers.
///
/// Bodies are made before the run and only their keys are rewritten in it, so that the load costs little. Keys, sites and
/// users are new in each run: --seed and --run-id, which are printed, make the same ones again. Each command has --help.
#[derive(Debug, Parser)]
#[command(name = "millrace-load", version, max_term_width = 120)]
pub struct Arguments {
    #[command(subcommand)]
    pub mode: Mode,
}

#[derive(Debug, Subcommand)]
pub enum Mode {
    /// One captcha event a request, POST /v1/events
    Single(Single),
    /// Captcha events in NDJSON bodies, POST /v1/events
    Bulk(Bulk),
    /// Single events at a fixed rate beside a bulk upload as fast as it is taken, with a histogram for each
    Mixed(Mixed),
    /// Reads of GET /v1/report
    Report(Report),
    /// Clicks and impressions: POST /analytics (or NDJSON to /hits), and reads of GET /analytics
    Hits(Hits),
}

const EXIT_CODES: &str = "\
Without --rate each connection sends its next request when the one before is answered (closed loop). With --rate requests \
are due at fixed times, whether or not the server keeps up, and a latency counts from when its request was due: a stall \
delays, and shows in, all that was due in it.

Exit codes: 0 all went well, 1 requests failed (without --tolerate-errors), the report differs or the server is away, \
2 the command line is wrong, 130 interrupted. Ctrl-C ends a run early and tells what it has come to; a second one ends at once.";

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub struct Single {
    /// Connections, each with one request at a time
    #[arg(long, short, default_value_t = 64, value_name = "N", value_parser = connections)]
    pub connections: usize,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub captchas: Captchas,
    #[command(flatten)]
    pub events: Events,
    #[command(flatten)]
    pub check: Check,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub struct Bulk {
    /// Connections, each with one body at a time
    #[arg(long, short, default_value_t = 4, value_name = "N", value_parser = connections)]
    pub connections: usize,
    /// Events in a body
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub lines: u32,
    /// Send everything so many times; the passes after the first repeat its bodies, byte for byte
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub passes: u32,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub captchas: Captchas,
    #[command(flatten)]
    pub events: Events,
    #[command(flatten)]
    pub check: Check,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub struct Mixed {
    /// Connections for single events
    #[arg(long, short, default_value_t = 64, value_name = "N", value_parser = connections)]
    pub connections: usize,
    /// Single events a second
    #[arg(long, short, default_value_t = 1000.0, value_name = "EVENTS/S", value_parser = rate)]
    pub rate: f64,
    /// Connections for bodies
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = connections)]
    pub bulk_connections: usize,
    /// Events a second in bodies; without it as fast as they are taken
    #[arg(long, value_name = "EVENTS/S", value_parser = rate)]
    pub bulk_rate: Option<f64>,
    /// Events in a body
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub lines: u32,
    /// How long to measure, such as 30s or 5m
    #[arg(long, short, default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    #[command(flatten)]
    pub captchas: Captchas,
    #[command(flatten)]
    pub events: Events,
    #[command(flatten)]
    pub check: Check,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub struct Report {
    /// Connections, each with one request at a time
    #[arg(long, short, default_value_t = 32, value_name = "N", value_parser = connections)]
    pub connections: usize,
    /// What to read: the whole report, one site's at a time, or both in turn
    #[arg(long, default_value = "mix", value_name = "WHAT")]
    pub reads: ReadWhat,
    /// Rows asked for at once
    #[arg(long, default_value_t = 10_000, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// Send so many events before, and read the report of their sites; without it, sites of what is there already are read
    #[arg(long, default_value_t = 0, value_name = "EVENTS")]
    pub prepare: u64,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub captchas: Captchas,
    #[command(flatten)]
    pub check: Check,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES, args_override_self = true)]
pub struct Hits {
    /// Connections, each with one request at a time
    #[arg(long, short, default_value_t = 64, value_name = "N", value_parser = connections)]
    pub connections: usize,
    /// As queries of POST /analytics, or as lines of bodies to POST /hits
    #[arg(long, default_value = "query", value_name = "FORM")]
    pub form: HitForm,
    /// Hits in a body, with --form ndjson
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub lines: u32,
    /// Share of the requests that read GET /analytics of the current hour, with --form query
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub reads: f64,
    /// Different users, all of this run alone
    #[arg(long, default_value_t = 50_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub users: u32,
    /// How many hours before the current one late hits spread over
    #[arg(long, default_value_t = 24, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(1..=8760))]
    pub hours: u32,
    /// Send hits without an event_id: each is new, however often it is sent
    #[arg(long)]
    pub no_ids: bool,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub events: Events,
    #[command(flatten)]
    pub check: Check,
    #[command(flatten)]
    pub common: Common,
}

/// How much, how fast.
#[derive(Debug, Args)]
pub struct Load {
    /// Events a second (reads a second of `report`), at fixed times; without it as fast as they are answered
    #[arg(long, short, value_name = "EVENTS/S", value_parser = rate)]
    pub rate: Option<f64>,
    /// How long to measure, such as 30s or 5m
    #[arg(long, short, default_value = "10s", value_name = "TIME", value_parser = duration, conflicts_with = "events")]
    pub duration: Duration,
    /// Send so many events (reads of `report`) instead, rounded up to whole bodies
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub events: Option<u64>,
}

/// Captcha events.
#[derive(Debug, Args)]
pub struct Captchas {
    /// Sites, all of this run alone
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sites: u32,
    /// Days that events spread over
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// The last of these days; without it today's (UTC)
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub last_day: Option<i64>,
}

/// What events are like.
#[derive(Debug, Args)]
pub struct Events {
    /// Share of events that are sent a second time, on the same connection
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub duplicates: f64,
    /// Share of events from before the days (or hour) of the others
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub late: f64,
    /// Share of events that must be rejected
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub bad: f64,
    /// Fill each event up to so many bytes with a field that is ignored
    #[arg(long, default_value_t = 0, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub event_bytes: u32,
    /// How bodies are sent; compressed ones are made before the run, so their number is bounded
    #[arg(long, default_value = "plain", value_name = "HOW")]
    pub encoding: Encoding,
    /// Events that are compressed before the run; it ends when all are sent. Without it --events, else 1,000,000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=50_000_000))]
    pub pool: Option<u64>,
}

/// The comparison.
#[derive(Debug, Args)]
pub struct Check {
    /// Compare the report with what was sent, and say how long it took to show it
    #[arg(long)]
    pub verify: bool,
    /// How long to wait for the report to show what was sent
    #[arg(long, default_value = "120s", value_name = "TIME", value_parser = duration)]
    pub verify_wait: Duration,
}

/// What all commands have.
#[derive(Debug, Args)]
pub struct Common {
    /// Where millrace listens
    #[arg(long, default_value = "http://127.0.0.1:8000", value_name = "http://HOST:PORT")]
    pub url: String,
    /// Load a server that is not on this machine
    #[arg(long)]
    pub allow_remote: bool,
    /// How long to load before measuring; without it 1s, or nothing when the number of events is bounded (also by compression)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub warm_up: Option<Duration>,
    /// How long an answer may take
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub timeout: Duration,
    /// Threads that send (for each kind of request in `mixed`)
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// What all draws follow from: shares, sites, times
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// What makes keys, sites and users those of this run
    #[arg(long, value_name = "N")]
    pub run_id: Option<u64>,
    /// Exit with 0 although requests failed, and go on while the server is away
    #[arg(long)]
    pub tolerate_errors: bool,
    /// Write PREFIX.hlog, PREFIX.svg and PREFIX.json
    #[arg(long, value_name = "PREFIX")]
    pub out: Option<PathBuf>,
    /// Write HdrHistogram's log: for each second and kind of request one histogram, in nanoseconds
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
    /// Write a plot of the percentiles
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write all that was measured
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Folder of NAME.pid files, such as var/run of scripts/up: tell their processes' CPU time too
    #[arg(long, value_name = "FOLDER")]
    pub pids: Option<PathBuf>,
    /// No progress
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadWhat {
    Whole,
    Site,
    Mix,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HitForm {
    Query,
    Ndjson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    Plain,
    Gzip,
    Zstd,
}

impl Encoding {
    pub fn coding(self) -> Option<Coding> {
        match self {
            Encoding::Plain => None,
            Encoding::Gzip => Some(Coding::Gzip),
            Encoding::Zstd => Some(Coding::Zstd),
        }
    }
}

impl Mode {
    pub fn name(&self) -> &'static str {
        match self {
            Mode::Single(_) => "single",
            Mode::Bulk(_) => "bulk",
            Mode::Mixed(_) => "mixed",
            Mode::Report(_) => "report",
            Mode::Hits(_) => "hits",
        }
    }

    pub fn common(&self) -> &Common {
        match self {
            Mode::Single(single) => &single.common,
            Mode::Bulk(bulk) => &bulk.common,
            Mode::Mixed(mixed) => &mixed.common,
            Mode::Report(report) => &report.common,
            Mode::Hits(hits) => &hits.common,
        }
    }

    pub fn check(&self) -> &Check {
        match self {
            Mode::Single(single) => &single.check,
            Mode::Bulk(bulk) => &bulk.check,
            Mode::Mixed(mixed) => &mixed.check,
            Mode::Report(report) => &report.check,
            Mode::Hits(hits) => &hits.check,
        }
    }

    /// Whether the requests are made before the run, so that there are only so many.
    pub fn is_packed(&self) -> bool {
        let events = match self {
            Mode::Single(single) => &single.events,
            Mode::Bulk(bulk) => &bulk.events,
            Mode::Mixed(mixed) => &mixed.events,
            Mode::Hits(hits) => &hits.events,
            Mode::Report(_) => return false,
        };
        events.encoding != Encoding::Plain
    }

    /// How long to measure; None when the number of events decides.
    pub fn duration(&self) -> Option<Duration> {
        let load = match self {
            Mode::Mixed(mixed) => return Some(mixed.duration),
            Mode::Single(single) => &single.load,
            Mode::Bulk(bulk) => &bulk.load,
            Mode::Report(report) => &report.load,
            Mode::Hits(hits) => &hits.load,
        };
        load.events.is_none().then_some(load.duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn events_or_a_duration() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.mode.duration());
        assert_eq!(parse("millrace-load single").unwrap(), Some(Duration::from_secs(10)));
        assert_eq!(parse("millrace-load bulk --events 5").unwrap(), None);
        assert!(parse("millrace-load bulk --events 5 --duration 3s").is_err());
    }
}
