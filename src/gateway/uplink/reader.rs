//! A lane's own thread for all outbox calls that may block: reading ahead, chain values, a new epoch.

use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread;

use bytes::Bytes;
use pgw_core::chain::{ChainValue, Through};
use pgw_core::numbering::{Gone, Numbering};
use pgw_core::transaction::{Epoch, Lane, LaneName, Position, Sequence};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::SigningKey;
use pgw_link::session::Frame;
use pgw_outbox::{Outbox, ReadError, Refusal};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use tokio::sync::mpsc;

use crate::wire_chain::{Numbered, WireReader};

/// How the property begins that holds the round: identifier, length and name (MQTT 5 §2.2.2.2). No value can contain
/// this, because MQTT text has no NUL.
const ROUND: &[u8] = b"\x26\x00\x05round";
/// Digits of the longest round.
const ROUND_DIGITS: usize = 20;
/// Two lengths in the packet may each take a byte more for a longer round.
const LENGTHS_GROW: usize = 2;

/// A record encoded for the wire.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) position: Position,
    /// Chain value on the wire.
    pub(super) chain: ChainValue,
    /// Bytes of the whole MQTT packet with the longest round: used for the broker's limit and for a slow link.
    pub(super) bytes: u64,
    /// The last position that its number names.
    pub(super) through: Position,
    /// The packet, with the round in which it was read.
    frame: Frame,
    round: u64,
}

impl Ready {
    /// Encoded here, on the lane's thread: properties are many small strings. `None`: larger than MQTT allows.
    fn new(
        lane: &LaneName,
        topic: &Bytes,
        key: &SigningKey,
        round: u64,
        numbered: &Numbered,
    ) -> Option<Self> {
        let Numbered { position, through, epoch, sequence, link, chain, ref transaction, .. } = *numbered;
        let payload = transaction.body.to_bytes();
        let envelope = Envelope::new(lane, epoch, sequence, chain, round, transaction);
        let envelope = envelope.linked(link).signed(lane, key);
        let (content_type, user_properties) = envelope.into_properties();
        let properties = PublishProperties {
            content_type: Some(content_type),
            user_properties,
            ..PublishProperties::default()
        };
        let mut publish = Publish {
            qos: QoS::AtLeastOnce,
            topic: topic.clone(),
            payload,
            properties: Some(properties),
            ..Publish::default()
        };
        let frame = Frame::new(&mut publish).ok()?;
        let longest = frame.size() + ROUND_DIGITS + LENGTHS_GROW - digits(round);
        Some(Self { position, chain, bytes: longest as u64, through, frame, round })
    }

    /// The packet with this round. `None`: it cannot be encoded with it.
    pub(super) fn into_frame(mut self, round: u64) -> Option<Frame> {
        if round == self.round || self.rewrite_round(round) {
            return Some(self.frame);
        }
        // A round of another length: everything after it moves.
        let Packet::Publish(mut publish) = Packet::read(self.frame.bytes_mut(), None).ok()? else {
            return None;
        };
        let properties = &mut publish.properties.as_mut()?.user_properties;
        let (_, value) = properties.iter_mut().find(|(name, _)| name == "round")?;
        *value = round.to_string();
        Frame::new(&mut publish).ok()
    }

