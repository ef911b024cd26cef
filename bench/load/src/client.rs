//! One plain connection that waits for its answers: for asking reports and sending the few events of a comparison.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::response::Reader;
use crate::target::Target;

const CONNECT: Duration = Duration::from_secs(5);
/// A report's page is far smaller.
const BODY_BYTES_MAX: usize = 256 << 20;

/// A connection that is opened when it is needed.
pub struct Client {
    target: Target,
    stream: Option<TcpStream>,
    timeout: Duration,
}

/// A whole answer.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Client {
    pub fn new(target: Target, timeout: Duration) -> Client {
        Client { target, stream: None, timeout }
    }

    /// GET; any status but 200 is an error.
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>, String> {
        let answer = self.request("GET", path, b"")?;
        match answer.status {
            200 => Ok(answer.body),
            status => Err(format!("GET {} was answered {status}: {}", shorten(path), start_of(&answer.body))),
        }
    }

    /// POST of an NDJSON body.
    pub fn post(&mut self, path: &str, body: &[u8]) -> Result<Answer, String> {
        self.request("POST", path, body)
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        let kept = self.stream.is_some();
        match self.try_once(method, path, body) {
            // A kept connection may have been closed while it was idle. Reads may be repeated, and so may what has keys.
            Err(_) if kept => self.try_once(method, path, body),
            answer => answer,
        }
        .map_err(|error| format!("{method} {} at {}: {error}", shorten(path), self.target.address))
    }

    fn try_once(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        let answer = self.exchange(method, path, body);
        if answer.is_err() {
            self.stream = None;
        }
        answer
    }

    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect_timeout(&self.target.address, CONNECT).map_err(text)?,
        };
        stream.set_nodelay(true).map_err(text)?;
        stream.set_read_timeout(Some(self.timeout)).map_err(text)?;
        stream.set_write_timeout(Some(self.timeout)).map_err(text)?;
        let (host, length) = (&self.target.host, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-ndjson\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).map_err(text)?;
        let (mut reader, mut buffer) = (Reader::new(BODY_BYTES_MAX), vec![0; 256 << 10]);
        loop {
            let length = stream.read(&mut buffer).map_err(text)?;
            if length == 0 {
                return Err("the connection was closed before the answer was whole".to_owned());
            }
            if reader.take(&buffer[..length]).map_err(|broken| broken.to_string())? {
                break;
            }
        }
        if !reader.closes() {
            self.stream = Some(stream);
        }
        Ok(Answer { status: reader.status(), body: reader.body().to_vec() })
    }
}

fn shorten(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

/// The beginning of what an error says.
pub fn start_of(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned()
}
