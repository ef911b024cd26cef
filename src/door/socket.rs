//! What is asked of the kernel about a connection's socket, as single calls that never wait.
//!
//! None of these functions may be inlined. A coroutine goes on in another thread after a wait, but the compiler holds
//! the address of `errno` to be the same throughout a function; inlined into one that waits, an error could be read
//! from the wrong thread, and has been: a `WouldBlock` that became a `NotConnected`.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::RawFd;

/// What the kernel counted on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes that arrived, read or not; a FIN counts as one.
    pub received: u64,
    /// Bytes that the peer acknowledged.
    pub acknowledged: u64,
    /// The peer has ended its side.
    pub ended: bool,
    /// The connection is gone in both directions.
    pub closed: bool,
}

/// Writes what fits into the kernel's buffer now; `more` follows at once.
#[inline(never)]
pub(super) fn send(fd: RawFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: the pointer and length are those of a live slice; a descriptor that is not open is an error, no more.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Reads what is there now; initialises as many bytes as it returns.
#[inline(never)]
pub(super) fn receive(fd: RawFd, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live slice, which the kernel only writes to.
    let n = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Copies what is there now without taking it; initialises as many bytes as it returns, none at the peer's end.
#[inline(never)]
pub(super) fn peek(fd: RawFd, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live slice, which the kernel only writes to.
    let n = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Shuts a connection down, whoever owns its descriptors.
#[inline(never)]
pub(super) fn shut(fd: RawFd, how: Shutdown) {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: takes no pointer; a descriptor that is not open is an error, no more.
    unsafe { libc::shutdown(fd, how) };
}

/// Has the connection reset when it is closed, instead of leaving what was not sent, or a peer whose bytes nobody takes
/// any more, to the kernel for minutes.
pub(super) fn reset_on_close(fd: RawFd) {
    // What fails here fails because the connection is gone.
    let _ = set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// Makes the kernel announce once more what lies unread, or that the peer has ended, to everybody who waits for it:
/// setting `SO_RCVLOWAT`, to what it is anyway, does that (since Linux 4.18).
pub(super) fn announce_again(fd: RawFd) {
    let one: libc::c_int = 1;
    // What fails here fails because the connection is gone.
    let _ = set(fd, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &one);
}

/// Sets an option whose value is a plain C type.
#[inline(never)]
pub(super) fn set<T: Copy>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the value has `size` bytes and outlives the call.
    let failed = unsafe { libc::setsockopt(fd, level, name, (&raw const *value).cast(), size) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An option whose value is an int.
#[inline(never)]
pub(super) fn get(fd: RawFd, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).ok()?;
    // SAFETY: `value` has `size` writable bytes, and both outlive the call.
    let failed = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut size) };
    (failed == 0).then_some(value)
}

/// Asks the kernel for its counts; `None` before Linux 4.1, or where it is no TCP connection.
#[inline(never)]
pub(super) fn counts(fd: RawFd) -> Option<Counts> {
    // The head of `struct tcp_info` (linux/tcp.h): 8 bytes of which the first is the state, 24 u32, then as u64
    // pacing_rate, max_pacing_rate, bytes_acked and bytes_received, which are the 16th and 17th word of 8 bytes.
    const ESTABLISHED: u8 = 1;
    const FIN_WAIT_1: u8 = 4;
    const FIN_WAIT_2: u8 = 5;
    const CLOSE: u8 = 7;
    let mut words = [0u64; 17];
    let size = size_of_val(&words);
    let mut length = libc::socklen_t::try_from(size).ok()?;
    // SAFETY: `words` has `length` writable bytes, and any bytes are valid in it; both outlive the call.
    let failed =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, words.as_mut_ptr().cast(), &raw mut length) };
    if failed != 0 || (length as usize) < size {
        return None;
    }
    let state = words[0].to_ne_bytes()[0];
    Some(Counts {
        acknowledged: words[15],
        received: words[16],
        ended: ![ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2].contains(&state),
        closed: state == CLOSE,
    })
}

/// Bytes that lie in the kernel and have not been acknowledged by the peer.
pub(super) fn unacknowledged(fd: RawFd) -> Option<u64> {
    queued(fd, libc::TIOCOUTQ)
}

/// Bytes that lie in the kernel and have not been read.
pub(super) fn unread(fd: RawFd) -> Option<u64> {
    queued(fd, libc::FIONREAD)
}

#[inline(never)]
fn queued(fd: RawFd, request: libc::Ioctl) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests (SIOCOUTQ has the number of TIOCOUTQ) write one int, which outlives the call.
    let failed = unsafe { libc::ioctl(fd, request, &raw mut bytes) };
    if failed == 0 { u64::try_from(bytes).ok() } else { None }
}

/// Bytes written to the connection so far. Acknowledgements move bytes from one count to the other while they are
/// being read, so they are read until none came in between; each such round means progress of at most what is queued.
pub(super) fn written(fd: RawFd) -> Option<u64> {
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
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_kernel_counts_every_byte_that_was_written_and_received() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let server = listener.accept().expect("accept").0;
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
        assert_eq!(counts(fd).map(|c| c.ended), Some(false));
        client.shutdown(Shutdown::Write).expect("shutdown");
        eventually("a FIN counts as one", || counts(fd).map(|c| (c.received, c.ended)) == Some((6, true)));
    }
}
