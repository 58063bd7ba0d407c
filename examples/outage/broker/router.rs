//! The broker's decisions: who is connected, who subscribes to what, and which messages wait for whom. No IO.
//!
//! Nothing is dropped for lack of space, and no client can block another for ever:
//! - A QoS 1 publish is *held* while a subscriber's queue is full, and so is its PUBACK. MQTT 5 lets a client have
//!   [`RECEIVE_MAXIMUM`] publishes without a PUBACK, so the number of held publishes is bounded and the publisher
//!   stops by itself.
//! - Every connection is always read. If reading stopped instead, the PUBACKs behind a held publish could not arrive,
//!   and two clients that publish to each other could wait for each other for ever.
//! - QoS 0 has no PUBACK to withhold: a subscriber whose queue is full does not get such a message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rumqttc::v5::mqttbytes::v5::{
    DisconnectReasonCode as Reason, Filter, Packet, PubAck, PubAckReason, Publish, RetainForwardRule,
    SubscribeReasonCode, UnsubAckReason,
};
use rumqttc::v5::mqttbytes::{QoS, valid_filter};
use tokio::sync::Notify;

/// Publishes that a client may have sent without a PUBACK; CONNACK says so.
pub(super) const RECEIVE_MAXIMUM: u16 = 100;
/// A subscriber with this many messages waiting is full. Retained messages and wills go in regardless.
const QUEUE: usize = 1000;
/// Replies that a client may leave unread before it is disconnected.
const REPLIES: usize = 1000;
/// Messages are passed to a connection in portions of about this size.
const PORTION_BYTES: usize = 64 * 1024;

/// A connection's number. A client that connects again gets a new one.
pub(super) type SessionId = u64;

/// A client's options when it connected.
pub(super) struct Client {
    pub(super) name: String,
    pub(super) will: Option<Publish>,
    /// Unacknowledged publishes that it accepts.
    pub(super) receive_maximum: u16,
    /// The largest packet that it accepts.
    pub(super) maximum_packet: usize,
}

/// How the router reaches a connection's task.
#[derive(Default)]
pub(super) struct Signals {
    /// [`Router::take`] has something for it.
    pub(super) work: Notify,
    /// Another connection has taken over its client id.
    pub(super) evicted: Notify,
}

/// A session lives exactly as long as its connection.
struct Session {
    client: Client,
    signals: Arc<Signals>,
    filters: BTreeMap<String, Filter>,
    /// Its publishes that some subscriber's queue has no space for, oldest first; without PUBACK so far.
    held: VecDeque<Publish>,
    /// PUBACK, SUBACK and the like for it.
    replies: VecDeque<Packet>,
    /// Messages for it.
    queue: VecDeque<Publish>,
    /// Packet identifiers that it has not acknowledged.
    in_flight: BTreeSet<u16>,
    last_identifier: u16,
}

impl Session {
    /// The subscription by which it gets what `from` publishes; the one with the highest QoS if there are several.
    fn subscription(&self, own: bool, topic: &str) -> Option<&Filter> {
        let fits = |filter: &&Filter| !(own && filter.nolocal) && matches(&filter.path, topic);
        self.filters.values().filter(fits).max_by_key(|filter| filter.qos as u8)
    }

    fn is_full(&self) -> bool {
        self.queue.len() >= QUEUE
    }

    fn push(&mut self, message: &Publish, granted: QoS, retain: bool) {
        let qos = lower(message.qos, granted);
        let message = Publish { dup: false, qos, retain, pkid: 0, ..message.clone() };
        // MQTT 5 §3.1.2.11.4: a packet too large for a client is not sent to it. 2 bytes: the packet identifier.
        if message.size() + 2 <= self.client.maximum_packet {
            self.queue.push_back(message);
            self.signals.work.notify_one();
        }
    }

    fn reply(&mut self, reply: Packet) {
        self.replies.push_back(reply);
        self.signals.work.notify_one();
    }

