//! Folders that one process, and one user within it, has at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// The file in a folder that is locked.
pub const LOCK: &str = "lock";
/// How long a folder is waited for: a process that was killed has it until its last thread comes back from the disk, and
/// another user in this process until it has given it back.
const WAIT: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// Takes a folder, which is made (0700) where it is missing, for as long as the file is held. `None` when somebody else has
/// it, at once.
pub fn take(folder: &Path) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(folder.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// As long as `take` brings `None`, asks it again, for 2 s at most and while `is_wanted`.
pub fn wait<T>(is_wanted: impl Fn() -> bool, take: impl Fn() -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    let until = Instant::now() + WAIT;
    loop {
        match take() {
            Ok(None) if Instant::now() < until && is_wanted() => std::thread::sleep(AGAIN),
            taken => return taken,
        }
    }
}
