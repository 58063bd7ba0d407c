//! The state of each configured hub, and what its receipts claim.

use std::collections::VecDeque;

use super::{HubLimits, Millis, Numbering, Through};
use crate::chain::ChainValue;
use crate::transaction::{Position, Sequence};

/// A receipt in the lane's own positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    /// The hub says that it has everything through here.
    pub(super) position: Position,
    /// The hub's chain value there; `None` where it has none to give (nothing of an epoch, or more of an
    /// abandoned epoch than was ours).
    pub(super) chain: Option<ChainValue>,
    /// As the receipt has it.
    pub(super) through: Sequence,
    /// When the question was asked that it answers, on this connection; `None`: it is no answer.
    pub(super) asked: Option<Millis>,
    /// It speaks of the store that pruning may rely on.
    pub(super) known_store: bool,
}

impl Claim {
    /// Walks the epochs, oldest first. The first that is not complete at the hub is the hub's position, whatever it has
    /// of later ones: gaps in older epochs are closed first.
    pub(super) fn new(numbering: &Numbering, epochs: &[Through]) -> Self {
        let mut claim = Claim { position: 0, chain: None, through: 0, asked: None, known_store: false };
        let ours = numbering.epochs();
        for (index, epoch) in ours.iter().enumerate() {
            claim.position = epoch.base;
            let Some(there) = epochs.iter().find(|there| there.epoch == epoch.epoch) else { break };
            let length = ours.get(index + 1).map(|following| following.base - epoch.base);
            claim.through = there.through;
            match length {
                Some(length) if there.through > length => claim.chain = None,
                Some(length) if there.through == length => claim.chain = Some(there.chain),
                _ => {
                    claim.position = epoch.base.saturating_add(there.through);
                    if there.through > 0 {
                        claim.chain = Some(there.chain);
                    }
                    break;
                }
            }
        }
        claim
    }
}

/// Where the newest epoch's `backed_up_through` lies; an abandoned epoch's counts to its end only.
pub(super) fn backed_up(
    numbering: &Numbering,
    epochs: &[Through],
    through: Option<Sequence>,
) -> Option<Position> {
    let newest = epochs.last()?;
    let index = numbering.epochs().iter().position(|ours| ours.epoch == newest.epoch)?;
    let position = numbering.epochs().get(index)?.base.saturating_add(through?);
    Some(numbering.epochs().get(index + 1).map_or(position, |following| position.min(following.base)))
}

/// One configured hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HubView {
    /// Learnt from answers only: a retained receipt may be of any age.
    pub(super) incarnation: Option<u64>,
    pub(super) counter: u64,
    /// It has answered on this connection, in its present incarnation, and the answer fits our chain.
    pub(super) answered: bool,
    /// Verified through here.
    pub(super) at: Position,
    /// Our chain value there; `None` only until it is looked up.
    pub(super) chain: Option<ChainValue>,
    pub(super) backed_up: Option<Position>,
    /// What it takes, as its last answer on this connection says.
    pub(super) limits: HubLimits,
    /// The answer on which pruning may rely: when it was asked for, and through where it has everything.
    pub(super) relied_on: Option<(Millis, Position)>,
    /// The first is the claim whose chain value is being looked up; the newest waits for that.
    pub(super) claims: VecDeque<Claim>,
    /// The claim of an imported receipt, while its chain value is being looked up.
    pub(super) imported: Option<Claim>,
}

impl HubView {
    pub(super) fn new(at: Position, chain: Option<ChainValue>) -> Self {
        Self {
            incarnation: None,
            counter: 0,
            answered: false,
            at,
            chain,
            backed_up: None,
            limits: HubLimits::default(),
            relied_on: None,
            claims: VecDeque::new(),
            imported: None,
        }
    }

    /// The hub must answer before anything that it says counts again.
    pub(super) fn reset_answer(&mut self) {
        self.answered = false;
        self.limits = HubLimits::default();
        self.relied_on = None;
        self.claims.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::Epoch;
    use uuid::Uuid;

    fn epoch(number: u128) -> Epoch {
        Epoch(Uuid::from_u128(number))
    }

    fn through(number: u128, through: Sequence) -> Through {
        Through { epoch: epoch(number), through, chain: ChainValue([u8::try_from(through).unwrap(); 32]) }
    }

    #[test]
    fn an_older_epoch_with_a_gap_is_where_the_hub_stands() {
        let numbering = Numbering::new(epoch(0)).renumbered(epoch(1), 5);
        let at = |epochs: &[Through]| {
            let claim = Claim::new(&numbering, epochs);
            (claim.position, claim.chain.map(|c| c.0[0]))
        };
        assert_eq!(at(&[]), (0, None));
        assert_eq!(at(&[through(0, 3)]), (3, Some(3)));
        assert_eq!(at(&[through(0, 5)]), (5, Some(5)), "the boundary can be checked");
        assert_eq!(at(&[through(0, 9)]), (5, None), "what was abandoned cannot");
        assert_eq!(at(&[through(0, 9), through(1, 0)]), (5, None));
        assert_eq!(at(&[through(0, 9), through(1, 4)]), (9, Some(4)));
        assert_eq!(at(&[through(0, 3), through(1, 4)]), (3, Some(3)));
        assert_eq!(at(&[through(7, 3)]), (0, None), "a stranger's epoch is nothing");
    }

    #[test]
    fn a_backup_of_an_abandoned_epoch_counts_to_its_end() {
        let numbering = Numbering::new(epoch(0)).renumbered(epoch(1), 5);
        assert_eq!(backed_up(&numbering, &[through(0, 9)], Some(9)), Some(5));
        assert_eq!(backed_up(&numbering, &[through(0, 9), through(1, 4)], Some(2)), Some(7));
        assert_eq!(backed_up(&numbering, &[through(0, 9)], None), None);
        assert_eq!(backed_up(&numbering, &[through(9, 9)], Some(9)), None);
    }
}