    /// The next message with its packet identifier, unless the client must first acknowledge others.
    fn next(&mut self) -> Option<Publish> {
        let at_least_once = self.queue.front()?.qos == QoS::AtLeastOnce;
        if at_least_once && self.in_flight.len() >= usize::from(self.client.receive_maximum) {
            return None;
        }
        let mut message = self.queue.pop_front()?;
        if at_least_once {
            while !self.in_flight.insert(self.last_identifier) {
                self.last_identifier = self.last_identifier % u16::MAX + 1;
            }
            message.pkid = self.last_identifier;
        }
        Some(message)
    }
}

/// All sessions and the retained messages.
#[derive(Default)]
pub(super) struct Router {
    sessions: BTreeMap<SessionId, Session>,
    retained: BTreeMap<String, Publish>,
    last_session: SessionId,
}

impl Router {
    /// Begins a session. If the client is connected already, that session ends, and its will is published.
    pub(super) fn connect(&mut self, client: Client) -> (SessionId, Arc<Signals>) {
        let old = self.sessions.iter().find(|(_, session)| session.client.name == client.name);
        if let Some((id, signals)) = old.map(|(id, session)| (*id, Arc::clone(&session.signals))) {
            self.end(id, true);
            signals.evicted.notify_one();
        }
        let signals = Arc::new(Signals::default());
        let session = Session {
            client,
            signals: Arc::clone(&signals),
            filters: BTreeMap::new(),
            held: VecDeque::new(),
            replies: VecDeque::new(),
            queue: VecDeque::new(),
            in_flight: BTreeSet::new(),
            last_identifier: 1,
        };
        self.last_session += 1;
        self.sessions.insert(self.last_session, session);
        (self.last_session, signals)
    }

    /// A name for a client that has none.
    pub(super) fn new_name(&self) -> String {
        format!("unnamed-{}", self.last_session + 1)
    }

