//! What `millrace check` says of the folders of this machine that the settings name.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::check::{Finding, State, finding};
use crate::config::Config;
use crate::spool;

/// One line for each folder.
pub fn look(config: &Config) -> Vec<Finding> {
    let spool = config.spool.dir.as_deref().map(|dir| look_at_spool(dir, config.spool.bytes_max));
    let cache = config.writer.cache_dir.as_deref().map(|dir| match writable(dir) {
        Ok(()) => finding(State::Ok, "cache", format!("{} can be written", dir.display())),
        Err(reason) => finding(State::Fail, "cache", format!("writer.cache_dir {reason}")),
    });
    [spool, cache].into_iter().flatten().collect()
}

fn look_at_spool(dir: &Path, bytes_max: u64) -> Finding {
    if let Err(reason) = writable(dir) {
        return finding(State::Fail, "spool", format!("spool.dir {reason}"));
    }
    let path = dir.display();
    match spool::look(dir) {
        Ok(found) if found.in_use => {
            finding(State::Ok, "spool", format!("{path} is in use by a millrace that is running"))
        }
        Ok(found) if found.bytes > 0 => {
            let text = format!(
                "{path} holds {} bytes of events that are not in Kafka yet: millrace sends them when it starts",
                found.bytes
            );
            finding(State::Warn, "spool", text)
        }
        Ok(_) => finding(State::Ok, "spool", format!("{path} is empty, with room for {bytes_max} bytes")),
        Err(error) => finding(State::Fail, "spool", format!("spool.dir {path} cannot be read ({error})")),
    }
}

/// Whether a folder can be written, or made. The error begins with its path.
fn writable(dir: &Path) -> Result<(), String> {
    let Some(nearest) = dir.ancestors().find(|path| path.as_os_str().is_empty() || path.exists()) else {
        return Ok(());
    };
    let nearest = if nearest.as_os_str().is_empty() { Path::new(".") } else { nearest };
    let refused = |why: &str| {
        Err(format!("{}: {} {why}: name a folder that this user can write", dir.display(), nearest.display()))
    };
    if !nearest.is_dir() {
        return refused("is not a folder");
    }
    let path = CString::new(nearest.as_os_str().as_bytes()).map_err(|_| "holds a zero byte".to_owned())?;
    // SAFETY: the path is a C string that lives as long as the call.
    let may = unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } == 0;
    if may { Ok(()) } else { refused("cannot be written by this user") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_can_be_used_or_made() {
        let tmp = std::env::temp_dir();
        assert_eq!(writable(&tmp), Ok(()));
        assert_eq!(writable(&tmp.join("none/of/these")), Ok(()));
        for bad in ["/etc/hostname/below", "Cargo.toml"] {
            let reason = writable(Path::new(bad)).unwrap_err();
            assert!(reason.starts_with(bad), "{reason}");
        }
    }
}
