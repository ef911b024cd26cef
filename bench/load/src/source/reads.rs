//! Reads of reports, in turn.

use super::{Budget, Expected, Request};

/// Requests that are sent over and over, each with the stream that it belongs to.
#[derive(Debug)]
pub struct Reads {
    requests: Vec<(Vec<u8>, u8)>,
    next: usize,
    budget: Budget,
}

impl Reads {
    /// At least one request.
    pub fn new(requests: Vec<(Vec<u8>, u8)>, first: usize, budget: Budget) -> Reads {
        let next = first % requests.len().max(1);
        Reads { requests, next, budget }
    }

    pub(super) fn take(&mut self) -> Option<Request> {
        self.budget.take()?;
        let number = self.next;
        self.next = (self.next + 1) % self.requests.len();
        let stream = self.requests.get(number)?.1;
        Some(Request { number: number as u64, stream, events: 0, expected: Expected::Read })
    }

    pub(super) fn bytes(&self, request: &Request) -> &[u8] {
        &self.requests[request.number as usize].0
    }
}
