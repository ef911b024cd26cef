//! Drives the load: opens the connections, starts the workers, gathers what they count, second by second.

mod answer;
mod connection;
mod judge;
pub mod pace;
mod task;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use self::pace::{Clock, Intervals, Pace, Schedule};
use self::task::{End, News, Task};
use self::worker::Worker;
use crate::cpu;
use crate::source::Source;
use crate::tally::{Tally, Trouble};

const CONNECT: Duration = Duration::from_secs(5);
/// How soon the wish to stop is passed on.
const LOOK: Duration = Duration::from_millis(50);

/// Requests of one shape at one pace.
pub struct Lane {
    /// The names of its streams, each of which has a histogram of its own.
    pub streams: Vec<&'static str>,
    /// For each worker its source and the number of its connections.
    pub workers: Vec<(Source, usize)>,
    /// Requests a second, or as fast as they are answered.
    pub per_s: Option<f64>,
}

/// How long, and to whom.
#[derive(Debug, Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub warm_up: Duration,
    /// Without one, until the sources are used up.
    pub duration: Option<Duration>,
    pub timeout: Duration,
    pub tolerate: bool,
    /// Set when the user wants an early end.
    pub interrupted: Arc<AtomicBool>,
}

/// What happened in one interval, over all workers.
pub struct Second<'a> {
    pub start: Duration,
    pub length: Duration,
    pub is_warm_up: bool,
    pub streams: Vec<(&'a str, Tally)>,
}

/// What a run has come to.
pub struct Outcome {
    /// By stream, without the warm-up.
    pub streams: Vec<(&'static str, Tally)>,
    /// All of the warm-up: its failures count as failures, its events are in the report, its work was done.
    pub warm_up: Tally,
    pub started: SystemTime,
    /// From the end of the warm-up to the last answer.
    pub seconds: f64,
    /// From the very start to the last answer.
    pub all_seconds: f64,
    /// This process's CPU time from the start to the end.
    pub cpu: Duration,
    /// The workers' part of it.
    pub workers_cpu: Duration,
    pub first_troubles: Vec<(Trouble, String)>,
    pub gave_up: Option<String>,
    pub interrupted: bool,
    /// The lanes' sources, to ask what was sent.
    pub sources: Vec<Vec<Source>>,
    /// When it began, as other clocks count from it.
    pub began: Instant,
}

impl Outcome {
    /// All that was done, the warm-up included.
    pub fn all(&self) -> Tally {
        let mut all = self.warm_up.clone();
        self.streams.iter().for_each(|(_, tally)| all.add(tally));
        all
    }
}

/// Shares a number out as evenly as it goes.
pub fn share_out(total: u64, parts: u64) -> Vec<u64> {
    (0..parts).map(|part| total / parts + u64::from(part < total % parts)).collect()
}

/// Runs to the end. `each_second` is told what happened, in order.
pub fn run(plan: &Plan, lanes: Vec<Lane>, mut each_second: impl FnMut(&Second)) -> io::Result<Outcome> {
    let intervals = Intervals::new(plan.warm_up);
    let stop = Arc::new(AtomicBool::new(false));
    let end = plan.duration.map_or(u64::MAX, |duration| (plan.warm_up + duration).as_nanos() as u64);
    let (mut tasks, mut places, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let mut lane_of = Vec::new();
    for (lane_number, lane) in lanes.into_iter().enumerate() {
        let count = lane.workers.len() as u64;
        for (number, (source, connections)) in lane.workers.into_iter().enumerate() {
            let pace = lane.per_s.map_or(Pace::Closed, |per_s| Pace::Open(Schedule::new(per_s, number as u64, count)));
            let sockets = connect(plan.address, connections)?;
            let (address, streams, stop) = (plan.address, lane.streams.len(), Arc::clone(&stop));
            let (timeout, tolerate) = (plan.timeout, plan.tolerate);
            tasks.push(Task { address, sockets, source, streams, pace, intervals, end, timeout, tolerate, stop });
            places.push(names.len());
            lane_of.push(lane_number);
        }
        names.extend(lane.streams);
    }
    let started = SystemTime::now();
    let (clock, cpu_before) = (Clock(Instant::now()), cpu::own());
    let (sender, news) = channel();
    let mut threads = Vec::new();
    for (number, task) in tasks.into_iter().enumerate() {
        let worker = Worker::new(number, task, clock, sender.clone())?;
        threads.push(std::thread::Builder::new().name(format!("load-{number}")).spawn(move || worker.run())?);
    }
    drop(sender);
    let mut gathering = Gathering::new(names, places, intervals);
    gathering.gather(&news, plan, &stop, &mut each_second);
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a worker ended in a defect: its message is above"))?;
    }
    let cpu = cpu::own() - cpu_before;
    Ok(gathering.outcome(started, clock, cpu, plan, &lane_of))
}

fn connect(address: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    (0..count).map(|_| TcpStream::connect_timeout(&address, CONNECT)).collect()
}

/// Puts together what the workers tell.
struct Gathering {
    names: Vec<&'static str>,
    /// For each worker, where its streams begin in `names`.
    places: Vec<usize>,
    intervals: Intervals,
    /// Intervals that not all workers have told yet.
    open: BTreeMap<u64, Vec<Tally>>,
    /// For each worker, the next interval that it will tell; None when it has ended.
    next: Vec<Option<u64>>,
    told: u64,
    totals: Vec<Tally>,
    warm_up: Tally,
    ends: BTreeMap<usize, End>,
}

impl Gathering {
    fn new(names: Vec<&'static str>, places: Vec<usize>, intervals: Intervals) -> Gathering {
        let (totals, next) = (vec![Tally::default(); names.len()], vec![Some(0); places.len()]);
        let (open, ends) = (BTreeMap::new(), BTreeMap::new());
        Gathering { names, places, intervals, open, next, told: 0, totals, warm_up: Tally::default(), ends }
    }

