//! Runs the appliance: wires all stages in the flow's order. The only place that names every stage.

pub mod accepting;
mod others;
pub mod recognise;
pub mod repair;
mod serving;
mod spooling;
pub mod storing;
mod ways;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::config::{Config, limits};
use crate::door;
use crate::exchange::{Answer, Endpoint, Head};
use crate::kinds::{Kind, KindVisitor, visit_all};
use crate::log::{self, LogError};
use crate::observe::health::{Duty, Health, Live, Ready};
use crate::observe::metrics::{Exposition, Metrics, RouteMetrics};
use crate::observe::systemd;
use crate::shutdown::{Asked, Shutdown};
use crate::spool::{self, SpoolError};
use crate::store::Store;
use crate::writer;
use serving::{Paths, Serving};

/// Threads that talk to ClickHouse: they wait, the work is done elsewhere.
const RUNTIME_THREADS: usize = 2;

/// What this process does.
#[derive(Clone, Copy, Debug)]
pub struct Roles {
    /// Take events and answer reports.
    pub accept: bool,
    /// Store what is in the log.
    pub store: bool,
}

/// Why the program ended other than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log is not the one that was recorded.
    #[error("{0}")]
    LogRefused(String),
    /// A kind of event refuses its settings.
    #[error("{0}")]
    Kind(String),
    /// No kind has the version that `/latest/` is to stand for.
    #[error("http.latest_version (MILLRACE_HTTP_LATEST_VERSION) is {0}, but the versions there are {1}")]
    LatestVersion(String, String),
    /// A client of Kafka could not be set up: a setting it refuses.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The log was found to have another number of partitions than the spool was filled for.
    #[error(
        "{topic} has {partitions} partitions, and the spool (spool.dir) is for {noted}: where it holds no events start again, else move its folder away, with its events"
    )]
    SpoolOfOther {
        /// The log's topic.
        topic: String,
        /// What the spool is for.
        noted: u32,
        /// What was found.
        partitions: u32,
    },
    /// Listening.
    #[error(
        "cannot listen on {0}: {1}; is another program using it? set http.listen (MILLRACE_HTTP_LISTEN) to a free one"
    )]
    Listen(std::net::SocketAddr, std::io::Error),
    /// The system refused a thread or a runtime.
    #[error("the system refuses what the program needs: {0}")]
    System(#[from] std::io::Error),
}

/// What all parts of a running program share.
pub struct Program {
    /// The settings.
    pub config: Config,
    /// Whether it is ending.
    pub shutdown: Shutdown,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// What is missing.
    pub health: Arc<Health>,
    /// ClickHouse.
    pub store: Store,
    /// Runs what talks to ClickHouse.
    pub runtime: Handle,
    /// How to reach Kafka.
    pub log_options: log::Options,
    /// Takes events while Kafka is away.
    pub spool: Option<spool::Root>,
    /// How much a writer takes at once.
    pub writer_settings: writer::Settings,
    failure: Mutex<Option<RunError>>,
}

impl Program {
    /// Ends the program with an error; the first one counts.
    pub fn fail(&self, error: RunError) {
        tracing::error!(%error, "ending");
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.shutdown.request();
    }
}

/// How to reach Kafka, by the configuration.
pub fn log_options(config: &Config) -> log::Options {
    log::Options {
        kafka: config.kafka.clone(),
        session_ms: config.writer.session_ms,
        poll_ms_max: config.writer.poll_ms_max,
        message_bytes_max: limits::message_bytes_max(config.http.event_bytes_max),
    }
}

fn writer_settings(config: &Config) -> writer::Settings {
    let ms = Duration::from_millis;
    writer::Settings {
        range_events_max: u64::from(config.writer.range_events_max),
        range_age_max: ms(config.writer.range_age_ms),
        claim_age_max: ms(config.writer.claim_age_ms_max),
        backoff_min: ms(config.writer.backoff_ms_min),
        backoff_max: ms(config.writer.backoff_ms_max),
    }
}

