//! Walks the lines of a lane and says where they do not follow from each other; pure.

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Epoch, Sequence};

use super::line::{Line, Record};
use super::{LaneName, Through};

/// Something that does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line that is none of ours.
    #[error("a line cannot be read (after sequence {after} of epoch {epoch})")]
    Unreadable {
        /// Epoch of the last good line; nil: none yet.
        epoch: Epoch,
        /// Its sequence.
        after: Sequence,
    },
    /// A transaction of another lane.
    #[error("sequence {sequence} of epoch {epoch} belongs to another lane: {owner}")]
    Foreign {
        /// The epoch.
        epoch: Epoch,
        /// Its sequence.
        sequence: Sequence,
        /// Whose it says it is.
        owner: String,
    },
    /// Sequences are not there.
    #[error("sequences {from} to {to} of epoch {epoch} are missing")]
    Missing {
        /// Their epoch.
        epoch: Epoch,
        /// The first.
        from: Sequence,
        /// The last.
        to: Sequence,
    },
    /// A sequence that was there already, or comes after a later one.
    #[error("sequence {sequence} of epoch {epoch} is repeated or out of order: it comes after {after}")]
    Repeated {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
        /// The sequence before it.
        after: Sequence,
    },
    /// The chain value does not follow from the content and the one before.
    #[error("sequence {sequence} of epoch {epoch} is altered: its chain value does not follow")]
    Altered {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
    },
    /// A number names an id whose transaction is not stored.
    #[error("sequence {sequence} of epoch {epoch} names transaction {id}, which is not stored")]
    Lost {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
        /// What it names.
        id: uuid::Uuid,
    },
    /// A group begins with other marks than those of the lines before it.
    #[error("the marks of the group after sequence {after} of epoch {epoch} do not fit the lines before it")]
    Marks {
        /// Epoch of the last good line; nil: none yet.
        epoch: Epoch,
        /// Its sequence.
        after: Sequence,
    },
}

impl Fault {
    /// The numbers whose transactions would mend it, at most so many.
    #[must_use]
    pub fn numbers(&self, most: u64) -> Vec<(Epoch, Sequence)> {
        match *self {
            Fault::Missing { epoch, from, to } => {
                (from..=to.min(from.saturating_add(most - 1))).map(|sequence| (epoch, sequence)).collect()
            }
            Fault::Altered { epoch, sequence } | Fault::Foreign { epoch, sequence, .. } => {
                vec![(epoch, sequence)]
            }
            Fault::Unreadable { epoch, after } if !epoch.0.is_nil() => vec![(epoch, after + 1)],
            _ => Vec::new(),
        }
    }
}

/// How far a walk has come.
#[derive(Debug, Clone)]
pub struct Walk {
    lane: LaneName,
    marks: Vec<Through>,
    /// The chain value that the last record should have had, where it had another.
    computed: Option<(Epoch, ChainValue)>,
    last: (Epoch, Sequence),
    begun: bool,
}

impl Walk {
    /// Begins before the first line, or before any line with which a group begins.
    #[must_use]
    pub fn new(lane: LaneName) -> Self {
        let last = (Epoch(uuid::Uuid::nil()), 0);
        Self { lane, marks: Vec::new(), computed: None, last, begun: false }
    }

    /// What the lines so far have brought.
    #[must_use]
    pub fn marks(&self) -> &[Through] {
        &self.marks
    }

    /// The mark of an epoch; before its first transaction if it is new.
    #[must_use]
    pub fn mark_of(&self, epoch: Epoch) -> Through {
        let known = self.marks.iter().find(|mark| mark.epoch == epoch).copied();
        known.unwrap_or_else(|| Through {
            epoch,
            through: 0,
            chain: ChainValue::first(epoch, self.lane.lane.as_str()),
        })
    }

    /// Takes the next line; `None` is one that could not be read. `known` is the record that an advance repeats,
    /// where it is at hand. After a fault the walk continues from what the line says of itself.
    ///
    /// # Errors
    /// The first [`Fault`] of this line.
    pub fn step(&mut self, line: Option<&Line<'_>>, known: Option<&Record<'_>>) -> Result<(), Fault> {
        let (epoch, after) = self.last;
        let Some(line) = line else {
            self.begun = true;
            return Err(Fault::Unreadable { epoch, after });
        };
        match line {
            Line::Group(marks) => {
                let fits = !self.begun || *marks == self.marks;
                self.begun = true;
                if !fits {
                    // What the lines said is kept: a gap is then named by sequence at the next transaction.
                    return Err(Fault::Marks { epoch, after });
                }
                self.marks.clone_from(marks);
                Ok(())
            }
            Line::Record(record) => {
                let mine = [self.lane.practice.as_str(), self.lane.gateway.as_str(), self.lane.lane.as_str()];
                if record.owner != mine {
                    let owner = record.owner.join("/");
                    return Err(Fault::Foreign {
                        epoch: record.mark.epoch,
                        sequence: record.mark.through,
                        owner,
                    });
                }
                self.advance(record.mark, Some(record))
            }
            Line::Advance { mark, .. } => self.advance(*mark, known),
            Line::Void { mark, previous, .. } => {
                let before = self.mark_of(mark.epoch);
                self.advance(*mark, None)?;
                // The value before it may itself have been the altered thing.
                if before.chain == *previous {
                    Ok(())
                } else {
                    Err(Fault::Altered { epoch: mark.epoch, sequence: mark.through })
                }
            }
            Line::Other(Some(mark)) => {
                self.set(*mark, None);
                Ok(())
            }
            Line::Other(None) => Ok(()),
        }
    }

    fn advance(&mut self, mark: Through, content: Option<&Record<'_>>) -> Result<(), Fault> {
        self.begun = true;
        let before = self.mark_of(mark.epoch);
        let (epoch, sequence) = (mark.epoch, mark.through);
        if sequence <= before.through {
            return Err(Fault::Repeated { epoch, sequence, after: before.through });
        }
        if sequence > before.through + 1 {
            self.set(mark, None);
            return Err(Fault::Missing { epoch, from: before.through + 1, to: sequence - 1 });
        }
        let Some(content) = content else {
            self.set(mark, None);
            return Ok(());
        };
        let lane = self.lane.lane.clone();
        let computed = content.chain_after(before.chain, lane.as_str(), &mark);
        // The value of the transaction before may itself have been the altered thing.
        let other = self.computed.filter(|(of, _)| *of == epoch);
        let follows = computed == mark.chain
            || other.is_some_and(|(_, value)| content.chain_after(value, lane.as_str(), &mark) == mark.chain);
        self.set(mark, (!follows).then_some((epoch, computed)));
        if follows { Ok(()) } else { Err(Fault::Altered { epoch, sequence }) }
    }

    fn set(&mut self, mark: Through, computed: Option<(Epoch, ChainValue)>) {
        match self.marks.iter_mut().find(|known| known.epoch == mark.epoch) {
            Some(known) => *known = mark,
            None => self.marks.push(mark),
        }
        self.last = (mark.epoch, mark.through);
        self.computed = computed;
    }
}
