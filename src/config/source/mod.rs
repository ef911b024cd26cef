//! Where settings come from: a file, the environment, flags, in this order; the last word counts.
//!
//! In: the text of a TOML file, variables, flags. Out: a valid [`Config`] with the origin of each value, or every
//! problem found, each with the setting, its place, what was found and what is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::settings::variable;
use super::value::Raw;
use super::{Config, SETTINGS, Secret, Setting, limits, nearest};

/// Variables that begin like settings and are none.
const OTHER_VARIABLES: [&str; 1] = ["MILLRACE_CONFIG"];
/// A password's file is a line, not a disk.
const PASSWORD_FILE_BYTES_MAX: u64 = 64 * limits::KIB;

/// What to read settings from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Variables of the environment; those that do not begin with `MILLRACE_` are ignored.
    pub variables: Vec<(String, String)>,
    /// Settings by flags: the flag as it was written, the setting's key, its value.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    /// The process's own environment, with `file` or, without one, the file that `MILLRACE_CONFIG` names.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String, String)>) -> Sources {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .filter(|(name, _)| name.starts_with("MILLRACE_"))
            .collect();
        let named = variables.iter().find(|(name, value)| name == "MILLRACE_CONFIG" && !value.is_empty());
        let file = file.or_else(|| named.map(|(_, path)| PathBuf::from(path)));
        Sources { file, variables, flags }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    #[default]
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// A variable.
    Variable(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, with the setting's name.
    pub message: String,
}

/// Everything that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let line_end = if at == 0 { "" } else { "\n" };
            match &problem.origin {
                Origin::Default => write!(f, "{line_end}{}", problem.message)?,
                origin => write!(f, "{line_end}{origin}: {}", problem.message)?,
            }
        }
        Ok(())
    }
}

/// A configuration and where it came from.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What is in effect.
    pub config: Config,
    /// The file that was read.
    pub file: Option<PathBuf>,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where a setting's value came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or_default()
    }
}

/// Reads and checks the configuration.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut loading = Loading::default();
    if let Some(path) = &sources.file {
        match std::fs::read_to_string(path) {
            Ok(text) => loading.file(path, &text),
            Err(error) => loading.problem(Origin::Default, format!("cannot read the file {}: {error}", path.display())),
        }
        loading.loaded.file = Some(path.clone());
    }
    loading.variables(&sources.variables);
    for (flag, key, value) in &sources.flags {
        loading.flag(flag, key, value);
    }
    loading.password();
    if loading.problems.is_empty() {
        loading.relations();
    }
    if loading.problems.is_empty() { Ok(loading.loaded) } else { Err(ConfigError(loading.problems)) }
}

#[derive(Default)]
struct Loading {
    loaded: Loaded,
    problems: Vec<Problem>,
}

impl Loading {
    fn problem(&mut self, origin: Origin, message: String) {
        self.problems.push(Problem { origin, message });
    }

