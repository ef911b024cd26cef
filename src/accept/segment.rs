//! One event as the last segment of the path, percent-encoded: for clients that cannot send a body.

use super::values::BAD_JSON;
use super::{Acceptor, Tally, query};
use crate::exchange::{Answer, Fault, Head};
use crate::kinds::{Kind, Rejection, excerpt};
use crate::query_string;

impl<K: Kind> Acceptor<K> {
    /// What needs no body to be refused.
    pub fn admit_segment(&self, head: &Head<'_>) -> Result<(), Fault> {
        query::no_body(head)?;
        query_string::none(head.query).map_err(Fault::BadParameter)?;
        self.has_room()
    }

    /// Answers as [`Acceptor`] does for a body that holds what the path's last segment holds: one event, no more.
    pub fn answer_segment(&self, head: &Head<'_>, segment: &str) -> Answer {
        let Some(event) = query_string::decode_segment(segment) else {
            let found = excerpt::quote(segment);
            return self.refuse_segment(segment, format!("expected percent-encoded UTF-8, found {found}"));
        };
        let intake = self.take_in(head, event.as_bytes());
        let found = intake.tally.found();
        if found > 1 {
            return self.refuse_segment(segment, format!("expected one event, found {found} values"));
        }
        self.settle(intake).map_or_else(|fault| fault.answer(), |tally| tally.answer())
    }

    fn refuse_segment(&self, segment: &str, message: String) -> Answer {
        tracing::debug!(segment = excerpt::quote(segment), message, "a path holds no event");
        let mut tally = Tally::default();
        tally.reject(1, Rejection { code: BAD_JSON, field: None, message: message.into() });
        self.observer.rejected(BAD_JSON, 1);
        tally.answer()
    }
}
