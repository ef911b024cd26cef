//! Whether the report shows what was sent.
//!
//! Events of acknowledged requests are there; those of requests without an answer may be, so a counter lies between two bounds, which
//! are equal when all were acknowledged.
//!
//! The report must not be asked before all that was sent is stored, or a copy that would be counted twice could still be on its way. So
//! probes are sent at the end: events of their own, enough that every partition of the log gets some. A partition is stored in
//! order: once the report shows all probes, it shows all that was acknowledged before them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::client::{Client, start_of};
use crate::days;
use crate::events::{Action, Captcha, Hit, Kind};
use crate::ledger::{Fate, Sent};
use crate::random::{Keys, UUID_BYTES, fresh, write_uuid};
use crate::response::counts;

/// With 64 partitions, one in ten million that a partition gets none.
const PROBE_EVENTS: u64 = 1024;
const POLL: Duration = Duration::from_millis(20);
/// How old an answer may be: reports of hits are given again for nearly a second.
const ANSWER_AGE: Duration = Duration::from_secs(1);
const SETTLED: Duration = Duration::from_secs(3);
/// Sites that are looked at first, so that waiting costs the server little.
const SAMPLE_SITES: usize = 10;
/// Sites asked for at once: 5 KB of a request's head.
const SITES_AT_ONCE: usize = 100;
const HOUR_MS: u64 = 3_600_000;

/// A counter that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub counter: String,
    pub found: i64,
    pub at_least: i64,
    pub at_most: i64,
}

/// What a comparison came to.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    pub counters: u64,
    /// Distinct events that were acknowledged, and those that may be there.
    pub acknowledged: u64,
    pub uncertain: u64,
    pub differences: Vec<Difference>,
}

/// The bounds of one counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Bounds {
    sure: i64,
    uncertain: i64,
}

impl Bounds {
    fn add(&mut self, fate: Fate) {
        match fate {
            Fate::Acknowledged => self.sure += 1,
            Fate::Unknown => self.uncertain += 1,
            Fate::Refused => {}
        }
    }

    fn check(self, counter: impl FnOnce() -> String, found: i64) -> Option<Difference> {
        let (at_least, at_most) = (self.sure, self.sure + self.uncertain);
        (!(at_least..=at_most).contains(&found)).then(|| Difference { counter: counter(), found, at_least, at_most })
    }
}

/// Users, clicks and impressions of an hour.
type Hour = [i64; 3];

/// Compares; `client` asks.
pub struct Verifier {
    client: Client,
    keys: Keys,
    /// Keys of probes: new ones even when a run is repeated, or they would be there already.
    probes: Keys,
    wait: Duration,
    probed: u64,
    /// What hours had before, by their start.
    before: BTreeMap<u64, Hour>,
}

impl Verifier {
    pub fn new(client: Client, keys: Keys, wait: Duration) -> Verifier {
        Verifier { client, keys, probes: Keys::new(fresh(), fresh()), wait, probed: 0, before: BTreeMap::new() }
    }

    /// Takes note of what counters that are not of this run alone show before it.
    pub fn begin(&mut self, kind: &Kind) -> Result<(), String> {
        let Kind::Hit(hit) = kind else { return Ok(()) };
        // What others sent before must not come in between.
        self.settle(kind)?;
        std::thread::sleep(ANSWER_AGE);
        for cell in (0..kind.cells()).step_by(2) {
            let (hour, _) = hit.place(cell);
            self.before.insert(hour, hour_of(&mut self.client, hour)?);
        }
        Ok(())
    }

