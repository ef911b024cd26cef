//! Our own descriptor of a connection, beside the server's.
//!
//! `may_minihttp` owns the connection's first descriptor and writes answers from a buffer of its own, after it has
//! served every request that it has read. What it cannot do (an interim `100 Continue`, an answer followed by closing,
//! an answer that waits for its reader) is written here, to a duplicate of that descriptor.
//!
//! Order is the difficulty: answers to pipelined requests may still lie in the server's buffer, where nothing can reach
//! them, and must not be overtaken. So the last bytes that the server was given are kept in a shadow, and the kernel
//! is asked how many bytes were written to the connection altogether (acknowledged + queued). When that is all that
//! was given, the way is free. When it is not, the missing rest is written from the shadow, and from then on the
//! connection can only end: the server still holds these bytes, and shutting down the sending side keeps it from
//! writing them again.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use may::io::{CoIo, WaitIo};

/// Shadows grow to this before the kernel is asked whether they can go: about 60 answers to single events.
const SHADOW_BYTES: usize = 16 << 10;

/// Our descriptor of a connection.
pub(super) struct Wire {
    /// Registered for waiting when it is first needed. Dropped before `socket`, whose number it holds.
    waiter: Option<CoIo<Number>>,
    socket: TcpStream,
    /// Bytes given to the server or written here, since the connection began.
    given: u64,
    /// The last of the bytes given to the server: all that may still be in its buffer.
    shadow: Vec<u8>,
    /// The server holds bytes that were written here from the shadow.
    stale: bool,
}

/// The number of a descriptor that somebody else owns.
struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// What the kernel counted on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes that arrived, read or not; a FIN counts as one.
    pub received: u64,
    /// Bytes that the peer acknowledged.
    pub acknowledged: u64,
    /// The connection is gone in both directions.
    pub closed: bool,
}

impl Wire {
    /// Duplicates the server's descriptor, which is given as what `new_service` calls an id.
    pub fn duplicate(id: usize) -> io::Result<Wire> {
        let fd = RawFd::try_from(id).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the server passes the descriptor of the stream that it has just accepted, and keeps that stream
        // alive until it has called the service's constructor and moved both into the connection's coroutine.
        let theirs = unsafe { BorrowedFd::borrow_raw(fd) };
        let socket = TcpStream::from(theirs.try_clone_to_owned()?);
        // Answers are small and written whole: waiting to fill a packet only costs time.
        socket.set_nodelay(true)?;
        Ok(Wire { waiter: None, socket, given: 0, shadow: Vec::new(), stale: false })
    }

    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    pub fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Lets `encode` append the bytes that the server is about to be given.
    pub fn give(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.shadow.len();
        encode(&mut self.shadow);
        self.given += (self.shadow.len() - before) as u64;
    }

    /// Forgets what has left, now and then, and says how many bytes may still be in the server's buffer.
    pub fn settle(&mut self) -> usize {
        if self.shadow.len() >= SHADOW_BYTES { self.pending() } else { self.shadow.len() }
    }

    /// How many bytes that were given have not been written yet. A kernel that does not tell (none since Linux 4.1) is
    /// taken to have written all, which is true for every client that waits for its answers.
    pub fn pending(&mut self) -> usize {
        if !self.shadow.is_empty() {
            let pending = written(self.number()).map_or(0, |written| self.given.saturating_sub(written));
            let keep = usize::try_from(pending).unwrap_or(usize::MAX).min(self.shadow.len());
            self.shadow.drain(..self.shadow.len() - keep);
            self.shadow.shrink_to(SHADOW_BYTES * 4);
        }
        self.shadow.len()
    }

    /// Writes what the server has not written yet, so that what is sent next is in order. Afterwards
    /// [`Wire::must_end`] tells whether the connection can go on.
    pub fn catch_up(&mut self) -> io::Result<()> {
        if self.stale {
            return Ok(());
        }
        if self.pending() > 0 {
            self.stale = true;
            let shadow = std::mem::take(&mut self.shadow);
            self.write(&shadow, false)?;
        }
        Ok(())
    }

    /// The server holds bytes that it must not write.
    pub fn must_end(&self) -> bool {
        self.stale
    }

