//! Transactions that came by hand-carry. The same lanes classify them, and the same groups store them, as those from the
//! broker.
//!
//! Without a link a gateway cannot ask for the position. The question protects from taking the first number of a later
//! epoch before the end of an earlier one. The bundle does so instead: it names how far each older epoch must be stored.

use super::lane::Verdict;
use super::{Committer, Lookup, Numbered, Record, Way};
use crate::consequence::Consequence;
use crate::delivery::{Millis, Through};
use crate::transaction::{Epoch, LaneName, Position, Sequence};

/// The outcome of importing a part of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// New ones.
    pub stored: u64,
    /// Here already under another number: only their new number was stored.
    pub renumbered: u64,
    /// Here already.
    pub repeated: u64,
    /// How far the lane is stored now, epochs oldest first.
    pub watermarks: Vec<Through>,
}

/// Why a part was not taken. The transactions before it in the bundle are stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The hub lacks earlier transactions.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} is missing here: it precedes this bundle; import a bundle that begins there first"
    )]
    Missing {
        /// The lane.
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
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The one that does not follow.
        sequence: Sequence,
    },
    /// Its gateway has not signed it with a key of the hub's list.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} is not signed with a key that the hub's list of gateways has for this gateway"
    )]
    Unsigned {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The first that is not signed.
        sequence: Sequence,
    },
    /// The store has failed, or fails still.
    #[error("{0}: the store has failed, nothing more is taken now")]
    StoreFailed(LaneName),
    /// The gateway has more lanes than any gateway has.
    #[error("{0}: the gateway has too many lanes")]
    TooManyLanes(LaneName),
}

impl NotTaken {
    /// How the person who brought the bundle should react.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::StoreFailed(_) => Consequence::Retry,
            Self::Missing { .. } | Self::Diverged { .. } | Self::Unsigned { .. } | Self::TooManyLanes(_) => {
                Consequence::Refuse
            }
        }
    }
}

impl<R: Record> Committer<R> {
    /// Takes a part of one lane of a bundle, in order, and returns why it ended early, if it did. `older` says through which
    /// sequence older epochs must be stored. The caller has flushed the group before. The records are only staged: the tally
    /// counts, and has watermarks, when another [`super::Input::Flush`] has stored them. Then a receipt is due for the lane, so
    /// that a gateway with a link learns of it.
    ///
    /// # Errors
    /// [`NotTaken`]: nothing of it is taken.
    pub fn import(
        &mut self,
        lane: &LaneName,
        older: impl IntoIterator<Item = (Epoch, Sequence)>,
        records: impl IntoIterator<Item = R>,
        now: Millis,
        store: &mut impl Lookup<R>,
    ) -> Result<(Tally, Option<NotTaken>), NotTaken> {
        if self.is_appending() || self.is_pausing(now) {
            return Err(NotTaken::StoreFailed(lane.clone()));
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
        // Of each record that is staged, whether only its number is.
        let mut staged = Vec::new();
        let mut wrong = None;
        for record in records {
            let Numbered { epoch, sequence, .. } = record.numbered();
            match self.classify(&record, Way::Hand, store) {
                Verdict::Store => {
                    staged.push(false);
                    self.stage(record);
                }
                Verdict::Known => {
                    staged.push(true);
                    self.stage_number(record);
                }
                Verdict::Repeat => tally.repeated += 1,
                verdict => {
                    wrong = Some(match verdict {
                        Verdict::Ahead(expected) => missing(lane, epoch, expected),
                        Verdict::Unsigned(_) => NotTaken::Unsigned { lane: lane.clone(), epoch, sequence },
                        Verdict::Unsure => {
                            self.note_failure(now, 1);
                            NotTaken::StoreFailed(lane.clone())
                        }
                        _ => NotTaken::Diverged { lane: lane.clone(), epoch, sequence },
                    });
                    break;
                }
            }
        }
        let dropped = self.drop_unsigned(store);
        if let Some(first) = dropped.first() {
            let Numbered { epoch, sequence, .. } = first.numbered();
            wrong = Some(NotTaken::Unsigned { lane: lane.clone(), epoch, sequence });
        }
        staged.truncate(staged.len() - dropped.len());
        tally.renumbered = staged.iter().filter(|only_number| **only_number).count() as u64;
        tally.stored = staged.len() as u64 - tally.renumbered;
        Ok((tally, wrong))
    }
}

fn missing(lane: &LaneName, epoch: Epoch, sequence: Sequence) -> NotTaken {
    NotTaken::Missing { lane: lane.clone(), epoch, sequence, position: None }
}
