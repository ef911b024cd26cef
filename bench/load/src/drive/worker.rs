//! One thread that drives its connections: epoll, no allocation for a request, no waiting other than for the kernel.
//!
//! Closed loop: an answer makes the next request due on the same connection. Open loop: requests are due at times that do not depend on
//! answers; when all connections are busy they wait, and their latency counts from when they were due. A timer of the
//! kernel wakes the thread for the next one, to the microsecond.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::connection::{Connection, State};
use super::pace::{Clock, Pace, SECOND};
use super::task::{End, News, Task};
use crate::tally::{Tally, Trouble};

const TIMER: Token = Token(usize::MAX);
/// How often time-outs, lost connections and the wish to stop are looked at.
const CHORES_NS: u64 = 50_000_000;
/// A worker none of whose connections can be opened for so long gives up.
const GIVE_UP_NS: u64 = 3 * SECOND;
const CONNECT_NS_MAX: u64 = 5 * SECOND;
/// Large enough that a report's page takes few reads.
const BUFFER_BYTES: usize = 256 << 10;

/// A thread's state; how answers come in is in `answer`.
pub struct Worker {
    pub(super) number: usize,
    pub(super) task: Task,
    pub(super) clock: Clock,
    pub(super) news: Sender<News>,
    pub(super) poll: Poll,
    pub(super) timer: OwnedFd,
    /// The due time that the timer was last set for.
    pub(super) armed: u64,
    pub(super) connections: Vec<Connection>,
    pub(super) idle: VecDeque<usize>,
    pub(super) busy: usize,
    pub(super) buffer: Vec<u8>,
    pub(super) tallies: Vec<Tally>,
    pub(super) interval: u64,
    pub(super) next_chores: u64,
    /// Set when no more requests are to be sent: since when.
    pub(super) draining: Option<u64>,
    pub(super) all_down_since: Option<u64>,
    pub(super) last_answer: u64,
    pub(super) first_troubles: Vec<(Trouble, String)>,
    pub(super) gave_up: Option<String>,
}

impl Worker {
    pub fn new(number: usize, mut task: Task, clock: Clock, news: Sender<News>) -> io::Result<Worker> {
        let poll = Poll::new()?;
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let sockets = mem::take(&mut task.sockets).into_iter().enumerate();
        let connections = sockets
            .map(|(index, socket)| Connection::new(socket, Token(index), poll.registry()))
            .collect::<io::Result<Vec<_>>>()?;
        let tallies = vec![Tally::default(); task.streams];
        Ok(Worker {
            number,
            task,
            clock,
            news,
            poll,
            timer,
            armed: u64::MAX,
            connections,
            idle: VecDeque::new(),
            busy: 0,
            buffer: vec![0; BUFFER_BYTES],
            tallies,
            interval: 0,
            next_chores: 0,
            draining: None,
            all_down_since: None,
            last_answer: 0,
            first_troubles: Vec::new(),
            gave_up: None,
        })
    }

