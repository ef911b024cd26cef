//! Takes part in the writers' group and keeps a worker for each partition that this process was given.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::worker::{Tools, Worker};
use crate::backoff::{self, Backoff};
use crate::kinds::Kind;
use crate::log::group::{Group, GroupEvent, Tenure};
use crate::log::{LogError, Options};

/// How often the membership is served.
const POLL: Duration = Duration::from_millis(100);
/// The waits before a client that failed is made anew.
const REJOIN_MIN: Duration = Duration::from_secs(1);
const REJOIN_MAX: Duration = Duration::from_secs(5);
/// The least time between two workers of one tenure.
const REPLACE: Duration = Duration::from_secs(1);

/// Stores what the log brings until `tools.is_ending`; makes the group's client anew whenever it cannot go on. `tools` gives
/// the tools for one client.
pub fn store_log<K: Kind>(
    options: &Options,
    topic: &str,
    is_ending: &dyn Fn() -> bool,
    tools: impl Fn(Arc<Group>) -> Tools,
) -> Result<(), LogError> {
    let mut backoff = Backoff::new(REJOIN_MIN, REJOIN_MAX, backoff::seed());
    while !is_ending() {
        let group = Arc::new(Group::join(options, &[topic])?);
        let mut workers: Vec<Hired> = Vec::new();
        let mut failed = false;
        while !is_ending() && !failed {
            for event in group.poll(POLL) {
                match event {
                    GroupEvent::Assigned(tenure) => {
                        backoff.reset();
                        workers.extend(hire::<K>(tools(group.clone()), tenure)?);
                    }
                    GroupEvent::Failed(reason) => {
                        tracing::error!(kind = K::NAME, reason, "the group's client cannot go on and is made anew");
                        failed = true;
                    }
                }
            }
            replace_ended::<K>(&mut workers, is_ending, || tools(group.clone()))?;
        }
        // Workers finish the range that is under way; the membership is kept alive for their last commit.
        while workers.iter().any(|worker| !worker.thread.is_finished()) {
            group.poll(POLL);
        }
        group.leave();
        if failed {
            std::thread::sleep(backoff.next_wait());
        }
    }
    Ok(())
}

/// A worker's thread.
struct Hired {
    tenure: Arc<Tenure>,
    since: Instant,
    thread: JoinHandle<()>,
}

/// Forgets the workers that have ended. One whose tenure has not ended (a panic, a claim that Kafka did not confirm) gets
/// a successor, since nobody else is given the partition meanwhile.
fn replace_ended<K: Kind>(
    workers: &mut Vec<Hired>,
    is_ending: &dyn Fn() -> bool,
    tools: impl Fn() -> Tools,
) -> Result<(), LogError> {
    let ended = |worker: &mut Hired| {
        worker.thread.is_finished() && (!worker.tenure.is_active() || worker.since.elapsed() > REPLACE)
    };
    let ended: Vec<Hired> = workers.extract_if(.., ended).collect();
    for Hired { tenure, .. } in ended {
        if tenure.is_active() && !is_ending() {
            tracing::error!(
                kind = K::NAME,
                partition = tenure.partition,
                "a worker ended before its tenure, another one takes its place"
            );
            workers.extend(hire::<K>(tools(), tenure)?);
        }
    }
    Ok(())
}

fn hire<K: Kind>(tools: Tools, tenure: Arc<Tenure>) -> Result<Option<Hired>, LogError> {
    let partition = tenure.partition;
    let worker = Worker::<K>::new(tools, tenure.clone())?;
    match std::thread::Builder::new().name(format!("write-{}-{partition}", K::NAME)).spawn(|| worker.run()) {
        Ok(thread) => Ok(Some(Hired { tenure, since: Instant::now(), thread })),
        Err(error) => {
            // The partition stays unserved until it is assigned again; the lag shows it.
            tracing::error!(kind = K::NAME, partition, %error, "no thread for a worker");
            Ok(None)
        }
    }
}
