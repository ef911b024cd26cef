//! The seen keys of one lane, as permuted values.
//!
//! ```text
//! value ─▶ filter ─ no ─▶ new, into the recent ones
//!            └─ maybe ─▶ the recent ones ─ not there ─▶ the runs ─ not there ─▶ new
//! ```
//!
//! A value is in the filter and, exactly once, among the recent ones or in a run.

use std::cmp::Reverse;
use std::sync::Arc;

use super::filter::{Filter, values_of};
use super::permutation::Value;
use super::recent::Recent;
use super::run::Run;
use super::{AHEAD, Sizes};

/// A run that is searched.
struct Searched {
    run: Arc<Run>,
    /// How many keys were found in it of late, half as many for each time that it was searched since.
    hits: usize,
}

/// The seen keys of one lane.
pub struct Lane {
    filter: Filter,
    recent: Recent,
    /// In the order in which they are searched.
    runs: Vec<Searched>,
    /// How many values the runs have.
    in_runs: u64,
    /// Values that the filter does not know, and those that it may know; kept between calls for their memory.
    unknown: Vec<u128>,
    known: Vec<(u128, u32)>,
}

impl Lane {
    /// A lane without keys, with a filter for so many.
    pub fn new(values: u64) -> Lane {
        Lane {
            filter: Filter::new(values),
            recent: Recent::new(),
            runs: Vec::new(),
            in_runs: 0,
            unknown: Vec::new(),
            known: Vec::new(),
        }
    }

    /// A lane of these runs, whose keys are in the filter.
    pub fn of(filter: Filter, runs: Vec<Arc<Run>>) -> Lane {
        let mut lane = Lane { filter, ..Lane::new(0) };
        runs.into_iter().for_each(|run| lane.add(run));
        lane
    }

    /// How many keys there are.
    pub fn len(&self) -> u64 {
        self.in_runs + self.recent.len() as u64
    }

    /// How many of them are in no run.
    pub fn recent(&self) -> usize {
        self.recent.len()
    }

    /// The runs.
    pub fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.iter().map(|searched| &searched.run)
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        let scratch = self.unknown.capacity() * size_of::<u128>() + self.known.capacity() * size_of::<(u128, u32)>();
        let runs: usize = self.runs().map(|run| run.bytes()).sum();
        self.filter.bytes() + self.recent.bytes() + runs + scratch
    }

    /// Adds values; says of the index of each one that was there already `old(index)`, and of no other. Of equal ones
    /// the first counts.
    pub fn insert_all(&mut self, values: &[Value], mut old: impl FnMut(u32)) {
        let Lane { filter, recent, runs, unknown, known, .. } = &mut *self;
        unknown.clear();
        known.clear();
        filter.insert_all(values, |index, value, maybe| {
            if maybe {
                known.push((value, index as u32));
            } else {
                unknown.push(value);
            }
        });
        recent.reserve(values.len());
        // What the filter does not know comes before its copies, which it then knows.
        for index in 0..unknown.len() {
            if let Some(ahead) = unknown.get(index + AHEAD) {
                recent.prefetch(*ahead);
            }
            recent.insert(unknown[index]);
        }
        recent.remove_found(known, &mut old);
        for Searched { run, hits } in runs.iter_mut() {
            let sought = known.len();
            run.remove_found(known, &mut old);
            *hits = *hits / 2 + sought - known.len();
        }
        // Nearly always there is nothing to do: events that come again come from one time, and that from few runs.
        runs.sort_by_key(|searched| Reverse(searched.hits));
        // Those that the filter took for others, and their copies among these values: few, and in the order of their
        // rows.
        known.sort_unstable_by_key(|(_, index)| *index);
        for &(value, index) in known.iter() {
            if !recent.insert(value) {
                old(index);
            }
        }
        self.grow_filter();
    }

    /// Makes a run of the recent keys; `None` when there are none.
    pub fn flush(&mut self) -> Option<Arc<Run>> {
        let values = self.recent.drain();
        (!values.is_empty()).then(|| {
            let run = Arc::new(Run::in_memory(values));
            self.add(run.clone());
            run
        })
    }

    /// Takes a run whose keys are in the filter, and nowhere else.
    fn add(&mut self, run: Arc<Run>) {
        self.in_runs += run.len() as u64;
        // Of those with as many hits, the largest is searched first.
        let place = self.runs.partition_point(|other| other.hits > 0 || other.run.len() > run.len());
        self.runs.insert(place, Searched { run, hits: 0 });
    }

    /// Puts a run in the place of those that it was made of.
    pub fn replace(&mut self, made_of: &[Arc<Run>], run: Arc<Run>) {
        self.runs.retain(|old| !made_of.iter().any(|other| Arc::ptr_eq(&old.run, other)));
        self.in_runs = self.runs().map(|run| run.len() as u64).sum();
        self.add(run);
    }

    /// The runs to be made one next, by their sizes: as soon as there are [`Sizes::fan_in`] of about one size.
    pub fn to_merge(&self, sizes: Sizes, keys_max: usize) -> Option<Vec<Arc<Run>>> {
        let class = |run: &Run| (run.len() / sizes.flush_keys).max(1).ilog(sizes.fan_in);
        let mut runs: Vec<Arc<Run>> = self.runs().cloned().collect();
        runs.sort_by_key(|run| run.len());
        let mut classes = runs.chunk_by(|a, b| class(a) == class(b));
        let due = |same: &&[Arc<Run>]| {
            same.len() >= sizes.fan_in && same.iter().map(|run| run.len()).sum::<usize>() <= keys_max
        };
        classes.find(due).map(<[_]>::to_vec)
    }

    fn grow_filter(&mut self) {
        while let Some(segment) = self.filter.outgrown(self.len()) {
            self.filter.renew();
            let (from, to) = values_of(segment);
            let filter = &mut self.filter;
            for Searched { run, .. } in &self.runs {
                filter.insert_all(run.between(from, to), |_, _, _| {});
            }
            self.recent.each(from, to, |value| {
                filter.insert(value);
            });
        }
    }
}
