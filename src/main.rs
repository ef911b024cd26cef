//! The millrace program: arguments, configuration, logging, then one call into the library.

use std::process::ExitCode;

use clap::Parser as _;
use millrace::cli::{Arguments, MISUSED, out};
use millrace::observe::logs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let loaded = match arguments.settings.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            for problem in error.to_string().lines() {
                out::error(problem);
            }
            return ExitCode::from(MISUSED);
        }
    };
    let _flushed_at_the_end = logs::init(&loaded.config.log);
    // Reads FAILPOINTS.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    arguments.command.execute(&loaded)
}
