//! The fsync worker: a thread that waits for the disk where the writer has more to do.

use std::sync::mpsc::{Receiver, Sender};

use crate::pipeline::jobs::{Job, WantedBarrier};

/// Runs until the writer has ended.
pub(crate) fn run(wanted: &Receiver<WantedBarrier>, writer: &Sender<Job>) {
    while let Ok(WantedBarrier { lane, segment }) = wanted.recv() {
        let outcome = segment.barrier();
        // Dropping a handle takes milliseconds: not before the answer.
        if writer.send(Job::BarrierEnded { lane, outcome }).is_err() {
            return;
        }
    }
}
