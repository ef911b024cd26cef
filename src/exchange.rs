//! One HTTP exchange as the stages see it: what a request is once the door has framed it, and what is answered.
//!
//! The door owns sockets and framing; an [`Endpoint`] owns the meaning. Every error that is the client's or the
//! moment's fault is a [`Fault`], and [`Fault::answer`] is the one place where a fault gets its status and code.

use std::borrow::Cow;
use std::net::SocketAddr;

/// A request before its body was read.
#[derive(Debug)]
pub struct Head<'a> {
    /// As sent, in upper case.
    pub method: &'a str,
    /// The path without its query, still percent-encoded.
    pub path: &'a str,
    /// What stands after the `?`, still percent-encoded.
    pub query: Option<&'a str>,
    /// The value of `Content-Type`; `None` when absent or empty.
    pub content_type: Option<&'a str>,
    /// The value of `Content-Encoding`; `None` when absent, empty or `identity`. What an endpoint that
    /// [takes coded bodies](Endpoint::takes_coded_bodies) is given is decoded already.
    pub content_encoding: Option<&'a str>,
    /// The body's length in bytes as announced (0 without one).
    pub content_length: usize,
    /// The value of `Idempotency-Key` of a `POST`: 1 to 255 visible ASCII characters.
    pub idempotency_key: Option<&'a str>,
    /// What `X-Request-Id` answers: as sent, or made. 1 to 128 visible ASCII characters.
    pub request_id: &'a str,
    /// Who sent it.
    pub peer: SocketAddr,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The value of `Content-Type`; empty for none.
    pub content_type: &'static str,
    /// The value of `Retry-After`, in seconds.
    pub retry_after_s: Option<u16>,
    /// The value of `Allow`.
    pub allow: Option<&'static str>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer with a JSON body.
    pub fn json(status: u16, body: Vec<u8>) -> Answer {
        Answer { status, content_type: "application/json", retry_after_s: None, allow: None, body }
    }

    /// 204: nothing to say, so no body, and neither a type nor a length of one.
    pub fn no_content() -> Answer {
        Answer { status: 204, content_type: "", retry_after_s: None, allow: None, body: Vec::new() }
    }

    /// An answer in plain text.
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        let body = body.into();
        Answer { status, content_type: "text/plain; charset=utf-8", retry_after_s: None, allow: None, body }
    }
}

/// The last segment of a path, still percent-encoded: the parameter, where the route's pattern ends in one. An encoded
/// slash (`%2F`) does not end a segment.
pub fn last_segment(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, segment)| segment)
}

/// What answers one method of one route. Called in a coroutine: it must not block a thread.
pub trait Endpoint: Send + Sync + 'static {
    /// Asked before the body is read (and before `100 Continue`): refuse here what needs no body to be refused.
    fn admit(&self, _head: &Head<'_>) -> Result<(), Fault> {
        Ok(())
    }
    /// Whether a body is decoded (gzip, zstd) before it is handed over: for endpoints that read their bodies. Others get
    /// what was sent, so that nobody has them decode what they ignore.
    fn takes_coded_bodies(&self) -> bool {
        false
    }
    /// Answers the request; `body` may be changed in place.
    fn answer(&self, head: &Head<'_>, body: &mut Vec<u8>) -> Answer;
}

/// Every error answer outside the body of an accepting endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// 400 `bad_request`: the request cannot be understood as HTTP.
    BadRequest(Cow<'static, str>),
    /// 400 `bad_parameter`: a query parameter is unknown or malformed.
    BadParameter(String),
    /// 400 `bad_encoding`: the body is not what its `Content-Encoding` says; where, and what is wrong there.
    InvalidEncoding(String),
    /// 404 `not_found`.
    NotFound(String),
    /// 405 `method_not_allowed`, with what is allowed (the value of `Allow`).
    MethodNotAllowed(&'static str),
    /// 408 `request_timeout`.
    RequestTimeout,
    /// 411 `length_required`.
    LengthRequired,
    /// 413 `content_too_large`, with the limit in bytes.
    ContentTooLarge(usize),
    /// 413 `content_too_large`, with the limit in bytes for a body that was decoded.
    DecodedTooLarge(usize),
    /// 415 `unsupported_media_type`, with what was found.
    UnsupportedMediaType(String),
    /// 415 `unsupported_content_encoding`, with what was found.
    UnsupportedContentEncoding(String),
    /// 417 `expectation_failed`.
    ExpectationFailed,
    /// 431 `header_fields_too_large`.
    HeaderFieldsTooLarge,
    /// 503 `unavailable`: what is missing and how many seconds to wait.
    Unavailable {
        /// Says what is away or full.
        message: Cow<'static, str>,
        /// The value of `Retry-After`.
        retry_after_s: u16,
    },
    /// 500 `internal`: our own fault.
    Internal,
}

impl Fault {
    /// The status, the stable code and the message of this fault.
    pub fn describe(&self) -> (u16, &'static str, Cow<'_, str>) {
        match self {
            Fault::BadRequest(message) => (400, "bad_request", Cow::Borrowed(message)),
            Fault::BadParameter(message) => (400, "bad_parameter", Cow::Borrowed(message)),
            Fault::InvalidEncoding(message) => (400, "bad_encoding", Cow::Borrowed(message)),
            Fault::NotFound(message) => (404, "not_found", Cow::Borrowed(message)),
            Fault::MethodNotAllowed(allow) => {
                (405, "method_not_allowed", format!("this path takes {allow} only").into())
            }
            Fault::RequestTimeout => (408, "request_timeout", "the request did not arrive in time".into()),
            Fault::LengthRequired => (
                411,
                "length_required",
                "Transfer-Encoding is not taken here: send Content-Length, or put a proxy that buffers requests (such as nginx) in front".into(),
            ),
            Fault::ContentTooLarge(limit) => (
                413,
                "content_too_large",
                format!("the body may have {limit} bytes at most: send it in several requests").into(),
            ),
            Fault::DecodedTooLarge(limit) => (
                413,
                "content_too_large",
                format!("the body may have {limit} bytes at most once it is decoded: send it in several requests").into(),
            ),
            Fault::UnsupportedMediaType(found) => (
                415,
                "unsupported_media_type",
                format!("expected JSON or NDJSON in UTF-8 (application/json, application/x-ndjson, or no Content-Type), found {found}").into(),
            ),
            Fault::UnsupportedContentEncoding(found) => (
                415,
                "unsupported_content_encoding",
                format!("expected Content-Encoding to be gzip, zstd or identity, one of them at most, found {found}").into(),
            ),
            Fault::ExpectationFailed => (417, "expectation_failed", "the only expectation known here is 100-continue".into()),
            Fault::HeaderFieldsTooLarge => {
                (431, "header_fields_too_large", "a request may have 16 header fields and 64 KiB of them at most".into())
            }
            Fault::Unavailable { message, .. } => (503, "unavailable", Cow::Borrowed(message)),
            Fault::Internal => (500, "internal", "something went wrong here: see the server's log".into()),
        }
    }

    /// As an answer: `{"error":{"code","message"}}`.
    pub fn answer(&self) -> Answer {
        let (status, code, message) = self.describe();
        let body = serde_json::json!({"error": {"code": code, "message": message}}).to_string() + "\n";
        let mut answer = Answer::json(status, body.into_bytes());
        match self {
            Fault::MethodNotAllowed(allow) => answer.allow = Some(allow),
            Fault::Unavailable { retry_after_s, .. } => answer.retry_after_s = Some(*retry_after_s),
            _ => {}
        }
        answer
    }
}
