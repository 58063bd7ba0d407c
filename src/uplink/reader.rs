//! A lane's own thread for everything about the outbox that may block: reading ahead, chain values, a new epoch.

use std::sync::mpsc as blocking;
use std::thread;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use tokio::sync::mpsc;

use crate::chain::ChainValue;
use crate::delivery::Numbering;
use crate::outbox::{Outbox, ReadError, Refusal, Stored};
use crate::transaction::{Lane, Position};
use crate::wire::envelope::Envelope;

/// Written for the round until it is known: as long as the longest one.
const ROUND_PLACEHOLDER: u64 = u64::MAX;
const ROUND: &str = "round";

/// A record made ready for the wire, but for its round.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) position: Position,
    /// Chain value on the wire.
    pub(super) chain: ChainValue,
    /// Bytes of the whole MQTT packet: what the broker limits, and what a slow link carries.
    pub(super) bytes: u64,
    pub(super) payload: Bytes,
    properties: PublishProperties,
}

impl Ready {
    fn new(lane: &Lane, topic: &str, stored: Stored) -> Self {
        let transaction = &stored.transaction;
        let payload = transaction.body.to_bytes();
        let envelope =
            Envelope::new(lane, stored.epoch, stored.sequence, stored.chain, ROUND_PLACEHOLDER, transaction);
        let properties = PublishProperties {
            content_type: Some(envelope.content_type.clone()),
            user_properties: envelope.into_properties(),
            ..PublishProperties::default()
        };
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload.clone(), Some(properties));
        publish.pkid = 1;
        let bytes = publish.size() as u64;
        let properties = publish.properties.unwrap_or_default();
        Self { position: stored.position, chain: stored.chain, bytes, payload, properties }
    }

    /// The publish's payload and properties in this round.
    pub(super) fn into_publish(mut self, round: u64) -> (Bytes, PublishProperties) {
        if let Some((_, value)) = self.properties.user_properties.iter_mut().find(|(name, _)| name == ROUND) {
            *value = round.to_string();
        }
        (self.payload, self.properties)
    }
}

/// What the thread is asked.
enum Question {
    Records { generation: u64, from: Position, most: usize, most_bytes: usize },
    ChainAt(Position),
    NewEpoch { after: Position },
}

/// What it answers, and for which lane.
#[derive(Debug)]
pub(super) enum Answer {
    Records { generation: u64, from: Position, records: Result<Vec<Ready>, ReadError> },
    ChainAt { position: Position, chain: Option<ChainValue> },
    Renumbered { after: Position, numbering: Result<Numbering, Refusal> },
}

/// The handle on the thread; the thread ends when it is dropped.
pub(super) struct Reader {
    questions: blocking::Sender<Question>,
}

impl Reader {
    /// Starts the thread. Answers carry the lane's index. They are few: the driver has one read under way at a time.
    pub(super) fn start(
        outbox: Outbox,
        lane: Lane,
        index: usize,
        topic: String,
        answers: mpsc::UnboundedSender<(usize, Answer)>,
    ) -> std::io::Result<Self> {
        let (questions, asked) = blocking::channel();
        thread::Builder::new().name(format!("read-{lane}")).spawn(move || {
            while let Ok(question) = asked.recv() {
                let answer = answer(&outbox, &lane, &topic, question);
                if answers.send((index, answer)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions })
    }

    pub(super) fn read(&self, generation: u64, from: Position, most: usize, most_bytes: usize) {
        self.ask(Question::Records { generation, from, most, most_bytes });
    }

    pub(super) fn chain_at(&self, position: Position) {
        self.ask(Question::ChainAt(position));
    }

    pub(super) fn new_epoch(&self, after: Position) {
        self.ask(Question::NewEpoch { after });
    }

    fn ask(&self, question: Question) {
        if self.questions.send(question).is_err() {
            tracing::error!(
                "A lane's reader thread has ended, the lane stands until the gateway starts again"
            );
        }
    }
}

fn answer(outbox: &Outbox, lane: &Lane, topic: &str, question: Question) -> Answer {
    match question {
        Question::Records { generation, from, most, most_bytes } => {
            let records = outbox
                .read(lane, from, most, most_bytes)
                .map(|records| records.into_iter().map(|stored| Ready::new(lane, topic, stored)).collect());
            Answer::Records { generation, from, records }
        }
        Question::ChainAt(position) => Answer::ChainAt { position, chain: outbox.chain_at(lane, position) },
        Question::NewEpoch { after } => {
            Answer::Renumbered { after, numbering: outbox.new_epoch(lane, after) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::{Body, Clock, Epoch, Transaction, TransactionId};
    use uuid::Uuid;

    #[test]
    fn the_size_is_that_of_the_packet_and_the_round_is_written_last() {
        let lane = Lane::new("clinical").unwrap();
        let stored = Stored {
            position: 9,
            epoch: Epoch(Uuid::nil()),
            sequence: 4,
            previous: ChainValue([0; 32]),
            chain: ChainValue([1; 32]),
            transaction: Transaction {
                id: TransactionId(Uuid::nil()),
                time: 0,
                event_type: "hl7v2.adt_a01".into(),
                kind: "hl7v2".into(),
                content_type: "application/hl7-v2+er7".into(),
                source: "urn:x".into(),
                key: String::new(),
                correlation_id: String::new(),
                clock: Clock::Synced,
                test_data: false,
                body: Body::new(vec![7; 5_000]),
            },
        };
        let ready = Ready::new(&lane, "topic", stored);
        let said = ready.bytes;
        assert_eq!((ready.position, ready.payload.len()), (9, 5_000));
        let (payload, properties) = ready.into_publish(u64::MAX);
        let mut publish = Publish::new("topic", QoS::AtLeastOnce, payload, Some(properties.clone()));
        publish.pkid = 65_535;
        let mut written = bytes::BytesMut::new();
        publish.write(&mut written).unwrap();
        assert_eq!(said, written.len() as u64);
        let read = Envelope::from_properties(properties.content_type, properties.user_properties).unwrap();
        assert_eq!((read.round, read.sequence), (u64::MAX, 4));
    }
}
