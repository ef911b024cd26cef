//! What is counted and measured, and `GET /metrics` (OpenMetrics text, which Prometheus reads).
//!
//! All families are made in [`Metrics::new`]. A stage takes its handles once ([`Metrics::route`], [`Metrics::kind`],
//! [`Metrics::table`], [`Metrics::partition`]) and keeps them: counting is then one atomic addition, observing one short
//! uncontended lock, and nothing is looked up by label for each event.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::process::Process;
use crate::exchange::{Answer, Endpoint, Head};

/// OpenMetrics 1.0, as its specification names it.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds of a request or of a record's way to Kafka: from half a millisecond to the 10 s after which it is given up.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Seconds of an insert or of a report's query.
const STORE_SECONDS: [f64; 13] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Events of a record or of a range: from a lone one to the million that one insert takes.
const EVENTS: [f64; 13] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 131_072.0, 262_144.0, 524_288.0, 1_000_000.0];
/// Statuses with a counter of their own; another one is looked up when it occurs.
const STATUSES: [u16; 16] = [200, 202, 400, 404, 405, 408, 411, 413, 415, 417, 422, 429, 431, 500, 501, 503];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    kind: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TableLabels {
    table: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartitionLabels {
    kind: &'static str,
    partition: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn store_seconds() -> Histogram {
    Histogram::new(STORE_SECONDS)
}

fn events() -> Histogram {
    Histogram::new(EVENTS)
}

/// All metrics of the program.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: Gauge,
    connections_refused: Counter,
    body_bytes: Gauge,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms<RouteLabels>,
    accepted: Family<KindLabels, Counter>,
    rejected: Family<CodeLabels, Counter>,
    duplicates: Family<KindLabels, Counter>,
    stored: Family<KindLabels, Counter>,
    batch_events: Histograms<KindLabels>,
    produce_seconds: Histograms<KindLabels>,
    produce_failures: Family<KindLabels, Counter>,
    spool_bytes: Family<KindLabels, Gauge>,
    spooled: Family<KindLabels, Counter>,
    sent_on: Family<KindLabels, Counter>,
    spool_damaged_bytes: Family<KindLabels, Counter>,
    range_events: Histograms<KindLabels>,
    report_seconds: Histograms<KindLabels>,
    report_failures: Family<KindLabels, Counter>,
    insert_seconds: Histograms<TableLabels>,
    insert_failures: Family<TableLabels, Counter>,
    lag: Family<PartitionLabels, Gauge>,
    seen_keys: Family<PartitionLabels, Gauge>,
    seen_bytes: Family<PartitionLabels, Gauge>,
    halted: Family<PartitionLabels, Gauge>,
}

impl Metrics {
    /// All families, without a series yet.
    pub fn new() -> Arc<Metrics> {
        let mut metrics = Metrics {
            registry: Registry::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            body_bytes: Gauge::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            accepted: Family::default(),
            rejected: Family::default(),
            duplicates: Family::default(),
            stored: Family::default(),
            batch_events: Family::new_with_constructor(events),
            produce_seconds: Family::new_with_constructor(seconds),
            produce_failures: Family::default(),
            spool_bytes: Family::default(),
            spooled: Family::default(),
            sent_on: Family::default(),
            spool_damaged_bytes: Family::default(),
            range_events: Family::new_with_constructor(events),
            report_seconds: Family::new_with_constructor(store_seconds),
            report_failures: Family::default(),
            insert_seconds: Family::new_with_constructor(store_seconds),
            insert_failures: Family::default(),
            lag: Family::default(),
            seen_keys: Family::default(),
            seen_bytes: Family::default(),
            halted: Family::default(),
        };
        metrics.register();
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let build: Family<BuildLabels, Gauge> = Family::default();
        build.get_or_create_owned(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        self.registry.register_collector(Box::new(Process::new()));
        let registry = self.registry.sub_registry_with_prefix("millrace");
        registry.register("build_info", "The program's version, as a label", build);
        registry.register("http_connections", "Connections open now", self.connections.clone());
        let help = "Connections refused because there were too many";
        registry.register("http_connections_refused", help, self.connections_refused.clone());
        registry.register("http_body_bytes", "Bytes that the bodies in flight may take now", self.body_bytes.clone());
        registry.register("http_requests", "Requests answered", self.requests.clone());
        let help = "Time from a request's head to its answer";
        registry.register("http_request_duration_seconds", help, self.request_seconds.clone());
        let help = "Events acknowledged by the log, duplicates included";
        registry.register("events_accepted", help, self.accepted.clone());
        registry.register("events_rejected", "Events refused, by the code of the reason", self.rejected.clone());
        let help = "Events found in the log that had been stored before";
        registry.register("events_duplicate", help, self.duplicates.clone());
        registry.register("events_stored", "Events stored and counted, each once", self.stored.clone());
        registry.register("batch_events", "Events in a record of the log", self.batch_events.clone());
        let help = "Time from handing a record to the producer to its acknowledgement";
        registry.register("produce_duration_seconds", help, self.produce_seconds.clone());
        let help = "Records that were not acknowledged";
        registry.register("produce_failures", help, self.produce_failures.clone());
        let help = "Bytes on the spool's disk that Kafka has not acknowledged";
        registry.register("spool_bytes", help, self.spool_bytes.clone());
        let help = "Events brought to the spool's disk";
        registry.register("spool_events_written", help, self.spooled.clone());
        let help = "Events of the spool that Kafka acknowledged, those sent again after a restart included";
        registry.register("spool_events_sent", help, self.sent_on.clone());
        let help = "Bytes of acknowledged events that the spool's disk did not give back";
        registry.register("spool_damaged_bytes", help, self.spool_damaged_bytes.clone());
        registry.register("range_events", "Events stored by one insert", self.range_events.clone());
        registry.register("report_duration_seconds", "Time of a report's query", self.report_seconds.clone());
        registry.register("report_failures", "Report queries that failed", self.report_failures.clone());
        registry.register("insert_duration_seconds", "Time of an insert", self.insert_seconds.clone());
        let help = "Inserts that failed; they are repeated";
        registry.register("insert_failures", help, self.insert_failures.clone());
        let help = "Records of the log that are not stored yet";
        registry.register("lag_records", help, self.lag.clone());
        registry.register("seen_keys", "Keys held to recognise duplicates", self.seen_keys.clone());
        registry.register("seen_bytes", "Memory that these keys take", self.seen_bytes.clone());
        let help = "1 while a partition is not stored until somebody acts";
        registry.register("partition_halted", help, self.halted.clone());
    }

    /// What the door counts: connections open now, connections refused since the start, bytes of bodies in flight.
    pub fn door(&self, connections: usize, refused: u64, body_bytes: usize) {
        self.connections.set(connections as i64);
        self.connections_refused.inner().store(refused, Ordering::Relaxed);
        self.body_bytes.set(body_bytes as i64);
    }

    /// The handles of one method of one route. `route` is its pattern ("none" for what matched none), so that a client
    /// cannot make series.
    pub fn route(&self, route: &'static str, method: &'static str) -> RouteMetrics {
        RouteMetrics {
            requests: self.requests.clone(),
            labels: RouteLabels { route, method },
            by_status: Default::default(),
            seconds: self.request_seconds.get_or_create_owned(&RouteLabels { route, method }),
        }
    }

    /// The handles of a kind of event.
    pub fn kind(&self, kind: &'static str) -> KindMetrics {
        let labels = KindLabels { kind };
        KindMetrics {
            kind,
            rejected: self.rejected.clone(),
            accepted: self.accepted.get_or_create_owned(&labels),
            duplicates: self.duplicates.get_or_create_owned(&labels),
            stored: self.stored.get_or_create_owned(&labels),
            batch_events: self.batch_events.get_or_create_owned(&labels),
            produce_seconds: self.produce_seconds.get_or_create_owned(&labels),
            produce_failures: self.produce_failures.get_or_create_owned(&labels),
            range_events: self.range_events.get_or_create_owned(&labels),
            report_seconds: self.report_seconds.get_or_create_owned(&labels),
            report_failures: self.report_failures.get_or_create_owned(&labels),
        }
    }

    /// The handles of a kind's spool.
    pub fn spool(&self, kind: &'static str) -> SpoolMetrics {
        let labels = KindLabels { kind };
        SpoolMetrics {
            bytes: self.spool_bytes.get_or_create_owned(&labels),
            spooled: self.spooled.get_or_create_owned(&labels),
            sent_on: self.sent_on.get_or_create_owned(&labels),
            damaged_bytes: self.spool_damaged_bytes.get_or_create_owned(&labels),
        }
    }

    /// The handles of a table.
    pub fn table(&self, table: &'static str) -> TableMetrics {
        let labels = TableLabels { table };
        TableMetrics {
            insert_seconds: self.insert_seconds.get_or_create_owned(&labels),
            insert_failures: self.insert_failures.get_or_create_owned(&labels),
        }
    }

    /// The handles of a partition, for as long as it is owned.
    pub fn partition(self: &Arc<Metrics>, kind: &'static str, partition: u32) -> PartitionMetrics {
        let labels = PartitionLabels { kind, partition };
        PartitionMetrics {
            lag: self.lag(kind, partition),
            seen_keys: self.seen_keys.get_or_create_owned(&labels),
            seen_bytes: self.seen_bytes.get_or_create_owned(&labels),
            halted: self.halted.get_or_create_owned(&labels),
            metrics: self.clone(),
            labels,
        }
    }

    /// The lag of a partition, for as long as it is known.
    pub fn lag(self: &Arc<Metrics>, kind: &'static str, partition: u32) -> LagMetric {
        let labels = PartitionLabels { kind, partition };
        LagMetric { gauge: self.lag.get_or_create_owned(&labels), metrics: self.clone(), labels }
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// One method of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    requests: Family<RequestLabels, Counter>,
    labels: RouteLabels,
    by_status: [OnceLock<Counter>; STATUSES.len()],
    seconds: Histogram,
}

impl RouteMetrics {
    /// Counts a request that was answered.
    pub fn answered(&self, status: u16, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        match STATUSES.iter().position(|known| *known == status) {
            Some(at) => self.by_status[at].get_or_init(|| self.counter(status)).inc(),
            None => self.counter(status).inc(),
        };
    }

    fn counter(&self, status: u16) -> Counter {
        let RouteLabels { route, method } = self.labels;
        self.requests.get_or_create_owned(&RequestLabels { route, method, status })
    }
}

/// One kind of event, on its whole way.
#[derive(Debug, Clone)]
pub struct KindMetrics {
    kind: &'static str,
    rejected: Family<CodeLabels, Counter>,
    /// Events acknowledged by the log.
    pub accepted: Counter,
    /// Events that had been stored before.
    pub duplicates: Counter,
    /// Events stored.
    pub stored: Counter,
    /// Events in a record.
    pub batch_events: Histogram,
    /// From the producer's queue to the acknowledgement.
    pub produce_seconds: Histogram,
    /// Records that were not acknowledged.
    pub produce_failures: Counter,
    /// Events stored by one insert.
    pub range_events: Histogram,
    /// A report's query.
    pub report_seconds: Histogram,
    /// Report queries that failed.
    pub report_failures: Counter,
}

impl KindMetrics {
    /// Counts rejected events: once for a request and code, not for each event.
    pub fn rejected(&self, code: &'static str, events: u64) {
        self.rejected.get_or_create_owned(&CodeLabels { kind: self.kind, code }).inc_by(events);
    }
}

/// One kind's spool.
#[derive(Debug, Clone)]
pub struct SpoolMetrics {
    /// On the disk, not acknowledged by the log.
    pub bytes: Gauge,
    /// Events brought to the disk.
    pub spooled: Counter,
    /// Events of it that the log acknowledged.
    pub sent_on: Counter,
    /// What the disk did not give back.
    pub damaged_bytes: Counter,
}

/// One table.
#[derive(Debug, Clone)]
pub struct TableMetrics {
    /// Time of an insert, successful or not.
    pub insert_seconds: Histogram,
    /// Inserts that failed.
    pub insert_failures: Counter,
}

/// One partition of one kind. Its series end when this is dropped.
#[derive(Debug)]
pub struct PartitionMetrics {
    metrics: Arc<Metrics>,
    labels: PartitionLabels,
    /// Records not stored yet.
    pub lag: LagMetric,
    /// Keys held.
    pub seen_keys: Gauge,
    /// Bytes that they take.
    pub seen_bytes: Gauge,
    /// 1 while it is halted.
    pub halted: Gauge,
}

impl Drop for PartitionMetrics {
    fn drop(&mut self) {
        for family in [&self.metrics.seen_keys, &self.metrics.seen_bytes, &self.metrics.halted] {
            family.remove(&self.labels);
        }
    }
}

/// How many records of one partition are not stored. Its series ends when this is dropped.
#[derive(Debug)]
pub struct LagMetric {
    gauge: Gauge,
    metrics: Arc<Metrics>,
    labels: PartitionLabels,
}

impl LagMetric {
    /// So many.
    pub fn set(&self, records: i64) {
        self.gauge.set(records);
    }
}

impl Drop for LagMetric {
    fn drop(&mut self) {
        self.metrics.lag.remove(&self.labels);
    }
}

/// `GET /metrics`.
pub struct Exposition(pub Arc<Metrics>);

impl Endpoint for Exposition {
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        let body = self.0.encode().into_bytes();
        Answer { status: 200, content_type: CONTENT_TYPE, retry_after_s: None, allow: None, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_make_the_series_they_name() {
        let metrics = Metrics::new();
        let route = metrics.route("/v1/events", "POST");
        route.answered(202, Duration::from_millis(3));
        route.answered(202, Duration::from_millis(3));
        route.answered(418, Duration::from_millis(3));
        metrics.door(1, 2, 3);
        let kind = metrics.kind("captcha");
        kind.accepted.inc_by(10);
        kind.rejected("bad_uuid", 2);
        kind.batch_events.observe(10.0);
        metrics.table("captcha_events").insert_seconds.observe(0.2);
        let partition = metrics.partition("captcha", 3);
        partition.lag.set(7);
        let text = metrics.encode();
        for line in [
            "millrace_http_requests_total{route=\"/v1/events\",method=\"POST\",status=\"202\"} 2",
            "millrace_http_requests_total{route=\"/v1/events\",method=\"POST\",status=\"418\"} 1",
            "millrace_http_request_duration_seconds_count{route=\"/v1/events\",method=\"POST\"} 3",
            "millrace_http_connections 1",
            "millrace_http_connections_refused_total 2",
            "millrace_http_body_bytes 3",
            "millrace_events_accepted_total{kind=\"captcha\"} 10",
            "millrace_events_rejected_total{kind=\"captcha\",code=\"bad_uuid\"} 2",
            "millrace_batch_events_bucket{le=\"16.0\",kind=\"captcha\"} 1",
            "millrace_insert_duration_seconds_sum{table=\"captcha_events\"} 0.2",
            "millrace_lag_records{kind=\"captcha\",partition=\"3\"} 7",
            "millrace_build_info{version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        for name in ["process_resident_memory_bytes ", "process_cpu_seconds_total ", "process_open_fds "] {
            assert!(text.lines().any(|found| found.starts_with(name)), "{name} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
        drop(partition);
        assert!(!metrics.encode().contains("partition=\"3\""));
    }
}
