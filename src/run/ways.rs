//! The ways of a kind's events out of the accepting side: two lanes into the log, and a spool for while it is away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::accept::Way;
use crate::batch::Inlet;
use crate::exchange::Fault;
use crate::flow::{Chunk, Sink};
use crate::kinds::Columns;
use crate::log::produce::Producer;
use crate::spool::Spool;

/// The pause that a client is asked to make.
pub const RETRY_AFTER_S: u16 = 1;

/// A chunk with fewer events, and fewer bytes, than this goes the way of the few.
const FEW_EVENTS: usize = 64;
const FEW_BYTES: usize = 64 << 10;

/// The ways that there are, and what is known of them.
pub struct Ways {
    /// For few events. Kafka answers a connection's requests one after the other, so on a common one a single event would
    /// wait behind megabytes of a file that is being sent.
    pub few: Arc<Producer>,
    /// For many.
    pub many: Arc<Producer>,
    /// For what comes out of the spool, where there is one.
    pub spooled: Option<Arc<Producer>>,
    /// Set once it is known how many partitions the log has.
    pub spool: OnceLock<Spool>,
    /// Whether Kafka was there when it was last asked.
    pub answers: AtomicBool,
}

impl Ways {
    fn lanes(&self) -> impl Iterator<Item = &Producer> {
        [&self.few, &self.many].into_iter().chain(&self.spooled).map(Arc::as_ref)
    }

    /// How many records Kafka has acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.lanes().map(Producer::acknowledged).sum()
    }

    /// Whether Kafka leaves something unacknowledged for too long.
    pub fn is_stalled(&self) -> bool {
        self.lanes().any(Producer::is_stalled)
    }

    /// See [`Producer::keep`].
    pub fn keep(&self) {
        self.lanes().for_each(Producer::keep);
    }

    /// Whether the log takes records at the moment.
    pub fn log_takes(&self) -> bool {
        self.answers.load(Ordering::Acquire) && !self.is_stalled()
    }

    /// Where another request's events go. While the spool holds some they go behind those.
    pub fn room(&self) -> Result<Way, Fault> {
        let log_takes = self.log_takes();
        let Some(spool) = self.spool.get() else {
            let away = || unavailable("Kafka does not answer at the moment: nothing can be accepted");
            return if log_takes { Ok(Way::Log) } else { Err(away()) };
        };
        if log_takes && spool.bytes() == 0 {
            return Ok(Way::Log);
        }
        let full = |refusal| unavailable(format!("Kafka does not take events at the moment, and {refusal}"));
        spool.refusal().map_or(Ok(Way::Spool), |refusal| Err(full(refusal)))
    }

    /// Waits until everything handed to Kafka is settled. What comes out of the spool is left there when Kafka is away.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let spooled = self.spool.get().is_none_or(|spool| spool.settle(left(), || self.log_takes()));
        [&self.few, &self.many].map(|lane| lane.flush(left())) == [true; 2] && spooled
    }
}

/// 503 with this message.
pub fn unavailable(message: impl Into<std::borrow::Cow<'static, str>>) -> Fault {
    Fault::Unavailable { message: message.into(), retry_after_s: RETRY_AFTER_S }
}

/// Puts each chunk into its lane's batcher.
pub struct Inlets<C> {
    /// For few events.
    pub few: Inlet<C>,
    /// For many.
    pub many: Inlet<C>,
}

impl<C: Columns> Sink<C> for Inlets<C> {
    fn put(&self, partition: u32, chunk: Chunk<C>) -> Result<(), Chunk<C>> {
        let is_few = chunk.columns.len() < FEW_EVENTS && chunk.columns.bytes() < FEW_BYTES;
        if is_few { self.few.put(partition, chunk) } else { self.many.put(partition, chunk) }
    }
}
