//! What was sent, and what became of it: request by request, in as little as the requests that went wrong take.
//!
//! The requests of a template are numbered from 0 and taken in that order; each carries the same number of events. So the
//! number of requests taken and those without a good answer say everything.

use std::collections::BTreeMap;

use crate::template::{Role, Slots};

/// What is known of a request's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Refused, or never sent whole: none of them is there.
    Refused,
    /// There was no answer, or one that leaves it open: they may be there.
    Unknown,
    /// Acknowledged: they are there.
    Acknowledged,
}

/// The requests of one template.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// How many were taken.
    pub taken: u64,
    /// Those that are not acknowledged.
    pub doubtful: BTreeMap<u64, Fate>,
}

impl Ledger {
    /// Takes note of a request's fate; of several, when it was sent again, the best counts.
    pub fn note(&mut self, request: u64, fate: Fate, again: bool) {
        if fate == Fate::Acknowledged {
            if !self.doubtful.is_empty() {
                self.doubtful.remove(&request);
            }
        } else if !again {
            self.doubtful.insert(request, fate);
        } else if let Some(known) = self.doubtful.get_mut(&request) {
            *known = fate.max(*known);
        }
    }
}

/// What was sent of one template.
#[derive(Debug, Clone)]
pub struct Sent {
    pub slots: Slots,
    pub per_request: u64,
    pub ledger: Ledger,
}

impl Sent {
    /// Calls `each` for every distinct good event that is there or may be, with its number, its counter and which of the two.
    ///
    /// A copy belongs to the round of its original, which is its own or the one before: two rounds are held at once.
    pub fn each_event(&self, mut each: impl FnMut(u64, u32, Fate)) {
        let length = self.slots.len() as usize;
        let nothing = vec![Fate::Refused; length];
        let (mut before, mut now) = (nothing.clone(), nothing.clone());
        let events = self.ledger.taken * self.per_request;
        let mut give = |round: u64, fates: &[Fate]| {
            for (slot, fate) in fates.iter().enumerate().filter(|(_, fate)| **fate != Fate::Refused) {
                let event = round * length as u64 + slot as u64;
                each(self.slots.number(event), self.slots.slots[slot].draft.cell, *fate);
            }
        };
        let rounds = events.div_ceil(length as u64);
        for round in 0..rounds {
            let start = round * length as u64;
            for event in start..events.min(start + length as u64) {
                if matches!(self.slots.slots[(event - start) as usize].role, Role::Bad { .. }) {
                    continue;
                }
                let fate = self.fate(event / self.per_request);
                let original = self.slots.original(event);
                let fates = if original < start { &mut before } else { &mut now };
                let known = &mut fates[(original % length as u64) as usize];
                *known = fate.max(*known);
            }
            if round > 0 {
                give(round - 1, &before);
            }
            std::mem::swap(&mut before, &mut now);
            now.copy_from_slice(&nothing);
        }
        if rounds > 0 {
            give(rounds - 1, &before);
        }
    }

    fn fate(&self, request: u64) -> Fate {
        if self.ledger.doubtful.is_empty() {
            return Fate::Acknowledged;
        }
        self.ledger.doubtful.get(&request).copied().unwrap_or(Fate::Acknowledged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Captcha, Kind};
    use crate::random::{Dice, Keys};
    use crate::template::Shares;
    use std::collections::HashMap;

    /// The same by brute force: every event by its number, the best of its fates.
    fn brute_force(sent: &Sent) -> HashMap<u64, (u32, Fate)> {
        let mut found: HashMap<u64, (u32, Fate)> = HashMap::new();
        for event in 0..sent.ledger.taken * sent.per_request {
            let slot = sent.slots.slots[(event % sent.slots.len()) as usize];
            if matches!(slot.role, Role::Bad { .. }) {
                continue;
            }
            let fate = sent.fate(event / sent.per_request);
            let entry = found.entry(sent.slots.number(event)).or_insert((slot.draft.cell, fate));
            entry.1 = entry.1.max(fate);
        }
        found.retain(|_, (_, fate)| *fate != Fate::Refused);
        found
    }

    #[test]
    fn events_and_fates_are_those_of_a_plain_count() {
        let kind = Kind::Captcha(Captcha::new(&Keys::new(1, 2), 4, 2, 18_652, false, 0));
        let seed = crate::random::fresh();
        println!("seed {seed}");
        let mut dice = Dice::new(seed, 0);
        for _ in 0..200 {
            let per_request = 1 + dice.below(7);
            let count = per_request * (1 + dice.below(20));
            let shares = Shares { duplicates: 0.3, late: 0.0, bad: 0.1 };
            let slots = Slots::draw(1, count as u32, &kind, shares, &mut dice);
            let mut ledger = Ledger { taken: dice.below(100), doubtful: BTreeMap::new() };
            for request in 0..ledger.taken {
                let fate = [Fate::Acknowledged, Fate::Unknown, Fate::Refused][dice.below(3) as usize];
                ledger.note(request, fate, false);
            }
            let sent = Sent { slots, per_request, ledger };
            let (mut found, mut times) = (HashMap::new(), 0);
            sent.each_event(|number, cell, fate| {
                found.insert(number, (cell, fate));
                times += 1;
            });
            assert_eq!(found, brute_force(&sent));
            assert_eq!(times, found.len(), "each event once");
        }
    }

    #[test]
    fn the_best_fate_counts_when_a_request_is_sent_again() {
        let mut ledger = Ledger { taken: 4, doubtful: BTreeMap::new() };
        for (request, fate) in [(0, Fate::Acknowledged), (1, Fate::Unknown), (2, Fate::Refused), (3, Fate::Refused)] {
            ledger.note(request, fate, false);
        }
        for (request, fate) in [(0, Fate::Refused), (1, Fate::Acknowledged), (2, Fate::Unknown), (3, Fate::Refused)] {
            ledger.note(request, fate, true);
        }
        assert_eq!(ledger.doubtful, BTreeMap::from([(2, Fate::Unknown), (3, Fate::Refused)]));
    }
}
