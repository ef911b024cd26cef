//! Events rendered once, and made new by writing other keys over the old ones.
//!
//! A template has a number of *slots*, each an event whose time, type and site are settled. Its events are numbered: event `n` stands in
//! slot `n % slots`, so every round through the slots has the same events under other keys. A slot is fresh, a copy of a
//! fresh slot (an event that is sent a second time) or bad. A copy of an earlier slot has the key that the slot has in this round; one of a
//! later slot, the key from the round before. So what was sent follows from the numbers of the requests alone.

use std::ops::Range;

use crate::events::{BAD_WAYS, Draft, Form, Kind, Marks, NONE};
use crate::random::{Dice, Keys, UUID_BYTES, hex, write_uuid};

/// The shares of events that are not new and good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    pub duplicates: f64,
    pub late: f64,
    pub bad: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Fresh,
    Copy { of: u32 },
    Bad { way: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub role: Role,
    pub draft: Draft,
}

/// Which event it is: the template's number and the event's in it, in one.
fn number(template: u32, event: u64) -> u64 {
    u64::from(template) << 40 | event
}

/// The slots of one template.
#[derive(Debug, Clone)]
pub struct Slots {
    pub template: u32,
    pub slots: Vec<Slot>,
}

impl Slots {
    pub fn draw(template: u32, count: u32, kind: &Kind, shares: Shares, dice: &mut Dice) -> Slots {
        let mut copies = Vec::new();
        let mut slots: Vec<Slot> = (0..count)
            .map(|slot| {
                let late = dice.chance(shares.late);
                let draft = kind.draft(dice, late);
                let bad = dice.chance(shares.bad);
                if !bad && dice.chance(shares.duplicates) {
                    copies.push(slot);
                }
                Slot { role: if bad { Role::Bad { way: dice.below(BAD_WAYS) } } else { Role::Fresh }, draft }
            })
            .collect();
        let is_copy = |slot: &u32| copies.binary_search(slot).is_ok();
        let fresh: Vec<u32> =
            (0..count).filter(|slot| slots[*slot as usize].role == Role::Fresh && !is_copy(slot)).collect();
        if !fresh.is_empty() {
            for copy in copies {
                let of = fresh[dice.below(fresh.len() as u64) as usize];
                slots[copy as usize] = Slot { role: Role::Copy { of }, draft: slots[of as usize].draft };
            }
        }
        Slots { template, slots }
    }

    pub fn len(&self) -> u64 {
        self.slots.len() as u64
    }

    /// The event whose key this event has: itself unless it is a copy.
    pub fn original(&self, event: u64) -> u64 {
        let slot = event % self.len();
        match self.slots[slot as usize].role {
            Role::Copy { of } => {
                let of = u64::from(of);
                let round = event - slot;
                if of > slot && round > 0 { round - self.len() + of } else { round + of }
            }
            Role::Fresh | Role::Bad { .. } => event,
        }
    }

    /// What an event's key is made from.
    pub fn number(&self, event: u64) -> u64 {
        number(self.template, self.original(event))
    }

    pub fn bad(&self, slots: Range<usize>) -> u32 {
        self.slots[slots].iter().filter(|slot| matches!(slot.role, Role::Bad { .. })).count() as u32
    }
}

/// A template's text: its slots rendered one after the other, with what goes before and after each.
#[derive(Debug, Clone)]
pub struct Text {
    pub slots: Slots,
    pub bytes: Vec<u8>,
    /// Where each slot's changing parts lie in `bytes`.
    marks: Vec<Marks>,
    users: Option<Kind>,
    keys: Keys,
}

impl Text {
    pub fn new(slots: Slots, kind: &Kind, keys: Keys) -> Text {
        let marks = Vec::with_capacity(slots.slots.len());
        let users = (kind.users() > 0).then(|| kind.clone());
        Text { slots, bytes: Vec::new(), marks, users, keys }
    }

    /// Appends the next slot.
    pub fn push(&mut self, kind: &Kind, form: Form) {
        let slot = self.slots.slots[self.marks.len()];
        let bad = if let Role::Bad { way } = slot.role { Some(way) } else { None };
        let start = self.bytes.len() as u32;
        let marks = kind.render(slot.draft, bad, form, &mut self.bytes);
        let place = |mark: u32| if mark == NONE { NONE } else { start + mark };
        self.marks.push(Marks { key: place(marks.key), user: place(marks.user) });
    }

    /// Makes the events of these slots those of the round that begins with event `round`.
    pub fn renew(&mut self, round: u64, slots: Range<usize>) {
        for slot in slots {
            let Marks { key, user } = self.marks[slot];
            let number = self.slots.number(round + slot as u64);
            if key != NONE {
                write_uuid(&mut self.bytes[key as usize..key as usize + UUID_BYTES], self.keys.key(number));
            }
            if user != NONE
                && let Some(kind) = &self.users
            {
                let user_of = kind.user(&self.keys, number);
                self.bytes[user as usize..user as usize + 8].copy_from_slice(&hex(user_of));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Captcha;
    use std::collections::HashMap;

    fn kind() -> Kind {
        Kind::Captcha(Captcha::new(&Keys::new(1, 2), 20, 5, 18_652, true, 0))
    }

    fn slots(shares: Shares) -> Slots {
        Slots::draw(3, 2000, &kind(), shares, &mut Dice::new(5, 6))
    }

    #[test]
    fn shares_are_kept() {
        let drawn = slots(Shares { duplicates: 0.1, late: 0.5, bad: 0.02 });
        let copies = drawn.slots.iter().filter(|slot| matches!(slot.role, Role::Copy { .. })).count();
        assert!((150..250).contains(&copies), "{copies}");
        assert!((20..70).contains(&drawn.bad(0..2000)));
        for slot in &drawn.slots {
            if let Role::Copy { of } = slot.role {
                let source = drawn.slots[of as usize];
                assert_eq!((source.role, source.draft), (Role::Fresh, slot.draft));
            }
        }
        assert!(slots(Shares { duplicates: 0.0, late: 0.0, bad: 0.0 }).slots.iter().all(|s| s.role == Role::Fresh));
        assert_eq!(slots(Shares { duplicates: 0.0, late: 0.0, bad: 1.0 }).bad(0..2000), 2000);
        slots(Shares { duplicates: 1.0, late: 0.0, bad: 0.0 });
    }

    #[test]
    fn a_renewed_text_says_what_the_numbers_say() {
        let (kind, keys) = (kind(), Keys::new(8, 9));
        let drawn = slots(Shares { duplicates: 0.2, late: 0.1, bad: 0.0 });
        let mut text = Text::new(drawn.clone(), &kind, keys);
        for _ in 0..2000 {
            text.push(&kind, Form::Json);
            text.bytes.push(b'\n');
        }
        let mut contents: HashMap<String, (String, u64)> = HashMap::new();
        for round in 0..3 {
            text.renew(round * 2000, 0..2000);
            let lines = String::from_utf8(text.bytes.clone()).unwrap();
            for (slot, line) in lines.lines().enumerate() {
                let event: serde_json::Value = serde_json::from_str(line).unwrap();
                let number = drawn.number(round * 2000 + slot as u64);
                let key = event["correlation_id"].as_str().unwrap().to_owned();
                let said = (line.to_owned(), number);
                // Copies are equal to their originals in every byte.
                assert_eq!(contents.entry(key).or_insert(said.clone()), &said);
            }
        }
        let copies = drawn.slots.iter().filter(|slot| matches!(slot.role, Role::Copy { .. })).count();
        assert!(contents.len() >= 6000 - 3 * copies && contents.len() <= 6000 - 2 * copies);
    }
}
