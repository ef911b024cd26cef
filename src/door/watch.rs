//! Deadlines: what a connection is doing, and the thread that ends those that take too long.
//!
//! `may_minihttp` waits for ever. So each connection tells, in one atomic word, what it waits for, and one thread looks
//! at all of them a few times a second, asks the kernel what moved, and cuts those that are overdue. A cut shuts the
//! receiving side down, which wakes the connection's coroutine; that finds the reason here and answers. Where the
//! coroutine cannot answer, or does not within a second, both sides are shut down.
//!
//! What always holds: the word is changed by its connection, except that this thread exchanges it for [`Phase::Cut`];
//! a connection that has moved on in between is therefore never cut. A descriptor is only touched under its lock, and
//! the connection takes it away before closing it.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Shared;
use super::options::Limits;
use super::socket::{self, Counts};

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Waiting for its first request.
    Fresh = 0,
    /// Waiting for a further request, or for the server to write the last answer.
    Idle = 1,
    /// Being served: nobody's clock but the endpoint's.
    Busy = 2,
    /// Receiving a body.
    Body = 3,
    /// Writing an answer itself.
    Write = 4,
    /// Answered for the last time, reading on so that the answer can be seen.
    Linger = 5,
    /// Ended by the watch.
    Cut = 6,
}

impl Phase {
    fn of(word: u64) -> Phase {
        match word & 7 {
            0 => Phase::Fresh,
            1 => Phase::Idle,
            2 => Phase::Busy,
            3 => Phase::Body,
            4 => Phase::Write,
            5 => Phase::Linger,
            _ => Phase::Cut,
        }
    }
}

/// Why a connection was cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    /// The head took too long, or nothing came at all.
    HeaderSlow = 1,
    /// The head is too long.
    HeaderLong = 2,
    /// Nothing was asked for a long time.
    Idle = 3,
    /// The body fell behind.
    BodySlow = 4,
    /// The peer does not take its answer.
    WriteStalled = 5,
    /// It has lingered long enough.
    Lingered = 6,
    /// The door is closing.
    Draining = 7,
}

impl Reason {
    fn of(byte: u8) -> Option<Reason> {
        Some(match byte {
            1 => Reason::HeaderSlow,
            2 => Reason::HeaderLong,
            3 => Reason::Idle,
            4 => Reason::BodySlow,
            5 => Reason::WriteStalled,
            6 => Reason::Lingered,
            7 => Reason::Draining,
            _ => return None,
        })
    }

    /// Somebody may still read an answer, so only the receiving side is shut down.
    fn can_answer(self) -> bool {
        matches!(self, Reason::HeaderSlow | Reason::HeaderLong | Reason::BodySlow)
    }
}

/// One connection, as the watch sees it.
pub(super) struct Watched {
    /// A count of changes and, in the lowest three bits, the phase.
    word: AtomicU64,
    reason: AtomicU8,
    /// Bytes of answers given to the server, or written by the connection itself.
    given: AtomicU64,
    descriptor: Mutex<Option<RawFd>>,
    opened: Instant,
}

impl Watched {
    pub fn new(descriptor: RawFd, phase: Phase) -> Watched {
        Watched {
            word: AtomicU64::new(phase as u64),
            reason: AtomicU8::new(0),
            given: AtomicU64::new(0),
            descriptor: Mutex::new(Some(descriptor)),
            opened: Instant::now(),
        }
    }

    /// The connection goes on to `phase`; returns what it was in. Called by the connection alone.
    pub fn enter(&self, phase: Phase) -> Phase {
        let next = (self.word.load(Ordering::Relaxed) | 7) + 1 + phase as u64;
        Phase::of(self.word.swap(next, Ordering::AcqRel))
    }

    /// Waits for the next request, and for the server to write the answers that it was given: `given` bytes so far.
    pub fn rest(&self, given: u64) {
        self.given.store(given, Ordering::Relaxed);
        self.enter(Phase::Idle);
    }

    /// Why the connection was cut, if it was.
    pub fn reason(&self) -> Option<Reason> {
        Reason::of(self.reason.load(Ordering::Acquire))
    }

    /// The watch has ended it.
    pub fn is_cut(&self) -> bool {
        Phase::of(self.word.load(Ordering::Acquire)) == Phase::Cut
    }

