//! The rules that keep every event counted once, each of which can be broken, to see that the schedules notice.
//!
//! They are broken between the machine and the world: a step is done otherwise, or its outcome told otherwise. The
//! machine itself has no switches.

use super::schedule::Scenario;

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A range is claimed before anything of it is inserted.
    ClaimBeforeInsert,
    /// The tokens name the range.
    RangeInToken,
    /// An insert is repeated under the same token.
    SameTokenAgain,
    /// What is seen is what is stored below the range, not what is stored by now.
    SeenBelowRange,
    /// Without a commit reading goes on after what is stored.
    LedgerWhenForgotten,
    /// What is stored and counted by the ledger is not read again, whatever the commit says.
    LedgerOverCommit,
    /// The commit comes after the counters.
    CountersBeforeCommit,
    /// An insert is given up when its claim is too old.
    ClaimAgeBounded,
    /// The claim's age is looked at when the insert is sent, and not only when it is decided on.
    DeadlineAtSending,
    /// The age of a replay counts from when the store was asked what it holds of it.
    AgeFromRecovery,
    /// A claimed range is rebuilt exactly.
    PendingReplayed,
    /// Events that are stored and not counted are not inserted again.
    OrphansKept,
    /// A refused commit ends the tenure.
    FenceObeyed,
    /// An acknowledged commit proves nothing when the membership was lost meanwhile.
    MembershipAtAck,
    /// A member is expelled only when its claims have grown too old and its inserts have arrived.
    SessionOutlivesClaim,
    /// An insert without an answer is repeated.
    UnknownRepeated,
    /// What is known is read in an order in which nothing can seem to be missing.
    OrderOfReading,
    /// A commit of an earlier generation says nothing about this one.
    GenerationOfCommit,
    /// A log that begins after what is to be read halts the partition.
    LostLogHalts,
    /// A log that ends before what was read halts the partition.
    TruncatedLogHalts,
    /// Seen keys are recorded when what they are of is stored, and a cache that is ahead of the store is not used.
    CacheNotAhead,
    /// Another log under the topic's name is refused.
    IdentityChecked,
    /// As many events must be stored as the ledger has recorded.
    EventsCounted,
    /// After inserts of what another writer may have inserted before it is looked whether the rows are there.
    InsertsChecked,
    /// An insert makes one part, which is there as a whole or not at all.
    OnePart,
    /// Tokens are remembered for as long as an insert under a claim can arrive.
    WindowHeld,
}

/// Every rule, with the scenario that shows that it is broken.
pub const RULES: [(Rule, Scenario); 27] = [
    (Rule::ClaimBeforeInsert, Scenario::Faults),
    (Rule::RangeInToken, Scenario::Faults),
    (Rule::SameTokenAgain, Scenario::Faults),
    (Rule::SeenBelowRange, Scenario::Faults),
    (Rule::LedgerWhenForgotten, Scenario::Faults),
    (Rule::LedgerOverCommit, Scenario::Faults),
    (Rule::CountersBeforeCommit, Scenario::Faults),
    (Rule::ClaimAgeBounded, Scenario::Faults),
    (Rule::DeadlineAtSending, Scenario::Faults),
    (Rule::AgeFromRecovery, Scenario::Faults),
    (Rule::PendingReplayed, Scenario::Faults),
    (Rule::OrphansKept, Scenario::Faults),
    (Rule::FenceObeyed, Scenario::Faults),
    (Rule::MembershipAtAck, Scenario::Zombies),
    (Rule::SessionOutlivesClaim, Scenario::Zombies),
    (Rule::UnknownRepeated, Scenario::Faults),
    (Rule::OrderOfReading, Scenario::Faults),
    (Rule::GenerationOfCommit, Scenario::LogTruncated),
    (Rule::LostLogHalts, Scenario::LogLost),
    (Rule::TruncatedLogHalts, Scenario::LogTruncated),
    (Rule::CacheNotAhead, Scenario::Faults),
    (Rule::IdentityChecked, Scenario::Recreated),
    (Rule::EventsCounted, Scenario::StoreLost),
    (Rule::InsertsChecked, Scenario::StoreLost),
    (Rule::InsertsChecked, Scenario::StoreKilled),
    (Rule::OnePart, Scenario::Faults),
    (Rule::WindowHeld, Scenario::Faults),
];
