//! A lane's epochs: which number names which positions on the wire (design section 12.2).
//!
//! An epoch begins after a position, where the hub's line ended with its *link*. From there on each position has the next
//! number, except that one *entry* has a single number for a whole range of positions that cannot be read any more.

use serde::{Deserialize, Serialize};

use crate::chain::Through;
use crate::transaction::{Epoch, Position, Sequence, TransactionId, UnixMillis};

/// Epochs that a lane remembers. An end in one that is forgotten is like another box's.
const MOST_EPOCHS: usize = 1_024;
/// Ranges of older numbers that an entry names.
pub(crate) const MOST_NAMES: usize = 64;

/// Why an entry is in the place of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// They are lost, and a person has released them.
    Void,
    /// They were confirmed once, and deleted after that.
    Pruned,
}

/// Positions that cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gone {
    /// The first.
    pub from: Position,
    /// The last.
    pub through: Position,
    /// What goes out in their place; `None`: a person has to decide.
    pub kind: Option<EntryKind>,
}

/// Numbers of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Numbers {
    /// The epoch.
    pub epoch: Epoch,
    /// The first.
    pub from: Sequence,
    /// The last.
    pub through: Sequence,
}

/// Numbers of a hub's line whose transactions its store has lost for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LostNumbers {
    /// Their epoch.
    pub epoch: Epoch,
    /// The first.
    pub from: Sequence,
    /// The last.
    pub through: Sequence,
    /// The newest epoch of the line that was in it when that was noted: what it and older ones name again is lost too, as they have
    /// no content of their own for it.
    pub newest: Epoch,
}

/// One number in the place of a range of positions. It never changes, and stays an entry in later epochs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// The first position.
    pub from: Position,
    /// The last.
    pub through: Position,
    /// Why.
    pub kind: EntryKind,
    /// Its own id.
    pub id: TransactionId,
    /// When it was made.
    pub time: UnixMillis,
    /// The reason of the person who released them; empty for pruned ones.
    pub reason: String,
    /// The numbers that the positions had in older epochs, oldest first.
    pub names: Vec<Numbers>,
}

/// The beginning of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// It names the positions after this.
    pub base: Position,
    /// The end of the hub's line where it begins; `None`: an empty line.
    pub link: Option<Through>,
    /// The epochs of this lane before it through which the hub's line was known to lead: the one of the link, and the one of the
    /// point that proved `base`, which is another one where the link lies in another history.
    pub follows: Vec<Epoch>,
    /// In the order of their positions, all after `base`.
    pub entries: Vec<Entry>,
}

impl EpochStart {
    /// The entry that a position is in.
    #[must_use]
    pub fn entry_at(&self, position: Position) -> Option<&Entry> {
        let after = self.entries.partition_point(|entry| entry.through < position);
        self.entries.get(after).filter(|entry| entry.from <= position)
    }

    /// The number of a position; 0 for those that it does not name.
    #[must_use]
    pub fn number(&self, position: Position) -> Sequence {
        let Some(distance) = position.checked_sub(self.base) else { return 0 };
        let before = self.entries.iter().take_while(|entry| entry.from <= position);
        // Of an entry's positions only the first counts.
        let more = before.map(|entry| entry.through.min(position) - entry.from).sum::<u64>();
        distance - more
    }

    /// The positions, first and last, that a number names. Number 0 gives the position before the epoch, twice.
    #[must_use]
    pub fn positions(&self, sequence: Sequence) -> (Position, Position) {
        let mut position = self.base.saturating_add(sequence);
        for entry in &self.entries {
            if entry.from > position {
                break;
            }
            if entry.from == position {
                return (position, entry.through);
            }
            position = position.saturating_add(entry.through - entry.from);
        }
        (position, position)
    }
}

/// A lane's epochs, oldest first; the last is the present one. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<EpochStart>", into = "Vec<EpochStart>")]
pub struct Numbering {
    older: Vec<EpochStart>,
    present: EpochStart,
}

