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

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
pub(super) struct Memory {
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
pub(super) struct Sample {
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
            let received = if phase == Phase::Fresh { 0 } else { sample.counts.received };
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
pub(super) fn look(
    watched: &Watched,
    memory: &mut Option<Memory>,
    now: Instant,
    limits: &Limits,
    draining: bool,
) -> bool {
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
