//! Walks the lines of a lane and reports where they do not follow from each other; pure.

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::numbering::Numbers;
use pgw_core::transaction::{Epoch, Sequence};
use pgw_core::wire::attributes::source;
use pgw_core::wire::signature::KeyId;

use super::line::Line;
use super::{LaneName, Through};

/// A line that does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A line that is not of this format.
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
        /// The lane that it names.
        owner: String,
    },
    /// Sequences are missing.
    #[error("sequences {from} to {to} of epoch {epoch} are missing")]
    Missing {
        /// Their epoch.
        epoch: Epoch,
        /// The first.
        from: Sequence,
        /// The last.
        to: Sequence,
    },
    /// A sequence that was already there, or comes after a later one.
    #[error("sequence {sequence} of epoch {epoch} is repeated or out of order: it comes after {after}")]
    Repeated {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
        /// The sequence before it.
        after: Sequence,
    },
    /// The chain value does not follow from the content and the value before.
    #[error("sequence {sequence} of epoch {epoch} is altered: its chain value does not follow")]
    Altered {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
    },
    /// A number refers to a content that is not stored.
    #[error(
        "sequence {sequence} of epoch {epoch} names transaction {id}, which is not stored with that content"
    )]
    Lost {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
        /// The id.
        id: uuid::Uuid,
    },
    /// It does not continue the line: its epoch begins, or goes on, elsewhere than at the end.
    #[error(
        "sequence {sequence} of epoch {epoch} does not continue the lane, which ends elsewhere before it"
    )]
    Link {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
    },
    /// A rival is named that is not the transaction before it.
    #[error("the rival at sequence {sequence} of epoch {epoch} does not belong to the lines before it")]
    Rival {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
    },
    /// A signature is kept for a number that is not the one before it.
    #[error("the signature of sequence {sequence} of epoch {epoch} does not belong to the lines before it")]
    Head {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
    },
    /// A signature is not that of the key that the line names.
    #[error("the signature of sequence {sequence} of epoch {epoch} is not that of key {key}")]
    Signature {
        /// The epoch.
        epoch: Epoch,
        /// The sequence.
        sequence: Sequence,
        /// The key.
        key: KeyId,
    },
    /// A line with a signature that is not of this format: no transaction is lost with it.
    #[error(
        "a signature cannot be read (after sequence {after} of epoch {epoch}); no transaction is lost with it"
    )]
    UnreadableHead {
        /// Epoch of the last good line; nil: none yet.
        epoch: Epoch,
        /// Its sequence.
        after: Sequence,
    },
    /// A file does not follow the one before it.
    #[error("{}; this one does not follow sequence {after} of epoch {epoch}", missing(previous.as_deref()))]
    File {
        /// The name of the file before it; `None`: it is the lane's first.
        previous: Option<String>,
        /// Epoch of the last good line; nil: none.
        epoch: Epoch,
        /// Its sequence.
        after: Sequence,
    },
    /// A group begins with other watermarks than those of the lines before it.
    #[error(
        "the watermarks of the group after sequence {after} of epoch {epoch} do not fit the lines before it"
    )]
    Watermarks {
        /// Epoch of the last good line; nil: none yet.
        epoch: Epoch,
        /// Its sequence.
        after: Sequence,
    },
}

fn missing(previous: Option<&str>) -> String {
    match previous {
        Some(previous) => {
            format!("a file is missing between {previous} and this one, or {previous} has lost its end")
        }
        None => "the lane's first file is missing, or more".to_owned(),
    }
}

impl Fault {
    /// The numbers whose transactions would repair it, at most this many.
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

/// The numbers between two states of a line; `None`: the one does not lead to the other, or there are none.
#[must_use]
pub fn between(ends: &[Through], until: &[Through]) -> Option<Vec<Numbers>> {
    let ended = ends.len().saturating_sub(1);
    let goes_on =
        |last: &Through, to: &Through| to.epoch == last.epoch && (to == last || to.through > last.through);
    let follows = until.get(..ended) == ends.get(..ended)
        && ends.last().is_none_or(|last| until.get(ended).is_some_and(|to| goes_on(last, to)));
    let numbers = until.iter().skip(ended).filter_map(|to| {
        let from = ends.iter().find(|end| end.epoch == to.epoch).map_or(0, |end| end.through) + 1;
        (from <= to.through).then_some(Numbers { epoch: to.epoch, from, through: to.through })
    });
    Some(numbers.collect::<Vec<_>>()).filter(|numbers| follows && !numbers.is_empty())
}

/// A part of a line that is lost for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPart {
    /// Its numbers, of one epoch.
    pub numbers: Numbers,
    /// All epochs that the lane's files named when that was noted, in the order of the line.
    pub line: Vec<Epoch>,
}

/// The state of a walk.
#[derive(Debug, Clone)]
pub struct Walk {
    lane: LaneName,
    watermarks: Vec<Through>,
    /// The chain value that the last record should have had, if it had another.
    computed: Option<(Epoch, ChainValue)>,
    last: (Epoch, Sequence),
    begun: bool,
    /// What is lost for good.
    lost: Vec<LostPart>,
}

impl Walk {
    /// Starts before the first line, or before any line that begins a group.
    #[must_use]
    pub fn new(lane: LaneName) -> Self {
        let last = (Epoch(uuid::Uuid::nil()), 0);
        Self { lane, watermarks: Vec::new(), computed: None, last, begun: false, lost: Vec::new() }
    }

    /// Starts before the first line of a lane, before which there is nothing.
    #[must_use]
    pub fn from_first(lane: LaneName) -> Self {
        Self { begun: true, ..Self::new(lane) }
    }

