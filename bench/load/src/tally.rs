//! What is counted of requests and answers.

use hdrhistogram::Histogram;

/// Latencies from 0.1 µs to one hour, three digits of them.
pub fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(100, 3_600_000_000_000, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("the bounds are constants: {error}"),
    }
}

/// What can go wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A connection could not be opened.
    Connect,
    /// It was closed before the answer was whole.
    Cut,
    /// No answer in time.
    Timeout,
    /// Another status than the request should have.
    Status,
    /// The right status, but other counts of events.
    Counts,
    /// An answer that cannot be understood.
    Broken,
}

impl Trouble {
    pub const ALL: [Trouble; 6] =
        [Trouble::Connect, Trouble::Cut, Trouble::Timeout, Trouble::Status, Trouble::Counts, Trouble::Broken];

    pub fn name(self) -> &'static str {
        match self {
            Trouble::Connect => "connect",
            Trouble::Cut => "cut",
            Trouble::Timeout => "timeout",
            Trouble::Status => "status",
            Trouble::Counts => "counts",
            Trouble::Broken => "broken",
        }
    }
}

/// The counts of one stream of requests in one stretch of time.
#[derive(Debug, Clone)]
pub struct Tally {
    /// In nanoseconds: of requests that were answered as they should be, and of those that were not answered or not even sent
    /// when the run ended, for as long as they had waited.
    pub latency: Histogram<u64>,
    pub sent: u64,
    /// Requests that were answered as they should be.
    pub answered: u64,
    /// Requests that were due and could not be sent before the end.
    pub unsent: u64,
    /// Events sent, and of those in good answers the accepted and rejected ones.
    pub events: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Answers by status, whether expected or not.
    pub statuses: Vec<(u16, u64)>,
    troubles: [u64; Trouble::ALL.len()],
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            latency: histogram(),
            sent: 0,
            answered: 0,
            unsent: 0,
            events: 0,
            accepted: 0,
            rejected: 0,
            bytes_sent: 0,
            bytes_received: 0,
            statuses: Vec::new(),
            troubles: [0; Trouble::ALL.len()],
        }
    }
}

impl Tally {
    pub fn status(&mut self, status: u16) {
        match self.statuses.iter_mut().find(|(known, _)| *known == status) {
            Some((_, count)) => *count += 1,
            None => self.statuses.push((status, 1)),
        }
    }

    pub fn trouble(&mut self, trouble: Trouble) {
        self.troubles[trouble as usize] += 1;
    }

    pub fn troubles(&self, trouble: Trouble) -> u64 {
        self.troubles[trouble as usize]
    }

    /// Requests that failed, and connections that could not be opened.
    pub fn failed(&self) -> u64 {
        self.troubles.iter().sum()
    }

    pub fn add(&mut self, other: &Tally) {
        for (value, more) in [
            (&mut self.sent, other.sent),
            (&mut self.answered, other.answered),
            (&mut self.unsent, other.unsent),
            (&mut self.events, other.events),
            (&mut self.accepted, other.accepted),
            (&mut self.rejected, other.rejected),
            (&mut self.bytes_sent, other.bytes_sent),
            (&mut self.bytes_received, other.bytes_received),
        ] {
            *value += more;
        }
        for (status, count) in &other.statuses {
            match self.statuses.iter_mut().find(|(known, _)| known == status) {
                Some((_, known)) => *known += count,
                None => self.statuses.push((*status, *count)),
            }
        }
        self.statuses.sort_unstable();
        self.troubles.iter_mut().zip(other.troubles).for_each(|(value, more)| *value += more);
        if let Err(error) = self.latency.add(&other.latency) {
            unreachable!("all histograms have the same bounds: {error}");
        }
    }
}
