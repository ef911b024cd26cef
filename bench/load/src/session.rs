//! One run of the program, from its arguments to its exit code.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::args::{Arguments, Common, Mode};
use crate::client::Client;
use crate::cpu;
use crate::drive::{self, Lane, Plan, Second};
use crate::events::Kind;
use crate::figures;
use crate::hlog::Hlog;
use crate::job::Job;
use crate::json;
use crate::ledger::Sent;
use crate::out::{self, Progress};
use crate::plot;
use crate::source::Source;
use crate::summary::{self, Phase};
use crate::target::Target;
use crate::verify::{Comparison, Verifier};

/// Something failed, or the report differs.
const FAILED: u8 = 1;
/// The command line is wrong.
const MISUSED: u8 = 2;
/// It was ended early by a signal, and nothing else was wrong.
const INTERRUPTED: u8 = 130;
/// Descriptors beside those of connections.
const DESCRIPTORS_BESIDE: u64 = 64;

pub fn run(arguments: &Arguments) -> ExitCode {
    let mode = &arguments.mode;
    let target = match Target::of(&mode.common().url, mode.common().allow_remote) {
        Ok(target) => target,
        Err(text) => {
            out::error(text);
            return ExitCode::from(MISUSED);
        }
    };
    match Session::new(mode, target).and_then(Session::run) {
        Ok(code) => ExitCode::from(code),
        Err(text) => {
            out::error(text);
            ExitCode::from(FAILED)
        }
    }
}

/// A run under way.
struct Session<'a> {
    mode: &'a Mode,
    target: Target,
    job: Job,
    kind: Kind,
    plan: Plan,
    progress: Progress,
    verifier: Option<Verifier>,
    log: Option<Hlog>,
    started: Instant,
    phases: Vec<Phase>,
    /// Sources whose events the report must show, that are not driven any more.
    done: Vec<Sent>,
}

