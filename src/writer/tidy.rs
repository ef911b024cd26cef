//! Has ClickHouse merge counters before they pile up.
//!
//! Each range adds up to a row for each site and day, and a report adds up all that are not merged yet. ClickHouse merges
//! in a pool of a few threads, where under load merges of events take all places for minutes; then a hundred million events
//! leave two million rows of counters, and a report takes a second. So a writer that has inserted many asks for a merge
//! itself, which runs beside that pool.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use crate::observe::rate::Rate;
use crate::store::StoreError;

/// A merge is asked for after so many rows: of 22,000 in each range these are a dozen ranges, some seconds of full load.
const ROWS: u64 = 250_000;
/// How often a failure is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What the writers of a kind in this process have inserted since the last merge that was asked for.
pub struct Tidy {
    kind: &'static str,
    rows: AtomicU64,
    is_merging: AtomicBool,
    complaints: Rate,
}

impl Tidy {
    /// For the counters of a kind.
    pub fn new(kind: &'static str) -> Arc<Tidy> {
        let complaints = Rate::new(1, COMPLAIN_EVERY);
        Arc::new(Tidy { kind, rows: AtomicU64::new(0), is_merging: AtomicBool::new(false), complaints })
    }

    /// So many rows were inserted. When it is time, `merge` runs on `runtime`, one at a time.
    pub fn inserted<F>(self: &Arc<Tidy>, rows: u64, runtime: &Handle, merge: impl FnOnce() -> F)
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        let rows = self.rows.fetch_add(rows, Ordering::AcqRel) + rows;
        if rows < ROWS || self.is_merging.swap(true, Ordering::AcqRel) {
            return;
        }
        self.rows.store(0, Ordering::Release);
        let (tidy, merging) = (self.clone(), merge());
        runtime.spawn(async move {
            if let Err(error) = merging.await
                && tidy.complaints.ask().0
            {
                tracing::warn!(kind = tidy.kind, %error, "counters could not be merged: reports get slower until ClickHouse does it by itself");
            }
            tidy.is_merging.store(false, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_merge_at_a_time_after_many_rows() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (end, ended) = tokio::sync::watch::channel(false);
        let tidy = Tidy::new("test");
        // Whether a merge was asked for.
        let insert = |rows: u64| {
            let mut asked = false;
            tidy.inserted(rows, runtime.handle(), || {
                asked = true;
                let mut ended = ended.clone();
                async move {
                    ended.wait_for(|ended| *ended).await.expect("the test goes on");
                    Err(StoreError::Unreadable("a failure is told, and nothing else".into()))
                }
            });
            asked
        };
        assert!(!insert(ROWS - 1));
        assert!(insert(1));
        // Not while one is under way; what comes meanwhile counts for the next.
        assert!(!insert(ROWS));
        end.send(true).unwrap();
        while tidy.is_merging.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        assert!(insert(1));
    }
}
