//! The hub: the real intake over a model store that syncs in groups, crashes and is restored from backups.

use std::collections::HashSet;

use pgw_core::chain::ChainValue;
use pgw_core::delivery::{Receipt, Through};
use pgw_core::transaction::{Epoch, Sequence, TransactionId};
use pgw_hub::intake::{Arrived, Intake, Missed, Statement, Verdict};

use super::broker::Up;
use super::surgery::Bundle;
use super::{Random, Seen, lane, link};

/// A line of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) epoch: Epoch,
    pub(crate) sequence: Sequence,
    pub(crate) chain: ChainValue,
    pub(crate) id: TransactionId,
    /// False: the id is stored already, this only names it again.
    pub(crate) stored: bool,
    /// It stands for what is lost.
    pub(crate) void: bool,
}

pub(crate) struct Center {
    pub(crate) index: usize,
    pub(crate) up: bool,
    pub(crate) intake: Intake,
    /// On stable storage; the rest of `entries` is staged.
    pub(crate) synced: usize,
    pub(crate) entries: Vec<Entry>,
    ids: HashSet<TransactionId>,
    /// Everything that ever was on stable storage, restored away or not.
    pub(crate) ever: HashSet<TransactionId>,
    /// Lengths of the store at the backups.
    pub(crate) backups: Vec<usize>,
    /// Of the virtual machine: its memory and the length of its store.
    pub(crate) snapshot: Option<(Intake, usize)>,
}

impl Center {
    pub(crate) fn new(index: usize, incarnation: u64) -> Self {
        Self {
            index,
            up: true,
            intake: Intake::new(lane(), incarnation),
            synced: 0,
            entries: Vec::new(),
            ids: HashSet::new(),
            ever: HashSet::new(),
            backups: Vec::new(),
            snapshot: None,
        }
    }

    fn receipt(&self, statement: Statement) -> Receipt {
        Receipt {
            hub: self.index,
            incarnation: statement.incarnation,
            counter: statement.counter,
            epochs: statement.epochs,
            backed_up_through: statement.backed_up_through,
            nonce: statement.nonce,
        }
    }

    /// Takes a packet; an answer or a gap notice may come of it.
    pub(crate) fn take(&mut self, packet: &Up, seen: &mut Seen) -> (Option<Receipt>, Option<Missed>) {
        match packet {
            Up::Position(nonce) => {
                let statement = self.intake.statement(Some(*nonce));
                (Some(self.receipt(statement)), None)
            }
            Up::Transaction { .. } => (None, self.judge(packet, false, seen).1),
        }
    }

    /// Takes a bundle as `hub::carried` does; a receipt for the way back comes of it.
    pub(crate) fn import(&mut self, bundle: &Bundle, incarnation: u64, seen: &mut Seen) -> Option<Receipt> {
        self.sync();
        let here = |(epoch, through): &(Epoch, Sequence)| self.intake.through(*epoch) >= *through;
        if !bundle.older.iter().all(here) {
            seen.note("bundle refused: the hub lacks an older epoch's end");
            return None;
        }
        for packet in &bundle.packets {
            let before = self.entries.len();
            if !self.judge(packet, true, seen).0 {
                seen.note("bundle refused: it does not follow");
                break;
            }
            seen.note(if self.entries.len() > before { "carried in, new" } else { "carried in, known" });
        }
        self.sync();
        let mut statement = self.intake.clone().statement(None);
        statement.incarnation = incarnation;
        Some(self.receipt(statement))
    }