    /// Ends a session, if it has not ended already.
    pub(super) fn end(&mut self, id: SessionId, with_will: bool) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let (true, Some(will)) = (with_will, &session.client.will) {
            self.route(None, will);
        }
        self.pass_on(); // nothing has to wait for this one any more
    }

    /// A client publishes. `Err`: why it must be disconnected.
    pub(super) fn publish(&mut self, id: SessionId, mut message: Publish) -> Result<(), Reason> {
        check(&mut message)?;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        if message.qos == QoS::AtMostOnce {
            self.route(Some(id), &message);
        } else if session.held.len() < usize::from(RECEIVE_MAXIMUM) {
            session.held.push_back(message);
            while self.pass_on_one(id) {}
        } else {
            return Err(Reason::ReceiveMaximumExceeded);
        }
        Ok(())
    }

    /// A client acknowledges.
    pub(super) fn acknowledged(&mut self, id: SessionId, identifier: u16) {
        if let Some(session) = self.sessions.get_mut(&id)
            && session.in_flight.remove(&identifier)
        {
            session.signals.work.notify_one();
        }
    }

    /// A client subscribes. The retained messages follow if it wants them.
    pub(super) fn subscribe(&mut self, id: SessionId, filter: Filter) -> SubscribeReasonCode {
        let Some(session) = self.sessions.get_mut(&id) else { return SubscribeReasonCode::Unspecified };
        if !valid_filter(&filter.path) {
            return SubscribeReasonCode::TopicFilterInvalid;
        }
        if filter.path.starts_with("$share/") {
            return SubscribeReasonCode::SharedSubscriptionsNotSupported;
        }
        if session.is_full() {
            return SubscribeReasonCode::QuotaExceeded;
        }
        let granted = lower(filter.qos, QoS::AtLeastOnce);
        let filter = Filter { qos: granted, ..filter };
        let old = session.filters.insert(filter.path.clone(), filter.clone());
        let send_retained = match filter.retain_forward_rule {
            RetainForwardRule::OnEverySubscribe => true,
            RetainForwardRule::OnNewSubscribe => old.is_none(),
            RetainForwardRule::Never => false,
        };
        for (_, message) in
            self.retained.iter().filter(|(topic, _)| send_retained && matches(&filter.path, topic))
        {
            session.push(message, granted, true);
        }
        SubscribeReasonCode::Success(granted)
    }

    /// A client unsubscribes.
    pub(super) fn unsubscribe(&mut self, id: SessionId, filter: &str) -> UnsubAckReason {
        match self.sessions.get_mut(&id).and_then(|session| session.filters.remove(filter)) {
            Some(_) => UnsubAckReason::Success,
            None => UnsubAckReason::NoSubscriptionExisted,
        }
    }

    /// Answers a client. `Err`: why it must be disconnected.
    pub(super) fn reply(&mut self, id: SessionId, reply: Packet) -> Result<(), Reason> {
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        session.reply(reply);
        if session.replies.len() > REPLIES { Err(Reason::QuotaExceeded) } else { Ok(()) }
    }

    /// What can be sent to a client now: its replies, and a portion of its messages.
    pub(super) fn take(&mut self, id: SessionId) -> Vec<Packet> {
        let Some(session) = self.sessions.get_mut(&id) else { return Vec::new() };
        let mut packets: Vec<Packet> = session.replies.drain(..).collect();
        let mut bytes = 0;
        while bytes < PORTION_BYTES
            && let Some(message) = session.next()
        {
            bytes += message.size();
            packets.push(Packet::Publish(message));
        }
        if bytes > 0 {
            self.pass_on(); // there is space in its queue again
        }
        packets
    }

    /// Passes on held publishes that now have space: one of each publisher in turn, so that none is left out.
    fn pass_on(&mut self) {
        let holders = self.sessions.iter().filter(|(_, session)| !session.held.is_empty());
        let mut holders: Vec<SessionId> = holders.map(|(id, _)| *id).collect();
        while !holders.is_empty() {
            holders.retain(|id| self.pass_on_one(*id));
        }
    }

    /// Passes on the oldest held publish of a client and acknowledges it, if every subscriber has space for it.
    fn pass_on_one(&mut self, id: SessionId) -> bool {
        let Some(message) = self.sessions.get(&id).and_then(|session| session.held.front()) else {
            return false;
        };
        let topic = topic(message);
        let mut sessions = self.sessions.iter();
        if sessions.any(|(of, other)| other.is_full() && other.subscription(*of == id, topic).is_some()) {
            return false;
        }
        let Some(message) = self.sessions.get_mut(&id).and_then(|session| session.held.pop_front()) else {
            return false;
        };
        let mut ack = PubAck::new(message.pkid, None);
        if self.route(Some(id), &message) == 0 {
            ack.reason = PubAckReason::NoMatchingSubscribers;
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.reply(Packet::PubAck(ack));
        }
        true
    }

    /// Puts a message into the queue of each subscriber, and stores it if it is retained; returns the number of
    /// subscribers.
    fn route(&mut self, from: Option<SessionId>, message: &Publish) -> usize {
        let topic = topic(message);
        if message.retain && message.payload.is_empty() {
            self.retained.remove(topic);
        } else if message.retain {
            self.retained.insert(topic.to_owned(), message.clone());
        }
        let mut subscribers = 0;
        for (id, session) in &mut self.sessions {
            let Some(filter) = session.subscription(Some(*id) == from, topic) else { continue };
            subscribers += 1;
            let (granted, retain) = (filter.qos, message.retain && filter.preserve_retain);
            if message.qos != QoS::AtMostOnce || !session.is_full() {
                session.push(message, granted, retain);
            }
        }
        subscribers
    }
}

/// Whether this broker can pass on a publish or a will. Its properties are passed on unchanged.
pub(super) fn check(message: &mut Publish) -> Result<(), Reason> {
    if message.qos == QoS::ExactlyOnce {
        return Err(Reason::QoSNotSupported);
    }
    if let Some(properties) = &mut message.properties {
        if properties.topic_alias.is_some() {
            return Err(Reason::TopicAliasInvalid);
        }
        properties.subscription_identifiers.clear(); // only a broker may set them
    }
    match topic(message) {
        "" => Err(Reason::TopicNameInvalid),
        topic if topic.contains(['+', '#', '\0']) => Err(Reason::TopicNameInvalid),
        _ => Ok(()),
    }
}

/// A message's topic; empty if it is not UTF-8, which [`check`] refuses.
fn topic(message: &Publish) -> &str {
    std::str::from_utf8(&message.topic).unwrap_or_default()
}

