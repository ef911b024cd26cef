//! What can be set on the door, and the limits that follow from it and from the machine.
//!
//! In: [`Options`] as configured. Out: [`Limits`], with durations as `Duration` and `connections_max` lowered to what
//! the process may have open. The two cannot be at odds: every relation between them is established in
//! [`Limits::derive`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// What can be set on the door.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one (see [`super::Door::local_addr`]).
    pub listen: SocketAddr,
    /// The longest body taken, in bytes as sent; beyond it the answer is 413.
    pub body_bytes_max: usize,
    /// The longest body taken that was sent with a content coding, in bytes as decoded; beyond it the answer is 413.
    pub decoded_bytes_max: usize,
    /// All bodies that are being read, decoded or answered together, in bytes; beyond it the answer is 503.
    pub body_bytes_in_flight_max: usize,
    /// A head (request line and header fields) longer than this many bytes is cut off with 431. Checked from outside
    /// of the parser a few times a second, so a fast sender can get some way past it.
    pub head_bytes_max: usize,
    /// Connections open at a time; those beyond get a 503. Lowered to what the file descriptors (two for each
    /// connection) and memory mappings of the process allow.
    pub connections_max: usize,
    /// How long a head may take from its first byte to its last, and how long a new connection may stay silent.
    pub header_ms_max: u64,
    /// How far a body may fall behind `body_bytes_per_s_min` before it is given up with 408.
    pub body_grace_ms: u64,
    /// How fast a body has to arrive.
    pub body_bytes_per_s_min: u64,
    /// How long a connection may stay open between two requests.
    pub idle_ms_max: u64,
    /// How long a peer may take nothing of its answer before it is cut off.
    pub write_stall_ms_max: u64,
    /// After an answer that left a body unread: how long it is read on, so that the answer can be seen.
    pub linger_ms_max: u64,
    /// After an answer that left a body unread: how much of it is read on.
    pub linger_bytes_max: usize,
    /// Threads that run coroutines; 0 takes one for each core. The first door of a process decides.
    pub workers: usize,
    /// The stack of a coroutine, in bytes; parsing happens on it. It is mapped whole and committed page by page as it
    /// is touched. The first door of a process decides.
    pub stack_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            body_bytes_max: 32 << 20,
            decoded_bytes_max: 256 << 20,
            // 512 MiB: 16 bodies of the longest kind, or 300 of 10,000 events each, or one of the longest that decodes
            // to the longest, with some to spare.
            body_bytes_in_flight_max: 512 << 20,
            head_bytes_max: 64 << 10,
            connections_max: 8192,
            header_ms_max: 10_000,
            body_grace_ms: 10_000,
            body_bytes_per_s_min: 1 << 10,
            idle_ms_max: 75_000,
            write_stall_ms_max: 30_000,
            linger_ms_max: 2_000,
            linger_bytes_max: 1 << 20,
            workers: 0,
            stack_bytes: 256 << 10,
        }
    }
}

/// Descriptors left to the rest of the process: Kafka and ClickHouse sockets, files, epoll.
const DESCRIPTORS_RESERVED: usize = 256;
/// Descriptors below the limit at which connections are refused whatever their number: others have taken them.
const DESCRIPTORS_HEADROOM: usize = 64;
/// Memory mappings left to the rest of the process.
const MAPPINGS_RESERVED: usize = 8 << 10;
/// A coroutine's stack is two mappings (the stack and its guard page).
const MAPPINGS_PER_CONNECTION: usize = 2;
/// The server's connection and our second descriptor of it.
const DESCRIPTORS_PER_CONNECTION: usize = 2;

/// The limits in force.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub body_bytes_max: usize,
    pub decoded_bytes_max: usize,
    pub body_bytes_in_flight_max: usize,
    pub head_bytes_max: u64,
    /// Beyond it a connection is answered 503.
    pub connections_max: usize,
    /// Beyond it a connection is closed at once and accepting pauses.
    pub connections_hard_max: usize,
    /// A descriptor of this number or above means that the process has nearly none left.
    pub descriptor_max: i32,
    pub header_max: Duration,
    pub body_grace: Duration,
    pub body_bytes_per_s_min: u64,
    pub idle_max: Duration,
    pub write_stall_max: Duration,
    pub linger_max: Duration,
    pub linger_bytes_max: usize,
}

impl Limits {
    pub fn derive(options: &Options) -> Limits {
        let descriptors = raise_descriptor_limit().unwrap_or(1024);
        let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count")
            .ok()
            .and_then(|text| text.trim().parse::<usize>().ok())
            .unwrap_or(65_530);
        let reserved = DESCRIPTORS_RESERVED.min(descriptors / 4);
        let hard = ((descriptors - reserved) / DESCRIPTORS_PER_CONNECTION)
            .min(mappings.saturating_sub(MAPPINGS_RESERVED) / MAPPINGS_PER_CONNECTION)
            .max(2);
        // An eighth on top is for those that are told 503 and about to go.
        let connections_max = options.connections_max.clamp(1, hard - hard / 8);
        let connections_hard_max = hard.min(connections_max + (connections_max / 8).max(64));
        if connections_max < options.connections_max {
            tracing::warn!(
                configured = options.connections_max,
                in_force = connections_max,
                descriptors,
                mappings,
                "connections_max lowered to what this process may open"
            );
        }
        let ms = |n: u64| Duration::from_millis(n.max(1));
        // One body of the longest kind always fits.
        let body_bytes_in_flight_max = options.body_bytes_in_flight_max.max(options.body_bytes_max);
        Limits {
            body_bytes_max: options.body_bytes_max,
            // What may be sent as it is may be sent with a coding.
            decoded_bytes_max: options.decoded_bytes_max.clamp(options.body_bytes_max, body_bytes_in_flight_max),
            body_bytes_in_flight_max,
            head_bytes_max: options.head_bytes_max.max(1 << 10) as u64,
            connections_max,
            connections_hard_max,
            descriptor_max: i32::try_from(descriptors.saturating_sub(DESCRIPTORS_HEADROOM)).unwrap_or(i32::MAX),
            header_max: ms(options.header_ms_max),
            body_grace: ms(options.body_grace_ms),
            body_bytes_per_s_min: options.body_bytes_per_s_min.max(1),
            idle_max: ms(options.idle_ms_max),
            write_stall_max: ms(options.write_stall_ms_max),
            linger_max: ms(options.linger_ms_max),
            linger_bytes_max: options.linger_bytes_max,
        }
    }
}

/// Raises the soft limit of open files to the hard one and returns it.
fn raise_descriptor_limit() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        if limit.rlim_cur < limit.rlim_max {
            let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
                limit.rlim_cur = limit.rlim_max;
            }
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX).min(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_never_contradict_each_other() {
        for connections_max in [0, 1, 100, 8192, usize::MAX] {
            for body_bytes_max in [0, 1, 32 << 20, 4 << 30] {
                let limits = Limits::derive(&Options { connections_max, body_bytes_max, ..Options::default() });
                assert!(limits.connections_max >= 1);
                assert!(limits.connections_max <= limits.connections_hard_max);
                assert!(limits.body_bytes_in_flight_max >= limits.decoded_bytes_max);
                assert!(limits.decoded_bytes_max >= limits.body_bytes_max);
            }
        }
    }
}
