//! The thread that writes a cache's files, so that nobody waits for a disk: one job after the other, in order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::file;
use super::folder::{self, Folder};
use super::manifest::Manifest;
use super::run::Run;

/// What is to be done. There are few at a time: whoever asks looks at how many.
pub enum Job {
    /// Make a file of runs.
    Write {
        /// The lane that they are of.
        lane: usize,
        /// The runs.
        runs: Vec<Arc<Run>>,
        /// The file's name.
        name: String,
    },
    /// Put a manifest in the place of the last one, then remove files that it does not name any more.
    Record {
        /// The manifest.
        manifest: Manifest,
        /// The runs that it names.
        runs: Vec<Arc<Run>>,
        /// The files to be removed.
        obsolete: Vec<PathBuf>,
    },
}

/// What was done.
pub enum Done {
    /// A file was made of runs.
    Written {
        /// The lane that they are of.
        lane: usize,
        /// The runs.
        made_of: Vec<Arc<Run>>,
        /// The run in the file. A merge that was given up is [`io::ErrorKind::Interrupted`].
        run: io::Result<Run>,
    },
    /// A manifest was put in its place.
    Recorded(io::Result<()>),
}

/// The thread, as long as it is held.
pub struct Keeper {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    hurry: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins to work in a folder, until the keeper is dropped.
    pub fn start(folder: Arc<Folder>) -> io::Result<Keeper> {
        let (jobs, todo) = unbounded::<Job>();
        let (tell, done) = unbounded::<Done>();
        let hurry = Arc::new(AtomicBool::new(false));
        let give_up = hurry.clone();
        let thread = std::thread::Builder::new().name("seen-keys".into()).spawn(move || {
            for job in todo {
                // Nobody asks for what was done any more when its keeper is dropped.
                let _ = tell.send(work(&folder, job, &give_up));
            }
        })?;
        Ok(Keeper { jobs: Some(jobs), done, hurry, thread: Some(thread) })
    }

    /// Asks for a job.
    pub fn ask(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread takes jobs until it is told that there are no more.
            let _ = jobs.send(job);
        }
    }

    /// What was done next; with `wait` once it was.
    pub fn done(&self, wait: bool) -> Option<Done> {
        if wait { self.done.recv().ok() } else { self.done.try_recv().ok() }
    }

    /// Merges are given up from now on; what else is asked for is done.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.hurry();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was logged where it happened.
            let _ = thread.join();
        }
    }
}

fn work(folder: &Folder, job: Job, hurry: &AtomicBool) -> Done {
    match job {
        Job::Write { lane, runs, name } => {
            let go_on = || runs.len() == 1 || !hurry.load(Ordering::Relaxed);
            let run = file::write(folder, &name, &runs, go_on);
            Done::Written { lane, made_of: runs, run }
        }
        Job::Record { manifest, runs, obsolete } => Done::Recorded(record(folder, &manifest, &runs, &obsolete)),
    }
}

fn record(folder: &Folder, manifest: &Manifest, runs: &[Arc<Run>], obsolete: &[PathBuf]) -> io::Result<()> {
    runs.iter().filter_map(|run| run.file()).try_for_each(|file| file.sync())?;
    folder.record(manifest)?;
    obsolete.iter().try_for_each(|path| folder::remove(path))
}