    /// The connection is about to close its descriptor.
    pub fn leave(&self) {
        *self.descriptor.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends it at once, whatever it does.
    pub fn kill(&self) {
        if let Some(fd) = *self.descriptor.lock().unwrap_or_else(PoisonError::into_inner) {
            socket::reset_on_close(fd);
            socket::shut(fd, std::net::Shutdown::Both);
        }
    }
}

/// What the watch remembers about a connection from one look to the next.
#[derive(Debug)]
struct Memory {
    word: u64,
    /// Since when it is in this phase, as far as seen.
    since: Instant,
    /// Bytes received when the phase began, as far as seen.
    received: u64,
    /// Since when more than that was received.
    head_since: Option<Instant>,
    acknowledged: u64,
    acknowledged_at: Instant,
    looked_at: Instant,
    /// Since when the head is too long.
    long_since: Option<Instant>,
    /// How far the body is behind its pace.
    behind: Duration,
}

/// What the kernel says about a connection at one look.
#[derive(Debug, Clone, Copy)]
struct Sample {
    pub counts: Counts,
    /// Received and not read yet.
    pub unread: u64,
    /// Written and not acknowledged yet.
    pub unacknowledged: u64,
    /// Given to the server and not written yet.
    pub unwritten: u64,
}

impl Memory {
    fn new(opened: Instant) -> Memory {
        Memory {
            word: u64::MAX,
            since: opened,
            received: 0,
            head_since: None,
            acknowledged: 0,
            acknowledged_at: opened,
            looked_at: opened,
            long_since: None,
            behind: Duration::ZERO,
        }
    }

