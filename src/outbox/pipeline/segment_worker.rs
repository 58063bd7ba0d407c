//! The maker: a thread for what would hold up the writer: making segments ahead, dropping handles, removing directories.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::guard::segment::Segment;
use crate::lock::locked;
use crate::pipeline::jobs::Chore;
use crate::pipeline::shared::Shared;
use crate::pipeline::trash::{discard, empty_trash};

/// Runs until it is told to stop.
pub(crate) fn run(shared: &Arc<Shared>, chores: &Receiver<Chore>) {
    if let Err(error) = empty_trash(&shared.settings.directory) {
        tracing::warn!(error = %error, "Trash could not be emptied");
    }
    while let Ok(chore) = chores.recv() {
        match chore {
            Chore::MakeAhead { lane, ordinal } => make_ahead(shared, lane, ordinal),
            Chore::LetGo { lane, ordinal, segment } => {
                drop(segment);
                tracing::debug!(lane = %shared.lanes[lane].name, ordinal, "Segment closed");
            }
            Chore::Discard(directory) => {
                if let Err(error) = discard(&shared.settings.directory, &directory)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(directory = %directory.display(), error = %error, "Segment could not be removed");
                }
            }
            Chore::Stop => return,
        }
    }
}

fn make_ahead(shared: &Shared, lane: usize, ordinal: u64) {
    let lane = &shared.lanes[lane];
    if locked(&lane.ahead).is_some() || lane.segment_directory(ordinal).exists() {
        return;
    }
    match Segment::create(&lane.segment_directory(ordinal)) {
        Ok(segment) => *locked(&lane.ahead) = Some((ordinal, segment)),
        Err(error) => {
            // The writer makes one itself then, and says so if that fails too.
            tracing::warn!(lane = %lane.name, error = %error, "Segment could not be made ahead");
            let _ = discard(&shared.settings.directory, &lane.segment_directory(ordinal));
        }
    }
}
