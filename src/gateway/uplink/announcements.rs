//! The gateway's own messages: status, info, health and events. They wait here for a connection, within bounds.

use std::collections::VecDeque;

use pgw_core::transaction::{rfc3339, unix_millis_now};
use pgw_core::wire::presence::{Event, Status};
use pgw_core::wire::signature::Word;
use pgw_core::wire::topic::Root;
use pgw_core::wire::{SCHEMA, to_json};
use uuid::Uuid;

use super::speaker::{Speaker, Spoken};

/// Events kept while the link is down; after that the oldest are dropped. They are for people: the transactions are in
/// the outbox.
const EVENTS: usize = 256;

/// One message, signed.
#[derive(Debug)]
pub(super) struct Message {
    /// What it is, for in-flight tracking and the log: the PUBACK of an event removes it from the list.
    pub(super) word: Word,
    pub(super) topic: String,
    pub(super) retain: bool,
    pub(super) spoken: Spoken,
}

/// One message that waits. It is signed when it goes: the hub passes over what comes after something later.
struct Waiting {
    word: Word,
    topic: String,
    retain: bool,
    payload: Vec<u8>,
}

/// The messages to be sent.
pub(super) struct Announcements {
    root: Root,
    pub(super) speaker: Speaker,
    /// Only for this connection.
    queue: VecDeque<Waiting>,
    events: VecDeque<Event>,
    /// How many of `events`, from the front, were handed to this connection.
    events_sent: usize,
}

impl Announcements {
    pub(super) fn new(root: Root, speaker: Speaker) -> Self {
        Self { root, speaker, queue: VecDeque::new(), events: VecDeque::new(), events_sent: 0 }
    }

    /// A new connection: what was handed to an older one may not have arrived.
    pub(super) fn reset(&mut self) {
        self.queue.clear();
        self.events_sent = 0;
        self.speaker.answered();
    }

    /// A retained message, or a question: sent once, before any event.
    pub(super) fn enqueue(&mut self, word: Word, topic: String, retain: bool, payload: Vec<u8>) {
        // Only the newest state counts: it replaces an older one that has not been sent.
        if retain {
            self.queue.retain(|message| message.topic != topic);
        }
        self.queue.push_back(Waiting { word, topic, retain, payload });
    }

    /// The gateway's status at the beginning of a connection; commands name its nonce.
    pub(super) fn enqueue_online(&mut self, session: u64, command_nonce: &str) {
        let mut status = Status::new("online", session, "connected", rfc3339(unix_millis_now()));
        command_nonce.clone_into(&mut status.command_nonce);
        let topic = self.root.plain("status");
        self.enqueue(Word::Status, topic, true, to_json(&status));
    }

    /// A status to be said at once, or to be left with the broker: its topic, and the message.
    pub(super) fn status_now(&mut self, status: &str, session: u64, reason: &str) -> (String, Spoken) {
        let status = Status::new(status, session, reason, rfc3339(unix_millis_now()));
        let topic = self.root.plain("status");
        let spoken = self.speaker.say(Word::Status, &topic, to_json(&status));
        (topic, spoken)
    }

    /// An event to be sent at least once.
    pub(super) fn push_event(&mut self, event: Event) {
        if self.events.len() >= EVENTS {
            self.events.remove(self.events_sent.min(self.events.len() - 1));
        }
        self.events.push_back(event);
    }

    /// An event of the uplink itself.
    pub(super) fn event(&mut self, level: &str, code: &str, phase: &str, detail: String) {
        self.push_event(Event {
            schema: SCHEMA,
            id: Uuid::now_v7().to_string(),
            time: rfc3339(unix_millis_now()),
            level: level.to_owned(),
            code: code.to_owned(),
            phase: phase.to_owned(),
            detail,
        });
    }

    /// The oldest event has arrived.
    pub(super) fn event_arrived(&mut self) {
        if self.events_sent > 0 {
            self.events.pop_front();
            self.events_sent -= 1;
        }
    }

    /// The next message for this connection.
    pub(super) fn next(&mut self) -> Option<Message> {
        let Waiting { word, topic, retain, payload } =
            self.queue.pop_front().or_else(|| self.next_event())?;
        let spoken = self.speaker.say(word, &topic, payload);
        Some(Message { word, topic, retain, spoken })
    }

    fn next_event(&mut self) -> Option<Waiting> {
        let payload = to_json(self.events.get(self.events_sent)?);
        self.events_sent += 1;
        Some(Waiting { word: Word::Event, topic: self.root.plain("event"), retain: false, payload })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use pgw_core::transaction::{Gateway, Practice};
    use pgw_core::wire::said::{BootId, Said};
    use pgw_core::wire::signature::SigningKey;

    fn messages() -> Announcements {
        let root = Root::new(&Practice::new("B86022").unwrap(), &Gateway::new("gw1").unwrap());
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        Announcements::new(root, Speaker::new(Arc::new(key), BootId([7; 8])))
    }

    fn drain(messages: &mut Announcements) -> Vec<String> {
        std::iter::from_fn(|| messages.next())
            .map(|message| {
                let value: serde_json::Value = serde_json::from_slice(&message.spoken.payload).unwrap();
                value["detail"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn an_event_stays_until_it_has_arrived_and_the_oldest_make_room() {
        let mut messages = messages();
        for number in 0..EVENTS + 2 {
            messages.event("info", "x", "", number.to_string());
        }
        let first = drain(&mut messages);
        assert_eq!((first.len(), first[0].as_str()), (EVENTS, "2"));
        messages.event_arrived();
        messages.reset();
        assert_eq!(drain(&mut messages)[0], "3", "the arrived one is gone, the others go again");
    }

    #[test]
    fn only_the_newest_retained_state_is_said() {
        let mut messages = messages();
        messages.enqueue(Word::Health, "h".into(), true, br#"{"detail":"old"}"#.to_vec());
        messages.enqueue(Word::Health, "h".into(), true, br#"{"detail":"new"}"#.to_vec());
        assert_eq!(drain(&mut messages), ["new"]);
    }

    #[test]
    fn everything_is_signed_and_counted_in_the_order_of_its_going() {
        let mut messages = messages();
        messages.event("info", "x", "", "later".into());
        let (topic, will) = messages.status_now("offline", 1, "");
        messages.enqueue_online(1, "0f");
        let public = messages.speaker.key.public();
        let signed = |word, topic: &str, spoken: &Spoken| {
            let (_, signature) = &spoken.properties().user_properties[0];
            public.verify(word, topic, &spoken.payload, Some(signature)).unwrap();
            Said::<()>::from_json(&spoken.payload).unwrap().origin
        };
        assert_eq!(signed(Word::Status, &topic, &will).count, 1);
        for (count, word) in [(2, Word::Status), (3, Word::Event)] {
            let message = messages.next().unwrap();
            let origin = signed(word, &message.topic, &message.spoken);
            assert_eq!((message.word, origin.count, origin.key), (word, count, public.id()));
        }
    }
}
