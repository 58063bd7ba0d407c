//! Intake: what the hub does with a transaction that arrives. Sans-IO, one lane of one gateway.
//!
//! The hub keeps, for each epoch of a lane, how far it has stored, and the chain value there. The next number is
//! checked against the chain and stored; a lower one is answered by the receipt again; a higher one is ignored,
//! with one gap notice for each expected number and round. Storing and advancing are one step for the store: what
//! [`Intake::arrive`] has taken counts as *staged* until the caller has it on stable storage and calls
//! [`Intake::synced`]; receipts and answers speak of synced numbers only. If a group cannot be stored, the caller
//! throws the intake away and makes a new one with [`Intake::restored`].
//!
//! After a start nothing is taken before the gateway has asked for the position. What was under way to an earlier
//! incarnation may belong to an epoch of which a restored hub does not know where it begins: its first number would
//! look right, and overtake the end of the epoch before it.

use std::collections::VecDeque;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Nonce, Through};
use pgw_core::transaction::{Epoch, Lane, Sequence, TransactionId};

/// Chain values of the last synced and staged numbers that are kept to check repetitions.
const REMEMBERED: usize = 64;

/// A transaction as its envelope names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arrived {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number in it.
    pub sequence: Sequence,
    /// The gateway's pass.
    pub round: u64,
    /// Its id, which is the same in every epoch.
    pub id: TransactionId,
    /// The chain value that the gateway declares for it.
    pub chain: ChainValue,
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Store it, with its number and chain value, then [`Intake::synced`].
    Store,
    /// It is stored already, under an older epoch: store that this number names it (the mark must survive a
    /// restart), not the transaction itself, then [`Intake::synced`].
    Known,
    /// A repetition: the receipt will be due again, once for any number of them.
    Repeat,
    /// Not the next one: ignore it, and say so if `say` holds a notice.
    Ahead {
        /// The notice to send, `None` if it was sent for this number and round.
        say: Option<Missed>,
    },
    /// The gateway has not asked for the position since this hub started: ignore it. The receipt will be due, so
    /// that the gateway notices.
    Unasked,
    /// Its chain value is not the one that it must have here: ignore it, tell a person. The receipt will be due,
    /// so that the gateway can compare.
    Diverged {
        /// The value it must have had.
        expected: ChainValue,
    },
}

/// A gap notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Missed {
    /// Epoch of the transaction that showed it.
    pub epoch: Epoch,
    /// The number that is expected.
    pub expected: Sequence,
    /// Round of the transaction that showed it.
    pub round: u64,
}

/// What a receipt says; the caller adds hub, time and signature.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Statement {
    /// Random at each start of the hub.
    pub incarnation: u64,
    /// Rises by one with each statement.
    pub counter: u64,
    /// Every epoch of the lane that has something stored, in the order of their first transactions.
    pub epochs: Vec<Through>,
    /// Through which sequence of the last of `epochs` there is a backup.
    pub backed_up_through: Option<Sequence>,
    /// The question that it answers.
    pub nonce: Option<Nonce>,
}

/// One lane of one gateway at the hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Intake {
    lane: Lane,
    incarnation: u64,
    counter: u64,
    epochs: Vec<Progress>,
    asked: bool,
    said: Option<Missed>,
    backed_up: Option<(Epoch, Sequence)>,
    /// A receipt should go out as soon as what it says is synced.
    due: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Progress {
    synced: Through,
    staged: Through,
    /// Chain values of the numbers through `staged.through`, newest last.
    recent: VecDeque<ChainValue>,
}

impl Progress {
    fn new(through: Through) -> Self {
        Self { synced: through, staged: through, recent: VecDeque::from([through.chain]) }
    }

    fn chain(&self, sequence: Sequence) -> Option<ChainValue> {
        let back = usize::try_from(self.staged.through.checked_sub(sequence)?).ok()?;
        self.recent.get(self.recent.len().checked_sub(back)?.checked_sub(1)?).copied()
    }

    fn advance(&mut self, chain: ChainValue) {
        self.staged.through += 1;
        self.staged.chain = chain;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(chain);
    }
}

impl Intake {
    /// A lane that the hub does not know. `incarnation` is the hub's, random at each start.
    #[must_use]
    pub fn new(lane: Lane, incarnation: u64) -> Self {
        Self::restored(lane, incarnation, Vec::new())
    }

    /// A lane as the store has it: its epochs in the order of their first transactions.
    #[must_use]
    pub fn restored(lane: Lane, incarnation: u64, epochs: Vec<Through>) -> Self {
        Self {
            lane,
            incarnation,
            counter: 0,
            epochs: epochs.into_iter().map(Progress::new).collect(),
            asked: false,
            said: None,
            backed_up: None,
            due: false,
        }
    }

    /// A transaction has arrived.
    ///
    /// `link` computes its chain value from the one before it; `known` says whether its id is stored or staged
    /// (asked only where the lane has another epoch, for only there can an id come under a second number).
    pub fn arrive(
        &mut self,
        arrived: &Arrived,
        link: impl FnOnce(ChainValue) -> ChainValue,
        known: impl FnOnce(TransactionId) -> bool,
    ) -> Verdict {
        if !self.asked {
            self.due = true;
            return Verdict::Unasked;
        }
        self.judge(arrived, link, known)
    }

