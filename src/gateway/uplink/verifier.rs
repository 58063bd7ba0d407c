//! Incoming messages: receipts and gap notices are passed to the machines once they are verified as a hub's own.

use std::collections::BTreeMap;

use pgw_core::delivery;
use pgw_core::transaction::{Gateway, Hub, Lane, Practice};
use pgw_core::wire;
use pgw_core::wire::WireError;
use pgw_core::wire::command::Command;
use pgw_core::wire::limits::LOST_RANGES;
use pgw_core::wire::presence::{Probe, Status};
use pgw_core::wire::receipt::{self, StoreId, nonce_bytes};
use pgw_core::wire::signature::{self, PublicKey, Word};
use pgw_core::wire::topic::{Kind, Topic};
use rumqttc::v5::mqttbytes::v5::Publish;

use super::settings::PinnedHub;

/// The gateway's identity and the hubs whose messages it accepts.
pub(super) struct Verifier {
    pub(super) practice: Practice,
    pub(super) gateway: Gateway,
    pub(super) lanes: Vec<Lane>,
    pub(super) hubs: Vec<PinnedHub>,
    /// Which of them each lane is delivered to, by its index; the first where a lane is not named.
    pub(super) lane_hubs: BTreeMap<Lane, usize>,
}

/// A message that was verified and parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    /// A verified receipt for a lane (by index).
    Receipt {
        lane: usize,
        /// As the machine takes it; whether its store is known is not decided here.
        receipt: delivery::Receipt,
        /// Whose it is.
        hub: Hub,
        /// Its store, and those that this one has replaced.
        stores: (StoreId, Vec<StoreId>),
        /// The hub's time, seconds since the epoch.
        seconds: u64,
    },
    /// A hub did not store something, for a lane (by index).
    Gap { lane: usize, gap: receipt::Gap },
    /// A configured hub is online (or not).
    HubStatus { hub: Hub, online: bool },
    /// A configured hub's reply to the probe of this id.
    ProbeReply(String),
    /// A configured hub's command. Its session and its expiry are not checked here.
    Command(Command),
    /// A notice from central IT, another hub's status: not relevant to delivery.
    Other,
}

/// Why a message was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It cannot be parsed, or its signature is not the hub's.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Its topic names a hub without a pinned key.
    #[error("the hub in the topic is not configured")]
    UnknownHub,
    /// Its topic names a lane that this gateway does not have.
    #[error("the lane in the topic is not configured")]
    UnknownLane,
    /// Its topic names another practice or gateway.
    #[error("the message is for another gateway")]
    OtherGateway,
    /// Its topic names a hub that this lane is not delivered to.
    #[error("the lane in the topic is delivered to another hub")]
    NotItsHub,
    /// Its topic and its payload disagree.
    #[error("the payload names another hub than the topic")]
    OtherHub,
}

impl Verifier {
    /// Verifies and parses a publish.
    pub(super) fn verify(&self, publish: &Publish) -> Result<Inbound, Rejected> {
        let text = std::str::from_utf8(&publish.topic).map_err(|_| WireError::Topic)?;
        let kind = match Topic::parse(text)? {
            Topic::Gateway { practice, gateway, kind } => {
                if practice != self.practice || gateway != self.gateway {
                    return Err(Rejected::OtherGateway);
                }
                kind
            }
            Topic::HubStatus(hub) => return self.hub_status(hub, text, publish),
            Topic::Notice => return Ok(Inbound::Other),
        };
        match kind {
            Kind::Receipt(hub, lane) => self.receipt(&hub, &lane, text, publish),
            Kind::Gap(hub, lane) => {
                let (hub, lane) = self.lane_of(&hub, &lane)?;
                self.hubs[hub].verify(Word::Gap, text, publish)?;
                Ok(Inbound::Gap { lane, gap: wire::from_json(&publish.payload)? })
            }
            Kind::ProbeReply => {
                // The topic names no hub: any configured one may have answered.
                let known = |hub: &PinnedHub| hub.verify(Word::Reply, text, publish).is_ok();
                if !self.hubs.iter().any(known) {
                    return Err(WireError::Signature.into());
                }
                Ok(Inbound::ProbeReply(wire::from_json::<Probe>(&publish.payload)?.id))
            }
            Kind::Command => {
                // The hub that it names decides whose key must have signed it.
                let command: Command = wire::from_json(&publish.payload)?;
                let hub = self.hub(&command.hub)?;
                self.hubs[hub].verify(Word::Command, text, publish)?;
                Ok(Inbound::Command(command))
            }
            _ => Ok(Inbound::Other),
        }
    }