    /// Replaces the round in place if it has the same length.
    fn rewrite_round(&mut self, round: u64) -> bool {
        let text = round.to_string();
        let bytes = self.frame.bytes_mut();
        let Some(at) = bytes.windows(ROUND.len()).position(|window| window == ROUND) else { return false };
        let from = at + ROUND.len() + 2;
        match bytes.get_mut(from..from + text.len()) {
            Some(there) if text.len() == digits(self.round) => {
                there.copy_from_slice(text.as_bytes());
                self.round = round;
                true
            }
            _ => false,
        }
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// A question to the thread.
enum Question {
    /// `round`: the current one; most records read will be sent in it.
    Records {
        generation: u64,
        from: Position,
        most: usize,
        most_bytes: usize,
        round: u64,
    },
    /// Confirmed records, to be sent again.
    Resend {
        epoch: Epoch,
        from: Position,
        most: usize,
        most_bytes: usize,
    },
    ChainAt {
        epoch: Epoch,
        sequence: Sequence,
    },
    NewEpoch {
        after: Position,
        link: Option<Through>,
        gone: Vec<Gone>,
    },
    /// No question: what the hub has lost for good is written down.
    LostAtHub(Vec<(Position, Position)>),
}

/// An answer, with its lane.
#[derive(Debug)]
pub(super) enum ReaderAnswer {
    Records { generation: u64, from: Position, records: Result<Vec<Ready>, ReadError> },
    Resend { from: Position, records: Result<Vec<Ready>, ReadError> },
    ChainAt { epoch: Epoch, sequence: Sequence, chain: Result<Option<ChainValue>, ReadError> },
    Renumbered(Result<Numbering, Refusal>),
}

/// The handle to the thread; the thread ends when it is dropped.
pub(super) struct Reader {
    questions: blocking::Sender<Question>,
}

impl Reader {
    /// Starts the thread. Answers carry the lane's index. There are few: the driver has one read outstanding at a
    /// time.
    pub(super) fn start(
        outbox: Outbox,
        lane: Lane,
        index: usize,
        topic: String,
        key: Arc<SigningKey>,
        answers: mpsc::UnboundedSender<(usize, ReaderAnswer)>,
        panicked: mpsc::UnboundedSender<Lane>,
    ) -> std::io::Result<Self> {
        let (questions, asked) = blocking::channel();
        let topic = Bytes::from(topic);
        thread::Builder::new().name(format!("read-{lane}")).spawn(move || {
            let _notice = PanicNotice { lane: lane.clone(), lanes: panicked };
            let mut readers = Readers::new(&outbox, &lane);
            while let Ok(question) = asked.recv() {
                let answer = answer((&outbox, &lane), &mut readers, (&topic, &key), question);
                if answer.is_some_and(|answer| answers.send((index, answer)).is_err()) {
                    return;
                }
            }
        })?;
        Ok(Self { questions })
    }

    pub(super) fn read(&self, generation: u64, from: Position, limits: (usize, usize), round: u64) {
        let (most, most_bytes) = limits;
        self.ask(Question::Records { generation, from, most, most_bytes, round });
    }

    pub(super) fn read_for_resend(&self, epoch: Epoch, from: Position, (most, most_bytes): (usize, usize)) {
        self.ask(Question::Resend { epoch, from, most, most_bytes });
    }

    pub(super) fn chain_at(&self, epoch: Epoch, sequence: Sequence) {
        self.ask(Question::ChainAt { epoch, sequence });
    }

    pub(super) fn new_epoch(&self, after: Position, link: Option<Through>, gone: Vec<Gone>) {
        self.ask(Question::NewEpoch { after, link, gone });
    }

    pub(super) fn lost_at_hub(&self, lost: Vec<(Position, Position)>) {
        self.ask(Question::LostAtHub(lost));
    }

    fn ask(&self, question: Question) {
        if self.questions.send(question).is_err() {
            tracing::error!(
                "A lane's reader thread has ended; the lane is stalled until the gateway is restarted"
            );
        }
    }
}

/// A lane whose thread has gone would stall silently: the process ends instead, and is restarted.
struct PanicNotice {
    lane: Lane,
    lanes: mpsc::UnboundedSender<Lane>,
}

impl Drop for PanicNotice {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.lanes.send(self.lane.clone());
        }
    }
}

/// A reader for each purpose: each computes chain values onward from where it read last, so one that jumps back would make the
/// other compute the whole backlog again.
#[derive(Debug)]
struct Readers {
    live: WireReader,
    resend: WireReader,
}

impl Readers {
    fn new(outbox: &Outbox, lane: &Lane) -> Self {
        Self { live: WireReader::new(outbox, lane), resend: WireReader::new(outbox, lane) }
    }
}

