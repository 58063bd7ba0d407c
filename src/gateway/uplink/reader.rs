//! A lane's own thread for all outbox calls that may block: reading ahead, chain values, a new epoch.

use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use pgw_core::chain::{ChainValue, Through};
use pgw_core::numbering::{Gone, Numbering};
use pgw_core::transaction::{Epoch, Kind, Lane, LaneName, Position, Sequence};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::SigningKey;
use pgw_link::session::Frame;
use pgw_outbox::{Outbox, ReadError, Refusal};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use tokio::sync::mpsc;

use crate::wire_chain::{Numbered, WireReader};

/// How the properties begin that hold the round and the delay: identifier, length and name (MQTT 5 §2.2.2.2). No value can
/// contain this, because MQTT text has no NUL.
const ROUND: &[u8] = b"\x26\x00\x05round";
const DELAYED: &[u8] = b"\x26\x00\x07delayed";
/// Digits of the longest round, and of the longest delay.
const ROUND_DIGITS: usize = 20;
const DELAYED_DIGITS: usize = 20;
/// Two lengths in the packet may each take a byte more for longer values.
const LENGTHS_GROW: usize = 2;

/// A record encoded for the wire.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) position: Position,
    /// Chain value on the wire.
    pub(super) chain: ChainValue,
    /// Bytes of the whole MQTT packet with the longest round and delay: used for the broker's limit and for a slow link.
    pub(super) bytes: u64,
    /// The last position that its number names.
    pub(super) through: Position,
    /// The packet, with the round in which it was read, and its delay then.
    frame: Frame,
    round: u64,
    delay: Option<Delay>,
}

/// How long ago a transaction was accepted, by running time: a step of the wall clock changes nothing of it.
#[derive(Debug, Clone, Copy)]
struct Delay {
    accepted: Instant,
    /// As the packet says it.
    seconds: u64,
}

impl Delay {
    fn of(accepted: Instant, now: Instant) -> Self {
        Self { accepted, seconds: now.saturating_duration_since(accepted).as_secs() }
    }
}

impl Ready {
    /// Encoded here, on the lane's thread: properties are many small strings. `None`: larger than MQTT allows.
    fn new(
        lane: &LaneName,
        topic: &Bytes,
        key: &SigningKey,
        round: u64,
        numbered: &Numbered,
        delay: Option<Delay>,
    ) -> Option<Self> {
        let Numbered { position, through, epoch, sequence, link, chain, ref transaction, .. } = *numbered;
        let payload = transaction.body.to_bytes();
        let envelope = Envelope::new(lane, epoch, sequence, chain, round, transaction);
        let delayed = delay.map(|delay| delay.seconds);
        let envelope = envelope.linked(link).delayed_by(delayed).signed(lane, key);
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
        let growth =
            ROUND_DIGITS - digits(round) + delayed.map_or(0, |seconds| DELAYED_DIGITS - digits(seconds));
        let longest = frame.size() + growth + LENGTHS_GROW;
        Some(Self { position, chain, bytes: longest as u64, through, frame, round, delay })
    }

    /// The packet as it is sent now, with this round. `None`: it cannot be encoded with it.
    pub(super) fn into_frame(mut self, round: u64, now: Instant) -> Option<Frame> {
        let delay = self.delay.map(|delay| Delay::of(delay.accepted, now));
        let delays = self.delay.zip(delay).map(|(read, sent)| (read.seconds, sent.seconds));
        if self.rewrite(ROUND, self.round, round)
            && delays.is_none_or(|(read, sent)| self.rewrite(DELAYED, read, sent))
        {
            return Some(self.frame);
        }
        // A value of another length: everything after it moves.
        let Packet::Publish(mut publish) = Packet::read(self.frame.bytes_mut(), None).ok()? else {
            return None;
        };
        let properties = &mut publish.properties.as_mut()?.user_properties;
        let mut put = |property: &str, number: u64| {
            let (_, value) = properties.iter_mut().find(|(name, _)| name == property)?;
            *value = number.to_string();
            Some(())
        };
        put("round", round)?;
        if let Some(delay) = delay {
            put("delayed", delay.seconds)?;
        }
        Frame::new(&mut publish).ok()
    }