    /// Writes all of `bytes`, waiting for the peer as needed; `more` follows at once. Only after [`Wire::catch_up`].
    pub fn send(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        self.given += bytes.len() as u64;
        self.write(bytes, more)
    }

    fn write(&mut self, mut bytes: &[u8], more: bool) -> io::Result<()> {
        while !bytes.is_empty() {
            match send_now(self.number(), bytes, more) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Appends up to `wanted` bytes, waiting for the first of them; 0 at the end. `wanted` must fit the capacity.
    pub fn receive(&mut self, into: &mut Vec<u8>, wanted: usize) -> io::Result<usize> {
        let spare = into.spare_capacity_mut();
        let wanted = wanted.min(spare.len());
        let start = spare.as_mut_ptr();
        loop {
            // SAFETY: `start` is the beginning of at least `wanted` bytes of spare capacity, which nothing else
            // refers to while the call runs.
            let n = unsafe { libc::recv(self.number(), start.cast(), wanted, libc::MSG_DONTWAIT) };
            if let Ok(n) = usize::try_from(n) {
                // SAFETY: the kernel has initialised the first `n` bytes of the spare capacity.
                unsafe { into.set_len(into.len() + n) };
                return Ok(n);
            }
            let e = io::Error::last_os_error();
            match e.kind() {
                io::ErrorKind::WouldBlock => self.wait()?,
                io::ErrorKind::Interrupted => {}
                _ => return Err(e),
            }
        }
    }

    /// Waits until the connection may be readable or writable again.
    fn wait(&mut self) -> io::Result<()> {
        if self.waiter.is_none() {
            let number = Number(self.number());
            self.waiter = Some(CoIo::new(number).map_err(|e| io::Error::other(e.to_string()))?);
        }
        if let Some(waiter) = &self.waiter {
            waiter.wait_io();
        }
        Ok(())
    }

    /// Makes the kernel announce once more what lies unread, or that the peer has ended.
    ///
    /// Readiness is announced once, when bytes arrive. While a body is read, the server's `TcpStream::read` (which its
    /// `BodyReader` uses) forgets announcements that belong to bytes or an end behind the body, and then its loop waits
    /// for one that never comes. Setting `SO_RCVLOWAT` to what it is anyway announces them again (Linux 4.18).
    pub fn announce_again(&self) {
        let one: libc::c_int = 1;
        // SAFETY: the option's value is one int that outlives the call.
        unsafe {
            let size = size_of_val(&one) as libc::socklen_t;
            libc::setsockopt(self.number(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const one).cast(), size);
        }
    }

    /// Ends the sending side: nothing written to either descriptor leaves after this.
    pub fn finish_sending(&self) {
        // An error means that the peer is gone, which is what this is about to make of it.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Reads on for up to `bytes_max` bytes and throws them away, until the peer ends.
    pub fn discard(&mut self, bytes_max: usize) {
        let mut scrap = Vec::with_capacity(16 << 10);
        let mut left = bytes_max;
        while left > 0 {
            scrap.clear();
            match self.receive(&mut scrap, left.min(16 << 10)) {
                Ok(n) if n > 0 => left -= n,
                _ => return,
            }
        }
    }

    /// The peer has got everything that was written, or nothing more can reach it.
    pub fn is_acknowledged(&self) -> bool {
        unacknowledged(self.number()).unwrap_or(0) == 0 || counts(self.number()).is_none_or(|counts| counts.closed)
    }

    /// What can be read right now: `Ok(true)` when something, `Ok(false)` when nothing yet, an error of the kind
    /// `UnexpectedEof` when the peer has ended.
    pub fn peek(&self) -> io::Result<bool> {
        let mut byte = 0u8;
        // SAFETY: `byte` is one writable byte that outlives the call.
        let n = unsafe { libc::recv(self.number(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
        match n {
            1.. => Ok(true),
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {
                let e = io::Error::last_os_error();
                if e.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(e) }
            }
        }
    }
}

/// Writes what fits into the kernel's buffer now.
pub(super) fn send_now(fd: RawFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: the pointer and length are those of a live slice; a descriptor that is not open is an error, no more.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Shuts a connection down, whoever owns its descriptors.
pub(super) fn shut(fd: RawFd, how: Shutdown) {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: takes no pointer; a descriptor that is not open is an error, no more.
    unsafe { libc::shutdown(fd, how) };
}

/// Asks the kernel for its counts; `None` before Linux 4.1, or where it is no TCP connection.
pub(super) fn counts(fd: RawFd) -> Option<Counts> {
    // The head of `struct tcp_info` (linux/tcp.h): 8 bytes of which the first is the state, 24 u32, then as u64
    // pacing_rate, max_pacing_rate, bytes_acked and bytes_received, which are the 16th and 17th word of 8 bytes.
    const CLOSED: u8 = 7;
    let mut words = [0u64; 17];
    let size = size_of_val(&words);
    let mut length = libc::socklen_t::try_from(size).ok()?;
    // SAFETY: `words` has `length` writable bytes, and any bytes are valid in it; both outlive the call.
    let failed =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, words.as_mut_ptr().cast(), &raw mut length) };
    if failed != 0 || (length as usize) < size {
        return None;
    }
    let closed = words[0].to_ne_bytes()[0] == CLOSED;
    Some(Counts { acknowledged: words[15], received: words[16], closed })
}

/// Bytes that lie in the kernel and have not been acknowledged by the peer.
pub(super) fn unacknowledged(fd: RawFd) -> Option<u64> {
    queued(fd, libc::TIOCOUTQ)
}

/// Bytes that lie in the kernel and have not been read.
pub(super) fn unread(fd: RawFd) -> Option<u64> {
    queued(fd, libc::FIONREAD)
}

fn queued(fd: RawFd, request: libc::Ioctl) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests (SIOCOUTQ has the number of TIOCOUTQ) write one int, which outlives the call.
    let failed = unsafe { libc::ioctl(fd, request, &raw mut bytes) };
    if failed == 0 { u64::try_from(bytes).ok() } else { None }
}

/// Bytes written to the connection so far. Acknowledgements move bytes from one count to the other while they are
/// being read, so they are read until none came in between; each such round means progress of at most what is queued.
fn written(fd: RawFd) -> Option<u64> {
    let mut before = counts(fd)?.acknowledged;
    for _ in 0..10_000 {
        let queued = unacknowledged(fd)?;
        let after = counts(fd)?.acknowledged;
        if before == after {
            return Some(after + queued);
        }
        before = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_kernel_counts_every_byte_that_was_written_and_received() {
        let (mut client, server) = pair();
        let fd = server.as_raw_fd();
        assert_eq!(written(fd), Some(0));
        let mut total = 0;
        for size in [1, 100, 70_000] {
            (&server).write_all(&vec![b'x'; size]).expect("write");
            total += size as u64;
            assert_eq!(written(fd), Some(total));
        }
        client.read_exact(&mut vec![0; 70_101]).expect("read");
        eventually("all acknowledged", || unacknowledged(fd) == Some(0));
        assert_eq!(written(fd), Some(total));

        client.write_all(b"hello").expect("write");
        eventually("5 bytes received", || counts(fd).map(|c| c.received) == Some(5));
        assert_eq!(unread(fd), Some(5));
        client.shutdown(Shutdown::Write).expect("shutdown");
        eventually("a FIN counts as one", || counts(fd).map(|c| c.received) == Some(6));
    }

    #[test]
    fn what_the_server_did_not_write_is_written_from_the_shadow() {
        let (mut client, server) = pair();
        let mut wire = Wire::duplicate(server.as_raw_fd() as usize).expect("duplicate");
        wire.give(|shadow| shadow.extend_from_slice(b"first"));
        (&server).write_all(b"first").expect("write");
        wire.catch_up().expect("catch up");
        assert!(!wire.must_end());
        wire.send(b" second", false).expect("send");
        wire.give(|shadow| shadow.extend_from_slice(b" third"));
        (&server).write_all(b" th").expect("write");
        wire.catch_up().expect("catch up");
        assert!(wire.must_end());
        wire.send(b" fourth", false).expect("send");
        wire.finish_sending();
        assert!((&server).write_all(b"ird").is_err());
        let mut all = String::new();
        client.read_to_string(&mut all).expect("read");
        assert_eq!(all, "first second third fourth");
    }
}