    /// A transaction was carried here by hand. Nobody has asked, perhaps for weeks: the caller has made sure that the
    /// epochs before it are here, which is what the question is for.
    pub fn carried(
        &mut self,
        arrived: &Arrived,
        link: impl FnOnce(ChainValue) -> ChainValue,
        known: impl FnOnce(TransactionId) -> bool,
    ) -> Verdict {
        self.judge(arrived, link, known)
    }

    fn judge(
        &mut self,
        arrived: &Arrived,
        link: impl FnOnce(ChainValue) -> ChainValue,
        known: impl FnOnce(TransactionId) -> bool,
    ) -> Verdict {
        let found = self.epochs.iter().rposition(|progress| progress.staged.epoch == arrived.epoch);
        let progress = found.and_then(|index| self.epochs.get_mut(index));
        let through = progress.as_ref().map_or(0, |progress| progress.staged.through);
        if arrived.sequence > through.saturating_add(1) {
            let missed = Missed { epoch: arrived.epoch, expected: through + 1, round: arrived.round };
            let say = (self.said != Some(missed)).then_some(missed);
            self.said = Some(missed);
            return Verdict::Ahead { say };
        }
        self.due = true;
        if arrived.sequence <= through {
            return match progress.and_then(|progress| progress.chain(arrived.sequence)) {
                Some(expected) if expected != arrived.chain => Verdict::Diverged { expected },
                _ => Verdict::Repeat,
            };
        }
        let before = match &progress {
            Some(progress) => progress.staged.chain,
            None => ChainValue::first(arrived.epoch, self.lane.as_str()),
        };
        let expected = link(before);
        if expected != arrived.chain {
            return Verdict::Diverged { expected };
        }
        match progress {
            Some(progress) => progress.advance(expected),
            None => {
                let mut progress = Progress::new(Through { epoch: arrived.epoch, through: 0, chain: before });
                progress.advance(expected);
                self.epochs.push(progress);
            }
        }
        if self.epochs.len() > 1 && known(arrived.id) { Verdict::Known } else { Verdict::Store }
    }

    /// Everything that was taken so far is on stable storage.
    pub fn synced(&mut self) {
        for progress in &mut self.epochs {
            progress.synced = progress.staged;
        }
    }

    /// There is a backup of the store through this number.
    pub fn backed_up(&mut self, epoch: Epoch, through: Sequence) {
        self.backed_up = Some((epoch, through));
        self.due = true;
    }

    /// The receipt, if one is due. Also to be sent, by [`Self::statement`], at each connection of the hub.
    pub fn receipt(&mut self) -> Option<Statement> {
        std::mem::take(&mut self.due).then(|| self.statement(None))
    }

    /// The answer to a position question, or with `None` a receipt that nothing made due.
    pub fn statement(&mut self, nonce: Option<Nonce>) -> Statement {
        self.asked |= nonce.is_some();
        self.counter = self.counter.saturating_add(1);
        let epochs: Vec<_> =
            self.epochs.iter().map(|progress| progress.synced).filter(|synced| synced.through > 0).collect();
        let backed_up_through = epochs
            .last()
            .zip(self.backed_up)
            .filter(|(newest, (epoch, _))| newest.epoch == *epoch)
            .map(|(_, (_, through))| through);
        Statement { incarnation: self.incarnation, counter: self.counter, epochs, backed_up_through, nonce }
    }

