//! Delivery: which transaction goes out when, and what a receipt means. Sans-IO.
//!
//! Go-back-N over MQTT (`docs/wire-format.md`, "Delivery protocol"): both ends are durable, so the broker
//! needs to remember nothing. [`Delivery`] is one lane's machine: a driver gives it each event ([`Input`]) and
//! carries out its [`Action`]s. It has no clock, no randomness and no sockets, so that the simulation and
//! the exhaustive model drive exactly the code that runs in the surgery.
//!
//! The rules that everything else follows from:
//! - nothing is sent before every configured hub has *answered* this connection's position question: only
//!   an answer shows that a hub was restored or that the lane has forked;
//! - the watermark moves forward only to a position whose chain value equals ours, and back, or into a new
//!   epoch, only on an answer; a retained or late receipt of a hub that has not answered only hurries a question;
//! - a PUBACK is flow control, never delivery (unless the site has no hub: [`Limits::confirm_on_puback`]);
//! - nothing is pruned but on the hubs' answers to a question that is not older than a minute: [`Action::Confirm::asked`].
//!
//! A driver's turn, for every event:
//! 1. `handle(input, now, &mut actions)`, and do the actions in their order;
//! 2. while [`Delivery::wanted`] names a position, [`Input::Offer`] it (or [`Input::Missing`]);
//! 3. call again with [`Input::Tick`] at [`Delivery::deadline`].

mod hubs;
mod machine;
mod numbering;
mod window;

pub use crate::wire::receipt::HubLimits;
pub use machine::{Counts, Delivery};
pub use numbering::{Numbering, Renumbering};

use crate::chain::ChainValue;
use crate::transaction::{Epoch, Position, Sequence};
use crate::wire::receipt::GapCode;

/// Time as the machine sees it: milliseconds of a monotonic clock that the caller chose.
pub type Millis = u64;

/// Ties a hub's answer to a question: random for each connection, counted up within it.
pub type Nonce = [u8; 16];

/// The settings of a lane's machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Most transactions beyond the last receipt.
    pub window: u32,
    /// Most payload bytes beyond the last receipt; a larger transaction is sent alone.
    pub window_bytes: u64,
    /// No receipt for this long with something in flight: rewind (doubles each time on the same head).
    pub receipt_timeout: Millis,
    /// No progress at all for this long at least: the connection is dropped (section 7: max(this, 4 x bytes/rate)).
    pub stall_timeout: Millis,
    /// How many hubs must have confirmed (each configured hub, by index).
    pub hubs: usize,
    /// Site without a hub: a PUBACK confirms.
    pub confirm_on_puback: bool,
}

/// A receipt as the driver verified it (signature, topic, configured hub).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Index of the hub in the configuration.
    pub hub: usize,
    /// Random at each start of the hub.
    pub incarnation: u64,
    /// Rises within an incarnation.
    pub counter: u64,
    /// How far the hub has each epoch of this lane that it knows.
    pub epochs: Vec<Through>,
    /// Through which sequence of the newest epoch the hub has a backup.
    pub backed_up_through: Option<Sequence>,
    /// The nonce of the position that it answers, if it does.
    pub nonce: Option<Nonce>,
    /// The highest tail that this gateway has named to the hub, in an epoch.
    pub tail_seen: Option<(Epoch, Sequence)>,
    /// It speaks of the store that this gateway has accepted: pruning may rely on it.
    pub known_store: bool,
    /// What the hub takes.
    pub limits: HubLimits,
}

/// "This epoch is stored through `through`, whose chain value is `chain`."
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Through {
    /// Epoch.
    pub epoch: Epoch,
    /// 0: nothing yet.
    pub through: Sequence,
    /// Chain value there.
    pub chain: ChainValue,
}