impl<'a> Session<'a> {
    fn new(mode: &'a Mode, target: Target) -> Result<Session<'a>, String> {
        let (common, check) = (mode.common(), mode.check());
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The first ends the run early, the second ends the program.
            signal_hook::flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&interrupted))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
                .map_err(|error| format!("signals cannot be caught: {error}"))?;
        }
        let duration = mode.duration();
        let warm_up = if duration.is_some() && !mode.is_packed() { Duration::from_secs(1) } else { Duration::ZERO };
        let plan = Plan {
            address: target.address,
            warm_up: common.warm_up.unwrap_or(warm_up),
            duration,
            timeout: common.timeout,
            tolerate: common.tolerate_errors,
            interrupted,
        };
        let job = Job::new(mode, &target.host);
        let kind = job.kind(mode);
        let client = || Client::new(target.clone(), common.timeout);
        let verifier = check.verify.then(|| Verifier::new(client(), job.keys, check.verify_wait));
        let log = match hlog_path(common) {
            Some(path) => {
                let title = format!("millrace-load {}, seed {}, run id {}", mode.name(), job.seed, job.run_id);
                let made = Hlog::create(&path, SystemTime::now(), title);
                Some(made.map_err(|error| format!("{} cannot be written: {error}", path.display()))?)
            }
            None => None,
        };
        let progress = Progress::new(common.quiet);
        let (started, phases, done) = (Instant::now(), Vec::new(), Vec::new());
        Ok(Session { mode, target, job, kind, plan, progress, verifier, log, started, phases, done })
    }

    fn run(mut self) -> Result<u8, String> {
        out::line(self.title());
        if let Some(verifier) = &mut self.verifier {
            verifier.begin(&self.kind)?;
        }
        if let Mode::Report(report) = self.mode
            && report.prepare > 0
        {
            self.prepare(report.prepare)?;
        }
        let mut client = Client::new(self.target.clone(), self.plan.timeout);
        let mut lanes = self.job.lanes(self.mode, &self.kind, &mut client)?;
        drop(client);
        raise_descriptors(
            lanes.iter().flat_map(|lane| &lane.workers).map(|(_, connections)| *connections as u64).sum(),
        )?;
        let passes = if let Mode::Bulk(bulk) = self.mode { bulk.passes } else { 1 };
        for pass in 1..=passes {
            let suffix = if pass > 1 { format!(" pass-{pass}") } else { String::new() };
            let shapes: Vec<_> =
                lanes.iter().map(|lane| (lane.streams.clone(), lane.per_s, connections(lane))).collect();
            let plan = if pass > 1 {
                Plan { warm_up: Duration::ZERO, duration: None, ..self.plan.clone() }
            } else {
                self.plan.clone()
            };
            let sources = self.pass(&plan, lanes, suffix)?;
            lanes = shapes
                .into_iter()
                .zip(sources)
                .map(|((streams, per_s, connections), sources)| Lane {
                    streams,
                    per_s,
                    workers: sources.into_iter().zip(connections).collect(),
                })
                .collect();
            if self.phases.last().is_some_and(|phase| phase.outcome.interrupted || phase.outcome.gave_up.is_some()) {
                break;
            }
            lanes.iter_mut().flat_map(|lane| &mut lane.workers).for_each(|(source, _)| source.again());
        }
        self.done.extend(lanes.iter().flat_map(|lane| &lane.workers).flat_map(|(source, _)| source.sent()));
        let used_up = lanes.iter().flat_map(|lane| &lane.workers).find_map(|(source, _)| source.used_up());
        self.finish(used_up)
    }

    /// Sends the events whose report is read later; they are not measured.
    fn prepare(&mut self, count: u64) -> Result<(), String> {
        let lane = self.job.prepare(&self.kind, count)?;
        self.progress.say(format!("sending {} events to read the report of", figures::count(count as f64)));
        let plan = Plan { warm_up: Duration::ZERO, duration: None, ..self.plan.clone() };
        let outcome = drive::run(&plan, vec![lane], |_| {}).map_err(|error| self.unreachable(&error))?;
        if let Some((trouble, text)) = outcome.first_troubles.first() {
            return Err(format!("{}: preparing failed: {}: {text}", self.target.address, trouble.name()));
        }
        self.done = outcome.sources.iter().flatten().flat_map(Source::sent).collect();
        let wait = self.mode.check().verify_wait;
        Verifier::new(Client::new(self.target.clone(), self.plan.timeout), self.job.keys, wait).settle(&self.kind)?;
        Ok(())
    }

    /// Drives the lanes once; gives their sources back.
    fn pass(&mut self, plan: &Plan, lanes: Vec<Lane>, suffix: String) -> Result<Vec<Vec<Source>>, String> {
        let servers_before = self.mode.common().pids.as_deref().map(cpu::of_pid_files);
        let base = self.started.elapsed();
        let (progress, log) = (&mut self.progress, &self.log);
        let outcome = drive::run(plan, lanes, |second| {
            progress.say(second_line(second));
            if let Some(log) = log.as_ref().filter(|_| !second.is_warm_up) {
                for (name, tally) in &second.streams {
                    // A tag has neither blanks nor commas.
                    let tag = format!("{name}{}", suffix.replace(' ', "-"));
                    log.add(tag, base + second.start, second.length, tally.latency.clone());
                }
            }
        });
        self.progress.end();
        let mut outcome = outcome.map_err(|error| self.unreachable(&error))?;
        let sources = std::mem::take(&mut outcome.sources);
        let visible =
            if outcome.gave_up.is_none() { self.wait_until_visible(&sources, !suffix.is_empty())? } else { None };
        let visible_s = visible.map(|seen| (seen - outcome.began).as_secs_f64());
        let servers = servers_before.map(|before| spent(&before, self.mode.common())).unwrap_or_default();
        self.phases.push(Phase { suffix, outcome, servers, visible_s });
        Ok(sources)
    }

    /// With --verify: when the report first showed all that these sources have sent. A repeated pass changes nothing that it
    /// shows, so then it is when it showed events that were sent after it.
    fn wait_until_visible(&mut self, sources: &[Vec<Source>], again: bool) -> Result<Option<Instant>, String> {
        let Some(verifier) = self.verifier.as_mut().filter(|_| !matches!(self.mode, Mode::Report(_))) else {
            return Ok(None);
        };
        self.progress.say("waiting for the report");
        let sent: Vec<Sent> = sources.iter().flatten().flat_map(Source::sent).collect();
        let seen = if again { None } else { verifier.visible(&self.kind, &sent)? };
        let settled = verifier.settle(&self.kind);
        self.progress.end();
        match settled {
            Ok(settled) => Ok(if again { Some(settled) } else { seen }),
            // The comparison at the end will say it again.
            Err(_) => Ok(None),
        }
    }

    /// The summary, the comparison, the files, the exit code.
    fn finish(mut self, used_up: Option<String>) -> Result<u8, String> {
        out::line("");
        summary::print(&self.phases);
        if let Some(text) = used_up {
            out::line(text);
        }
        let mut code = 0;
        let failed: u64 = self.phases.iter().map(Phase::failed).sum();
        if failed > 0 && !self.mode.common().tolerate_errors {
            code = FAILED;
        }
        let verdict = self.compare();
        match &verdict {
            Some(Ok(comparison)) => {
                summary::print_comparison(comparison);
                code = if comparison.differences.is_empty() { code } else { FAILED };
            }
            Some(Err(error)) => {
                out::error(format!("the report could not be compared: {error}"));
                code = FAILED;
            }
            None => {}
        }
        for phase in &self.phases {
            summary::complaints(phase, &self.target.address.to_string()).into_iter().for_each(out::error);
            if let Some(text) = &phase.outcome.gave_up {
                out::error(format!("{text}: gave up; start it again, or add --tolerate-errors to wait for it"));
                code = FAILED;
            }
            if phase.outcome.interrupted {
                out::error("interrupted: the figures are those until then");
                code = if code == 0 { INTERRUPTED } else { code };
            }
        }
        self.write_files(verdict.as_ref(), code)?;
        Ok(code)
    }

    fn compare(&mut self) -> Option<Result<Comparison, String>> {
        let verifier = self.verifier.as_mut()?;
        if matches!(self.mode, Mode::Report(_)) && self.done.is_empty() {
            return Some(Err("nothing was sent: --verify of report needs --prepare".to_owned()));
        }
        let unseen = self.phases.iter().any(|phase| phase.visible_s.is_none()) && !matches!(self.mode, Mode::Report(_));
        if unseen && let Err(error) = verifier.settle(&self.kind) {
            return Some(Err(error));
        }
        Some(verifier.compare(&self.kind, &self.done))
    }

    fn write_files(&mut self, verdict: Option<&Result<Comparison, String>>, code: u8) -> Result<(), String> {
        let common = self.mode.common();
        let mut written = Vec::new();
        if let Some((log, path)) = self.log.take().zip(hlog_path(common)) {
            log.finish().map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
            written.push(path);
        }
        let mut write = |path: Option<PathBuf>, text: &dyn Fn() -> String| match path {
            Some(path) => fs::write(&path, text())
                .map(|()| written.push(path.clone()))
                .map_err(|error| format!("{} cannot be written: {error}", path.display())),
            None => Ok(()),
        };
        let histograms: Vec<_> =
            self.phases.iter().flat_map(Phase::streams).map(|(name, tally)| (name, &tally.latency)).collect();
        let title = format!("millrace-load {}", self.mode.name());
        write(path_of(common, &common.svg, "svg"), &|| plot::svg(&title, &pace(self.mode), &histograms))?;
        let run = json::Run {
            mode: self.mode.name(),
            address: self.target.address.to_string(),
            seed: self.job.seed,
            run_id: self.job.run_id,
            arguments: std::env::args().skip(1).collect(),
        };
        let told = || format!("{:#}\n", json::of(&run, &self.phases, verdict, code));
        write(path_of(common, &common.json, "json"), &told)?;
        if !written.is_empty() {
            let names: Vec<_> = written.iter().map(|path| path.display().to_string()).collect();
            out::line(format!("written: {}", names.join(", ")));
        }
        Ok(())
    }

    fn title(&self) -> String {
        let (mode, address) = (self.mode.name(), &self.target.host);
        let (seed, run_id) = (self.job.seed, self.job.run_id);
        format!("{mode} to {address}: {}; --seed {seed} --run-id {run_id}", pace(self.mode))
    }

    fn unreachable(&self, error: &std::io::Error) -> String {
        format!(
            "{}: {error}: is millrace running there? scripts/up starts it, --url names another",
            self.target.address
        )
    }
}