    /// Decides from one look whether the connection is overdue. Pure: time and counts are handed in.
    fn judge(&mut self, word: u64, sample: Sample, now: Instant, limits: &Limits, draining: bool) -> Option<Reason> {
        let phase = Phase::of(word);
        let passed = now.saturating_duration_since(self.looked_at);
        let received_before = self.received;
        let fresh = self.word != word;
        if fresh {
            let since = if phase == Phase::Fresh { self.since } else { now };
            // What lies unread between two requests belongs to the next one.
            let received = match phase {
                Phase::Fresh => 0,
                Phase::Idle => sample.counts.received.saturating_sub(sample.unread),
                _ => sample.counts.received,
            };
            *self = Memory {
                word,
                received,
                acknowledged: sample.counts.acknowledged,
                acknowledged_at: now,
                ..Memory::new(since)
            };
        }
        self.looked_at = now;
        if self.acknowledged != sample.counts.acknowledged || sample.unacknowledged == 0 {
            self.acknowledged = sample.counts.acknowledged;
            self.acknowledged_at = now;
        }
        let waited = now.saturating_duration_since(self.since);
        let stalled = now.saturating_duration_since(self.acknowledged_at) >= limits.write_stall_max;
        match phase {
            Phase::Fresh | Phase::Idle => {
                let arrived = sample.counts.received.saturating_sub(self.received);
                if arrived > 0 {
                    self.head_since.get_or_insert(if phase == Phase::Fresh { self.since } else { now });
                }
                // The server parses after each buffer full (32 KiB, and what a long head has made of it), so what it has
                // read beyond that, or not served for a while, is all part of one unfinished head.
                let head = arrived.saturating_sub(sample.unread);
                if head > limits.head_bytes_max {
                    let since = *self.long_since.get_or_insert(now);
                    let waited = now.saturating_duration_since(since);
                    if head > limits.head_bytes_max + (64 << 10) || waited >= LONG_PATIENCE {
                        return Some(Reason::HeaderLong);
                    }
                }
                let head_waited = self.head_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
                if head_waited >= limits.header_max || (phase == Phase::Fresh && waited >= limits.header_max) {
                    return Some(Reason::HeaderSlow);
                }
                if stalled {
                    return Some(Reason::WriteStalled);
                }
                let quiet =
                    !fresh && arrived == 0 && sample.unread == 0 && sample.unacknowledged + sample.unwritten == 0;
                if draining && quiet {
                    return Some(Reason::Draining);
                }
                (quiet && waited >= limits.idle_max).then_some(Reason::Idle)
            }
            Phase::Body => {
                if fresh {
                    return None;
                }
                // What lies unread is not the sender's delay.
                let arrived = sample.counts.received.saturating_sub(received_before);
                self.received = sample.counts.received;
                let earned = Duration::from_millis(arrived.saturating_mul(1000) / limits.body_bytes_per_s_min);
                let lost = if sample.unread > 0 { Duration::ZERO } else { passed };
                self.behind = (self.behind + lost).saturating_sub(earned);
                (self.behind >= limits.body_grace).then_some(Reason::BodySlow)
            }
            Phase::Write => stalled.then_some(Reason::WriteStalled),
            Phase::Linger => (waited >= limits.linger_max).then_some(Reason::Lingered),
            Phase::Busy | Phase::Cut => None,
        }
    }
}

/// A head that seems too long may be a buffer that the server is just about to parse, but not for this long.
const LONG_PATIENCE: Duration = Duration::from_millis(200);
/// A cut connection that has not gone on after this long is shut down altogether.
const CUT_PATIENCE: Duration = Duration::from_secs(1);
/// So is one that sends this much more: shutting down the receiving side does not keep Linux from receiving.
const CUT_BYTES: u64 = 64 << 10;

/// Looks at one connection; `false` when it is gone.
fn look(watched: &Watched, memory: &mut Option<Memory>, now: Instant, limits: &Limits, draining: bool) -> bool {
    let guard = watched.descriptor.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(fd) = *guard else { return false };
    let memory = memory.get_or_insert_with(|| Memory::new(watched.opened));
    let word = watched.word.load(Ordering::Acquire);
    match Phase::of(word) {
        Phase::Busy => {}
        Phase::Cut => {
            let received = socket::counts(fd).map_or(0, |counts| counts.received);
            if memory.word != word {
                (memory.word, memory.since, memory.received) = (word, now, received);
            } else if now.saturating_duration_since(memory.since) >= CUT_PATIENCE
                || received.saturating_sub(memory.received) > CUT_BYTES
            {
                socket::shut(fd, std::net::Shutdown::Both);
            }
        }
        _ => {
            let Some(counts) = socket::counts(fd) else { return true };
            // Where nothing came since the last look, nothing has become unread: one question less for all the idle.
            let quiet = memory.word == word && memory.received == counts.received;
            let unread = if quiet { 0 } else { socket::unread(fd).unwrap_or(0) };
            // Asked after the acknowledged, so what moves from one to the other is missed, never counted twice.
            let unacknowledged = socket::unacknowledged(fd).unwrap_or(0);
            let given = watched.given.load(Ordering::Relaxed);
            let unwritten = given.saturating_sub(counts.acknowledged + unacknowledged);
            let sample = Sample { counts, unread, unacknowledged, unwritten };
            if let Some(reason) = memory.judge(word, sample, now, limits, draining) {
                cut(watched, fd, word, reason);
            }
        }
    }
    true
}

fn cut(watched: &Watched, fd: RawFd, word: u64, reason: Reason) {
    // The reason first: whoever sees the cut sees it. A connection that moves on meanwhile does not look at it.
    watched.reason.store(reason as u8, Ordering::Release);
    let cut = (word | 7) - 7 + Phase::Cut as u64;
    if watched.word.compare_exchange(word, cut, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        if reason == Reason::WriteStalled {
            socket::reset_on_close(fd);
        }
        let how = if reason.can_answer() { std::net::Shutdown::Read } else { std::net::Shutdown::Both };
        socket::shut(fd, how);
    }
}

/// How often the watch looks at least and at most. In between it is 50 us for each connection, which keeps it at about
/// 3% of a core (a look costs 1 to 2 us). What a client can make the server buffer in one head is what it can send
/// between two looks.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(20);
const LOOK_EVERY_IDLE: Duration = Duration::from_millis(100);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);
const LOOK_EVERY_PER_CONNECTION: Duration = Duration::from_micros(50);

/// Descriptors kept for the moment when the process has no others. The server's accepting loop tries again at once
/// when it gets none, and keeps its worker from anything else; with these let go it gets some, and refuses what it
/// accepts until there are enough again.
#[derive(Default)]
struct Spares(Vec<File>);

impl Spares {
    const NUMBER: usize = 16;

    /// Whether the process has run out of descriptors.
    fn look(&mut self) -> bool {
        let held = self.0.len() == Spares::NUMBER;
        let needed = if held { 1 } else { 2 * Spares::NUMBER };
        let more: Vec<File> = (0..needed).map_while(|_| File::open("/dev/null").ok()).collect();
        let exhausted = more.len() < needed;
        if exhausted && held {
            tracing::error!("no file descriptors left: refusing connections");
            self.0.clear();
        } else if !exhausted && !held {
            self.0.extend(more.into_iter().take(Spares::NUMBER));
        }
        exhausted
    }
}

