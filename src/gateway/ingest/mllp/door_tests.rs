//! The door over real sockets, in front of a fake outbox under the test's control.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgw_core::transaction::{Gateway, Kind, Lane, Practice, TransactionId};
use pgw_link::clock::TrustedClock;
use pgw_outbox::{Accepted, Refusal, Submission};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::ingest::mllp::codec::{Decoder, Event, encode};
use crate::ingest::mllp::context::{MllpDoorConfig, OnUnavailable};
use crate::ingest::mllp::door::MllpDoor;
use crate::ingest::mllp::route::Route;
use crate::ingest::{Acceptor, Budget, Counters};

/// Far longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
pub(super) struct Fake(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    stored: Mutex<Vec<Submission>>,
    quarantined: Mutex<Vec<(&'static str, String, Vec<u8>)>>,
    refusal: Mutex<Option<Refusal>>,
    /// What the quarantine answers instead of keeping anything.
    not_kept: Mutex<Option<Refusal>>,
    /// While true, submissions wait for `barrier` to be notified.
    slow: AtomicBool,
    waiting: Notify,
    barrier: Notify,
}

impl Acceptor for Fake {
    async fn submit(&self, submission: Submission) -> Result<Accepted, Refusal> {
        if self.0.slow.load(Ordering::SeqCst) {
            self.0.waiting.notify_one();
            self.0.barrier.notified().await;
        }
        if let Some(refusal) = self.0.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let mut stored = self.0.stored.lock().unwrap();
        let same_key = |s: &&Submission| s.sender == submission.sender && s.key == submission.key;
        let repeated = stored.iter().filter(same_key).any(|s| s.body == submission.body);
        let key_reused = !repeated && stored.iter().any(|s| same_key(&s));
        if !repeated {
            stored.push(submission);
        }
        let position = stored.len() as u64;
        Ok(Accepted {
            id: TransactionId(Uuid::nil()),
            position,
            time: 0,
            repeated,
            key_reused,
            withheld: false,
        })
    }

    fn quarantine(&self, reason: &'static str, source: &str, bytes: &[u8]) -> Result<u64, Refusal> {
        if let Some(refusal) = self.0.not_kept.lock().unwrap().clone() {
            return Err(refusal);
        }
        let mut quarantined = self.0.quarantined.lock().unwrap();
        quarantined.push((reason, source.to_owned(), bytes.to_vec()));
        Ok(quarantined.len() as u64)
    }
}

impl Fake {
    fn refuse(&self, refusal: Option<Refusal>) {
        *self.0.refusal.lock().unwrap() = refusal;
    }

    fn keep_nothing(&self, refusal: Option<Refusal>) {
        *self.0.not_kept.lock().unwrap() = refusal;
    }

    fn bodies(&self) -> Vec<Vec<u8>> {
        self.0.stored.lock().unwrap().iter().map(|s| s.body.as_bytes().to_vec()).collect()
    }

    fn reasons(&self) -> Vec<&'static str> {
        self.0.quarantined.lock().unwrap().iter().map(|q| q.0).collect()
    }
}

pub(super) fn settings() -> MllpDoorConfig {
    MllpDoorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        practice: Practice::new("B86022").unwrap(),
        gateway: Gateway::new("gw1").unwrap(),
        lane: Lane::new("clinical").unwrap(),
        frame_limit_bytes: 100_000,
        in_frame_timeout: Duration::from_secs(30),
        max_connections: 8,
        on_unavailable: OnUnavailable::Close,
        unavailable_pause: Duration::from_millis(20),
        allowed_addresses: Vec::new(),
        allowed_senders: Vec::new(),
        routes: Vec::new(),
        tls: None,
    }
}

