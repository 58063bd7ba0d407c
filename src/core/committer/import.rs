//! What was carried to the hub by hand: judged by the same lanes and stored with the same groups as what the broker brings.
//!
//! Nobody can ask for the position across a gap that only a person crosses. What the question protects from (the first
//! number of a later epoch taken before the end of an earlier one) is in the bundle instead: it names how far each older
//! epoch must be here.

use super::lane::Verdict;
use super::{Committer, Lookup, Numbered, Record};
use crate::delivery::{Millis, Through};
use crate::transaction::{Epoch, LaneName, Position, Sequence};

/// What became of a part of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// New.
    pub stored: u64,
    /// Here already under another number: only their new number was stored.
    pub renumbered: u64,
    /// Here already.
    pub repeated: u64,
    /// The lane's ends now, epochs oldest first.
    pub marks: Vec<Through>,
}

/// Why a part was not taken. What came before in it is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The hub lacks what comes before.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} is missing here: it precedes this bundle; import a bundle that begins there first"
    )]
    Missing {
        /// Whose.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The first that is missing.
        sequence: Sequence,
        /// Its position in the outbox, where that is known: what `export --from` takes.
        position: Option<Position>,
    },
    /// The hub has another history.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} does not follow from the stored transactions: another history"
    )]
    Diverged {
        /// Whose.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// Itself.
        sequence: Sequence,
    },
    /// The store has failed, or fails still.
    #[error("{0}: the store has failed, nothing more is taken now")]
    Trouble(LaneName),
    /// The gateway has more lanes than any gateway has.
    #[error("{0}: the gateway has too many lanes")]
    TooManyLanes(LaneName),
}

impl<R: Record> Committer<R> {
    /// Takes a part of one lane of a bundle, in order, and where it ended early, if it did; `older` says through which
    /// sequence older epochs must be here. The group must have been flushed before. What was taken is staged: the tally
    /// counts, and has marks, only when another [`super::Input::Flush`] has stored it. A receipt is due for the lane then,
    /// so that a link that is up hears of it.
    ///
    /// # Errors
    /// [`NotTaken`]: nothing of it is taken.
    pub fn import(
        &mut self,
        lane: &LaneName,
        older: impl IntoIterator<Item = (Epoch, Sequence)>,
        records: impl IntoIterator<Item = R>,
        now: Millis,
        store: &mut impl Lookup,
    ) -> Result<(Tally, Option<NotTaken>), NotTaken> {
        if self.is_appending() || self.is_left_alone(now) {
            return Err(NotTaken::Trouble(lane.clone()));
        }
        for (epoch, through) in older {
            let here = self.lane(lane).map_or(0, |state| state.through(epoch));
            if here < through {
                return Err(missing(lane, epoch, here + 1));
            }
        }
        if !self.know(lane, store) {
            return Err(NotTaken::TooManyLanes(lane.clone()));
        }
        let mut tally = Tally::default();
        for record in records {
            let Numbered { epoch, sequence, .. } = record.numbered();
            match self.judge(&record, true, store) {
                Verdict::Store => {
                    tally.stored += 1;
                    self.stage(record);
                }
                Verdict::Known => {
                    tally.renumbered += 1;
                    self.stage_number(record);
                }
                Verdict::Repeat => tally.repeated += 1,
                Verdict::Ahead(expected) => return Ok((tally, Some(missing(lane, epoch, expected)))),
                Verdict::Diverged | Verdict::Unasked => {
                    let diverged = NotTaken::Diverged { lane: lane.clone(), epoch, sequence };
                    return Ok((tally, Some(diverged)));
                }
                Verdict::Unsure => {
                    self.has_trouble(now, 1);
                    return Ok((tally, Some(NotTaken::Trouble(lane.clone()))));
                }
            }
        }
        Ok((tally, None))
    }
}

fn missing(lane: &LaneName, epoch: Epoch, sequence: Sequence) -> NotTaken {
    NotTaken::Missing { lane: lane.clone(), epoch, sequence, position: None }
}
