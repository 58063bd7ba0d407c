//! The syncer: a thread that waits for the disk where the writer has more to do.

use std::sync::mpsc::{Receiver, Sender};

use crate::pipeline::jobs::{Job, Wanted};

/// Runs until the writer has ended.
pub(crate) fn run(wanted: &Receiver<Wanted>, writer: &Sender<Job>) {
    while let Ok(Wanted { lane, segment }) = wanted.recv() {
        let outcome = segment.barrier();
        // Dropping a handle takes milliseconds: not before the answer.
        if writer.send(Job::Settled { lane, outcome }).is_err() {
            return;
        }
    }
}
