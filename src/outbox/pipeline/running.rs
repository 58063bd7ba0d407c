//! An outbox whose threads run, and how it stops.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::descriptor::failed;
use crate::errors::{OpenError, Refusal};
use crate::lock::locked;
use crate::pipeline::jobs::{Job, Task};
use crate::pipeline::shared::SharedOutbox;
use crate::pipeline::trash;

/// An outbox whose threads run.
pub(crate) struct Running {
    pub(crate) shared: Arc<SharedOutbox>,
    pub(crate) jobs: Sender<Job>,
    maintenance: Sender<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
    lock: Mutex<Option<File>>,
}

/// Reports its thread's end when dropped, so also after a panic.
struct EndNotice(Arc<SharedOutbox>);

impl Drop for EndNotice {
    fn drop(&mut self) {
        self.0.thread_ended();
    }
}

pub(super) fn spawn(
    name: &str,
    shared: &Arc<SharedOutbox>,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    let notice = EndNotice(Arc::clone(shared));
    let run = move || {
        let _notice = notice;
        body();
    };
    let directory = &shared.settings.directory;
    std::thread::Builder::new().name(name.into()).spawn(run).map_err(failed("start a thread for", directory))
}

impl Running {
    /// `threads` in the order writer, fsync worker, comparer, segment worker, maintenance.
    pub(super) fn new(
        shared: Arc<SharedOutbox>,
        jobs: Sender<Job>,
        maintenance: Sender<()>,
        threads: Vec<JoinHandle<()>>,
        lock: File,
    ) -> Self {
        let (threads, lock) = (Mutex::new(threads), Mutex::new(Some(lock)));
        Self { shared, jobs, maintenance, threads, stopping: AtomicBool::new(false), lock }
    }

    /// Why there is no answer: the outbox has ended.
    pub(crate) fn ended(&self) -> Refusal {
        if self.stopping.load(Ordering::SeqCst) {
            Refusal::Stopping
        } else {
            tracing::error!("The outbox writer has ended; restart the daemon");
            Refusal::Trouble("the writer has ended".into())
        }
    }

    /// Ends the threads in the order in which they feed each other. Later calls do nothing.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let mut threads = std::mem::take(&mut *locked(&self.threads)).into_iter();
        let _ = self.jobs.send(Job::Stop);
        let (writer, fsync_worker, comparer) = (threads.next(), threads.next(), threads.next());
        let (segment_worker, maintenance) = (threads.next(), threads.next());
        let join = |thread: Option<JoinHandle<()>>| {
            if let Some(thread) = thread {
                let _ = thread.join();
            }
        };
        join(writer);
        join(fsync_worker);
        join(comparer);
        let _ = self.maintenance.send(());
        join(maintenance);
        self.shared.task(Task::Stop);
        join(segment_worker);
        for lane in &self.shared.lanes {
            lane.handles.clear();
            if let Some((number, segment)) = locked(&lane.ahead).take() {
                drop(segment);
                let _ = trash::discard(&self.shared.settings.directory, &lane.segment_directory(number));
            }
        }
        drop(locked(&self.lock).take());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
