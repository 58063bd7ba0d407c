//! Who may say something to the hub: each message is verified with the key that the list of gateways has for its sender.

use std::sync::Arc;

use pgw_core::chain::ChainValue;
use pgw_core::committer::{Record as _, Way};
use pgw_core::transaction::{Gateway, Lane, Practice};
use pgw_core::wire::signature::{KeyId, PROPERTY, Word};
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::watch;

use super::gateways::{Gateways, KeyState, ListedGateway, ListedKey};
use super::store::Entry;

/// Why a message does not count. The words appear in the log, and in the counts of refused messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unheard {
    /// The list does not have the gateway.
    NotListed,
    /// The list does not have the lane for this gateway.
    LaneNotListed,
    /// No key of the gateway may sign now, or the signature is not that key's.
    Unverified,
}

impl Unheard {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NotListed => "the gateway is not in the hub's list",
            Self::LaneNotListed => "the hub's list does not have this lane for the gateway",
            Self::Unverified => "the signature is not that of the gateway's signing key",
        }
    }
}

/// The list as it was last read.
pub(super) struct Speakers {
    newest: watch::Receiver<Arc<Gateways>>,
    list: Arc<Gateways>,
}

impl Speakers {
    pub(super) fn new(mut newest: watch::Receiver<Arc<Gateways>>) -> Self {
        let list = newest.borrow_and_update().clone();
        Self { newest, list }
    }

    /// Uses the list that was read last. Between two groups: a group, and a part of a bundle, is judged by one list.
    /// True: it is another one.
    pub(super) fn refresh(&mut self) -> bool {
        // Its sender may be gone: then the list stays.
        let changed = self.newest.has_changed().unwrap_or(false);
        if changed {
            self.list = self.newest.borrow_and_update().clone();
        }
        changed
    }

    /// How many transactions a gateway may have under way; `None`: as many as it likes.
    pub(super) fn window(&self, practice: &Practice, gateway: &Gateway) -> Option<u32> {
        self.list.get(practice, gateway)?.window
    }

    /// Whether the gateway may have this lane.
    pub(super) fn may_have(
        &self,
        practice: &Practice,
        gateway: &Gateway,
        lane: &Lane,
    ) -> Result<(), Unheard> {
        let listed = self.list.get(practice, gateway).ok_or(Unheard::NotListed)?;
        let may = listed.lanes.is_empty() || listed.lanes.contains(lane);
        may.then_some(()).ok_or(Unheard::LaneNotListed)
    }

    /// Verifies a message with the key that may sign now.
    pub(super) fn verify(
        &self,
        practice: &Practice,
        gateway: &Gateway,
        word: Word,
        publish: &Publish,
    ) -> Result<(), Unheard> {
        let listed = self.list.get(practice, gateway).ok_or(Unheard::NotListed)?;
        let topic = std::str::from_utf8(&publish.topic).map_err(|_| Unheard::Unverified)?;
        let key = listed.signing().ok_or(Unheard::Unverified)?;
        key.verify(word, topic, &publish.payload, signature_of(publish)).map_err(|_| Unheard::Unverified)
    }

    /// Whether this key is the one with which the gateway may sign now.
    pub(super) fn may_sign(&self, practice: &Practice, gateway: &Gateway, key: KeyId) -> bool {
        let signing = self.list.get(practice, gateway).and_then(ListedGateway::signing);
        signing.is_some_and(|signing| signing.id() == key)
    }

    /// The key with which the head of a lane is signed, if it is one that counts.
    pub(super) fn signed_by(&self, entry: &Entry, chain: ChainValue, way: Way) -> Option<KeyId> {
        let (lane, numbered) = (&entry.lane, entry.numbered());
        let signature = entry.envelope.signature.as_ref()?;
        let listed = self.list.get(&lane.practice, &lane.gateway)?;
        let counts = |key: &&ListedKey| match way {
            Way::Link => key.state == KeyState::Signing,
            Way::Hand => key.state != KeyState::Revoked,
        };
        let signed = |listed: &&ListedKey| {
            listed.key.verify_head(lane, numbered.epoch, numbered.sequence, chain, signature)
        };
        listed.keys.iter().filter(counts).find(signed).map(|listed| listed.key.id())
    }
}

fn signature_of(publish: &Publish) -> Option<&str> {
    let properties = publish.properties.iter().flat_map(|properties| &properties.user_properties);
    let mut signatures = properties.filter(|(name, _)| name == PROPERTY);
    let first = signatures.next().map(|(_, value)| value.as_str());
    first.filter(|_| signatures.next().is_none())
}
