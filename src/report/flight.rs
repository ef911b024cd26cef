//! Runs identical concurrent queries once, and lets a coroutine wait for work that runs on the asynchronous runtime.
//!
//! A flight is joined only while it is under way and forgotten when it lands, so answers to one question never go back
//! in time: a later flight starts after the earlier one has ended.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use may::sync::Blocker;
use tokio::runtime::Handle;

/// One query that is under way, and who waits for it.
pub(super) struct Flight<V> {
    landed: OnceLock<V>,
    waiters: Mutex<Vec<Arc<Blocker>>>,
}

impl<V: Clone> Flight<V> {
    pub(super) fn new() -> Flight<V> {
        Flight { landed: OnceLock::new(), waiters: Mutex::default() }
    }

    /// Adds the calling coroutine or thread to those who wait; to be called while the flight cannot land yet.
    pub(super) fn board(&self) -> Arc<Blocker> {
        let waiter = Blocker::current();
        lock(&self.waiters).push(waiter.clone());
        waiter
    }

    /// Waits for the value; `None` when `timeout` passed first.
    pub(super) fn wait(&self, waiter: &Blocker, timeout: Duration) -> Option<V> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(value) = self.landed.get() {
                return Some(value.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || waiter.park(Some(left)).is_err() {
                return self.landed.get().cloned();
            }
        }
    }

    pub(super) fn land(&self, value: V) {
        // Only the flight's own task lands it, once.
        let _ = self.landed.set(value);
        for waiter in lock(&self.waiters).drain(..) {
            waiter.unpark();
        }
    }
}

type Flights<V> = Arc<Mutex<HashMap<String, Arc<Flight<V>>>>>;

/// The queries that are under way.
pub struct SingleFlight<V> {
    runtime: Handle,
    flights: Flights<V>,
}

impl<V: Clone + Send + Sync + 'static> SingleFlight<V> {
    /// Queries run on `runtime`.
    pub fn new(runtime: Handle) -> SingleFlight<V> {
        SingleFlight { runtime, flights: Arc::default() }
    }

    /// The value of `question`: joins the flight that is under way for it, or starts one. `None` when `timeout` passed
    /// first (the flight goes on). Waits as a coroutine or a thread, whichever calls.
    pub fn ask<F>(&self, question: &str, timeout: Duration, start: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (flight, waiter) = self.board(question, start);
        flight.wait(&waiter, timeout)
    }

    fn board<F>(&self, question: &str, start: impl FnOnce() -> F) -> (Arc<Flight<V>>, Arc<Blocker>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(question) {
            return (flight.clone(), flight.board());
        }
        let flight = Arc::new(Flight::new());
        let waiter = flight.board();
        flights.insert(question.to_owned(), flight.clone());
        let question = question.to_owned();
        let (work, landing, all) = (start(), flight.clone(), self.flights.clone());
        self.runtime.spawn(async move {
            let value = work.await;
            lock(&all).remove(&question);
            landing.land(value);
        });
        (flight, waiter)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    }

    #[test]
    fn identical_questions_share_one_flight() {
        let runtime = runtime();
        let flights = SingleFlight::new(runtime.handle().clone());
        let started = AtomicUsize::new(0);
        let (release, held) = tokio::sync::watch::channel(false);
        std::thread::scope(|scope| {
            let askers: Vec<_> = (0..8)
                .map(|_| {
                    let mut held = held.clone();
                    let (flights, started) = (&flights, &started);
                    scope.spawn(move || {
                        flights.ask("q", Duration::from_secs(20), || {
                            started.fetch_add(1, Ordering::SeqCst);
                            async move {
                                held.wait_for(|open| *open).await.unwrap();
                                42
                            }
                        })
                    })
                })
                .collect();
            while flights.flights.lock().unwrap().get("q").is_none_or(|flight| flight.waiters.lock().unwrap().len() < 8)
            {
                std::thread::yield_now();
            }
            release.send(true).unwrap();
            assert!(askers.into_iter().all(|asker| asker.join().unwrap() == Some(42)));
        });
        assert_eq!(started.load(Ordering::SeqCst), 1);
        assert!(flights.flights.lock().unwrap().is_empty(), "a flight that landed is forgotten");
    }

    #[test]
    fn a_flight_that_is_late_gives_nothing() {
        let runtime = runtime();
        let flights: SingleFlight<u8> = SingleFlight::new(runtime.handle().clone());
        assert_eq!(flights.ask("q", Duration::from_millis(5), std::future::pending), None);
    }
}
