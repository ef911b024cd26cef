//! A request on its way through the door: what its head said, where its body comes from, and what is known when it is
//! answered.

use std::net::SocketAddr;
use std::time::Instant;

use may_minihttp::Request;

use super::frame;
use crate::exchange::{Fault, Head};

/// A head, copied: the server uses its memory again for the body.
pub(super) struct Summary {
    /// Method, path, query, media type, coding and idempotency key, one after the other.
    text: String,
    method_end: usize,
    path_end: usize,
    query_end: Option<usize>,
    content_type_end: Option<usize>,
    content_encoding_end: Option<usize>,
    idempotency_key_end: Option<usize>,
    /// What is wrong with the idempotency key.
    idempotency_fault: Option<&'static str>,
    pub content_length: usize,
    pub expects_continue: bool,
    pub keep_alive: bool,
    pub old: bool,
    /// Whether its framing can be trusted.
    pub framed: Result<(), Fault>,
}

impl Summary {
    /// Reads a head into `text`, whose memory is used, and the request's id into `request_id`, which is left empty
    /// where there is none.
    pub fn read<'a>(
        mut text: String,
        request_id: &mut String,
        method: &'a str,
        target: &'a str,
        version: u8,
        fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    ) -> Summary {
        let (frame, framed) = frame::examine(version, target, fields);
        request_id.clear();
        request_id.push_str(frame.request_id.unwrap_or_default());
        text.clear();
        let mut push = |part: &str| {
            text.push_str(part);
            text.len()
        };
        let method_end = push(method);
        let path_end = push(frame.path);
        let query_end = frame.query.map(&mut push);
        let content_type_end = frame.content_type.map(&mut push);
        let content_encoding_end = frame.content_encoding.map(&mut push);
        // Of other methods it says nothing.
        let idempotency_key_end = frame.idempotency_key.filter(|_| method == "POST").map(&mut push);
        Summary {
            text,
            method_end,
            path_end,
            query_end,
            content_type_end,
            content_encoding_end,
            idempotency_key_end,
            idempotency_fault: frame.idempotency_fault,
            content_length: frame.content_length,
            expects_continue: frame.expects_continue,
            keep_alive: frame.keep_alive,
            old: frame.old,
            framed,
        }
    }

    /// As endpoints see it.
    pub fn head<'a>(&'a self, peer: SocketAddr, request_id: &'a str) -> Head<'a> {
        let query_end = self.query_end.unwrap_or(self.path_end);
        let content_type_end = self.content_type_end.unwrap_or(query_end);
        let content_encoding_end = self.content_encoding_end.unwrap_or(content_type_end);
        Head {
            method: &self.text[..self.method_end],
            path: &self.text[self.method_end..self.path_end],
            query: self.query_end.map(|end| &self.text[self.path_end..end]),
            content_type: self.content_type_end.map(|end| &self.text[query_end..end]),
            content_encoding: self.content_encoding_end.map(|end| &self.text[content_type_end..end]),
            content_length: self.content_length,
            idempotency_key: self.idempotency_key_end.map(|end| &self.text[content_encoding_end..end]),
            request_id,
            peer,
        }
    }

    /// What is wrong with a head whose framing is right.
    pub fn check(&self, method: &str) -> Result<(), Fault> {
        match self.idempotency_fault {
            Some(message) if method == "POST" => Err(Fault::BadRequest(message.into())),
            _ => Ok(()),
        }
    }

    /// The method, if it may become a metric's label: a client must not be able to make up more.
    pub fn method_label(&self) -> &'static str {
        const KNOWN: [&str; 9] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"];
        let method = &self.text[..self.method_end];
        KNOWN.into_iter().find(|known| *known == method).unwrap_or("OTHER")
    }

    /// Gives the memory back.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Where a body comes from.
pub(super) enum Source<'a, 'buf, 'header, 'stream> {
    /// The server, which has read the head.
    Server(Request<'buf, 'header, 'stream>),
    /// The connection: the server has read nothing of it.
    Wire,
    /// A copy of what the server has thrown away.
    Copied(&'a [u8]),
}

/// What is known about a request when it is answered.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The pattern of its route, or `-`.
    pub route: &'a str,
    pub method: &'static str,
    pub received_bytes: usize,
    pub started: Instant,
    /// The connection may stay open.
    pub keep_alive: bool,
    /// HTTP/1.0.
    pub old: bool,
    /// Some of its body was not read.
    pub unread: bool,
}

impl Asked<'_> {
    /// Something that did not become a request.
    pub fn unknown() -> Asked<'static> {
        Asked {
            route: "-",
            method: "-",
            received_bytes: 0,
            started: Instant::now(),
            keep_alive: false,
            old: false,
            unread: true,
        }
    }

    /// Its body, or the rest of it, cannot be read: the connection ends with the answer.
    pub fn give_up(&mut self) {
        (self.keep_alive, self.unread) = (false, true);
    }
}

/// How long a head was: from the method to the last value, all in one buffer, and two line ends.
pub(super) fn head_bytes(req: &Request<'_, '_, '_>) -> u64 {
    let start = req.method().as_ptr() as usize;
    let end = match req.headers().last() {
        Some(last) => last.value.as_ptr() as usize + last.value.len(),
        None => req.path().as_ptr() as usize + req.path().len() + " HTTP/1.1".len(),
    };
    (end.saturating_sub(start) + 4) as u64
}
