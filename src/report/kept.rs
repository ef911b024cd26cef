//! Answers that are given again for as long as they are young enough: a question that everybody asks costs a few queries
//! in that time, however often it is asked.
//!
//! An answer's age counts from the moment before its query was sent, because the query may miss whatever is stored after
//! it began. For the age `a` that is allowed:
//!
//! | the newest answer | a reader |
//! |---|---|
//! | young | is given it |
//! | not older than `a` | is given it, and the first one starts a query in the background |
//! | older, or none | waits for a query that began within the last `a`, or else starts one |
//!
//! It is young for `a / 2`, and less where queries are slow: such that twice the time of the last one remains, so that the
//! next answer is there before this one is too old, and `a / 8` at least, so that failures do not follow each other closely.
//!
//! So what a reader is given never misses anything that was stored `a` before they asked, and answers to one question
//! never go back in time: an answer is replaced only by one whose query began later. A query that fails is told to those
//! who wait for it and to nobody else.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::flight::{Flight, lock};

/// What is known of one question.
struct Slot<V> {
    /// When its newest query began, and the query itself, while it is under way.
    asked: Instant,
    under_way: Option<Arc<Flight<V>>>,
    /// How long the last one took that gave an answer.
    took: Duration,
    /// The newest answer, and when its query began.
    answer: Option<(Instant, V)>,
}

/// By question.
type Slots<V> = HashMap<String, Slot<V>>;

/// Tells the time; a clock of a test's own, in tests.
type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Answers that are kept, and the queries that are under way for them.
pub struct KeptAnswers<V> {
    runtime: Handle,
    age_max: Duration,
    slots_max: usize,
    keep: fn(&V) -> Option<V>,
    clock: Clock,
    slots: Arc<Mutex<Slots<V>>>,
}

impl<V: Clone + Send + Sync + 'static> KeptAnswers<V> {
    /// Queries run on `runtime`. An answer is given for `age_max`; `keep` makes of it what is kept, if anything.
    ///
    /// Of `slots_max` questions the answers are kept; those that are being asked count, and there may be more of them.
    pub fn new(runtime: Handle, age_max: Duration, slots_max: usize, keep: fn(&V) -> Option<V>) -> KeptAnswers<V> {
        KeptAnswers { runtime, age_max, slots_max, keep, clock: Arc::new(Instant::now), slots: Arc::default() }
    }

    /// The answer to `question`. `None` when `timeout` passed first (the query goes on). Waits as a coroutine or a thread,
    /// whichever calls.
    pub fn ask<F>(&self, question: &str, timeout: Duration, start: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut slots = lock(&self.slots);
        let now = (self.clock)();
        let age = |began: Instant| now.saturating_duration_since(began);
        let mut slot = slots.get_mut(question);
        if let Some(slot) = &mut slot
            && let Some((_, answer)) = slot.answer.as_ref().filter(|(began, _)| age(*began) <= self.age_max)
        {
            let answer = answer.clone();
            let is_asked = slot.under_way.is_some() && age(slot.asked) <= self.age_max;
            if !is_asked && age(slot.asked) >= self.young_for(slot.took) {
                slot.asked = now;
                slot.under_way = Some(self.depart(question, now, start()));
            }
            return Some(answer);
        }
        let joined = slot.and_then(|slot| slot.under_way.clone().filter(|_| age(slot.asked) <= self.age_max));
        let flight = joined.unwrap_or_else(|| {
            let flight = self.depart(question, now, start());
            let slot = self.slot(&mut slots, question, now);
            slot.asked = now;
            slot.under_way = Some(flight.clone());
            flight
        });
        let waiter = flight.board();
        drop(slots);
        flight.wait(&waiter, timeout)
    }

    /// How long after one query the next may begin, by how long the last one took.
    fn young_for(&self, took: Duration) -> Duration {
        self.age_max.saturating_sub(took * 2).clamp(self.age_max / 8, self.age_max / 2)
    }

    /// Sends a query off; it cannot land before the slots are let go of.
    fn depart<F>(&self, question: &str, began: Instant, work: F) -> Arc<Flight<V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let flight = Arc::new(Flight::new());
        let (landing, question) = (flight.clone(), question.to_owned());
        let (slots, keep, clock) = (self.slots.clone(), self.keep, self.clock.clone());
        self.runtime.spawn(async move {
            let value = work.await;
            let times = (began, clock());
            settle(&mut lock(&slots), &question, times, &landing, keep(&value));
            landing.land(value);
        });
        flight
    }

    /// The slot of a question; a new one takes the place of the oldest answer where there is no room.
    fn slot<'s>(&self, slots: &'s mut Slots<V>, question: &str, now: Instant) -> &'s mut Slot<V> {
        if !slots.contains_key(question) && slots.len() >= self.slots_max {
            let is_young = |slot: &Slot<V>| {
                slot.answer.as_ref().is_some_and(|(began, _)| now.duration_since(*began) <= self.age_max)
            };
            slots.retain(|_, slot| slot.under_way.is_some() || is_young(slot));
            let idle = slots.iter().filter(|(_, slot)| slot.under_way.is_none());
            let oldest = idle.min_by_key(|(_, slot)| slot.asked).map(|(question, _)| question.clone());
            if let Some(oldest) = oldest.filter(|_| slots.len() >= self.slots_max) {
                slots.remove(&oldest);
            }
        }
        let new = || Slot { asked: now, under_way: None, took: Duration::ZERO, answer: None };
        slots.entry(question.to_owned()).or_insert_with(new)
    }
}

