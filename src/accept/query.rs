//! One event as the query of a request, answered 204: what pages and mails can send without a script.

use super::rejects::Rejected;
use super::{Acceptor, Intake, push_event};
use crate::exchange::{Answer, Fault, Head};
use crate::kinds::{QueryEvents, Rejection};

/// The code of a query that is no event, for the rejects and the metrics.
const BAD_PARAMETER: &str = "bad_parameter";

impl<K: QueryEvents> Acceptor<K> {
    /// What needs no body to be refused.
    pub fn admit_query(&self, head: &Head<'_>) -> Result<(), Fault> {
        no_body(head)?;
        self.has_room()
    }

    /// 204 once the log has acknowledged the event, 400 when the query is none.
    pub fn answer_query(&self, head: &Head<'_>) -> Answer {
        let query = head.query.unwrap_or_default();
        let mut intake = Intake::new(self, head);
        let message = match K::from_query(&intake.rules, query, intake.request.sent(query.as_bytes(), 0)) {
            Ok(event) => {
                push_event::<K>(&mut intake.partitions, &event);
                intake.tally.accept();
                None
            }
            Err(message) => Some(message),
        };
        match message {
            None => self.settle(intake).map_or_else(|fault| fault.answer(), |_| Answer::no_content()),
            Some(message) => self.refuse_query(head, query, message),
        }
    }

    fn refuse_query(&self, head: &Head<'_>, query: &str, message: String) -> Answer {
        let reason = Rejection { code: BAD_PARAMETER, field: None, message: message.clone().into() };
        let raw = query.as_bytes();
        self.rejects.reject(&Rejected { kind: K::NAME, peer: head.peer, line: 1, raw, reason: &reason });
        self.observer.rejected(BAD_PARAMETER, 1);
        Fault::BadParameter(message).answer()
    }
}

/// Refuses a body where the event is in the target: it would be dropped in silence.
pub(super) fn no_body(head: &Head<'_>) -> Result<(), Fault> {
    match head.content_length {
        0 => Ok(()),
        length => Err(Fault::BadRequest(
            format!("expected no body, because this path takes its event from the target, found one of {length} bytes")
                .into(),
        )),
    }
}
