//! A lock in ClickHouse, for what must not be done by two at once (migrations).
//!
//! ClickHouse has no transactions, but `CREATE TABLE` is atomic: of several that create one name at once exactly one
//! succeeds. The lock is a row of tables `schema_migrations_lock_N`; the holder is who created the one with the highest
//! N, until it says in the table's comment that it has let go, or until its lease runs out by the server's clock.
//!
//! Why two never hold it: to take it one must create table N+1 after seeing that N is the highest and is free. The
//! creation is atomic, so one of all who saw this succeeds, and it looks again afterwards: if a higher table exists by
//! then (it saw an old state, and N+1 had been made and dropped meanwhile) it drops its own and begins again. The highest
//! table is never dropped, only lower ones are, so "the highest" never falls back. A holder whose lease ran out is not
//! stopped by that; it stops itself: [`Lock::holds`] is asked before each statement, and a statement is bounded by less
//! than what is left of the lease. What could still slip through (a process that is frozen between the question and the
//! sending) meets statements that have no effect when they are repeated.

use std::time::{Duration, Instant};

use clickhouse::Row;
use serde::{Deserialize, Serialize};

use super::client::Store;
use super::error::StoreError;

const PREFIX: &str = "schema_migrations_lock_";
/// The lease: some statements of 10 s each, and a margin.
pub const LEASE: Duration = Duration::from_secs(120);
/// No statement may take longer than this under the lock.
pub const STATEMENT_MAX: Duration = Duration::from_secs(30);
/// Between two looks at a lock that another holds.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The lock, held.
#[derive(Debug)]
pub struct Lock {
    number: u64,
    since: Instant,
}

/// What a lock's comment says.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    /// For people.
    holder: String,
    /// The process and the machine (its boot and its space of process ids): who can see that it is gone need not wait.
    process: u32,
    machine: String,
    until_s: u64,
    released: bool,
}

impl Holder {
    fn this() -> Holder {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let process = std::process::id();
        Holder {
            holder: format!("process {process} on {}", read("/proc/sys/kernel/hostname")),
            process,
            machine: format!("{} {}", read("/proc/sys/kernel/random/boot_id"), space.display()),
            until_s: 0,
            released: false,
        }
    }

    /// Whether it still holds the lock at `now_s` of the server's clock.
    fn holds(&self, now_s: u64) -> bool {
        let here = Holder::this().machine == self.machine;
        let gone = here && !std::path::Path::new(&format!("/proc/{}", self.process)).exists();
        !self.released && self.until_s > now_s && !gone
    }
}

#[derive(Debug, Row, Deserialize)]
struct Found {
    name: String,
    comment: String,
    now_s: u64,
}

#[derive(Debug)]
struct Newest {
    number: u64,
    // None when it is free.
    holder: Option<String>,
    now_s: u64,
}

