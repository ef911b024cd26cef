//! Captcha events: served and solved, counted by site and day.

use std::io::Write as _;

use super::{Draft, Marks, NONE, pad};
use crate::days;
use crate::random::{Dice, Keys, SITES, UUID_BYTES, write_uuid};

/// How many days before the first one late events spread over.
const LATE_DAYS: u32 = 30;
/// A placeholder of a key's length.
const KEY: &[u8] = b"00000000-0000-0000-0000-000000000000";

/// What is known of the events of a run.
#[derive(Debug, Clone)]
pub struct Captcha {
    /// The text of each site's id: new in each run.
    sites: Vec<String>,
    /// The text of each day, those of late events last.
    days: Vec<String>,
    late_days: u32,
    event_bytes: usize,
}

impl Captcha {
    /// `count` days up to `last_day`, and with `late` those before them.
    pub fn new(keys: &Keys, sites: u32, count: u32, last_day: i64, late: bool, event_bytes: usize) -> Captcha {
        let site = |number: u32| {
            let mut text = [0; UUID_BYTES];
            write_uuid(&mut text, keys.key(SITES + u64::from(number)));
            String::from_utf8_lossy(&text).into_owned()
        };
        let first = last_day - i64::from(count) + 1;
        let late_days = if late { LATE_DAYS } else { 0 };
        let late = (1..=i64::from(late_days)).map(|back| first - back);
        let days = (first..=last_day).chain(late).map(days::text).collect();
        Captcha { sites: (0..sites).map(site).collect(), days, late_days, event_bytes }
    }

    pub fn sites(&self) -> &[String] {
        &self.sites
    }

    pub(super) fn cells(&self) -> usize {
        self.sites.len() * self.days.len() * 2
    }

    /// Site, day and whether it is solved.
    pub fn place(&self, cell: usize) -> (&str, &str, bool) {
        let (place, solved) = (cell / 2, cell % 2 == 1);
        (&self.sites[place / self.days.len()], &self.days[place % self.days.len()], solved)
    }

    pub(super) fn draft(&self, dice: &mut Dice, late: bool) -> Draft {
        let (all, normal) = (self.days.len() as u64, self.days.len() as u64 - u64::from(self.late_days));
        let day = if late { normal + dice.below(u64::from(self.late_days)) } else { dice.below(normal) };
        let site = dice.below(self.sites.len() as u64);
        Draft { cell: ((site * all + day) * 2 + dice.below(2)) as u32, detail: dice.below(86_400_000_000) }
    }

    pub(super) fn json(&self, draft: Draft, bad: Option<u64>, into: &mut Vec<u8>) -> Marks {
        let start = into.len();
        let (site, day, solved) = self.place(draft.cell as usize);
        let (second, fraction) = (draft.detail / 1_000_000, draft.detail % 1_000_000);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let day = if bad == Some(0) { "2021-02-30" } else { day };
        let kind = if solved { "solve" } else { "serve" };
        // Writing to a Vec cannot fail.
        let _ = write!(into, "{{\"time\":\"{day}T{hour:02}:{minute:02}:{second:02}.{fraction:06}\",\"type\":\"");
        let _ = write!(into, "{}\",\"correlation_id\":\"", if bad == Some(1) { "observe" } else { kind });
        let key = (into.len() - start) as u32;
        into.extend_from_slice(if bad == Some(2) { b"no UUID" } else { KEY });
        let _ = write!(into, "\",\"site_id\":\"{site}\"");
        pad(into, start, self.event_bytes);
        into.push(b'}');
        Marks { key: if bad == Some(2) { NONE } else { key }, user: NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captcha(late: bool, bytes: usize) -> Captcha {
        Captcha::new(&Keys::new(1, 2), 5, 3, days::parse("2021-01-25").unwrap(), late, bytes)
    }

    #[test]
    fn events_are_json_of_the_wanted_size_with_the_key_where_the_mark_says() {
        let (kind, mut dice) = (captcha(true, 300), Dice::new(3, 4));
        for number in 0..200 {
            let draft = kind.draft(&mut dice, number % 2 == 0);
            let mut text = b"before".to_vec();
            let marks = kind.json(draft, None, &mut text);
            let text = &mut text[6..];
            assert_eq!(text.len(), 300);
            write_uuid(&mut text[marks.key as usize..][..UUID_BYTES], 0x2d5e8a40_4c1f_4b6a_9d0e_6f5a3c2b1a00);
            let event: serde_json::Value = serde_json::from_slice(text).unwrap();
            let (site, day, solved) = kind.place(draft.cell as usize);
            assert_eq!(event["correlation_id"], "2d5e8a40-4c1f-4b6a-9d0e-6f5a3c2b1a00");
            assert_eq!(event["site_id"], site);
            assert_eq!(event["type"], if solved { "solve" } else { "serve" });
            assert!(event["time"].as_str().unwrap().starts_with(day));
            assert_eq!(day < "2021-01-23", number % 2 == 0, "late events lie before the others: {day}");
        }
    }

    #[test]
    fn bad_events_are_still_json() {
        let kind = captcha(false, 0);
        for way in 0..super::super::BAD_WAYS {
            let mut text = Vec::new();
            kind.json(Draft { cell: 7, detail: 0 }, Some(way), &mut text);
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        }
    }
}
