//! The first bytes of a connection, looked at before the server reads them.
//!
//! `may_minihttp` reads until nothing is left before it parses. When the client has ended its side by then, it throws
//! away what it has read; when the head is malformed, it does not tell in which way. In both cases the bytes are gone.
//! So new connections are accepted when their first bytes have arrived (`TCP_DEFER_ACCEPT`), and these are copied
//! without taking them. That covers the first request where it came in one piece, which is what a client sends that
//! closes its side at once; for further requests there is only an answer that says what happened.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::socket;

/// Copied at most: no more than the server reads before it parses.
const FIRST_BYTES_MAX: usize = 16 << 10;
/// The server's bound.
const FIELDS_MAX: usize = 16;
/// How long the kernel waits for the first bytes before it hands a connection over without any, in seconds.
const DEFER_S: libc::c_int = 1;

/// Has connections accepted when their first bytes have arrived. Returns whether the listener was found.
pub(super) fn defer_accepting(address: SocketAddr) -> io::Result<bool> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        // SAFETY: the descriptor is only duplicated, which fails if it is not open any more; whatever it is then, it
        // is looked at and not changed, unless it listens on this very address, which is the server's alone.
        let Ok(copy) = (unsafe { BorrowedFd::borrow_raw(fd) }).try_clone_to_owned() else { continue };
        if socket::get(copy.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ACCEPTCONN) != Some(1) {
            continue;
        }
        let listener = TcpListener::from(copy);
        if listener.local_addr().ok() == Some(address) {
            socket::set(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &DEFER_S)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies what a connection has received, without taking it.
pub(super) fn copy(fd: RawFd) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(FIRST_BYTES_MAX);
    let n = socket::peek(fd, bytes.spare_capacity_mut()).unwrap_or(0);
    // SAFETY: that many bytes of the capacity have just been initialised.
    unsafe { bytes.set_len(n) };
    bytes.into()
}

/// What the first bytes turn out to be.
pub(super) enum First<'a> {
    /// A whole head, and what follows it.
    Head { method: &'a str, target: &'a str, version: u8, fields: Vec<(&'a str, &'a [u8])>, rest: &'a [u8] },
    /// Too many fields.
    Crowded,
    /// No head.
    Malformed,
    /// The beginning of a head, or nothing.
    Cut,
}

/// Parses the first bytes as the server does.
pub(super) fn parse(bytes: &[u8]) -> First<'_> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => First::Head {
            method: request.method.unwrap_or_default(),
            target: request.path.unwrap_or_default(),
            version: request.version.unwrap_or_default(),
            fields: request.headers.iter().map(|field| (field.name, field.value)).collect(),
            rest: &bytes[end..],
        },
        Ok(httparse::Status::Partial) => First::Cut,
        Err(httparse::Error::TooManyHeaders) => First::Crowded,
        Err(_) => First::Malformed,
    }
}
