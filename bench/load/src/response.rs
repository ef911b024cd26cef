//! Answers as they arrive: status, length, whether the connection stays open, and the beginning of the body.
//!
//! Understands what millrace sends: a head with `Content-Length`, or none for a 204. Anything else is [`Broken`]. One request
//! is under way on a connection at a time, so bytes behind an answer are broken too.

use std::fmt;

use memchr::memchr;

/// A head longer than this is broken.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// What cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Reads the answers of one connection.
#[derive(Debug)]
pub struct Reader {
    /// The part of a head that has come so far.
    head: Vec<u8>,
    /// Set once the head is whole.
    status: u16,
    closes: bool,
    /// Bytes of the body that are to come.
    left: usize,
    body: Vec<u8>,
    /// How much of a body is kept.
    keep: usize,
    bytes: u64,
}

impl Reader {
    pub fn new(keep: usize) -> Reader {
        Reader { head: Vec::new(), status: 0, closes: false, left: 0, body: Vec::new(), keep, bytes: 0 }
    }

    /// Takes what has arrived. Returns whether the answer is whole; then it can be asked for until `reset`.
    pub fn take(&mut self, mut piece: &[u8]) -> Result<bool, Broken> {
        self.bytes += piece.len() as u64;
        if self.status == 0 {
            let head = if self.head.is_empty() {
                parse(piece)?
            } else {
                self.head.extend_from_slice(piece);
                parse(&self.head)?
            };
            let Some(head) = head else {
                if self.head.is_empty() {
                    self.head.extend_from_slice(piece);
                }
                return if self.head.len() > HEAD_BYTES_MAX { Err(Broken("a head without an end")) } else { Ok(false) };
            };
            let before = self.head.len().saturating_sub(piece.len());
            piece = &piece[head.end - before..];
            (self.status, self.closes, self.left) = (head.status, head.closes, head.length);
        }
        if piece.len() > self.left {
            return Err(Broken("bytes behind the end of an answer"));
        }
        self.left -= piece.len();
        let kept = piece.len().min(self.keep - self.body.len().min(self.keep));
        self.body.extend_from_slice(&piece[..kept]);
        Ok(self.left == 0)
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the server closes the connection after it.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// The body, or its beginning when it is longer than what is kept.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Bytes taken since the last reset.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes ready for the next answer.
    pub fn reset(&mut self) {
        self.head.clear();
        self.body.clear();
        (self.status, self.closes, self.left, self.bytes) = (0, false, 0, 0);
    }
}

struct Head {
    status: u16,
    length: usize,
    closes: bool,
    /// The bytes of the head.
    end: usize,
}

fn parse(bytes: &[u8]) -> Result<Option<Head>, Broken> {
    let Some(first) = memchr(b'\n', bytes) else { return Ok(None) };
    let status = match bytes {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', a, b, c, b' ' | b'\r', ..]
            if [a, b, c].iter().all(|digit| digit.is_ascii_digit()) =>
        {
            [a, b, c].iter().fold(0, |value, digit| value * 10 + u16::from(**digit - b'0'))
        }
        _ => return Err(Broken("an answer that is not HTTP/1")),
    };
    let (mut length, mut closes, mut at) = (None, false, first + 1);
    loop {
        let Some(end) = memchr(b'\n', &bytes[at..]) else { return Ok(None) };
        let line = bytes[at..at + end].strip_suffix(b"\r").unwrap_or(&bytes[at..at + end]);
        at += end + 1;
        match line.first() {
            None => break,
            Some(b'C' | b'c') => {
                if let Some(value) = value_of(line, b"content-length:") {
                    length = Some(decimal(value).ok_or(Broken("a Content-Length that is no number"))?);
                } else if let Some(value) = value_of(line, b"connection:") {
                    closes = value.eq_ignore_ascii_case(b"close");
                }
            }
            Some(b'T' | b't') if value_of(line, b"transfer-encoding:").is_some() => {
                return Err(Broken("an answer with Transfer-Encoding, which millrace does not send"));
            }
            Some(_) => {}
        }
    }
    let length = match (status, length) {
        (100..=199, _) => return Err(Broken("an interim answer that was not asked for")),
        (204 | 304, _) => 0,
        (_, Some(length)) => length,
        (_, None) => return Err(Broken("an answer without Content-Length")),
    };
    Ok(Some(Head { status, length, closes, end: at }))
}

/// The value when the line is the field of this name, which is given in small letters with its colon.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (field, value) = line.split_at_checked(name.len())?;
    field.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + usize::from(digit - b'0')))
}

