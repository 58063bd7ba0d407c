//! The segment worker: a thread for work that would delay the writer: making segments ahead, dropping handles, removing
//! directories, sealing digest tables.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use crate::guard::segment::Segment;
use crate::lock::locked;
use crate::pipeline::jobs::Task;
use crate::pipeline::shared::SharedOutbox;
use crate::pipeline::trash::{discard, empty_trash};

/// Runs until it is stopped.
pub(crate) fn run(shared: &Arc<SharedOutbox>, tasks: &Receiver<Task>) {
    if let Err(error) = empty_trash(&shared.settings.directory) {
        tracing::warn!(error = %error, "The trash directory could not be emptied");
    }
    // With a large backlog whose tables are lost these are many, and each reads a segment: all else goes first, and the next
    // start asks for those that are left at the end.
    let mut tables: VecDeque<(usize, u64)> = VecDeque::new();
    loop {
        let task = match (tasks.try_recv(), tables.pop_front()) {
            (Err(TryRecvError::Empty), Some((lane, number))) => {
                shared.keep_digests(&shared.lanes[lane], number);
                continue;
            }
            (task, left) => {
                if let Some(left) = left {
                    tables.push_front(left);
                }
                task.or_else(|_| tasks.recv())
            }
        };
        let Ok(task) = task else { return };
        match task {
            Task::MakeAhead { lane, number } => make_ahead(shared, lane, number),
            Task::DropHandle { lane, number, segment } => {
                drop(segment);
                tracing::debug!(lane = %shared.lanes[lane].name, number, "Segment closed");
            }
            Task::KeepDigests { lane, number } => tables.push_back((lane, number)),
            Task::Discard(directory) => {
                if let Err(error) = discard(&shared.settings.directory, &directory)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(directory = %directory.display(), error = %error, "Segment could not be removed");
                }
            }
            Task::Stop => return,
        }
    }
}

fn make_ahead(shared: &SharedOutbox, lane: usize, number: u64) {
    let lane = &shared.lanes[lane];
    if locked(&lane.ahead).is_some() || lane.segment_directory(number).exists() {
        return;
    }
    match Segment::create(&lane.segment_directory(number)) {
        Ok(segment) => *locked(&lane.ahead) = Some((number, segment)),
        Err(error) => {
            // The writer then makes one itself, and raises an alarm if that fails too.
            tracing::warn!(lane = %lane.name, error = %error, "A segment could not be created ahead");
            let _ = discard(&shared.settings.directory, &lane.segment_directory(number));
        }
    }
}