    fn receipt(&self, hub: &Hub, lane: &Lane, topic: &str, publish: &Publish) -> Result<Inbound, Rejected> {
        let (index, lane) = self.lane_of(hub, lane)?;
        self.hubs[index].verify(Word::Receipt, topic, publish)?;
        let body: receipt::Receipt = wire::from_json(&publish.payload)?;
        if body.hub != *hub {
            return Err(Rejected::OtherHub);
        }
        if body.lost.len() > LOST_RANGES {
            return Err(WireError::Malformed("lost").into());
        }
        let nonce = match &body.nonce {
            Some(text) => Some(nonce_bytes(text).ok_or(WireError::Malformed("nonce"))?),
            None => None,
        };
        let receipt = delivery::Receipt {
            incarnation: body.incarnation,
            counter: body.counter,
            end: body.end,
            holds_point: body.holds_point == Some(true),
            backed_up_through: body.backed_up_through,
            nonce,
            tail_seen: body.end.map(|end| end.epoch).zip(body.tail_seen),
            lost: body.lost,
            known_store: false,
            limits: body.limits,
        };
        let (hub, stores) = (body.hub, (body.store, body.succeeds));
        Ok(Inbound::Receipt { lane, receipt, hub, stores, seconds: seconds(&body.time) })
    }

    fn hub_status(&self, hub: Hub, topic: &str, publish: &Publish) -> Result<Inbound, Rejected> {
        let Ok(index) = self.hub(&hub) else { return Ok(Inbound::Other) };
        self.hubs[index].verify(Word::Status, topic, publish)?;
        let status: Status = wire::from_json(&publish.payload)?;
        Ok(Inbound::HubStatus { hub, online: status.up == 1 })
    }

    fn hub(&self, hub: &Hub) -> Result<usize, Rejected> {
        self.hubs.iter().position(|pinned| pinned.hub == *hub).ok_or(Rejected::UnknownHub)
    }

    /// The hub and the lane of a message that only the lane's own hub may send.
    fn lane_of(&self, hub: &Hub, lane: &Lane) -> Result<(usize, usize), Rejected> {
        let hub = self.hub(hub)?;
        let index = self.lanes.iter().position(|known| known == lane).ok_or(Rejected::UnknownLane)?;
        let its = self.lane_hubs.get(lane).copied().unwrap_or(0);
        (its == hub).then_some((hub, index)).ok_or(Rejected::NotItsHub)
    }
}

impl PinnedHub {
    /// Verifies a message with one of the hub's keys.
    fn verify(&self, word: Word, topic: &str, publish: &Publish) -> Result<(), WireError> {
        let signature = signature_of(publish);
        let by = |key: &PublicKey| key.verify(word, topic, &publish.payload, signature).is_ok();
        self.keys.iter().any(by).then_some(()).ok_or(WireError::Signature)
    }
}

/// The user property that carries it.
fn signature_of(publish: &Publish) -> Option<&str> {
    publish
        .properties
        .iter()
        .flat_map(|properties| &properties.user_properties)
        .find_map(|(name, value)| (name == signature::PROPERTY).then_some(value.as_str()))
}