    fn gather(&mut self, news: &Receiver<News>, plan: &Plan, stop: &AtomicBool, each: &mut impl FnMut(&Second)) {
        loop {
            match news.recv_timeout(LOOK) {
                Ok(News::Interval { worker, index, tallies }) => {
                    let streams = self.open.entry(index).or_insert_with(|| vec![Tally::default(); self.names.len()]);
                    let place = self.places[worker];
                    streams[place..].iter_mut().zip(&tallies).for_each(|(stream, tally)| stream.add(tally));
                    self.next[worker] = Some(index + 1);
                }
                Ok(News::Done { worker, end }) => {
                    self.next[worker] = None;
                    self.ends.insert(worker, *end);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if plan.interrupted.load(Ordering::Relaxed) {
                stop.store(true, Ordering::Relaxed);
            }
            let told_by_all = self.next.iter().flatten().min().copied().unwrap_or(u64::MAX);
            self.tell(told_by_all, each);
        }
        self.tell(u64::MAX, each);
    }

    /// Tells every interval before this one.
    fn tell(&mut self, before: u64, each: &mut impl FnMut(&Second)) {
        while self.told < before
            && let Some(tallies) = self.open.remove(&self.told)
        {
            let (start, end) = (self.intervals.start(self.told), self.intervals.end(self.told));
            let is_warm_up = self.intervals.is_warm_up(self.told);
            if is_warm_up {
                tallies.iter().for_each(|tally| self.warm_up.add(tally));
            } else {
                self.totals.iter_mut().zip(&tallies).for_each(|(total, tally)| total.add(tally));
            }
            let streams = self.names.iter().copied().zip(tallies).collect();
            let (start, length) = (Duration::from_nanos(start), Duration::from_nanos(end - start));
            each(&Second { start, length, is_warm_up, streams });
            self.told += 1;
        }
    }

    fn outcome(self, started: SystemTime, clock: Clock, cpu: Duration, plan: &Plan, lane_of: &[usize]) -> Outcome {
        let last_answer = self.ends.values().map(|end| end.last_answer).max().unwrap_or(0) as f64 / 1e9;
        let lanes = lane_of.iter().max().map_or(0, |last| last + 1);
        let mut sources: Vec<Vec<Source>> = (0..lanes).map(|_| Vec::new()).collect();
        let (mut first_troubles, mut gave_up, mut workers_cpu) = (Vec::new(), None, Duration::ZERO);
        for (worker, end) in self.ends {
            sources[lane_of[worker]].push(end.source);
            workers_cpu += end.cpu;
            gave_up = gave_up.or(end.gave_up);
            for (trouble, text) in end.first_troubles {
                if first_troubles.iter().all(|(known, _)| *known != trouble) {
                    first_troubles.push((trouble, text));
                }
            }
        }
        Outcome {
            streams: self.names.into_iter().zip(self.totals).collect(),
            warm_up: self.warm_up,
            started,
            seconds: (last_answer - plan.warm_up.as_secs_f64()).max(0.0),
            all_seconds: last_answer,
            cpu,
            workers_cpu,
            first_troubles,
            gave_up,
            interrupted: plan.interrupted.load(Ordering::Relaxed),
            sources,
            began: clock.0,
        }
    }
}
