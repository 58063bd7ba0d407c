//! The delivery protocol's payloads: receipts, gaps and position questions (design section 7).

use serde::{Deserialize, Serialize};

use crate::chain::Through;
use crate::numbering::LostNumbers;
use crate::transaction::{Epoch, Hub, Sequence};
use crate::wire::SCHEMA;
use crate::wire::signature::KeyId;

/// `receipt/{hub}/{lane}`: cumulative, retained, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// 1.
    pub schema: u32,
    /// The hub that says so.
    pub hub: Hub,
    /// Random at each start of the hub.
    pub incarnation: u64,
    /// Rises within an incarnation; one that goes back is stale.
    pub counter: u64,
    /// The end of the lane's line: what the hub has stored; `null`: nothing yet.
    pub end: Option<Through>,
    /// An answer: whether the line holds the point that the position named; `null`: no answer, or no point.
    pub holds_point: Option<bool>,
    /// The identity of the hub's store.
    pub store: StoreId,
    /// Stores that this one has replaced, as an operator has stated at the hub.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub succeeds: Vec<StoreId>,
    /// The highest tail that the gateway has named of the end's epoch; `null`: none.
    pub tail_seen: Option<Sequence>,
    /// Numbers that the line names and the hub's store has lost for good, as the centre has admitted: their content is not
    /// there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostNumbers>,
    /// Through which sequence of the end's epoch a backup has it; `null`: not known.
    pub backed_up_through: Option<Sequence>,
    /// What the hub takes now.
    pub limits: HubLimits,
    /// The nonce of the position question that this answers, hexadecimal; `null`: not an answer.
    pub nonce: Option<String>,
    /// RFC 3339.
    pub time: String,
}

/// The identity of a hub's store: made with the store, kept in it and in its backups. It tells a store from another one that
/// knows nothing of what the first has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StoreId(pub uuid::Uuid);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for StoreId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        uuid::Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| "it must be a store's identity, for example 01936c5e-7b00-7000-8000-000000000001")
    }
}

/// What a hub takes now. It counts only in an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HubLimits {
    /// Largest packet, bytes.
    pub packet_bytes: Option<u64>,
    /// Most transactions beyond the last receipt; 0: the gateway waits.
    pub window: Option<u32>,
}

/// `gap/{hub}/{lane}`: the hub did not store a transaction. Signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// 1.
    pub schema: u32,
    /// The epoch of the gap.
    pub epoch: Epoch,
    /// The sequence that it expects.
    pub expected: Sequence,
    /// Why it was not stored.
    pub code: GapCode,
    /// Round of the transaction that showed the gap.
    pub round: u64,
    /// With the code `later`: when the hub tries again, RFC 3339; absent: when central IT has changed its list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// With the code `key`: the key that may not sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
}

/// Why a transaction was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapCode {
    /// It has not arrived, and a later one has.
    Missing,
    /// The gateway has not signed it, or something before it was changed on its way.
    Unverified,
    /// The lane's line does not continue with it: its epoch begins elsewhere, or is not the line's last any more, or its
    /// gateway has signed another chain value than follows here. The gateway asks where the line ends.
    Link,
    /// It follows, its gateway has signed it, and it is beyond the limits of this hub, which may be older than the gateway.
    TooLarge,
    /// The hub takes nothing of this lane now, for a reason that is not the gateway's: its store fails, or central IT has not
    /// given the lane to this gateway.
    Later,
    /// The gateway has begun too many epochs in a day: the next waits until central IT lets it.
    Epochs,
    /// An entry stands for transactions that the gateway no longer has and the hub lacks: central IT must admit that.
    Admit,
    /// The key with which the gateway signs is not in the hub's list, or may not sign any more.
    Key,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

/// `position/{lane}`: the gateway asks the hub how far it has stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// 1.
    pub schema: u32,
    /// As in its `status`.
    pub session: u64,
    /// The gateway's present epoch.
    pub epoch: Epoch,
    /// Accepted through this sequence of `epoch`.
    pub tail: Sequence,
    /// The point of the line that the hub has confirmed; `null`: nothing yet.
    pub point: Option<Through>,
    /// 16 random bytes, hexadecimal: the answer carries it.
    pub nonce: String,
}

impl Gap {
    /// A notice of the current schema.
    #[must_use]
    pub fn new(code: GapCode, epoch: Epoch, expected: Sequence, round: u64) -> Self {
        Self { schema: SCHEMA, epoch, expected, code, round, until: None, key: None }
    }

    /// The answer to a position that was signed with a key which may not sign.
    #[must_use]
    pub fn of_key(epoch: Epoch, key: KeyId) -> Self {
        Self { key: Some(key), ..Self::new(GapCode::Key, epoch, 0, 0) }
    }
}

/// A nonce as text: 32 lower-case hexadecimal digits.
#[must_use]
pub fn nonce_text(nonce: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*nonce))
}

/// A nonce from its text.
#[must_use]
pub fn nonce_bytes(text: &str) -> Option<[u8; 16]> {
    (text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes))
        .flatten()
}