/// Connections, pace and length in words.
fn pace(mode: &Mode) -> String {
    let closed = |connections: usize| format!("{connections} connections in closed loop");
    let load = |connections: usize, rate: Option<f64>| match rate {
        Some(rate) => format!("{} a second over {connections} connections", figures::rate(rate)),
        None => closed(connections),
    };
    let how = match mode {
        Mode::Single(single) => load(single.connections, single.load.rate),
        Mode::Bulk(bulk) => load(bulk.connections, bulk.load.rate) + &format!(", {} lines a body", bulk.lines),
        Mode::Mixed(mixed) => {
            let singles = load(mixed.connections, Some(mixed.rate));
            format!(
                "singles {singles}, bulk {}, {} lines a body",
                load(mixed.bulk_connections, mixed.bulk_rate),
                mixed.lines
            )
        }
        Mode::Report(report) => load(report.connections, report.load.rate),
        Mode::Hits(hits) => load(hits.connections, hits.load.rate),
    };
    match mode.duration() {
        Some(duration) => format!("{how}, {duration:?}"),
        None => how,
    }
}

fn connections(lane: &Lane) -> Vec<usize> {
    lane.workers.iter().map(|(_, connections)| *connections).collect()
}

/// A second as progress shows it.
fn second_line(second: &Second) -> String {
    let mut line = format!("{:>5.0} s", (second.start + second.length).as_secs_f64());
    if second.is_warm_up {
        line += " (warm-up)";
    }
    for (name, tally) in &second.streams {
        let seconds = second.length.as_secs_f64();
        line += &format!("  {name} {}/s", figures::rate(summary::per(tally.answered as f64, seconds)));
        if tally.events > tally.sent {
            line += &format!(" ({} events/s)", figures::rate(summary::per(tally.accepted as f64, seconds)));
        }
        if !tally.latency.is_empty() {
            let (half, most) = (figures::at(&tally.latency, 50.0), figures::at(&tally.latency, 99.0));
            line += &format!(" p50 {} p99 {}", figures::time(half), figures::time(most));
        }
        if tally.failed() > 0 {
            line += &format!(" failed {}", figures::count(tally.failed() as f64));
        }
    }
    line
}

