//! Signs what the gateway says, and numbers it (design section 12.3).

use std::sync::Arc;

use bytes::Bytes;
use pgw_core::wire::said::{BootId, Origin};
use pgw_core::wire::signature::{KeyId, PROPERTY, Signature, SigningKey, Word};
use rumqttc::v5::mqttbytes::v5::{LastWillProperties, PublishProperties};

/// The gateway's voice since this start of the program.
pub(super) struct Speaker {
    pub(super) key: Arc<SigningKey>,
    id: KeyId,
    boot: BootId,
    count: u64,
}

/// A message with its signature.
#[derive(Debug)]
pub(super) struct Spoken {
    pub(super) payload: Bytes,
    signature: Signature,
}

impl Speaker {
    pub(super) fn new(key: Arc<SigningKey>, boot: BootId) -> Self {
        let id = key.public().id();
        Self { key, id, boot, count: 0 }
    }

    /// Short name of the key.
    pub(super) fn key_id(&self) -> KeyId {
        self.id
    }

    /// Signs a payload, which is a flat JSON object, with its number at its end.
    pub(super) fn say(&mut self, word: Word, topic: &str, payload: Vec<u8>) -> Spoken {
        self.count += 1;
        let payload = Origin { boot: self.boot, count: self.count, key: self.id }.end(payload);
        let signature = self.key.sign(word, topic, &payload);
        Spoken { payload: payload.into(), signature }
    }
}

impl Spoken {
    fn signature(&self) -> Vec<(String, String)> {
        vec![(PROPERTY.to_owned(), self.signature.to_string())]
    }

    pub(super) fn properties(&self) -> PublishProperties {
        PublishProperties {
            user_properties: self.signature(),
            content_type: Some("application/json".to_owned()),
            ..PublishProperties::default()
        }
    }

    /// The same for a will.
    pub(super) fn will_properties(&self) -> LastWillProperties {
        LastWillProperties {
            delay_interval: None,
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: Some("application/json".to_owned()),
            response_topic: None,
            correlation_data: None,
            user_properties: self.signature(),
        }
    }
}