impl Numbering {
    /// A lane in its first epoch.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        let present = EpochStart { epoch, base: 0, link: None, follows: Vec::new(), entries: Vec::new() };
        Self { older: Vec::new(), present }
    }

    /// The epochs, newest first.
    pub fn epochs(&self) -> impl Iterator<Item = &EpochStart> {
        std::iter::once(&self.present).chain(self.older.iter().rev())
    }

    /// The epoch in which transactions are sent.
    #[must_use]
    pub fn present(&self) -> &EpochStart {
        &self.present
    }

    /// An epoch of this lane.
    #[must_use]
    pub fn of(&self, epoch: Epoch) -> Option<&EpochStart> {
        self.epochs().find(|start| start.epoch == epoch)
    }

    /// The newest epoch that names a position (from 1); `None`: it was forgotten.
    #[must_use]
    pub fn at(&self, position: Position) -> Option<&EpochStart> {
        self.epochs().find(|start| start.base < position)
    }

    /// Epoch and sequence of a position (from 1); `None`: they were forgotten.
    #[must_use]
    pub fn wire(&self, position: Position) -> Option<(Epoch, Sequence)> {
        self.at(position).map(|start| (start.epoch, start.number(position)))
    }

    /// The last position that a number of an epoch names; sequence 0 gives the epoch's base. `None`: no epoch of this lane.
    #[must_use]
    pub fn position(&self, epoch: Epoch, sequence: Sequence) -> Option<Position> {
        self.of(epoch).map(|start| start.positions(sequence).1)
    }

    /// The entries after `after`, which stay what they are in every later epoch.
    #[must_use]
    pub fn entries_after(&self, after: Position) -> Vec<Entry> {
        let mut kept: Vec<Entry> = Vec::new();
        for entry in self.epochs().flat_map(|start| &start.entries).filter(|entry| entry.from > after) {
            insert_apart(&mut kept, entry);
        }
        kept
    }

    /// The positions, first to last, for which the hub's line has an entry, as far as this lane knows: in the present epoch, and
    /// before it in the epochs that it follows. An epoch that the hub's line does not lead through says nothing.
    #[must_use]
    pub fn entries_of_line(&self) -> Vec<(Position, Position)> {
        let mut through = Position::MAX;
        let mut found = Vec::new();
        for start in self.line_through(self.present.epoch) {
            // Of an entry in whose midst a later epoch begins nothing says that it did not come to the line.
            let there = start.entries.iter().filter(|entry| entry.from <= through);
            found.extend(there.map(|entry| (entry.from, entry.through.min(through))));
            through = through.min(start.base);
        }
        found
    }

    /// The epochs through which the hub's line is known to lead back from this one, newest first. It comes to them in the order in
    /// which they began.
    fn line_through(&self, epoch: Epoch) -> Vec<&EpochStart> {
        self.line_of(vec![epoch], epoch)
    }

    /// The same where these epochs are known to be in it too.
    fn line_of(&self, mut known: Vec<Epoch>, newest: Epoch) -> Vec<&EpochStart> {
        let mut line = Vec::new();
        for start in self.epochs().skip_while(|start| start.epoch != newest) {
            if known.contains(&start.epoch) {
                line.push(start);
                known.extend(&start.follows);
                // An epoch has one beginning, so what any other has learnt of the line before it is as true here. What is newer
                // than this one was passed already.
                let joins = |link: Through| {
                    link.epoch == start.epoch || start.link.is_some_and(|at| at.epoch == link.epoch)
                };
                let others = self.epochs().filter(|other| other.link.is_some_and(joins));
                known.extend(others.flat_map(|other| &other.follows));
            }
        }
        line
    }

    /// The newest epoch of this lane that a line with this end leads through; `None`: nothing says that there is one.
    #[must_use]
    pub fn newest_in_line(&self, end: Through) -> Option<Epoch> {
        if self.of(end.epoch).is_some() {
            return Some(end.epoch);
        }
        let linked = self.epochs().find(|start| start.link == Some(end))?;
        self.line_through(linked.epoch).get(1).map(|before| before.epoch)
    }

    /// The positions of numbers that a hub's line names and its store has not got, first to last, in order: those that no epoch
    /// which has come to the line since then names again. `end`: this lane's newest epoch that the line leads through, and through
    /// which number at least; `ends_here`: the line ends in it, and not in another history.
    #[must_use]
    pub fn lost_positions(
        &self,
        lost: &[LostNumbers],
        end: (Epoch, Sequence),
        ends_here: bool,
    ) -> Vec<(Position, Position)> {
        // What it has lost, and was newest then, is in it besides.
        let named = lost.iter().flat_map(|lost| [lost.epoch, lost.newest]);
        let line = self.line_of(std::iter::once(end.0).chain(named).collect(), end.0);
        // The positions that each epoch names in the line: it ends where the next one begins, if that is this lane's.
        let named: Vec<_> = (0..line.len())
            .filter_map(|at| {
                let start = line.get(at)?;
                let next = at.checked_sub(1).and_then(|next| line.get(next)?.link);
                let through = match next.filter(|link| link.epoch == start.epoch) {
                    Some(link) => link.through,
                    None if at == 0 => end.1,
                    None => 0,
                };
                Some((start.base.saturating_add(1), start.positions(through).1))
            })
            .collect();
        let mut found = Vec::new();
        for lost in lost {
            let Some(at) = line.iter().position(|start| start.epoch == lost.epoch) else { continue };
            let Some(start) = line.get(at) else { continue };
            let since = self.since(&line, lost.newest).unwrap_or(if ends_here { at } else { 0 });
            let mut left = vec![(start.positions(lost.from.max(1)).0, start.positions(lost.through).1)];
            for (first, last) in named.iter().take(since.min(at)).copied() {
                let parts = left.into_iter().flat_map(|(from, through)| {
                    [(from, through.min(first - 1)), (from.max(last.saturating_add(1)), through)]
                });
                left = parts.filter(|(from, through)| from <= through).collect();
            }
            found.append(&mut left);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// How many of these epochs of the line, newest first, have come after the epoch `newest`, which is in the line; `None`: nothing
    /// says so.
    fn since(&self, line: &[&EpochStart], newest: Epoch) -> Option<usize> {
        let links_to = |start: &&EpochStart| start.link.is_some_and(|link| link.epoch == newest);
        // It may be another history's, which none of these links to: then what links to another history has come after it.
        let is_beside = |start: &&EpochStart| start.link.is_some_and(|link| self.of(link.epoch).is_none());
        let after = |found: Option<usize>| found.map(|at| at + 1);
        let own = line.iter().position(|start| start.epoch == newest);
        own.or_else(|| after(line.iter().position(links_to)))
            .or_else(|| after(line.iter().position(is_beside)))
    }

    /// The numbers that a range of positions has in the epochs so far, oldest first.
    #[must_use]
    pub fn names(&self, from: Position, through: Position) -> Vec<Numbers> {
        let named = |start: &EpochStart| {
            let first = from.max(start.base.saturating_add(1));
            (first <= through).then(|| Numbers {
                epoch: start.epoch,
                from: start.number(first),
                through: start.number(through),
            })
        };
        let mut names: Vec<_> = self.epochs().filter_map(named).take(MOST_NAMES).collect();
        names.reverse();
        names
    }

    /// A copy with the newest epochs only, at least the present one.
    #[must_use]
    pub fn newest(&self, most: usize) -> Self {
        let from = self.older.len() - self.older.len().min(most.saturating_sub(1));
        Self { older: self.older.iter().skip(from).cloned().collect(), present: self.present.clone() }
    }

    /// Positions after `after` belong to `epoch` from now on. `made` are the new entries, in any order; older ones stay.
    #[must_use]
    pub fn begun(
        &self,
        epoch: Epoch,
        link: Option<Through>,
        follows: Vec<Epoch>,
        after: Position,
        made: Vec<Entry>,
    ) -> Self {
        let mut entries = self.entries_after(after);
        for entry in made.iter().filter(|entry| entry.from > after) {
            insert_apart(&mut entries, entry);
        }
        let mut older = self.older.clone();
        older.push(self.present.clone());
        if older.len() >= MOST_EPOCHS {
            older.remove(0);
        }
        Self { older, present: EpochStart { epoch, base: after, link, follows, entries } }
    }
}

impl TryFrom<Vec<EpochStart>> for Numbering {
    type Error = &'static str;

    fn try_from(mut epochs: Vec<EpochStart>) -> Result<Self, Self::Error> {
        let in_order = |start: &EpochStart| {
            let mut last = start.base;
            start.entries.iter().all(|entry| {
                let follows = entry.from > last && entry.through >= entry.from;
                last = entry.through;
                follows
            })
        };
        if !epochs.iter().all(in_order) {
            return Err("entries that overlap");
        }
        let present = epochs.pop().ok_or("no epoch")?;
        Ok(Self { older: epochs, present })
    }
}

impl From<Numbering> for Vec<EpochStart> {
    fn from(numbering: Numbering) -> Self {
        let mut epochs = numbering.older;
        epochs.push(numbering.present);
        epochs
    }
}

/// Inserts an entry where its positions are free: two numbers for one position would leave another without any.
fn insert_apart(entries: &mut Vec<Entry>, entry: &Entry) {
    let place = entries.partition_point(|other| other.from < entry.from);
    let before = place.checked_sub(1).and_then(|at| entries.get(at));
    let is_free = entries.get(place).is_none_or(|next| next.from > entry.through)
        && before.is_none_or(|before| before.through < entry.from);
    if is_free {
        entries.insert(place, entry.clone());
    }
}

/// What of `gone` lies after `after` and is in none of `entries`, in order.
#[must_use]
pub fn without(gone: &[Gone], entries: &[Entry], after: Position) -> Vec<Gone> {
    let mut left = Vec::new();
    for range in gone {
        let first = range.from.max(after.saturating_add(1));
        let mut from = first;
        for entry in entries.iter().filter(|entry| entry.through >= first && entry.from <= range.through) {
            if entry.from > from {
                left.push(Gone { from, through: entry.from - 1, ..*range });
            }
            from = entry.through.saturating_add(1);
        }
        if from <= range.through {
            left.push(Gone { from, ..*range });
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ChainValue;
    use uuid::Uuid;

    fn epoch(number: u128) -> Epoch {
        Epoch(Uuid::from_u128(number))
    }

    fn entry(from: Position, through: Position) -> Entry {
        let id = TransactionId(Uuid::from_u128(u128::from(from)));
        Entry { from, through, kind: EntryKind::Void, id, time: 0, reason: String::new(), names: Vec::new() }
    }

    fn link() -> Option<Through> {
        Some(Through { epoch: epoch(1), through: 4, chain: ChainValue([1; 32]) })
    }

    #[test]
    fn numbers_and_positions_are_each_others_inverse() {
        let start = EpochStart {
            epoch: epoch(1),
            base: 10,
            link: None,
            follows: Vec::new(),
            entries: vec![entry(11, 13), entry(16, 16), entry(18, 30)],
        };
        // 11-13 are number 1, 14 is 2, 15 is 3, 16 is 4, 17 is 5, 18-30 are 6, 31 is 7.
        for (sequence, positions) in [
            (0, (10, 10)),
            (1, (11, 13)),
            (2, (14, 14)),
            (4, (16, 16)),
            (5, (17, 17)),
            (6, (18, 30)),
            (7, (31, 31)),
        ] {
            assert_eq!(start.positions(sequence), positions, "{sequence}");
            for position in positions.0..=positions.1 {
                assert_eq!(start.number(position), sequence, "{position}");
            }
        }
        assert_eq!(start.entry_at(12).map(|entry| entry.from), Some(11));
        assert_eq!(start.entry_at(17), None);
    }

    #[test]
    fn an_entry_stays_in_every_later_epoch_that_begins_before_it() {
        let numbering =
            Numbering::new(epoch(1)).begun(epoch(2), link(), vec![epoch(1)], 4, vec![entry(8, 9)]);
        assert_eq!(numbering.present().positions(4), (8, 9));
        let back = numbering.begun(epoch(3), link(), vec![epoch(1)], 2, vec![entry(3, 5)]);
        assert_eq!(back.present().entries.iter().map(|entry| entry.from).collect::<Vec<_>>(), [3, 8]);
        let after = back.begun(epoch(4), link(), vec![epoch(1)], 9, Vec::new());
        assert!(after.present().entries.is_empty());
        assert_eq!(after.begun(epoch(5), link(), vec![epoch(1)], 0, Vec::new()).present().entries.len(), 2);
        // Of a range that begins before, nothing stays as it is.
        assert_eq!(after.begun(epoch(5), link(), vec![epoch(1)], 8, Vec::new()).present().entries.len(), 0);
    }

    #[test]
    fn no_position_is_in_two_entries() {
        let numbering =
            Numbering::new(epoch(1)).begun(epoch(2), link(), vec![epoch(1)], 4, vec![entry(8, 10)]);
        // The same epoch is asked for twice: the link had ended before the first was written.
        let twice = numbering.begun(
            epoch(3),
            link(),
            vec![epoch(1)],
            4,
            vec![entry(8, 10), entry(9, 12), entry(3, 4)],
        );
        assert_eq!(twice.present().entries, [entry(8, 10)]);
        for position in 5..20 {
            let number = twice.present().number(position);
            let (first, last) = twice.present().positions(number);
            assert!((first..=last).contains(&position), "{position} has a number");
        }
        assert!(Numbering::try_from(Vec::from(twice)).is_ok());
    }

    #[test]
    fn an_epoch_that_the_line_does_not_lead_through_has_no_entry_in_it() {
        let at = |of, through| Some(Through { epoch: epoch(of), through, chain: ChainValue([1; 32]) });
        let first = Numbering::new(epoch(1)).begun(epoch(2), at(1, 4), vec![epoch(1)], 4, vec![entry(6, 7)]);
        // An empty hub, then the true one again.
        let empty = first.begun(epoch(3), None, Vec::new(), 0, vec![entry(1, 5)]);
        let again = empty.begun(epoch(4), at(2, 8), vec![epoch(2)], 13, vec![entry(15, 16)]);
        let from = |numbering: &Numbering| {
            numbering.entries_of_line().into_iter().map(|(from, _)| from).collect::<Vec<_>>()
        };
        assert_eq!(from(&empty), [1, 6], "what was an entry stays one");
        assert_eq!(from(&again), [15, 6]);
        // What proves the next beginning may lie in the midst of an entry.
        let amid = again.begun(epoch(5), at(4, 9), vec![epoch(4)], 15, Vec::new());
        assert_eq!(amid.entries_of_line(), [(15, 15), (6, 7)]);
        // Another history's end says nothing of the entries before: the epoch does in which the base was proven.
        for (follows, entries) in [(4, &[15, 6][..]), (3, &[1, 6]), (2, &[6])] {
            let foreign = again.begun(epoch(5), at(9, 3), vec![epoch(follows)], 20, Vec::new());
            assert_eq!(from(&foreign), entries, "{follows}");
            assert_eq!(foreign.newest_in_line(at(9, 3).unwrap()), Some(epoch(follows)));
        }
        // The third began where nothing was proven; later the line is known to have led through the second before that.
        let both = again.begun(epoch(5), at(3, 1), vec![epoch(3), epoch(2)], 20, Vec::new());
        let line: Vec<_> = both.line_through(epoch(5)).iter().map(|start| start.epoch).collect();
        assert_eq!(line, [5, 3, 2, 1].map(epoch));
        // The box knows it also where the next epoch begins without that proof, there or at the same stranger's end.
        let aside = both.begun(epoch(6), None, Vec::new(), 0, Vec::new());
        let back = aside.begun(epoch(7), at(3, 2), vec![epoch(3)], 20, Vec::new());
        let line: Vec<_> = back.line_through(epoch(7)).iter().map(|start| start.epoch).collect();
        assert_eq!(line, [7, 3, 2, 1].map(epoch));
        let beside = again.begun(epoch(5), at(9, 3), vec![epoch(2)], 20, Vec::new());
        let beside = beside.begun(epoch(6), at(9, 4), Vec::new(), 0, Vec::new());
        let line: Vec<_> = beside.line_through(epoch(6)).iter().map(|start| start.epoch).collect();
        assert_eq!(line, [6, 2, 1].map(epoch));
    }

    #[test]
    fn what_the_hub_has_lost_is_lost_unless_a_later_epoch_of_its_line_names_it_again() {
        let at = |of, through| Through { epoch: epoch(of), through, chain: ChainValue([1; 32]) };
        let first = Numbering::new(epoch(1));
        let second = first.begun(epoch(2), Some(at(1, 20)), vec![epoch(1)], 20, vec![entry(22, 25)]);
        let lost = |of, (from, through), newest| {
            let (epoch, newest) = (epoch(of), epoch(newest));
            LostNumbers { epoch, from, through, newest }
        };
        let positions = |numbering: &Numbering, lost: &[LostNumbers], end| {
            assert_eq!(numbering.newest_in_line(at(end, 1)), Some(epoch(end)));
            numbering.lost_positions(lost, (epoch(end), 100), true)
        };
        let named = [lost(2, (1, 3), 2), lost(1, (4, 6), 2), lost(9, (1, 5), 2)];
        assert_eq!(positions(&second, &named, 2), [(4, 6), (21, 26)], "also what an entry stands for");
        assert_eq!(positions(&second, &named, 1), [(4, 6)], "the line does not lead through the second");
        // A later epoch begins before some of it, and was there when it was lost, or not.
        let third = second.begun(epoch(3), Some(at(2, 9)), vec![epoch(2)], 5, Vec::new());
        assert_eq!(positions(&third, &named, 3), [(4, 5)]);
        assert_eq!(positions(&third, &named, 2), [(4, 6), (21, 26)], "it has not come to the hub");
        assert_eq!(positions(&third, &[lost(1, (4, 6), 3)], 3), [(4, 6)], "it has no content for it");
        // A stranger's end, at which an epoch of this lane begins.
        let fourth = third.begun(epoch(4), Some(at(8, 2)), vec![epoch(3)], 4, Vec::new());
        assert_eq!(fourth.newest_in_line(at(8, 2)), Some(epoch(3)));
        assert_eq!(fourth.newest_in_line(at(8, 3)), None);
        for newest in [3, 8, 7] {
            assert_eq!(positions(&fourth, &[lost(1, (4, 6), newest)], 4), [(4, 4)], "{newest}");
        }
        assert_eq!(positions(&fourth, &[lost(1, (4, 6), 4)], 4), [(4, 6)]);
        // The line has led through what it has lost, whatever the box knows of that.
        let apart = first.begun(epoch(2), Some(at(8, 2)), Vec::new(), 0, Vec::new());
        assert_eq!(positions(&apart, &[lost(1, (4, 6), 2)], 2), [(4, 6)]);
        // As far as it has come.
        assert_eq!(third.lost_positions(&[lost(1, (4, 8), 2)], (epoch(3), 2), true), [(4, 5), (8, 8)]);
        let beside = third.begun(epoch(4), Some(at(3, 1)), vec![epoch(3)], 19, Vec::new());
        assert_eq!(beside.lost_positions(&[lost(1, (4, 8), 2)], (epoch(4), 0), true), [(4, 5), (7, 8)]);
        // Another history's, which this lane's epochs do not lead to: they have come after it, or the line ends in it.
        let strange = [lost(1, (4, 6), 7)];
        assert_eq!(positions(&third, &strange, 3), [(4, 5)]);
        assert_eq!(third.lost_positions(&strange, (epoch(3), 100), false), [(4, 6)]);
    }

    #[test]
    fn the_newest_epoch_names_a_position_and_older_ones_are_remembered() {
        let second = Numbering::new(epoch(1)).begun(epoch(2), link(), vec![epoch(1)], 6, vec![]);
        let numbering = second.begun(epoch(3), link(), vec![epoch(1)], 4, vec![]);
        assert_eq!(numbering.wire(4), Some((epoch(1), 4)));
        assert_eq!(numbering.wire(8), Some((epoch(3), 4)));
        assert_eq!(numbering.position(epoch(2), 3), Some(9));
        assert_eq!(numbering.position(epoch(9), 3), None);
        let named = |from, through| Numbers { epoch: epoch(0), from, through };
        let names = numbering.names(6, 8);
        assert_eq!(names.iter().map(|n| n.epoch).collect::<Vec<_>>(), [epoch(1), epoch(2), epoch(3)]);
        assert_eq!((names[1].from, names[1].through), (named(1, 2).from, named(1, 2).through));
        let text = serde_json::to_string(&numbering).unwrap();
        assert_eq!(serde_json::from_str::<Numbering>(&text).unwrap(), numbering);
        assert!(serde_json::from_str::<Numbering>("[]").is_err());
    }

    #[test]
    fn what_an_entry_names_is_not_gone_twice() {
        let gone = [
            Gone { from: 1, through: 20, kind: Some(EntryKind::Pruned) },
            Gone { from: 30, through: 31, kind: None },
        ];
        let left = without(&gone, &[entry(5, 7), entry(20, 22)], 2);
        assert_eq!(
            left.iter().map(|gone| (gone.from, gone.through)).collect::<Vec<_>>(),
            [(3, 4), (8, 19), (30, 31)]
        );
        assert_eq!(without(&gone, &[], 31), []);
    }
}