/// Runs until `shutdown` is requested and everything in flight is settled, or until it cannot go on.
pub fn run(config: &Config, roles: Roles, shutdown: Shutdown) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .thread_name("store")
        .build()?;
    let spool = config.spool.dir.as_deref().filter(|_| roles.accept);
    let spool = spool.map(|dir| spool::Root::open(dir, config.spool.bytes_max)).transpose()?;
    let program = Arc::new(Program {
        config: config.clone(),
        metrics: Metrics::new(),
        health: Health::new(if roles.accept { Duty::Accept } else { Duty::Store }),
        store: Store::new(&config.clickhouse),
        runtime: runtime.handle().clone(),
        log_options: log_options(config),
        spool,
        writer_settings: writer_settings(config),
        failure: Mutex::default(),
        shutdown,
    });
    let ran = wire(&program, roles);
    // What still hangs in a call to ClickHouse is not waited for: nothing acknowledged depends on it.
    runtime.shutdown_background();
    ran?;
    match program.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What is wired so far.
struct Wiring<'p> {
    program: &'p Arc<Program>,
    roles: Roles,
    paths: Paths,
    writers: Vec<JoinHandle<()>>,
    flushes: Vec<Box<dyn Fn(Duration) -> bool>>,
    reloads: Vec<Reload>,
}

/// How to reload one kind.
struct Reload {
    kind: &'static str,
    reload: Box<dyn Fn() -> Result<String, String>>,
}

fn wire(program: &Arc<Program>, roles: Roles) -> Result<(), RunError> {
    let scraped = Arc::new(Scraped { metrics: program.metrics.clone(), door: OnceLock::new() });
    let routes = door::Routes::new()
        .route("/health/live", &[("GET", Arc::new(Live(program.health.clone())))])
        .route("/health/ready", &[("GET", Arc::new(Ready(program.health.clone())))])
        .route("/metrics", &[("GET", scraped.clone())]);
    let paths = Paths::new(routes, &program.config.http.latest_version);
    let mut wiring = Wiring { program, roles, paths, writers: Vec::new(), flushes: Vec::new(), reloads: Vec::new() };
    visit_all(&mut wiring)?;
    let Wiring { paths, writers, flushes, reloads, .. } = wiring;
    watch_clickhouse(program)?;
    let door = listen(program, paths.into_routes()?)?;
    // Set here only.
    let _ = scraped.door.set(door.gauges());
    systemd::watch(program.health.clone())?;
    systemd::ready(&format!("listening on {}", door.local_addr()));
    tracing::info!(address = %door.local_addr(), accept = roles.accept, store = roles.store, "millrace is up");
    while program.shutdown.wait_or_reload() == Asked::ToReload {
        reload(&reloads);
    }
    end(program, &door, writers, &flushes);
    Ok(())
}

/// Reloads every kind. What cannot be reloaded stays as it is.
fn reload(kinds: &[Reload]) {
    if kinds.is_empty() {
        tracing::info!("nothing to reload: this process accepts no events");
    }
    for Reload { kind, reload } in kinds {
        match reload() {
            Ok(in_force) => tracing::info!(kind, in_force, "reloaded"),
            Err(error) => tracing::error!(kind, error, "not reloaded: what was in force stays in force"),
        }
    }
}

/// Wires each kind, in the order of the flow.
impl KindVisitor for Wiring<'_> {
    type Error = RunError;

    fn visit<K: Kind>(&mut self) -> Result<(), RunError> {
        let program = self.program;
        let topic = program.config.kafka.topic(K::NAME);
        if self.roles.accept {
            let kind = Arc::new(K::open(&program.config).map_err(RunError::Kind)?);
            if let Some(in_force) = kind.in_force() {
                tracing::info!(kind = K::NAME, in_force, "opened");
            }
            let intake = accepting::open_intake::<K>(program, kind.clone(), &topic)?;
            let flushed = intake.clone();
            self.flushes.push(Box::new(move |timeout| flushed.flush(timeout)));
            let reloaded = kind.clone();
            self.reloads.push(Reload { kind: K::NAME, reload: Box::new(move || reloaded.reload()) });
            K::endpoints(&mut Serving::new(program, kind, intake, &mut self.paths));
        }
        if self.roles.store {
            let program = program.clone();
            let name = format!("group-{}", K::NAME);
            self.writers.push(std::thread::Builder::new().name(name).spawn(move || {
                if let Err(error) = storing::store_kind::<K>(&program, &topic) {
                    program.fail(error);
                }
            })?);
        }
        Ok(())
    }
}

