//! Requests of librdkafka's admin interface that the safe API does not offer.

use std::ffi::CStr;
use std::ptr;
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};

/// What a request of the admin interface is given.
pub struct Request {
    /// The client that asks.
    pub rk: *mut sys::rd_kafka_t,
    /// With the request's time-out.
    pub options: *mut sys::rd_kafka_AdminOptions_t,
    /// Where the answer comes.
    pub queue: *mut sys::rd_kafka_queue_t,
}

/// Sends a request and reads its answer. Blocks for `timeout` at most. `read` is not called for an answer that is an error.
///
/// # Safety
/// `issue` issues one request of this operation with what it is given, and keeps none of it. `read` is given a live event,
/// which owns whatever is read out of it, and keeps none of that.
pub(super) unsafe fn ask<C: ClientContext, T>(
    client: &Client<C>,
    operation: sys::rd_kafka_admin_op_t,
    timeout: Duration,
    issue: impl FnOnce(&Request),
    read: impl FnOnce(*mut sys::rd_kafka_event_t) -> Result<T, String>,
) -> Result<T, String> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `client` outlives every call here. Each object made here is destroyed once, after its last use: the options
    // after the request was issued (librdkafka copies them), the event after it was read. Null is checked before use.
    unsafe {
        let rk = client.native_ptr();
        let request =
            Request { rk, options: sys::rd_kafka_AdminOptions_new(rk, operation), queue: sys::rd_kafka_queue_new(rk) };
        sys::rd_kafka_AdminOptions_set_request_timeout(request.options, timeout_ms, ptr::null_mut(), 0);
        issue(&request);
        sys::rd_kafka_AdminOptions_destroy(request.options);
        let event = sys::rd_kafka_queue_poll(request.queue, timeout_ms);
        let answer = if event.is_null() {
            Err("no answer in time".to_owned())
        } else {
            let answer = succeeded(event).and_then(|()| read(event));
            sys::rd_kafka_event_destroy(event);
            answer
        };
        sys::rd_kafka_queue_destroy(request.queue);
        answer
    }
}

/// # Safety
/// `event` is a live event of librdkafka.
unsafe fn succeeded(event: *mut sys::rd_kafka_event_t) -> Result<(), String> {
    // SAFETY: the event is live for the whole function, and its text is copied.
    unsafe {
        if sys::rd_kafka_event_error(event) == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        Err(CStr::from_ptr(sys::rd_kafka_event_error_string(event)).to_string_lossy().into_owned())
    }
}