    /// Waits until the report shows everything that was acknowledged. Returns when it first did; None when that took
    /// too long, or when it shows more than was sent.
    pub fn visible(&mut self, kind: &Kind, sent: &[Sent]) -> Result<Option<Instant>, String> {
        let expected = Expected::of(kind, &self.keys, sent);
        let end = Instant::now() + self.wait;
        for part in [Part::Sample, Part::All] {
            loop {
                let found = self.compare_part(kind, &expected, part);
                if found.as_ref().is_ok_and(|found| found.differences.is_empty()) {
                    break;
                }
                if found.is_ok_and(|found| found.is_too_high()) || Instant::now() > end {
                    return Ok(None);
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(Some(Instant::now()))
    }

    /// Sends probes and waits until the report shows them. Returns when it did.
    pub fn settle(&mut self, kind: &Kind) -> Result<Instant, String> {
        let place = self.probed;
        self.probed += 1;
        let first = place << 20;
        let id = |number: u64| {
            let mut text = [0; UUID_BYTES];
            write_uuid(&mut text, self.probes.key(number));
            String::from_utf8_lossy(&text).into_owned()
        };
        // An hour of the past that hardly anyone else asks for; differences to before count.
        let (site, hour) = (id(first), (self.probes.draw(first) % 400_000) * HOUR_MS);
        let today = days::text((days::now_s() / 86_400) as i64);
        let line = |number: u64| match kind {
            Kind::Captcha(_) => {
                let id = id(first + 1 + number);
                format!(
                    "{{\"time\":\"{today}T00:00:00\",\"type\":\"serve\",\"correlation_id\":\"{id}\",\"site_id\":\"{site}\"}}\n"
                )
            }
            Kind::Hit(_) => {
                let id = id(first + 1 + number);
                format!("{{\"timestamp\":{hour},\"user\":\"load-probe\",\"action\":\"click\",\"event_id\":\"{id}\"}}\n")
            }
        };
        let body: String = (0..PROBE_EVENTS).map(line).collect();
        let before = self.probes_seen(kind, &site, hour)?;
        let end = Instant::now() + self.wait;
        self.send_probes(kind, body.as_bytes(), end)?;
        loop {
            match self.probes_seen(kind, &site, hour) {
                Ok(seen) if seen - before >= PROBE_EVENTS as i64 => return Ok(Instant::now()),
                Ok(_) if Instant::now() < end => {}
                Err(_) if Instant::now() < end => {}
                Ok(seen) => {
                    return Err(format!(
                        "the report does not show what was sent within {:?} ({} of {PROBE_EVENTS} events sent at the end are there): \
                         look at the server's log, or give it longer with --verify-wait",
                        self.wait,
                        seen - before
                    ));
                }
                Err(error) => return Err(error),
            }
            std::thread::sleep(POLL);
        }
    }

    /// Until they are acknowledged; keys make a second time harmless.
    fn send_probes(&mut self, kind: &Kind, body: &[u8], end: Instant) -> Result<(), String> {
        loop {
            let said = match self.client.post(kind.path(), body) {
                Ok(answer) if answer.status == 202 && counts(&answer.body) == Some((PROBE_EVENTS, 0)) => return Ok(()),
                Ok(answer) if answer.status < 500 => {
                    let said = start_of(&answer.body);
                    return Err(format!("events of the comparison were answered {}: {said}", answer.status));
                }
                Ok(answer) => format!("{}: {}", answer.status, start_of(&answer.body)),
                Err(error) => error,
            };
            if Instant::now() >= end {
                return Err(format!("events of the comparison could not be sent: {said}"));
            }
            std::thread::sleep(POLL * 5);
        }
    }

    fn probes_seen(&mut self, kind: &Kind, site: &str, hour: u64) -> Result<i64, String> {
        match kind {
            Kind::Captcha(_) => {
                let mut sum = 0;
                rows(&mut self.client, &[site], |_, _, served, _| sum += served)?;
                Ok(sum)
            }
            Kind::Hit(_) => Ok(hour_of(&mut self.client, hour)?[1]),
        }
    }

    /// Compares the report with all that was sent; after `settle`.
    pub fn compare(&mut self, kind: &Kind, sent: &[Sent]) -> Result<Comparison, String> {
        let end = Instant::now() + SETTLED;
        let expected = Expected::of(kind, &self.keys, sent);
        loop {
            let found = self.compare_part(kind, &expected, Part::All)?;
            // An answer may be a moment old, so a counter may still grow, but it never shrinks.
            if found.differences.is_empty() || found.is_too_high() || Instant::now() > end {
                return Ok(found);
            }
            std::thread::sleep(POLL);
        }
    }

    fn compare_part(&mut self, kind: &Kind, expected: &Expected, part: Part) -> Result<Comparison, String> {
        match kind {
            Kind::Captcha(captcha) => self.compare_captchas(captcha, expected, part),
            Kind::Hit(hit) => self.compare_hits(hit, expected, part),
        }
    }

    fn compare_captchas(&mut self, captcha: &Captcha, expected: &Expected, part: Part) -> Result<Comparison, String> {
        let mut found: HashMap<(String, String), [i64; 2]> = HashMap::new();
        let all = captcha.sites().len();
        let some = if part == Part::Sample { SAMPLE_SITES.min(all) } else { all };
        let sites: Vec<&str> = captcha.sites()[..some].iter().map(String::as_str).collect();
        for some in sites.chunks(SITES_AT_ONCE) {
            rows(&mut self.client, some, |site, day, served, solved| {
                found.insert((site.to_owned(), day.to_owned()), [served, solved]);
            })?;
        }
        let mut comparison = expected.comparison();
        // The counters of a site follow each other.
        for (cell, bounds) in expected.cells[..expected.cells.len() / all * some].iter().enumerate() {
            let (site, day, solved) = captcha.place(cell);
            let key = (site.to_owned(), day.to_owned());
            let there = found.get(&key).map_or(0, |counts| counts[usize::from(solved)]);
            let counter = || format!("site {site}, {day}, {}", if solved { "solved" } else { "served" });
            comparison.note(bounds.check(counter, there));
            if solved {
                found.remove(&key);
            }
        }
        for ((site, day), counts) in found {
            let more = || format!("site {site}, {day}, a day of which nothing was sent");
            comparison.note(Bounds::default().check(more, counts[0] + counts[1]));
        }
        Ok(comparison)
    }

    fn compare_hits(&mut self, hit: &Hit, expected: &Expected, part: Part) -> Result<Comparison, String> {
        let mut comparison = expected.comparison();
        let hours = if part == Part::Sample { 1 } else { expected.users.len() };
        for (hour, users) in expected.users.iter().take(hours).enumerate() {
            let (start, _) = hit.place(hour * 2);
            let (now, before) =
                (hour_of(&mut self.client, start)?, self.before.get(&start).copied().unwrap_or_default());
            let bounds = [users.bounds(), expected.cells[hour * 2], expected.cells[hour * 2 + 1]];
            for (counter, name) in ["unique_users", "clicks", "impressions"].into_iter().enumerate() {
                let text = || format!("hour of {start}, {name} (more than the {} before)", before[counter]);
                comparison.note(bounds[counter].check(text, now[counter] - before[counter]));
            }
        }
        Ok(comparison)
    }
}

/// How much of the report is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Sample,
    All,
}

impl Comparison {
    /// Whether a counter shows more than was sent, which waiting does not mend.
    fn is_too_high(&self) -> bool {
        self.differences.iter().any(|difference| difference.found > difference.at_most)
    }

    fn note(&mut self, difference: Option<Difference>) {
        self.counters += 1;
        self.differences.extend(difference);
    }
}

/// What the report should show.
struct Expected {
    cells: Vec<Bounds>,
    /// For each hour.
    users: Vec<Users>,
    acknowledged: u64,
    uncertain: u64,
}

/// Sets of users, a bit for each.
#[derive(Clone)]
struct Users {
    sure: Vec<u64>,
    uncertain: Vec<u64>,
}

impl Users {
    fn add(&mut self, user: u32, fate: Fate) {
        let set = if fate == Fate::Acknowledged { &mut self.sure } else { &mut self.uncertain };
        set[user as usize / 64] |= 1 << (user % 64);
    }

    fn bounds(&self) -> Bounds {
        let count = |words: &mut dyn Iterator<Item = u64>| words.map(|word| i64::from(word.count_ones())).sum();
        let only_uncertain = &mut self.sure.iter().zip(&self.uncertain).map(|(sure, uncertain)| uncertain & !sure);
        Bounds { sure: count(&mut self.sure.iter().copied()), uncertain: count(only_uncertain) }
    }
}

impl Expected {
    fn of(kind: &Kind, keys: &Keys, sent: &[Sent]) -> Expected {
        let words = (kind.users() as usize).div_ceil(64);
        let users = Users { sure: vec![0; words], uncertain: vec![0; words] };
        let hours = if kind.users() > 0 { kind.cells() / 2 } else { 0 };
        let (cells, users) = (vec![Bounds::default(); kind.cells()], vec![users; hours]);
        let mut expected = Expected { cells, users, acknowledged: 0, uncertain: 0 };
        for one in sent {
            one.each_event(|number, cell, fate| {
                expected.cells[cell as usize].add(fate);
                if fate == Fate::Acknowledged {
                    expected.acknowledged += 1
                } else {
                    expected.uncertain += 1
                }
                if let Some(users) = expected.users.get_mut(cell as usize / 2) {
                    users.add(kind.user(keys, number), fate);
                }
            });
        }
        expected
    }

    fn comparison(&self) -> Comparison {
        Comparison { acknowledged: self.acknowledged, uncertain: self.uncertain, ..Comparison::default() }
    }
}

/// Gives every row of these sites' report: site, day, served, solved.
fn rows(client: &mut Client, sites: &[&str], mut each: impl FnMut(&str, &str, i64, i64)) -> Result<(), String> {
    let filter: String = sites.iter().map(|site| format!("&site_id={site}")).collect();
    let mut cursor = String::new();
    loop {
        let body = client.get(&format!("/v1/report?limit=100000{filter}{cursor}"))?;
        let broken = |what: &str| format!("GET /v1/report: {what}: {}", start_of(&body));
        let report: serde_json::Value = serde_json::from_slice(&body).map_err(|_| broken("not JSON"))?;
        for row in report["counters"].as_array().ok_or_else(|| broken("no counters"))? {
            let (site, time) = (row["site_id"].as_str(), row["time"].as_str().and_then(|time| time.get(..10)));
            match (site, time, row["served"].as_i64(), row["solved"].as_i64()) {
                (Some(site), Some(day), Some(served), Some(solved)) => each(site, day, served, solved),
                _ => return Err(broken("a row without its fields")),
            }
        }
        match report["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(()),
        }
    }
}

/// The three numbers of an hour.
fn hour_of(client: &mut Client, timestamp: u64) -> Result<Hour, String> {
    let body = client.get(&format!("/analytics?timestamp={timestamp}"))?;
    parse_hour(&String::from_utf8_lossy(&body))
        .ok_or_else(|| format!("GET /analytics: not the three counters of an hour: {}", start_of(&body)))
}

fn parse_hour(text: &str) -> Option<Hour> {
    let mut lines = text.lines();
    let mut number = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(',')?.parse::<i64>().ok();
    let hour = [number("unique_users")?, number("clicks")?, number(&format!("{}s", Action::Impression.name()))?];
    lines.next().is_none().then_some(hour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::random::Dice;
    use crate::template::{Shares, Slots};

    const PLAIN: Shares = Shares { duplicates: 0.0, late: 0.0, bad: 0.0 };

    #[test]
    fn bounds_are_equal_when_all_is_acknowledged_and_apart_otherwise() {
        let keys = Keys::new(1, 2);
        let kind = Kind::Captcha(Captcha::new(&keys, 2, 2, 18_652, false, 0));
        let slots = Slots::draw(0, 10, &kind, Shares { duplicates: 0.3, ..PLAIN }, &mut Dice::new(4, 4));
        let mut sent = Sent { slots, per_request: 5, ledger: Ledger { taken: 40, ..Ledger::default() } };
        let all = Expected::of(&kind, &keys, std::slice::from_ref(&sent));
        assert!(all.cells.iter().all(|bounds| bounds.uncertain == 0) && all.uncertain == 0);
        assert_eq!(all.cells.iter().map(|bounds| bounds.sure).sum::<i64>(), all.acknowledged as i64);
        sent.ledger.note(39, Fate::Unknown, false);
        sent.ledger.note(3, Fate::Refused, false);
        let some = Expected::of(&kind, &keys, &[sent]);
        assert!(some.uncertain > 0 && some.acknowledged + some.uncertain < all.acknowledged);
        for (some, all) in some.cells.iter().zip(&all.cells) {
            assert!(some.sure + some.uncertain <= all.sure);
        }
    }

    #[test]
    fn a_counter_beyond_its_bounds_is_a_difference() {
        let bounds = Bounds { sure: 3, uncertain: 2 };
        let differs = |found| bounds.check(|| "c".to_owned(), found).is_some();
        assert_eq!([2, 3, 5, 6].map(differs), [true, false, false, true]);
    }

    #[test]
    fn users_are_counted_once() {
        let keys = Keys::new(1, 2);
        let hour_ms = 1_611_532_800_000;
        let hit = Hit { hour_ms, late_hours: 1, users: 100, run: 1, keyed: true, event_bytes: 0 };
        let kind = Kind::Hit(hit);
        let slots = Slots::draw(0, 64, &kind, PLAIN, &mut Dice::new(4, 4));
        let mut sent = Sent { slots, per_request: 1, ledger: Ledger { taken: 5000, ..Ledger::default() } };
        sent.ledger.note(4999, Fate::Unknown, false);
        let expected = Expected::of(&kind, &keys, &[sent]);
        assert_eq!(expected.users[0].bounds(), Bounds { sure: 100, uncertain: 0 });
        assert_eq!(expected.cells[0].sure + expected.cells[1].sure, 4999);
        let mut users = Users { sure: vec![0; 2], uncertain: vec![0; 2] };
        users.add(70, Fate::Unknown);
        users.add(3, Fate::Unknown);
        users.add(3, Fate::Acknowledged);
        assert_eq!(users.bounds(), Bounds { sure: 1, uncertain: 1 });
    }

    #[test]
    fn the_answer_for_an_hour() {
        assert_eq!(parse_hour("unique_users,2\nclicks,1\nimpressions,30\n"), Some([2, 1, 30]));
        for wrong in ["", "unique_users,2\nclicks,1\n", "unique_users,2\nclicks,1\nimpressions,x\n", "a\nb\nc\n"] {
            assert_eq!(parse_hour(wrong), None);
        }
    }
}
