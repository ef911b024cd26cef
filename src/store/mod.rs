//! ClickHouse, where each event is stored once: the client with its pinned settings, what its errors mean, and the
//! migrations that make its tables.

pub mod client;
pub mod error;
mod key_check;
mod lock;
pub mod migrate;
pub mod recount;
pub mod repair;
mod sql;
pub mod stored;

pub use client::Store;
pub use error::{StoreError, Verdict};
