//! A cache through many tenures that end in every way, against what is stored.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::manifest::StoredRows;
use super::manifest::tests::identity;
use super::*;
use crate::dice::Dice;

const TINY: Sizes = Sizes { flush_keys: 40, fan_in: 3, memory_run_keys: 2_000, record_keys: 150 };
const LANES: u8 = 2;

/// A folder that is removed at the end.
struct Root(PathBuf);

impl Root {
    fn new() -> Root {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("millrace-seen-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Root(std::env::temp_dir().join(name))
    }

    fn lock(&self) -> Folder {
        Folder::lock(&self.0, "toy", 1).expect("the folder can be made").expect("nobody has it")
    }

    fn folder(&self) -> PathBuf {
        self.0.join("toy/1")
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            entries(&self.folder()).into_iter().filter(|path| !path.ends_with("lock")).collect();
        files.sort();
        files
    }
}

fn entries(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).expect("it is there").map(|entry| entry.expect("it can be read").path()).collect()
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is stored: one range for each offset.
#[derive(Default)]
struct Stored {
    ranges: Vec<Vec<Key>>,
    keys: HashSet<Key>,
}

impl Stored {
    fn next(&self) -> i64 {
        self.ranges.len() as i64
    }

    fn covered(&self, below: i64) -> Covered {
        let own = self.ranges[..below as usize].iter().map(|range| range.len() as u64).sum();
        Covered { below, rows: StoredRows { older: 0, own } }
    }

    /// What a tenure does at its start; also how many keys came from the cache.
    fn take_over(&self, root: &Root) -> (SeenKeys, usize) {
        let manifest = root.lock().manifest().ok().flatten();
        let usable = manifest.filter(|found| {
            found.fits(&identity(), self.next()).is_ok() && found.agrees(self.covered(found.below).rows).is_ok()
        });
        let opened = usable.and_then(|found| SeenKeys::open(root.lock(), found, TINY).ok());
        let (mut seen, from) = match opened {
            Some((seen, covered)) => (seen, covered.below),
            None => (SeenKeys::cached(root.lock(), identity(), TINY).expect("an empty cache"), 0),
        };
        let cached = seen.len();
        for key in self.ranges[from as usize..].iter().flatten() {
            assert!(seen.insert(*key), "{key:?} of offset {from} or later was in the cache");
        }
        seen.loaded(self.covered(self.next()));
        (seen, cached)
    }

    fn check(&self, seen: &mut SeenKeys) {
        assert_eq!(seen.len(), self.keys.len());
        let keys: Vec<Key> = self.keys.iter().copied().collect();
        assert!(seen.insert_all(keys.len(), |row| Some(keys[row])).iter().all(|new| !new));
    }

    /// A range is read: its new keys, as the set tells and as a plain one does.
    fn read(&self, seen: &mut SeenKeys, dice: &mut Dice) -> Vec<Key> {
        let rows: Vec<Key> = (0..dice.below(120))
            .map(|_| Key {
                lane: dice.below(LANES.into()) as u8,
                id: u128::from(dice.below(4_000) as u64).to_be_bytes(),
            })
            .collect();
        let mut keys = self.keys.clone();
        let expected: Vec<bool> = rows.iter().map(|key| keys.insert(*key)).collect();
        assert_eq!(seen.insert_all(rows.len(), |row| Some(rows[row])), expected);
        seen.reached(self.next(), self.next() + 1);
        rows.into_iter().zip(expected).filter(|(_, new)| *new).map(|(key, _)| key).collect()
    }