    /// What is on stable storage of an epoch.
    #[must_use]
    pub fn through(&self, epoch: Epoch) -> Sequence {
        self.epochs
            .iter()
            .find(|progress| progress.synced.epoch == epoch)
            .map_or(0, |progress| progress.synced.through)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const EPOCH: Epoch = Epoch(Uuid::nil());
    const OTHER: Epoch = Epoch(Uuid::max());

    fn lane() -> Lane {
        Lane::new("clinical").unwrap()
    }

    /// A chain that needs no hashing: the id's low byte is mixed into the last byte.
    fn link(before: ChainValue, id: u128) -> ChainValue {
        let mut value = before;
        value.0[31] = value.0[31].wrapping_mul(31).wrapping_add(u8::try_from(id).unwrap());
        value
    }

    struct Sender {
        epoch: Epoch,
        chains: Vec<ChainValue>,
        base: u128,
    }

    impl Sender {
        fn new(epoch: Epoch, base: u128, ids: u128) -> Self {
            let mut chains = vec![ChainValue::first(epoch, "clinical")];
            for id in 1..=ids {
                chains.push(link(chains[chains.len() - 1], base + id));
            }
            Self { epoch, chains, base }
        }

        fn send(&self, intake: &mut Intake, sequence: u64, round: u64, known: bool) -> Verdict {
            let id = self.base + u128::from(sequence);
            let arrived = Arrived {
                epoch: self.epoch,
                sequence,
                round,
                id: TransactionId(Uuid::from_u128(id)),
                chain: self.chains[usize::try_from(sequence).unwrap()],
            };
            intake.arrive(&arrived, |before| link(before, id), |_| known)
        }
    }

    /// A new lane whose gateway has asked.
    fn asked() -> Intake {
        let mut intake = Intake::new(lane(), 7);
        intake.statement(Some([0; 16]));
        intake
    }

    #[test]
    fn nothing_is_taken_before_the_gateway_has_asked() {
        let (mut intake, sender) = (Intake::new(lane(), 7), Sender::new(EPOCH, 0, 9));
        intake.statement(None);
        assert_eq!(sender.send(&mut intake, 1, 0, false), Verdict::Unasked);
        assert!(intake.receipt().is_some(), "it shows the gateway the new incarnation");
        intake.statement(Some([0; 16]));
        assert_eq!(sender.send(&mut intake, 1, 0, false), Verdict::Store);
    }

    #[test]
    fn the_next_is_stored_and_a_receipt_speaks_of_synced_numbers_only() {
        let (mut intake, sender) = (asked(), Sender::new(EPOCH, 0, 9));
        assert_eq!(sender.send(&mut intake, 1, 0, true), Verdict::Store, "with one epoch no id is asked for");
        assert_eq!(sender.send(&mut intake, 2, 0, false), Verdict::Store);
        let early = intake.statement(Some([9; 16]));
        assert_eq!((early.epochs, early.nonce), (vec![], Some([9; 16])));
        intake.synced();
        let receipt = intake.receipt().unwrap();
        assert_eq!(receipt.epochs, [Through { epoch: EPOCH, through: 2, chain: sender.chains[2] }]);
        assert_eq!((receipt.incarnation, receipt.counter), (7, 3));
        assert_eq!(intake.receipt(), None, "once");
    }

    #[test]
    fn a_repetition_is_not_stored_and_makes_one_receipt_due() {
        let (mut intake, sender) = (asked(), Sender::new(EPOCH, 0, 90));
        for sequence in 1..=80 {
            sender.send(&mut intake, sequence, 0, false);
        }
        intake.synced();
        intake.receipt();
        assert_eq!(sender.send(&mut intake, 3, 1, false), Verdict::Repeat, "beyond what is remembered");
        assert_eq!(sender.send(&mut intake, 79, 1, false), Verdict::Repeat);
        assert!(intake.receipt().is_some());
        assert!(intake.receipt().is_none());
        let strange = Sender::new(EPOCH, 1, 90);
        assert!(matches!(strange.send(&mut intake, 79, 1, false), Verdict::Diverged { .. }));
        assert!(intake.receipt().is_some(), "so that the gateway can compare");
    }

    #[test]
    fn one_gap_notice_for_each_number_and_round() {
        let (mut intake, sender) = (asked(), Sender::new(EPOCH, 0, 9));
        let say = |round| Some(Missed { epoch: EPOCH, expected: 1, round });
        assert_eq!(sender.send(&mut intake, 2, 5, false), Verdict::Ahead { say: say(5) });
        assert_eq!(sender.send(&mut intake, 3, 5, false), Verdict::Ahead { say: None });
        assert_eq!(sender.send(&mut intake, 3, 6, false), Verdict::Ahead { say: say(6) });
        assert_eq!(sender.send(&mut intake, 1, 6, false), Verdict::Store);
        let say = Some(Missed { epoch: EPOCH, expected: 2, round: 6 });
        assert_eq!(sender.send(&mut intake, 3, 6, false), Verdict::Ahead { say });
    }

    #[test]
    fn another_chain_is_not_stored() {
        let (mut intake, sender) = (asked(), Sender::new(EPOCH, 0, 9));
        sender.send(&mut intake, 1, 0, false);
        intake.synced();
        let forked = Sender::new(EPOCH, 50, 9);
        assert!(matches!(forked.send(&mut intake, 2, 0, false), Verdict::Diverged { .. }));
        assert_eq!(intake.through(EPOCH), 1);
        assert_eq!(sender.send(&mut intake, 2, 0, false), Verdict::Store, "the true one still fits");
    }

    #[test]
    fn a_known_id_in_a_new_epoch_advances_without_a_second_copy() {
        let (mut intake, old) = (asked(), Sender::new(EPOCH, 0, 9));
        for sequence in 1..=3 {
            old.send(&mut intake, sequence, 0, false);
        }
        let new = Sender::new(OTHER, 1, 9);
        assert_eq!(new.send(&mut intake, 1, 0, true), Verdict::Known);
        assert_eq!(new.send(&mut intake, 2, 0, false), Verdict::Store);
        intake.backed_up(OTHER, 1);
        intake.synced();
        let statement = intake.statement(None);
        let ends: Vec<_> = statement.epochs.iter().map(|t| (t.epoch, t.through)).collect();
        assert_eq!(ends, [(EPOCH, 3), (OTHER, 2)], "in the order of their first transactions");
        assert_eq!(statement.backed_up_through, Some(1));
        let again = Intake::restored(lane(), 8, statement.epochs.clone()).statement(None);
        assert_eq!(again.epochs, statement.epochs);
        assert_eq!((again.incarnation, again.counter, again.backed_up_through), (8, 1, None));
    }
}
