//! The committer: what the hub stores, what it answers, and when. Sans-IO, all lanes of all gateways of one hub.
//!
//! The hub keeps, for each epoch of a lane, how far it has stored, and the chain value there. The next number is checked
//! against the chain and joins the group that is stored next; a lower one is answered by the receipt again; a higher one is
//! ignored, with one gap notice for each expected number and round. A driver gives [`Committer`] each event ([`Input`]) and
//! carries out its [`Action`]s. It has no clock, no randomness, no files and no threads, so that the simulation and the
//! exhaustive model drive exactly what the hub's store thread runs.
//!
//! The rules that everything else follows from:
//! - a receipt says what the store has on stable storage, never more: a taken transaction is *staged* until [`Input::Stored`];
//! - after [`Input::StoreFailed`] every lane of the group begins again from the store's own watermarks;
//! - the hub takes nothing before the gateway has asked for the position since the hub started. A transaction that was under
//!   way to an earlier incarnation may belong to an epoch whose beginning a restored hub does not know: its first number
//!   would look right, and overtake the end of the epoch before it;
//! - a transaction whose id is stored under an older epoch is not stored again, only its number; a void is never a second
//!   number of a transaction: it holds its own place, in each epoch;
//! - nothing is stored that its gateway has not signed. The chain value at a number proves everything before it, so only the
//!   last transaction of each lane in a group is verified; if that fails, a verified beginning, found by bisection, is stored,
//!   and the rest is treated as if it had not arrived.
//!
//! A driver's turn, for every event: `handle(input, now, &mut store, &mut actions)`, and carry out the actions in their order.
//! After [`Action::Append`] the next input is [`Input::Stored`] or [`Input::StoreFailed`]. When nothing more has arrived,
//! [`Input::Flush`] stores what was taken and answers what is due.
//!
//! - `lane`: what one lane expects next
//! - `machine`: [`Committer`], the group and the receipts that are due
//! - `proof`: what of a group is signed
//! - `import`: transactions that came to the hub by hand-carry

mod import;
mod lane;
mod machine;
mod proof;

use std::collections::BTreeMap;

use crate::chain::ChainValue;
use crate::delivery::Through;
use crate::transaction::{Epoch, LaneName, Sequence, TransactionId};
use crate::wire::receipt::GapCode;
use crate::wire::signature::KeyId;

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
    /// It takes the place of transactions that are lost for good.
    fn is_void(&self) -> bool;
    /// The chain value that it must have after `before`.
    fn chain_after(&self, before: ChainValue) -> ChainValue;
    /// Size of its payload.
    fn bytes(&self) -> usize;
    /// Drops all but the number: its id is stored already.
    fn keep_only_number(&mut self);
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
    /// How far a lane is on stable storage, epochs oldest first; empty: nothing.
    fn watermarks_of(&self, lane: &LaneName) -> Vec<Through>;

    /// Whether the transaction with this id is stored in this lane, in any epoch; `None`: the store cannot say now.
    fn has_id(&mut self, lane: &LaneName, id: TransactionId) -> Option<bool>;

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
    /// A gateway asks how far the hub has stored; from now on its transactions are taken.
    Position {
        /// Which lane it asks for.
        lane: LaneName,
        /// The answer carries it.
        nonce: String,
    },
    /// A new connection is live: the broker may have lost the retained receipts, and answers.
    Connected,
    /// There is a newer backup.
    BackedUp(BackedUp),
    /// Nothing more has arrived, or the group may not wait longer.
    Flush,
    /// The group is on stable storage.
    Stored,
    /// The group is not; some of its lanes may be, as [`Lookup::watermarks_of`] says.
    StoreFailed,
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
    /// The transaction is stored already. Nothing needs to be done, unless a resend asked for it.
    Repeated(R),
    /// The store works again. The gateways still have the transactions that were not taken meanwhile.
    Recovered {
        /// How many.
        dropped: u64,
    },
}

/// The content of a receipt; the driver adds hub, incarnation, counter, time and signature.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Statement {
    /// Every epoch of the lane that has something on stable storage, in the order of their first transactions.
    pub epochs: Vec<Through>,
    /// Through which sequence of the last of `epochs` there is a backup.
    pub backed_up_through: Option<Sequence>,
    /// The nonce of the position question that it answers.
    pub nonce: Option<String>,
}

impl Statement {
    /// Replaces a statement that was not published yet, and answers its question too.
    #[must_use]
    pub fn instead_of(mut self, before: Option<Self>) -> Self {
        self.nonce = self.nonce.or(before.and_then(|before| before.nonce));
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
    /// Its gateway has signed another chain value than follows here. The receipt is due, so that the gateway can compare.
    Chain,
    /// Its gateway has not signed it, or something before it was changed on its way.
    Unsigned,
}

#[cfg(test)]
mod tests;
