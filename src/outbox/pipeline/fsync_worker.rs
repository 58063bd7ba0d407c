//! The fsync worker: a thread that waits for the disk while the writer continues.

use std::sync::mpsc::{Receiver, Sender};

use crate::pipeline::jobs::{Job, WantedBarrier};

/// Runs until the writer has ended.
pub(crate) fn run(wanted: &Receiver<WantedBarrier>, writer: &Sender<Job>) {
    while let Ok(WantedBarrier { lane, segment }) = wanted.recv() {
        let outcome = segment.barrier();
        // Dropping the handle takes milliseconds, so the senders are answered first.
        if writer.send(Job::BarrierEnded { lane, outcome }).is_err() {
            return;
        }
    }
}
