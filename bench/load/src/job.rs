//! From the command line to what is sent: kinds, sources, lanes.

use std::collections::BTreeSet;

use crate::args::{Captchas, Encoding, Events, HitForm, Hits, Load, Mode, ReadWhat};
use crate::client::Client;
use crate::days;
use crate::drive::{Lane, share_out};
use crate::events::{Captcha, Form, Hit, Kind};
use crate::random::{Dice, Keys, fresh};
use crate::source::{Bodies, Budget, Packed, Pool, Reads, Shape, Source};
use crate::template::{Shares, Slots};

/// Slots of a pool of single events, and what their text may take: small enough to stay near the processor.
const POOL_SLOTS: u64 = 16_384;
const POOL_BYTES: u64 = 64 << 20;
/// A body of this size is refused by the server anyway.
const BODY_BYTES_MAX: u64 = 256 << 20;
/// Events that are compressed ahead unless told otherwise.
const PACKED_EVENTS: u64 = 1_000_000;
/// Sites of the report that are asked one by one.
const SITES_READ_MAX: usize = 200;
/// Templates draw apart from each other and from everything else.
const DRAWS_OF_TEMPLATES: u64 = 1 << 32;

/// A lane as the command line asks for it.
struct Wanted<'a> {
    name: &'static str,
    kind: &'a Kind,
    events: &'a Events,
    connections: usize,
    /// Events a second.
    per_s: Option<f64>,
    count: Option<u64>,
}

/// What all sources of a run have in common.
pub struct Job {
    pub seed: u64,
    pub run_id: u64,
    pub keys: Keys,
    host: String,
    threads: u64,
    templates: u32,
}

impl Job {
    pub fn new(mode: &Mode, host: &str) -> Job {
        let common = mode.common();
        let (seed, run_id) = (common.seed.unwrap_or_else(fresh), common.run_id.unwrap_or_else(fresh));
        let keys = Keys::new(seed, run_id);
        Job { seed, run_id, keys, host: host.to_owned(), threads: u64::from(common.threads), templates: 0 }
    }

    /// The events of this command; of `report` those that it prepares.
    pub fn kind(&self, mode: &Mode) -> Kind {
        match mode {
            Mode::Single(single) => self.captchas(&single.captchas, Some(&single.events)),
            Mode::Bulk(bulk) => self.captchas(&bulk.captchas, Some(&bulk.events)),
            Mode::Mixed(mixed) => self.captchas(&mixed.captchas, Some(&mixed.events)),
            Mode::Report(report) => self.captchas(&report.captchas, None),
            Mode::Hits(hits) => self.hits(hits),
        }
    }

    fn captchas(&self, captchas: &Captchas, events: Option<&Events>) -> Kind {
        let last_day = captchas.last_day.unwrap_or_else(|| (days::now_s() / 86_400) as i64);
        let (late, bytes) = events.map_or((false, 0), |events| (events.late > 0.0, events.event_bytes as usize));
        Kind::Captcha(Captcha::new(&self.keys, captchas.sites, captchas.days, last_day, late, bytes))
    }

    fn hits(&self, hits: &Hits) -> Kind {
        Kind::Hit(Hit {
            hour_ms: days::now_s() / 3600 * 3_600_000,
            late_hours: hits.hours,
            users: hits.users,
            run: self.keys.draw(self.run_id),
            keyed: !hits.no_ids,
            event_bytes: hits.events.event_bytes as usize,
        })
    }

    /// The lanes of this command.
    pub fn lanes(&mut self, mode: &Mode, kind: &Kind, client: &mut Client) -> Result<Vec<Lane>, String> {
        match mode {
            Mode::Single(single) => {
                let (per_s, count) = (single.load.rate, single.load.events);
                let (events, connections) = (&single.events, single.connections);
                let wanted = Wanted { name: "single", kind, events, connections, per_s, count };
                Ok(vec![self.singles(&wanted, Form::Json, None)?])
            }
            Mode::Bulk(bulk) => {
                let (per_s, count) = (bulk.load.rate, bulk.load.events);
                let (events, connections) = (&bulk.events, bulk.connections);
                let wanted = Wanted { name: "bulk", kind, events, connections, per_s, count };
                Ok(vec![self.bodies(&wanted, bulk.lines)?])
            }
            Mode::Mixed(mixed) => {
                let (events, connections) = (&mixed.events, mixed.connections);
                let singles =
                    Wanted { name: "single", kind, events, connections, per_s: Some(mixed.rate), count: None };
                let (connections, per_s) = (mixed.bulk_connections, mixed.bulk_rate);
                let bulk = Wanted { name: "bulk", kind, events, connections, per_s, count: None };
                Ok(vec![self.singles(&singles, Form::Json, None)?, self.bodies(&bulk, mixed.lines)?])
            }
            Mode::Report(report) => {
                let sites = match kind {
                    Kind::Captcha(captcha) if report.prepare > 0 => captcha.sites().to_vec(),
                    _ => sites_of_report(client)?,
                };
                let requests = self.report_requests(report.reads, report.limit, &sites);
                Ok(vec![self.reads(&requests, report.connections, &report.load)])
            }
            Mode::Hits(hits) => Ok(vec![self.hit_lane(hits, kind)?]),
        }
    }