/// What the processes of the pid files have used since then.
fn spent(before: &[(String, f64)], common: &Common) -> Vec<(String, f64)> {
    let now = common.pids.as_deref().map(cpu::of_pid_files).unwrap_or_default();
    let was = |name: &str| before.iter().find(|(known, _)| known == name).map_or(0.0, |(_, used)| *used);
    now.into_iter().map(|(name, used)| (name.clone(), (used - was(&name)).max(0.0))).collect()
}

fn path_of(common: &Common, named: &Option<PathBuf>, extension: &str) -> Option<PathBuf> {
    named.clone().or_else(|| {
        let mut path = common.out.clone()?.into_os_string();
        path.push(format!(".{extension}"));
        Some(path.into())
    })
}

fn hlog_path(common: &Common) -> Option<PathBuf> {
    path_of(common, &common.hlog, "hlog")
}

/// Makes room for so many connections.
fn raise_descriptors(connections: u64) -> Result<(), String> {
    let wanted = connections + DESCRIPTORS_BESIDE;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit { current: limit.maximum.map(|maximum| maximum.min(wanted)), maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) if raised.current.is_none_or(|current| current >= wanted) => Ok(()),
        _ => Err(format!("--connections {connections}: so many files may not be open: run ulimit -n {wanted} before")),
    }
}
