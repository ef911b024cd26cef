//! The folder of one partition's cache: `ROOT/KIND/PARTITION`, for one writer at a time.
//!
//! In it lie the `manifest`, the files that it names, and `lock`. Whatever the manifest does not name is left over
//! from a run of this program that was cut short. The folders are this user's alone (0700), as is everything in them:
//! nobody else may change or shorten a file that is mapped.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use crate::folder_lock::{self, LOCK};

const MANIFEST: &str = "manifest";
const NEW_MANIFEST: &str = "manifest-new";
/// A manifest has about 100 bytes for each run, of which a lane has some dozens.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// A folder that no other writer uses, in this process or another one, as long as this is held.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes the folder of a partition; `None` when another writer has it.
    pub fn lock(root: &Path, kind: &str, partition: u32) -> io::Result<Option<Folder>> {
        Folder::take(root.join(kind).join(partition.to_string()))
    }

    fn take(path: PathBuf) -> io::Result<Option<Folder>> {
        Ok(folder_lock::take(&path)?.map(|lock| Folder { path, _lock: lock }))
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a file in it, which must not be there.
    pub fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.file(name))
    }

    /// The manifest; `None` where there is none. The error says why what is there cannot be used.
    pub fn manifest(&self) -> Result<Option<Manifest>, String> {
        let mut text = String::new();
        let read =
            File::open(self.file(MANIFEST)).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => Manifest::read(&text).map(Some).map_err(|reason| format!("the manifest cannot be read: {reason}")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("the manifest cannot be read: {error}")),
        }
    }

    /// Puts a manifest in the place of the last one. The files that it names are on disk before it is, so that whatever
    /// ends this program or this machine, a manifest that is found is a whole one.
    pub fn record(&self, manifest: &Manifest) -> io::Result<()> {
        let new = self.file(NEW_MANIFEST);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(manifest.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.file(MANIFEST))?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes everything that a manifest does not name, and without one the manifest too, first of all.
    pub fn clear(&self, manifest: Option<&Manifest>) -> io::Result<()> {
        let mut keep: HashSet<&str> = [LOCK].into();
        match manifest {
            Some(manifest) => {
                keep.insert(MANIFEST);
                keep.extend(manifest.lanes.iter().flatten().map(|run| run.name.as_str()));
            }
            None => remove(&self.file(MANIFEST))?,
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a file, where it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the folders of partitions that a kind's log does not have any more, where no writer uses them.
pub fn remove_obsolete(root: &Path, kind: &str, partitions: u32) -> io::Result<()> {
    for entry in fs::read_dir(root.join(kind))? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if number.is_some_and(|number| number >= partitions)
            && let Some(_locked) = Folder::take(entry.path())?
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