    fn hit_lane(&mut self, hits: &Hits, kind: &Kind) -> Result<Lane, String> {
        if hits.no_ids && hits.events.duplicates > 0.0 {
            return Err("--duplicates: hits without an event_id have no duplicates: leave out --no-ids".to_owned());
        }
        let (per_s, count, connections) = (hits.load.rate, hits.load.events, hits.connections);
        let wanted = Wanted { name: "hits", kind, events: &hits.events, connections, per_s, count };
        if hits.form == HitForm::Ndjson {
            return self.bodies(&wanted, hits.lines);
        }
        if hits.events.encoding != Encoding::Plain || hits.events.event_bytes > 0 {
            return Err("--encoding and --event-bytes are for bodies: add --form ndjson".to_owned());
        }
        let Kind::Hit(Hit { hour_ms, .. }) = kind else { return Err("hits are of the kind hit".to_owned()) };
        let read = (hits.reads > 0.0).then(|| (self.get(&format!("/analytics?timestamp={hour_ms}")), hits.reads));
        self.singles(&wanted, Form::Query, read)
    }

    /// Single events over whatever connection is free.
    fn singles(&mut self, wanted: &Wanted, form: Form, read: Option<(Vec<u8>, f64)>) -> Result<Lane, String> {
        if wanted.events.encoding != Encoding::Plain {
            return self.packed(wanted, 1);
        }
        let fitting = (POOL_BYTES / (u64::from(wanted.events.event_bytes) + 400)).clamp(16, POOL_SLOTS);
        let workers = self.shares(wanted, 1).map(|(connections, budget)| {
            let slots = self.slots(fitting.min(budget.0) as u32, wanted);
            (Source::Pool(Pool::new(slots, self.shape(wanted), form, read.clone(), budget)), connections)
        });
        let workers = workers.collect();
        let streams = if read.is_some() { vec![wanted.name, "reads"] } else { vec![wanted.name] };
        Ok(Lane { streams, workers, per_s: wanted.per_s })
    }

    /// Bodies of `lines` events, one under way on each connection.
    fn bodies(&mut self, wanted: &Wanted, lines: u32) -> Result<Lane, String> {
        let lines = wanted.count.map_or(lines, |count| count.min(u64::from(lines)) as u32);
        if u64::from(lines) * u64::from(wanted.events.event_bytes.max(200)) > BODY_BYTES_MAX {
            return Err(format!("--lines {lines}: bodies of more than {} MiB are not made", BODY_BYTES_MAX >> 20));
        }
        if wanted.events.encoding != Encoding::Plain {
            return self.packed(wanted, lines);
        }
        let workers = self.shares(wanted, lines).map(|(connections, budget)| {
            let slots = (0..connections).map(|_| self.slots(lines, wanted)).collect();
            (Source::Bodies(Bodies::new(slots, self.shape(wanted), budget)), connections)
        });
        let workers = workers.collect();
        Ok(Lane { streams: vec![wanted.name], workers, per_s: wanted.per_s.map(|per_s| per_s / f64::from(lines)) })
    }

    /// Bodies that are compressed now.
    fn packed(&mut self, wanted: &Wanted, lines: u32) -> Result<Lane, String> {
        let coding = wanted.events.encoding.coding().ok_or("nothing to compress")?;
        let all = wanted.events.pool.or(wanted.count).unwrap_or(PACKED_EVENTS);
        let shares = self.shares(wanted, lines);
        let requests = share_out(all.div_ceil(u64::from(lines)), shares.len() as u64);
        let workers = shares.zip(requests).map(|((connections, budget), requests)| {
            let parts = requests.clamp(1, (POOL_SLOTS / u64::from(lines)).max(1));
            let slots = self.slots((parts * u64::from(lines)) as u32, wanted);
            let packed = Packed::new(slots, lines, requests, self.shape(wanted), coding, budget);
            Ok((Source::Packed(packed.map_err(|error| format!("compressing failed: {error}"))?), connections))
        });
        let workers = workers.collect::<Result<Vec<_>, String>>()?;
        Ok(Lane { streams: vec![wanted.name], workers, per_s: wanted.per_s.map(|per_s| per_s / f64::from(lines)) })
    }

