//! The one signal that everything ends: asked for once, seen by every stage. And the one to reload, for who runs it all.
//!
//! SIGTERM or SIGINT asks for an orderly end; a second one ends the process at once. SIGHUP asks for a reload. Threads
//! wait on the handle with a bound, coroutines look at it with [`Shutdown::is_requested`], which is one atomic load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// Whether the program is to end. Clones are handles to the same state.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    requested: AtomicBool,
    reload: AtomicBool,
    // Held only to change and to wait, never across a yield of a coroutine.
    changing: Mutex<()>,
    changed: Condvar,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An orderly end.
    ToEnd,
    /// To read again what was read of files.
    ToReload,
}

impl Shutdown {
    /// A handle that nobody has asked yet.
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Asks for an orderly end.
    pub fn request(&self) {
        let _changing = self.state.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.requested.store(true, Ordering::Release);
        self.state.changed.notify_all();
    }

    /// Whether it was asked for.
    pub fn is_requested(&self) -> bool {
        self.state.requested.load(Ordering::Acquire)
    }

    /// Blocks this thread (so never in a coroutine) until it is asked for or `timeout` has passed; `true` when it was.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut changing = self.state.changing.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_requested() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            changing = self.state.changed.wait_timeout(changing, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Asks for a reload.
    pub fn request_reload(&self) {
        let _changing = self.state.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.reload.store(true, Ordering::Release);
        self.state.changed.notify_all();
    }

    /// Blocks this thread until the end or a reload is asked for. Reloads that were asked for meanwhile come as one.
    pub fn wait_or_reload(&self) -> Asked {
        let mut changing = self.state.changing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.is_requested() {
                return Asked::ToEnd;
            }
            if self.state.reload.swap(false, Ordering::AcqRel) {
                return Asked::ToReload;
            }
            changing = self.state.changed.wait(changing).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes SIGTERM, SIGINT and SIGHUP from now on, in a thread of its own.
    ///
    /// SIGPIPE is left as the Rust runtime sets it: ignored, so that a client that is gone is an error of one write.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let shutdown = self.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let name = signal_name(signal).unwrap_or("a signal");
                if signal == SIGHUP {
                    shutdown.request_reload();
                } else if shutdown.is_requested() {
                    tracing::warn!(signal = name, "second signal: ending at once");
                    crate::observe::logs::flush(Duration::from_millis(100));
                    // SAFETY: _exit has no preconditions; it ends the process without running destructors, which
                    // could wait for Kafka. 128 + signal is what a shell reports for a process that a signal ended.
                    unsafe { libc::_exit(128 + signal) }
                } else {
                    tracing::info!(signal = name, "ending");
                    shutdown.request();
                }
            }
        })?;
        Ok(())
    }
}

/// Ends the process as `kill -9` does, at the places where a test asks for it.
#[cfg_attr(not(feature = "failpoints"), allow(dead_code))]
pub fn kill_itself() {
    // SAFETY: sends a signal to this very process; touches no memory.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reloads_come_as_one_and_an_end_comes_first() {
        let shutdown = Shutdown::new();
        shutdown.request_reload();
        shutdown.request_reload();
        assert_eq!(shutdown.wait_or_reload(), Asked::ToReload);
        let asked = shutdown.clone();
        let waiter = std::thread::spawn(move || [asked.wait_or_reload(), asked.wait_or_reload()]);
        shutdown.request_reload();
        while shutdown.state.reload.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        shutdown.request();
        assert_eq!(waiter.join().unwrap(), [Asked::ToReload, Asked::ToEnd]);
        shutdown.request_reload();
        assert_eq!(shutdown.wait_or_reload(), Asked::ToEnd);
    }

    #[test]
    fn waiters_wake_when_it_is_asked_for() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.wait(Duration::from_millis(1)));
        let asked = shutdown.clone();
        let waiter = std::thread::spawn(move || asked.wait(Duration::from_secs(60)));
        shutdown.request();
        assert!(waiter.join().unwrap());
        assert!(shutdown.is_requested());
        assert!(shutdown.wait(Duration::ZERO));
    }
}
