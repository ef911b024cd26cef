//! How a setting is read from what a source holds, and how it is shown again.
//!
//! A [`Rule`] knows what a setting may be: it turns a [`Raw`] value into the setting's type or says what it expected.
//! The environment and flags carry text alone, a file carries types; a rule takes both.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::Secret;

/// A value as a source gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// From the environment or a flag: text, whatever it stands for.
    Text(String),
    /// A TOML string.
    String(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Boolean(bool),
    /// A TOML array of strings.
    Strings(Vec<String>),
    /// Anything else in a TOML file, by its type's name.
    Other(&'static str),
}

impl Raw {
    /// What was found, for an error message, cut to a sane length.
    pub fn found(&self) -> String {
        match self {
            Raw::Text(text) | Raw::String(text) => {
                let shown: String = text.chars().take(60).collect();
                if shown.len() < text.len() { format!("{shown:?}...") } else { format!("{shown:?}") }
            }
            Raw::Integer(number) => number.to_string(),
            Raw::Boolean(value) => value.to_string(),
            Raw::Strings(_) => "an array".into(),
            Raw::Other(kind) => format!("a TOML {kind}"),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Raw::Text(text) | Raw::String(text) => Some(text),
            _ => None,
        }
    }
}

/// What a setting may be.
pub trait Rule {
    /// The setting's type.
    type Value;
    /// Reads it; `Err` holds a hint for the message (often empty).
    fn read(&self, raw: &Raw) -> Result<Self::Value, String>;
    /// What is allowed, to stand after "expected".
    fn expected(&self) -> String;
}

/// A whole number in a range, with its unit ("bytes", "ms"; "" for a plain count).
pub struct Whole(pub RangeInclusive<u64>, pub &'static str);

impl Rule for Whole {
    type Value = u64;

    fn read(&self, raw: &Raw) -> Result<u64, String> {
        let number = match raw {
            Raw::Integer(number) => u64::try_from(*number).ok(),
            Raw::Text(text) => whole(text),
            Raw::String(text) if whole(text).is_some() => return Err("write it without quotes".into()),
            _ => None,
        };
        match number {
            Some(number) if self.0.contains(&number) => Ok(number),
            Some(_) => Err(String::new()),
            None => Err(raw
                .text()
                .and_then(|text| with_unit(text, self.1))
                .map_or(String::new(), |number| format!("that is {number} {}", self.1))),
        }
    }

    fn expected(&self) -> String {
        let of = if self.1.is_empty() { String::new() } else { format!(" of {}", self.1) };
        format!("a whole number{of} from {} to {}", self.0.start(), self.0.end())
    }
}

/// The same for a setting of 32 bits.
pub struct Whole32(pub RangeInclusive<u64>, pub &'static str);

impl Rule for Whole32 {
    type Value = u32;

    fn read(&self, raw: &Raw) -> Result<u32, String> {
        Whole(self.0.clone(), self.1).read(raw).and_then(|number| u32::try_from(number).map_err(|_| String::new()))
    }

    fn expected(&self) -> String {
        Whole(self.0.clone(), self.1).expected()
    }
}

/// Reads `1000` or `1_000`.
fn whole(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    if !digits || text.starts_with('_') || text.ends_with('_') {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// What `32MiB` or `5s` comes to in `unit`: for the hint alone.
fn with_unit(text: &str, unit: &str) -> Option<u64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let (number, suffix) = (whole(&text[..at])?, text[at..].trim().to_ascii_lowercase());
    let factor = match (unit, suffix.as_str()) {
        ("bytes", "b") | ("ms", "ms") => 1,
        ("bytes", "k" | "kb" | "kib") => 1 << 10,
        ("bytes", "m" | "mb" | "mib") => 1 << 20,
        ("bytes", "g" | "gb" | "gib") => 1 << 30,
        ("ms", "s" | "sec") => 1000,
        ("ms", "m" | "min") => 60_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Text that satisfies a check; the first field says what is expected.
pub struct Text(pub &'static str, pub fn(&str) -> bool);

impl Rule for Text {
    type Value = String;

    fn read(&self, raw: &Raw) -> Result<String, String> {
        raw.text().filter(|text| (self.1)(text)).map(str::to_owned).ok_or_else(String::new)
    }

    fn expected(&self) -> String {
        self.0.into()
    }
}

/// The same where the setting may be left out.
pub struct Optional<R>(pub R);

impl<R: Rule> Rule for Optional<R> {
    type Value = Option<R::Value>;

    fn read(&self, raw: &Raw) -> Result<Self::Value, String> {
        match raw.text() {
            Some("") => Ok(None),
            _ => self.0.read(raw).map(Some),
        }
    }

    fn expected(&self) -> String {
        format!("{}, or \"\" for none", self.0.expected())
    }
}

/// The path of a file.
pub struct Path;

impl Rule for Path {
    type Value = PathBuf;

    fn read(&self, raw: &Raw) -> Result<PathBuf, String> {
        raw.text().filter(|text| !text.is_empty()).map(PathBuf::from).ok_or_else(String::new)
    }

    fn expected(&self) -> String {
        "the path of a file".into()
    }
}

/// The path of a folder.
pub struct Folder;

impl Rule for Folder {
    type Value = PathBuf;

    fn read(&self, raw: &Raw) -> Result<PathBuf, String> {
        Path.read(raw)
    }

    fn expected(&self) -> String {
        "the path of a folder".into()
    }
}

/// A secret's text.
pub struct Hidden;

impl Rule for Hidden {
    type Value = Secret;

    fn read(&self, raw: &Raw) -> Result<Secret, String> {
        raw.text().map(Secret::new).ok_or_else(String::new)
    }

    fn expected(&self) -> String {
        "text".into()
    }
}

/// An address to listen on.
pub struct Listen;

impl Rule for Listen {
    type Value = SocketAddr;

    fn read(&self, raw: &Raw) -> Result<SocketAddr, String> {
        let text = raw.text().ok_or_else(String::new)?;
        let text = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        text.parse().map_err(|_| String::new())
    }

    fn expected(&self) -> String {
        "an IP address and a port, such as 127.0.0.1:8000, 0.0.0.0:8000 or [::1]:8000".into()
    }
}

/// Kafka's bootstrap servers.
pub struct Brokers;

impl Rule for Brokers {
    type Value = String;

    fn read(&self, raw: &Raw) -> Result<String, String> {
        let joined = match raw {
            Raw::Strings(several) => several.join(","),
            _ => raw.text().ok_or_else(String::new)?.to_owned(),
        };
        let brokers: Vec<&str> = joined.split(',').map(str::trim).collect();
        if brokers.iter().all(|broker| host_and_port(broker)) { Ok(brokers.join(",")) } else { Err(String::new()) }
    }

    fn expected(&self) -> String {
        "HOST:PORT, or several of them separated by commas".into()
    }
}

/// Whether `text` is `HOST:PORT` with a port above 0; an IPv6 address stands in brackets.
pub fn host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    };
    host_valid && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// One of several words, each with what it stands for.
pub struct OneOf<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy> Rule for OneOf<T> {
    type Value = T;

    fn read(&self, raw: &Raw) -> Result<T, String> {
        let text = raw.text().ok_or_else(String::new)?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(String::new)
    }

    fn expected(&self) -> String {
        let mut expected = String::from("one of");
        for (at, (word, _)) in self.0.iter().enumerate() {
            let _ = write!(expected, "{} {word:?}", if at == 0 { "" } else { "," });
        }
        expected
    }
}

/// How a setting's value is written in TOML.
pub trait Show {
    /// As TOML; a secret as `"[secret]"`, an absent value as `""`.
    fn show(&self) -> String;
}

impl Show for u64 {
    fn show(&self) -> String {
        self.to_string()
    }
}
impl Show for u32 {
    fn show(&self) -> String {
        self.to_string()
    }
}
impl Show for String {
    fn show(&self) -> String {
        toml::Value::String(self.clone()).to_string()
    }
}
impl Show for SocketAddr {
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}
impl Show for Secret {
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}
impl Show for PathBuf {
    fn show(&self) -> String {
        self.display().to_string().show()
    }
}
impl<T: Show> Show for Option<T> {
    fn show(&self) -> String {
        self.as_ref().map_or_else(|| "\"\"".into(), Show::show)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.into())
    }

    #[test]
    fn whole_numbers() {
        let rule = Whole(10..=1_000, "ms");
        assert_eq!(rule.read(&text("10")), Ok(10));
        assert_eq!(rule.read(&text("1_000")), Ok(1_000));
        assert_eq!(rule.read(&Raw::Integer(1_000)), Ok(1_000));
        for bad in ["9", "1001", "", "_10", "10_", "-10", "+10", "1e2", "10.0", "99999999999999999999"] {
            assert_eq!(rule.read(&text(bad)), Err(String::new()), "{bad}");
        }
        assert_eq!(rule.read(&Raw::Integer(-10)), Err(String::new()));
        assert_eq!(rule.read(&Raw::String("10".into())), Err("write it without quotes".into()));
        assert_eq!(rule.read(&text("1s")), Err("that is 1000 ms".into()));
        assert_eq!(Whole(0..=9, "bytes").read(&text("32 MiB")), Err("that is 33554432 bytes".into()));
        assert_eq!(rule.expected(), "a whole number of ms from 10 to 1000");
    }

    #[test]
    fn addresses() {
        assert_eq!(Listen.read(&text("localhost:80")).unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(Listen.read(&text("[::]:80")).unwrap().to_string(), "[::]:80");
        for bad in ["8000", ":8000", "host:80", "127.0.0.1", "127.0.0.1:70000"] {
            assert!(Listen.read(&text(bad)).is_err(), "{bad}");
        }
        assert_eq!(Brokers.read(&text("a:1, [::1]:2")).unwrap(), "a:1,[::1]:2");
        assert_eq!(Brokers.read(&Raw::Strings(vec!["a:1".into(), "b:2".into()])).unwrap(), "a:1,b:2");
        for bad in ["", "a", "a:0", "a:1,", ":1", "a:b", "a b:1", "::1:2", "http://a:1"] {
            assert!(Brokers.read(&text(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn words() {
        let rule = OneOf(&[("a", 1), ("b", 2)]);
        assert_eq!(rule.read(&text("b")), Ok(2));
        assert!(rule.read(&text("B")).is_err());
        assert_eq!(rule.expected(), "one of \"a\", \"b\"");
    }
}
