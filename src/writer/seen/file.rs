//! Runs in files: written once, mapped, and checked in full when they are opened again.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use memmap2::Mmap;
use xxhash_rust::xxh3::Xxh3;

use super::filter::Filter;
use super::folder::{self, Folder};
use super::manifest::RunFile;
use super::merge::merge;
use super::permutation::{Value, number};
use super::run::{DirectoryBuilder, FilePlace, Place, Run};

/// Keys that are read at once: 256 KiB.
const PIECE: usize = 1 << 14;

/// Makes one run, in a file of that name, of several; `go_on` is asked now and then, and ends it with
/// [`ErrorKind::Interrupted`]. What cannot be finished is removed. The file is not yet on disk: see
/// [`FilePlace::sync`].
pub fn write(folder: &Folder, name: &str, runs: &[Arc<Run>], go_on: impl Fn() -> bool) -> io::Result<Run> {
    let written = write_whole(folder, name, runs, go_on);
    if written.is_err() {
        // Left over, it is removed when the cache is opened next.
        let _ = folder::remove(&folder.file(name));
    }
    written
}

fn write_whole(folder: &Folder, name: &str, runs: &[Arc<Run>], go_on: impl Fn() -> bool) -> io::Result<Run> {
    let keys = runs.iter().map(|run| run.len()).sum();
    let mut file = folder.create(name)?;
    let mut checksum = Xxh3::new();
    let mut directory = DirectoryBuilder::new(keys);
    merge(runs, |slice| {
        if !go_on() {
            return Err(ErrorKind::Interrupted.into());
        }
        checksum.update(slice.as_flattened());
        slice.iter().for_each(|value| directory.push(number(value)));
        file.write_all(slice.as_flattened())
    })?;
    let place = map(file, RunFile { name: name.to_owned(), keys: keys as u64, checksum: checksum.digest128() }, false)?;
    Ok(Run::of(place, directory.finish(), keys))
}

/// Opens a run and puts its keys into the filter. All of it is read, and it must be exactly what was written: any
/// difference is [`ErrorKind::InvalidData`].
pub fn open(folder: &Folder, entry: &RunFile, filter: &mut Filter) -> io::Result<Run> {
    let bad = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("the file {} {what}", entry.name));
    let mut file = File::open(folder.file(&entry.name))?;
    let bytes = file.metadata()?.len();
    let keys = u32::try_from(entry.keys).map_err(|_| bad("is too long"))? as usize;
    if bytes != (keys * size_of::<Value>()) as u64 {
        return Err(bad("does not have the length that it was written with"));
    }
    let mut checksum = Xxh3::new();
    let mut directory = DirectoryBuilder::new(keys);
    let mut piece = vec![[0; 16]; PIECE.min(keys)];
    let mut last = None;
    for begin in (0..keys).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(keys - begin)];
        file.read_exact(piece.as_flattened_mut())?;
        checksum.update(piece.as_flattened());
        for value in piece.iter() {
            if last.is_some_and(|last| last >= number(value)) {
                return Err(bad("is not in order"));
            }
            last = Some(number(value));
            directory.push(number(value));
        }
        filter.insert_all(piece, |_, _, _| {});
    }
    if checksum.digest128() != entry.checksum {
        return Err(bad("is not what was written: its checksum is another"));
    }
    Ok(Run::of(map(file, entry.clone(), true)?, directory.finish(), keys))
}

fn map(file: File, entry: RunFile, on_disk: bool) -> io::Result<Place> {
    // SAFETY: nothing changes or shortens the file while it is mapped. This program writes it once, before it is
    // mapped; the folder is locked against other writers and closed to other users; and a file that is removed lives
    // on until it is unmapped. Whoever acts as this user could do it still, as they could write into this process.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Place::File(FilePlace::new(map, file, entry, on_disk)))
}
