//! What the program tells about itself: its log, its metrics, its health, and what systemd is told.
//!
//! Every stage may use this module; it uses none of them.

pub mod health;
pub mod logs;
pub mod metrics;
mod process;
pub mod rate;
pub mod systemd;

pub(crate) use process::descriptors_max;