/// MQTT 5 §4.7. (rumqttc's own panics at a topic that begins with a letter outside ASCII.)
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn lower(one: QoS, other: QoS) -> QoS {
    if one < other { one } else { other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::v5::PublishProperties;

    fn client(name: &str) -> Client {
        Client { name: name.to_owned(), will: None, receive_maximum: 10, maximum_packet: usize::MAX }
    }

    fn message(topic: &str, body: &str) -> Publish {
        let mut message = Publish::new(topic, QoS::AtLeastOnce, body.to_owned(), None);
        message.pkid = 7;
        message
    }

    fn retained(topic: &str, body: &str) -> Publish {
        Publish { retain: true, ..message(topic, body) }
    }

    fn filter(path: &str) -> Filter {
        Filter::new(path, QoS::AtLeastOnce)
    }

    impl Router {
        fn join(&mut self, name: &str, filters: &[&str]) -> SessionId {
            let (id, _) = self.connect(client(name));
            for path in filters {
                let code = self.subscribe(id, filter(path));
                assert_eq!(code, SubscribeReasonCode::Success(QoS::AtLeastOnce));
            }
            id
        }

        fn messages(&mut self, id: SessionId) -> Vec<Publish> {
            let packets = self.take(id).into_iter();
            packets.filter_map(|p| if let Packet::Publish(p) = p { Some(p) } else { None }).collect()
        }

        fn bodies(&mut self, id: SessionId) -> Vec<String> {
            let messages = self.messages(id).into_iter();
            messages.map(|m| String::from_utf8(m.payload.to_vec()).unwrap()).collect()
        }

        /// Takes and acknowledges until nothing more arrives.
        fn drain(&mut self, id: SessionId) -> Vec<String> {
            let mut all = Vec::new();
            loop {
                let messages = self.messages(id);
                if messages.is_empty() {
                    return all;
                }
                for message in messages {
                    self.acknowledged(id, message.pkid);
                    all.push(String::from_utf8(message.payload.to_vec()).unwrap());
                }
            }
        }

        fn pubacks(&mut self, id: SessionId) -> usize {
            let session = self.sessions.get_mut(&id).unwrap();
            let replies = session.replies.drain(..);
            replies.filter(|reply| matches!(reply, Packet::PubAck(_))).count()
        }
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/b/c", false),
            ("a/b", "a", false),
            ("a/+", "a/b", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("a/+/c", "a/b/c", true),
            ("a/+/c", "a/b/d", false),
            ("+/+", "/a", true),
            ("+", "/a", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("#", "ärzte/1", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn a_retained_message_comes_whole_to_who_subscribes_later_until_it_is_removed() {
        let mut router = Router::default();
        let publisher = router.join("publisher", &[]);
        let properties = PublishProperties {
            content_type: Some("application/json".into()),
            response_topic: Some("reply".into()),
            correlation_data: Some("c".into()),
            user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
            ..PublishProperties::default()
        };
        let whole = Publish { properties: Some(properties.clone()), ..retained("s/1", "new") };
        router.publish(publisher, retained("s/1", "old")).unwrap();
        router.publish(publisher, whole).unwrap();
        router.publish(publisher, retained("s/2", "other")).unwrap();
        router.publish(publisher, message("s/1", "passing")).unwrap();

        let late = router.join("late", &["s/1"]);
        let got = router.messages(late);
        assert_eq!(got.len(), 1);
        assert_eq!((&got[0].payload[..], got[0].retain), (&b"new"[..], true));
        assert_eq!(got[0].properties, Some(properties));

        // An existing subscriber gets it as a new message, with the flag only if it asked for it as published.
        router.subscribe(late, Filter { preserve_retain: true, ..filter("s/3") });
        router.publish(publisher, retained("s/1", "live")).unwrap();
        router.publish(publisher, retained("s/3", "live")).unwrap();
        assert_eq!(router.messages(late).iter().map(|m| m.retain).collect::<Vec<_>>(), [false, true]);

        let never = Filter { retain_forward_rule: RetainForwardRule::Never, ..filter("s/+") };
        let once = Filter { retain_forward_rule: RetainForwardRule::OnNewSubscribe, ..filter("s/2") };
        router.subscribe(late, never);
        assert_eq!(router.bodies(late), [""; 0]);
        router.subscribe(late, once.clone());
        router.subscribe(late, once);
        assert_eq!(router.bodies(late), ["other"]);
        router.subscribe(late, filter("s/2"));
        assert_eq!(router.bodies(late), ["other"]);

        router.publish(publisher, retained("s/2", "")).unwrap();
        let later = router.join("later", &["s/2"]);
        assert_eq!(router.bodies(later), [""; 0]);
    }

    #[test]
    fn one_copy_to_each_subscriber_at_the_lower_qos_and_none_to_who_has_left() {
        let mut router = Router::default();
        let publisher = router.join("publisher", &[]);
        let twice = router.join("twice", &["a/+", "a/#"]);
        let (best_effort, _) = router.connect(client("best effort"));
        let granted = router.subscribe(best_effort, Filter::new("a/1", QoS::AtMostOnce));
        assert_eq!(granted, SubscribeReasonCode::Success(QoS::AtMostOnce));
        router.subscribe(publisher, Filter { nolocal: true, ..filter("#") });
        router.publish(publisher, message("a/1", "x")).unwrap();
        assert_eq!(router.bodies(twice), ["x"]);
        assert_eq!(router.messages(best_effort)[0].qos, QoS::AtMostOnce);
        assert!(router.messages(publisher).is_empty());

        for (path, expected) in [
            ("a/+", UnsubAckReason::Success),
            ("a/#", UnsubAckReason::Success),
            ("a/+", UnsubAckReason::NoSubscriptionExisted),
        ] {
            assert_eq!(router.unsubscribe(twice, path), expected);
        }
        router.end(best_effort, true);
        router.pubacks(publisher);
        router.publish(publisher, message("a/1", "y")).unwrap();
        assert!(router.bodies(twice).is_empty());
        let Some(Packet::PubAck(ack)) = router.take(publisher).pop() else { panic!("no PUBACK") };
        assert_eq!((ack.pkid, ack.reason), (7, PubAckReason::NoMatchingSubscribers));
    }

    #[test]
    fn no_more_is_in_flight_than_the_subscriber_allows() {
        let mut router = Router::default();
        let publisher = router.join("publisher", &[]);
        let subscriber = router.join("subscriber", &["a"]);
        for number in 0..25 {
            router.publish(publisher, message("a", &number.to_string())).unwrap();
        }
        let first = router.messages(subscriber);
        assert_eq!(first.len(), 10);
        assert_eq!(
            first.iter().map(|m| m.pkid).collect::<BTreeSet<_>>().len(),
            10,
            "each has its own identifier"
        );
        assert!(router.messages(subscriber).is_empty());
        router.acknowledged(subscriber, 9999); // not its own: frees no space
        assert!(router.messages(subscriber).is_empty());
        router.acknowledged(subscriber, first[3].pkid);
        assert_eq!(router.bodies(subscriber), ["10"]);
    }

    #[test]
    fn a_full_subscriber_withholds_the_puback_and_nothing_is_lost_or_reordered() {
        let mut router = Router::default();
        let publisher = router.join("publisher", &[]);
        let slow = router.join("slow", &["a"]);
        let free = router.join("free", &["b"]);
        let all: Vec<String> = (0..QUEUE + usize::from(RECEIVE_MAXIMUM)).map(|n| n.to_string()).collect();
        for body in &all {
            router.publish(publisher, message("a", body)).unwrap();
        }
        assert_eq!(router.pubacks(publisher), QUEUE);
        let most = router.publish(publisher, message("a", "one too many"));
        assert_eq!(most, Err(Reason::ReceiveMaximumExceeded));
        router.publish(publisher, Publish { qos: QoS::AtMostOnce, ..message("a", "best effort") }).unwrap();

        // Another publisher to another subscriber is not delayed by them.
        let other = router.join("other", &[]);
        router.publish(other, message("b", "x")).unwrap();
        assert_eq!((router.pubacks(other), router.bodies(free)), (1, vec!["x".to_owned()]));

        assert_eq!(router.drain(slow), all);
        assert_eq!(router.pubacks(publisher), usize::from(RECEIVE_MAXIMUM));
    }

    #[test]
    fn two_full_clients_that_publish_to_each_other_do_not_wait_for_ever() {
        let mut router = Router::default();
        let (one, other) = (router.join("one", &["to/one"]), router.join("other", &["to/other"]));
        let each = QUEUE + usize::from(RECEIVE_MAXIMUM);
        for number in 0..each {
            router.publish(one, message("to/other", &number.to_string())).unwrap();
            router.publish(other, message("to/one", &number.to_string())).unwrap();
        }
        assert_eq!((router.pubacks(one), router.pubacks(other)), (QUEUE, QUEUE));
        let held = usize::from(RECEIVE_MAXIMUM);
        assert_eq!((router.drain(one).len(), router.pubacks(other)), (each, held));
        assert_eq!((router.drain(other).len(), router.pubacks(one)), (each, held));
    }

    #[test]
    fn a_publisher_waits_no_longer_for_a_subscriber_that_has_gone() {
        let mut router = Router::default();
        let publisher = router.join("publisher", &[]);
        let gone = router.join("gone", &["a"]);
        for _ in 0..=QUEUE {
            router.publish(publisher, message("a", "x")).unwrap();
        }
        assert_eq!(router.pubacks(publisher), QUEUE);
        router.end(gone, true);
        assert_eq!(router.pubacks(publisher), 1);
    }

    #[test]
    fn a_will_is_published_at_a_takeover_and_an_abnormal_end_and_not_at_a_farewell() {
        let mut router = Router::default();
        let watcher = router.join("watcher", &["status"]);
        let with_will = || Client { will: Some(retained("status", "offline")), ..client("gateway") };
        let (first, signals) = router.connect(with_will());
        let (second, _) = router.connect(with_will());
        assert_ne!(first, second);
        assert_eq!(router.drain(watcher), ["offline"], "taken over");
        let evicted = std::pin::pin!(signals.evicted.notified()).enable();
        assert!(evicted, "the old connection is evicted");

        router.end(first, true);
        assert!(router.drain(watcher).is_empty(), "it ended with the takeover, only once");
        router.end(second, true);
        assert_eq!(router.drain(watcher), ["offline"]);
        let (third, _) = router.connect(with_will());
        router.end(third, false);
        assert!(router.drain(watcher).is_empty());
        let late = router.join("late", &["status"]);
        assert_eq!(router.bodies(late), ["offline"], "it is retained");
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        let mut router = Router::default();
        let (id, _) = router.connect(Client { maximum_packet: 100, ..client("small") });
        router.subscribe(id, filter("a"));
        for topic in ["", "a/+", "#", "a\0"] {
            assert_eq!(router.publish(id, message(topic, "x")), Err(Reason::TopicNameInvalid), "{topic:?}");
        }
        let not_text = Publish { topic: vec![0xFF].into(), ..message("a", "x") };
        assert_eq!(router.publish(id, not_text), Err(Reason::TopicNameInvalid));
        let twice = Publish { qos: QoS::ExactlyOnce, ..message("a", "x") };
        assert_eq!(router.publish(id, twice), Err(Reason::QoSNotSupported));
        let alias = PublishProperties { topic_alias: Some(1), ..PublishProperties::default() };
        let alias = Publish { properties: Some(alias), ..message("a", "x") };
        assert_eq!(router.publish(id, alias), Err(Reason::TopicAliasInvalid));
        assert_eq!(router.subscribe(id, filter("a/#/b")), SubscribeReasonCode::TopicFilterInvalid);
        let shared = router.subscribe(id, filter("$share/group/a"));
        assert_eq!(shared, SubscribeReasonCode::SharedSubscriptionsNotSupported);

        router.publish(id, message("a", &"x".repeat(100))).unwrap();
        router.publish(id, message("a", "fits")).unwrap();
        assert_eq!(router.bodies(id), ["fits"], "what is too large for a client is not sent to it");
    }
}
