//! What systemd is told under `Type=notify`: ready, stopping, and that the program is alive.
//!
//! Outside of systemd (no `NOTIFY_SOCKET`) all of it does nothing. The watchdog is pinged only while every pulse of
//! [`super::health::Health`] is fresh, so that a program that hangs is restarted, and one that merely waits for Kafka
//! or ClickHouse is not.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use super::health::Health;
use crate::shutdown::Shutdown;

/// The longest wait between two pings, whatever the unit allows.
const PING_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The program serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The program ends in order.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// A line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Pings the watchdog, when the unit has one, from a thread of its own until the process ends: also during an orderly
/// end, which is bounded by itself.
pub fn watch(health: Arc<Health>) -> std::io::Result<()> {
    let Some(allowed) = sd_notify::watchdog_enabled() else { return Ok(()) };
    // Twice within what is allowed, as sd_watchdog_enabled(3) recommends.
    let interval = (allowed / 2).min(PING_INTERVAL_MAX);
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        // A handle that nobody asks: it only sleeps.
        let never = Shutdown::new();
        loop {
            match health.silent() {
                None => tell(&[NotifyState::Watchdog]),
                Some(pulse) => tracing::error!(pulse, "this part of the program hangs: no ping for the watchdog"),
            }
            never.wait(interval);
        }
    })?;
    Ok(())
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}
