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
//! - [`seen`]: the keys that are stored already.
//! - [`block`]: the new events of a range with their counters.

pub mod block;
pub mod claim;
pub mod halt;
pub mod identity;
pub mod machine;
pub mod recover;
pub mod seen;
pub mod step;

#[cfg(test)]
mod simulation;
