//! Stores one partition under one tenure: carries out what the [`Machine`] decides.
//!
//! In: records of the partition, from its own reader. Out: inserts into ClickHouse and commits of the group. Everything that
//! can be lost or answered late happens here; everything that is decided on it happens in the machine. A worker ends when
//! its tenure ends, and leaves nothing behind that the next one could not take over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::block::{Block, Builder};
use super::machine::{Committed, Halt, Machine, Outcome, Range, Recovered, Step};
use super::seen::SeenKeys;
use super::{Log, Settings, WriterObserver};
use crate::kinds::{BadRecord, Columns, Kind, partition_of};
use crate::log::consume::{Polled, Reader};
use crate::log::group::{Commit, CommitError, Group, Tenure};
use crate::log::record;
use crate::log::topic::Inspector;
use crate::store::insert::{Encoded, encode};
use crate::store::{ErrorClass, Store, StoreError};

/// The longest that a worker sleeps or polls before it looks whether its tenure has ended.
const LOOK_UP: Duration = Duration::from_millis(200);

/// What a worker works with.
pub struct Tools {
    /// Where and how much.
    pub settings: Settings,
    /// Which log.
    pub log: Log,
    /// Membership and commits.
    pub group: Arc<Group>,
    /// Questions to Kafka.
    pub inspector: Arc<Inspector>,
    /// ClickHouse.
    pub store: Arc<Store>,
    /// Runs what the store does.
    pub runtime: Handle,
    /// Told what happens.
    pub observer: Arc<dyn WriterObserver>,
    /// Whether the program is ending.
    pub is_ending: Arc<dyn Fn() -> bool + Send + Sync>,
}
