//! Who may know whom, read from the sources: what `ARCHITECTURE.md` promises to whoever adds a kind or changes a stage.
//!
//! Tests of a stage may use a kind to have events at all; they are not looked at.

use std::fs;
use std::path::{Path, PathBuf};

use crate::kinds::MIGRATIONS;

const ACCEPTING: [&str; 4] = ["door", "accept", "batch", "spool"];
const STORING: [&str; 2] = ["writer", "store"];
const OTHER_STAGES: [&str; 5] = ["log", "report", "observe", "run", "cli"];

/// The sources that are compiled into the program, each without the tests at its end.
fn sources() -> Vec<(PathBuf, String)> {
    fn gather(folder: &Path, sources: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            // Modules that are tests as a whole.
            if ["tests", "simulation", "dice", "architecture"].contains(&name) {
                continue;
            }
            if path.is_dir() {
                gather(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
                sources.push((path, text[..end].to_owned()));
            }
        }
    }
    let mut sources = Vec::new();
    gather(Path::new("src"), &mut sources);
    assert!(sources.len() > 100, "these are the sources");
    sources
}

/// The line of code that has these words, which may end in the middle of a path (`captcha::`), if there is one.
fn line_with<'t>(text: &'t str, words: &str) -> Option<&'t str> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let stands_alone = |line: &str, at: usize| {
        let (before, after) = (&line[..at], &line[at + words.len()..]);
        !(before.ends_with(in_name) || words.ends_with(in_name) && after.starts_with(in_name))
    };
    let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.find(|line| line.match_indices(words).any(|(at, _)| stands_alone(line, at)))
}

/// No file of some folders names any of these stages.
fn never_import(folders: &[&str], stages: &[&str]) {
    let within = |path: &Path| folders.iter().any(|folder| path.starts_with(Path::new("src").join(folder)));
    for (path, text) in sources().iter().filter(|(path, _)| within(path)) {
        for stage in stages {
            assert_eq!(line_with(text, &format!("crate::{stage}")), None, "{} imports {stage}", path.display());
        }
    }
}

#[test]
fn a_kind_is_named_by_its_folder_and_by_the_list_of_kinds_alone() {
    for (path, text) in sources() {
        for kind in MIGRATIONS {
            let own = Path::new("src/kinds").join(kind.kind);
            if path.starts_with(own) || path == Path::new("src/kinds/mod.rs") {
                continue;
            }
            let kind = kind.kind;
            for words in [format!("kinds::{kind}"), format!("{kind}::"), format!("\"{kind}\"")] {
                assert_eq!(line_with(&text, &words), None, "{} names a kind", path.display());
            }
        }
    }
}

#[test]
fn kinds_import_no_stage() {
    for stages in [&ACCEPTING[..], &STORING, &OTHER_STAGES] {
        never_import(&["kinds"], stages);
    }
}

#[test]
fn the_accepting_and_the_storing_side_meet_in_the_log_alone() {
    never_import(&ACCEPTING, &STORING);
    never_import(&STORING, &ACCEPTING);
}
