//! What a request's head says about its framing, and whether that can be trusted.
//!
//! In: the parts of a head that `may_minihttp` parsed. Out: a [`Frame`]. Pure, so that every rule is tested without a
//! socket. What always holds: a head with a fault in its framing leads to closing, never to a guess about where its
//! body ends.

use crate::exchange::Fault;

/// A head, read for its framing.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// A valid `X-Request-Id`.
    pub request_id: Option<&'a str>,
    /// The path, without scheme and authority.
    pub path: &'a str,
    /// What stands after the `?`.
    pub query: Option<&'a str>,
    /// The value of `Content-Type`; `None` when absent or empty.
    pub content_type: Option<&'a str>,
    /// The value of `Content-Encoding`; `None` when absent, empty or `identity`.
    pub content_encoding: Option<&'a str>,
    /// The value of a valid `Idempotency-Key`.
    pub idempotency_key: Option<&'a str>,
    /// What is wrong with `Idempotency-Key`.
    pub idempotency_fault: Option<&'static str>,
    /// The length of the body.
    pub content_length: usize,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// The connection may stay open.
    pub keep_alive: bool,
    /// HTTP/1.0.
    pub old: bool,
}

/// Reads a head. Even where its framing is at fault, the request's id is found.
pub(super) fn examine<'a>(
    version: u8,
    target: &'a str,
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> (Frame<'a>, Result<(), Fault>) {
    let old = version == 0;
    let mut frame = Frame {
        request_id: None,
        path: target,
        query: None,
        content_type: None,
        content_encoding: None,
        idempotency_key: None,
        idempotency_fault: None,
        content_length: 0,
        expects_continue: false,
        keep_alive: !old,
        old,
    };
    let mut seen = Seen::default();
    for (name, value) in headers {
        seen.header(&mut frame, name, value);
    }
    let found = seen.conclude(&mut frame, target);
    frame.expects_continue &= !old && frame.content_length > 0;
    (frame, found)
}

/// What was met on the way through the header fields.
#[derive(Default)]
struct Seen {
    hosts: usize,
    host_invalid: bool,
    lengths: usize,
    length_invalid: bool,
    transfer_encoding: bool,
    expectation_unknown: bool,
    close: bool,
    keep_alive: bool,
}

impl Seen {
    fn header<'a>(&mut self, frame: &mut Frame<'a>, name: &'a str, value: &'a [u8]) {
        // By length first: most fields are none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                self.hosts += 1;
                self.host_invalid |= !is_host(value);
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                if value.eq_ignore_ascii_case(b"100-continue") {
                    frame.expects_continue = true;
                } else {
                    self.expectation_unknown = true;
                }
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in value.split(|&b| b == b',') {
                    let option = option.trim_ascii();
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            12 if name.eq_ignore_ascii_case("content-type") => {
                // What is not text is passed on as what it is not, and is refused as a media type.
                let text = std::str::from_utf8(value).unwrap_or("(not text)");
                if frame.content_type.is_none() && !text.is_empty() {
                    frame.content_type = Some(text);
                }
            }
            12 if name.eq_ignore_ascii_case("x-request-id") => {
                let valid = (1..=128).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
                frame.request_id = std::str::from_utf8(value).ok().filter(|_| valid);
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                self.lengths += 1;
                match length(value) {
                    Some(n) => frame.content_length = n,
                    None => self.length_invalid = true,
                }
            }
            15 if name.eq_ignore_ascii_case("idempotency-key") => idempotency_key(frame, value),
            16 if name.eq_ignore_ascii_case("content-encoding") => {
                let text = std::str::from_utf8(value).unwrap_or("(not text)");
                if !text.is_empty() && !text.eq_ignore_ascii_case("identity") {
                    // Several fields are a list of codings, which is not taken whatever is in it.
                    frame.content_encoding = Some(if frame.content_encoding.is_some() { "(several)" } else { text });
                }
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => self.transfer_encoding = true,
            _ => {}
        }
    }

    fn conclude<'a>(&self, frame: &mut Frame<'a>, target: &'a str) -> Result<(), Fault> {
        frame.keep_alive = !self.close && (!frame.old || self.keep_alive);
        if self.transfer_encoding {
            return Err(Fault::LengthRequired);
        }
        if self.length_invalid {
            return bad("Content-Length is not a number of bytes");
        }
        if self.lengths > 1 {
            return bad("Content-Length may be given once only");
        }
        if self.hosts > 1 {
            return bad("Host may be given once only");
        }
        if self.hosts == 0 && !frame.old {
            return bad("Host is missing");
        }
        if self.host_invalid {
            return bad("Host is not a host name or address with an optional port");
        }
        (frame.path, frame.query) = split(target)?;
        if self.expectation_unknown && !frame.old {
            return Err(Fault::ExpectationFailed);
        }
        Ok(())
    }
}