fn answer(
    (outbox, lane): (&Outbox, &Lane),
    readers: &mut Readers,
    (topic, key): (&Bytes, &SigningKey),
    question: Question,
) -> Option<ReaderAnswer> {
    let name = outbox.lane_name(lane);
    // A record that MQTT cannot carry ends the batch: no door accepts one so large.
    let ready = |round, records: Result<Vec<Numbered>, ReadError>| {
        let ready = |numbered: Numbered| Ready::new(&name, topic, key, round, &numbered);
        records.map(|records| records.into_iter().map_while(ready).collect())
    };
    Some(match question {
        Question::Records { generation, from, most, most_bytes, round } => {
            let records = ready(round, readers.live.read(from, most, most_bytes));
            ReaderAnswer::Records { generation, from, records }
        }
        Question::Resend { epoch, from, most, most_bytes } => {
            let numbering = outbox.numbering(lane);
            let start = numbering.as_ref().and_then(|numbering| numbering.of(epoch));
            let resend = &mut readers.resend;
            let records = start.map_or(Ok(Vec::new()), |start| resend.read_in(start, from, most, most_bytes));
            ReaderAnswer::Resend { from, records: ready(0, records) }
        }
        Question::ChainAt { epoch, sequence } => {
            ReaderAnswer::ChainAt { epoch, sequence, chain: readers.live.value_at(epoch, sequence) }
        }
        Question::NewEpoch { after, link, gone } => {
            ReaderAnswer::Renumbered(outbox.new_epoch(lane, after, link, &gone))
        }
        Question::LostAtHub(lost) => {
            outbox.lost_at_hub(lane, &lost);
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{self, Store};
    use pgw_core::transaction::{Body, Clock, Epoch, Kind, Transaction, TransactionId};
    use uuid::Uuid;

    fn numbered(body: usize) -> Numbered {
        Numbered {
            position: 9,
            through: 9,
            epoch: Epoch(Uuid::nil()),
            sequence: 4,
            link: None,
            previous: ChainValue([0; 32]),
            chain: ChainValue([1; 32]),
            transaction: Transaction {
                id: TransactionId(Uuid::nil()),
                time: 0,
                event_type: "hl7v2.adt_a01".into(),
                kind: Kind::Transaction,
                content_type: "application/hl7-v2+er7".into(),
                sender: "urn:x".into(),
                given_sender: None,
                key: String::new(),
                shows_key: false,
                correlation_id: String::new(),
                trace_parent: String::new(),
                clock: Clock::Synced,
                body: Body::new(vec![7; body]),
            },
        }
    }

    #[test]
    fn a_panic_is_reported_and_a_clean_end_is_not() {
        let (lanes, mut panicked) = mpsc::unbounded_channel();
        for panics in [false, true] {
            let notice = PanicNotice { lane: Lane::new("clinical").unwrap(), lanes: lanes.clone() };
            let ended = thread::spawn(move || {
                let _notice = notice;
                assert!(!panics, "planted");
            });
            assert_eq!(ended.join().is_err(), panics);
            assert_eq!(panicked.try_recv().is_ok(), panics);
        }
    }

    #[test]
    fn a_resend_does_not_take_the_live_reader_back() {
        let store = Store::with(20);
        let (outbox, lane) = (&store.outbox, store_for_tests::lane());
        let epoch = outbox.numbering(&lane).unwrap().present().epoch;
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let topic = Bytes::from_static(b"t");
        let mut readers = Readers::new(outbox, &lane);
        let mut ask = |question| {
            answer((outbox, &lane), &mut readers, (&topic, &key), question);
            format!("{:?}", readers.live)
        };
        let (most, most_bytes) = (20, 100_000);
        let after = ask(Question::Records { generation: 0, from: 1, most, most_bytes, round: 1 });
        assert!(after.contains("through: 20"), "{after}");
        assert_eq!(ask(Question::Resend { epoch, from: 1, most: 2, most_bytes }), after);
    }

    #[test]
    fn a_packet_carries_its_head_signed() {
        let lane: LaneName = "B86022/gw1/clinical".parse().unwrap();
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let mut frame = Ready::new(&lane, &Bytes::from_static(b"t"), &key, 7, &numbered(3)).unwrap().frame;
        let Ok(Packet::Publish(publish)) = Packet::read(frame.bytes_mut(), None) else {
            panic!("no publish")
        };
        let properties = publish.properties.unwrap();
        let read = Envelope::from_properties(properties.content_type, properties.user_properties).unwrap();
        let signature = read.signature.unwrap();
        assert!(key.public().verify_head(&lane, read.epoch, read.sequence, read.chain, &signature));
    }

    #[test]
    fn a_packet_carries_the_round_in_which_it_goes_and_fits_its_announced_size() {
        let lane = "B86022/gw1/clinical".parse().unwrap();
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        // The same round, one of the same length, a longer and a shorter one; bodies around the points where lengths
        // grow.
        for (read, sent) in [(7, 7), (123, 456), (9, 10), (0, u64::MAX), (u64::MAX, 1)] {
            for body in [0, 90, 15_900, 16_300, 5_000] {
                let ready =
                    Ready::new(&lane, &Bytes::from_static(b"topic"), &key, read, &numbered(body)).unwrap();
                let announced = ready.bytes;
                assert_eq!(ready.position, 9);
                let mut frame = ready.into_frame(sent).unwrap();
                assert!(frame.size() as u64 <= announced, "{} > {announced}", frame.size());
                if sent == u64::MAX {
                    assert!(announced - frame.size() as u64 <= LENGTHS_GROW as u64);
                }
                let Ok(Packet::Publish(publish)) = Packet::read(frame.bytes_mut(), None) else {
                    panic!("no publish");
                };
                assert_eq!((&publish.topic[..], &publish.payload[..]), (&b"topic"[..], &vec![7; body][..]));
                let properties = publish.properties.unwrap();
                let read =
                    Envelope::from_properties(properties.content_type, properties.user_properties).unwrap();
                assert_eq!((read.round, read.sequence), (sent, 4));
            }
        }
    }
}