pub(super) struct Running {
    pub(super) address: std::net::SocketAddr,
    outbox: Fake,
    pub(super) counters: Arc<Counters>,
    budget: Budget,
    pub(super) reload: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

pub(super) async fn open(settings: MllpDoorConfig) -> Running {
    let door =
        MllpDoor::listen(settings, TrustedClock::open(std::path::Path::new("/nonexistent"))).await.unwrap();
    let address = door.address();
    let (outbox, counters, budget) = (Fake::default(), Arc::new(Counters::default()), Budget::new(1 << 20));
    let (stop, stopped) = watch::channel(false);
    let reload = watch::Sender::new(0);
    let task = tokio::spawn(door.serve(
        outbox.clone(),
        Arc::clone(&counters),
        budget.clone(),
        reload.subscribe(),
        stopped,
    ));
    Running { address, outbox, counters, budget, reload, stop, task }
}

struct Sender {
    stream: TcpStream,
    decoder: Decoder,
    events: std::collections::VecDeque<Event>,
}

impl Running {
    async fn sender(&self) -> Sender {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Sender { stream, decoder: Decoder::new(1400, 1), events: Default::default() }
    }

    /// Waits until `enough` holds: counters move a moment after the answer.
    pub(super) async fn counted(&self, enough: impl Fn(crate::ingest::Counts) -> bool) {
        let wait = async {
            while !enough(self.counters.counts()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "{:?}", self.counters.counts());
    }
}

impl Sender {
    async fn send(&mut self, message: &[u8]) {
        let mut framed = Vec::new();
        encode(message, &mut framed);
        self.raw(&framed).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// MSA-1 and MSA-2 of the next acknowledgment; `None` if the connection is closed instead.
    async fn answer(&mut self) -> Option<String> {
        let text = self.whole_answer().await?;
        let msa = text.split('\r').find_map(|segment| segment.strip_prefix("MSA|")).unwrap();
        Some(msa.splitn(3, '|').take(2).collect::<Vec<_>>().join(" "))
    }

    async fn whole_answer(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.events.pop_front() {
                let Event::Frame(body) = event else { panic!("an answer is small") };
                return Some(String::from_utf8_lossy(body.as_bytes()).into_owned());
            }
            let mut buffer = [0; 2000];
            match timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("an answer or a close") {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.decoder.handle(&buffer[..read], 0, &mut self.events),
            }
        }
    }
}

pub(super) fn message(id: &str, accept: &str) -> Vec<u8> {
    format!("MSH|^~\\&|LAB|SURG|APP|FAC|20200501||ORU^R01|{id}|P|2.3|||{accept}|\rPID|1|x\r").into_bytes()
}

#[tokio::test]
async fn pipelined_messages_are_answered_one_by_one_in_order() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    let mut wire = Vec::new();
    let latin = b"MSH|^~\\&|LAB|SURG|||1||ADT^A01|3|P|2.3||||||8859/1\rPID|1|M\xfcller".to_vec();
    for message in [&message("1", ""), &message("2", "AL"), &latin] {
        encode(message, &mut wire);
    }
    sender.raw(&wire).await;
    for expected in ["AA 1", "CA 2", "AA 3"] {
        assert_eq!(sender.answer().await.as_deref(), Some(expected));
    }
    assert_eq!(door.outbox.bodies(), [message("1", ""), message("2", "AL"), latin], "unchanged, in order");
    let first = door.outbox.0.stored.lock().unwrap()[0].clone();
    assert_eq!(
        (first.event_type.text(), first.kind, first.sender.as_str(), first.key.as_str(), first.shows_key),
        ("hl7v2.oru_r01", Kind::Transaction, "hl7v2:LAB%7CSURG", "1", true)
    );
    let counts = door.counters.counts();
    assert_eq!((counts.received, counts.accepted, counts.connections), (3, 3, 1));
}

#[tokio::test]
async fn nothing_is_acknowledged_before_the_barrier() {
    let door = open(settings()).await;
    door.outbox.0.slow.store(true, Ordering::SeqCst);
    let mut sender = door.sender().await;
    sender.send(&message("1", "")).await;
    timeout(PATIENCE, door.outbox.0.waiting.notified()).await.unwrap();
    let early = timeout(Duration::from_millis(150), sender.answer()).await;
    assert!(early.is_err(), "answered {early:?} while the message was not stored");
    door.outbox.0.barrier.notify_one();
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
}

#[tokio::test]
async fn repetitions_get_the_same_answer_and_reused_numbers_are_new() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    let mut other = message("1", "");
    other.extend_from_slice(b"OBX|1\r");
    for sent in [&message("1", ""), &message("1", ""), &other] {
        sender.send(sent).await;
        assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
    }
    assert_eq!(door.outbox.bodies(), [message("1", ""), other]);
    let counts = door.counters.counts();
    assert_eq!((counts.accepted, counts.repeated, counts.key_reused), (3, 1, 1));
}

