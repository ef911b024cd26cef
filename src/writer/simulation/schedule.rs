//! A schedule: everything that happens follows from its seed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::process::Life;
use super::rng::Rng;
use super::rules::Rule;
use super::world::{Faults, Setup, World};
use crate::writer::halt::Why;
use crate::writer::machine::Limits;

/// What a schedule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Crashes, pauses, rebalances, lost answers, late inserts, servers away, forgotten commits: nothing may be lost,
    /// counted twice or halted.
    Faults,
    /// Writers that stand still at the worst moment while others take over and die, and a coordinator that takes commits
    /// without membership.
    Zombies,
    /// Retention removes what was not stored.
    LogLost,
    /// The log loses its tail.
    LogTruncated,
    /// The topic is deleted and created again.
    Recreated,
    /// The store loses its newest parts.
    StoreLost,
    /// As faults, and the store is killed between noting an insert's token and keeping its rows: nothing may be lost, counted
    /// twice or halted.
    StoreKilled,
    /// A tool moves the group's offsets.
    ForeignCommit,
}

/// All of them.
pub const SCENARIOS: [Scenario; 8] = [
    Scenario::Faults,
    Scenario::Zombies,
    Scenario::LogLost,
    Scenario::LogTruncated,
    Scenario::Recreated,
    Scenario::StoreLost,
    Scenario::StoreKilled,
    Scenario::ForeignCommit,
];

/// How a schedule ended.
pub struct Ended {
    /// What was broken first.
    pub violation: Option<String>,
    /// How often interesting things happened.
    pub covered: BTreeMap<&'static str, u64>,
    /// What happened, when it was to be shown.
    pub trace: Vec<String>,
}

/// Runs the schedule of a seed.
pub fn run(scenario: Scenario, seed: u64, broken: Option<Rule>, traced: bool) -> Ended {
    let mut rng = Rng::new(seed);
    let setup = setup(&mut rng, scenario, broken);
    let (partitions, writers) = match scenario {
        Scenario::Zombies => (1, rng.between(2, 3) as usize),
        _ => (rng.between(1, 2) as usize, rng.between(1, 3) as usize),
    };
    let mut world = World::new(setup, rng, partitions, writers, traced);
    world.note(|| format!("{scenario:?}, seed {seed}, {partitions} partitions, {writers} writers"));
    let setup = format!("{:?}", world.setup);
    world.note(|| setup);
    for p in 0..partitions {
        let records = world.rng.below(20);
        world.produce(p, records);
    }
    let ticks = world.rng.between(100, 1500);
    for _ in 0..ticks {
        if world.is_over() {
            break;
        }
        world.tick();
    }
    world.look_at_halts();
    if !world.is_over() {
        finish(&mut world, scenario);
    }
    Ended { violation: world.violation, covered: world.covered, trace: world.trace.unwrap_or_default() }
}

/// Chooses bounds and faults.
fn setup(rng: &mut Rng, scenario: Scenario, broken: Option<Rule>) -> Setup {
    let claim_age_max = rng.between(60, 300);
    let insert_ms_max = rng.between(20, 150);
    let unbounded = broken == Some(Rule::ClaimAgeBounded);
    let limits = Limits {
        claim_age_max: if unbounded { Duration::from_secs(86_400) } else { Duration::from_millis(claim_age_max) },
        backoff_min: Duration::from_millis(2),
        backoff_max: Duration::from_millis(40),
    };
    let mut setup = Setup {
        limits,
        session_ms: rng.between(60, 300),
        // Seldom enough that some are expelled while they work, and go on for a while without knowing.
        heartbeats: rng.between(60, 400),
        polls: rng.between(30, 250),
        insert_ms_max,
        // Just as long as it must be, so that a rule that is a little off is noticed.
        window_ms: claim_age_max + insert_ms_max + 1,
        load_ms_max: if rng.permille(500) { 10 } else { rng.between(50, 600) },
        slow_reads: if rng.permille(700) { 0 } else { rng.between(100, 950) },
        keys: rng.between(4, 250),
        commits_without_membership: false,
        faults: faults(rng),
        broken,
    };
    if broken == Some(Rule::WindowHeld) {
        setup.window_ms = insert_ms_max / 10;
    }
    if scenario == Scenario::Zombies {
        zombies(rng, &mut setup, claim_age_max + insert_ms_max);
    }
    if scenario == Scenario::StoreKilled {
        setup.faults.store_kills = rng.between(5, 150);
        // Who has met a token goes on to the next one: it must not be forgotten as long as anybody does.
        setup.window_ms *= 100;
    }
    setup
}

/// Of the faults some are left out, so that the others are seen by themselves.
fn faults(rng: &mut Rng) -> Faults {
    let pause_ms_max = rng.between(50, 1500);
    let mut rate = |most: u64| if rng.permille(400) { 0 } else { rng.between(1, most) };
    Faults {
        crashes: rate(12),
        down_ms_max: 300,
        pauses: rate(12),
        stalls: rate(10),
        pause_ms_max,
        abandonments: 0,
        kafka_away: rate(4),
        store_away: rate(6),
        rebalances: rate(15),
        leaves: rate(8),
        cuts: rate(8),
        weeks: rate(2),
        retention: rate(10),
        lost_answers: rate(200),
        late_inserts: rate(300),
        store_kills: 0,
    }
}