    fn shape<'a>(&'a self, wanted: &Wanted<'a>) -> Shape<'a> {
        Shape { kind: wanted.kind, keys: self.keys, host: &self.host }
    }

    /// For each worker its connections, and how many requests of so many lines it may take.
    fn shares(&self, wanted: &Wanted, lines: u32) -> std::vec::IntoIter<(usize, Budget)> {
        let threads = self.threads.min(wanted.connections.max(1) as u64);
        let budgets = budgets(wanted.count.map(|count| count.div_ceil(u64::from(lines))), threads);
        let connections =
            share_out(wanted.connections as u64, threads).into_iter().map(|connections| connections as usize);
        connections.zip(budgets).collect::<Vec<_>>().into_iter()
    }

    fn reads(&mut self, requests: &[(Vec<u8>, u8)], connections: usize, load: &Load) -> Lane {
        let threads = self.threads.min(connections.max(1) as u64);
        let shares = share_out(connections as u64, threads).into_iter().zip(budgets(load.events, threads)).enumerate();
        let worker = |(number, (connections, budget)): (usize, (u64, Budget))| {
            let first = number * requests.len() / threads as usize;
            (Source::Reads(Reads::new(requests.to_vec(), first, budget)), connections as usize)
        };
        Lane { streams: vec!["whole", "site"], workers: shares.map(worker).collect(), per_s: load.rate }
    }

    /// The events that `report` sends before it reads.
    pub fn prepare(&mut self, kind: &Kind, count: u64) -> Result<Lane, String> {
        let plain =
            Events { duplicates: 0.0, late: 0.0, bad: 0.0, event_bytes: 0, encoding: Encoding::Plain, pool: None };
        let (per_s, count) = (None, Some(count));
        self.bodies(&Wanted { name: "prepare", kind, events: &plain, connections: 4, per_s, count }, 10_000)
    }

    fn report_requests(&self, what: ReadWhat, limit: u32, sites: &[String]) -> Vec<(Vec<u8>, u8)> {
        let whole = || (self.get(&format!("/v1/report?limit={limit}")), 0);
        let site = |site: &String| (self.get(&format!("/v1/report?limit={limit}&site_id={site}")), 1);
        match what {
            ReadWhat::Whole => vec![whole()],
            ReadWhat::Site => sites.iter().map(site).collect(),
            ReadWhat::Mix => sites.iter().flat_map(|one| [whole(), site(one)]).collect(),
        }
    }

    fn get(&self, path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host).into_bytes()
    }

    fn slots(&mut self, count: u32, wanted: &Wanted) -> Slots {
        let Events { duplicates, late, bad, .. } = *wanted.events;
        let template = self.templates;
        self.templates += 1;
        let mut dice = Dice::new(self.seed, DRAWS_OF_TEMPLATES + u64::from(template));
        Slots::draw(template, count.max(1), wanted.kind, Shares { duplicates, late, bad }, &mut dice)
    }
}

/// The workers' shares of a number of requests.
fn budgets(requests: Option<u64>, workers: u64) -> Vec<Budget> {
    match requests {
        Some(requests) => share_out(requests, workers).into_iter().map(Budget).collect(),
        None => vec![Budget::UNLIMITED; workers as usize],
    }
}

/// Some of the sites that the report knows.
fn sites_of_report(client: &mut Client) -> Result<Vec<String>, String> {
    let body = client.get("/v1/report?limit=10000")?;
    let report: serde_json::Value =
        serde_json::from_slice(&body).map_err(|error| format!("GET /v1/report: not the JSON of a report: {error}"))?;
    let rows = report["counters"].as_array().map_or(&[][..], Vec::as_slice);
    let sites: BTreeSet<&str> = rows.iter().filter_map(|row| row["site_id"].as_str()).collect();
    if sites.is_empty() {
        return Err("the report is empty: send events before, for example by --prepare 100000".to_owned());
    }
    Ok(sites.into_iter().take(SITES_READ_MAX).map(str::to_owned).collect())
}
