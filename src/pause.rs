//! A pause within long work in a coroutine, in which its thread looks after everybody else.
//!
//! `may::coroutine::yield_now` is not one: the coroutine goes to its thread's queue, and the thread asks the kernel what
//! has arrived only when that queue is empty. While a large body is decoded or parsed with such pauses, a request that
//! arrives on a connection of the same thread waits for its end (seen with may 0.3.51). So this one waits for the
//! kernel too: for an event that it has made itself, which comes behind all others that are there.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use crossbeam::queue::ArrayQueue;
use may::io::{CoIo, WaitIo};

/// Events kept for the next pause; more are made when more coroutines pause at once.
const POOLED_MAX: usize = 16;

/// Something to wait for: a counter of the kernel (`eventfd`) that is never read.
type Bell = CoIo<File>;

/// Lets everything that is ready run before it returns. Outside of coroutines it does nothing: the kernel divides threads.
pub fn pause() {
    static BELLS: OnceLock<ArrayQueue<Bell>> = OnceLock::new();
    if !may::coroutine::is_coroutine() {
        return;
    }
    let bells = BELLS.get_or_init(|| ArrayQueue::new(POOLED_MAX));
    let bell = match bells.pop() {
        Some(bell) => bell,
        None => match make() {
            Ok(bell) => bell,
            // Without descriptors, those that run already get their turn at least.
            Err(_) => return may::coroutine::yield_now(),
        },
    };
    // Forgets earlier events, such as that it can be written to.
    #[allow(deprecated, reason = "not needed for I/O, where only what is new counts")]
    bell.reset_io();
    if ring(&bell) {
        bell.wait_io();
    }
    // What does not fit the pool is closed.
    let _ = bells.push(bell);
}

fn make() -> io::Result<Bell> {
    // SAFETY: takes no pointer; a descriptor that it returns is open and nobody else's.
    let owned = unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    CoIo::new(File::from(owned)).map_err(|error| io::Error::other(error.to_string()))
}

/// Makes an event. Not inlined: `errno` belongs to a thread, and a coroutine may be in another one after its wait.
#[inline(never)]
fn ring(bell: &Bell) -> bool {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the pointer and length are those of a live array. The counter has room for 2^64 - 2 of these.
    unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len()) == 8 }
}