/// The two numbers of `{"accepted":N,"rejected":M,...`, as every accepting endpoint begins its answer.
pub fn counts(body: &[u8]) -> Option<(u64, u64)> {
    let (accepted, rest) = leading_number(body.strip_prefix(b"{\"accepted\":")?)?;
    let (rejected, _) = leading_number(rest.strip_prefix(b",\"rejected\":")?)?;
    Some((accepted, rejected))
}

fn leading_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some((decimal(&text[..digits])? as u64, &text[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &[u8] =
        b"HTTP/1.1 202 Accepted\r\nServer: M\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 39\r\n\
        Content-Type: application/json\r\nX-Request-Id: a\r\n\r\n{\"accepted\":1,\"rejected\":0,\"errors\":[]}";

    #[test]
    fn an_answer_is_whole_wherever_it_is_cut() {
        for first in 1..ACCEPTED.len() {
            for second in first..ACCEPTED.len() {
                let mut reader = Reader::new(512);
                let pieces = [&ACCEPTED[..first], &ACCEPTED[first..second], &ACCEPTED[second..]];
                let whole: Vec<_> =
                    pieces.into_iter().filter(|piece| !piece.is_empty()).map(|p| reader.take(p)).collect();
                assert!(whole[..whole.len() - 1].iter().all(|whole| *whole == Ok(false)), "{first} {second}");
                assert_eq!(whole.last(), Some(&Ok(true)), "{first} {second}");
                assert_eq!((reader.status(), counts(reader.body())), (202, Some((1, 0))));
                assert_eq!(reader.bytes(), ACCEPTED.len() as u64);
            }
        }
    }

    #[test]
    fn a_connection_serves_many_answers() {
        let mut reader = Reader::new(8);
        for _ in 0..3 {
            assert_eq!(reader.take(ACCEPTED), Ok(true));
            assert_eq!(reader.body(), b"{\"accept");
            reader.reset();
            assert_eq!(reader.take(b"HTTP/1.1 204 No Content\r\nconnection: Close\r\n\r\n"), Ok(true));
            assert_eq!((reader.status(), reader.closes(), reader.body()), (204, true, &b""[..]));
            reader.reset();
        }
    }

    #[test]
    fn what_is_not_understood_is_broken() {
        for wrong in [
            "SSH-2.0-x\r\n",
            "HTTP/1.1 2x2 A\r\n\r\n",
            "HTTP/1.1 200 Ok\r\n\r\n",
            "HTTP/1.1 200 Ok\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 Ok\r\nContent-Length: \r\n\r\n",
            "HTTP/1.1 200 Ok\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 Ok\r\nContent-Length: 2\r\n\r\n{}x",
            "HTTP/1.1 204 No Content\r\n\r\nx",
        ] {
            assert!(Reader::new(9).take(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(Reader::new(9).take(&[b"HTTP/1.1 200 Ok\r\nA: ", &[b'a'; 20_000][..]].concat()).is_err());
    }

    #[test]
    fn counts_of_a_body() {
        assert_eq!(counts(b"{\"accepted\":9999,\"rejected\":1,\"errors\":[{\"line\""), Some((9999, 1)));
        for wrong in ["", "{}", "{\"accepted\":", "{\"accepted\":1}", "{\"accepted\":1,\"rejected\":}"] {
            assert_eq!(counts(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
