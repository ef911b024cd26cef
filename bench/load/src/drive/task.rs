//! What passes between a worker and whoever started it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::pace::{Intervals, Pace};
use crate::source::Source;
use crate::tally::{Tally, Trouble};

/// What a worker is to do.
pub struct Task {
    pub address: SocketAddr,
    /// Connected sockets.
    pub sockets: Vec<std::net::TcpStream>,
    pub source: Source,
    /// How many streams the source has.
    pub streams: usize,
    pub pace: Pace,
    pub intervals: Intervals,
    /// When no more requests become due.
    pub end: u64,
    pub timeout: Duration,
    /// Whether to go on while the server is away.
    pub tolerate: bool,
    pub stop: Arc<AtomicBool>,
}

/// What a worker tells.
pub enum News {
    /// The tallies, by stream, of one interval; in order, none left out.
    Interval {
        worker: usize,
        index: u64,
        tallies: Vec<Tally>,
    },
    Done {
        worker: usize,
        end: Box<End>,
    },
}

/// The end of a worker.
pub struct End {
    pub source: Source,
    /// When the last answer came.
    pub last_answer: u64,
    pub cpu: Duration,
    /// For each kind of trouble that there was, the first.
    pub first_troubles: Vec<(Trouble, String)>,
    /// Why it ended before its time.
    pub gave_up: Option<String>,
}
