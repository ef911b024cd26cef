//! Keeps the runs of a partition's seen keys in files, so that the next tenure need not read them out of ClickHouse.
//!
//! A cache and never the truth: it may be lost or be behind at any time. It is never ahead of what is stored and
//! committed, since recent keys become runs only when no range is unfinished; a key that was seen but is not stored
//! would have the event dropped when it comes again.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use super::filter::Filter;
use super::folder::Folder;
use super::keeper::{Done, Job, Keeper};
use super::lane::Lane;
use super::manifest::{Identity, Manifest, RunFile, StoredRows};
use super::run::Run;
use super::{Sizes, file};

/// Files under way, at most: more wait for the disk.
const WRITES_MAX: usize = 8;
/// So many times what makes a run may be recent before what fills it up waits for the disk.
const RECENT_MAX: usize = 4;
/// The largest run: its places are numbers of 32 bits.
const RUN_KEYS_MAX: usize = 1 << 31;

/// What all keys so far are the keys of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// All events below this offset.
    pub below: i64,
    /// How many those are.
    pub rows: StoredRows,
}

/// The files of a partition's seen keys.
pub struct Cache {
    keeper: Keeper,
    folder: Arc<Folder>,
    identity: Identity,
    secret: u128,
    /// Numbers the files.
    serial: u64,
    /// Recent keys that are being written.
    writes: usize,
    /// Whether a merge or a manifest is being written.
    merging: bool,
    recording: bool,
    /// Whether merges are over.
    closing: bool,
    /// What the runs will hold once they are written: nothing else becomes a run until that is recorded.
    to_record: Option<Covered>,
    /// What the last manifest speaks of, and how many keys that were.
    recorded: Option<Covered>,
    recorded_keys: u64,
    /// Files that the next manifest does not name any more.
    obsolete: Vec<PathBuf>,
}

/// What was found in a folder, and opened.
pub struct Opened {
    /// The cache.
    pub cache: Cache,
    /// Its keys.
    pub lanes: Vec<Lane>,
    /// What they are the keys of.
    pub covered: Covered,
}

impl Cache {
    /// An empty cache in a folder, for values permuted with this secret. Whatever lies there is removed.
    pub fn create(folder: Folder, identity: Identity, secret: u128) -> io::Result<Cache> {
        folder.clear(None)?;
        Cache::start(folder, identity, secret, 0)
    }

    /// Opens what a manifest says of the folder, all of which is checked. What it does not name is removed.
    pub fn open(folder: Folder, manifest: Manifest) -> io::Result<Opened> {
        folder.clear(Some(&manifest))?;
        let mut lanes = Vec::with_capacity(manifest.lanes.len());
        for entries in &manifest.lanes {
            let mut filter = Filter::new(entries.iter().map(|run| run.keys).sum());
            let runs: io::Result<Vec<Arc<Run>>> =
                entries.iter().map(|entry| file::open(&folder, entry, &mut filter).map(Arc::new)).collect();
            lanes.push(Lane::of(filter, runs?));
        }
        let Manifest { identity, below, rows, secret, lanes: entries, .. } = manifest;
        let serials = entries.iter().flatten().filter_map(|run| run.name.split('-').next_back()?.parse().ok());
        let mut cache = Cache::start(folder, identity, secret, serials.max().unwrap_or(0))?;
        let covered = Covered { below, rows };
        (cache.recorded, cache.recorded_keys) = (Some(covered), lanes.iter().map(Lane::len).sum());
        Ok(Opened { cache, lanes, covered })
    }

    fn start(folder: Folder, identity: Identity, secret: u128, serial: u64) -> io::Result<Cache> {
        let folder = Arc::new(folder);
        Ok(Cache {
            keeper: Keeper::start(folder.clone())?,
            folder,
            identity,
            secret,
            serial,
            writes: 0,
            merging: false,
            recording: false,
            closing: false,
            to_record: None,
            recorded: None,
            recorded_keys: 0,
            obsolete: Vec::new(),
        })
    }

    /// While the keys are loaded, when all that are recent may become runs at any time.
    pub fn load(&mut self, lanes: &mut [Lane], sizes: Sizes) -> io::Result<()> {
        self.collect(lanes, false)?;
        self.flush(lanes, sizes.flush_keys);
        self.merge(lanes, sizes);
        while self.writes > WRITES_MAX {
            self.collect(lanes, true)?;
        }
        Ok(())
    }

