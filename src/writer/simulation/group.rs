//! The model of Kafka's group coordinator: members, epochs, which member has which partition, and the commits.
//!
//! As in KIP-848 a partition goes to another member only after its owner let go of it or was expelled. Like a broker it
//! does not look at who has a partition when a commit comes, only at whether the committer is a member and knows
//! its epoch; and it takes a commit without membership while the group is empty.

use std::collections::BTreeMap;

use super::rng::Rng;

/// A membership: a new one for each time that a client joins.
pub type MemberId = u32;

/// What a client knows of its membership, and sends with each commit.
pub type Membership = (MemberId, u32);

/// A commit as Kafka keeps it: the offset and the metadata.
pub type Commit = (i64, String);

#[derive(Clone, Debug)]
struct Member {
    epoch: u32,
    expires_at: u64,
}

/// Why a commit was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The committer is no member.
    UnknownMember,
    /// It is, but its epoch is another.
    StaleEpoch,
}

/// The coordinator.
#[derive(Clone, Debug, Default)]
pub struct Group {
    members: BTreeMap<MemberId, Member>,
    members_ever: MemberId,
    epoch: u32,
    owners: Vec<Option<MemberId>>,
    targets: Vec<Option<MemberId>>,
    /// The commit of each partition.
    pub commits: Vec<Option<Commit>>,
}

impl Group {
    /// An empty group.
    pub fn new(partitions: usize) -> Group {
        Group {
            owners: vec![None; partitions],
            targets: vec![None; partitions],
            commits: vec![None; partitions],
            ..Group::default()
        }
    }

    /// Whether a membership is in force.
    pub fn has(&self, id: MemberId) -> bool {
        self.members.contains_key(&id)
    }

    /// A client joins.
    pub fn join(&mut self, expires_at: u64, rng: &mut Rng) -> Membership {
        self.members_ever += 1;
        self.members.insert(self.members_ever, Member { epoch: self.epoch, expires_at });
        self.rebalance(rng);
        (self.members_ever, self.epoch)
    }

    /// A client leaves in good order.
    pub fn leave(&mut self, id: MemberId, rng: &mut Rng) {
        if self.members.remove(&id).is_some() {
            self.release(id);
            self.rebalance(rng);
        }
    }

    /// Expels members that were not heard of for too long.
    pub fn expire(&mut self, now: u64, rng: &mut Rng) -> bool {
        let expired: Vec<MemberId> =
            self.members.iter().filter(|(_, member)| member.expires_at < now).map(|(id, _)| *id).collect();
        for id in &expired {
            self.members.remove(id);
            self.release(*id);
        }
        if !expired.is_empty() {
            self.rebalance(rng);
        }
        !expired.is_empty()
    }

    /// Gives the partitions to members at random.
    pub fn rebalance(&mut self, rng: &mut Rng) {
        self.epoch += 1;
        let ids: Vec<MemberId> = self.members.keys().copied().collect();
        for target in &mut self.targets {
            *target = if ids.is_empty() { None } else { Some(ids[rng.below(ids.len() as u64) as usize]) };
        }
    }

    /// A client's heartbeat, with the partitions it holds. The answer is its epoch and the partitions it may hold, or
    /// `None` when it is no member.
    pub fn heartbeat(&mut self, id: MemberId, held: &[bool], expires_at: u64) -> Option<(u32, Vec<bool>)> {
        let member = self.members.get_mut(&id)?;
        member.expires_at = expires_at;
        let mut revoking = false;
        for ((owner, target), held) in self.owners.iter_mut().zip(&self.targets).zip(held) {
            if *owner == Some(id) && *target != Some(id) {
                if *held {
                    revoking = true;
                } else {
                    *owner = None;
                }
            }
            if owner.is_none() && *target == Some(id) {
                *owner = Some(id);
            }
        }
        if !revoking {
            member.epoch = self.epoch;
        }
        let assigned = (0..self.owners.len())
            .map(|partition| self.owners[partition] == Some(id) && self.targets[partition] == Some(id))
            .collect();
        Some((member.epoch, assigned))
    }

    /// A commit arrives.
    pub fn commit(&mut self, by: Option<Membership>, partition: usize, commit: Commit) -> Result<(), Refused> {
        match by {
            None if !self.members.is_empty() => return Err(Refused::UnknownMember),
            None => {}
            Some((id, epoch)) => match self.members.get(&id) {
                None => return Err(Refused::UnknownMember),
                Some(member) if member.epoch != epoch => return Err(Refused::StaleEpoch),
                Some(_) => {}
            },
        }
        self.commits[partition] = Some(commit);
        Ok(())
    }

    fn release(&mut self, id: MemberId) {
        for owner in &mut self.owners {
            if *owner == Some(id) {
                *owner = None;
            }
        }
    }
}
