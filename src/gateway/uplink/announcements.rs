//! The gateway's own messages: status, info, health and events. They wait here for a connection, within bounds.

use std::collections::VecDeque;

use bytes::Bytes;
use pgw_core::transaction::{rfc3339, unix_millis_now};
use pgw_core::wire::presence::{Event, Status};
use pgw_core::wire::topic::Root;
use pgw_core::wire::{SCHEMA, to_json};
use uuid::Uuid;

/// Events kept while the link is down; after that the oldest are dropped. They are for people: the transactions are in
/// the outbox.
const EVENTS: usize = 256;

/// One message, ready.
#[derive(Debug)]
pub(super) struct Message {
    /// Its name for in-flight tracking and in the log.
    pub(super) name: &'static str,
    pub(super) topic: String,
    pub(super) retain: bool,
    pub(super) payload: Bytes,
}

/// In-flight name of an event: its PUBACK removes it from the list.
pub(super) const EVENT: &str = "event";

/// The messages to be sent.
pub(super) struct Announcements {
    root: Root,
    /// Only for this connection.
    queue: VecDeque<Message>,
    events: VecDeque<Event>,
    /// How many of `events`, from the front, were handed to this connection.
    events_sent: usize,
}

impl Announcements {
    pub(super) fn new(root: Root) -> Self {
        Self { root, queue: VecDeque::new(), events: VecDeque::new(), events_sent: 0 }
    }

    /// A new connection: what was handed to an older one may not have arrived.
    pub(super) fn reset(&mut self) {
        self.queue.clear();
        self.events_sent = 0;
    }

    /// A retained message, or a question: sent once, before any event.
    pub(super) fn enqueue(&mut self, name: &'static str, topic: String, retain: bool, payload: Vec<u8>) {
        // Only the newest state counts: it replaces an older one that has not been sent.
        if retain {
            self.queue.retain(|message| message.topic != topic);
        }
        self.queue.push_back(Message { name, topic, retain, payload: payload.into() });
    }

    /// The gateway's status.
    pub(super) fn enqueue_status(&mut self, status: &str, session: u64, reason: &str) {
        let status = Status::new(status, session, reason, rfc3339(unix_millis_now()));
        let topic = self.root.plain("status");
        self.enqueue("status", topic, true, to_json(&status));
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
        if let Some(message) = self.queue.pop_front() {
            return Some(message);
        }
        let event = self.events.get(self.events_sent)?;
        self.events_sent += 1;
        let (topic, payload) = (self.root.plain("event"), to_json(event).into());
        Some(Message { name: EVENT, topic, retain: false, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::transaction::{Gateway, Practice};

    fn messages() -> Announcements {
        Announcements::new(Root::new(&Practice::new("B86022").unwrap(), &Gateway::new("gw1").unwrap()))
    }

    fn drain(messages: &mut Announcements) -> Vec<String> {
        std::iter::from_fn(|| messages.next())
            .map(|message| {
                let text = String::from_utf8(message.payload.to_vec()).unwrap();
                let event = serde_json::from_str::<Event>(&text).map(|event| event.detail);
                event.unwrap_or(text)
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
        messages.enqueue("health", "h".into(), true, b"old".to_vec());
        messages.enqueue("health", "h".into(), true, b"new".to_vec());
        assert_eq!(drain(&mut messages), ["new"]);
    }
}
