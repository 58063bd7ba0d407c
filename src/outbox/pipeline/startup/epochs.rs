//! A lane's epochs at start: from their file, from its copy, or, if both are lost, a new one.

use std::path::Path;

use pgw_core::transaction::Lane;

use crate::descriptor::failed;
use crate::errors::OpenError;
use crate::files;
use crate::guard::segment::{SegmentHeader, is_full};
use crate::pipeline::startup::segments::LaneContext;
use crate::state::lane_epochs::{LaneEpochs, NUMBERING};
use crate::state::layout::lane_file;
use crate::types::OutboxAlarm;

/// The two files as they were found.
pub(super) struct FoundEpochs {
    file: Option<LaneEpochs>,
    copy: Option<LaneEpochs>,
    /// The damage of the file has raised an alarm.
    told: bool,
}

impl FoundEpochs {
    pub(super) fn load(store: &Path, lane: &Lane, alarms: &mut Vec<OutboxAlarm>) -> Self {
        let before = alarms.len();
        let file = load_or_alarm(&lane_file(store, lane, NUMBERING), lane, alarms);
        Self { file, copy: LaneEpochs::copy(store, lane), told: alarms.len() > before }
    }

    /// The file counts: it is written last, so an epoch that is only in the copy was never used. Without it the copy has every
    /// epoch that was.
    pub(super) fn known(&self) -> Option<&LaneEpochs> {
        self.file.as_ref().or(self.copy.as_ref())
    }

    /// The lane's epochs, with both files as they should be. `header`: that of the newest segment.
    pub(super) fn settle(
        self,
        context: &LaneContext<'_>,
        header: Option<&SegmentHeader>,
        alarms: &mut Vec<OutboxAlarm>,
    ) -> Result<LaneEpochs, OpenError> {
        let (store, lane) = (context.store, context.lane);
        let path = lane_file(store, lane, NUMBERING);
        if let Some(file) = self.file {
            if self.copy.as_ref() != Some(&file)
                && let Err(error) = file.save_copy(store, lane)
            {
                tell(alarms, format!("the copy of the epochs of lane {lane} cannot be written: {error}"));
            }
            return Ok(file);
        }
        let epochs = match (self.copy, header) {
            (Some(copy), _) => {
                if !self.told {
                    tell(
                        alarms,
                        format!("the numbering of lane {lane} was lost and recreated from its copy"),
                    );
                }
                copy
            }
            (None, header) => {
                let used = context.lane_id.is_some() || context.checkpoint.last(lane).is_some();
                if header.is_some() || used {
                    tell(
                        alarms,
                        format!("both files with the epochs of lane {lane} are lost: it begins a new epoch"),
                    );
                }
                match header {
                    Some(SegmentHeader { lane_id, numbering: Some(known), .. }) => {
                        LaneEpochs::after_loss(*lane_id, known)
                    }
                    _ => LaneEpochs::begin(header.map(|header| header.lane_id).or(context.lane_id))
                        .map_err(failed("begin", &path))?,
                }
            }
        };
        let saved = match epochs.save(store, lane) {
            Err(error) if is_full(&error) => {
                context.ballast.release().map_err(failed("release the ballast for", &path))?;
                epochs.save(store, lane)
            }
            other => other,
        };
        saved.map_err(failed("write", &path))?;
        Ok(epochs)
    }
}

fn tell(alarms: &mut Vec<OutboxAlarm>, detail: String) {
    tracing::warn!(detail, "The epochs of a lane were not whole");
    alarms.push(OutboxAlarm { code: "damaged", detail });
}

/// Loads a small file that can be recreated: damage raises an alarm and is not fatal.
pub(super) fn load_or_alarm<T: serde::de::DeserializeOwned>(
    path: &Path,
    lane: &Lane,
    alarms: &mut Vec<OutboxAlarm>,
) -> Option<T> {
    files::load(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error = %error, "A small file of the store was damaged and is recreated");
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        alarms.push(OutboxAlarm {
            code: "damaged",
            detail: format!("the {name} of lane {lane} was damaged and recreated"),
        });
        None
    })
}
