//! Transactions that came by hand-carry. The same lanes classify them, and the same groups store them, as those from the
//! broker.
//!
//! A bundle continues the line like publishes do: one whose epoch begins elsewhere is refused, and the person who brought it
//! carries the hub's end back to the gateway.

use super::lane::Verdict;
use super::machine::NotKnown;
use super::{Action, Committer, Lookup, Numbered, Record, Way};
use crate::chain::Through;
use crate::consequence::Consequence;
use crate::delivery::Millis;
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
    /// Of another history of this gateway: kept beside the line.
    pub late: u64,
    /// The end of the lane's line now.
    pub end: Option<Through>,
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
    /// The line ends elsewhere.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} does not continue what is stored here, which ends elsewhere"
    )]
    Link {
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
    /// The centre must let it first.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} {}; if that is right: practice-hub lane admit {lane}",
        if *deleted { "stands for transactions that the gateway has deleted after they were confirmed, and that are not here" } else { "begins one epoch too many today" }
    )]
    Admit {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        sequence: Sequence,
        /// It stands for deleted transactions; else it begins an epoch too many.
        deleted: bool,
    },
    /// The store lacks a part of the line, which this does not refill.
    #[error(
        "{lane}: sequence {sequence} of epoch {epoch} does not refill what the store has lost of this lane; if that cannot be had any more: practice-hub lane admit {lane}"
    )]
    Hole {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        sequence: Sequence,
    },
    /// The store has failed, or fails still.
    #[error(
        "{0}: the hub's store has failed, or the files of this lane: nothing more is taken of it now; the hub's log says why"
    )]
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
            Self::Missing { .. }
            | Self::Link { .. }
            | Self::Admit { .. }
            | Self::Hole { .. }
            | Self::Unsigned { .. }
            | Self::TooManyLanes(_) => Consequence::Refuse,
        }
    }
}

impl<R: Record> Committer<R> {
    /// Takes a part of one lane of a bundle, in order, and returns why it ended early, if it did. The caller has flushed the
    /// group before. The records are only staged: the tally counts, and has an end, when another [`super::Input::Flush`] has
    /// stored them. Then a receipt is due for the lane, so that a gateway with a link learns of it. `actions` gets what is to be
    /// kept beside the line.
    ///
    /// # Errors
    /// [`NotTaken`]: nothing of it is taken.
    pub fn import(
        &mut self,
        lane: &LaneName,
        records: impl IntoIterator<Item = R>,
        now: Millis,
        store: &mut impl Lookup<R>,
        actions: &mut Vec<Action<R>>,
    ) -> Result<(Tally, Option<NotTaken>), NotTaken> {
        if self.is_appending() || self.is_pausing(lane, now) {
            return Err(NotTaken::StoreFailed(lane.clone()));
        }
        self.know(lane, store).map_err(|why| match why {
            NotKnown::TooManyLanes => NotTaken::TooManyLanes(lane.clone()),
            NotKnown::OutOfUse => NotTaken::StoreFailed(lane.clone()),
        })?;
        let records: Vec<R> = records.into_iter().collect();
        let state = self.lanes.get(lane);
        let Some(same_through) = state.map_or(Some(0), |state| state.same_through(&records, store)) else {
            self.cannot_say(lane, now);
            return Err(NotTaken::StoreFailed(lane.clone()));
        };
        let mut tally = Tally::default();
        // Of each record that is staged, whether only its number is.
        let mut staged = Vec::new();
        let mut wrong = None;
        for record in records {
            let Numbered { epoch, sequence, .. } = record.numbered();
            match self.classify(&record, Way::Hand, same_through, now, store) {
                Verdict::Store => {
                    staged.push(false);
                    self.stage(record);
                }
                Verdict::Known => {
                    staged.push(true);
                    self.stage_number(record);
                }
                Verdict::Rival => {
                    staged.push(false);
                    self.stage_rival(record);
                }
                Verdict::Repeat => tally.repeated += 1,
                Verdict::Late => {
                    tally.late += 1;
                    actions.push(Action::KeepLate(record));
                }
                verdict => {
                    if verdict == Verdict::Unsure {
                        self.cannot_say(lane, now);
                    }
                    wrong = Some(not_taken(lane, verdict, epoch, sequence));
                    break;
                }
            }
        }
        if let Some(NotTaken::Admit { epoch, .. } | NotTaken::Hole { epoch, .. }) = wrong
            && let Some(state) = self.lanes.get_mut(lane)
        {
            state.carries(epoch);
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

/// Why a record is not taken.
fn not_taken(lane: &LaneName, verdict: Verdict, epoch: Epoch, sequence: Sequence) -> NotTaken {
    let lane = lane.clone();
    match verdict {
        Verdict::Ahead(expected) => NotTaken::Missing { lane, epoch, sequence: expected, position: None },
        Verdict::Unsigned(_) => NotTaken::Unsigned { lane, epoch, sequence },
        Verdict::Unsure => NotTaken::StoreFailed(lane),
        Verdict::Admit => NotTaken::Admit { lane, epoch, sequence, deleted: true },
        Verdict::Epochs => NotTaken::Admit { lane, epoch, sequence, deleted: false },
        Verdict::Hole => NotTaken::Hole { lane, epoch, sequence },
        _ => NotTaken::Link { lane, epoch, sequence },
    }
}
