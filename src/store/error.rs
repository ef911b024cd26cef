//! What ClickHouse's errors mean for whoever met them: try again, stop, or set the data aside.
//!
//! ClickHouse answers an error with `Code: N. DB::Exception: text (NAME) (version ...)`; everything else is a matter of
//! transport or of our own use of the client. [`StoreError::verdict`] is the one place that decides; it lists the codes
//! it knows, and an unknown one is retried with an alarm: stopping for what may pass is worse than retrying what may
//! not, as long as somebody is told.

use std::fmt;
use std::time::Duration;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes by itself: try again after a while, for as long as it takes.
    Retry,
    /// As [`Verdict::Retry`], but nobody has said that it passes: somebody should look.
    RetryWithAlarm,
    /// It does not pass by itself: stop and say what to do.
    Stop,
    /// The server refuses this very data: keep it aside, go on with the rest.
    SetAside,
}

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The server's own answer: its code and its text.
    #[error("clickhouse refused: {message} (code {code}){}", advice(*code))]
    Refused {
        /// ClickHouse's error code.
        code: i32,
        /// Its text, without code and version, cut to a sane length.
        message: String,
    },
    /// No answer within the time allowed. What was asked may have been done.
    #[error("clickhouse did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// No connection, or one that broke. What was asked may have been done.
    #[error("clickhouse cannot be reached: {0}")]
    Unreachable(String),
    /// An answer that is none of ClickHouse's: a proxy's, or not even HTTP.
    #[error("what answers is not clickhouse: {0}")]
    Foreign(String),
    /// The answer is not what was asked for: our own fault, or another version's.
    #[error("clickhouse's answer cannot be read: {0}")]
    Unreadable(String),
}

/// What to do about a code, where that is always the same.
fn advice(code: i32) -> &'static str {
    match code {
        // UNKNOWN_TABLE, UNKNOWN_DATABASE.
        60 | 81 => ": run `millrace migrate`",
        _ => "",
    }
}

