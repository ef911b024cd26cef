//! Answers the questions of the kinds out of their tables.
//!
//! In: a request's target. Out: its answer, whole and right, or a fault: ClickHouse away is a 503. Identical questions that
//! come at once are asked once. A report that allows its answers an age ([`Report::AGE_MAX`]) is answered from memory until
//! then, and one whose answers are parts of a whole ([`Report::whole_sql`]) out of that, while it is small and young.

pub mod flight;
pub mod kept;
pub mod whole;

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
use whole::Wholes;

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

/// What the reports of a kind have in common.
pub struct Source {
    /// Where they are asked.
    pub store: Store,
    /// The kind's.
    pub tables: Tables,
    /// How long a query may take.
    pub timeout: Duration,
    /// Where queries run.
    pub runtime: Handle,
    /// What is kept of them whole: an answer must not be older than one that was given before, on whichever path.
    pub wholes: Wholes,
    /// Who is told.
    pub observer: Arc<dyn ReportObserver>,
}

/// `GET` of a report.
pub struct ReportEndpoint<R> {
    source: Arc<Source>,
    /// The query of the whole that the answers are parts of, and how many rows of it are kept.
    whole: Option<(String, usize)>,
    answers: Answers,
    /// Whether the path's last segment is a parameter.
    with_segment: bool,
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
    /// Reports for one path.
    pub fn new(path: &str, source: Arc<Source>) -> ReportEndpoint<R> {
        let runtime = source.runtime.clone();
        let answers = match R::AGE_MAX.is_zero() {
            true => Answers::Asked(SingleFlight::new(runtime)),
            false => Answers::Kept(KeptAnswers::new(runtime, R::AGE_MAX, KEPT_MAX, keep)),
        };
        let rows_max = source.wholes.rows_max();
        let whole = rows_max.and_then(|rows_max| R::whole_sql(&source.tables, rows_max).map(|sql| (sql, rows_max)));
        ReportEndpoint { source, whole, answers, with_segment: path.ends_with('}'), report: PhantomData }
    }

    /// What answers a question; `None` when ClickHouse takes too long.
    fn rows(&self, query: &R::Query) -> Option<Rows> {
        let timeout = self.source.timeout + MARGIN;
        if let Some((sql, rows_max)) = &self.whole {
            let select = |whole: &[u8]| R::select(query, whole, *rows_max);
            if let Ok(rows) = self.source.wholes.ask(sql, timeout, || self.query(sql), select) {
                return rows;
            }
        }
        let sql = R::sql(query, &self.source.tables);
        match &self.answers {
            Answers::Asked(flights) => flights.ask(&sql, timeout, || self.query(&sql)),
            Answers::Kept(kept) => kept.ask(&sql, timeout, || self.query(&sql)),
        }
    }

    /// Asks ClickHouse.
    fn query(&self, sql: &str) -> impl Future<Output = Rows> + Send + use<R> {
        let (source, sql) = (self.source.clone(), sql.to_owned());
        async move {
            let began = Instant::now();
            let rows = source.store.row_binary(&sql).await.map_err(Arc::new);
            source.observer.queried(began.elapsed(), rows.is_ok());
            if let Err(error) = &rows {
                tracing::warn!(%error, "a report could not be read");
            }
            rows
        }
    }

    fn ask(&self, query: &R::Query) -> Result<Answer, Fault> {
        let rows = match self.rows(query) {
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