    fn finish(&mut self, seen: &mut SeenKeys, range: Vec<Key>) {
        self.keys.extend(&range);
        let new_events = range.len() as u64;
        self.ranges.push(range);
        seen.finished(self.next(), new_events);
    }
}

#[test]
fn whatever_ends_a_tenure_the_next_one_knows_what_is_stored() {
    let mut dice = Dice::new("whatever_ends_a_tenure_the_next_one_knows_what_is_stored");
    let (mut from_cache, mut closed) = (0, 0);
    for _ in 0..10 {
        let root = Root::new();
        let mut stored = Stored::default();
        let mut all_cached = false;
        for _ in 0..12 {
            let (mut seen, cached) = stored.take_over(&root);
            assert!(!all_cached || cached == stored.keys.len(), "{cached} of {} are in the cache", stored.keys.len());
            from_cache += cached;
            for _ in 0..dice.below(25) {
                let range = stored.read(&mut seen, &mut dice);
                stored.finish(&mut seen, range);
            }
            all_cached = dice.once_in(2);
            if dice.once_in(2) {
                // Read, and never stored.
                let range = stored.read(&mut seen, &mut dice);
                all_cached &= range.is_empty();
            } else {
                stored.check(&mut seen);
            }
            if all_cached {
                seen.close();
                closed += 1;
            }
        }
    }
    assert!(from_cache > 1_000 && closed > 10, "{from_cache} keys came from a cache, {closed} tenures were closed");
}

/// Damages a file in some way.
fn damage(path: &Path, dice: &mut Dice) {
    let len = fs::metadata(path).expect("it is there").len();
    let file = OpenOptions::new().write(true).open(path).expect("it can be written");
    match dice.below(4) {
        0 => fs::remove_file(path).expect("it can be removed"),
        1 => file.set_len(dice.below(len as usize + 1) as u64).expect("it can be cut"),
        2 => file.write_all_at(&[dice.any() as u8], len).expect("it can grow"),
        _ => file.write_all_at(&[dice.any() as u8], dice.below(len as usize) as u64).expect("it can be changed"),
    }
}

#[test]
fn a_damaged_cache_is_right_or_refused() {
    let mut dice = Dice::new("a_damaged_cache_is_right_or_refused");
    let mut refused = 0;
    for _ in 0..30 {
        let root = Root::new();
        let mut stored = Stored::default();
        for _ in 0..4 {
            let (mut seen, cached) = stored.take_over(&root);
            refused += usize::from(cached < stored.keys.len());
            stored.check(&mut seen);
            for _ in 0..1 + dice.below(10) {
                let range = stored.read(&mut seen, &mut dice);
                stored.finish(&mut seen, range);
            }
            seen.close();
            for _ in 0..dice.below(3) {
                let files = root.files();
                if !files.is_empty() {
                    let file = files[dice.below(files.len())].clone();
                    damage(&file, &mut dice);
                }
            }
        }
    }
    assert!(refused > 10, "{refused} were refused");
}

#[test]
fn files_of_another_time_are_refused() {
    // As after a folder was restored in part: each combination of an older and a newer state is one of them, or none.
    let mut dice = Dice::new("files_of_another_time_are_refused");
    for _ in 0..20 {
        let root = Root::new();
        let mut stored = Stored::default();
        let mut copies: Vec<Vec<(PathBuf, Vec<u8>)>> = Vec::new();
        for _ in 0..2 {
            let (mut seen, _) = stored.take_over(&root);
            for _ in 0..8 {
                let range = stored.read(&mut seen, &mut dice);
                stored.finish(&mut seen, range);
            }
            seen.close();
            copies.push(root.files().into_iter().map(|path| (path.clone(), fs::read(path).expect("read"))).collect());
        }
        for (path, bytes) in copies.into_iter().flatten() {
            if dice.once_in(2) {
                fs::write(path, bytes).expect("written");
            }
        }
        let (mut seen, _) = stored.take_over(&root);
        stored.check(&mut seen);
    }
}

#[test]
fn what_a_cut_short_tenure_left_over_is_removed() {
    let root = Root::new();
    let mut stored = Stored::default();
    let mut dice = Dice::new("what_a_cut_short_tenure_left_over_is_removed");
    for _ in 0..3 {
        let (mut seen, cached) = stored.take_over(&root);
        assert_eq!(cached, stored.keys.len());
        for _ in 0..10 {
            let range = stored.read(&mut seen, &mut dice);
            stored.finish(&mut seen, range);
        }
        seen.close();
        // Killed while a run and a manifest were written.
        fs::write(root.folder().join("0-999"), b"half a key").expect("written");
        fs::write(root.folder().join("manifest-new"), b"{\"format\"").expect("written");
    }
    let (seen, _) = stored.take_over(&root);
    seen.close();
    let manifest = root.lock().manifest().expect("it can be read").expect("it is there");
    let mut named: Vec<PathBuf> = manifest.lanes.iter().flatten().map(|run| root.folder().join(&run.name)).collect();
    named.push(root.folder().join("manifest"));
    named.sort();
    assert_eq!(root.files(), named);
}

#[test]
fn a_cache_that_is_lost_while_it_is_in_use_changes_no_answer() {
    let mut dice = Dice::new("a_cache_that_is_lost_while_it_is_in_use_changes_no_answer");
    let (root, gone) = (Root::new(), Root::new());
    let mut stored = Stored::default();
    let (mut seen, _) = stored.take_over(&root);
    for round in 0..60 {
        if round == 20 {
            fs::rename(&root.0, &gone.0).expect("moved away");
        }
        let range = stored.read(&mut seen, &mut dice);
        stored.finish(&mut seen, range);
    }
    assert!(seen.cache.is_none());
    stored.check(&mut seen);
    seen.close();
    let (mut seen, cached) = stored.take_over(&root);
    assert_eq!(cached, 0);
    stored.check(&mut seen);
}

#[test]
fn keys_that_are_not_known_to_be_stored_are_never_recorded() {
    let mut dice = Dice::new("keys_that_are_not_known_to_be_stored_are_never_recorded");
    let mut stored = Stored::default();
    let root = Root::new();
    let (mut seen, _) = stored.take_over(&root);
    let range = stored.read(&mut seen, &mut dice);
    stored.finish(&mut seen, range);
    // The end of another range than the one that was read.
    stored.read(&mut seen, &mut dice);
    seen.finished(stored.next() + 5, 1);
    assert!(seen.cache.is_none());
    seen.close();
    let (mut seen, _) = stored.take_over(&root);
    stored.check(&mut seen);
    // Keys that were added after it.
    let range = stored.read(&mut seen, &mut dice);
    seen.insert(Key { lane: 0, id: [9; 16] });
    stored.finish(&mut seen, range);
    assert!(seen.cache.is_none());
}

#[test]
fn a_folder_has_one_writer() {
    let root = Root::new();
    let held = root.lock();
    assert!(Folder::lock(&root.0, "toy", 1).expect("no error").is_none());
    assert!(Folder::lock(&root.0, "toy", 7).expect("no error").is_some());
    assert!(Folder::lock(&root.0, "other", 1).expect("no error").is_some());
    folder::remove_obsolete(&root.0, "toy", 1).expect("no error");
    assert_eq!(entries(&root.0.join("toy")), [root.folder()]);
    drop(held);
    folder::remove_obsolete(&root.0, "toy", 2).expect("no error");
    assert_eq!(entries(&root.0.join("toy")).len(), 1);
    folder::remove_obsolete(&root.0, "toy", 1).expect("no error");
    assert!(entries(&root.0.join("toy")).is_empty());
}
