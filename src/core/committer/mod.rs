//! The committer: what the hub stores, what it answers, and when. Sans-IO, all lanes of all gateways of one hub.
//!
//! The hub keeps, for each epoch of a lane, how far it has stored, and the chain value there. The next number is checked
//! against the chain and joins the group that is stored next; a lower one is answered by the receipt again; a higher one is
//! ignored, with one gap notice for each expected number and round. [`Committer`] is told what happened ([`Input`]) and says
//! what is to be done ([`Action`]). It has no clock, no randomness, no files and no threads, so that the simulation and the
//! exhaustive model drive exactly what the hub's store thread runs.
//!
//! The rules that everything else follows from:
//! - a receipt says what the store has on stable storage, never more: what was taken is *staged* until [`Input::Stored`];
//! - after [`Input::StoreFailed`] every lane of the group begins again from the store's own marks;
//! - nothing is taken before the gateway has asked for the position since the hub started. What was under way to an earlier
//!   incarnation may belong to an epoch of which a restored hub does not know where it begins: its first number would look
//!   right, and overtake the end of the epoch before it;
//! - a transaction whose id is stored under an older epoch is not stored again, only its number; a void is nobody's second
//!   number: it holds its own place, in each epoch.
//!
//! A driver's turn, for every event: `handle(input, now, &mut store, &mut actions)`, and carry out the actions in their order.
//! After [`Action::Append`] the next input is [`Input::Stored`] or [`Input::StoreFailed`]. When nothing more has arrived,
//! [`Input::Flush`]: what was taken is stored, and what is due is answered.
//!
//! - `lane`: what one lane expects next
//! - `machine`: [`Committer`], the group and the receipts that are due
//! - `import`: what was carried to the hub by hand

mod import;
mod lane;
mod machine;

use std::collections::BTreeMap;

use crate::chain::ChainValue;
use crate::delivery::Through;
use crate::transaction::{Epoch, LaneName, Sequence, TransactionId};

pub use import::{NotTaken, Tally};
pub use machine::Committer;

/// Most lanes of one gateway: a limit against a gateway gone mad, far above any configuration.
pub const MOST_LANES: usize = 64;

/// A transaction that has arrived. The hub's has its envelope and body, the models' has neither.
pub trait Record {
    /// Whose.
    fn lane(&self) -> &LaneName;
    /// What its envelope says.
    fn numbered(&self) -> Numbered;
    /// It stands for transactions that are lost for good.
    fn is_void(&self) -> bool;
    /// The chain value that it must have after `before`.
    fn chain_after(&self, before: ChainValue) -> ChainValue;
    /// Size of its payload.
    fn bytes(&self) -> usize;
    /// Its id is stored already: only its number is to be stored.
    fn keep_only_number(&mut self);
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

/// What the committer asks its store.
pub trait Lookup {
    /// What is on stable storage of a lane, epochs oldest first; empty: nothing.
    fn marks_of(&self, lane: &LaneName) -> Vec<Through>;

    /// Whether the transaction with this id is stored in this lane, in whatever epoch; `None`: the store cannot say now.
    fn has_id(&mut self, lane: &LaneName, id: TransactionId) -> Option<bool>;
}

/// How large groups may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupLimits {
    /// Most transactions.
    pub transactions: usize,
    /// Most payload bytes; a single larger one goes alone.
    pub bytes: usize,
}

/// Of each lane, through which sequence of which epoch there is a backup.
pub type BackedUp = BTreeMap<LaneName, (Epoch, Sequence)>;

/// What happens to the hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input<R> {
    /// A transaction has arrived.
    Transaction(R),
    /// A gateway asks where the hub is; from now on its transactions are taken.
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
    /// Nothing more has arrived, or what has may not wait.
    Flush,
    /// The group is on stable storage.
    Stored,
    /// It is not; some of its lanes may be, as [`Lookup::marks_of`] says.
    StoreFailed,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action<R> {
    /// Put [`Committer::group`] on stable storage, then give [`Input::Stored`] or [`Input::StoreFailed`].
    Append,
    /// Publish a lane's receipt.
    Receipt(LaneName, Statement),
    /// Tell the gateway what is missing.
    Gap(LaneName, Missed),
    /// Count what a gateway sent and the hub does not take.
    Refuse(LaneName, Refusal),
    /// It is stored already. Nothing needs to be done, unless somebody wants it again.
    Repeated(R),
    /// The store works again; so many transactions were not taken meanwhile. The gateways have them.
    Recovered {
        /// So many.
        dropped: u64,
    },
}

/// What a receipt says; the driver adds hub, incarnation, counter, time and signature.
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
    /// Takes the place of one that was not published yet, whose question it answers too.
    #[must_use]
    pub fn instead_of(mut self, before: Option<Self>) -> Self {
        self.nonce = self.nonce.or(before.and_then(|before| before.nonce));
        self
    }
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

/// Why something is not taken, though it is well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The gateway has [`MOST_LANES`] already.
    TooManyLanes,
    /// Its chain value is not the one that it must have here. The receipt is due, so that the gateway can compare.
    Chain,
}

#[cfg(test)]
mod tests;