/// Seconds since the epoch; 0 for a time that cannot be read: it then proves nothing.
pub(super) fn seconds(text: &str) -> u64 {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339)
        .ok()
        .and_then(|moment| u64::try_from(moment.unix_timestamp()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::chain::{ChainValue, Through};
    use pgw_core::transaction::Epoch;
    use pgw_core::wire::receipt::GapCode;
    use pgw_core::wire::signature::SigningKey;
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::PublishProperties;
    use uuid::Uuid;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn verifier(key: &SigningKey) -> Verifier {
        Verifier {
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            lanes: vec![Lane::new("urgent").unwrap(), Lane::new("clinical").unwrap()],
            hubs: vec![PinnedHub { hub: Hub::new("hub1").unwrap(), keys: vec![key.public()] }],
            lane_hubs: BTreeMap::new(),
        }
    }

    fn receipt(hub: &str) -> receipt::Receipt {
        receipt::Receipt {
            schema: 1,
            hub: Hub::new(hub).unwrap(),
            incarnation: 5,
            counter: 6,
            end: Some(Through { epoch: Epoch(Uuid::nil()), through: 7, chain: ChainValue([8; 32]) }),
            holds_point: Some(true),
            store: StoreId(Uuid::nil()),
            succeeds: Vec::new(),
            tail_seen: Some(8),
            lost: Vec::new(),
            backed_up_through: None,
            limits: delivery::HubLimits::default(),
            nonce: Some(receipt::nonce_text(&[9; 16])),
            time: "2026-11-22T22:12:10.123Z".into(),
        }
    }

    fn publish(topic: &str, payload: Vec<u8>, signature: Option<String>) -> Publish {
        let user_properties = signature.map(|it| vec![("signature".to_owned(), it)]).unwrap_or_default();
        let properties = PublishProperties { user_properties, ..Default::default() };
        Publish::new(topic, QoS::AtLeastOnce, payload, Some(properties))
    }

    fn signed(key: &SigningKey, topic: &str, body: &receipt::Receipt) -> Publish {
        let payload = wire::to_json(body);
        let signature = key.sign(Word::Receipt, topic, &payload).to_string();
        publish(topic, payload, Some(signature))
    }

    const TOPIC: &str = "pgw/v1/B86022/gw1/receipt/hub1/clinical";

    #[test]
    fn a_hubs_own_receipt_is_verified() {
        let key = key();
        let Ok(Inbound::Receipt { lane, receipt, seconds, .. }) =
            verifier(&key).verify(&signed(&key, TOPIC, &receipt("hub1")))
        else {
            panic!("not heard");
        };
        assert_eq!((lane, receipt.incarnation, receipt.counter, receipt.holds_point), (1, 5, 6, true));
        assert_eq!(receipt.nonce, Some([9; 16]));
        let through = receipt.end.map(|end| end.through);
        assert_eq!((through, receipt.tail_seen), (Some(7), Some((Epoch(Uuid::nil()), 8))));
        assert_eq!(seconds, 1_795_385_530);
    }

    #[test]
    fn nothing_forged_moved_or_foreign_is_obeyed() {
        let (key, other) = (key(), key());
        let verifier = verifier(&key);
        let good = receipt("hub1");
        let payload = wire::to_json(&good);
        let rejection = |publish: Publish| verifier.verify(&publish).unwrap_err();

        assert_eq!(rejection(publish(TOPIC, payload.clone(), None)), Rejected::Wire(WireError::Signature));
        assert_eq!(rejection(signed(&other, TOPIC, &good)), Rejected::Wire(WireError::Signature));
        let epoch = Epoch(Uuid::nil());
        let lost = vec![delivery::LostNumbers { epoch, from: 1, through: 1, newest: epoch }; LOST_RANGES + 1];
        let long = receipt::Receipt { lost, ..good.clone() };
        assert_eq!(rejection(signed(&key, TOPIC, &long)), Rejected::Wire(WireError::Malformed("lost")));
        let moved = publish(
            "pgw/v1/B86022/gw1/receipt/hub1/urgent",
            payload.clone(),
            Some(key.sign(Word::Receipt, TOPIC, &payload).to_string()),
        );
        assert_eq!(rejection(moved), Rejected::Wire(WireError::Signature));
        assert_eq!(rejection(signed(&key, TOPIC, &receipt("hub2"))), Rejected::OtherHub);
        let topic = "pgw/v1/B86022/gw1/receipt/hub2/clinical";
        assert_eq!(rejection(signed(&key, topic, &receipt("hub2"))), Rejected::UnknownHub);
        let topic = "pgw/v1/B86022/gw2/receipt/hub1/clinical";
        assert_eq!(rejection(signed(&key, topic, &good)), Rejected::OtherGateway);
        let topic = "pgw/v1/B86022/gw1/receipt/hub1/unknown";
        assert_eq!(rejection(signed(&key, topic, &good)), Rejected::UnknownLane);
        let mut newer = good.clone();
        newer.schema = 2;
        assert_eq!(rejection(signed(&key, TOPIC, &newer)), Rejected::Wire(WireError::Schema(2)));
    }

    #[test]
    fn gaps_and_hub_status_come_from_configured_hubs_only() {
        let (key, next) = (key(), key());
        let mut verifier = verifier(&key);
        verifier.hubs[0].keys.push(next.public());
        let signed = |key: &SigningKey, word, topic: &str, payload: Vec<u8>| {
            let signature = key.sign(word, topic, &payload).to_string();
            publish(topic, payload, Some(signature))
        };
        let gap = receipt::Gap::new(GapCode::Missing, Epoch(Uuid::nil()), 3, 4);
        let (topic, payload) = ("pgw/v1/B86022/gw1/gap/hub1/urgent", wire::to_json(&gap));
        for key in [&key, &next] {
            let inbound = verifier.verify(&signed(key, Word::Gap, topic, payload.clone()));
            assert_eq!(inbound, Ok(Inbound::Gap { lane: 0, gap: gap.clone() }));
        }
        let unsigned = verifier.verify(&publish(topic, payload.clone(), None));
        assert_eq!(unsigned, Err(Rejected::Wire(WireError::Signature)));
        let taken_for_another = verifier.verify(&signed(&key, Word::Receipt, topic, payload.clone()));
        assert_eq!(taken_for_another, Err(Rejected::Wire(WireError::Signature)));
        let topic = "pgw/v1/B86022/gw1/gap/hub2/urgent";
        let foreign = verifier.verify(&signed(&key, Word::Gap, topic, payload));
        assert_eq!(foreign, Err(Rejected::UnknownHub));

        let status = wire::to_json(&Status::new("offline", 1, "x", String::new()));
        let topic = "pgw/v1/hub/hub1/status";
        let inbound = verifier.verify(&signed(&key, Word::Status, topic, status.clone()));
        assert_eq!(inbound, Ok(Inbound::HubStatus { hub: Hub::new("hub1").unwrap(), online: false }));
        let unsigned = verifier.verify(&publish(topic, status.clone(), None));
        assert_eq!(unsigned, Err(Rejected::Wire(WireError::Signature)));
        let other = verifier.verify(&publish("pgw/v1/hub/hub2/status", status, None));
        assert_eq!(other, Ok(Inbound::Other));
    }
}
