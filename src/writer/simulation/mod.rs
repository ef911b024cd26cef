//! Random schedules: the machine, the seen keys and the blocks as they are, in a world that goes wrong in every way that is
//! known, against an oracle that shares nothing with them.
//!
//! ```text
//! schedule(seed) ─▶ world: log, group, store ◀─ perform ◀─▶ machine
//!                     └─▶ faults                   └─ process: crashes, stands still, loses and regains partitions
//! ```
//!
//! A seed decides on everything. `SCHEDULES` sets how many seeds are run (10,000 each by default), `SEED` runs one and
//! shows what happened. What fails prints its seed with everything that happened.

mod caches;
mod faults;
mod group;
mod log;
mod perform;
mod process;
mod recovering;
mod rng;
mod rules;
mod schedule;
mod store;
pub(super) mod toy;
mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use rules::Rule;
use schedule::{SCENARIOS, Scenario, run};

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn say(line: &str) {
    // Past the test harness, which would keep it back unless the test fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs the schedules of `seeds`, and says what they covered.
fn run_all(scenario: Scenario, seeds: u64) -> BTreeMap<&'static str, u64> {
    let begun = Instant::now();
    let only = number_from_env("SEED");
    let mut covered = BTreeMap::new();
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        let ended = run(scenario, seed, None, only.is_some());
        if let Some(violation) = ended.violation {
            let trace = run(scenario, seed, None, true).trace.join("\n");
            panic!("{trace}\n{scenario:?}, SEED={seed}: {violation}");
        }
        if only.is_some() {
            say(&ended.trace.join("\n"));
        }
        for (what, times) in ended.covered {
            *covered.entry(what).or_default() += times;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    say(&format!("{scenario:?}: {seeds} schedules, {:.0} a second", seeds as f64 / seconds));
    for (what, times) in &covered {
        say(&format!("    {times:>9} times {what}"));
    }
    covered
}

fn schedules() -> u64 {
    number_from_env("SCHEDULES").unwrap_or(10_000)
}

/// What the schedules must have come by, so that their passing means something.
const INTERESTING: [&str; 16] = [
    "a claim grew too old and its block was kept",
    "a commit is refused",
    "a membership is lost",
    "a range without events",
    "a range without new events",
    "a week passes and the commits are forgotten",
    "an insert arrives late",
    "an insert is dropped for its token",
    "an insert is too late to be sent",
    "recovery finds a claim of which nothing is stored",
    "recovery finds a claim whose range is stored",
    "recovery finds a claim with events and without counters",
    "recovery without a commit finds events without counters",
    "recovery without a commit goes by the ledger",
    "seen keys are recorded",
    "seen keys come from a cache",
];

/// What they must have come by where writers stand still at the worst moment.
const INTERESTING_OF_ZOMBIES: [&str; 3] = [
    "all writers die but those that lost their partitions without knowing",
    "recovery finds a stale commit",
    world::WITHOUT_MEMBERSHIP,
];

fn assert_covered(covered: &BTreeMap<&str, u64>, interesting: &[&str]) {
    if schedules() < 10_000 || number_from_env("SEED").is_some() {
        return;
    }
    for what in interesting {
        assert!(covered.contains_key(what), "no schedule came by this: {what}");
    }
}

#[test]
fn nothing_is_lost_or_counted_twice_whatever_breaks() {
    assert_covered(&run_all(Scenario::Faults, schedules()), &INTERESTING);
}

#[test]
fn nothing_is_lost_or_counted_twice_by_zombies() {
    assert_covered(&run_all(Scenario::Zombies, schedules()), &INTERESTING_OF_ZOMBIES);
}

#[test]
fn nothing_is_lost_or_counted_twice_when_the_store_is_killed_in_an_insert() {
    let interesting = ["the store is killed between a token and its rows", "an insert is dropped whose rows are lost"];
    assert_covered(&run_all(Scenario::StoreKilled, schedules()), &interesting);
}

#[test]
fn losses_outside_are_noticed() {
    for scenario in SCENARIOS {
        if !matches!(scenario, Scenario::Faults | Scenario::Zombies | Scenario::StoreKilled) {
            run_all(scenario, schedules() / 10);
        }
    }
}

/// The first of `seeds` whose schedule fails with a broken rule, with what it was noticed by.
fn first_failing(scenario: Scenario, rule: Rule, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let violation = run(scenario, seed, Some(rule), false).violation;
        violation.map(|violation| (seed, violation))
    })
}

/// Every broken rule must make a schedule fail: what no schedule notices, no schedule proves.
#[test]
fn every_broken_rule_is_noticed() {
    const SEEDS_MAX: u64 = 50_000;
    let mut unnoticed = Vec::new();
    for (rule, scenario) in rules::RULES {
        match first_failing(scenario, rule, SEEDS_MAX) {
            Some((seed, violation)) => say(&format!("without {rule:?}: {scenario:?} seed {seed}: {violation}")),
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "no schedule of {SEEDS_MAX} notices that these are broken: {unnoticed:?}");
}
