//! The writer: takes the events of one partition out of the log and stores each of them exactly once.
//!
//! ```text
//! next(now) ─▶ Step ─▶ shell: Kafka, ClickHouse, the block ─▶ Outcome ─▶ on(outcome, now)
//! ```
//!
//! What decides and what acts are apart. [`machine`] decides what is claimed, replayed, skipped, inserted and
//! committed, from what it is told, without I/O and with the time handed in; the shell around it performs one step at a
//! time and says how it ended. So the rules that keep every event counted once run in tests through many thousands of
//! random schedules of crashes, pauses, rebalances, lost answers and late inserts (`simulation`, compiled for tests
//! only), against a model of Kafka and of ClickHouse.
//!
//! - [`claim`]: ranges of offsets, the claim as it lies in Kafka's commit metadata, the tokens of the inserts.
//! - [`step`]: what the machine and the shell say to each other.
//! - [`recover`]: what the log, the group and the store know of a partition, and where that says to go on.
//! - [`halt`]: what stops a partition until an operator has looked at it.
//! - [`identity`]: whether the log is still the one that was recorded.
//! - [`seen`]: the keys that are stored already; [`load`] has them at the start of a tenure.
//! - [`block`]: the new events of a range with their counters; [`rows`] is their form in the store's tables.
//! - [`decode`]: a record of the log, its events or why it has none; [`rejected`] keeps those that cannot be read.
//! - [`repair`], [`reread`]: what is missing after the store has lost rows, and its events out of the log.
//! - [`tidy`]: merges of the counters, before they pile up.
//! - [`fill`], [`worker`], [`members`]: the shell, from the inside out: reading a range, one partition, all partitions of
//!   this process.

pub mod block;
pub mod claim;
pub mod decode;
pub mod fill;
pub mod halt;
pub mod identity;
pub mod load;
pub mod machine;
pub mod members;
pub mod recover;
pub mod rejected;
pub mod repair;
pub mod reread;
pub mod rows;
pub mod seen;
pub mod step;
pub mod tidy;
pub mod worker;

#[cfg(test)]
mod simulation;

use std::time::Duration;

/// How much a writer takes at once, and how long it waits.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Events of one range, at most.
    pub range_events_max: u64,
    /// How long events are gathered for one range.
    pub range_age_max: Duration,
    /// How old a claim may be when an insert under it is sent.
    pub claim_age_max: Duration,
    /// The first wait after a failure.
    pub backoff_min: Duration,
    /// The longest wait between two tries.
    pub backoff_max: Duration,
}

/// Told what the workers do; called from their threads.
pub trait WriterObserver: Send + Sync + 'static {
    /// A block of `rows` was sent to a table.
    fn inserted(&self, table: &'static str, rows: u64, elapsed: Duration, ok: bool);
    /// A worker has begun; for a while the partition's last one may still be at work.
    fn joined(&self, partition: u32);
    /// A partition was taken over: `next` is the next offset to be stored.
    fn recovered(&self, partition: u32, next: i64);
    /// A range is stored: so many events, of which so many were new; `next` is the next offset.
    fn stored(&self, partition: u32, events: u64, new_events: u64, next: i64);
    /// How many keys a partition's worker holds, and the bytes that they take.
    fn seen(&self, partition: u32, keys: u64, bytes: u64);
    /// A record could not be read.
    fn bad_record(&self, partition: u32);
    /// A partition stands still, and why.
    fn halted(&self, partition: u32, reason: &str);
    /// A worker has ended: its partition is no longer stored by this process.
    fn left(&self, partition: u32);
}