#[tokio::test]
async fn no_answer_where_none_is_wanted() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    sender.send(&message("1", "NE")).await;
    sender.send(&message("2", "ER")).await;
    sender.send(&message("3", "SU")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("CA 3"));
    assert_eq!(door.outbox.bodies().len(), 3);
}

#[tokio::test]
async fn refused_content_is_answered_and_kept() {
    let door = open(MllpDoorConfig { allowed_senders: vec!["LAB|SURG".into()], ..settings() }).await;
    let mut sender = door.sender().await;
    sender.raw(b"noise\r\n").await;
    sender.send(b"PID|1|no header").await;
    sender.send(b"FHS|^~\\&|LAB").await;
    sender.send(b"").await;
    let stranger = b"MSH|^~\\&|LAB|ELSE|||1||ADT^A01|9|P|2.5|||AL".to_vec();
    sender.send(&stranger).await;
    let mut large = message("10", "");
    large.resize(150_000, b'x');
    sender.send(&large).await;
    sender.send(&message("11", "")).await;
    for expected in ["AR ", "AR ", "AR ", "CR 9", "AE 10", "AA 11"] {
        assert_eq!(sender.answer().await.as_deref(), Some(expected));
    }
    assert_eq!(door.outbox.reasons(), ["no MSH", "unsupported", "sender not allowed", "too large"]);
    {
        let quarantined = door.outbox.0.quarantined.lock().unwrap();
        assert_eq!(quarantined[2].2, stranger);
        assert_eq!(quarantined[3].2, &large[..4096]);
    }
    assert_eq!(door.outbox.bodies(), [message("11", "")]);
    let counts = door.counters.counts();
    assert_eq!((counts.refused, counts.accepted, counts.noise_bytes), (5, 1, 5));
}

#[tokio::test]
async fn a_number_or_sender_that_cannot_be_sent_on_is_refused_by_its_field() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    let with = |application: &str, id: &str, version: &str| {
        format!("MSH|^~\\&|{application}|SURG|||1||ORU^R01|{id}|P|{version}\rPID|1\r").into_bytes()
    };
    let long = "7".repeat(256);
    let name = "L".repeat(800);
    sender.send(&with(&name, &long, "2.4")).await;
    assert!(sender.answer().await.unwrap().starts_with("AA 777"), "up to the limits it is taken");
    let refused = [
        (with("LAB", &format!("{long}7"), "2.5"), "MSH^1^10|102^Data type error^HL70357|E"),
        (with("LAB", "a\u{fffe}b", "2.5"), "MSH^1^10|102^"),
        (with("LAB", "a\tb", "2.4"), "ERR|MSH^^10^102&Data type error&HL70357"),
        (with(&"L".repeat(1000), "8", "2.5"), "MSH^1^3|102^"),
    ];
    for (message, named) in &refused {
        sender.send(message).await;
        let answer = sender.whole_answer().await.unwrap();
        assert!(answer.contains("MSA|AR|") && answer.contains(named), "{named}: {answer}");
    }
    assert_eq!(door.outbox.reasons(), ["bad MSH-10", "bad MSH-10", "bad MSH-10", "long MSH-3 or MSH-4"]);
    let kept: Vec<_> = door.outbox.0.quarantined.lock().unwrap().iter().map(|kept| kept.2.clone()).collect();
    assert_eq!(kept, refused.map(|(message, _)| message), "whole");
    assert_eq!(door.outbox.bodies().len(), 1);
    sender.send(&message("a\tb", "AL")).await;
    assert!(
        sender.answer().await.unwrap().starts_with("CR "),
        "never as it is: its sender must not repeat it"
    );
    sender.send(&message("9", "")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AA 9"), "its sender continues");
}