/// Looks at all connections until the door is closed.
pub(super) fn run(shared: &Shared) {
    let mut connections: Vec<(Arc<Watched>, Option<Memory>)> = Vec::new();
    let mut spares = Spares::default();
    loop {
        shared.exhausted.store(spares.look(), Ordering::Relaxed);
        let draining = shared.draining.load(Ordering::Acquire);
        let number = u32::try_from(connections.len()).unwrap_or(u32::MAX);
        let every = match number {
            _ if draining => LOOK_EVERY_MIN,
            0 => LOOK_EVERY_IDLE,
            _ => LOOK_EVERY_PER_CONNECTION.saturating_mul(number).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX),
        };
        let guard = shared.lock_stopped();
        let stopped = *guard || *shared.changed.wait_timeout(guard, every).unwrap_or_else(PoisonError::into_inner).0;
        let newcomers = std::mem::take(&mut *shared.newcomers.lock().unwrap_or_else(PoisonError::into_inner));
        connections.extend(newcomers.into_iter().map(|watched| (watched, None)));
        if stopped {
            // Accepting has ended before, so these are all.
            connections.iter().for_each(|(watched, _)| watched.kill());
            return;
        }
        let now = Instant::now();
        connections.retain_mut(|(watched, memory)| look(watched, memory, now, &shared.limits, draining));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;

    /// A connection looked at over and over, with a clock and counts of its own.
    struct Looks {
        memory: Memory,
        limits: Limits,
        now: Instant,
        sample: Sample,
        draining: bool,
    }

    impl Looks {
        fn new() -> Looks {
            let now = Instant::now();
            let counts = Counts { received: 0, acknowledged: 0, ended: false, closed: false };
            Looks {
                memory: Memory::new(now),
                limits: Limits::derive(&Options::default()),
                now,
                sample: Sample { counts, unread: 0, unacknowledged: 0, unwritten: 0 },
                draining: false,
            }
        }

        /// Looks every 100 ms, with `change` in between, and returns after how many ms there was a verdict.
        fn until(&mut self, word: u64, ms_max: u64, mut change: impl FnMut(&mut Sample)) -> (u64, Option<Reason>) {
            for ms in (0..=ms_max).step_by(100) {
                let verdict = self.memory.judge(word, self.sample, self.now, &self.limits, self.draining);
                if verdict.is_some() {
                    return (ms, verdict);
                }
                self.now += Duration::from_millis(100);
                change(&mut self.sample);
            }
            (ms_max, None)
        }
    }

    fn word(change: u64, phase: Phase) -> u64 {
        change * 8 + phase as u64
    }

    #[test]
    fn phases_and_words() {
        let watched = Watched::new(-1, Phase::Fresh);
        let mut before = Phase::Fresh;
        let mut word = watched.word.load(Ordering::Relaxed);
        for phase in [Phase::Busy, Phase::Body, Phase::Busy, Phase::Write, Phase::Linger, Phase::Idle, Phase::Idle] {
            assert_eq!(watched.enter(phase), before);
            let next = watched.word.load(Ordering::Relaxed);
            assert!(next > word && Phase::of(next) == phase);
            (before, word) = (phase, next);
        }
        cut(&watched, -1, word - 8, Reason::Idle);
        assert!(!watched.is_cut(), "it has moved on");
        cut(&watched, -1, word, Reason::Idle);
        assert!(watched.is_cut() && watched.reason() == Some(Reason::Idle));
        assert_eq!(watched.enter(Phase::Busy), Phase::Cut);
    }

    #[test]
    fn new_connections_have_ten_seconds_for_their_first_head() {
        let silent = Looks::new().until(word(0, Phase::Fresh), 60_000, |_| {});
        assert_eq!(silent, (10_000, Some(Reason::HeaderSlow)));
        let trickling = Looks::new().until(word(0, Phase::Fresh), 60_000, |s| s.counts.received += 1);
        assert_eq!(trickling, (10_000, Some(Reason::HeaderSlow)));
    }

    #[test]
    fn idle_connections_have_75_seconds_and_then_ten_for_the_next_head() {
        assert_eq!(Looks::new().until(word(2, Phase::Idle), 100_000, |_| {}), (75_000, Some(Reason::Idle)));
        let mut looks = Looks::new();
        looks.sample.counts.received = 1_000_000;
        assert_eq!(looks.until(word(2, Phase::Idle), 60_000, |_| {}).1, None);
        looks.sample.counts.received += 1;
        assert_eq!(looks.until(word(2, Phase::Idle), 60_000, |_| {}), (10_000, Some(Reason::HeaderSlow)));
        // Answers that are still on their way keep it from being idle.
        let mut looks = Looks::new();
        looks.sample.unwritten = 1;
        assert_eq!(looks.until(word(2, Phase::Idle), 100_000, |_| {}).1, None);
    }

    #[test]
    fn bodies_may_fall_behind_by_ten_seconds() {
        let body = word(3, Phase::Body);
        let stopped = Looks::new().until(body, 60_000, |_| {});
        assert_eq!(stopped, (10_000, Some(Reason::BodySlow)));
        let too_slow = Looks::new().until(body, 60_000, |s| s.counts.received += 51);
        assert!(matches!(too_slow, (19_000..=21_000, Some(Reason::BodySlow))), "half the pace: {too_slow:?}");
        assert_eq!(Looks::new().until(body, 200_000, |s| s.counts.received += 103).1, None);
        let mut looks = Looks::new();
        assert_eq!(looks.until(body, 5_000, |s| s.counts.received += 1 << 20).1, None);
        let after = looks.until(body, 60_000, |_| {});
        assert!(matches!(after, (9_900..=10_100, Some(Reason::BodySlow))), "what came before is no credit: {after:?}");
        let mut looks = Looks::new();
        looks.sample.unread = 1;
        assert_eq!(looks.until(body, 100_000, |_| {}).1, None, "the delay is ours");
    }

    #[test]
    fn stalled_writers_have_thirty_seconds_since_the_last_progress() {
        for phase in [Phase::Write, Phase::Idle] {
            let mut looks = Looks::new();
            looks.sample.unacknowledged = 100_000;
            assert_eq!(looks.until(word(4, phase), 100_000, |_| {}), (30_000, Some(Reason::WriteStalled)));
            let mut looks = Looks::new();
            looks.sample.unacknowledged = 100_000;
            assert_eq!(looks.until(word(4, phase), 100_000, |s| s.counts.acknowledged += 1).1, None);
        }
    }

    #[test]
    fn lingering_ends_after_two_seconds_and_serving_does_not() {
        assert_eq!(Looks::new().until(word(5, Phase::Linger), 60_000, |_| {}), (2_000, Some(Reason::Lingered)));
        assert_eq!(Looks::new().until(word(5, Phase::Busy), 600_000, |_| {}).1, None);
    }

    #[test]
    fn long_heads() {
        let mut looks = Looks::new();
        looks.sample.counts.received = 129 << 10;
        assert_eq!(looks.until(word(0, Phase::Fresh), 1000, |_| {}), (0, Some(Reason::HeaderLong)));
        let mut looks = Looks::new();
        looks.sample.counts.received = 65 << 10;
        assert_eq!(looks.until(word(0, Phase::Fresh), 1000, |_| {}), (200, Some(Reason::HeaderLong)));
        let mut looks = Looks::new();
        (looks.sample.counts.received, looks.sample.unread) = (10 << 20, 10 << 20);
        assert_eq!(looks.until(word(0, Phase::Fresh), 1000, |_| {}).1, None, "not read, so not a head yet");
    }

    #[test]
    fn draining_ends_what_was_quiet_for_two_looks() {
        for phase in [Phase::Fresh, Phase::Idle] {
            let mut looks = Looks::new();
            looks.draining = true;
            assert_eq!(looks.until(word(6, phase), 1000, |_| {}), (100, Some(Reason::Draining)));
        }
        for change in [
            |s: &mut Sample| s.counts.received += 1,
            |s: &mut Sample| s.unacknowledged = 1,
            |s: &mut Sample| s.unwritten = 1,
            |s: &mut Sample| s.unread = 1,
        ] {
            let mut looks = Looks::new();
            looks.draining = true;
            assert_eq!(looks.until(word(6, Phase::Idle), 1000, change).1, None);
        }
        let mut looks = Looks::new();
        looks.draining = true;
        assert_eq!(looks.until(word(6, Phase::Busy), 1000, |_| {}).1, None);
    }
}