    /// True: it is here now.
    fn judge(&mut self, packet: &Up, by_hand: bool, seen: &mut Seen) -> (bool, Option<Missed>) {
        let Up::Transaction { epoch, sequence, round, id, chain, void } = packet else {
            return (false, None);
        };
        let (epoch, sequence, round, id) = (*epoch, *sequence, *round, *id);
        let arrived = Arrived { epoch, sequence, round, id, chain: *chain };
        let ids = &self.ids;
        let follows = |before| match void {
            // As `wire::void::chain_after`, for a range of one.
            Some(previous) if *previous == before => *chain,
            Some(_) => ChainValue(chain.0.map(|byte| !byte)),
            None => link(before, epoch, sequence, id),
        };
        let known = |id| void.is_none() && ids.contains(&id);
        let verdict = if by_hand {
            self.intake.carried(&arrived, follows, known)
        } else {
            self.intake.arrive(&arrived, follows, known)
        };
        match verdict {
            Verdict::Store | Verdict::Known => {
                let (stored, void) = (verdict == Verdict::Store, void.is_some());
                self.entries.push(Entry {
                    epoch,
                    sequence,
                    chain: *chain,
                    id,
                    stored: stored && !void,
                    void,
                });
                if void {
                    seen.note("void at the hub");
                } else {
                    self.ids.insert(id);
                    if !stored {
                        seen.note("known id in a new epoch");
                    }
                }
                return (true, None);
            }
            Verdict::Repeat => {
                seen.note("repetition at the hub");
                return (true, None);
            }
            Verdict::Ahead { say } => {
                seen.note("gap at the hub");
                return (false, say);
            }
            Verdict::Unasked => seen.note("sent to an earlier incarnation"),
            Verdict::Diverged { .. } => seen.note("other chain at the hub"),
        }
        (false, None)
    }

    /// The virtual machine is set back, memory and all: it goes on in the same incarnation, with a lower counter.
    pub(crate) fn set_back(&mut self) -> bool {
        let Some((intake, length)) = self.snapshot.take() else { return false };
        self.truncate(length.min(self.entries.len()));
        self.backups.retain(|backup| *backup <= length);
        self.intake = intake;
        true
    }

    /// The group is on stable storage.
    pub(crate) fn sync(&mut self) {
        self.ever
            .extend(self.entries[self.synced..].iter().filter(|entry| !entry.void).map(|entry| entry.id));
        self.synced = self.entries.len();
        self.intake.synced();
    }

    pub(crate) fn due(&mut self) -> Option<Receipt> {
        let statement = self.intake.receipt()?;
        Some(self.receipt(statement))
    }

    /// The receipt that it sends at each of its connects.
    pub(crate) fn announce(&mut self) -> Receipt {
        let statement = self.intake.statement(None);
        self.receipt(statement)
    }

    pub(crate) fn back_up(&mut self) {
        self.backups.push(self.synced);
        if let Some(last) = self.entries[..self.synced].last() {
            self.intake.backed_up(last.epoch, last.sequence);
        }
    }

    /// kill -9 or a power cut: some part of what was staged may have reached the disk.
    pub(crate) fn crash(&mut self, random: &mut Random, seen: &mut Seen) {
        self.up = false;
        let staged = self.entries.len() - self.synced;
        let kept = random.below(staged as u64 + 1) as usize;
        if staged > 0 {
            seen.note(if kept > 0 {
                "hub crash after storing, before its receipt"
            } else {
                "hub crash before storing"
            });
        }
        self.truncate(self.synced + kept);
    }

    pub(crate) fn restore(&mut self, length: usize, seen: &mut Seen) {
        self.up = false;
        if length < self.synced {
            seen.note("hub restored to less");
        }
        self.truncate(length.min(self.entries.len()));
        self.backups.retain(|backup| *backup <= length);
    }

    fn truncate(&mut self, length: usize) {
        self.snapshot = self.snapshot.take().filter(|(_, kept)| *kept <= length);
        self.entries.truncate(length);
        self.synced = length;
        self.ids = self.entries.iter().filter(|entry| !entry.void).map(|entry| entry.id).collect();
        self.ever.extend(self.ids.iter().copied());
    }

    pub(crate) fn take_snapshot(&mut self) {
        self.sync();
        self.snapshot = Some((self.intake.clone(), self.synced));
    }

    pub(crate) fn start(&mut self, incarnation: u64) {
        self.up = true;
        let mut epochs: Vec<Through> = Vec::new();
        for entry in &self.entries {
            let through = Through { epoch: entry.epoch, through: entry.sequence, chain: entry.chain };
            match epochs.iter_mut().find(|known| known.epoch == entry.epoch) {
                Some(known) => *known = through,
                None => epochs.push(through),
            }
        }
        self.intake = Intake::restored(lane(), incarnation, epochs);
        if let Some(last) = self.backups.last().and_then(|length| self.entries[..*length].last()) {
            self.intake.backed_up(last.epoch, last.sequence);
        }
    }

    /// Whether the last backup holds it.
    pub(crate) fn has_backup_of(&self, id: TransactionId) -> bool {
        let length = self.backups.last().copied().unwrap_or(0);
        self.entries[..length].iter().any(|entry| entry.id == id)
    }
}
