//! The whole of a report, kept in memory for a moment: every question is answered out of it.
//!
//! A dashboard asks for one site after the other, and each answer would cost ClickHouse a query of its own, of which most is
//! not reading. The whole costs little more than one of them while the rows are few; where they are many, questions are
//! asked one by one, and whether that is still so is found out now and then.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::Rows;
use super::flight::lock;
use super::kept::KeptAnswers;

/// How long ago a whole may have been asked for. Shorter than what passes between an event and its being stored.
const AGE_MAX: Duration = Duration::from_millis(250);

/// How long a whole that had too many rows is not asked for again.
const TOO_LARGE_FOR: Duration = Duration::from_secs(60);

/// Wholes of different reports that are kept at once.
const KEPT_MAX: usize = 16;

/// It has more rows than are kept: each question is to be asked by itself.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

/// The wholes of a kind's reports, each by the query that gives it.
pub struct Wholes {
    rows_max: usize,
    kept: KeptAnswers<Rows>,
    too_large: Mutex<HashMap<String, Instant>>,
}

impl Wholes {
    /// Wholes of `rows_max` rows at most. Queries run on `runtime`.
    pub fn new(runtime: Handle, rows_max: usize) -> Wholes {
        let keep = |rows: &Rows| rows.as_ref().ok().cloned().map(Ok);
        Wholes { rows_max, kept: KeptAnswers::new(runtime, AGE_MAX, KEPT_MAX, keep), too_large: Mutex::default() }
    }

    /// The most rows of a whole, if any is kept.
    pub fn rows_max(&self) -> Option<usize> {
        Some(self.rows_max).filter(|rows_max| *rows_max > 0)
    }

    /// What `select` makes of the whole that `sql` asks for (`start` runs it): `None` when `timeout` passed first.
    pub fn ask<F>(
        &self,
        sql: &str,
        timeout: Duration,
        start: impl FnOnce() -> F,
        select: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<Option<Rows>, TooLarge>
    where
        F: Future<Output = Rows> + Send + 'static,
    {
        if lock(&self.too_large).get(sql).is_some_and(|noted| noted.elapsed() < TOO_LARGE_FOR) {
            return Err(TooLarge);
        }
        let whole = match self.kept.ask(sql, timeout, start) {
            Some(Ok(whole)) => whole,
            failed => return Ok(failed),
        };
        let Some(rows) = select(&whole) else {
            lock(&self.too_large).insert(sql.to_owned(), Instant::now());
            return Err(TooLarge);
        };
        Ok(Some(Ok(rows.into())))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::store::StoreError;

    const LONG: Duration = Duration::from_secs(60);

    /// Asks for a whole of so many rows of a byte each; what was given, and how many queries that took.
    fn ask(wholes: &Wholes, sql: &str, rows: Result<usize, ()>) -> (Result<Option<Rows>, TooLarge>, usize) {
        let queries = Cell::new(0);
        let start = || {
            queries.set(queries.get() + 1);
            async move {
                rows.map(|rows| Bytes::from(vec![7; rows]))
                    .map_err(|()| Arc::new(StoreError::Unreadable("away".into())))
            }
        };
        let rows_max = wholes.rows_max().expect("some are kept");
        let select = |whole: &[u8]| (whole.len() <= rows_max).then(|| whole[1..].to_vec());
        (wholes.ask(sql, LONG, start, select), queries.get())
    }

    #[test]
    fn parts_come_out_of_one_whole() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let wholes = Wholes::new(runtime.handle().clone(), 3);
        let part =
            |answer: Result<Option<Rows>, TooLarge>| answer.unwrap().unwrap().map(|rows| rows.to_vec()).map_err(drop);
        // A failure is told, and not kept.
        let (answer, queries) = ask(&wholes, "a", Err(()));
        assert_eq!((part(answer), queries), (Err(()), 1));
        let (answer, queries) = ask(&wholes, "a", Ok(3));
        assert_eq!((part(answer), queries), (Ok(vec![7, 7]), 1));
        // One with too many rows is not asked for again soon; other reports are not concerned.
        let (answer, queries) = ask(&wholes, "b", Ok(4));
        assert_eq!((answer.err(), queries), (Some(TooLarge), 1));
        let (answer, queries) = ask(&wholes, "b", Ok(1));
        assert_eq!((answer.err(), queries), (Some(TooLarge), 0));
        let (answer, queries) = ask(&wholes, "c", Ok(1));
        assert_eq!((part(answer), queries), (Ok(vec![]), 1));
        assert_eq!(Wholes::new(runtime.handle().clone(), 0).rows_max(), None);
    }
}
