//! CPU time: of this process, and of others on this machine.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// CPU time that this process has used.
pub fn own() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

/// Seconds that the processes of a folder's NAME.pid files and their descendants have used, by name.
pub fn of_pid_files(folder: &Path) -> Vec<(String, f64)> {
    let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut ticks: HashMap<u32, u64> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some((parent, used)) = stat(pid) else { continue };
        children.entry(parent).or_default().push(pid);
        ticks.insert(pid, used);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let pid = fs::read_to_string(&path).ok().and_then(|text| text.split_whitespace().next()?.parse::<u32>().ok());
        let Some(pid) = pid.filter(|_| path.extension().is_some_and(|end| end == "pid")) else { continue };
        let (mut todo, mut used) = (vec![pid], 0);
        while let Some(pid) = todo.pop() {
            used += ticks.get(&pid).copied().unwrap_or(0);
            todo.extend(children.remove(&pid).unwrap_or_default());
        }
        found.push((name, used as f64 / ticks_per_s));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// A process's parent, and the ticks that it has used.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything, so the fields are counted from its end.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some((fields.get(1)?.parse().ok()?, ticks(11)? + ticks(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_pid_files_are_found() {
        let folder = std::env::temp_dir().join(format!("millrace-load-cpu-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("me.pid"), format!("{} 0\n", std::process::id())).unwrap();
        fs::write(folder.join("other.txt"), "1").unwrap();
        let begin = own();
        while own() - begin < Duration::from_millis(30) {}
        let found = of_pid_files(&folder);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "me");
        assert!(found[0].1 >= 0.02, "{found:?}");
    }
}