fn idempotency_key<'a>(frame: &mut Frame<'a>, value: &'a [u8]) {
    let valid = (1..=255).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(value).ok().filter(|_| valid) {
        None => frame.idempotency_fault = Some("Idempotency-Key is not 1 to 255 visible ASCII characters"),
        Some(key) if frame.idempotency_key.is_some_and(|first| first != key) => {
            frame.idempotency_fault = Some("Idempotency-Key is given twice, with different values");
        }
        Some(key) => frame.idempotency_key = Some(key),
    }
}

fn bad<T>(message: &'static str) -> Result<T, Fault> {
    Err(Fault::BadRequest(message.into()))
}

/// A number of bytes: decimal digits and nothing else, no longer than a `usize`.
fn length(value: &[u8]) -> Option<usize> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Splits a target in origin form (`/path?query`) or absolute form (`http://host/path?query`) into path and query.
fn split(target: &str) -> Result<(&str, Option<&str>), Fault> {
    let rest = if target.starts_with('/') || target == "*" {
        target
    } else {
        let scheme_end = target.find("://").unwrap_or(0);
        let scheme = &target[..scheme_end];
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return bad("the request's target is neither a path nor an http URL");
        }
        let after = &target[scheme_end + 3..];
        let (authority, rest) = after.split_at(after.find(['/', '?']).unwrap_or(after.len()));
        if !is_host(authority.as_bytes()) {
            return bad("the request's target has no valid host");
        }
        rest
    };
    let (path, query) = match rest.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (rest, None),
    };
    Ok((if path.is_empty() { "/" } else { path }, query))
}

/// `uri-host [ ":" port ]` of RFC 3986, not empty.
fn is_host(value: &[u8]) -> bool {
    if let Some(inner) = value.strip_prefix(b"[") {
        let Some(end) = inner.iter().position(|&b| b == b']') else { return false };
        let (address, port) = (&inner[..end], &inner[end + 1..]);
        let is_address = |b: &u8| b.is_ascii_alphanumeric() || b":.%-_~".contains(b);
        return !address.is_empty() && address.iter().all(is_address) && is_port(port);
    }
    let colon = value.iter().position(|&b| b == b':').unwrap_or(value.len());
    let (name, port) = value.split_at(colon);
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(b);
    !name.is_empty() && name.iter().all(is_name) && is_port(port)
}

