//! The migrations of every kind, embedded: numbered from 1, forward only, in `sql/KIND/NUMBER_NAME.sql`.
//!
//! A migration that has been released never changes (its checksum is recorded where it was applied): what must change
//! is changed by a further one. Each statement must have no effect when it is run again (`IF NOT EXISTS` and the like),
//! because a migration that was cut short is run again from its beginning.

/// One file of statements, each ended by `;`.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// From 1, without gaps.
    pub number: u32,
    /// What it makes.
    pub name: &'static str,
    /// The file's text; `{database}` and `{replicated}` stand for what the configuration says.
    pub sql: &'static str,
}

/// The migrations of one kind.
#[derive(Debug, Clone, Copy)]
pub struct KindMigrations {
    /// The kind's name, which is also its folder's under `sql`.
    pub kind: &'static str,
    /// In order.
    pub migrations: &'static [Migration],
}

/// A migration out of its file: the kind, the number and the name make the path.
macro_rules! migration {
    ($kind:literal, $number:literal, $name:literal) => {
        $crate::kinds::migrations::Migration {
            number: $number,
            name: $name,
            sql: include_str!(concat!("../../../sql/", $kind, "/000", $number, "_", $name, ".sql")),
        }
    };
}
pub(super) use migration;

/// As `migration`, of what all kinds share.
macro_rules! shared_migration {
    ($number:literal, $name:literal) => {
        $crate::kinds::migrations::Migration {
            number: $number,
            name: $name,
            sql: include_str!(concat!("../../sql/shared/000", $number, "_", $name, ".sql")),
        }
    };
}
pub(super) use shared_migration;

impl KindMigrations {
    /// The file of one of its migrations, for messages.
    pub fn file(&self, migration: &Migration) -> String {
        format!("sql/{}/{:04}_{}.sql", self.kind, migration.number, migration.name)
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::ALL_MIGRATIONS;

    #[test]
    fn numbers_have_no_gaps_and_every_file_is_registered() {
        for kind in ALL_MIGRATIONS {
            let mut files: Vec<String> = std::fs::read_dir(format!("sql/{}", kind.kind))
                .unwrap()
                .map(|file| file.unwrap().path().display().to_string())
                .collect();
            files.sort();
            let registered: Vec<String> = kind.migrations.iter().map(|migration| kind.file(migration)).collect();
            assert_eq!(files, registered);
            for (at, migration) in kind.migrations.iter().enumerate() {
                assert_eq!(migration.number as usize, at + 1);
                assert_eq!(std::fs::read_to_string(kind.file(migration)).unwrap(), migration.sql);
            }
        }
    }
}