/// Codes that pass by themselves: the server is busy, full, starting or half away.
const RETRY: [(i32, &str); 47] = [
    (3, "UNEXPECTED_END_OF_FILE"),
    (32, "ATTEMPT_TO_READ_AFTER_EOF"),
    (95, "CANNOT_READ_FROM_SOCKET"),
    (96, "CANNOT_WRITE_TO_SOCKET"),
    (159, "TIMEOUT_EXCEEDED"),
    (160, "TOO_SLOW"),
    (173, "CANNOT_ALLOCATE_MEMORY"),
    (198, "DNS_ERROR"),
    (201, "QUOTA_EXCEEDED"),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES"),
    (203, "NO_FREE_CONNECTION"),
    (209, "SOCKET_TIMEOUT"),
    (210, "NETWORK_ERROR"),
    (225, "NO_ZOOKEEPER"),
    (236, "ABORTED"),
    (241, "MEMORY_LIMIT_EXCEEDED"),
    (242, "TABLE_IS_READ_ONLY"),
    (243, "NOT_ENOUGH_SPACE"),
    (244, "UNEXPECTED_ZOOKEEPER_ERROR"),
    (252, "TOO_MANY_PARTS"),
    (254, "NO_ACTIVE_REPLICAS"),
    (265, "NO_AVAILABLE_REPLICA"),
    (279, "ALL_CONNECTION_TRIES_FAILED"),
    (285, "TOO_FEW_LIVE_REPLICAS"),
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE"),
    (319, "UNKNOWN_STATUS_OF_INSERT"),
    (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS"),
    (369, "ALL_REPLICAS_ARE_STALE"),
    (384, "PART_IS_TEMPORARILY_LOCKED"),
    (394, "QUERY_WAS_CANCELLED"),
    (416, "REPLICA_STATUS_CHANGED"),
    (425, "SYSTEM_ERROR"),
    (439, "CANNOT_SCHEDULE_TASK"),
    (473, "DEADLOCK_AVOIDED"),
    (695, "ASYNC_LOAD_FAILED"),
    (696, "ASYNC_LOAD_CANCELED"),
    (700, "USER_SESSION_LIMIT_EXCEEDED"),
    (722, "ASYNC_LOAD_WAIT_FAILED"),
    (733, "TABLE_IS_BEING_RESTARTED"),
    (735, "QUERY_WAS_CANCELLED_BY_CLIENT"),
    (745, "SERVER_OVERLOADED"),
    (749, "TCP_CONNECTION_LIMIT_REACHED"),
    (762, "HTTP_CONNECTION_LIMIT_REACHED"),
    (776, "RESOURCE_LIMIT_EXCEEDED"),
    (777, "MEMORY_RESERVATION_KILLED"),
    (778, "MEMORY_RESERVATION_FAILED"),
    (999, "KEEPER_EXCEPTION"),
];

/// Codes that last until somebody does something: credentials, rights, a schema that is missing or another, a broken
/// store, or a statement of ours that the server does not understand.
const STOP: [(i32, &str); 31] = [
    (16, "NO_SUCH_COLUMN_IN_TABLE"),
    (36, "BAD_ARGUMENTS"),
    (44, "ILLEGAL_COLUMN"),
    (46, "UNKNOWN_FUNCTION"),
    (47, "UNKNOWN_IDENTIFIER"),
    (48, "NOT_IMPLEMENTED"),
    (50, "UNKNOWN_TYPE"),
    (57, "TABLE_ALREADY_EXISTS"),
    (60, "UNKNOWN_TABLE"),
    (62, "SYNTAX_ERROR"),
    (73, "UNKNOWN_FORMAT"),
    (80, "INCORRECT_QUERY"),
    (81, "UNKNOWN_DATABASE"),
    (115, "UNKNOWN_SETTING"),
    (164, "READONLY"),
    (192, "UNKNOWN_USER"),
    (193, "WRONG_PASSWORD"),
    (194, "REQUIRED_PASSWORD"),
    (195, "IP_ADDRESS_NOT_ALLOWED"),
    (218, "TABLE_IS_DROPPED"),
    (291, "DATABASE_ACCESS_DENIED"),
    (344, "SUPPORT_IS_DISABLED"),
    (392, "QUERY_IS_PROHIBITED"),
    (452, "SETTING_CONSTRAINT_VIOLATION"),
    (472, "READONLY_SETTING"),
    (497, "ACCESS_DENIED"),
    (516, "AUTHENTICATION_FAILED"),
    (720, "USER_EXPIRED"),
    (764, "DEDUPLICATION_IS_NOT_POSSIBLE"),
    (767, "REQUIRED_SECOND_FACTOR"),
    (774, "TABLE_IS_PERMANENTLY_READ_ONLY"),
];

/// Codes by which the server refuses the rows themselves. Our blocks are made to never meet them, so one of them is a
/// defect that must not hold up the rest.
const SET_ASIDE: [(i32, &str); 14] = [
    (6, "CANNOT_PARSE_TEXT"),
    (20, "NUMBER_OF_COLUMNS_DOESNT_MATCH"),
    (26, "CANNOT_PARSE_QUOTED_STRING"),
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED"),
    (38, "CANNOT_PARSE_DATE"),
    (41, "CANNOT_PARSE_DATETIME"),
    (53, "TYPE_MISMATCH"),
    (70, "CANNOT_CONVERT_TYPE"),
    (117, "INCORRECT_DATA"),
    (131, "TOO_LARGE_STRING_SIZE"),
    (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE"),
    (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN"),
    (376, "CANNOT_PARSE_UUID"),
    (469, "VIOLATED_CONSTRAINT"),
];

impl StoreError {
    /// What to do about it.
    pub fn verdict(&self) -> Verdict {
        match self {
            StoreError::Refused { code, .. } => verdict_of(*code),
            StoreError::TimedOut(_) | StoreError::Unreachable(_) => Verdict::Retry,
            StoreError::Foreign(_) => Verdict::RetryWithAlarm,
            StoreError::Unreadable(_) => Verdict::Stop,
        }
    }

    /// The server's code, where it gave one.
    pub fn code(&self) -> Option<i32> {
        match self {
            StoreError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether it is about who we are or what we may do there.
    pub fn is_access(&self) -> bool {
        matches!(self.code(), Some(192 | 193 | 194 | 195 | 291 | 497 | 516 | 720 | 767))
    }

    /// Whether the database or the table is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self.code(), Some(60 | 81))
    }
}

fn verdict_of(code: i32) -> Verdict {
    let listed = |codes: &[(i32, &str)]| codes.iter().any(|(listed, _)| *listed == code);
    if listed(&RETRY) {
        Verdict::Retry
    } else if listed(&STOP) {
        Verdict::Stop
    } else if listed(&SET_ASIDE) {
        Verdict::SetAside
    } else {
        Verdict::RetryWithAlarm
    }
}

impl From<clickhouse::error::Error> for StoreError {
    fn from(error: clickhouse::error::Error) -> StoreError {
        use clickhouse::error::Error;
        match error {
            Error::BadResponse(text) => of_answer(&text),
            Error::TimedOut => StoreError::TimedOut(Duration::ZERO),
            // A cut answer shows as data that ends too early.
            Error::Network(_) | Error::NotEnoughData | Error::Decompression(_) => {
                StoreError::Unreachable(chain(&error))
            }
            other => StoreError::Unreadable(chain(&other)),
        }
    }
}

/// Takes `Code: 60. DB::Exception: Unknown table ... (UNKNOWN_TABLE) (version 26.7.2.1)` apart.
fn of_answer(text: &str) -> StoreError {
    let code = text.strip_prefix("Code: ").and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok().map(|code| (code, rest[digits..].trim_start_matches('.').trim_start()))
    });
    match code {
        Some((code, rest)) => {
            let rest = rest.strip_prefix("DB::Exception: ").unwrap_or(rest);
            let end = rest.rfind(" (version ").unwrap_or(rest.len());
            StoreError::Refused { code, message: cut(&rest[..end]) }
        }
        None => StoreError::Foreign(cut(text)),
    }
}

/// One line of at most 500 characters: what an error says can hold a whole statement or a page of HTML.
fn cut(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(500) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// An error with its causes, each said once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    cut(&text)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Retry => "retry",
            Verdict::RetryWithAlarm => "retry_with_alarm",
            Verdict::Stop => "stop",
            Verdict::SetAside => "set_aside",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_stands_in_one_list_in_order() {
        let mut codes: Vec<i32> = [&RETRY[..], &STOP, &SET_ASIDE].concat().iter().map(|(code, _)| *code).collect();
        let listed = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), listed);
        for list in [&RETRY[..], &STOP, &SET_ASIDE] {
            assert!(list.is_sorted());
        }
    }

    #[test]
    fn verdicts() {
        for (code, verdict) in [
            (252, Verdict::Retry),
            (241, Verdict::Retry),
            (202, Verdict::Retry),
            (159, Verdict::Retry),
            (209, Verdict::Retry),
            (210, Verdict::Retry),
            (242, Verdict::Retry),
            (516, Verdict::Stop),
            (60, Verdict::Stop),
            (81, Verdict::Stop),
            (16, Verdict::Stop),
            (469, Verdict::SetAside),
            (49, Verdict::RetryWithAlarm),
            (123_456, Verdict::RetryWithAlarm),
        ] {
            assert_eq!(verdict_of(code), verdict, "{code}");
        }
    }

    #[test]
    fn answers_are_taken_apart() {
        let text = "Code: 60. DB::Exception: Unknown table expression identifier 'x' in scope SELECT 1\nFROM x. (UNKNOWN_TABLE) (version 26.7.2.1)";
        match of_answer(text) {
            StoreError::Refused { code: 60, message } => {
                assert_eq!(
                    message,
                    "Unknown table expression identifier 'x' in scope SELECT 1 FROM x. (UNKNOWN_TABLE)"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(of_answer("Code: 516").code(), Some(516));
        assert!(matches!(of_answer("502 Bad Gateway"), StoreError::Foreign(_)));
        assert!(matches!(of_answer("Code: x"), StoreError::Foreign(_)));
        assert!(matches!(of_answer("Code: 99999999999999"), StoreError::Foreign(_)));
        assert_eq!(of_answer(&"x".repeat(9_999)).to_string().len(), "what answers is not clickhouse: ".len() + 503);
    }
}
