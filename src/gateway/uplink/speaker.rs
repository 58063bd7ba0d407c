//! Signs what the gateway says, and numbers it (design section 12.3).

use std::sync::Arc;

use bytes::Bytes;
use pgw_core::delivery::Millis;
use pgw_core::wire::said::{BootId, Origin};
use pgw_core::wire::signature::{KeyId, PROPERTY, Signature, SigningKey, Word};
use rumqttc::v5::mqttbytes::v5::PublishProperties;

/// A hub that is there answers within seconds.
const ANSWER_PATIENCE: Millis = 120_000;

/// The gateway's voice since this start of the program.
pub(super) struct Speaker {
    pub(super) key: Arc<SigningKey>,
    id: KeyId,
    boot: BootId,
    count: u64,
    /// Since when the hub has answered no question.
    unanswered: Option<Millis>,
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
        Self { key, id, boot, count: 0, unanswered: None }
    }

    /// Short name of the key.
    pub(super) fn key_id(&self) -> KeyId {
        self.id
    }

    /// The hub was asked something. True: it has not answered for so long that it may know this start from before the machine
    /// was set back with its memory, and passes over what it counts: another [`Speaker::begin`] is due.
    pub(super) fn asked(&mut self, now: Millis) -> bool {
        now.saturating_sub(*self.unanswered.get_or_insert(now)) > ANSWER_PATIENCE
    }

    /// It has answered, or there is a new connection.
    pub(super) fn answered(&mut self) {
        self.unanswered = None;
    }

    /// Speaks as another start of the program.
    pub(super) fn begin(&mut self, boot: BootId) {
        (self.boot, self.count, self.unanswered) = (boot, 0, None);
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
    pub(super) fn properties(&self) -> PublishProperties {
        PublishProperties {
            user_properties: vec![(PROPERTY.to_owned(), self.signature.to_string())],
            content_type: Some("application/json".to_owned()),
            ..PublishProperties::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_that_answers_nothing_for_minutes_is_spoken_to_by_another_start() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let mut speaker = Speaker::new(Arc::new(key), BootId([1; 8]));
        assert!(!speaker.asked(50) && !speaker.asked(50 + ANSWER_PATIENCE));
        speaker.answered();
        assert!(!speaker.asked(51 + ANSWER_PATIENCE));
        assert!(speaker.asked(52 + 2 * ANSWER_PATIENCE));
        speaker.say(Word::Probe, "t", b"{\"a\":1}".to_vec());
        speaker.begin(BootId([2; 8]));
        let spoken = speaker.say(Word::Probe, "t", b"{\"a\":1}".to_vec());
        assert!(spoken.payload.ends_with(
            format!(r#""boot":"0202020202020202","count":1,"key":"{}"}}"#, speaker.id).as_bytes()
        ));
        assert!(!speaker.asked(53 + 2 * ANSWER_PATIENCE));
    }
}
