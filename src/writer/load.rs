//! The seen keys of a partition at the start of a tenure: out of the cache of the last one as far as that goes, the
//! rest out of ClickHouse.
//!
//! ClickHouse's events are the truth. A cache is used only when it is that of this very log and partition, is not
//! ahead of what is stored, is undamaged, and when as many events are stored as it was made of. Any doubt throws it
//! away, and all keys are read.

use std::marker::PhantomData;
use std::time::Instant;

use tokio::runtime::Handle;

use super::seen::folder::{self, Folder};
use super::seen::manifest::{Identity, Manifest, StoredRows};
use super::seen::{Covered, SeenKeys, Sizes};
use super::worker::Tools;
use crate::folder_lock;
use crate::kinds::{Key, Kind, partition_of};
use crate::log::group::Tenure;
use crate::store::{Store, StoreError};

/// Keys that are added at once.
const TOGETHER: usize = 1 << 14;
/// After how many keys it is asked whether to go on: a long load ends soon after the tenure.
const LOOK_UP: u64 = 1 << 20;

/// Why the keys could not be had.
pub enum LoadError {
    /// The tenure has ended.
    Ended,
    /// ClickHouse did not answer as it should.
    Store(StoreError),
}

impl From<StoreError> for LoadError {
    fn from(error: StoreError) -> LoadError {
        LoadError::Store(error)
    }
}

/// Which keys of what is stored.
#[derive(Clone, Copy)]
pub struct StoredKeys {
    /// The generation of the log.
    pub generation: u32,
    /// The partition, and how many there are.
    pub partition: u32,
    /// See `partition`.
    pub partitions: u32,
    /// Those at this offset or later; `None` for all, also of earlier generations.
    pub from: Option<i64>,
    /// Those below this offset.
    pub below: i64,
}

/// Adds keys that ClickHouse has. Tells whether all of them were new. Ends before it has them all when `go_on` says so, which is
/// asked now and then.
pub fn add_stored<K: Kind>(
    store: &Store,
    runtime: &Handle,
    which: StoredKeys,
    seen: &mut SeenKeys,
    mut go_on: impl FnMut() -> bool,
) -> Result<bool, StoreError> {
    let StoredKeys { generation, partition, partitions, from, below } = which;
    let mut keys: Vec<Key> = Vec::with_capacity(TOGETHER);
    let (mut read, mut all_new) = (0_u64, true);
    let mut add = |keys: &mut Vec<Key>| {
        all_new &= seen.insert_all(keys.len(), |row| Some(keys[row])).iter().all(|new| *new);
        keys.clear();
    };
    let reading = store.stored_keys::<K>(generation, partition, from, below, |key, of_this_log| {
        if key.lane < K::KEY_LANES && (of_this_log || partition_of(&key.id, partitions) == partition) {
            keys.push(key);
        }
        if keys.len() == TOGETHER {
            add(&mut keys);
        }
        read += 1;
        !read.is_multiple_of(LOOK_UP) || go_on()
    });
    let done = runtime.block_on(reading);
    add(&mut keys);
    done?;
    Ok(all_new)
}

/// What keys are loaded for.
pub struct Loading<'w, K: Kind> {
    /// What to do it with.
    pub tools: &'w Tools,
    /// The partition, and how long.
    pub tenure: &'w Tenure,
    /// The generation of its log.
    pub generation: u32,
    /// Keys that are stored at this offset or later do not count.
    pub below: i64,
    /// Of which events.
    pub kind: PhantomData<K>,
}

