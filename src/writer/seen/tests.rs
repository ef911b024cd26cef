use std::collections::HashSet;

use super::run::Run;
use super::*;
use crate::dice::Dice;

/// So small that keys move on all the time.
const TINY: Sizes = Sizes { flush_keys: 40, fan_in: 3, memory_run_keys: 2_000, record_keys: 200 };

fn key(lane: u8, number: u64) -> Key {
    Key { lane, id: u128::from(number).to_be_bytes() }
}

/// Rows of which some have no key, some one that was there, and some one of this very record.
fn rows(dice: &mut Dice, lanes: u8, next: &mut u64) -> Vec<Option<Key>> {
    let mut number = |dice: &mut Dice| {
        if dice.once_in(3) {
            return dice.below(*next as usize + 1) as u64;
        }
        *next += 1;
        *next
    };
    let count = *dice.pick(&[0, 1, 2, 17, 100, 300]);
    (0..count).map(|_| (!dice.once_in(10)).then(|| key(dice.below(lanes.into()) as u8, number(dice)))).collect()
}

#[test]
fn a_key_is_new_once_in_each_lane() {
    let mut seen = SeenKeys::new(2);
    assert!(seen.is_empty());
    for lane in [0, 1] {
        assert!(seen.insert(key(lane, 7)));
        assert!(!seen.insert(key(lane, 7)));
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn it_answers_as_a_set_does() {
    let mut dice = Dice::new("it_answers_as_a_set_does");
    for _ in 0..20 {
        let lanes = 1 + dice.below(3) as u8;
        let mut seen = SeenKeys::with_sizes(lanes, TINY);
        let (mut model, mut next) = (HashSet::new(), 0);
        for _ in 0..150 {
            let rows = rows(&mut dice, lanes, &mut next);
            let expected: Vec<bool> = rows.iter().map(|key| key.is_none_or(|key| model.insert(key))).collect();
            assert_eq!(seen.insert_all(rows.len(), |row| rows[row]), expected);
            assert_eq!(seen.len(), model.len());
        }
    }
}

#[test]
fn every_value_has_its_place() {
    // Values as no sender can choose them: at the edges of everything that is divided by leading bits.
    let mut dice = Dice::new("every_value_has_its_place");
    let edges: Vec<u128> =
        (0..128).flat_map(|bit| [1_u128 << bit, (1 << bit) - 1, !(1_u128 << bit), !0 << bit]).collect();
    for _ in 0..20 {
        let mut lane = Lane::new(0);
        let mut model = HashSet::new();
        for _ in 0..60 {
            let values: Vec<Value> = (0..dice.below(50)).map(|_| dice.pick(&edges).to_le_bytes()).collect();
            let expected: Vec<bool> = values.iter().map(|value| !model.insert(*value)).collect();
            let mut old = vec![false; values.len()];
            lane.insert_all(&values, |index| old[index as usize] = true);
            assert_eq!(old, expected);
            assert_eq!(lane.len(), model.len() as u64);
            if dice.once_in(3) {
                lane.flush();
            }
            if let Some(runs) = lane.to_merge(TINY, usize::MAX) {
                lane.replace(&runs, merge::in_memory(&runs).expect("no two runs share a value").into());
            }
        }
        let mut known: Vec<Value> = Vec::new();
        lane.flush();
        let runs: Vec<_> = lane.runs().cloned().collect();
        let each = |slice: &[Value]| {
            known.extend_from_slice(slice);
            Ok(())
        };
        merge::merge(&runs, each).expect("no two runs share a value");
        assert_eq!(known.len(), model.len());
        assert!(known.iter().all(|value| model.contains(value)) && known.is_sorted_by_key(number_of));
    }
}

fn number_of(value: &Value) -> u128 {
    permutation::number(value)
}

#[test]
fn runs_that_share_a_value_are_not_made_one() {
    let run = |value: u128| Run::in_memory(vec![value.to_le_bytes(), u128::MAX.to_le_bytes()]).into();
    let error = merge::in_memory(&[run(1), run(2)]).err().expect("they share one");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn memory_follows_the_number_of_keys() {
    let mut seen = SeenKeys::with_sizes(1, Sizes { flush_keys: 1 << 12, fan_in: 4, memory_run_keys: 1 << 15, ..TINY });
    for thousand in 0..200_u64 {
        let new = seen.insert_all(1_000, |row| Some(key(0, thousand * 1_000 + row as u64)));
        assert!(new.iter().all(|new| *new));
    }
    // A key takes 16 bytes in a run, 2.5 in the filter and up to 0.25 in a directory; the table of recent ones is the
    // fixed part.
    let fixed = 16 * (1 << 14) + 50_000;
    let a_key = (seen.bytes() - fixed) / seen.len();
    assert!((17..20).contains(&a_key), "{a_key} bytes a key");
}