    /// Replaces a number in place if it has the same length.
    fn rewrite(&mut self, property: &[u8], read: u64, sent: u64) -> bool {
        if read == sent {
            return true;
        }
        let text = sent.to_string();
        let bytes = self.frame.bytes_mut();
        let Some(at) = bytes.windows(property.len()).position(|window| window == property) else {
            return false;
        };
        let from = at + property.len() + 2;
        match bytes.get_mut(from..from + text.len()) {
            Some(there) if text.len() == digits(read) => {
                there.copy_from_slice(text.as_bytes());
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
        follows: Vec<Epoch>,
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

    pub(super) fn new_epoch(
        &self,
        after: Position,
        link: Option<Through>,
        follows: Vec<Epoch>,
        gone: Vec<Gone>,
    ) {
        self.ask(Question::NewEpoch { after, link, follows, gone });
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
        let ready = |numbered: Numbered| {
            Ready::new(&name, topic, key, round, &numbered, delay(outbox, lane, &numbered))
        };
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
        Question::NewEpoch { after, link, follows, gone } => {
            ReaderAnswer::Renumbered(outbox.new_epoch(lane, after, link, follows, &gone))
        }
        Question::LostAtHub(lost) => {
            outbox.lost_at_hub(lane, &lost);
            return None;
        }
    })
}

/// `None`: unknown, and of an entry, which is no transaction that a sender has handed over.
fn delay(outbox: &Outbox, lane: &Lane, numbered: &Numbered) -> Option<Delay> {
    if matches!(numbered.transaction.kind, Kind::Void | Kind::Pruned) {
        return None;
    }
    let accepted = outbox.accepted_at(lane, numbered.position)?;
    Some(Delay::of(accepted, Instant::now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{self, Store};
    use std::time::Duration;

    use pgw_core::transaction::{Body, Clock, Epoch, Transaction, TransactionId};
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
        let key = key();
        let mut frame =
            Ready::new(&lane, &Bytes::from_static(b"t"), &key, 7, &numbered(3), None).unwrap().frame;
        let Ok(Packet::Publish(publish)) = Packet::read(frame.bytes_mut(), None) else {
            panic!("no publish")
        };
        let properties = publish.properties.unwrap();
        let read = Envelope::from_properties(properties.content_type, properties.user_properties).unwrap();
        let signature = read.signature.unwrap();
        assert!(key.public().verify_head(&lane, read.epoch, read.sequence, read.chain, &signature));
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn read_back(mut frame: Frame) -> (Envelope, Bytes, Bytes) {
        let Ok(Packet::Publish(publish)) = Packet::read(frame.bytes_mut(), None) else {
            panic!("no publish");
        };
        let properties = publish.properties.unwrap();
        let read = Envelope::from_properties(properties.content_type, properties.user_properties).unwrap();
        (read, publish.topic, publish.payload)
    }

    #[test]
    fn a_packet_carries_the_round_in_which_it_goes_and_fits_its_announced_size() {
        let lane = "B86022/gw1/clinical".parse().unwrap();
        // The same round, one of the same length, a longer and a shorter one; bodies around the points where lengths
        // grow.
        for (read, sent) in [(7, 7), (123, 456), (9, 10), (0, u64::MAX), (u64::MAX, 1)] {
            for body in [0, 90, 15_900, 16_300, 5_000] {
                let topic = Bytes::from_static(b"topic");
                let ready = Ready::new(&lane, &topic, &key(), read, &numbered(body), None).unwrap();
                let announced = ready.bytes;
                assert_eq!(ready.position, 9);
                let frame = ready.into_frame(sent, Instant::now()).unwrap();
                let size = frame.size() as u64;
                assert!(size <= announced, "{size} > {announced}");
                if sent == u64::MAX {
                    assert!(announced - size <= LENGTHS_GROW as u64);
                }
                let (read, topic, payload) = read_back(frame);
                assert_eq!((&topic[..], &payload[..]), (&b"topic"[..], &vec![7; body][..]));
                assert_eq!((read.round, read.sequence, read.delayed), (sent, 4, None));
            }
        }
    }

    /// The transactions here were accepted in 1970 by the wall clock.
    #[test]
    fn a_packet_carries_its_delay_at_the_moment_of_its_sending_by_running_time() {
        let lane = "B86022/gw1/clinical".parse().unwrap();
        let (accepted, second) = (Instant::now(), Duration::from_secs(1));
        for (read, sent) in [(0, 0), (3, 4), (9, 10), (99, 86_400), (1_000_000, 1_000_001)] {
            let delay = Delay::of(accepted, accepted + second * read);
            let topic = Bytes::from_static(b"topic");
            let ready = Ready::new(&lane, &topic, &key(), 7, &numbered(5), Some(delay)).unwrap();
            let (announced, plain) = (ready.bytes, numbered(5).transaction.digest(&lane));
            let frame = ready.into_frame(8, accepted + second * sent + second / 2).unwrap();
            assert!(frame.size() as u64 <= announced);
            let (envelope, _, payload) = read_back(frame);
            assert_eq!((envelope.delayed, envelope.round), (Some(u64::from(sent)), 8));
            assert_eq!(envelope.digest(&payload), plain, "the digest does not cover it");
        }
    }

    #[test]
    fn only_a_transaction_of_this_run_says_how_long_it_waited() {
        let store = Store::with(3);
        let (outbox, lane) = (&store.outbox, store_for_tests::lane());
        let mut wire = WireReader::new(outbox, &lane);
        let read = wire.read(3, 1, 1000).unwrap().remove(0);
        let seconds = delay(outbox, &lane, &read).unwrap().seconds;
        assert!(seconds < 3600, "{seconds}");
        let mut entry = read.clone();
        entry.transaction.kind = Kind::Void;
        assert!(delay(outbox, &lane, &entry).is_none());
        // Accepted before this start: nobody knows for how long the box was off.
        let store = Store::with_lost(6, 2, &[5]);
        let (outbox, lane) = (&store.outbox, store_for_tests::lane());
        let read = WireReader::new(outbox, &lane).read(1, 1, 1000).unwrap().remove(0);
        assert!(delay(outbox, &lane, &read).is_none());
    }
}
