//! The committer: what the hub stores, what it answers, and when. Sans-IO, all lanes of all gateways of one hub.
//!
//! A lane is one line, of which only the end grows (design section 12.2). The number after the end is checked against the chain
//! and joins the group that is stored next; a lower one is answered by the receipt again; a higher one is ignored, with one
//! gap notice for each expected number and round. An epoch begins only where its link is the end. A driver gives
//! [`Committer`] each event ([`Input`]) and carries out its [`Action`]s. It has no clock, no randomness, no files and no
//! threads, so that the simulation and the exhaustive model drive exactly what the hub's store thread runs.
//!
//! The rules that everything else follows from:
//! - a receipt says what the store has on stable storage, never more: a taken transaction is *staged* until [`Input::Stored`];
//! - after [`Input::StoreFailed`] every lane of the group begins again from the store's own watermarks, and the hub pauses;
//! - a lane that the store cannot use ([`Lookup::watermarks_of`]) stops no other: nothing is said of it, and what the store has
//!   of it counts when it can be used again; where the store cannot tell what it has of a lane, only that lane pauses;
//! - a transaction whose id is in the line with the same content is not stored again, only its number; one with another content
//!   is stored under its own number, as a rival;
//! - what verifies and cannot continue the line is kept once beside it, as *late*: it makes no id known;
//! - an entry for transactions that the gateway no longer has waits until the centre admits it, unless the hub has it already;
//! - nothing is stored that its gateway has not signed. The chain value at a number proves everything before it, so only the
//!   last transaction of each lane in a group is verified; if that fails, a verified beginning, found by bisection, is stored,
//!   and the rest is treated as if it had not arrived.
//!
//! A driver's turn, for every event: `handle(input, now, &mut store, &mut actions)`, and carry out the actions in their order.
//! After [`Action::Append`] the next input is [`Input::Stored`] or [`Input::StoreFailed`]. When nothing more has arrived,
//! [`Input::Flush`] stores what was taken and answers what is due.
//!
//! - `lane`: what one lane expects next
//! - `machine`: [`Committer`], the group and the receipts that are due; `pause`: when a failure is tried again
//! - `proof`: what of a group is signed
//! - `hole`: what refills a lane whose store has lost a part
//! - `import`: transactions that came to the hub by hand-carry

mod hole;
mod import;
mod lane;
mod machine;
mod pause;
mod proof;

use std::collections::BTreeMap;

use crate::chain::{ChainValue, Digest, Through};
use crate::transaction::{Epoch, LaneName, Sequence, TransactionId};
use crate::wire::receipt::GapCode;
use crate::wire::signature::KeyId;

pub use hole::{Refill, refill};
pub use import::{NotTaken, Tally};
pub use machine::Committer;

/// Most lanes of one gateway: a limit against a gateway that misbehaves, far above any configuration.
pub const MOST_LANES: usize = 64;

/// A transaction that has arrived. The hub's has its envelope and body, the models' has neither.
pub trait Record {
    /// The lane that sent it.
    fn lane(&self) -> &LaneName;
    /// Its names in the envelope.
    fn numbered(&self) -> Numbered;
    /// It takes the place of transactions that were confirmed once and are deleted at the gateway.
    fn is_pruned(&self) -> bool;
    /// It can be read, and is beyond what this hub stores: no hub of this version takes it.
    fn is_too_large(&self) -> bool {
        false
    }
    /// What is stored of it, apart from its number.
    fn digest(&self) -> Digest;
    /// The chain value that it must have after `before`.
    fn chain_after(&self, before: ChainValue) -> ChainValue;
    /// Size of its payload.
    fn bytes(&self) -> usize;
    /// Drops all but the number: its content is stored already.
    fn keep_only_number(&mut self);
    /// Its id is stored already with another content.
    fn mark_rival(&mut self);
    /// Whether it was marked so.
    fn is_rival(&self) -> bool;
    /// Keeps its signature as evidence, which has been verified with this key; `None`: nobody has verified it, so it proves
    /// nothing.
    fn keep_head(&mut self, by: Option<KeyId>);
}

/// A transaction as its envelope names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Numbered {
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
    /// With number 1: the end of the line where its epoch begins; `None`: an empty line.
    pub link: Option<Through>,
}

/// What the store has under an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing.
    Unknown,
    /// The same content, in the lane's line.
    Same,
    /// Only other content.
    Other,
}

/// How a transaction came to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// Over the broker: its gateway's present key must have signed it.
    Link,
    /// In a bundle, perhaps weeks old: any of its gateway's keys that was not revoked.
    Hand,
}

/// The committer's questions to its store, and to the list of gateways.
pub trait Lookup<R> {
    /// A lane's line on stable storage: where each epoch ends, in the order of the line; the last is the end. `None`: the lane is
    /// out of use, so that nobody knows what the store has of it, and nothing may be said of it.
    fn watermarks_of(&self, lane: &LaneName) -> Option<Vec<Through>>;

    /// Where a lane's line goes on after a part that its store has lost, as [`Lookup::watermarks_of`] would have it there;
    /// `None`: it has lost nothing. Until then only what refills that part is stored.
    fn hole(&self, _lane: &LaneName) -> Option<Vec<Through>> {
        None
    }

