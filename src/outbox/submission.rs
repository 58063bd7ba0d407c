//! A door's input, and what of its envelope goes into the record. Pure.

use pgw_core::transaction::{Body, Kind, Lane};
use pgw_core::wire::limits::{Text, TextError};

use crate::event_type::{EventType, TypeAffixes};
use crate::nhs_number;

/// A door's input; the outbox gives it id, time and number.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Its lane.
    pub lane: Lane,
    /// CloudEvents `type`.
    pub event_type: EventType,
    /// Its kind.
    pub kind: Kind,
    /// Media type.
    pub content_type: String,
    /// Which system sent it.
    pub sender: String,
    /// The sender's key; empty: the content hash is the key.
    pub key: String,
    /// The key goes to the hub too, unless it contains an NHS number: it is the sender's own word.
    pub shows_key: bool,
    /// Correlation id; may be empty.
    pub correlation_id: String,
    /// W3C trace context; may be empty.
    pub trace_parent: String,
    /// The message.
    pub body: Body,
}

impl Submission {
    /// Whether the wire can carry its texts. A door asks before it submits, so that it can name what is wrong in its sender's
    /// own terms; the outbox asks again.
    ///
    /// # Errors
    /// [`TextError`], the first.
    pub fn check_texts(&self) -> Result<(), TextError> {
        self.event_type.check()?;
        Text::ContentType.check(&self.content_type)?;
        Text::Sender.check(&self.sender)?;
        Text::Key.check(&self.key)?;
        Text::CorrelationId.check(&self.correlation_id)?;
        Text::TraceParent.check(&self.trace_parent)
    }

    /// Settles what goes on the wire beside the body, and takes every valid NHS number out of it: what may be left out is left
    /// out, what must be there has a fixed word in the number's place.
    ///
    /// The sender stays as it was given, because two of them may be the same without their numbers: the duplicate check must not
    /// take one for the other. The key still recognises repetitions.
    pub(crate) fn withhold_numbers(&mut self, types: &TypeAffixes) -> Withheld {
        let mut names = Vec::new();
        // With its prefix and suffix: the three together may make a number.
        let event_type = types.whole(self.event_type.clone());
        let rest = nhs_number::withheld(&event_type);
        names.extend(rest.is_some().then_some("type"));
        self.event_type = EventType::Given(rest.unwrap_or(event_type));
        if let Some(rest) = nhs_number::withheld_of_media_type(&self.content_type) {
            names.push("datacontenttype");
            self.content_type = rest;
        }
        let sender = nhs_number::withheld(&self.sender);
        names.extend(sender.is_some().then_some("sender"));
        for (name, text) in
            [("correlationid", &mut self.correlation_id), ("traceparent", &mut self.trace_parent)]
        {
            if nhs_number::is_in(text) {
                names.push(name);
                text.clear();
            }
        }
        if self.shows_key && nhs_number::is_in(&self.key) {
            names.push("senderkey");
            self.shows_key = false;
        }
        Withheld { names, sender }
    }
}

/// What was withheld from an envelope.
#[derive(Debug)]
pub(crate) struct Withheld {
    /// The attributes of which something was.
    pub(crate) names: Vec<&'static str>,
    /// The sender on the wire; `None`: as it was given.
    pub(crate) sender: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_type::{TypePrefix, TypeSuffix};
    use pgw_core::transaction::{Clock, Transaction, TransactionId};
    use pgw_core::wire::attributes::Attributes;
    use proptest::prelude::*;

    /// What the hub gets beside the body, and the names of what was withheld from it.
    fn attributes(mut submission: Submission) -> (Attributes, Vec<&'static str>) {
        let Withheld { names, sender } = submission.withhold_numbers(&TypeAffixes::default());
        let transaction = Transaction {
            id: TransactionId(uuid::Uuid::nil()),
            time: 0,
            event_type: submission.event_type.text().to_owned(),
            kind: submission.kind,
            content_type: submission.content_type,
            sender: sender.unwrap_or(submission.sender),
            given_sender: None,
            key: submission.key,
            shows_key: submission.shows_key,
            correlation_id: submission.correlation_id,
            trace_parent: submission.trace_parent,
            clock: Clock::Synced,
            body: submission.body,
        };
        (Attributes::of(&"B86022/gw1/clinical".parse().unwrap(), &transaction), names)
    }

