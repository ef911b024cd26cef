//! Hits: clicks and impressions of users, counted by hour.

use std::io::Write as _;

use super::{Draft, Marks, NONE, pad};
use crate::random::{Dice, UUID_BYTES, hex};

const HOUR_MS: u64 = 3_600_000;
const KEY: &str = "00000000-0000-0000-0000-000000000000";

/// What is known of the hits of a run.
#[derive(Debug, Clone)]
pub struct Hit {
    /// The hour of those that are not late, in milliseconds since 1970.
    pub hour_ms: u64,
    /// How many hours before it late ones spread over.
    pub late_hours: u32,
    /// How many users there are, all of this run alone.
    pub users: u32,
    /// What the names of this run's users begin with.
    pub run: u64,
    /// Whether hits carry an `event_id`; without one each is new.
    pub keyed: bool,
    pub event_bytes: usize,
}

/// The two counters of an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Click,
    Impression,
}

impl Hit {
    pub(super) fn cells(&self) -> usize {
        (self.late_hours as usize + 1) * 2
    }

    /// The start of the hour, and what was done.
    pub fn place(&self, cell: usize) -> (u64, Action) {
        let action = if cell.is_multiple_of(2) { Action::Click } else { Action::Impression };
        (self.hour_ms - (cell / 2) as u64 * HOUR_MS, action)
    }

    pub(super) fn draft(&self, dice: &mut Dice, late: bool) -> Draft {
        let back = if late { 1 + dice.below(u64::from(self.late_hours)) } else { 0 };
        Draft { cell: (back * 2 + dice.below(2)) as u32, detail: dice.below(HOUR_MS) }
    }

    /// What all names begin with; eight hexadecimal digits follow.
    fn user_start(&self) -> String {
        let [upper, lower] = [(self.run >> 32) as u32, self.run as u32].map(hex);
        format!("load-{}{}-", String::from_utf8_lossy(&upper), String::from_utf8_lossy(&lower))
    }

    pub(super) fn json(&self, draft: Draft, bad: Option<u64>, into: &mut Vec<u8>) -> Marks {
        let start = into.len();
        let (hour_ms, action) = self.place(draft.cell as usize);
        let timestamp = hour_ms + draft.detail;
        // Writing to a Vec cannot fail.
        let _ = match bad {
            Some(0) => write!(into, "{{\"timestamp\":\"{timestamp}\""),
            _ => write!(into, "{{\"timestamp\":{timestamp}"),
        };
        let _ = write!(into, ",\"user\":\"{}", self.user_start());
        let user = (into.len() - start) as u32;
        let _ = write!(into, "00000000\",\"action\":\"{}\"", if bad == Some(1) { "look" } else { action.name() });
        let mut key = NONE;
        if self.keyed || bad == Some(2) {
            into.extend_from_slice(b",\"event_id\":\"");
            key = (into.len() - start) as u32;
            into.extend_from_slice(if bad == Some(2) { b"no UUID" } else { KEY.as_bytes() });
            into.push(b'"');
        }
        pad(into, start, self.event_bytes);
        into.push(b'}');
        Marks { key: if bad == Some(2) { NONE } else { key }, user }
    }

    pub(super) fn query(&self, draft: Draft, bad: Option<u64>, into: &mut Vec<u8>) -> Marks {
        let start = into.len();
        let (hour_ms, action) = self.place(draft.cell as usize);
        let timestamp = hour_ms + draft.detail;
        // Writing to a Vec cannot fail.
        let _ = match bad {
            Some(0) => write!(into, "timestamp={timestamp}.5"),
            _ => write!(into, "timestamp={timestamp}"),
        };
        let _ = write!(into, "&user={}", self.user_start());
        let user = (into.len() - start) as u32;
        let _ = write!(into, "00000000&{}", if bad == Some(1) { "look" } else { action.name() });
        let mut key = NONE;
        if self.keyed || bad == Some(2) {
            into.extend_from_slice(b"&event_id=");
            key = (into.len() - start) as u32;
            into.extend_from_slice(if bad == Some(2) { b"no-UUID" } else { KEY.as_bytes() });
        }
        Marks { key: if bad == Some(2) { NONE } else { key }, user }
    }
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Click => "click",
            Action::Impression => "impression",
        }
    }
}

const _: () = assert!(KEY.len() == UUID_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(keyed: bool) -> Hit {
        Hit { hour_ms: 1_611_532_800_000, late_hours: 24, users: 10, run: 0xabc, keyed, event_bytes: 0 }
    }

    #[test]
    fn hits_as_json_and_as_a_query_say_the_same() {
        let (kind, mut dice) = (hit(true), Dice::new(1, 1));
        for number in 0..100 {
            let draft = kind.draft(&mut dice, number % 3 == 0);
            let (mut json, mut query) = (Vec::new(), Vec::new());
            let (in_json, in_query) = (kind.json(draft, None, &mut json), kind.query(draft, None, &mut query));
            for (text, marks) in [(&mut json, in_json), (&mut query, in_query)] {
                text[marks.user as usize..][..8].copy_from_slice(b"0000002a");
                text[marks.key as usize..][..4].copy_from_slice(b"face");
            }
            let event: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let (hour_ms, action) = kind.place(draft.cell as usize);
            let timestamp = event["timestamp"].as_u64().unwrap();
            assert_eq!(timestamp / HOUR_MS * HOUR_MS, hour_ms);
            assert_eq!(hour_ms < kind.hour_ms, number % 3 == 0);
            assert_eq!(event["user"], "load-0000000000000abc-0000002a");
            let id = "face0000-0000-0000-0000-000000000000";
            assert_eq!(event["event_id"], id);
            let wanted =
                format!("timestamp={timestamp}&user=load-0000000000000abc-0000002a&{}&event_id={id}", action.name());
            assert_eq!(String::from_utf8(query).unwrap(), wanted);
        }
    }

    #[test]
    fn hits_without_a_key_have_none() {
        let mut text = Vec::new();
        let marks = hit(false).json(Draft { cell: 0, detail: 0 }, None, &mut text);
        assert_eq!(marks.key, NONE);
        assert!(!String::from_utf8(text).unwrap().contains("event_id"));
    }
}
