//! Wires all stages, in the order of the flow: the only place that names every one of them.

use crate::cli::run::Roles;
use crate::config::Config;
use crate::shutdown::Shutdown;

/// Why the program ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This build has no stages yet.
    #[error("nothing to run in this build")]
    NothingToRun,
}

/// Runs the stages that `roles` name until `shutdown` is requested.
pub fn run(_config: &Config, _roles: Roles, _shutdown: Shutdown) -> Result<(), RunError> {
    Err(RunError::NothingToRun)
}
