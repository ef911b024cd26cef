//! The log: Kafka, where events lie between being accepted and being stored.

pub mod client;
pub mod topics;
