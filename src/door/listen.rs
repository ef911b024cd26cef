//! Getting the address to listen on.
//!
//! `may` binds with `SO_REUSEPORT`, so a second program on the same address would not fail but take half of the
//! connections; and it does not tell which port it got for port 0. Both are solved by a socket that is bound first,
//! without `SO_REUSEPORT` and without listening: binding it fails when anybody listens there, it fixes the port, and
//! Linux lets the server bind beside it because both have `SO_REUSEADDR` and it does not listen.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::socket;

/// An address that nobody else can have while this lives.
pub(super) struct Reservation {
    _socket: OwnedFd,
    address: SocketAddr,
}

impl Reservation {
    /// Takes the address; port 0 takes a free port.
    pub fn take(address: SocketAddr) -> io::Result<Reservation> {
        let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        socket::set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &(1 as libc::c_int))?;
        match address {
            SocketAddr::V4(v4) => {
                let name = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: `name` is a sockaddr_in of the size given and outlives the call.
                check(unsafe { libc::bind(fd, (&raw const name).cast(), size_of_val(&name) as libc::socklen_t) })?;
            }
            SocketAddr::V6(v6) => {
                let name = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: `name` is a sockaddr_in6 of the size given and outlives the call.
                check(unsafe { libc::bind(fd, (&raw const name).cast(), size_of_val(&name) as libc::socklen_t) })?;
            }
        }
        // The address with its port: std reads it from any socket, a listener or not.
        let named = TcpListener::from(owned);
        let address = named.local_addr()?;
        debug_assert!(named.as_raw_fd() == fd);
        Ok(Reservation { _socket: OwnedFd::from(named), address })
    }

    /// The address taken, with its port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listened_on_cannot_be_taken() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(other) = TcpListener::bind(address) else { continue };
            let taken = Reservation::take(other.local_addr().expect("address"));
            assert_eq!(taken.err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse), "{address}");
        }
    }

    #[test]
    fn a_taken_port_can_be_listened_on_by_the_server_alone() {
        let reservation = Reservation::take(([127, 0, 0, 1], 0).into()).expect("a free port");
        assert_ne!(reservation.address().port(), 0);
        let server = may::net::TcpListener::bind(reservation.address()).expect("the server's bind");
        let again = Reservation::take(reservation.address());
        assert_eq!(again.err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(server);
    }
}
