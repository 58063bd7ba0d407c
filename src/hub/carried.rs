//! What is carried here by hand: judged by the same intake and stored by the same store as what the broker brings.
//!
//! Nobody can ask for the position across a gap that only a person crosses. What the question protects from (the first
//! number of a later epoch taken before the end of an earlier one) is in the bundle instead: it names how far each older
//! epoch must be here.

use bytes::Bytes;
use pgw_bundle::bundle::Older;
use pgw_core::transaction::{Epoch, Position, Sequence};
use pgw_core::wire::envelope::Envelope;

use super::desk::Desk;
use super::intake::Verdict;
use super::store::{LaneName, Mark};

/// A part of one lane of a bundle, in order.
#[derive(Debug)]
pub struct Carried {
    /// Whose.
    pub lane: LaneName,
    /// What must be here of older epochs.
    pub older: Vec<Older>,
    /// The transactions.
    pub transactions: Vec<(Envelope, Bytes)>,
}

/// What became of a part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// New, and on stable storage now.
    pub stored: u64,
    /// Here already under another number: only their new number was stored.
    pub renumbered: u64,
    /// Here already.
    pub repeated: u64,
    /// Where the lane stands now.
    pub marks: Vec<Mark>,
}

/// Why a part was not taken. What came before in it is stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The hub lacks what comes before.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} is missing here: it comes before this bundle begins; carry a bundle from there first"
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
        "{lane}: sequence {sequence} of epoch {epoch} does not follow from what is stored here: another history"
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
    #[error("{0}: the store has trouble, nothing more is taken now")]
    Trouble(LaneName),
    /// The gateway has more lanes than any gateway has.
    #[error("{0}: the gateway has too many lanes")]
    TooManyLanes(LaneName),
}

impl Desk {
    /// Takes a part: what the broker brought before is stored first, then this, and it is on stable storage when this returns.
    /// A receipt is due for the lane, so that a link that is up hears of it.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn carried(&mut self, carried: Carried) -> Result<Tally, NotTaken> {
        let Carried { lane, older, transactions } = carried;
        if !self.finish() || self.trouble.as_ref().is_some_and(super::trouble::Trouble::waits) {
            return Err(NotTaken::Trouble(lane));
        }
        let marks = self.store.marks_of(&lane);
        for Older { epoch, through } in older {
            let here = marks.iter().find(|mark| mark.epoch == epoch).map_or(0, |mark| mark.through);
            if here < through {
                return Err(NotTaken::Missing { lane, epoch, sequence: here + 1, position: None });
            }
        }
        if !self.known_lane(&lane) {
            return Err(NotTaken::TooManyLanes(lane));
        }
        let mut tally = Tally::default();
        let mut wrong = None;
        for (envelope, body) in transactions {
            let (epoch, sequence) = (envelope.epoch, envelope.sequence);
            let Some(verdict) = self.judge(&lane, &envelope, &body, true) else {
                wrong = Some(NotTaken::Trouble(lane.clone()));
                break;
            };
            match verdict {
                Verdict::Store | Verdict::Known => {
                    match verdict {
                        Verdict::Store => tally.stored += 1,
                        _ => tally.renumbered += 1,
                    }
                    self.stage(&lane, envelope, body, verdict);
                }
                Verdict::Repeat => tally.repeated += 1,
                Verdict::Ahead { .. } => {
                    let here = marks.iter().find(|mark| mark.epoch == epoch).map_or(0, |mark| mark.through);
                    let missing =
                        NotTaken::Missing { lane: lane.clone(), epoch, sequence: here + 1, position: None };
                    wrong = Some(missing);
                    break;
                }
                Verdict::Diverged { .. } | Verdict::Unasked => {
                    wrong = Some(NotTaken::Diverged { lane: lane.clone(), epoch, sequence });
                    break;
                }
            }
        }
        if !self.finish() {
            return Err(NotTaken::Trouble(lane));
        }
        tally.marks = self.store.marks_of(&lane);
        wrong.map_or(Ok(tally), Err)
    }
}
