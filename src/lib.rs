//! millrace takes events over HTTP, keeps them in a Kafka log and stores each of them exactly once in ClickHouse.
//!
//! ```text
//!           accept                                        log                       writer                report
//! client ─▶ door ─▶ accept ─▶ batch ─▶ log::produce ═▶ topic ═▶ log::consume ─▶ writer ─▶ store ═▶ ClickHouse ─▶ report ─▶ door
//! ```
//!
//! Modules stand in the order of the flow. The accepting side (`door`, `accept`, `batch`, `spool`) and the storing side
//! (`writer`, `store`) never import each other: the Kafka log is their only meeting point. Plain data that crosses from
//! one stage to the next lives in `exchange` (HTTP) and `flow` (events); `kinds`, `query_string`, `backoff`, `folder_lock` and `pause` are plain too.
//! `run` wires all stages and is the only place that names all of them.

#[cfg(test)]
mod architecture;
#[cfg(test)]
mod dice;

pub mod backoff;
pub mod config;
pub mod exchange;
pub mod flow;
pub mod folder_lock;
pub mod kinds;
pub mod query_string;
pub mod pause;
pub mod door;
pub mod accept;
pub mod batch;
pub mod spool;
pub mod log;
pub mod writer;
pub mod store;
pub mod report;
pub mod observe;
pub mod shutdown;
pub mod run;
pub mod cli;