/// Notes what became of a query that began and ended at these times.
fn settle<V>(
    slots: &mut Slots<V>,
    question: &str,
    (began, ended): (Instant, Instant),
    flight: &Arc<Flight<V>>,
    answer: Option<V>,
) {
    let Some(slot) = slots.get_mut(question) else { return };
    if slot.under_way.as_ref().is_some_and(|under_way| Arc::ptr_eq(under_way, flight)) {
        slot.under_way = None;
    }
    if let Some(answer) = answer
        && slot.answer.as_ref().is_none_or(|(before, _)| *before < began)
    {
        slot.answer = Some((began, answer));
        slot.took = ended.saturating_duration_since(began);
    }
    if slot.answer.is_none() && slot.under_way.is_none() {
        slots.remove(question);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::dice::Dice;

    const AGE: Duration = Duration::from_millis(900);
    const SLOTS: usize = 16;
    /// Long enough never to pass.
    const LONG: Duration = Duration::from_secs(60);

    type Answer = Result<u64, ()>;

    /// Answers under a clock of the test's own, with queries that end when the test says so.
    struct World {
        _runtime: tokio::runtime::Runtime,
        kept: KeptAnswers<Answer>,
        now_ms: Arc<AtomicU64>,
        queries: AtomicUsize,
    }

    impl World {
        fn new() -> World {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
            let mut kept =
                KeptAnswers::new(runtime.handle().clone(), AGE, SLOTS, |answer: &Answer| answer.ok().map(Ok));
            let (now_ms, began) = (Arc::new(AtomicU64::new(0)), Instant::now());
            let now = now_ms.clone();
            kept.clock = Arc::new(move || began + Duration::from_millis(now.load(Ordering::SeqCst)));
            World { _runtime: runtime, kept, now_ms, queries: AtomicUsize::new(0) }
        }

        /// Asks at a time, with a query that gives `answer` at once.
        fn ask(&self, question: &str, at_ms: u64, answer: Answer) -> Answer {
            let start = || {
                self.queries.fetch_add(1, Ordering::SeqCst);
                async move { answer }
            };
            self.now_ms.store(at_ms, Ordering::SeqCst);
            self.kept.ask(question, LONG, start).expect("in time")
        }

        /// Asks with a query that ends when it is released. A reader that must wait gives up at once: `None`.
        fn ask_held(&self, question: &str, at_ms: u64) -> (Option<Answer>, Option<oneshot::Sender<Answer>>) {
            let mut release = None;
            let start = || {
                self.queries.fetch_add(1, Ordering::SeqCst);
                let (sender, held) = oneshot::channel();
                release = Some(sender);
                async move { held.await.unwrap_or(Err(())) }
            };
            self.now_ms.store(at_ms, Ordering::SeqCst);
            let answer = self.kept.ask(question, Duration::ZERO, start);
            (answer, release)
        }

        /// How many queries there were so far, once all have landed.
        fn landed(&self) -> usize {
            while lock(&self.kept.slots).values().any(|slot| slot.under_way.is_some()) {
                std::thread::yield_now();
            }
            self.queries.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn an_answer_is_given_until_it_is_too_old() {
        let world = World::new();
        assert_eq!(world.ask("q", 0, Ok(1)), Ok(1));
        for at_ms in [0, 1, 449] {
            assert_eq!(world.ask("q", at_ms, Ok(2)), Ok(1));
            assert_eq!(world.landed(), 1);
        }
        // Past half of it the reader is given the old one, and the next has the new one.
        assert_eq!(world.ask("q", 450, Ok(3)), Ok(1));
        assert_eq!(world.landed(), 2);
        assert_eq!(world.ask("q", 899, Ok(4)), Ok(3));
        assert_eq!(world.landed(), 2);
        // The new one counts from when its query began.
        assert_eq!(world.ask("q", 450 + 901, Ok(5)), Ok(5));
        assert_eq!(world.landed(), 3);
        assert_eq!(world.ask("other", 450 + 901, Ok(6)), Ok(6));
    }

    #[test]
    fn one_query_refreshes_for_all() {
        let world = World::new();
        assert_eq!(world.ask("q", 0, Ok(1)), Ok(1));
        let (answer, release) = world.ask_held("q", 500);
        assert_eq!(answer, Some(Ok(1)));
        for at_ms in [500, 600, 900] {
            let (answer, second) = world.ask_held("q", at_ms);
            assert_eq!((answer, second.is_none()), (Some(Ok(1)), true), "{at_ms}");
        }
        // Too old: readers wait for the query that is under way, and start none.
        for at_ms in [901, 950, 1400] {
            let (answer, second) = world.ask_held("q", at_ms);
            assert_eq!((answer, second.is_none()), (None, true), "{at_ms}");
        }
        // It began so long ago that it could miss what a reader must see.
        let (answer, second) = world.ask_held("q", 1401);
        assert!(answer.is_none() && second.is_some());
        second.unwrap().send(Ok(3)).unwrap();
        while lock(&world.kept.slots)["q"].under_way.is_some() {
            std::thread::yield_now();
        }
        // The older one lands later, and changes nothing.
        release.unwrap().send(Ok(2)).unwrap();
        while Arc::strong_count(&world.kept.slots) > 1 {
            std::thread::yield_now();
        }
        assert_eq!(world.ask("q", 1402, Ok(9)), Ok(3));
        assert_eq!(world.landed(), 3);
    }

    /// The last one's time twice remains until the answer is too old, and an eighth of the age passes at least.
    #[test]
    fn slow_queries_begin_sooner() {
        for (took_ms, not_yet_ms, due_ms) in [(100, 449, 450), (300, 300, 300), (350, 350, 350), (600, 600, 600)] {
            let world = World::new();
            let (_, release) = world.ask_held("q", 0);
            world.now_ms.store(took_ms, Ordering::SeqCst);
            release.unwrap().send(Ok(1)).unwrap();
            assert_eq!(world.landed(), 1);
            if not_yet_ms < due_ms {
                assert_eq!(world.ask("q", not_yet_ms, Ok(2)), Ok(1));
                assert_eq!(world.landed(), 1);
            }
            assert_eq!(world.ask("q", due_ms, Err(())), Ok(1));
            assert_eq!(world.landed(), 2);
            let again_ms = due_ms + if took_ms == 600 { 113 } else { 900 - 2 * took_ms.max(225) };
            assert_eq!(world.ask("q", again_ms - 1, Err(())), Ok(1));
            assert_eq!(world.landed(), 2);
            if again_ms <= 900 {
                assert_eq!(world.ask("q", again_ms, Err(())), Ok(1));
                assert_eq!(world.landed(), 3);
            }
        }
    }

    #[test]
    fn those_who_wait_share_one_query() {
        let world = World::new();
        let (release, held) = tokio::sync::watch::channel(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..8)
                .map(|_| {
                    let mut held = held.clone();
                    let world = &world;
                    scope.spawn(move || {
                        world.kept.ask("q", LONG, || {
                            world.queries.fetch_add(1, Ordering::SeqCst);
                            async move {
                                held.wait_for(|open| *open).await.unwrap();
                                Ok(7)
                            }
                        })
                    })
                })
                .collect();
            while !lock(&world.kept.slots).contains_key("q") {
                std::thread::yield_now();
            }
            release.send(true).unwrap();
            assert!(readers.into_iter().all(|reader| reader.join().unwrap() == Some(Ok(7))));
        });
        assert_eq!(world.landed(), 1);
    }

    #[test]
    fn failures_are_not_kept() {
        let world = World::new();
        assert_eq!(world.ask("q", 0, Err(())), Err(()));
        assert!(lock(&world.kept.slots).is_empty());
        assert_eq!(world.ask("q", 1, Ok(1)), Ok(1));
        // One try in the background, however many read until the next is due.
        for at_ms in [500, 600, 700, 901] {
            assert_eq!(world.ask("q", at_ms, Err(())), Ok(1));
            assert_eq!(world.landed(), 3);
        }
        assert_eq!(world.ask("q", 902, Err(())), Err(()));
        assert_eq!(world.ask("q", 903, Ok(2)), Ok(2));
    }

    #[test]
    fn room_is_bounded() {
        let world = World::new();
        for number in 0..10 * SLOTS {
            assert_eq!(world.ask(&number.to_string(), number as u64, Ok(number as u64)), Ok(number as u64));
            assert_eq!(world.landed(), number + 1);
            assert!(lock(&world.kept.slots).len() <= SLOTS);
        }
        // The youngest are there still.
        for number in 9 * SLOTS..10 * SLOTS {
            assert_eq!(world.ask(&number.to_string(), 10 * SLOTS as u64, Ok(0)), Ok(number as u64));
        }
        // Those that are too old go first, all at once.
        assert_eq!(world.ask("new", 5000, Ok(0)), Ok(0));
        assert_eq!(lock(&world.kept.slots).len(), 1);
    }

    /// What is stored grows with the clock, a query sees what is stored when it begins, and ends a random time later.
    #[test]
    fn no_answer_is_too_old_or_goes_back() {
        let mut dice = Dice::new("kept answers");
        for _ in 0..200 {
            let world = World::new();
            let (mut now_ms, mut last) = (0, 0);
            // When each ends, and how.
            let mut under_way: Vec<(u64, Answer, oneshot::Sender<Answer>)> = Vec::new();
            for _ in 0..300 {
                let step_ms = if dice.once_in(20) { 2000 } else { 60 };
                now_ms += dice.below(step_ms) as u64;
                while let Some(next) = under_way.iter().position(|(ends_ms, ..)| *ends_ms <= now_ms) {
                    let (_, answer, release) = under_way.swap_remove(next);
                    let before = Arc::strong_count(&world.kept.slots);
                    release.send(answer).unwrap();
                    while Arc::strong_count(&world.kept.slots) == before {
                        std::thread::yield_now();
                    }
                }
                let (answer, release) = world.ask_held("q", now_ms);
                if let Some(release) = release {
                    let seen = if dice.once_in(5) { Err(()) } else { Ok(now_ms) };
                    under_way.push((now_ms + dice.below(1500) as u64, seen, release));
                }
                if let Some(answer) = answer {
                    let seen_ms = answer.expect("a failure is told to those who wait only");
                    assert!(now_ms - seen_ms <= 900, "{seen_ms} is given at {now_ms}");
                    assert!(seen_ms >= last, "{seen_ms} after {last}");
                    last = seen_ms;
                }
            }
        }
    }
}
