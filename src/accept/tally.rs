//! What became of a request's events, and how it is told: the JSON of the 202, which 400 and 422 share.

use std::borrow::Cow;

use serde::Serialize;

use super::values::BAD_JSON;
use crate::exchange::Answer;
use crate::kinds::Rejection;

/// Rejected events that an answer lists; all are counted.
const ERRORS_LISTED_MAX: usize = 100;

/// Counts what was taken and what was not.
#[derive(Debug, Default, Serialize)]
pub struct Tally {
    accepted: u64,
    rejected: u64,
    errors: Vec<Listed>,
    #[serde(skip)]
    by_code: Vec<(&'static str, u64)>,
}

#[derive(Debug, Serialize)]
struct Listed {
    line: u64,
    code: &'static str,
    field: Option<Cow<'static, str>>,
    message: String,
}

impl Tally {
    /// Counts an event that was taken.
    #[inline]
    pub fn accept(&mut self) {
        self.accepted += 1;
    }

    /// Counts an event that was not.
    pub fn reject(&mut self, line: u64, rejection: Rejection) {
        self.rejected += 1;
        let Rejection { code, field, message } = rejection;
        match self.by_code.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => self.by_code.push((code, 1)),
        }
        if self.errors.len() < ERRORS_LISTED_MAX {
            self.errors.push(Listed { line, code, field, message: message.into_owned() });
        }
    }

    /// How many were taken.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// How many there were, taken or not.
    pub fn found(&self) -> u64 {
        self.accepted + self.rejected
    }

    /// How many were not, by code.
    pub fn by_code(&self) -> &[(&'static str, u64)] {
        &self.by_code
    }

    /// 202 when something was taken; 422 when there was JSON and none of it acceptable; 400 when there was nothing, or
    /// only broken JSON.
    pub fn status(&self) -> u16 {
        match (self.accepted, self.by_code.iter().any(|(code, _)| *code != BAD_JSON)) {
            (0, false) => 400,
            (0, true) => 422,
            _ => 202,
        }
    }

    /// `{"accepted":N,"rejected":M,"errors":[{"line","code","field","message"}]}`.
    pub fn answer(&self) -> Answer {
        let mut body = serde_json::to_vec(self).expect("numbers and texts are always JSON");
        body.push(b'\n');
        Answer::json(self.status(), body)
    }
}
