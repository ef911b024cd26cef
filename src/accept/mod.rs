//! From a request's body to chunks of events.
pub mod parser;
pub mod scan;
pub mod values;
