//! Delivery: which transaction goes out when, and what a receipt means. Sans-IO.
//!
//! Go-back-N over MQTT (`docs/wire-format.md`, "Delivery protocol"): both ends are durable, so the broker
//! needs to remember nothing. [`Delivery`] is one lane's machine: a driver gives it each event ([`Input`]) and
//! carries out its [`Action`]s. It has no clock, no randomness and no sockets, so that the simulation and
//! the exhaustive model drive exactly the code that runs in the surgery.
//!
//! The rules that everything else follows from:
//! - nothing is sent before the hub has *answered* this connection's position question: only an answer shows that it was
//!   restored, or that its line ends elsewhere;
//! - the watermark moves forward only to a number whose chain value equals ours, and back, or into a new
//!   epoch, only on an answer; a retained or late receipt of a hub that has not answered only hurries a question;
//! - the lane continues in its present epoch if the hub's line ends in it with our value, and nothing after that end needs an
//!   entry. In every other case it begins a new epoch where the line ends, with everything after its *proven position*: the
//!   furthest of that end and the confirmed point that this answer was asked about, as far as they are ours. What nobody has
//!   decided about begins no epoch: the lane stalls before it;
//! - a PUBACK is flow control, never delivery (unless the site has no hub: [`Limits::confirm_on_puback`]);
//! - nothing is pruned but on the hub's answer to a question that is not older than a minute: [`Action::Confirm::asked`].
//!
//! A driver's turn, for every event:
//! 1. `handle(input, now, &mut actions)`, and do the actions in their order;
//! 2. while [`Delivery::wanted`] names a position, [`Input::Offer`] it (or [`Input::Missing`]);
//! 3. call again with [`Input::Tick`] at [`Delivery::deadline`].

mod hub;
mod machine;
mod window;

pub use crate::chain::Through;
pub use crate::numbering::{Entry, EntryKind, EpochStart, Gone, LostNumbers, Numbering, Numbers};
pub use crate::wire::receipt::HubLimits;
pub use hub::Point;
pub use machine::{Counts, Delivery};

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
    /// Site without a hub: a PUBACK confirms.
    pub confirm_on_puback: bool,
}

/// A receipt as the driver verified it (signature, topic, configured hub).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Random at each start of the hub.
    pub incarnation: u64,
    /// Rises within an incarnation.
    pub counter: u64,
    /// The end of the lane's line at the hub; `None`: the line is empty.
    pub end: Option<Through>,
    /// An answer: the line holds the point that the question named.
    pub holds_point: bool,
    /// Through which sequence of the end's epoch the hub has a backup.
    pub backed_up_through: Option<Sequence>,
    /// The nonce of the position that it answers, if it does.
    pub nonce: Option<Nonce>,
    /// The highest tail that this gateway has named to the hub, in an epoch.
    pub tail_seen: Option<(Epoch, Sequence)>,
    /// Numbers that the line names and the hub's store has lost for good.
    pub lost: Vec<LostNumbers>,
    /// It speaks of the store that this gateway has accepted: pruning may rely on it.
    pub known_store: bool,
    /// What the hub takes.
    pub limits: HubLimits,
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
    /// All positions of the lane that cannot be read any more, in order. It comes first after the machine was made, and
    /// whenever they, or what a person has decided about them, change.
    Gone(Vec<Gone>),
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
    /// A file, verified, says where the hub's line ends: a bundle is to begin there. See [`Delivery::layout`].
    EndByFile {
        /// The end; `None`: the line is empty.
        end: Option<Through>,
        /// This lane's own chain value there, if it has one.
        ours: Option<ChainValue>,
        /// Nothing but bundles ever leaves this store: after which position this one begins, whatever is known of the end.
        set_aside: Option<Position>,
    },
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
    /// Something could be pruned: ask the hub once more what it has.
    AskAgain,
    /// The answer to [`Action::LookUpChain`]; answers come in the order of the questions.
    ChainAt {
        /// Epoch asked for.
        epoch: Epoch,
        /// Sequence asked for.
        sequence: Sequence,
        /// This lane's own chain value there; `None`: it has no such number, or cannot compute it any more.
        chain: Option<ChainValue>,
    },
    /// The answer to [`Action::NewEpoch`], once durable.
    Renumbered(Numbering),
    /// The other answer: the driver could not write it. The machine asks again later, if it still wants it then.
    NotRenumbered,
    /// An operator wants the held record tried again.
    ReleaseHeld,
    /// Time has passed.
    Tick,
}

/// Where a bundle begins after an end that a file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// After this position of the present epoch.
    Continues(Position),
    /// After this position, with a new epoch, which [`Input::EndByFile`] makes.
    Begins(Position),
}

/// A task for the driver.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// Publish a position.
    AskPosition {
        /// It ties the answer to this question.
        nonce: Nonce,
        /// The present epoch.
        epoch: Epoch,
        /// Accepted through this sequence of it.
        tail: Sequence,
        /// The confirmed point, for the hub to say whether its line holds it.
        point: Option<Through>,
    },
    /// Publish the offered record.
    Send {
        /// Its position.
        position: Position,
        /// The `round` to write into the envelope.
        round: u64,
    },
    /// Record the watermark; it goes back only on an answered position. Repeated, unchanged, when the hub
    /// has answered on a new connection: pruning may rely only on a watermark that was confirmed on this connection.
    Confirm {
        /// Through here.
        position: Position,
        /// The point of the line that says so; `None`: nothing is confirmed.
        point: Option<Through>,
        /// Pruning early for space must not pass this.
        backed_up_through: Option<Position>,
        /// When the hub was asked whose answer says so; `None`: it is no answer, and nothing may be pruned because of it.
        asked: Option<Millis>,
    },
    /// The hub has confirmed these positions, first to last, and has lost them for good: they are not there. It replaces what was
    /// said before. In order.
    LostAtHub(Vec<(Position, Position)>),
    /// Prune nothing on what was answered before: the newest answer does not say that the hub has it.
    Withdraw,
    /// Compute this lane's own chain value at a number, and answer with [`Input::ChainAt`].
    LookUpChain {
        /// The epoch.
        epoch: Epoch,
        /// The number.
        sequence: Sequence,
    },
    /// Drop the connection and make a new one.
    Reconnect(Reason),
    /// Make positions after this a new epoch, durably, and answer with [`Input::Renumbered`], or with
    /// [`Input::NotRenumbered`]; until then the lane is stalled.
    NewEpoch {
        /// The last position provably at the hub.
        after: Position,
        /// The end of the hub's line, where it begins.
        link: Option<Through>,
        /// The epochs of this lane that it is known to follow in the line.
        follows: Vec<Epoch>,
        /// What needs a new entry: all of it is decided.
        gone: Vec<Gone>,
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
    /// The hub's line ends in an epoch that is not this lane's, or with another chain value.
    Diverged {
        /// Its end.
        end: Through,
        /// The last position that is provably there.
        proven: Position,
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
    /// It is beyond the limits of the hub, which may be older than this gateway.
    BeyondHub,
}

#[cfg(test)]
mod tests;