    /// Drives until the end, and tells it.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        for index in 0..self.connections.len() {
            let now = self.clock.now();
            self.feed(index, now);
        }
        loop {
            let now = self.clock.now();
            self.keep_time(now);
            if self.draining.is_some() && self.busy == 0 {
                break;
            }
            self.dispatch(now);
            if let Err(error) = self.wait(&mut events, now) {
                self.gave_up = Some(format!("waiting for the sockets failed: {error}"));
                break;
            }
            for event in &events {
                if event.token() != TIMER {
                    self.ready(event);
                }
            }
        }
        self.finish();
    }

    /// Waits for sockets, the next due time or the next chores, whichever comes first.
    fn wait(&mut self, events: &mut Events, now: u64) -> io::Result<()> {
        let mut until = self.next_chores.min(self.task.intervals.end(self.interval));
        if let Pace::Open(schedule) = self.task.pace
            && self.draining.is_none()
            && !self.idle.is_empty()
        {
            // Epoll's own time-out is in milliseconds; the timer, set anew for each due time, needs no reading.
            let due = schedule.due();
            if self.armed != due {
                let wait = due.saturating_sub(self.clock.now()).max(1);
                let it_value = Timespec { tv_sec: (wait / SECOND) as i64, tv_nsec: (wait % SECOND) as i64 };
                let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
                rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
                self.armed = due;
            }
        }
        if self.draining.is_none() {
            until = until.min(self.task.end);
        }
        until = until.max(now + 1);
        match self.poll.poll(events, Some(Duration::from_nanos(until - now))) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Closes intervals, does the chores, and sees the end.
    fn keep_time(&mut self, now: u64) {
        while now >= self.task.intervals.end(self.interval) {
            self.tell_interval();
        }
        if now < self.next_chores && now < self.task.end {
            return;
        }
        self.next_chores = now + CHORES_NS;
        if self.draining.is_none() && (now >= self.task.end || self.task.stop.load(Ordering::Relaxed)) {
            self.drain(now);
        }
        let timeout = self.task.timeout.as_nanos() as u64;
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Busy if now.saturating_sub(self.connections[index].sent_at) > timeout => {
                    let text = format!("no answer within {:?}", self.task.timeout);
                    self.fail(index, Trouble::Timeout, text, now);
                }
                State::Connecting { since } if now.saturating_sub(since) > CONNECT_NS_MAX => {
                    self.refused(index, "no answer to a connection".to_owned(), now);
                }
                State::Down { retry_at } if retry_at <= now && self.wants(index) => self.reconnect(index, now),
                _ => {}
            }
        }
        self.watch(now);
    }

    /// Gives up when the server has been away for long.
    fn watch(&mut self, now: u64) {
        if self.connections.iter().any(Connection::is_up) {
            self.all_down_since = None;
            return;
        }
        let since = *self.all_down_since.get_or_insert(now);
        if !self.task.tolerate && now - since > GIVE_UP_NS && self.draining.is_none() {
            let why = self.first_troubles.last().map_or("", |(_, text)| text.as_str());
            self.gave_up = Some(format!("{} cannot be reached any more: {why}", self.task.address));
            self.task.stop.store(true, Ordering::Relaxed);
            self.drain(now);
        }
    }

    /// No more requests: only the answers of those under way are waited for.
    fn drain(&mut self, now: u64) {
        self.dispatch(now);
        self.draining = Some(now);
        let Pace::Open(mut schedule) = self.task.pace else { return };
        // What was due and could not be sent must not be missing from the picture. Which stream it would have been is not known: the first.
        while schedule.due() < self.task.end.min(now) {
            self.tallies[0].unsent += 1;
            self.tallies[0].latency.saturating_record(now - schedule.due());
            schedule.advance();
        }
    }

    /// Sends what is due on connections that are free.
    fn dispatch(&mut self, now: u64) {
        while self.draining.is_none() {
            let Pace::Open(schedule) = self.task.pace else { return };
            if schedule.due() > now || schedule.due() >= self.task.end {
                return;
            }
            let Some(index) = self.idle.pop_front() else { return };
            self.feed(index, now);
        }
    }

    /// A connection is free: sends its next request if one is due.
    pub(super) fn feed(&mut self, index: usize, now: u64) {
        self.connections[index].state = State::Idle;
        if self.draining.is_some() || self.connections[index].spent {
            return;
        }
        let due = match self.task.pace {
            Pace::Closed => now,
            Pace::Open(schedule) if schedule.due() <= now && schedule.due() < self.task.end => schedule.due(),
            Pace::Open(_) => {
                self.idle.push_back(index);
                return;
            }
        };
        let Some(request) = self.task.source.take(index) else {
            self.spend(index, now);
            return;
        };
        if let Pace::Open(schedule) = &mut self.task.pace {
            schedule.advance();
        }
        let bytes = self.task.source.bytes(index, &request).len();
        let tally = &mut self.tallies[usize::from(request.stream)];
        tally.sent += 1;
        tally.events += u64::from(request.events);
        tally.bytes_sent += bytes as u64;
        let connection = &mut self.connections[index];
        (connection.request, connection.due, connection.sent_at, connection.left) = (request, due, now, bytes);
        connection.state = State::Busy;
        self.busy += 1;
        self.write(index, now);
    }

    /// There is no request for this connection any more; others may have some left of their own.
    fn spend(&mut self, index: usize, now: u64) {
        self.connections[index].spent = true;
        if self.connections.iter().all(|connection| connection.spent) {
            // Nothing is due any more.
            self.task.end = 0;
            self.drain(now);
        }
    }

    fn tell_interval(&mut self) {
        let tallies = mem::replace(&mut self.tallies, vec![Tally::default(); self.task.streams]);
        // Nobody listens any more when the program is ending.
        let _ = self.news.send(News::Interval { worker: self.number, index: self.interval, tallies });
        self.interval += 1;
    }

    fn finish(mut self) {
        self.tell_interval();
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let end = End {
            source: self.task.source,
            last_answer: self.last_answer,
            cpu: Duration::new(used.tv_sec as u64, used.tv_nsec as u32),
            first_troubles: self.first_troubles,
            gave_up: self.gave_up,
        };
        let _ = self.news.send(News::Done { worker: self.number, end: Box::new(end) });
    }
}
