//! Answers the questions of the kinds out of their tables.
//!
//! In: a request's target. Out: its answer, whole and right, or a fault: ClickHouse away is a 503. Identical questions that
//! come at once are asked once, and a report that allows its answers an age ([`Report::AGE_MAX`]) is answered from memory
//! until then.

pub mod flight;
pub mod kept;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::exchange::{Answer, Endpoint, Fault, Head, last_segment};
use crate::kinds::{Question, Rendered, Report, Tables};
use crate::store::{Store, StoreError};
use flight::SingleFlight;
use kept::KeptAnswers;

/// Answers of one report that are kept: with [`KEPT_BYTES_MAX`], 64 MiB of them at most.
const KEPT_MAX: usize = 1024;

/// The longest answer that is kept, as ClickHouse gave it.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Beyond the store's own bound, so that its error comes first.
const MARGIN: Duration = Duration::from_millis(500);

/// Told about each query that was run.
pub trait ReportObserver: Send + Sync + 'static {
    /// A query took so long, and whether it was answered.
    fn queried(&self, elapsed: Duration, ok: bool);
}

/// What a query gave.
type Rows = Result<Bytes, Arc<StoreError>>;

/// `GET` of a report.
pub struct ReportEndpoint<R> {
    store: Store,
    tables: Tables,
    /// Whether the path's last segment is a parameter.
    with_segment: bool,
    timeout: Duration,
    answers: Answers,
    observer: Arc<dyn ReportObserver>,
    report: PhantomData<fn() -> R>,
}

/// How questions are answered.
enum Answers {
    /// Each by a query, unless one is under way.
    Asked(SingleFlight<Rows>),
    /// From memory, as long as that is allowed.
    Kept(KeptAnswers<Rows>),
}

impl<R: Report> ReportEndpoint<R> {
    /// Reports for one path, out of a kind's tables; queries run on `runtime` and take `timeout` at most.
    pub fn new(
        path: &str,
        store: Store,
        tables: Tables,
        timeout: Duration,
        runtime: Handle,
        observer: Arc<dyn ReportObserver>,
    ) -> ReportEndpoint<R> {
        let answers = match R::AGE_MAX.is_zero() {
            true => Answers::Asked(SingleFlight::new(runtime)),
            false => Answers::Kept(KeptAnswers::new(runtime, R::AGE_MAX, KEPT_MAX, keep)),
        };
        let with_segment = path.ends_with('}');
        ReportEndpoint { store, tables, with_segment, timeout, answers, observer, report: PhantomData }
    }

    /// What ClickHouse answers; `None` when it takes too long.
    fn rows(&self, sql: &str) -> Option<Rows> {
        let start = || {
            let (store, sql, observer) = (self.store.clone(), sql.to_owned(), self.observer.clone());
            async move {
                let began = Instant::now();
                let rows = store.row_binary(&sql).await.map_err(Arc::new);
                observer.queried(began.elapsed(), rows.is_ok());
                if let Err(error) = &rows {
                    tracing::warn!(%error, "a report could not be read");
                }
                rows
            }
        };
        let timeout = self.timeout + MARGIN;
        match &self.answers {
            Answers::Asked(flights) => flights.ask(sql, timeout, start),
            Answers::Kept(kept) => kept.ask(sql, timeout, start),
        }
    }

    fn ask(&self, query: &R::Query) -> Result<Answer, Fault> {
        let sql = R::sql(query, &self.tables);
        let rows = self.rows(&sql);
        let rows = match rows {
            Some(Ok(rows)) => rows,
            Some(Err(_)) | None => {
                let message = "ClickHouse does not answer at the moment: reports come back when it does".into();
                return Err(Fault::Unavailable { message, retry_after_s: 2 });
            }
        };
        match R::render(query, &rows) {
            Ok(Rendered::Json(body)) => Ok(Answer::json(200, body)),
            Ok(Rendered::Text(body)) => Ok(Answer::text(200, body)),
            Ok(Rendered::NotFound(message)) => Err(Fault::NotFound(message)),
            Err(error) => {
                tracing::error!(error, "a report's rows cannot be read");
                Err(Fault::Internal)
            }
        }
    }
}

/// The rows as they are kept, without the buffer that they came in; `None` for what is not kept.
fn keep(rows: &Rows) -> Option<Rows> {
    let rows = rows.as_ref().ok().filter(|rows| rows.len() <= KEPT_BYTES_MAX)?;
    Some(Ok(Bytes::copy_from_slice(rows)))
}

impl<R: Report> Endpoint for ReportEndpoint<R> {
    fn answer(&self, head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        let segment = self.with_segment.then(|| last_segment(head.path));
        let query = R::parse(Question { query: head.query, segment }).map_err(Fault::BadParameter);
        query.and_then(|query| self.ask(&query)).unwrap_or_else(|fault| fault.answer())
    }
}
