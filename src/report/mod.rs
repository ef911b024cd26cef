//! Answers reports from the counters.

pub mod flight;