/// A commit without membership can overwrite the claim of a member that is gone. That does no harm as long as no insert
/// under such a claim can still be sent or arrive when the group has become empty: a member is expelled only after a
/// longer time than that takes (`claim_ms_max`), and none leaves with an insert under way.
fn zombies(rng: &mut Rng, setup: &mut Setup, claim_ms_max: u64) {
    setup.commits_without_membership = true;
    setup.heartbeats = rng.between(200, 400);
    match setup.broken {
        Some(Rule::SessionOutlivesClaim) => setup.session_ms /= 2,
        _ => setup.session_ms += claim_ms_max,
    }
    setup.faults = Faults {
        stalls: rng.between(20, 150),
        pause_ms_max: rng.between(50, 1500) + 3 * setup.session_ms,
        abandonments: rng.between(3, 30),
        down_ms_max: 300 + 3 * setup.session_ms,
        leaves: 0,
        pauses: rng.below(3),
        crashes: rng.below(3),
        retention: 0,
        weeks: 0,
        ..setup.faults
    };
}

fn finish(world: &mut World, scenario: Scenario) {
    match scenario {
        Scenario::Faults | Scenario::Zombies | Scenario::StoreKilled => {}
        Scenario::LogLost => log_lost(world),
        Scenario::LogTruncated => log_truncated(world),
        Scenario::Recreated => recreated(world),
        Scenario::StoreLost => return store_lost(world),
        Scenario::ForeignCommit => foreign_commit(world),
    }
    if world.is_over() {
        return;
    }
    world.heal();
    world.drain();
    if !world.is_over() {
        world.check();
    }
}

/// Runs until partition 0 halts, which must be as `expected`; other partitions may halt likewise.
fn await_halt(world: &mut World, expected: fn(&Why) -> bool) {
    world.heal();
    for _ in 0..20_000 {
        world.tick();
        if let Some(why) = world.halts.iter().flatten().find(|why| !expected(why)) {
            let violation = format!("halted otherwise than expected: {why}");
            return world.violate(violation);
        }
        if world.halts[0].is_some() {
            world.cover("a halt is as expected");
            return;
        }
        if world.is_over() {
            return;
        }
    }
    world.violate("the loss is not noticed".to_owned());
}

/// The operator opens a new generation. Events that are stored and not counted keep that from being done, as they
/// must; the schedule is over then.
fn operate(world: &mut World) {
    if world.is_over() {
        return;
    }
    if world.open_generation() {
        world.cover("a generation is opened");
    } else {
        world.cover("a generation is not opened");
        world.abandoned = true;
    }
}

fn log_lost(world: &mut World) {
    world.week(true);
    world.produce(0, 3);
    let low = world.stored(0) + world.rng.between(1, 3) as i64;
    let log = &mut world.partitions[0].log;
    log.retain_from(low.min(log.high));
    await_halt(world, |why| matches!(why, Why::LogLost { .. }));
    operate(world);
}

fn log_truncated(world: &mut World) {
    world.produce(0, 2);
    world.heal();
    world.drain();
    if world.is_over() {
        return;
    }
    world.week(true);
    let stored = world.stored(0);
    let log = &mut world.partitions[0].log;
    let lost = world.rng.between(1, (stored - log.low).max(1) as u64) as i64;
    // A log that was never read to its start has nothing to lose.
    if stored == log.low {
        return;
    }
    log.truncate(stored - lost);
    world.generation += 1;
    await_halt(world, |why| matches!(why, Why::LogTruncated { .. }));
    if world.rng.permille(500) {
        world.produce(0, 5);
    }
    operate(world);
}

fn recreated(world: &mut World) {
    world.week(true);
    let keep_commits = world.rng.permille(500);
    world.recreate_topic(keep_commits);
    world.generation += 1;
    // The new log may well reach further than the old one did.
    for p in 0..world.partitions.len() {
        let records = world.rng.below(60);
        world.produce(p, records);
    }
    world.heal();
    for _ in 0..2000 {
        world.tick();
        if world.is_over() {
            return;
        }
    }
    if world.processes.iter().any(|process| process.life != Life::Refused) {
        return world.violate("another log is not refused".to_owned());
    }
    world.cover("another log is refused");
    operate(world);
}

/// Whatever is lost of the store: either that is noticed, or everything is stored again.
fn store_lost(world: &mut World) {
    world.week(true);
    let ranges = world.rng.between(1, 3) as usize;
    let mut rng = world.rng.clone();
    if world.rng.permille(300) {
        world.store.lose_events(0);
    } else {
        world.store.lose_tail(0, ranges, || rng.permille(500));
    }
    if world.rng.permille(500) {
        world.store.remember_tokens();
    }
    world.heal();
    for _ in 0..20_000 {
        if world.is_over() {
            return;
        }
        match world.halts[0] {
            // The last one when the commit was forgotten too, and retention has removed what is to be read again.
            Some(
                Why::StoreBehind { .. }
                | Why::EventsLost { .. }
                | Why::InsertLost { .. }
                | Why::Inconsistent(_)
                | Why::LogLost { .. },
            ) => {
                return world.cover("a halt is as expected");
            }
            Some(ref why) => {
                let violation = format!("halted otherwise than expected: {why}");
                return world.violate(violation);
            }
            None if world.drained() => {
                world.cover("the store's loss is made good");
                return world.check();
            }
            None => world.tick(),
        }
    }
    world.violate("the store's loss is neither noticed nor made good".to_owned());
}

fn foreign_commit(world: &mut World) {
    world.week(true);
    let metadata = ["", "consumer-42", "{\"millrace\":2,\"generation\":1}"][world.rng.below(3) as usize];
    world.group.commits[0] = Some((world.rng.below(50) as i64, metadata.to_owned()));
    await_halt(world, |why| matches!(why, Why::ForeignCommit { .. }));
    world.week(true);
    world.group.commits[0] = None;
    world.halts.fill(None);
}
