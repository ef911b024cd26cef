//! A record of the log as the writer takes it: its events, or why it has none.
//!
//! A record that nobody can read must not hold up what comes after it: it counts as holding no events, and is kept aside
//! as it is ([`super::rejected`]). One that a later version of the program can read is no such record: passing over it
//! would lose its events.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::Message;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers};

use super::WriterObserver;
use crate::kinds::{Columns, Kind};
use crate::log::record::{self, Unread};

/// A record, decoded.
pub struct Decoded<C> {
    /// Where it lies.
    pub offset: i64,
    /// When it was accepted, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Its events.
    pub columns: C,
    /// What is to be kept of a record that cannot be read.
    pub rejected: Option<Rejected>,
    /// Why only a later version of the program can read it.
    pub newer: Option<String>,
}

/// A record that cannot be read, as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where it lies.
    pub offset: i64,
    /// Its timestamp, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Why it cannot be read.
    pub reason: String,
    /// Its value; `None` for a record without one.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Rejected {
    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.reason.len() + self.value.as_ref().map_or(0, Vec::len) + headers + size_of::<Rejected>()
    }
}

/// Reads a record. What cannot be read is logged and told.
pub fn decode<K: Kind>(
    message: &BorrowedMessage<'_>,
    partition: u32,
    observer: &dyn WriterObserver,
) -> Decoded<K::Columns> {
    let (offset, value) = (message.offset(), message.payload().unwrap_or_default());
    let timestamp_ms = message.timestamp().to_millis().unwrap_or(0);
    let mut decoded = Decoded { offset, timestamp_ms, columns: K::Columns::default(), rejected: None, newer: None };
    let headers = message.headers().map(headers_of).unwrap_or_default();
    match record::decode::<K>(&headers, value) {
        Ok(columns) => decoded.columns = columns,
        Err(Unread::Newer(reason)) => decoded.newer = Some(reason),
        Err(Unread::Bad(reason)) => {
            let (kind, bytes) = (K::NAME, value.len());
            tracing::error!(kind, partition, offset, bytes, %reason, "a record cannot be read and is passed over, it is kept in rejected_records");
            observer.bad_record(partition);
            let (reason, value) = (reason.to_string(), message.payload().map(<[u8]>::to_vec));
            decoded.rejected = Some(Rejected { offset, timestamp_ms, reason, value, headers });
        }
    }
    decoded
}

/// The headers of a record. A name that is no text is shown as one that no header has: the client panics on it.
fn headers_of(headers: &BorrowedHeaders) -> Vec<(String, Vec<u8>)> {
    let read = |index| {
        catch_unwind(AssertUnwindSafe(|| {
            headers
                .try_get(index)
                .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec).unwrap_or_default()))
        }))
        .unwrap_or_else(|_| Some(("\u{fffd}".to_owned(), Vec::new())))
    };
    (0..headers.count()).filter_map(read).collect()
}

impl<C: Columns> Decoded<C> {
    /// How many events it has.
    pub fn events(&self) -> u64 {
        self.columns.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::bindings as sys;

    /// The client's own reader of headers panics on such a name.
    #[test]
    fn a_header_whose_name_is_no_text_is_shown_as_one_that_none_has() {
        let add = |native, name: &[u8], value: &[u8]| {
            // SAFETY: `native` is alive, and name and value are copied before the call returns.
            let error = unsafe {
                sys::rd_kafka_header_add(
                    native,
                    name.as_ptr().cast(),
                    name.len() as isize,
                    value.as_ptr().cast(),
                    value.len() as isize,
                )
            };
            assert_eq!(error, sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
        };
        // SAFETY: makes an empty list, which is destroyed below after its last use.
        let native = unsafe { sys::rd_kafka_headers_new(2) };
        add(native, b"\xff\xfe", b"x");
        add(native, b"kind", b"\xffcaptcha");
        // SAFETY: the client hands out its headers as this very pointer.
        let headers = headers_of(unsafe { &*native.cast::<BorrowedHeaders>() });
        assert_eq!(headers, [("\u{fffd}".to_owned(), Vec::new()), ("kind".to_owned(), b"\xffcaptcha".to_vec())]);
        // SAFETY: made above, and used no more.
        unsafe { sys::rd_kafka_headers_destroy(native) };
    }
}
