//! What the broker brings: read, verified with the keys of the list, and passed on. Whatever does not count is refused, counted,
//! and logged at a limited rate.

use bytes::Bytes;
use pgw_core::committer::{Input, Question};
use pgw_core::transaction::{Gateway, Lane, LaneName, Practice, rfc3339, unix_millis_now};
use pgw_core::wire::WireError;
use pgw_core::wire::command::CommandResult;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::receipt::{Gap, GapCode, Position};
use pgw_core::wire::said::Said;
use pgw_core::wire::signature::Word;
use pgw_core::wire::topic::{Kind, Topic};
use rumqttc::v5::mqttbytes::v5::Publish;

use super::StoreThread;
use super::centre::pruned;
use super::usable::OUT_OF_USE_MILLIS;
use crate::refusals::reason;
use crate::store::Entry;

/// Most topics whose parsed form is cached.
const MOST_TOPICS: usize = 10_000;
/// Longest nonce that is repeated, bytes.
const MOST_NONCE: usize = 64;
/// Largest of a gateway's own messages that is read, bytes.
const MOST_PRESENCE: usize = 16 * 1024;

/// A gateway, by its practice and its own name.
type Who = (Practice, Gateway);

impl StoreThread {
    pub(super) fn publish(&mut self, publish: Publish) {
        let Some(topic) = self.topic(&publish.topic) else {
            self.refuse(String::from_utf8_lossy(&publish.topic).into_owned(), "unknown topic");
            return;
        };
        let Topic::Gateway { practice, gateway, kind } = topic else { return };
        // Deleting a retained message sends an empty one.
        if publish.payload.is_empty() && kind.word().is_some() {
            return;
        }
        let who = (practice, gateway);
        match kind {
            Kind::Transaction(lane) => self.transaction(who, lane, publish),
            Kind::Position(lane) => self.position(who, lane, &publish),
            kind => self.presence(who, &kind, &publish),
        }
    }

    fn transaction(&mut self, (practice, gateway): Who, lane: Lane, publish: Publish) {
        let may_have = self.speakers.may_have(&practice, &gateway, &lane);
        let lane = LaneName { practice, gateway, lane };
        if let Err(unheard) = may_have {
            return self.refuse(lane.to_string(), unheard.reason());
        }
        if !self.in_use(&lane) {
            return;
        }
        match read(&lane, publish) {
            Ok((envelope, body)) => {
                let (number, deleted) = ((envelope.epoch, envelope.sequence), pruned(&envelope, &body));
                self.refused = None;
                // A packet that is too large never comes so far: the broker keeps to what this hub has told it at CONNECT.
                let too_large = envelope.attributes().fits().is_err();
                let mut entry = Entry::new(lane, envelope, body);
                entry.too_large = too_large;
                self.tell(Input::Transaction(entry));
                if let Some((lane, why)) = self.refused.take() {
                    self.waits(&lane, why, number, deleted);
                }
            }
            Err(error) => self.refuse(lane.to_string(), reason(&error)),
        }
    }