impl<K: Kind> Loading<'_, K> {
    /// The keys of everything stored below the offset. Whatever held the partition's keys before, in this worker,
    /// must be gone.
    pub fn load(&self) -> Result<SeenKeys, LoadError> {
        let began = Instant::now();
        let (mut seen, cached) = match self.cached()? {
            Some(found) => found,
            None => (self.all()?, 0),
        };
        if seen.has_cache() {
            seen.loaded(Covered { below: self.below, rows: self.stored_rows(self.below)? });
        }
        let (partition, keys, below) = (self.tenure.partition, seen.len(), self.below);
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(kind = K::NAME, partition, keys, cached, below, seconds, "read the stored keys");
        Ok(seen)
    }

    /// The keys out of the cache and the rest out of ClickHouse, and how many were in the cache; `None` when there is
    /// no cache that may be used.
    fn cached(&self) -> Result<Option<(SeenKeys, usize)>, LoadError> {
        let Some(folder) = self.folder() else { return Ok(None) };
        let Some(manifest) = self.manifest(&folder)? else { return Ok(None) };
        let (mut seen, covered) = match SeenKeys::open(folder, manifest, Sizes::LARGE) {
            Ok(opened) => opened,
            Err(error) => return Ok(self.refuse(&error.to_string())),
        };
        let cached = seen.len();
        if covered.below < self.below && !self.read(&mut seen, Some(covered.below))? {
            return Ok(self.refuse("it has keys that are stored behind what it should have"));
        }
        Ok(Some((seen, cached)))
    }

    /// All keys out of ClickHouse, into an empty cache where there can be one.
    fn all(&self) -> Result<SeenKeys, LoadError> {
        let cached = self.folder().and_then(|folder| {
            SeenKeys::cached(folder, self.identity(), Sizes::LARGE)
                .map_err(|error| self.without_cache(&error.to_string()))
                .ok()
        });
        let mut seen = cached.unwrap_or_else(|| SeenKeys::new(K::KEY_LANES));
        self.read(&mut seen, None)?;
        Ok(seen)
    }

    /// The partition's folder, where one is configured and nobody else has it.
    fn folder(&self) -> Option<Folder> {
        let root = self.tools.cache_dir.as_deref()?;
        let lock = || Folder::lock(root, K::NAME, self.tenure.partition);
        let folder = match folder_lock::wait(|| self.tenure.is_active(), lock) {
            Ok(Some(folder)) => folder,
            Ok(None) => {
                self.without_cache("another writer uses it");
                return None;
            }
            Err(error) => {
                self.without_cache(&error.to_string());
                return None;
            }
        };
        if let Err(error) = folder::remove_obsolete(root, K::NAME, self.tools.log.partitions() as u32) {
            tracing::debug!(%error, "caches of partitions that are no more could not be removed");
        }
        Some(folder)
    }

    /// What the folder holds, when it may be used by all that can be told without reading it.
    fn manifest(&self, folder: &Folder) -> Result<Option<Manifest>, LoadError> {
        let found = match folder.manifest() {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(None),
            Err(reason) => return Ok(self.refuse(&reason)),
        };
        if let Err(reason) = found.fits(&self.identity(), self.below) {
            return Ok(self.refuse(&reason));
        }
        if let Err(reason) = found.agrees(self.stored_rows(found.below)?) {
            return Ok(self.refuse(&reason));
        }
        Ok(Some(found))
    }

    /// Adds what ClickHouse has from an offset on, or all of it without one. Tells whether all of that was new.
    fn read(&self, seen: &mut SeenKeys, from: Option<i64>) -> Result<bool, LoadError> {
        let Tools { store, runtime, log, .. } = self.tools;
        let (partition, partitions) = (self.tenure.partition, log.partitions() as u32);
        let keys = StoredKeys { generation: self.generation, partition, partitions, from, below: self.below };
        let mut active = true;
        let added = add_stored::<K>(store, runtime, keys, seen, || {
            active = self.tenure.is_active();
            active
        });
        if !active {
            return Err(LoadError::Ended);
        }
        Ok(added?)
    }

    fn stored_rows(&self, below: i64) -> Result<StoredRows, StoreError> {
        let counting = self.tools.store.stored_rows::<K>(self.generation, self.tenure.partition, below);
        let (older, own) = self.tools.runtime.block_on(counting)?;
        Ok(StoredRows { older, own })
    }

    fn identity(&self) -> Identity {
        let (log, partition) = (&self.tools.log, self.tenure.partition);
        Identity {
            kind: K::NAME.to_owned(),
            database: self.tools.store.database().to_owned(),
            log: log.identity(),
            generation: self.generation,
            start: log.start_offsets.get(partition as usize).copied().unwrap_or(0),
            partition,
            partitions: log.partitions() as u32,
            lanes: K::KEY_LANES,
        }
    }

    fn refuse<T>(&self, reason: &str) -> Option<T> {
        let partition = self.tenure.partition;
        tracing::warn!(
            kind = K::NAME,
            partition,
            reason,
            "the cache of seen keys cannot be used, reading all keys from ClickHouse"
        );
        None
    }

    fn without_cache(&self, reason: &str) {
        let partition = self.tenure.partition;
        tracing::warn!(
            kind = K::NAME,
            partition,
            reason,
            "there is no cache of seen keys for now, they stay in memory"
        );
    }
}