    fn submission(text: impl Fn(&str) -> String, is_named: bool) -> Submission {
        let event_type = text("hl7v2.x");
        Submission {
            lane: Lane::new("clinical").unwrap(),
            event_type: if is_named { EventType::Named(event_type) } else { EventType::Given(event_type) },
            kind: Kind::Transaction,
            content_type: text("text/plain; charset="),
            sender: text("http:"),
            key: text("k"),
            shows_key: true,
            correlation_id: text("c"),
            trace_parent: text("00-"),
            body: Body::new(text("b").into_bytes()),
        }
    }

    #[test]
    fn a_number_is_kept_out_of_every_attribute_and_the_rest_stays() {
        let with = submission(|text| format!("{text}9434765919"), true);
        let mut settled = with.clone();
        settled.withhold_numbers(&TypeAffixes::default());
        assert_eq!((&settled.sender, &settled.key, &settled.body), (&with.sender, &with.key, &with.body));
        let (found, names) = attributes(with);
        assert_eq!(names, ["type", "datacontenttype", "sender", "correlationid", "traceparent", "senderkey"]);
        for (name, value) in [
            ("type", "org.practice-gateway.hl7v2.xwithheld.v1"),
            ("datacontenttype", "text/plain; charset=withheld"),
            ("sender", "http:withheld"),
            ("correlationid", ""),
            ("traceparent", ""),
            ("senderkey", ""),
        ] {
            assert_eq!(found.get(name), value, "{name}");
        }
        let (found, names) = attributes(submission(|text| format!("{text}9434765918"), false));
        assert!(names.is_empty());
        for (name, value) in [
            ("type", "hl7v2.x9434765918"),
            ("datacontenttype", "text/plain; charset=9434765918"),
            ("sender", "http:9434765918"),
            ("correlationid", "c9434765918"),
            ("traceparent", "00-9434765918"),
            ("senderkey", "k9434765918"),
        ] {
            assert_eq!(found.get(name), value, "{name}");
        }
    }

    #[test]
    fn a_number_that_only_prefix_text_and_suffix_make_together_is_withheld() {
        let types = TypeAffixes {
            prefix: TypePrefix::new("uk.943.").unwrap(),
            suffix: TypeSuffix::new(".5919").unwrap(),
        };
        let mut whole = submission(|_| String::from("476"), true);
        assert_eq!(whole.withhold_numbers(&types).names, ["type"]);
        assert_eq!(whole.event_type.text(), "uk.withheld");
        let mut given = submission(|_| String::from("476"), false);
        assert!(given.withhold_numbers(&types).names.is_empty(), "nothing is put around it");
    }

    #[test]
    fn random_ids_and_a_boundary_go_on_the_wire() {
        let uuid = "a4f0c3de-943a-476b-8919-9434765919ab";
        let trace = "00-a9434765919b43dd8448eb211c80319c-b7ad6b7169203331-01";
        let content_type = "multipart/related; boundary=\"9434765919\"";
        let given = Submission {
            sender: format!("http:{uuid}"),
            key: uuid.into(),
            correlation_id: uuid.into(),
            trace_parent: trace.into(),
            content_type: content_type.into(),
            ..submission(str::to_owned, true)
        };
        let (found, names) = attributes(given);
        assert!(names.is_empty(), "{names:?}");
        let expected = [uuid, uuid, trace, content_type];
        let read =
            ["senderkey", "correlationid", "traceparent", "datacontenttype"].map(|name| found.get(name));
        assert_eq!(read, expected);
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn no_attribute_of_a_sender_carries_a_number(
            around in proptest::collection::vec(("[a-z:/|]{1,12}", "[a-z:/|]{1,12}"), 6),
            written in proptest::collection::vec(0usize..6, 6),
            is_named in any::<bool>(),
        ) {
            let numbers =
                ["9434765919", "943 476 5919", "943%20476%205919", "943\u{a0}476\u{2011}5919", "943-476-5919", ""];
            let next = std::cell::Cell::new(0);
            let submission = submission(|_| {
                let at = next.replace(next.get() + 1) % 6;
                format!("{}{}{}", around[at].0, numbers[written[at]], around[at].1)
            }, is_named);
            for (name, value) in attributes(submission).0.iter() {
                let value = value.replace("%20", "");
                let digits: String = value.chars().filter(char::is_ascii_digit).collect();
                prop_assert!(!digits.contains("9434765919"), "{}: {}", name, value);
            }
        }
    }
}