    fn position(&mut self, (practice, gateway): Who, lane: Lane, publish: &Publish) {
        if publish.payload.len() > MOST_PRESENCE {
            return self.refuse(format!("{practice}/{gateway}/{lane}"), "unexpected topic or size");
        }
        let verified = self.speakers.verify(&practice, &gateway, Word::Position, publish);
        let may_have = self.speakers.may_have(&practice, &gateway, &lane);
        let name = LaneName { practice, gateway, lane };
        let LaneName { practice, gateway, .. } = &name;
        let Said { content, origin } = match Said::<Position>::from_json(&publish.payload) {
            Ok(said) => said,
            Err(error) => return self.refuse(name.to_string(), reason(&error)),
        };
        if let Err(unheard) = verified {
            // A forged signature deserves no answer; a box whose key is not listed waits for one.
            if !self.speakers.may_sign(practice, gateway, origin.key) {
                self.hurry = true;
                self.answers.gap(&name, Gap::of_key(content.epoch, origin.key));
            }
            return self.refuse(name.to_string(), unheard.reason());
        }
        if let Err(unheard) = may_have {
            self.hurry = true;
            self.answers.gap(&name, Gap::new(GapCode::Later, content.epoch, 0, 0));
            return self.refuse(name.to_string(), unheard.reason());
        }
        let Position { nonce, epoch, tail, point, .. } = content;
        if nonce.len() > MOST_NONCE {
            return self.refuse(name.to_string(), "nonce does not fit");
        }
        // A broker may repeat an old question; its nonce is answered once.
        let topic = format!("position/{}", name.lane);
        let fresh = self.fleet.hear(practice, gateway, &topic, origin, publish.retain).is_fresh();
        // No answer: it would say that nothing is stored.
        if fresh && !self.in_use(&name) {
            self.hurry = true;
            let mut gap = Gap::new(GapCode::Later, epoch, 0, 0);
            gap.until = Some(rfc3339(unix_millis_now() + OUT_OF_USE_MILLIS));
            self.answers.gap(&name, gap);
        } else if fresh {
            self.hurry = true;
            self.fleet.note_tail(&name, epoch, tail);
            self.tell(Input::Position { lane: name, question: Question { nonce, epoch, point } });
        }
    }

    fn presence(&mut self, who: Who, kind: &Kind, publish: &Publish) {
        let (practice, gateway) = &who;
        let (Some(word), true) = (kind.word(), publish.payload.len() <= MOST_PRESENCE) else {
            return self.refuse(format!("{practice}/{gateway}"), "unexpected topic or size");
        };
        if let Err(unheard) = self.speakers.verify(practice, gateway, word, publish) {
            return self.refuse(format!("{practice}/{gateway}"), unheard.reason());
        }
        let taken = match kind {
            Kind::Probe => self.probe(&who, publish),
            Kind::CommandResult => self.command_result(&who, publish),
            Kind::Status | Kind::Health | Kind::Info | Kind::Event => {
                self.fleet.record(practice, gateway, kind, &publish.payload, publish.retain)
            }
            _ => Err(WireError::Topic),
        };
        if let Err(error) = taken {
            self.refuse(format!("{practice}/{gateway}"), reason(&error));
        }
    }

    fn probe(&mut self, (practice, gateway): &Who, publish: &Publish) -> Result<(), WireError> {
        let Said { content: (), origin } = Said::from_json(&publish.payload)?;
        if self.fleet.hear(practice, gateway, "probe", origin, publish.retain).is_fresh() {
            self.hurry = true;
            self.probes.push((practice.clone(), gateway.clone(), publish.payload.clone()));
        }
        Ok(())
    }

    fn command_result(&mut self, (practice, gateway): &Who, publish: &Publish) -> Result<(), WireError> {
        let Said { content, origin } = Said::<CommandResult>::from_json(&publish.payload)?;
        if self.fleet.hear(practice, gateway, "cmd/result", origin, publish.retain).is_fresh() {
            // The transactions that the gateway sent before this report.
            self.keep_copies();
            self.fleet.nonce_is_old(practice, gateway, content.nonce_age_seconds);
            self.resends.result(practice, gateway, content);
        }
        Ok(())
    }

    fn topic(&mut self, topic: &Bytes) -> Option<Topic> {
        if let Some(known) = self.topics.get(topic) {
            return Some(known.clone());
        }
        let parsed = Topic::parse(std::str::from_utf8(topic).ok()?).ok()?;
        if self.topics.len() >= MOST_TOPICS {
            self.topics.clear();
        }
        // A copy, because the publish's topic is a view into the whole packet.
        self.topics.insert(Bytes::copy_from_slice(topic), parsed.clone());
        Some(parsed)
    }
}

/// A transaction from its publish, if that is well-formed. Its attributes may be beyond the limits.
fn read(lane: &LaneName, publish: Publish) -> Result<(Envelope, Bytes), WireError> {
    let (body, properties) = (publish.payload, publish.properties.unwrap_or_default());
    let envelope = Envelope::of_any_length(properties.content_type, properties.user_properties)?;
    if !envelope.is_of(lane) {
        return Err(WireError::Malformed("source or partitionkey"));
    }
    Ok((envelope, body))
}