    /// Where each epoch ends after the lines so far, in the order of the line.
    #[must_use]
    pub fn watermarks(&self) -> &[Through] {
        &self.watermarks
    }

    /// What the lines so far say is lost for good.
    #[must_use]
    pub fn lost(&self) -> &[LostPart] {
        &self.lost
    }

    /// The watermark of an epoch; before its first transaction if it is new and begins here.
    #[must_use]
    pub fn watermark_of(&self, epoch: Epoch) -> Through {
        let known = self.watermarks.iter().find(|watermark| watermark.epoch == epoch).copied();
        let first = || ChainValue::first(&self.lane, epoch, self.watermarks.last());
        known.unwrap_or_else(|| Through { epoch, through: 0, chain: first() })
    }

    /// The number of the last line.
    #[must_use]
    pub fn last(&self) -> (Epoch, Sequence) {
        self.last
    }

    /// Takes the next line; `None` is a line that could not be read. After a fault the walk continues from what the line says
    /// about itself.
    ///
    /// # Errors
    /// The first [`Fault`] of this line.
    pub fn step(&mut self, line: Option<&Line<'_>>) -> Result<(), Fault> {
        let (epoch, after) = self.last;
        let Some(line) = line else {
            self.begun = true;
            return Err(Fault::Unreadable { epoch, after });
        };
        match line {
            Line::Group(watermarks) => {
                let fits = !self.begun || *watermarks == self.watermarks;
                self.begun = true;
                if !fits {
                    // What the lines said is kept: the next transaction then shows a gap by its sequence.
                    return Err(Fault::Watermarks { epoch, after });
                }
                self.watermarks.clone_from(watermarks);
                Ok(())
            }
            Line::Lost { until, line } => {
                let Some(lost) = between(&self.watermarks, until) else {
                    return Err(Fault::Watermarks { epoch, after });
                };
                self.lost.extend(lost.into_iter().map(|numbers| LostPart { numbers, line: line.clone() }));
                self.watermarks.clone_from(until);
                self.computed = None;
                self.last = until.last().map_or(self.last, |end| (end.epoch, end.through));
                Ok(())
            }
            Line::Record(record) => {
                let owner = record.attribute("source").to_owned();
                if owner != source(&self.lane) {
                    return Err(Fault::Foreign {
                        epoch: record.watermark.epoch,
                        sequence: record.watermark.through,
                        owner,
                    });
                }
                self.advance(record.watermark, record.link.as_ref(), || record.digest())
            }
            Line::Advance(advance) => {
                self.advance(advance.watermark, advance.link.as_ref(), || advance.digest)
            }
            Line::Archived(archived) => {
                self.advance(archived.watermark, archived.link.as_ref(), || archived.digest)
            }
            Line::Rival { at, .. } => {
                let here = self.watermark_of(at.epoch) == *at && self.last == (at.epoch, at.through);
                here.then_some(()).ok_or(Fault::Rival { epoch: at.epoch, sequence: at.through })
            }
            Line::Head(head) => {
                let (at, here) = (head.at, self.watermark_of(head.at.epoch));
                if here == at {
                    Ok(())
                } else if here.through < at.through {
                    // What it was written after is lost.
                    self.set(at, None);
                    Err(Fault::Missing { epoch: at.epoch, from: here.through + 1, to: at.through })
                } else {
                    Err(Fault::Head { epoch: at.epoch, sequence: at.through })
                }
            }
            Line::Other(Some(watermark)) => {
                self.set(*watermark, None);
                Ok(())
            }
            Line::Other(None) => Ok(()),
        }
    }

    fn advance(
        &mut self,
        watermark: Through,
        link: Option<&Through>,
        digest: impl FnOnce() -> Digest,
    ) -> Result<(), Fault> {
        self.begun = true;
        let mut before = self.watermark_of(watermark.epoch);
        let (epoch, sequence) = (watermark.epoch, watermark.through);
        if sequence <= before.through {
            return Err(Fault::Repeated { epoch, sequence, after: before.through });
        }
        let end = self.watermarks.last().copied();
        let begins = before.through == 0;
        let continues = begins || end.is_some_and(|end| end.epoch == epoch);
        if sequence > before.through + 1 {
            self.set(watermark, None);
            return Err(Fault::Missing { epoch, from: before.through + 1, to: sequence - 1 });
        }
        // The value at the end may itself have been altered.
        let true_end = end.map(|end| match self.computed {
            Some((of, chain)) if of == end.epoch => Through { chain, ..end },
            _ => end,
        });
        let linked = !begins || link == end.as_ref() || link == true_end.as_ref();
        if begins {
            before.chain = ChainValue::first(&self.lane, epoch, link);
        }
        let digest = digest();
        let computed = before.chain.next(sequence, digest);
        // The value of the transaction before may itself have been altered.
        let other = self.computed.filter(|(of, _)| *of == epoch);
        let follows = computed == watermark.chain
            || other.is_some_and(|(_, value)| value.next(sequence, digest) == watermark.chain);
        self.set(watermark, (!follows).then_some((epoch, computed)));
        match (follows, continues && linked) {
            (false, _) => Err(Fault::Altered { epoch, sequence }),
            (true, false) => Err(Fault::Link { epoch, sequence }),
            (true, true) => Ok(()),
        }
    }

    fn set(&mut self, watermark: Through, computed: Option<(Epoch, ChainValue)>) {
        match self.watermarks.iter_mut().find(|known| known.epoch == watermark.epoch) {
            Some(known) => *known = watermark,
            None => self.watermarks.push(watermark),
        }
        self.last = (watermark.epoch, watermark.through);
        self.computed = computed;
    }
}
