//! `millrace-load`: drives a running millrace and measures it.
//!
//! ```text
//! args ─▶ job ─▶ events ─▶ template ─▶ source ─▶ drive (workers, connections) ─▶ tally ─▶ summary, hlog, plot, json
//!                                        └──────▶ ledger (what was sent, and its fate) ─▶ verify ◀── client ◀── report
//! ```

mod args;
mod client;
mod cpu;
mod days;
mod drive;
mod events;
mod figures;
mod hlog;
mod job;
mod json;
mod ledger;
mod out;
mod plot;
mod random;
mod response;
mod session;
mod source;
mod summary;
mod tally;
mod target;
mod template;
mod values;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    session::run(&args::Arguments::parse())
}
