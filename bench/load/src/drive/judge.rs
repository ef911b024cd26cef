//! Whether an answer is the one that a request should have, and what it says of the request's events.

use crate::ledger::Fate;
use crate::response::counts;
use crate::source::Expected;
use crate::tally::Trouble;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good { accepted: u64, rejected: u64 },
    Wrong(Trouble, Fate),
}

impl Verdict {
    pub fn fate(self) -> Fate {
        match self {
            Verdict::Good { .. } => Fate::Acknowledged,
            Verdict::Wrong(_, fate) => fate,
        }
    }
}

/// Judges an answer by its status and the beginning of its body.
pub fn judge(expected: Expected, status: u16, body: &[u8]) -> Verdict {
    let good = |accepted, rejected| Verdict::Good { accepted, rejected };
    match (expected, status) {
        (Expected::Taken { accepted, rejected }, 202) => match counts(body) {
            Some(said) if said == (u64::from(accepted), u64::from(rejected)) => good(said.0, said.1),
            _ => Verdict::Wrong(Trouble::Counts, Fate::Unknown),
        },
        (Expected::NoContent, 204) => good(1, 0),
        (Expected::Read, 200) => good(0, 0),
        (Expected::Refused, 400 | 422) => good(0, counts(body).map_or(1, |(_, rejected)| rejected)),
        // Nothing of a request that is answered 4xx is taken; any other answer leaves it open.
        (_, 400..=499) => Verdict::Wrong(Trouble::Status, Fate::Refused),
        _ => Verdict::Wrong(Trouble::Status, Fate::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_was_sent() {
        let taken = Expected::Taken { accepted: 3, rejected: 1 };
        let said = |accepted, rejected| format!("{{\"accepted\":{accepted},\"rejected\":{rejected},\"errors\":[]}}");
        let wrong = Verdict::Wrong;
        for (expected, status, body, verdict) in [
            (taken, 202, said(3, 1), Verdict::Good { accepted: 3, rejected: 1 }),
            (taken, 202, said(4, 0), wrong(Trouble::Counts, Fate::Unknown)),
            (taken, 202, "oops".to_owned(), wrong(Trouble::Counts, Fate::Unknown)),
            (taken, 200, said(3, 1), wrong(Trouble::Status, Fate::Unknown)),
            (taken, 503, String::new(), wrong(Trouble::Status, Fate::Unknown)),
            (taken, 413, String::new(), wrong(Trouble::Status, Fate::Refused)),
            (Expected::NoContent, 204, String::new(), Verdict::Good { accepted: 1, rejected: 0 }),
            (Expected::NoContent, 202, said(1, 0), wrong(Trouble::Status, Fate::Unknown)),
            (Expected::Refused, 422, said(0, 7), Verdict::Good { accepted: 0, rejected: 7 }),
            (Expected::Refused, 400, "{\"error\":{}}".to_owned(), Verdict::Good { accepted: 0, rejected: 1 }),
            (Expected::Refused, 202, said(1, 0), wrong(Trouble::Status, Fate::Unknown)),
            (Expected::Read, 200, String::new(), Verdict::Good { accepted: 0, rejected: 0 }),
            (Expected::Read, 503, String::new(), wrong(Trouble::Status, Fate::Unknown)),
        ] {
            assert_eq!(judge(expected, status, body.as_bytes()), verdict, "{expected:?} {status} {body}");
        }
    }
}
