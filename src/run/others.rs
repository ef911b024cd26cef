//! Whether the other writers of the group store into this database, too.
//!
//! What a writer commits is stored, so what others have committed for a partition lies in this database as far as that.
//! Where it does not, they store elsewhere (another installation was given the same group by mistake), or this database has
//! lost rows. Whoever is given the partition finds that out. Two installations that share the partitions of a log from
//! its beginning are given none of each other's, and each would report its own part.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::kinds::Kind;
use crate::log::topic::Inspector;
use crate::observe::health::Condition;
use crate::store::Store;
use crate::writer::claim::LastCommit;
use crate::writer::identity::Generation;

/// Compares, look by look, what others have committed with what is stored.
pub(super) struct Others<K> {
    inspector: Arc<Inspector>,
    store: Store,
    runtime: Handle,
    log: Arc<Generation>,
    /// Missing while others store elsewhere.
    condition: Condition,
    /// The commits of the look before, by partition. What grows later is compared with them, so that nothing is made of a
    /// commit that came between two questions, or of a replica that is behind.
    committed: HashMap<u32, i64>,
    told: bool,
    kind: PhantomData<K>,
}

impl<K: Kind> Others<K> {
    /// For the partitions of `log` that this process does not serve.
    pub fn new(
        inspector: Arc<Inspector>,
        store: Store,
        runtime: Handle,
        log: Arc<Generation>,
        condition: Condition,
    ) -> Others<K> {
        condition.holds();
        Others { inspector, store, runtime, log, condition, committed: HashMap::new(), told: false, kind: PhantomData }
    }

    /// Looks once. What keeps Kafka or ClickHouse from telling is said by their own conditions. Blocks.
    pub fn look(&mut self, served: &[u32]) {
        let all = 0..self.log.partitions() as u32;
        if all.clone().all(|partition| served.contains(&partition)) {
            // There are no others, and nothing is asked.
            self.committed.clear();
            return self.say(None);
        }
        let Ok(commits) = self.inspector.committed(&self.log.topic, all.end) else { return };
        let theirs = all.zip(commits).filter(|(partition, _)| !served.contains(partition));
        let theirs = theirs.filter_map(|(partition, commit)| {
            let commit = commit?;
            match LastCommit::read(Some(commit.offset), &commit.metadata) {
                LastCommit::Writer(committed) if committed.generation == self.log.number => {
                    Some((partition, committed.next))
                }
                // Told by whoever is given the partition.
                _ => None,
            }
        });
        let before = std::mem::replace(&mut self.committed, theirs.collect());
        let Ok(stored) = self.runtime.block_on(self.store.stored_ends::<K>(self.log.number)) else { return };
        let start = |partition: u32| self.log.start_offsets.get(partition as usize).copied().unwrap_or(0);
        let elsewhere = before
            .into_iter()
            .filter(|(partition, _)| self.committed.contains_key(partition))
            .map(|(partition, next)| (partition, next, stored.get(&partition).copied().unwrap_or(start(partition))))
            .find(|(_, next, stored)| next > stored);
        self.say(elsewhere);
    }

    /// `elsewhere` is a partition, up to where it was committed, and up to where it is stored here.
    fn say(&mut self, elsewhere: Option<(u32, i64, i64)>) {
        let Some((partition, committed, stored)) = elsewhere else {
            self.condition.holds();
            self.told = false;
            return;
        };
        let reason = format!(
            "another writer of the group has committed partition {partition} of topic {} as stored up to offset \
             {committed} (excluded), but this database has it up to {stored} only: clickhouse has lost rows, or another \
             installation stores this log into another database under the same group; stop that one and give it a group and \
             topics of its own, then stop the writers of this one and let `millrace repair` read what is missing from the log",
            self.log.topic
        );
        if !self.told {
            tracing::error!(kind = K::NAME, partition, committed, stored, "{reason}");
        }
        self.told = true;
        self.condition.missing(reason);
    }
}
