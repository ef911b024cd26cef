//! The configuration in effect, as TOML, with where each value came from.

use std::fmt::Write as _;

use super::source::{Loaded, Origin};
use super::{SETTINGS, Setting};

/// Writes the whole configuration as a TOML file that means the same but for secrets, which are masked and commented
/// out; what is not a default says in a comment where it came from.
pub fn show(loaded: &Loaded) -> String {
    let mut out = String::new();
    let mut section = "";
    for setting in SETTINGS {
        let (of, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if of != section {
            if section == "kafka" {
                show_options(loaded, &mut out);
            }
            let _ = writeln!(out, "{}[{of}]", if section.is_empty() { "" } else { "\n" });
            section = of;
        }
        let value = (setting.show)(&loaded.config);
        let hidden = hidden(&value);
        let _ = writeln!(out, "{hidden}{name} = {value}{}", comment(loaded, setting));
    }
    out
}

/// What makes a comment of a masked value, so that nobody takes the mask for the secret.
fn hidden(value: &str) -> &'static str {
    if value == "\"[secret]\"" { "#" } else { "" }
}

fn comment(loaded: &Loaded, setting: &Setting) -> String {
    match loaded.origin(setting.key) {
        Origin::Default => String::new(),
        origin => format!("  # {origin}"),
    }
}

fn show_options(loaded: &Loaded, out: &mut String) {
    let mut options = loaded.config.kafka.options.show().peekable();
    if options.peek().is_some() {
        out.push_str("\n[kafka.options]\n");
    }
    for (name, value) in options {
        let origin = loaded.origin(&format!("kafka.options.{name}"));
        let hidden = hidden(&value);
        let _ = writeln!(out, "{hidden}{name:?} = {value}  # {origin}");
    }
}
