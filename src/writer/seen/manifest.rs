//! What a cache holds, as the small file in its folder says: of which partition, up to where, and in which files.
//!
//! One line of JSON and one with its checksum, replaced as a whole. A manifest that is not exactly what was written
//! is none.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

/// The version of everything in the folder. Another one is refused.
const FORMAT: u32 = 1;

/// Whose keys a cache holds. All of it must be the same for the keys to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The kind of events.
    pub kind: String,
    /// The database that they are stored in.
    pub database: String,
    /// The log: cluster, topic and topic id.
    pub log: String,
    /// Its generation.
    pub generation: u32,
    /// The first offset of the partition in this generation.
    pub start: i64,
    /// The partition.
    pub partition: u32,
    /// How many partitions there are: that decides which keys of older generations belong to this one.
    pub partitions: u32,
    /// How many lanes the keys have.
    pub lanes: u8,
}

/// How many events are stored: what tells whether the store still holds what a cache was made of.
///
/// Offsets name the same events for ever, and which of them are new follows from the log. So what is stored below an
/// offset can be less than it was, but never as much and something else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredRows {
    /// Of all older generations, in every partition.
    pub older: u64,
    /// Of this generation, in the partition, below an offset.
    pub own: u64,
}

/// What a cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Whose keys.
    pub identity: Identity,
    /// All keys stored below this offset are in the files, and no others.
    pub below: i64,
    /// The events that these are the keys of.
    pub rows: StoredRows,
    /// What the permutation follows from.
    #[serde(with = "hex")]
    pub secret: u128,
    /// The files of each lane.
    pub lanes: Vec<Vec<RunFile>>,
}

/// A run in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Its name in the folder.
    pub name: String,
    /// How many keys it has.
    pub keys: u64,
    /// XXH3 (128 bits) of all of it.
    #[serde(with = "hex")]
    pub checksum: u128,
}

impl Manifest {
    /// A manifest of the format that this program writes.
    pub fn new(identity: Identity, below: i64, rows: StoredRows, secret: u128, lanes: Vec<Vec<RunFile>>) -> Manifest {
        Manifest { format: FORMAT, identity, below, rows, secret, lanes }
    }

    /// Whether it may be used for a partition that is stored up to, and without, `below`; the error says why not.
    ///
    /// One that is ahead must never be: it would have events dropped that are not stored.
    pub fn fits(&self, identity: &Identity, below: i64) -> Result<(), String> {
        if self.identity != *identity {
            return Err(format!("it is that of {:?}, and this is {identity:?}", self.identity));
        }
        if self.below > below {
            return Err(format!("it is ahead: it has the keys below offset {}, and {below} is next", self.below));
        }
        Ok(())
    }

    /// Whether the events that it has the keys of are still stored, by their number as it is found now; the error
    /// says why not.
    pub fn agrees(&self, found: StoredRows) -> Result<(), String> {
        if self.rows != found {
            return Err(format!(
                "it was made of {:?}, and stored below offset {} are {found:?}",
                self.rows, self.below
            ));
        }
        Ok(())
    }

    /// Its text.
    pub fn text(&self) -> String {
        // Numbers and text always have a JSON form.
        let json = serde_json::to_string(self).unwrap_or_default();
        let checksum = xxh3_128(json.as_bytes());
        format!("{json}\n{checksum:032x}\n")
    }

    /// Reads its text; the error says what is wrong with it.
    pub fn read(text: &str) -> Result<Manifest, String> {
        let (json, rest) = text.split_once('\n').ok_or("it was cut short")?;
        if rest != format!("{:032x}\n", xxh3_128(json.as_bytes())) {
            return Err("its checksum is wrong".into());
        }
        let manifest: Manifest = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("it has format {}, and this program reads {FORMAT}", manifest.format));
        }
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if manifest.lanes.len() != usize::from(manifest.identity.lanes)
            || manifest.lanes.iter().flatten().any(|run| !plain(&run.name) || run.keys == 0)
        {
            return Err("it contradicts itself".into());
        }
        Ok(manifest)
    }
}

/// 128 bits as text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn identity() -> Identity {
        Identity {
            kind: "toy".into(),
            database: "db".into(),
            log: "cluster/topic/id".into(),
            generation: 2,
            start: 5,
            partition: 1,
            partitions: 4,
            lanes: 2,
        }
    }

    #[test]
    fn it_is_read_as_it_was_written_or_not_at_all() {
        let run = |name: &str| RunFile { name: name.into(), keys: 3, checksum: u128::MAX - 7 };
        let rows = StoredRows { older: 1, own: 9 };
        let manifest = Manifest::new(identity(), 70, rows, 3, vec![vec![run("0-1"), run("0-2")], vec![]]);
        let text = manifest.text();
        assert_eq!(Manifest::read(&text), Ok(manifest.clone()));
        for at in 0..text.len() {
            assert!(Manifest::read(&text[..at]).is_err(), "{at}");
            let mut other = text.clone().into_bytes();
            other[at] ^= 1;
            let other = String::from_utf8(other).expect("ASCII");
            assert!(Manifest::read(&other).is_err(), "{other}");
        }
        assert_eq!(manifest.fits(&identity(), 70), Ok(()));
        assert_eq!(manifest.agrees(rows), Ok(()));
        let later = Manifest { format: 2, ..manifest.clone() };
        assert_eq!(Manifest::read(&later.text()), Err("it has format 2, and this program reads 1".into()));
        let elsewhere = Manifest { lanes: vec![vec![run("../x")], vec![]], ..manifest };
        assert!(Manifest::read(&elsewhere.text()).is_err());
    }

    #[test]
    fn one_that_is_ahead_or_of_something_else_is_refused() {
        let rows = StoredRows { older: 1, own: 9 };
        let manifest = Manifest::new(identity(), 70, rows, 3, vec![vec![], vec![]]);
        assert_eq!(manifest.fits(&identity(), 71), Ok(()));
        let ahead = manifest.fits(&identity(), 69).expect_err("it is ahead");
        assert!(ahead.contains("ahead") && ahead.contains("70") && ahead.contains("69"), "{ahead}");
        let others = [
            Identity { kind: "other".into(), ..identity() },
            Identity { database: "other".into(), ..identity() },
            Identity { log: "other".into(), ..identity() },
            Identity { generation: 1, ..identity() },
            Identity { start: 4, ..identity() },
            Identity { partition: 2, ..identity() },
            Identity { partitions: 5, ..identity() },
            Identity { lanes: 1, ..identity() },
        ];
        for other in others {
            assert!(manifest.fits(&other, 70).is_err(), "{other:?}");
        }
        for found in [StoredRows { older: 0, ..rows }, StoredRows { own: 8, ..rows }, StoredRows { own: 10, ..rows }] {
            assert!(manifest.agrees(found).is_err(), "{found:?}");
        }
    }
}
