//! What the kernel says about this process, read from `/proc/self` when metrics are asked for.

use std::fmt;
use std::sync::LazyLock;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Files that are listed to count descriptors: a bound on the time that one scrape takes.
const DESCRIPTORS_COUNTED_MAX: usize = 1_000_000;

static STARTED: LazyLock<f64> =
    LazyLock::new(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));

/// The usual `process_*` metrics.
#[derive(Debug)]
pub(super) struct Process;

impl Process {
    pub(super) fn new() -> Process {
        LazyLock::force(&STARTED);
        Process
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        gauge("process_start_time_seconds", "When the process started, in seconds since the epoch", *STARTED)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(kib) = field(&status, "VmRSS:") {
            gauge("process_resident_memory_bytes", "Resident memory", kib * 1024.0)?;
        }
        if let Some(threads) = field(&status, "Threads:") {
            gauge("process_threads", "Threads", threads)?;
        }
        if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
            let open = descriptors.take(DESCRIPTORS_COUNTED_MAX).count();
            // One of them is the folder that is being listed.
            gauge("process_open_fds", "Open file descriptors", open.saturating_sub(1) as f64)?;
        }
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        if let Some(most) = field(&limits, "Max open files") {
            gauge("process_max_fds", "Most file descriptors that may be open", most)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let help = "User and system CPU time";
            let encoder = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(encoder)?;
        }
        Ok(())
    }
}

/// The first number after `name` in a file of lines.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // SAFETY: sysconf has no preconditions.
    let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    ticks(&stat).filter(|_| ticks_per_second > 0).map(|ticks| ticks / ticks_per_second as f64)
}

/// User and system time in ticks: fields 14 and 15. The name in field 2 may hold blanks and brackets.
fn ticks(stat: &str) -> Option<f64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The most descriptors that this process may open.
pub(crate) fn descriptors_max() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    field(&limits, "Max open files").map(|most| most as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(field("VmHWM:\t 1 kB\nVmRSS:\t   21340 kB\n", "VmRSS:"), Some(21340.0));
        assert_eq!(
            field("Max open files            1024                 524288  files", "Max open files"),
            Some(1024.0)
        );
        assert_eq!(field("", "VmRSS:"), None);
        assert_eq!(ticks("7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 25 17 0 0 20 0 1 0"), Some(42.0));
        assert!(cpu_seconds().is_some());
        assert!(descriptors_max().is_some());
    }
}