    /// When no range is unfinished and the keys are those of `covered`: keys become runs, and what they are is
    /// recorded when nothing was so far, when there are many new ones, or when it `must` be.
    pub fn advance(&mut self, lanes: &mut [Lane], sizes: Sizes, covered: Covered, must: bool) -> io::Result<()> {
        self.collect(lanes, false)?;
        loop {
            let keys: u64 = lanes.iter().map(Lane::len).sum();
            // Nothing recorded and nothing to record are the same.
            let due = self.recorded.map_or(1, |_| self.recorded_keys + sizes.record_keys);
            if self.to_record.is_none() {
                if self.recorded != Some(covered) && (must || keys >= due) {
                    self.flush(lanes, 1);
                    self.to_record = Some(covered);
                } else {
                    self.flush(lanes, sizes.flush_keys);
                }
            }
            self.record(lanes);
            self.merge(lanes, sizes);
            let full = lanes.iter().any(|lane| lane.recent() >= RECENT_MAX * sizes.flush_keys);
            if self.writes <= WRITES_MAX && !full {
                return Ok(());
            }
            self.collect(lanes, true)?;
        }
    }

    /// Writes and records everything, gives up merges, and ends.
    pub fn close(mut self, lanes: &mut [Lane], sizes: Sizes, covered: Covered) -> io::Result<()> {
        if self.recorded.is_none() && lanes.iter().all(|lane| lane.len() == 0) {
            return Ok(());
        }
        self.closing = true;
        self.keeper.hurry();
        while self.recorded != Some(covered) {
            self.advance(lanes, sizes, covered, true)?;
            if self.recorded != Some(covered) {
                self.collect(lanes, true)?;
            }
        }
        Ok(())
    }

    /// Recent keys become runs, in the lanes that have at least so many.
    fn flush(&mut self, lanes: &mut [Lane], keys_min: usize) {
        for (index, lane) in lanes.iter_mut().enumerate() {
            if lane.recent() >= keys_min
                && let Some(run) = lane.flush()
            {
                self.writes += 1;
                self.write(index, vec![run]);
            }
        }
    }

    /// One merge at a time, of runs that are in files.
    fn merge(&mut self, lanes: &[Lane], sizes: Sizes) {
        if self.merging || self.closing {
            return;
        }
        let in_files = |runs: &Vec<Arc<Run>>| runs.iter().all(|run| run.file().is_some());
        let found = lanes
            .iter()
            .enumerate()
            .find_map(|(index, lane)| Some((index, lane.to_merge(sizes, RUN_KEYS_MAX).filter(in_files)?)));
        if let Some((index, runs)) = found {
            self.merging = true;
            self.write(index, runs);
        }
    }

    fn write(&mut self, lane: usize, runs: Vec<Arc<Run>>) {
        self.serial += 1;
        self.keeper.ask(Job::Write { lane, runs, name: format!("{lane}-{}", self.serial) });
    }

    /// Has recorded what is to be, as soon as all of it is in files.
    fn record(&mut self, lanes: &[Lane]) {
        let Some(Covered { below, rows }) = self.to_record.filter(|_| self.writes == 0 && !self.recording) else {
            return;
        };
        let entries = |lane: &Lane| -> Vec<RunFile> {
            lane.runs().filter_map(|run| run.file()).map(|file| file.entry().clone()).collect()
        };
        let entries = lanes.iter().map(entries).collect();
        self.recording = true;
        self.recorded_keys = lanes.iter().flat_map(Lane::runs).map(|run| run.len() as u64).sum();
        self.keeper.ask(Job::Record {
            manifest: Manifest::new(self.identity.clone(), below, rows, self.secret, entries),
            runs: lanes.iter().flat_map(Lane::runs).cloned().collect(),
            obsolete: std::mem::take(&mut self.obsolete),
        });
    }

    /// Takes what the keeper has done; with `wait` at least one thing.
    fn collect(&mut self, lanes: &mut [Lane], mut wait: bool) -> io::Result<()> {
        if wait && self.writes == 0 && !self.merging && !self.recording {
            return Err(io::Error::other("nothing is under way"));
        }
        loop {
            let Some(done) = self.keeper.done(wait) else {
                return if wait { Err(io::Error::other("the thread that writes it has ended")) } else { Ok(()) };
            };
            wait = false;
            match done {
                Done::Recorded(recorded) => {
                    recorded?;
                    self.recording = false;
                    self.recorded = self.to_record.take();
                }
                Done::Written { lane, made_of, run } => self.written(&mut lanes[lane], &made_of, run)?,
            }
        }
    }

    fn written(&mut self, lane: &mut Lane, made_of: &[Arc<Run>], run: io::Result<Run>) -> io::Result<()> {
        let merge = made_of.len() > 1;
        match merge {
            true => self.merging = false,
            false => self.writes -= 1,
        }
        match run {
            Ok(run) => {
                let files = made_of.iter().filter_map(|run| run.file());
                self.obsolete.extend(files.map(|file| self.folder.file(&file.entry().name)));
                lane.replace(made_of, run.into());
                Ok(())
            }
            Err(error) if merge && error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}