impl Lock {
    /// Waits for the lock, at most the lease and a little more. `told` is called once with the holder's name when it
    /// has to wait.
    pub async fn take(store: &Store, mut told: impl FnMut(&str)) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + LEASE + STATEMENT_MAX;
        let mut waiting = false;
        loop {
            let newest = newest(store).await?;
            match &newest.holder {
                None => {
                    if let Some(lock) = Lock::create(store, &newest).await? {
                        return Ok(lock);
                    }
                }
                Some(other) if !waiting => {
                    waiting = true;
                    told(other);
                }
                Some(_) => {}
            }
            if Instant::now() > deadline {
                return Err(StoreError::TimedOut(LEASE + STATEMENT_MAX));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn create(store: &Store, newest: &Newest) -> Result<Option<Lock>, StoreError> {
        let number = newest.number + 1;
        // Measured from before the creation: the lease ends here no later than for the others.
        let since = Instant::now();
        let until_s = newest.now_s + LEASE.as_secs();
        let comment = comment(&Holder { until_s, ..Holder::this() });
        let table = store.table(&format!("{PREFIX}{number}"));
        let sql = format!("CREATE TABLE {table} (a UInt8) ENGINE = MergeTree ORDER BY a COMMENT {comment}");
        match store.execute(&sql).await {
            Ok(()) => {}
            // 57: TABLE_ALREADY_EXISTS.
            Err(error) if error.code() == Some(57) => return Ok(None),
            Err(error) => return Err(error),
        }
        let found = self::found(store).await?;
        let highest = found.iter().filter_map(number_of).max().unwrap_or(0);
        if highest != number {
            store.execute(&format!("DROP TABLE IF EXISTS {table}")).await?;
            return Ok(None);
        }
        for lower in found.iter().filter(|lock| number_of(lock).is_some_and(|other| other < number)) {
            store.execute(&format!("DROP TABLE IF EXISTS {}", store.table(&lower.name))).await?;
        }
        Ok(Some(Lock { number, since }))
    }

    /// Whether there is time left for one more statement.
    pub fn holds(&self) -> bool {
        self.since.elapsed() + STATEMENT_MAX < LEASE
    }

    /// Lets go.
    pub async fn release(self, store: &Store) -> Result<(), StoreError> {
        let table = store.table(&format!("{PREFIX}{}", self.number));
        let comment = comment(&Holder { released: true, ..Holder::this() });
        store.execute(&format!("ALTER TABLE {table} MODIFY COMMENT {comment}")).await
    }
}

async fn found(store: &Store) -> Result<Vec<Found>, StoreError> {
    let query = store
        .client()
        .query(
            "SELECT name, comment, toUInt64(toUnixTimestamp(now())) AS now_s FROM system.tables \
             WHERE database = ? AND startsWith(name, ?)",
        )
        .bind(store.database())
        .bind(PREFIX);
    store.fetch(query).await
}

fn number_of(found: &Found) -> Option<u64> {
    found.name.strip_prefix(PREFIX)?.parse().ok()
}

async fn newest(store: &Store) -> Result<Newest, StoreError> {
    let found = found(store).await?;
    let Some(highest) = found.iter().filter(|lock| number_of(lock).is_some()).max_by_key(|lock| number_of(lock)) else {
        let now: Vec<u64> = store.rows("SELECT toUInt64(toUnixTimestamp(now()))").await?;
        return Ok(Newest { number: 0, holder: None, now_s: now.first().copied().unwrap_or(0) });
    };
    // A comment that cannot be read is nobody's: somebody made the table by hand.
    let holder = serde_json::from_str::<Holder>(&highest.comment).ok();
    let holder = holder.filter(|holder| holder.holds(highest.now_s));
    Ok(Newest {
        number: number_of(highest).unwrap_or(0),
        holder: holder.map(|holder| holder.holder),
        now_s: highest.now_s,
    })
}

/// As a string of SQL. The holder's name is ours, but a host's name may hold anything.
fn comment(holder: &Holder) -> String {
    let json = serde_json::to_string(holder).unwrap_or_default();
    format!("'{}'", json.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_quoted() {
        let holder =
            Holder { holder: "it's \\ \"me\"".into(), machine: "m".into(), process: 7, until_s: 7, released: false };
        let expected = r#"'{"holder":"it\'s \\\\ \\"me\\"","process":7,"machine":"m","until_s":7,"released":false}'"#;
        assert_eq!(comment(&holder), expected);
    }

    #[test]
    fn a_holder_holds_until_its_lease_ends_it_lets_go_or_it_is_seen_to_be_gone() {
        let holder = || Holder { until_s: 100, ..Holder::this() };
        assert!(holder().holds(99));
        assert!(!holder().holds(100));
        assert!(!Holder { released: true, ..holder() }.holds(99));
        // No process has this number: the kernel's greatest is 4194304.
        assert!(!Holder { process: 5_000_000, ..holder() }.holds(99));
        assert!(Holder { process: 5_000_000, machine: "another".into(), ..holder() }.holds(99));
    }
}
