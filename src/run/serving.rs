//! What the kinds serve, as the door's routes.
//!
//! A path of the version that the configuration calls the latest is served under `/latest/` too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::accepting::{Bodies, Intake, Queries, Segments};
use super::{Program, RunError};
use crate::door;
use crate::exchange::{Answer, Endpoint, Head};
use crate::kinds::{Endpoints, Kind, QueryEvents, Report, Tables};
use crate::observe::metrics::KindMetrics;
use crate::report::whole::Wholes;
use crate::report::{ReportEndpoint, ReportObserver, Source};
use crate::store::stored;

/// The routes so far.
pub struct Paths {
    routes: door::Routes,
    /// The version that `/latest/` stands for.
    latest: String,
    versions: BTreeSet<String>,
}

impl Paths {
    /// Begins with the paths that belong to no kind.
    pub fn new(routes: door::Routes, latest: &str) -> Paths {
        Paths { routes, latest: latest.to_owned(), versions: BTreeSet::new() }
    }

    fn add(&mut self, method: &'static str, path: &str, endpoint: Arc<dyn Endpoint>) {
        let (version, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
        let mut routes = std::mem::take(&mut self.routes).route(path, &[(method, endpoint.clone())]);
        if is_version(version) {
            self.versions.insert(version.to_owned());
            if version == self.latest {
                routes = routes.route(&format!("/latest/{rest}"), &[(method, endpoint)]);
            }
        }
        self.routes = routes;
    }

    /// All routes; an error when the latest version is none of theirs.
    pub fn into_routes(self) -> Result<door::Routes, RunError> {
        if self.versions.is_empty() || self.versions.contains(&self.latest) {
            return Ok(self.routes);
        }
        let known: Vec<String> = self.versions.into_iter().collect();
        Err(RunError::LatestVersion(self.latest, known.join(", ")))
    }
}

/// Whether a path's first segment is a version: `v` and digits.
fn is_version(segment: &str) -> bool {
    segment.strip_prefix('v').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Takes what one kind serves.
pub struct Serving<'p, K: Kind> {
    kind: Arc<K>,
    intake: Arc<Intake<K>>,
    source: Arc<Source>,
    paths: &'p mut Paths,
}

impl<'p, K: Kind> Serving<'p, K> {
    /// What a kind serves, added to `paths`.
    pub fn new(program: &Program, kind: Arc<K>, intake: Arc<Intake<K>>, paths: &'p mut Paths) -> Serving<'p, K> {
        let (store, config) = (program.store.clone(), &program.config.clickhouse);
        let runtime = program.runtime.clone();
        let source = Arc::new(Source {
            tables: Tables {
                events: store.table(&stored::events::<K>()),
                counters: store.table(&stored::counters::<K>()),
            },
            store,
            timeout: Duration::from_millis(config.report_ms_max),
            wholes: Wholes::new(runtime.clone(), config.report_rows_kept_max as usize),
            runtime,
            observer: Arc::new(ReportMetrics(program.metrics.kind(K::NAME))),
        });
        Serving { kind, intake, source, paths }
    }
}

impl<K: Kind> Endpoints<K> for Serving<'_, K> {
    fn accept(&mut self, path: &'static str) {
        self.paths.add("POST", path, Arc::new(Bodies(self.intake.clone())));
    }

    fn accept_segment(&mut self, path: &'static str) {
        self.paths.add("POST", path, Arc::new(Segments(self.intake.clone())));
    }

    fn accept_query(&mut self, path: &'static str)
    where
        K: QueryEvents,
    {
        self.paths.add("POST", path, Arc::new(Queries(self.intake.clone())));
    }

    fn report<R: Report>(&mut self, path: &'static str) {
        self.paths.add("GET", path, Arc::new(ReportEndpoint::<R>::new(path, self.source.clone())));
    }

    fn document(&mut self, path: &'static str, write: fn(&K) -> Vec<u8>) {
        self.paths.add("GET", path, Arc::new(Document { kind: self.kind.clone(), write }));
    }
}

/// Turns report queries into metrics.
struct ReportMetrics(KindMetrics);

impl ReportObserver for ReportMetrics {
    fn queried(&self, elapsed: Duration, ok: bool) {
        self.0.report_seconds.observe(elapsed.as_secs_f64());
        if !ok {
            self.0.report_failures.inc();
        }
    }
}

/// A document that describes a kind.
struct Document<K> {
    kind: Arc<K>,
    write: fn(&K) -> Vec<u8>,
}

impl<K: Kind> Endpoint for Document<K> {
    fn answer(&self, _: &Head<'_>, _: &mut Vec<u8>) -> Answer {
        Answer::json(200, (self.write)(&self.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Endpoint for Nothing {
        fn answer(&self, _: &Head<'_>, _: &mut Vec<u8>) -> Answer {
            Answer::no_content()
        }
    }

    fn paths(latest: &str) -> Paths {
        let mut paths = Paths::new(door::Routes::new(), latest);
        for path in ["/v1/events", "/v1/report/{filter}", "/v2/events", "/api/event", "/verbose/x"] {
            paths.add("POST", path, Arc::new(Nothing));
        }
        paths
    }

    #[test]
    fn latest_is_the_version_that_is_named() {
        for (latest, known) in [("v1", "/latest/report/x"), ("v2", "/latest/events")] {
            let routes = paths(latest).into_routes().unwrap();
            assert!(routes.find("POST", known).1.is_ok());
        }
        assert!(paths("v2").into_routes().unwrap().find("POST", "/latest/report/x").1.is_err());
        let error = paths("v3").into_routes().err().unwrap().to_string();
        assert!(error.contains("is v3, but the versions there are v1, v2"), "{error}");
    }
}