    /// What a lane's line has under this id, as compared with this content; `None`: the store cannot say now.
    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Option<Content>;

    /// The chain value at a number of a lane's line, `Some(None)` where it has no such number; `None`: the store cannot say
    /// now.
    fn value_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Option<Option<ChainValue>>;

    /// The chain values at a number among what is kept beside the line.
    fn late_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Vec<ChainValue>;

    /// The key with which the record's gateway has signed its lane's chain at the record's number, if it is `chain` there.
    fn signed_by(&mut self, record: &R, chain: ChainValue, way: Way) -> Option<KeyId>;
}

/// How large groups may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupLimits {
    /// Most transactions.
    pub transactions: usize,
    /// Most payload bytes; a larger transaction is a group by itself.
    pub bytes: usize,
}

/// For each lane, the epoch and sequence through which there is a backup.
pub type BackedUp = BTreeMap<LaneName, (Epoch, Sequence)>;

/// An event for the committer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input<R> {
    /// A transaction has arrived.
    Transaction(R),
    /// A gateway asks where the hub's line ends.
    Position {
        /// Which lane it asks for.
        lane: LaneName,
        /// What it asks.
        question: Question,
    },
    /// The centre lets the lane continue: with the entries of its gateway's present epoch for deleted transactions, and with
    /// more epochs today.
    Admit(LaneName),
    /// A new connection is live: the broker may have lost the retained receipts, and answers.
    Connected,
    /// There is a newer backup.
    BackedUp(BackedUp),
    /// Nothing more has arrived, or the group may not wait longer.
    Flush,
    /// The group is on stable storage, except in lanes of which [`Lookup::watermarks_of`] says less, or nothing.
    Stored,
    /// The group is not; some of its lanes may be, as [`Lookup::watermarks_of`] says.
    StoreFailed,
    /// The store has read a lane's files again, or can use them no more: what it says of the lane counts. Nothing of a group is
    /// under way then.
    ReadAgain(LaneName),
}

/// A gateway's question.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The answer carries it.
    pub nonce: String,
    /// The gateway's present epoch.
    pub epoch: Epoch,
    /// The point that the gateway wants to know of whether the line holds it.
    pub point: Option<Through>,
}

/// A task for the driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action<R> {
    /// Put [`Committer::group`] on stable storage, then give [`Input::Stored`] or [`Input::StoreFailed`].
    Append,
    /// Publish a lane's receipt.
    Receipt(LaneName, Statement),
    /// Publish a gap notice: what the lane's gateway must send again.
    Gap(LaneName, Missed),
    /// Count a transaction that the hub does not take.
    Refuse(LaneName, Refusal),
    /// Keep a transaction beside the line, once, by its epoch, number and chain value.
    KeepLate(R),
    /// Tell central IT: the transaction is stored, and so is another content under its id.
    Rival(LaneName, Numbered),
    /// The transaction is stored already. Nothing needs to be done, unless a resend asked for it.
    Repeated(R),
    /// The store works again. The gateways still have the transactions that were not taken meanwhile.
    Recovered {
        /// What had failed: look-ups for this lane; `None`: the whole store.
        lane: Option<LaneName>,
        /// How many.
        dropped: u64,
    },
}

/// The content of a receipt; the driver adds hub, incarnation, counter, time and signature.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Statement {
    /// The end of the lane's line on stable storage; `None`: it is empty.
    pub end: Option<Through>,
    /// Whether the line holds the question's point; `None`: it named none.
    pub holds_point: Option<bool>,
    /// Through which sequence of the end's epoch there is a backup.
    pub backed_up_through: Option<Sequence>,
    /// The nonce of the position question that it answers.
    pub nonce: Option<String>,
}

impl Statement {
    /// Replaces a statement that was not published yet, and answers its question too.
    #[must_use]
    pub fn instead_of(mut self, before: Option<Self>) -> Self {
        if let (None, Some(before)) = (&self.nonce, before) {
            // The line only grows: what it held it still holds.
            (self.nonce, self.holds_point) = (before.nonce, before.holds_point);
        }
        self
    }
}

/// A gap notice: why a number is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Missed {
    /// Why.
    pub code: GapCode,
    /// Epoch of the transaction that showed it.
    pub epoch: Epoch,
    /// The number that is expected.
    pub expected: Sequence,
    /// Round of the transaction that showed it.
    pub round: u64,
}

/// Why something is not taken, though it is well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The gateway has [`MOST_LANES`] already.
    TooManyLanes,
    /// It does not continue the line. The gateway asks where the line ends.
    Link,
    /// It stands for transactions that were deleted at its gateway: the centre has to admit it first.
    Admit,
    /// The store lacks a part of the line, which this does not refill: the centre has to give that part up first.
    Hole,
    /// Its gateway has begun too many epochs today.
    Epochs,
    /// It is beyond the limits of this hub.
    TooLarge,
    /// Its gateway has not signed it, or something before it was changed on its way.
    Unsigned,
}

#[cfg(test)]
mod tests;
