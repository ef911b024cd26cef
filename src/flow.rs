//! What crosses from one stage to the next: plain data that every stage may know.
//!
//! A [`Chunk`] goes from the accepting request to a partition's batcher; its [`Ack`] comes back when Kafka has
//! acknowledged (or refused) every record that carries an event of the request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use may::sync::Blocker;

/// The events of one request that belong to one partition.
pub struct Chunk<C> {
    /// The events' columns, in the order of the request's body.
    pub columns: C,
    /// Told once the record that carries these events has been acknowledged or has failed.
    pub ack: AckPart,
}

/// What takes chunks: the batchers, or a test.
pub trait Sink<C>: Send + Sync + 'static {
    /// Takes a chunk for a partition, or gives it back when there is no room just now. Never blocks.
    fn put(&self, partition: u32, chunk: Chunk<C>) -> Result<(), Chunk<C>>;
}

impl<C, F> Sink<C> for F
where
    F: Fn(u32, Chunk<C>) -> Result<(), Chunk<C>> + Send + Sync + 'static,
{
    fn put(&self, partition: u32, chunk: Chunk<C>) -> Result<(), Chunk<C>> {
        self(partition, chunk)
    }
}

/// Handed on with a record until it is settled, so that whoever keeps the first one can tell how many are under way.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(Arc<()>);

impl UnderWay {
    /// How many there are beside this one.
    pub fn others(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// One request's wait for all of its records.
///
/// It begins with one part held by [`Ack`] itself, so that it cannot be reached before every chunk was handed over.
pub struct Ack {
    parts_open: AtomicUsize,
    failed: AtomicBool,
    abandoned: AtomicBool,
    waiter: Arc<Blocker>,
}

impl Ack {
    /// A new wait, to be made by the coroutine (or thread) that will wait.
    pub fn new() -> Arc<Ack> {
        Arc::new(Ack {
            parts_open: AtomicUsize::new(1),
            failed: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            waiter: Blocker::current(),
        })
    }

    /// A further part to wait for.
    pub fn part(self: &Arc<Ack>) -> AckPart {
        self.parts_open.fetch_add(1, Ordering::Relaxed);
        AckPart { ack: Some(self.clone()) }
    }

    /// Waits until every part has been settled; `true` when all of them were acknowledged, `false` when one failed or
    /// `timeout` passed first.
    pub fn wait(&self, timeout: Duration) -> bool {
        if self.parts_open.fetch_sub(1, Ordering::AcqRel) > 1 {
            let deadline = std::time::Instant::now() + timeout;
            while self.parts_open.load(Ordering::Acquire) > 0 {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                if left.is_zero() || self.waiter.park(Some(left)).is_err() {
                    let settled = self.parts_open.load(Ordering::Acquire) == 0;
                    self.abandoned.store(!settled, Ordering::Release);
                    return settled && !self.failed.load(Ordering::Acquire);
                }
            }
        }
        !self.failed.load(Ordering::Acquire)
    }

    /// How all parts made so far ended, without waiting: `None` while one is open. For who never calls [`Ack::wait`].
    pub fn settled(&self) -> Option<bool> {
        (self.parts_open.load(Ordering::Acquire) == 1).then(|| !self.failed.load(Ordering::Acquire))
    }

    fn settle(&self, acknowledged: bool) {
        if !acknowledged {
            self.failed.store(true, Ordering::Release);
        }
        if self.parts_open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiter.unpark();
        }
    }
}

/// One part of an [`Ack`]. Dropping it unsettled counts as a failure, so that no path can forget a waiting request.
pub struct AckPart {
    ack: Option<Arc<Ack>>,
}

impl AckPart {
    /// A further part of the same request.
    pub fn split(&self) -> AckPart {
        AckPart {
            ack: self
                .ack
                .as_ref()
                .inspect(|ack| {
                    ack.parts_open.fetch_add(1, Ordering::Relaxed);
                })
                .cloned(),
        }
    }

    /// Whether nobody waits any more, so that the work can be saved.
    pub fn is_abandoned(&self) -> bool {
        self.ack.as_ref().is_none_or(|ack| ack.abandoned.load(Ordering::Acquire))
    }

    /// Says how it ended.
    pub fn settle(mut self, acknowledged: bool) {
        if let Some(ack) = self.ack.take() {
            ack.settle(acknowledged);
        }
    }
}

impl Drop for AckPart {
    fn drop(&mut self) {
        if let Some(ack) = self.ack.take() {
            ack.settle(false);
        }
    }
}