/// Nothing, or a colon and up to five digits.
fn is_port(text: &[u8]) -> bool {
    match text.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look<'a>(version: u8, target: &'a str, headers: &[(&'a str, &'a str)]) -> (Frame<'a>, Result<(), Fault>) {
        let headers: Vec<(&str, &[u8])> = headers.iter().map(|&(n, v)| (n, v.as_bytes())).collect();
        examine(version, target, headers.into_iter())
    }

    fn status(found: &Result<(), Fault>) -> u16 {
        found.as_ref().err().map_or(200, |fault| fault.describe().0)
    }

    #[test]
    fn lengths() {
        for (value, expected) in [
            ("0", Some(0)),
            ("5", Some(5)),
            ("005", Some(5)),
            ("18446744073709551615", Some(usize::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999999999", None),
            ("", None),
            ("+5", None),
            ("-5", None),
            (" 5", None),
            ("5 ", None),
            ("5, 5", None),
            ("0x5", None),
            ("5.0", None),
            ("five", None),
            ("5\u{660}", None),
        ] {
            assert_eq!(length(value.as_bytes()), expected, "{value:?}");
            let (frame, found) = look(1, "/", &[("Host", "x"), ("content-LENGTH", value)]);
            assert_eq!(status(&found), if expected.is_some() { 200 } else { 400 }, "{value:?}");
            assert_eq!(frame.content_length, expected.unwrap_or(0), "{value:?}");
        }
        for second in ["5", "6", "x"] {
            let (_, found) = look(1, "/", &[("Host", "x"), ("Content-Length", "5"), ("Content-Length", second)]);
            assert_eq!(status(&found), 400);
        }
    }

    #[test]
    fn transfer_encoding_is_refused_whatever_it_says() {
        for value in ["chunked", "identity", "", "gzip, chunked", "xchunked"] {
            for length in ["5", "x", "0"] {
                let (_, found) =
                    look(1, "/", &[("Host", "x"), ("Content-Length", length), ("Transfer-encoding", value)]);
                assert_eq!(found.err(), Some(Fault::LengthRequired));
            }
        }
    }

    #[test]
    fn hosts() {
        for (value, good) in [
            ("localhost", true),
            ("localhost:8000", true),
            ("localhost:", true),
            ("127.0.0.1:80", true),
            ("[::1]", true),
            ("[::1]:8000", true),
            ("a_b.example", true),
            ("", false),
            (":80", false),
            ("a b", false),
            ("a/b", false),
            ("a@b", false),
            ("a,b:1:2", false),
            ("a:port", false),
            ("a:123456", false),
            ("[::1", false),
            ("[]", false),
            ("[::1]x", false),
            ("a\u{7f}", false),
        ] {
            assert_eq!(status(&look(1, "/", &[("Host", value)]).1), if good { 200 } else { 400 }, "{value:?}");
        }
        assert_eq!(status(&look(1, "/", &[]).1), 400);
        assert_eq!(status(&look(0, "/", &[]).1), 200);
        assert_eq!(status(&look(1, "/", &[("Host", "a"), ("Host", "b")]).1), 400);
        assert_eq!(status(&look(0, "/", &[("Host", "a"), ("Host", "b")]).1), 400);
    }

    #[test]
    fn targets() {
        for (target, expected) in [
            ("/", Some(("/", None))),
            ("/a/b?c=d", Some(("/a/b", Some("c=d")))),
            ("/a?b?c", Some(("/a", Some("b?c")))),
            ("/a?", Some(("/a", Some("")))),
            ("//a", Some(("//a", None))),
            ("*", Some(("*", None))),
            ("http://h:80/a?b", Some(("/a", Some("b")))),
            ("HTTPS://h", Some(("/", None))),
            ("http://h?b", Some(("/", Some("b")))),
            ("http:///a", None),
            ("http://u@h/a", None),
            ("ftp://h/a", None),
            ("a/b", None),
            ("h:80", None),
            ("://h/a", None),
        ] {
            let (frame, found) = look(1, target, &[("Host", "x")]);
            match expected {
                Some(parts) => assert_eq!((frame.path, frame.query), parts, "{target}"),
                None => assert_eq!(status(&found), 400, "{target}"),
            }
        }
    }

    #[test]
    fn staying_open() {
        for (version, connection, stays) in [
            (1, None, true),
            (1, Some("close"), false),
            (1, Some("CLOSE"), false),
            (1, Some("keep-alive"), true),
            (1, Some("x, Close ,y"), false),
            (1, Some("closed"), true),
            (0, None, false),
            (0, Some("keep-alive"), true),
            (0, Some("keep-alive, close"), false),
        ] {
            let mut headers = vec![("Host", "x")];
            headers.extend(connection.map(|value| ("Connection", value)));
            assert_eq!(look(version, "/", &headers).0.keep_alive, stays, "{version} {connection:?}");
        }
    }

    #[test]
    fn expectations() {
        let with = |version, value, length| {
            let (frame, found) = look(version, "/", &[("Host", "x"), ("Expect", value), ("Content-Length", length)]);
            (frame.expects_continue, status(&found))
        };
        assert_eq!(with(1, "100-continue", "5"), (true, 200));
        assert_eq!(with(1, "100-Continue", "5"), (true, 200));
        assert_eq!(with(1, "100-continue", "0"), (false, 200));
        assert_eq!(with(0, "100-continue", "5"), (false, 200));
        assert_eq!(with(1, "something", "5"), (false, 417));
        assert_eq!(with(0, "something", "5"), (false, 200));
    }

    #[test]
    fn idempotency_keys() {
        let key = |values: &[&str]| {
            let mut headers = vec![("Host", "x")];
            headers.extend(values.iter().map(|value| ("Idempotency-KEY", *value)));
            let (frame, found) = look(1, "/", &headers);
            assert_eq!(status(&found), 200, "it is no matter of framing");
            (frame.idempotency_key.map(str::to_owned), frame.idempotency_fault.is_some())
        };
        assert_eq!(key(&[]), (None, false));
        let longest = "x".repeat(255);
        for good in ["a", "!~", &longest] {
            assert_eq!(key(&[good]), (Some(good.to_owned()), false));
            assert_eq!(key(&[good, good]), (Some(good.to_owned()), false));
            assert!(key(&[good, "b"]).1 && key(&[good, ""]).1 && key(&["", good]).1);
        }
        let too_long = "x".repeat(256);
        for bad in ["", "a b", "é", "a\tb", "\u{7f}", &too_long] {
            assert!(key(&[bad]).1, "{bad:?}");
        }
    }

    #[test]
    fn request_ids_and_media_types() {
        let id = |value: &str| look(1, "/", &[("Host", "x"), ("X-Request-ID", value)]).0.request_id.is_some();
        assert!(id("a") && id(&"x".repeat(128)) && id("0af7651916cd43dd8448eb211c80319c"));
        assert!(!id("") && !id(&"x".repeat(129)) && !id("a b") && !id("é"));
        let kind = |value: &'static str| look(1, "/", &[("Host", "x"), ("Content-Type", value)]).0.content_type;
        assert_eq!(kind(""), None);
        assert_eq!(kind("application/json"), Some("application/json"));
        let coding = |values: &[&'static str]| {
            let mut headers = vec![("Host", "x")];
            headers.extend(values.iter().map(|value| ("Content-Encoding", *value)));
            look(1, "/", &headers).0.content_encoding.map(str::to_owned)
        };
        assert_eq!(coding(&["", "identity", "Identity"]), None);
        assert_eq!(coding(&["GZIP"]).as_deref(), Some("GZIP"));
        assert_eq!(coding(&["gzip", "gzip"]).as_deref(), Some("(several)"));
        assert_eq!(coding(&["gzip, zstd"]).as_deref(), Some("gzip, zstd"));
        let (frame, _) = examine(1, "/", [("Content-Type", &b"\xff"[..])].into_iter());
        assert_eq!(frame.content_type, Some("(not text)"));
    }
}