/// One message for each reason for which the door refuses and keeps the whole.
fn refused_for_good() -> [Vec<u8>; 5] {
    let stranger = b"MSH|^~\\&|LAB|ELSE|||1||ADT^A01|9|P|2.5|||AL".to_vec();
    let long = format!("MSH|^~\\&|LAB|SURG|||1||ORU^R01|{}|P|2.4", "7".repeat(257)).into_bytes();
    [message("a\tb", "AL"), long, stranger, b"FHS|^~\\&|LAB".to_vec(), b"PID|1|no header".to_vec()]
}

#[tokio::test]
async fn what_the_quarantine_cannot_keep_is_not_refused_for_good() {
    let settings = MllpDoorConfig { allowed_senders: vec!["LAB|SURG".into()], ..settings() };
    for refusal in [Refusal::Full("full".into()), Refusal::Trouble("disk".into())] {
        let door = open(settings.clone()).await;
        for refused in refused_for_good() {
            door.outbox.keep_nothing(Some(refusal.clone()));
            let mut sender = door.sender().await;
            sender.send(&refused).await;
            assert_eq!(sender.answer().await, None, "its sender would go on without it");
            door.outbox.keep_nothing(None);
            let mut sender = door.sender().await;
            sender.send(&refused).await;
            let answer = sender.answer().await.unwrap();
            assert!(answer.starts_with("AR ") || answer.starts_with("CR "), "{answer}");
        }
        let kept: Vec<_> =
            door.outbox.0.quarantined.lock().unwrap().iter().map(|kept| kept.2.clone()).collect();
        assert_eq!(kept, refused_for_good());
        let counts = door.counters.counts();
        assert_eq!((counts.refused, counts.unavailable, counts.quarantine_failed), (5, 5, 5));
        let mut sender = door.sender().await;
        sender.send(&message("1", "")).await;
        assert_eq!(sender.answer().await.as_deref(), Some("AA 1"), "the door is open for all others");
    }
}

