//! Whether a consumer group has members: asked of the brokers, by whoever is none.

use std::ffi::CStr;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};

use super::request;

/// The members of a group, as far as the brokers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// There is no such group, or it has none.
    None,
    /// It has some, or is about to.
    Some,
}

/// Asks every broker for its groups, which tells those of both group protocols; the safe API describes one of them only.
pub(super) fn members<C: ClientContext>(client: &Client<C>, group: &str, timeout: Duration) -> Result<Members, String> {
    let operation = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPS;
    // SAFETY: one request with what it needs, and the answer's event is live while it is read.
    unsafe {
        request::ask(
            client,
            operation,
            timeout,
            |request| sys::rd_kafka_ListConsumerGroups(request.rk, request.options, request.queue),
            |event| listed(event, group),
        )
    }
}

/// The group in the answer to a ListConsumerGroups request.
///
/// # Safety
/// `event` is a live event of librdkafka.
unsafe fn listed(event: *mut sys::rd_kafka_event_t, group: &str) -> Result<Members, String> {
    use sys::rd_kafka_consumer_group_state_t as State;
    // SAFETY: the event is live for the whole function, and what is read here belongs to it.
    unsafe {
        let result = sys::rd_kafka_event_ListConsumerGroups_result(event);
        if result.is_null() {
            return Err("an answer of another kind".to_owned());
        }
        // A broker that does not answer may be the one that has the group.
        let mut failed = 0;
        sys::rd_kafka_ListConsumerGroups_result_errors(result, &mut failed);
        if failed > 0 {
            return Err(format!("{failed} brokers do not tell their groups"));
        }
        let mut count = 0;
        let listings = sys::rd_kafka_ListConsumerGroups_result_valid(result, &mut count);
        for index in 0..if listings.is_null() { 0 } else { count } {
            let listing = *listings.add(index);
            if CStr::from_ptr(sys::rd_kafka_ConsumerGroupListing_group_id(listing)).to_bytes() == group.as_bytes() {
                return Ok(match sys::rd_kafka_ConsumerGroupListing_state(listing) {
                    State::RD_KAFKA_CONSUMER_GROUP_STATE_EMPTY | State::RD_KAFKA_CONSUMER_GROUP_STATE_DEAD => {
                        Members::None
                    }
                    // Also states that this client does not know: those of groups that are changing.
                    _ => Members::Some,
                });
            }
        }
        Ok(Members::None)
    }
}
