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
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use may::io::{CoIo, WaitIo};

use super::socket;

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

    /// Bytes given to the server or written here, since the connection began.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Forgets what has left, now and then, and says how many bytes may still be in the server's buffer.
    pub fn settle(&mut self) -> usize {
        if self.shadow.len() >= SHADOW_BYTES { self.pending() } else { self.shadow.len() }
    }

    /// How many bytes that were given have not been written yet. A kernel that does not tell (none since Linux 4.1) is
    /// taken to have written all, which is true for every client that waits for its answers.
    pub fn pending(&mut self) -> usize {
        if !self.shadow.is_empty() {
            let pending = socket::written(self.number()).map_or(0, |written| self.given.saturating_sub(written));
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
            match socket::send(self.number(), bytes, more) {
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
        let wanted = wanted.min(into.capacity() - into.len());
        loop {
            match socket::receive(self.number(), &mut into.spare_capacity_mut()[..wanted]) {
                Ok(n) => {
                    // SAFETY: that many bytes of the spare capacity have just been initialised.
                    unsafe { into.set_len(into.len() + n) };
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until the connection may be readable or writable again.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.waiter.is_none() {
            let number = Number(self.number());
            self.waiter = Some(CoIo::new(number).map_err(|e| io::Error::other(e.to_string()))?);
        }
        if let Some(waiter) = &self.waiter {
            waiter.wait_io();
        }
        Ok(())
    }

    /// Announces to the server's loop what lies behind a body that was read.
    ///
    /// Readiness is announced once, when bytes arrive. While a body is read, the server's `TcpStream::read` (which its
    /// `BodyReader` uses) forgets announcements that belong to bytes or an end behind the body, and then its loop waits
    /// for one that never comes.
    pub fn announce_again(&self) {
        socket::announce_again(self.number());
    }

    /// Ends the sending side: nothing written to either descriptor leaves after this.
    pub fn finish_sending(&self) {
        // An error means that the peer is gone, which is what this is about to make of it.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Reads on and throws away until nothing more is to come, or until it was `bytes_max` bytes: then it returns false.
    pub fn discard(&mut self, bytes_max: usize) -> bool {
        let mut scrap = Vec::with_capacity(16 << 10);
        let mut left = bytes_max;
        while left > 0 {
            scrap.clear();
            match self.receive(&mut scrap, left.min(16 << 10)) {
                Ok(n) if n > 0 => left -= n,
                _ => return true,
            }
        }
        false
    }

    /// The peer has ended its side, or is gone.
    pub fn is_ended(&self) -> bool {
        socket::counts(self.number()).is_none_or(|counts| counts.ended)
    }

    /// The peer has got everything that was written, or nothing more can reach it.
    pub fn is_acknowledged(&self) -> bool {
        socket::unacknowledged(self.number()).unwrap_or(0) == 0
            || socket::counts(self.number()).is_none_or(|counts| counts.closed)
    }

    /// What can be read right now: `Ok(true)` when something, `Ok(false)` when nothing yet, an error of the kind
    /// `UnexpectedEof` when the peer has ended.
    pub fn peek(&self) -> io::Result<bool> {
        match socket::peek(self.number(), &mut [MaybeUninit::uninit()]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (client, listener.accept().expect("accept").0)
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
