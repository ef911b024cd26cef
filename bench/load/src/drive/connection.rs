//! One connection of a worker: its socket, the request under way, and what has come of the answer.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::response::Reader;
use crate::source::{Expected, Request};

/// How much of a body is kept: the counts, or what an error says.
const BODY_KEPT: usize = 512;
/// Pauses between tries to connect: the first, doubled up to the longest.
const RETRY_NS_MIN: u64 = 50_000_000;
const RETRY_NS_MAX: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not connected; to be tried again at this time.
    Down {
        retry_at: u64,
    },
    Connecting {
        since: u64,
    },
    Idle,
    /// A request is under way.
    Busy,
}

#[derive(Debug)]
pub struct Connection {
    pub stream: Option<TcpStream>,
    pub state: State,
    /// The request under way, and since when it was due and was sent.
    pub request: Request,
    pub due: u64,
    pub sent_at: u64,
    /// Bytes of the request that are still to be written.
    pub left: usize,
    /// These bytes, where the source does not keep them.
    pub rest: Vec<u8>,
    pub reader: Reader,
    /// Whether the source has no more for it.
    pub spent: bool,
    failures: u32,
}

impl Connection {
    /// Takes over a connected socket.
    pub fn new(stream: std::net::TcpStream, token: Token, registry: &Registry) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Connection {
            stream: Some(stream),
            state: State::Idle,
            request: Request { number: 0, stream: 0, events: 0, expected: Expected::Read },
            due: 0,
            sent_at: 0,
            left: 0,
            rest: Vec::new(),
            reader: Reader::new(BODY_KEPT),
            spent: false,
            failures: 0,
        })
    }

    /// Closes it, to be opened again: at once when it has served before, else after a pause.
    pub fn close(&mut self, now: u64) {
        self.stream = None;
        self.rest.clear();
        self.reader.reset();
        let pause = if self.failures == 0 { 0 } else { (RETRY_NS_MIN << self.failures.min(10)).min(RETRY_NS_MAX) };
        self.state = State::Down { retry_at: now + pause };
        self.failures += 1;
    }

    /// Starts to connect.
    pub fn open(&mut self, address: SocketAddr, token: Token, registry: &Registry, now: u64) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.stream = Some(stream);
        self.state = State::Connecting { since: now };
        Ok(())
    }

    /// Called when a socket that connects is ready; whether it is connected now.
    pub fn opened(&mut self) -> io::Result<bool> {
        let Some(stream) = &self.stream else { return Ok(false) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => {
                stream.set_nodelay(true)?;
                self.state = State::Idle;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An answer has come: the next failure is the first again.
    pub fn served(&mut self) {
        self.failures = 0;
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Idle | State::Busy)
    }
}