    fn file(&mut self, path: &Path, text: &str) {
        let line_of = |at: usize| 1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let line = error.span().map_or(1, |span| line_of(span.start));
                let message = format!("this is not TOML: {}", error.message());
                return self.problem(Origin::File(path.to_owned(), line), message);
            }
        };
        let mut values = Vec::new();
        flatten("", &table, &mut values);
        values.sort_by_key(|(_, at, _)| *at);
        for (key, at, raw) in values {
            self.set(&key, &raw, Origin::File(path.to_owned(), line_of(at)));
        }
    }

    fn variables(&mut self, variables: &[(String, String)]) {
        let mut variables = variables.to_vec();
        variables.sort();
        for (name, value) in &variables {
            if !name.starts_with("MILLRACE_") || OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            let key = match name.strip_prefix("MILLRACE_KAFKA_OPTIONS_") {
                Some(option) => format!("kafka.options.{}", option.replace('_', ".").to_ascii_lowercase()),
                None => match SETTINGS.iter().find(|setting| setting.variable() == *name) {
                    Some(setting) => setting.key.to_owned(),
                    None => {
                        let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
                        let nearest = nearest(name, known.iter().map(String::as_str)).unwrap_or_default();
                        self.problem(origin, format!("no such setting: the nearest known variable is {nearest}"));
                        continue;
                    }
                },
            };
            self.set(&key, &Raw::Text(value.clone()), origin);
        }
    }

    fn flag(&mut self, flag: &str, key: &str, value: &str) {
        let origin = Origin::Flag(flag.to_owned());
        let secret = SETTINGS.iter().any(|setting| setting.secret && setting.key == key);
        if secret || key.strip_prefix("kafka.options.").is_some_and(super::kafka_options::sensitive) {
            let message = format!(
                "{key}: a flag can be read by every user of this machine: use the variable {}, or a file",
                variable(key)
            );
            return self.problem(origin, message);
        }
        self.set(key, &Raw::Text(value.to_owned()), origin);
    }

    fn set(&mut self, key: &str, raw: &Raw, origin: Origin) {
        if let Some(option) = key.strip_prefix("kafka.options.") {
            match self.loaded.config.kafka.options.set(option, raw) {
                Ok(()) => drop(self.loaded.origins.insert(key.to_owned(), origin)),
                Err(message) => self.problem(origin, format!("{key}: {message}")),
            }
            return;
        }
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let nearest = nearest(key, SETTINGS.iter().map(|setting| setting.key)).unwrap_or_default();
            return self.problem(origin, format!("{key}: no such setting: the nearest known name is {nearest}"));
        };
        match (setting.read)(&mut self.loaded.config, raw) {
            Ok(()) => drop(self.loaded.origins.insert(key.to_owned(), origin)),
            Err(hint) => {
                // A password in an address is found by its @, and not shown.
                let masked = setting.secret || raw.found().contains('@');
                let found = if masked { "[secret]".to_owned() } else { raw.found() };
                let hint = if hint.is_empty() { hint } else { format!(" ({hint})") };
                self.problem(origin, format!("{key}: expected {}, found {found}{hint}", (setting.expected)()));
            }
        }
    }

    /// Settles between `clickhouse.password` and its file: the stronger source wins, two of one strength contradict.
    fn password(&mut self) {
        let strength = |origin: &Origin| match origin {
            Origin::Default => 0,
            Origin::File(..) => 1,
            Origin::Variable(_) => 2,
            Origin::Flag(_) => 3,
        };
        let Some(path) = self.loaded.config.clickhouse.password_file.clone() else { return };
        let direct = self.loaded.origin("clickhouse.password");
        let by_file = self.loaded.origin("clickhouse.password_file");
        if strength(&direct) > strength(&by_file) {
            self.loaded.config.clickhouse.password_file = None;
            return;
        }
        if strength(&direct) == strength(&by_file) {
            let message = "clickhouse.password_file and clickhouse.password are both set: set one of them";
            return self.problem(by_file, message.into());
        }
        match read_bounded(&path) {
            Ok(text) => {
                let password = text.strip_suffix('\n').map_or(text.as_str(), |line| line.trim_end_matches('\r'));
                self.loaded.config.clickhouse.password = Secret::new(password);
            }
            Err(error) => {
                let message = format!("clickhouse.password_file: cannot read {}: {error}", path.display());
                self.problem(by_file, message);
            }
        }
    }

    fn relations(&mut self) {
        for violation in limits::violations(&self.loaded.config) {
            let mut named = Vec::new();
            for key in &violation.keys {
                let value = SETTINGS.iter().find(|s| s.key == *key).map(|s| (s.show)(&self.loaded.config));
                named.push(format!("{key} is {} ({})", value.unwrap_or_default(), self.loaded.origin(key)));
            }
            self.problem(Origin::Default, format!("{}: {}", named.join(", "), violation.rule));
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(PASSWORD_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Every value of a table by its dotted key, with where its key stands. A table that holds nothing counts as a value,
/// so that an unknown one is seen.
fn flatten(prefix: &str, table: &DeTable<'_>, out: &mut Vec<(String, usize, Raw)>) {
    let is_section = |key: &str| {
        let within = |setting: &Setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        key == "kafka.options" || SETTINGS.iter().any(within)
    };
    for (name, value) in table {
        let key = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten(&key, inner, out),
            DeValue::Table(_) if is_section(&key) => {}
            value => out.push((key, name.span().start, raw_of(value))),
        }
    }
}

fn raw_of(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::String(text.to_string()),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Integer(number) => {
            let parsed = i64::from_str_radix(&number.as_str().replace('_', ""), number.radix());
            parsed.map_or(Raw::Other("integer that is too large"), Raw::Integer)
        }
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> = items
                .iter()
                .map(|item| match item.get_ref() {
                    DeValue::String(text) => Some(text.to_string()),
                    _ => None,
                })
                .collect();
            texts.map_or(Raw::Other("array"), Raw::Strings)
        }
        other => Raw::Other(other.type_str()),
    }
}

#[cfg(test)]
mod tests;
