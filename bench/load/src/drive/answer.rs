//! The worker's sockets: writing requests, reading and judging answers, and what becomes of connections that fail.

use std::io::{self, Read as _, Write as _};
use std::mem;

use mio::Token;
use mio::event::Event;

use super::connection::State;
use super::judge::{Verdict, judge};
use super::worker::Worker;
use crate::ledger::Fate;
use crate::tally::Trouble;

impl Worker {
    pub(super) fn write(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return };
        loop {
            let bytes = if connection.rest.is_empty() {
                self.task.source.bytes(index, &connection.request)
            } else {
                &connection.rest
            };
            let bytes = &bytes[bytes.len() - connection.left..];
            match stream.write(bytes) {
                Ok(written) if written == bytes.len() => {
                    connection.left = 0;
                    connection.rest.clear();
                    return;
                }
                Ok(written) => {
                    connection.left -= written;
                    if connection.rest.is_empty() && !self.task.source.lasts() {
                        connection.rest = bytes[written..].to_vec();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if connection.rest.is_empty() && !self.task.source.lasts() {
                        connection.rest = bytes.to_vec();
                    }
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // An answer may have come before the server closed.
                    if !self.read(index, true) && self.connections[index].state == State::Busy {
                        self.fail(index, Trouble::Cut, format!("the connection was closed: {error}"), now);
                    }
                    return;
                }
            }
        }
    }

    pub(super) fn ready(&mut self, event: &Event) {
        let index = event.token().0;
        match self.connections[index].state {
            State::Busy => {
                if self.connections[index].left > 0 && event.is_writable() {
                    let now = self.clock.now();
                    self.write(index, now);
                }
                if self.connections[index].state == State::Busy && (event.is_readable() || event.is_read_closed()) {
                    self.read(index, event.is_read_closed());
                }
            }
            State::Connecting { .. } => {
                let now = self.clock.now();
                match self.connections[index].opened() {
                    Ok(true) => self.feed(index, now),
                    Ok(false) => {}
                    Err(error) => self.refused(index, error.to_string(), now),
                }
            }
            // Closed by the server while nothing was under way: opened again when the chores come to it.
            State::Idle if event.is_read_closed() || event.is_error() => {
                let now = self.clock.now();
                self.down(index, now);
            }
            State::Idle | State::Down { .. } => {}
        }
    }

    /// Reads what has come; `ending` when the server has closed its side. Whether the request is settled.
    pub(super) fn read(&mut self, index: usize, ending: bool) -> bool {
        let mut buffer = mem::take(&mut self.buffer);
        let connection = &mut self.connections[index];
        let settled = loop {
            let Some(stream) = &mut connection.stream else { break None };
            match stream.read(&mut buffer) {
                Ok(0) => {
                    break Some(Err((
                        Trouble::Cut,
                        "the connection was closed before the answer was whole".to_owned(),
                    )));
                }
                Ok(length) => match connection.reader.take(&buffer[..length]) {
                    Ok(true) => break Some(Ok(())),
                    // Less than there was room for: more will wake us, unless the end has come already.
                    Ok(false) if length < buffer.len() && !ending => break None,
                    Ok(false) => {}
                    Err(broken) => break Some(Err((Trouble::Broken, broken.to_string()))),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(Err((Trouble::Cut, format!("the connection was cut: {error}")))),
            }
        };
        self.buffer = buffer;
        let now = self.clock.now();
        match settled {
            Some(Ok(())) => self.answered(index, ending, now),
            Some(Err((trouble, text))) => self.fail(index, trouble, text, now),
            None => return false,
        }
        true
    }

    /// The answer is whole.
    pub(super) fn answered(&mut self, index: usize, ending: bool, now: u64) {
        let connection = &mut self.connections[index];
        let tally = &mut self.tallies[usize::from(connection.request.stream)];
        let reader = &connection.reader;
        tally.status(reader.status());
        tally.bytes_received += reader.bytes();
        let verdict = judge(connection.request.expected, reader.status(), reader.body());
        match verdict {
            Verdict::Good { accepted, rejected } => {
                tally.answered += 1;
                (tally.accepted, tally.rejected) = (tally.accepted + accepted, tally.rejected + rejected);
                tally.latency.saturating_record(now - connection.due);
                connection.served();
                self.last_answer = now;
            }
            Verdict::Wrong(trouble, _) => {
                tally.trouble(trouble);
                let text = format!("{}: {}", reader.status(), String::from_utf8_lossy(reader.body()).trim_end());
                note_first(&mut self.first_troubles, trouble, text);
            }
        }
        self.task.source.note(index, &connection.request, verdict.fate());
        self.busy -= 1;
        // A request that was not even sent whole leaves the connection in the middle of it.
        let closes = ending || connection.reader.closes() || connection.left > 0;
        connection.reader.reset();
        connection.rest.clear();
        if closes {
            connection.state = State::Idle;
            self.down(index, now);
        } else {
            self.feed(index, now);
        }
    }

    /// The request under way has failed, and its connection with it.
    pub(super) fn fail(&mut self, index: usize, trouble: Trouble, text: String, now: u64) {
        let connection = &mut self.connections[index];
        let tally = &mut self.tallies[usize::from(connection.request.stream)];
        tally.trouble(trouble);
        tally.latency.saturating_record(now - connection.due);
        note_first(&mut self.first_troubles, trouble, text);
        self.task.source.note(index, &connection.request, Fate::Unknown);
        self.busy -= 1;
        self.down(index, now);
    }

    /// A connection could not be opened.
    pub(super) fn refused(&mut self, index: usize, text: String, now: u64) {
        self.tallies[0].trouble(Trouble::Connect);
        note_first(&mut self.first_troubles, Trouble::Connect, text);
        self.down(index, now);
    }

    pub(super) fn down(&mut self, index: usize, now: u64) {
        self.idle.retain(|&idle| idle != index);
        self.connections[index].close(now);
        if let State::Down { retry_at } = self.connections[index].state
            && retry_at <= now
            && self.wants(index)
        {
            self.reconnect(index, now);
        }
    }

    /// Whether a connection is still needed.
    pub(super) fn wants(&self, index: usize) -> bool {
        self.draining.is_none() && !self.connections[index].spent
    }

    pub(super) fn reconnect(&mut self, index: usize, now: u64) {
        let opened = self.connections[index].open(self.task.address, Token(index), self.poll.registry(), now);
        if let Err(error) = opened {
            self.refused(index, error.to_string(), now);
        }
    }
}

fn note_first(troubles: &mut Vec<(Trouble, String)>, trouble: Trouble, text: String) {
    if troubles.iter().all(|(known, _)| *known != trouble) {
        troubles.push((trouble, text));
    }
}
