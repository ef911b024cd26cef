//! The door from outside: raw bytes over real sockets on loopback.

mod basics;
mod closing;
mod coding;
mod framing;
mod limits;
mod load;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Answered, Door, Options, Routes, start};
use crate::exchange::{Answer, Endpoint, Fault, Head};

/// How long anything may take in a test before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers with what it was asked.
struct Echo;
impl Endpoint for Echo {
    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
        let sum: u64 = body.iter().map(|&b| u64::from(b)).sum();
        let text = serde_json::json!({
            "method": head.method, "path": head.path, "query": head.query, "type": head.content_type,
            "announced": head.content_length, "length": body.len(), "sum": sum, "loopback": head.peer.ip().is_loopback(),
            "key": head.idempotency_key, "id": head.request_id, "last": crate::exchange::last_segment(head.path),
        });
        Answer::json(202, text.to_string().into_bytes())
    }
}

/// Answers like [`Echo`], of bodies that are decoded before.
struct Decoded;
impl Endpoint for Decoded {
    fn takes_coded_bodies(&self) -> bool {
        true
    }
    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer {
        Echo.answer(head, body)
    }
}

/// Answers without content.
struct Empty;
impl Endpoint for Empty {
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        Answer::no_content()
    }
}

/// Answers with as many bytes as its query says.
struct Big;
impl Endpoint for Big {
    fn answer(&self, head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        let length = head.query.and_then(|q| q.parse().ok()).unwrap_or(0);
        Answer::text(200, pattern(length))
    }
}

/// `length` characters that do not repeat every few bytes.
fn pattern(length: usize) -> String {
    let mut text: String = (0..length / 7 + 1).map(|n| format!("{n:07}")).collect();
    text.truncate(length);
    text
}

/// Panics, in its answer or (with a query) already in its admission.
struct Panics;
impl Endpoint for Panics {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        assert!(head.query.is_none(), "asked to panic");
        Ok(())
    }
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        panic!("asked to panic")
    }
}

/// Refuses before the body, as the query says.
struct Picky;
impl Endpoint for Picky {
    fn admit(&self, head: &Head<'_>) -> Result<(), Fault> {
        match head.query {
            Some("media") => Err(Fault::UnsupportedMediaType("text/plain".into())),
            Some("busy") => Err(Fault::Unavailable { message: "the log is away".into(), retry_after_s: 7 }),
            _ => Ok(()),
        }
    }
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        Answer::text(200, "fine\n")
    }
}

/// Answers when it is let go; works until then, with pauses.
#[derive(Default)]
struct Gate {
    open: std::sync::atomic::AtomicBool,
    waiting: AtomicUsize,
}
impl Endpoint for Gate {
    fn answer(&self, _head: &Head<'_>, _body: &mut Vec<u8>) -> Answer {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while !self.open.load(Ordering::SeqCst) {
            crate::pause::pause();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        Answer::text(200, "through\n")
    }
}

type Log = Arc<Mutex<Vec<(String, &'static str, u16, usize)>>>;

/// A door with every test endpoint.
struct House {
    door: Door,
    gate: Arc<Gate>,
    log: Log,
}

fn house(change: impl FnOnce(&mut Options)) -> House {
    let mut options = Options { listen: ([127, 0, 0, 1], 0).into(), workers: 2, ..Options::default() };
    change(&mut options);
    let gate = Arc::new(Gate::default());
    let routes = Routes::new()
        .route("/echo", &[("POST", Arc::new(Echo))])
        .route("/echo", &[("GET", Arc::new(Echo))])
        .route("/decoded", &[("POST", Arc::new(Decoded))])
        .route("/empty", &[("POST", Arc::new(Empty))])
        .route("/one/{id}", &[("GET", Arc::new(Echo))])
        .route("/big", &[("GET", Arc::new(Big))])
        .route("/panics", &[("POST", Arc::new(Panics))])
        .route("/picky", &[("POST", Arc::new(Picky))])
        .route("/gate", &[("GET", Arc::clone(&gate) as Arc<dyn Endpoint>)]);
    let log = Log::default();
    let keep = Arc::clone(&log);
    let observer = move |a: &Answered<'_>| {
        if let Ok(mut log) = keep.lock() {
            log.push((a.route.to_owned(), a.method, a.status, a.request_bytes));
        }
    };
    House { door: start(&options, routes, observer).expect("a door"), gate, log }
}

impl House {
    fn knock(&self) -> Client {
        let stream = TcpStream::connect(self.door.local_addr()).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Client { stream, buffer: Vec::new() }
    }

    /// Sends bytes on a new connection and returns the answer, and whether the connection was closed after it.
    fn once(&self, bytes: impl AsRef<[u8]>) -> (Reply, bool) {
        let mut client = self.knock();
        client.send(bytes);
        let reply = client.reply();
        let closed = reply.closes();
        if closed {
            client.expect_end();
        } else {
            client.send("GET /one/more HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(client.reply().status, 202, "the connection is good for another request");
        }
        (reply, closed)
    }

    fn statuses(&self) -> Vec<u16> {
        self.log.lock().expect("log").iter().map(|entry| entry.2).collect()
    }
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
    fn closes(&self) -> bool {
        self.header("Connection") == Some("close")
    }
    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }
    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or("none").to_owned()
    }
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send");
    }

    /// Sends as far as the other side still takes it.
    fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("shutdown");
    }

    fn finish_quietly(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads until the buffer has what is looked for, and returns its end.
    fn fill(&mut self, what: impl Fn(&[u8]) -> Option<usize>) -> usize {
        loop {
            if let Some(end) = what(&self.buffer) {
                return end;
            }
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the connection ended after {:?}", String::from_utf8_lossy(&self.buffer)),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&self.buffer)),
            }
        }
    }

    /// Reads one answer to a request other than HEAD.
    fn reply(&mut self) -> Reply {
        let mut reply = self.reply_head();
        let length: usize = reply.header("Content-Length").and_then(|n| n.parse().ok()).expect("a Content-Length");
        if reply.status != 100 {
            self.fill(|b| (b.len() >= length).then_some(length));
            reply.body = self.buffer.drain(..length).collect();
        }
        reply
    }

    fn reply_head(&mut self) -> Reply {
        let end = self.fill(|b| b.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4));
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).expect("a head in text");
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|h| h.get(..3)).and_then(|s| s.parse().ok());
        Reply { status: status.unwrap_or_else(|| panic!("no status in {head:?}")), head, body: Vec::new() }
    }

    /// The connection ends without another byte.
    fn expect_end(&mut self) {
        assert_eq!(String::from_utf8_lossy(&self.rest()), "", "nothing comes after the last answer");
    }

    /// All that still comes, until the connection ends in whichever way.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
            Err(e) => panic!("not closed: {e}"),
        }
        rest
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

/// Numbers from a seed that is printed.
#[allow(clippy::print_stdout, reason = "a failing run is repeated with its seed")]
pub(super) fn random() -> impl FnMut() -> u64 {
    let seed = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    println!("seed {seed}");
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