#[tokio::test]
async fn a_site_with_words_for_later_has_them_for_what_cannot_be_kept() {
    let on_unavailable = OnUnavailable::Reject;
    let settings = MllpDoorConfig { on_unavailable, allowed_senders: vec!["LAB|SURG".into()], ..settings() };
    let door = open(settings).await;
    door.outbox.keep_nothing(Some(Refusal::Full("full".into())));
    let mut sender = door.sender().await;
    for refused in refused_for_good() {
        sender.send(&refused).await;
        let answer = sender.answer().await.unwrap();
        assert!(answer.starts_with("AE ") || answer.starts_with("CE "), "{answer}");
    }
    sender.send(&message("1", "")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
    sender.send(&message("a\tb", "NE")).await;
    assert_eq!(sender.answer().await, None, "to a sender that wants no answer, silence is acceptance");
    // Of a message that is too large its sender has the whole, whatever becomes of its beginning.
    let mut sender = door.sender().await;
    let mut large = message("10", "");
    large.resize(150_000, b'x');
    sender.send(&large).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AE 10"));
}

#[tokio::test]
async fn beyond_its_addresss_share_a_message_is_for_later() {
    let door = open(settings()).await;
    let (mut answered, mut closed) = (0, 0);
    while closed < 3 {
        let mut sender = door.sender().await;
        sender.send(&message("a\tb", "")).await;
        match sender.answer().await {
            Some(answer) => {
                assert!(answer.starts_with("AR "), "{answer}");
                answered += 1;
            }
            None => closed += 1,
        }
        assert!(answered < 150, "128 at once, then one a second");
    }
    assert_eq!(door.outbox.reasons().len(), answered, "each that was refused for good");
    let mut sender = door.sender().await;
    sender.send(&message("1", "")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
}

#[tokio::test]
async fn a_lasting_refusal_of_the_outbox_is_answered_for_what_it_is() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    door.outbox.refuse(Some(Refusal::TooLarge { bytes: 2, limit: 1 }));
    sender.send(&message("1", "AL")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("CE 1"));
    door.outbox.refuse(Some(Refusal::UnknownLane(Lane::new("clinical").unwrap())));
    sender.send(&message("2", "AL")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("CR 2"));
    assert_eq!(door.outbox.reasons(), ["too large", "refused by the outbox"]);
}

#[tokio::test]
async fn while_nothing_can_be_stored_nobody_is_let_in() {
    let door = open(MllpDoorConfig { unavailable_pause: Duration::from_secs(3600), ..settings() }).await;
    let mut sender = door.sender().await;
    door.outbox.refuse(Some(Refusal::Busy));
    sender.send(&message("1", "AL")).await;
    assert_eq!(sender.answer().await, None);
    door.outbox.refuse(Some(Refusal::Trouble("disk".into())));
    let mut sender = door.sender().await;
    sender.send(&message("1", "AL")).await;
    assert_eq!(sender.answer().await, None, "a full queue alone turned nobody away");
    door.counted(|c| c.unavailable == 2).await;
    assert_eq!(door.sender().await.answer().await, None);
    door.counted(|c| c.connections_refused == 1).await;
}

#[tokio::test]
async fn nothing_to_store_it_closes_without_a_word_and_opens_again() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    door.outbox.refuse(Some(Refusal::Full("no space".into())));
    let mut wire = Vec::new();
    encode(&message("1", "AL"), &mut wire);
    encode(&message("2", "AL"), &mut wire);
    sender.raw(&wire).await;
    assert_eq!(sender.answer().await, None);
    door.counted(|c| c.unavailable == 1).await;
    assert!(door.outbox.reasons().is_empty(), "it is the sender's still");
    door.outbox.refuse(None);
    let again = async {
        loop {
            let mut sender = door.sender().await;
            let mut framed = Vec::new();
            encode(&message("1", "AL"), &mut framed);
            if sender.stream.write_all(&framed).await.is_ok()
                && let Some(answer) = sender.answer().await
            {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, again).await.unwrap(), "CA 1");
    assert_eq!(door.outbox.bodies(), [message("1", "AL")], "the second was not taken before the first");
}

#[tokio::test]
async fn a_site_may_ask_for_words_instead_of_a_close() {
    let door = open(MllpDoorConfig { on_unavailable: OnUnavailable::Reject, ..settings() }).await;
    let mut sender = door.sender().await;
    door.outbox.refuse(Some(Refusal::Stopping));
    sender.send(&message("1", "")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AR 1"));
    door.outbox.refuse(None);
    sender.send(&message("1", "")).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
    assert!(door.outbox.reasons().is_empty());
}

#[tokio::test]
async fn an_end_without_cr_is_answered_and_a_half_frame_is_not() {
    let door = open(MllpDoorConfig { in_frame_timeout: Duration::from_millis(300), ..settings() }).await;
    let mut sender = door.sender().await;
    sender.raw(b"\x0bMSH|^~\\&|LAB|SURG|||1||ADT^A01|1|P|2.3\x1c").await;
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
    sender.raw(b"\x0bMSH|^~\\&|LAB|SURG|||1||ADT^A01|2|").await;
    assert_eq!(sender.answer().await, None, "closed when its time is over");
    door.counted(|c| c.timeouts == 1 && c.connections == 0).await;
    let mut sender = door.sender().await;
    sender.raw(b"\x0bMSH|^~\\&|LAB|SURG|||1||ADT^A01|3|P\x1c").await;
    sender.stream.shutdown().await.unwrap();
    assert_eq!(
        sender.answer().await.as_deref(),
        Some("AA 3"),
        "the end of the connection ends the frame, too"
    );
    let mut sender = door.sender().await;
    sender.raw(b"\x0bMSH|^~\\&|LAB|SURG|||1||ADT^A01|4|P").await;
    drop(sender);
    door.counted(|c| c.unfinished == 1).await;
    assert_eq!(door.outbox.bodies().len(), 2);
}

#[tokio::test]
async fn connections_are_limited_and_peers_are_chosen() {
    let door = open(MllpDoorConfig { max_connections: 1, ..settings() }).await;
    let mut one = door.sender().await;
    one.send(&message("1", "")).await;
    assert_eq!(one.answer().await.as_deref(), Some("AA 1"));
    assert_eq!(door.sender().await.answer().await, None);
    drop(one);
    door.counted(|c| c.connections == 0).await;
    let mut two = door.sender().await;
    two.send(&message("2", "")).await;
    assert_eq!(two.answer().await.as_deref(), Some("AA 2"));

    let door =
        open(MllpDoorConfig { allowed_addresses: vec!["10.0.0.0/8".parse().unwrap()], ..settings() }).await;
    assert_eq!(door.sender().await.answer().await, None);
    assert_eq!(door.counters.counts().connections_total, 0);
}

#[tokio::test]
async fn large_messages_share_the_budget() {
    let door = open(MllpDoorConfig { frame_limit_bytes: 4 << 20, ..settings() }).await;
    // A message larger than the whole budget of 1 MiB is handled alone, and gives the budget back.
    let mut large = message("1", "");
    large.resize(3 << 20, b'x');
    let mut sender = door.sender().await;
    sender.send(&large).await;
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
    assert_eq!(door.budget.free_bytes(), 1 << 20);
    // While another connection holds it all, a large message has to wait for later, and a small one does not.
    let mut all = door.budget.share();
    all.grow_to(1 << 20).await;
    let mut small = door.sender().await;
    small.send(&message("2", "")).await;
    assert_eq!(small.answer().await.as_deref(), Some("AA 2"));
    let mut framed = Vec::new();
    encode(&large, &mut framed);
    // The door closes before it has read everything.
    let _ = sender.stream.write_all(&framed).await;
    assert_eq!(sender.answer().await, None);
    assert_eq!(door.outbox.bodies().len(), 2);
}

#[tokio::test]
async fn a_stop_lets_what_is_being_stored_be_answered() {
    let door = open(settings()).await;
    door.outbox.0.slow.store(true, Ordering::SeqCst);
    let mut idle = door.sender().await;
    let mut sender = door.sender().await;
    sender.send(&message("1", "")).await;
    timeout(PATIENCE, door.outbox.0.waiting.notified()).await.unwrap();
    door.stop.send(true).unwrap();
    assert_eq!(idle.answer().await, None);
    door.outbox.0.barrier.notify_one();
    assert_eq!(sender.answer().await.as_deref(), Some("AA 1"));
    assert_eq!(sender.answer().await, None);
    timeout(PATIENCE, door.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(door.address).await.is_err());
    assert_eq!(door.counters.counts().connections, 0);
}

#[tokio::test]
async fn kinds_are_routed_to_their_lanes() {
    let route = |message: &str, lane: &str| Route {
        message: message.parse().unwrap(),
        lane: Lane::new(lane).unwrap(),
    };
    let routes = vec![route("ORU^R01", "results"), route("ADT", "demographics")];
    let door = open(MllpDoorConfig { routes, ..settings() }).await;
    let mut sender = door.sender().await;
    for (number, kind) in ["ORU^R01", "ADT^A08", "SIU^S12"].into_iter().enumerate() {
        sender.send(format!("MSH|^~\\&|LAB|SURG|||1||{kind}|{number}|P|2.3").as_bytes()).await;
        assert_eq!(sender.answer().await, Some(format!("AA {number}")));
    }
    let lanes: Vec<String> =
        door.outbox.0.stored.lock().unwrap().iter().map(|s| s.lane.as_str().to_owned()).collect();
    assert_eq!(lanes, ["results", "demographics", "clinical"]);
}

#[tokio::test]
async fn a_flood_of_refused_messages_is_answered_slowly_and_little_of_it_is_kept() {
    let door = open(MllpDoorConfig { on_unavailable: OnUnavailable::Reject, ..settings() }).await;
    let begun = std::time::Instant::now();
    let mut flooder = door.sender().await;
    let (mut reader, mut writer) = flooder.stream.split();
    let flood = async {
        let mut wire = Vec::new();
        for _ in 0..160 {
            encode(b"junk", &mut wire);
        }
        writer.write_all(&wire).await.unwrap();
    };
    let answers = async {
        let (mut seen, mut buffer) = (0, [0; 4096]);
        while seen < 160 {
            let read = reader.read(&mut buffer).await.unwrap();
            assert!(read > 0, "each of them is answered");
            seen += buffer[..read].iter().filter(|b| **b == 0x0b).count();
        }
    };
    let ((), ()) = tokio::join!(flood, answers);
    // 128 at once, then 32 a second.
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    let counts = door.counters.counts();
    let kept = door.outbox.reasons().len() as u64;
    assert!((128..150).contains(&kept), "128 at once, then one a second: {kept}");
    assert_eq!((counts.refused, counts.unavailable), (kept, 160 - kept));
    assert_eq!(counts.quarantine_passed_over, 160 - kept);
    assert!(counts.slowed_down >= 30, "{counts:?}");
}

#[tokio::test]
async fn noise_is_read_slowly_and_what_follows_it_is_taken() {
    let door = open(settings()).await;
    let begun = std::time::Instant::now();
    let mut sender = door.sender().await;
    let (mut reader, mut writer) = sender.stream.split();
    let send = async {
        writer.write_all(&vec![b'x'; 5 << 18]).await.unwrap();
        let mut framed = Vec::new();
        encode(&message("1", ""), &mut framed);
        writer.write_all(&framed).await.unwrap();
    };
    let mut buffer = [0; 2000];
    let (read, ()) = tokio::join!(reader.read(&mut buffer), send);
    assert!(read.unwrap() > 0);
    assert_eq!(door.outbox.bodies(), [message("1", "")]);
    assert!(begun.elapsed() >= Duration::from_millis(900), "a second for what is over 1 MiB");
    assert_eq!(door.counters.counts().noise_bytes, 5 << 18);
}

#[tokio::test]
async fn of_a_large_message_that_the_outbox_refuses_no_part_is_kept_as_the_whole() {
    let door = open(settings()).await;
    let mut sender = door.sender().await;
    let mut large = message("1", "AL");
    large.resize(90_000, b'x');
    sender.send(&large).await;
    assert_eq!(sender.answer().await.as_deref(), Some("CA 1"));
    assert_eq!(door.outbox.bodies(), [large.clone()], "it is stored whole");
    door.outbox.refuse(Some(Refusal::UnknownLane(Lane::new("clinical").unwrap())));
    sender.send(&large).await;
    assert_eq!(sender.answer().await, None, "its sender alone has the whole");
    assert!(door.outbox.reasons().is_empty());
    assert_eq!(door.counters.counts().quarantine_failed, 1);
    let mut sender = door.sender().await;
    door.outbox.refuse(Some(Refusal::TooLarge { bytes: 90_000, limit: 1 }));
    sender.send(&large).await;
    assert_eq!(sender.answer().await.as_deref(), Some("CE 1"));
    let kept = door.outbox.0.quarantined.lock().unwrap()[0].2.len();
    assert!(kept <= 4096, "no more than the beginning, which is known as such: {kept}");
}