/// An event for a lane's machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// A new connection is live: subscriptions are acknowledged. Limits are the broker's.
    Connected {
        /// Fresh and random.
        nonce: Nonce,
        /// CONNACK Receive Maximum.
        receive_maximum: u16,
        /// CONNACK Maximum Packet Size, less what the envelope needs.
        maximum_bytes: Option<u64>,
    },
    /// The connection has ended; nothing that was handed to it counts. Not needed, but harmless, after
    /// [`Action::Reconnect`].
    Disconnected,
    /// The outbox is committed through this position.
    Committed(Position),
    /// The record at [`Delivery::wanted`] was read.
    Offer {
        /// Its position.
        position: Position,
        /// Its payload size.
        bytes: u64,
        /// Its chain value on the wire.
        chain: ChainValue,
    },
    /// The record at this position can no longer be read (damaged or pruned).
    Missing(Position),
    /// The broker took the oldest unacknowledged publish of this connection, or refused it with a reason code.
    PubAck {
        /// The record's position.
        position: Position,
        /// `Err`: reason code of a refusal.
        outcome: Result<(), u8>,
    },
    /// A verified receipt.
    Receipt(Receipt),
    /// A verified receipt that came by file. Without a link it moves the watermark forward if its chain value is ours; on
    /// a link it is worth no more than any receipt that answers no question.
    Imported(Receipt),
    /// A verified gap notice: the hub did not store a transaction.
    Gap {
        /// Why. Only a missing one makes the machine go back: whatever else is wrong would be wrong again.
        code: GapCode,
        /// The epoch of the gap.
        epoch: Epoch,
        /// The sequence that it expects.
        expected: Sequence,
        /// Round of the transaction that showed it.
        round: u64,
    },
    /// Something could be pruned: ask the hubs once more what they have.
    AskAgain,
    /// The answer to [`Action::LookUpChain`]; answers come in the order of the questions.
    ChainAt {
        /// Position asked for.
        position: Position,
        /// Its chain value on the wire, if it can be read.
        chain: Option<ChainValue>,
    },
    /// The answer to [`Action::NewEpoch`], once durable.
    Renumbered(Numbering),
    /// The other answer: the driver could not write it. The machine asks again later, if it still wants it then.
    NotRenumbered,
    /// An operator wants the held record tried again, or has written off the missing record: it is a void now.
    ReleaseHeld,
    /// Time has passed.
    Tick,
}

/// A task for the driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Publish a position with this nonce; the numbers are [`Delivery::confirmed`] and [`Delivery::tail`].
    AskPosition(Nonce),
    /// Publish the offered record.
    Send {
        /// Its position.
        position: Position,
        /// The `round` to write into the envelope.
        round: u64,
    },
    /// Record the watermark; it goes back only on an answered position. Repeated, unchanged, when the hubs
    /// have answered on a new connection: pruning may rely only on a watermark that was confirmed on this connection.
    Confirm {
        /// Through here.
        position: Position,
        /// Chain value there.
        chain: ChainValue,
        /// Pruning early for space must not pass this.
        backed_up_through: Option<Position>,
        /// When every hub was asked whose answer says so; `None`: it is no answer, and nothing may be pruned because of it.
        asked: Option<Millis>,
    },
    /// Read the chain value at a position and answer with [`Input::ChainAt`].
    LookUpChain(Position),
    /// Drop the connection and make a new one.
    Reconnect(Reason),
    /// Make positions after this a new epoch, durably, and answer with [`Input::Renumbered`], or with
    /// [`Input::NotRenumbered`]; until then the lane is stalled.
    NewEpoch {
        /// The last position provably at the hub.
        after: Position,
    },
    /// Tell the operator.
    Alarm(Alarm),
}

/// Why a connection is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No PUBACK and no receipt for too long.
    Stalled,
    /// The broker refused a publish with this reason code.
    Refused(u8),
}

/// What an operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// A record cannot be sent: its lane is stalled.
    Held(Position, HeldBecause),
    /// The held record is tried again.
    Released(Position),
    /// The hub is ahead or a chain value differs.
    Diverged {
        /// The sequence that the hub named.
        through: Sequence,
        /// The position that it names here.
        position: Position,
    },
    /// The hub was restored to an older state: these are sent again.
    HubRestored {
        /// From here.
        from: Position,
        /// To here.
        to: Position,
    },
    /// The hub was told of a longer history than this store has: the box was restored from an image, or its disk has lost
    /// accepted transactions.
    TailLost {
        /// The epoch.
        epoch: Epoch,
        /// How many transactions this store lacks.
        missing: u64,
    },
    /// A missing record that no copy can supply: an operator must write it off as a void.
    Missing(Position),
    /// The broker refused this record with this PUBACK reason code; it is kept and sent again.
    Refused {
        /// Its position.
        position: Position,
        /// MQTT 5 reason code.
        reason: u8,
    },
}

/// Why a record is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeldBecause {
    /// The broker or a hub takes no packet of its size.
    TooLarge {
        /// Its size, bytes.
        bytes: u64,
        /// What they take, bytes.
        most: u64,
    },
    /// It ended three connections by itself.
    EndedConnections,
    /// Sent alone three times, the hub could not verify it.
    Unverified,
}

#[cfg(test)]
mod tests;
