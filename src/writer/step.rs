//! What the machine and the shell say to each other: the steps to do, and how they ended.

use std::time::{Duration, Instant};

use super::claim::{Committed, Range};
use super::halt::Halt;
use super::recover::Recovered;

/// What the shell is to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read what log, group and store know of the partition. Answer: [`Outcome::Recovered`].
    Recover,
    /// Load the keys of the partition that are stored in this generation at offsets below `below`, and all of earlier
    /// generations, in place of those held. Answer: [`Outcome::Done`].
    LoadSeen {
        /// The generation now in force.
        generation: u32,
        /// The first offset whose keys do not count.
        below: i64,
    },
    /// Read records from the log and build their block. The block is kept until the next `Read` or `LoadSeen`.
    /// Answer: [`Outcome::Read`], [`Outcome::Idle`], [`Outcome::OutOfRange`], [`Outcome::Newer`].
    ///
    /// When it is asked for again after [`Outcome::Unknown`], it goes on where it was or begins afresh; keys of records
    /// that are not in the block must not be in the seen keys.
    Read {
        /// The first offset.
        from: i64,
        /// With a value: exactly the records at `from..=through`, however many; the end is reached when the next offset
        /// to read is past `through`. Without: as many as size and age allow.
        through: Option<i64>,
    },
    /// Commit the claim on the range whose block is held. Answer: [`Outcome::Done`], [`Outcome::Fenced`].
    Claim(Committed),
    /// Insert the new events of the block held. Answer: [`Outcome::Done`], [`Outcome::Late`], [`Outcome::Refused`],
    /// [`Outcome::Dropped`].
    InsertEvents(Insert),
    /// Insert the counters of the block held with the range's row of the ledger, as one part. Answers as for the events.
    InsertCounters(Insert),
    /// Commit that everything before [`Committed::next`] is stored. Answer: [`Outcome::Done`], [`Outcome::Fenced`].
    Commit(Committed),
    /// Do nothing for so long (or until something happens), then ask for the next step. No answer.
    Wait(Duration),
    /// The tenure is over: drop the machine, the block and the seen keys.
    Leave,
    /// The partition stands still until an operator has looked at it. Final for this tenure.
    Halt(Halt),
}

/// An insert of the block held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert {
    /// The generation of the log, for the token and the rows.
    pub generation: u32,
    /// The block's range, for the token and the rows.
    pub range: Range,
    /// Whether the store may remember the token of an insert whose rows it has lost since, and so drop this one without a
    /// word: that the rows are there is looked at after it.
    pub checked: bool,
    /// How often the store has dropped it already whose rows it does not have: for the token. Everybody counts from 0, so that
    /// a token that was stored under is met on the way.
    pub again: u32,
    /// It must not be sent after this time, to be looked at as near as can be to the sending: [`Outcome::Late`].
    pub deadline: Instant,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What is known of the partition.
    Recovered(Recovered),
    /// The block of the records from the first offset asked for through `last` is built and held.
    Read {
        /// The last offset read (of a record or of a hole); for a replay the one asked for.
        last: i64,
        /// How many of its events are new. Without any there is no insert into the events table.
        new_events: u64,
    },
    /// There is nothing to read yet.
    Idle,
    /// The log does not hold the offset asked for.
    OutOfRange,
    /// Only a later version of the program can read the next record.
    Newer {
        /// Where it lies.
        offset: i64,
        /// What was found and what is known.
        reason: String,
    },
    /// It is done. For a commit: Kafka has acknowledged it, **and** the membership that the tenure began under is not lost
    /// by now. An acknowledgement alone does not prove ownership, since Kafka takes commits without membership
    /// while a group is empty; acknowledged but lost is [`Outcome::Fenced`].
    Done,
    /// It may or may not have happened, or may still happen: time-out, lost answer, server away, a temporary error.
    /// Also a commit refused for a stale member epoch while the partition is still assigned.
    Unknown,
    /// The insert's deadline had passed before it was sent.
    Late,
    /// A [checked](Insert::checked) insert was acknowledged, and yet none of its rows is there: the store was killed
    /// between noting the token and keeping the rows, or has lost them since. No insert with this token can
    /// arrive any more.
    Dropped,
    /// The store refused the insert and would refuse it again.
    Refused(String),
    /// The partition is no longer assigned: a commit was refused, the consumer was told, or its membership was found to be
    /// lost before a commit was sent or after it was acknowledged. Accepted at any step.
    Fenced,
}
