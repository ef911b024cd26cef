//! The program's log: lines on stderr, as text for people or as JSON for machines.
//!
//! A line is formatted where it arises and written by a thread of its own through a bounded queue, because a coroutine
//! must not block on a slow terminal or journal. When the queue is full lines are dropped and counted, and the count is
//! logged. librdkafka's messages come in through the `rdkafka` crate (target `librdkafka`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// Lines that wait to be written: at 200 bytes a line some 800 KiB.
const LINES_QUEUED_MAX: usize = 4_096;
/// Lines that are written by one call.
const WRITE_BYTES: usize = 64 * 1024;
/// Lines of others on stderr that are logged each second: a panic with its backtrace has some fifty.
const STDERR_LINES_PER_SECOND_MAX: u32 = 100;
/// A longer line on stderr is cut in two.
const STDERR_LINE_BYTES_MAX: u64 = 8 * 1024;
/// What libraries may say unless the configuration names them: their spans and connections are noise.
const LIBRARIES: &str = "clickhouse=warn,hyper=warn,hyper_util=warn,may=warn";

enum Message {
    Line(Vec<u8>),
    Flush(Sender<()>),
}

static QUEUE: OnceLock<Sender<Message>> = OnceLock::new();
static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// Flushes the log when it is dropped, so that the last lines of a process are seen.
#[must_use = "the log is flushed when this is dropped"]
pub struct LogGuard(());

impl Drop for LogGuard {
    fn drop(&mut self) {
        flush(Duration::from_secs(1));
    }
}

/// Begins to log. Called once, before the first line; later calls change nothing.
pub fn init(config: &Log) -> LogGuard {
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let (sender, receiver) = bounded(LINES_QUEUED_MAX);
    if QUEUE.set(sender).is_err() {
        return LogGuard(());
    }
    // A descriptor of our own, which stays when [`capture_stderr`] takes the standard one.
    let writing = io::stderr().as_fd().try_clone_to_owned().and_then(|own| {
        std::thread::Builder::new().name("log".into()).spawn(move || write(&receiver, File::from(own), json))
    });
    if let Err(error) = writing {
        let _ = writeln!(io::stderr(), "no thread to write the log: {error}");
    }
    // The level was checked with the configuration, so that parsing it cannot fail here; if it did, all is logged.
    let filter = EnvFilter::builder().parse_lossy(format!("{LIBRARIES},{}", config.level));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Lines);
    if json {
        let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
        let _ = lines.try_init();
    } else {
        let _ = lines.with_ansi(io::stderr().is_terminal()).try_init();
    }
    LogGuard(())
}

/// Makes every line that a library or a panic writes to stderr a line of the log, at a bounded rate: may_minihttp writes one
/// for each malformed request, which nobody asked for.
pub fn capture_stderr() -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: both descriptors are open; dup2 closes what stderr was (the log has a descriptor of its own) and touches no
    // memory. The standard streams are never closed by Rust, so nobody owns descriptor 2.
    if unsafe { libc::dup2(writer.as_raw_fd(), libc::STDERR_FILENO) } < 0 {
        return Err(io::Error::last_os_error());
    }
    std::thread::Builder::new().name("stderr".into()).spawn(move || log_lines(BufReader::new(reader)))?;
    Ok(())
}

/// Logs lines, so many each second.
fn log_lines(mut lines: impl BufRead) {
    let (mut second, mut logged, mut left_out) = (Instant::now(), 0, 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bounded, so that a line without an end is cut.
        match lines.by_ref().take(STDERR_LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if second.elapsed() >= Duration::from_secs(1) {
            (second, logged) = (Instant::now(), 0);
        }
        logged += 1;
        if logged > STDERR_LINES_PER_SECOND_MAX {
            left_out += 1;
            continue;
        }
        tracing::warn!(target: "stderr", left_out, "{}", String::from_utf8_lossy(line.trim_ascii_end()));
        left_out = 0;
    }
}

/// Waits until what was logged has been written, at most `timeout`.
pub fn flush(timeout: Duration) {
    let Some(queue) = QUEUE.get() else { return };
    let (written, done) = bounded(1);
    if queue.send_timeout(Message::Flush(written), timeout).is_ok() {
        let _ = done.recv_timeout(timeout);
    }
}

struct Lines;

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        Lines
    }
}

impl Write for Lines {
    // The subscriber hands over each line in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get()
            && let Err(TrySendError::Full(_)) = queue.try_send(Message::Line(line.to_vec()))
        {
            LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(messages: &Receiver<Message>, mut out: impl Write, json: bool) {
    let mut lines = Vec::with_capacity(WRITE_BYTES);
    while let Ok(message) = messages.recv() {
        let mut flushed = Vec::new();
        let mut next = Some(message);
        while let Some(message) = next {
            match message {
                Message::Line(line) => lines.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
            next = if lines.len() < WRITE_BYTES { messages.try_recv().ok() } else { None };
        }
        let dropped = LINES_DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            lines.extend_from_slice(dropped_line(dropped, json).as_bytes());
        }
        // A log that nobody reads is no reason to stop working.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
        lines.clear();
        for done in flushed {
            let _ = done.send(());
        }
    }
}

fn dropped_line(dropped: u64, json: bool) -> String {
    if json {
        format!("{{\"level\":\"WARN\",\"message\":\"log lines were dropped\",\"lines\":{dropped}}}\n")
    } else {
        format!("WARN {dropped} log lines were dropped\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_in_order_and_a_flush_waits_for_them() {
        let (sender, receiver) = bounded(16);
        let (written, done) = bounded(1);
        for line in ["a\n", "b\n"] {
            sender.send(Message::Line(line.as_bytes().to_vec())).unwrap();
        }
        sender.send(Message::Flush(written)).unwrap();
        drop(sender);
        let mut out = Vec::new();
        write(&receiver, &mut out, false);
        assert_eq!(out, b"a\nb\n");
        done.try_recv().unwrap();
    }

    #[test]
    fn a_dropped_line_is_valid_json() {
        assert_eq!(serde_json::from_str::<serde_json::Value>(&dropped_line(3, true)).unwrap()["lines"], 3);
    }
}