fn listen(program: &Program, routes: door::Routes) -> Result<door::Door, RunError> {
    let http = &program.config.http;
    let options = door::Options {
        listen: http.listen,
        body_bytes_max: http.body_bytes_max as usize,
        decoded_bytes_max: http.decoded_bytes_max as usize,
        body_bytes_in_flight_max: http.body_bytes_in_flight_max as usize,
        connections_max: http.connections_max as usize,
        workers: http.workers as usize,
        ..door::Options::default()
    };
    door::start(&options, routes, Requests::new(program.metrics.clone()))
        .map_err(|error| RunError::Listen(http.listen, error))
}

/// How often ClickHouse is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long it may take to answer.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Keeps the condition of ClickHouse up to date.
fn watch_clickhouse(program: &Arc<Program>) -> Result<(), RunError> {
    let condition = program.health.condition("clickhouse", &[Duty::Report, Duty::Store], "not asked yet");
    let program = program.clone();
    std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
        let store = program.store.clone().with_read_timeout(PROBE_MAX);
        loop {
            match program.runtime.block_on(store.execute("SELECT 1")) {
                Ok(()) => condition.holds(),
                Err(error) => condition.missing(error.to_string()),
            }
            if program.shutdown.wait(PROBE_EVERY) {
                return;
            }
        }
    })?;
    Ok(())
}

/// Ends in order: no new requests, those in flight answered, what they sent acknowledged, claimed ranges finished; all
/// within `http.shutdown_ms_max`. What does not end by then is left as a crash would leave it, which loses nothing.
fn end(program: &Program, door: &door::Door, writers: Vec<JoinHandle<()>>, flushes: &[Box<dyn Fn(Duration) -> bool>]) {
    program.health.stopping();
    systemd::stopping();
    let deadline = Instant::now() + Duration::from_millis(program.config.http.shutdown_ms_max);
    let left = || deadline.saturating_duration_since(Instant::now());
    let answered = door.drain(deadline);
    let flushed = flushes.iter().all(|flush| flush(left()));
    while writers.iter().any(|writer| !writer.is_finished()) && !left().is_zero() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let stored = writers.iter().all(JoinHandle::is_finished);
    if answered && flushed && stored {
        tracing::info!("ended in order");
    } else {
        tracing::warn!(answered, flushed, stored, "ended before everything was settled: the next start takes over");
    }
}

/// `GET /metrics`: what the door counts is read when somebody asks.
struct Scraped {
    metrics: Arc<Metrics>,
    door: OnceLock<door::Gauges>,
}

impl Endpoint for Scraped {
    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
        if let Some(door) = self.door.get() {
            self.metrics.door(door.connections_open(), door.connections_refused(), door.body_bytes_in_flight());
        }
        Exposition(self.metrics.clone()).answer(head, body)
    }
}

/// Turns answered requests into metrics. Routes and methods are few; their handles are made when they first occur.
struct Requests {
    metrics: Arc<Metrics>,
    routes: RwLock<HashMap<&'static str, HashMap<String, RouteMetrics>>>,
}

impl Requests {
    fn new(metrics: Arc<Metrics>) -> Requests {
        Requests { metrics, routes: RwLock::default() }
    }
}

impl door::Observer for Requests {
    fn answered(&self, answered: &door::Answered<'_>) {
        let door::Answered { route, method, status, duration, .. } = *answered;
        {
            let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(handle) = routes.get(method).and_then(|routes| routes.get(route)) {
                return handle.answered(status, duration);
            }
        }
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let handle = routes.entry(method).or_default().entry(route.to_owned());
        // Leaked once for each route: they live as long as the program.
        handle.or_insert_with(|| self.metrics.route(route.to_owned().leak(), method)).answered(status, duration);
    }
}
