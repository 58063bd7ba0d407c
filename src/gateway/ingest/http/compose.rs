//! From a request to a submission: reads the headers and the beginning of the body, in each route's dialect.

use axum::http::HeaderMap;
use bytes::Bytes;
use pgw_core::transaction::{Body, Kind, Lane};
use pgw_core::wire::limits::Text;
use pgw_outbox::{EventType, Submission};

use crate::ingest::http::context::HttpContext;
use crate::ingest::http::fhir::{NoMessage, Peek};
use crate::ingest::http::headers;
use crate::ingest::http::headers::Ids;
use crate::ingest::http::outcome::{Dialect, Problem};
use crate::ingest::media;
use crate::ingest::mllp::ack::Fault;
use crate::ingest::mllp::envelope;
use crate::ingest::mllp::msh::Msh;

/// A larger message is parsed on its own thread: other connections must not wait for it.
const PARSED_AT_ONCE_BYTES: usize = 64 * 1024;

/// Why a body is not submitted.
pub(super) enum Refused {
    Problem(Problem),
    /// An HL7 message, with HL7's own error.
    Fault(Fault),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Refused::Problem(problem)
    }
}

/// A body that is being received.
pub(super) struct Composed {
    pub(super) submission: Submission,
    /// The sender chose the key: it may be used for one content only.
    pub(super) strict: bool,
    pub(super) not_production: bool,
}

/// A request on its way to a submission.
struct Request<'a> {
    client: &'a str,
    lane: Lane,
    ids: Ids,
    /// As sent; empty if there is none.
    content_type: String,
    bytes: Bytes,
}

/// What a dialect adds to a [`Request`].
struct Named {
    event_type: EventType,
    content_type: String,
    sender: String,
    key: String,
}

/// Reads the headers and the beginning of the body.
pub(super) async fn compose(
    context: &HttpContext,
    dialect: Dialect,
    lane: Option<&str>,
    client: &str,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<Composed, Refused> {
    let config = &context.config;
    let lane = match lane.map(Lane::new) {
        None => config.lane.clone(),
        Some(Ok(lane)) if config.lanes.contains(&lane) => lane,
        Some(_) => return Err(Problem::NO_LANE.into()),
    };
    let ids = Ids::read(headers, dialect == Dialect::Fhir && config.bars)?;
    let content_type = headers::content_type(headers)?.to_owned();
    let request = Request { client, lane, ids, content_type, bytes };
    let composed = match dialect {
        Dialect::Plain => request.plain(headers),
        Dialect::Fhir => request.fhir().await,
        Dialect::Hl7 => request.hl7(),
    }?;
    match composed.submission.check_texts() {
        Ok(()) => Ok(composed),
        // These come from MSH, all others from the headers.
        Err(error) if dialect == Dialect::Hl7 && matches!(error.text(), Text::Key | Text::Sender) => {
            Err(Refused::Fault(Fault::of_text(error)))
        }
        Err(error) => Err(Problem::of_text(error).into()),
    }
}

impl Request<'_> {
    fn plain(self, headers: &HeaderMap) -> Result<Composed, Refused> {
        let given = if self.content_type.is_empty() { media::OCTETS } else { &self.content_type };
        let content_type = given.to_owned();
        let event_type = match headers::event_type(headers)? {
            "" => EventType::Named(String::from("http.transaction")),
            given => EventType::Given(given.to_owned()),
        };
        let key = self.ids.chosen_key().to_owned();
        let sender = sender(Dialect::Plain, self.client);
        let strict = !key.is_empty();
        Ok(self.composed(Named { event_type, content_type, sender, key }, strict, false))
    }

    async fn fhir(self) -> Result<Composed, Refused> {
        if !media::is_fhir_route(&self.content_type) {
            return Err(Problem::UNSUPPORTED.into());
        }
        let peek = peek(self.bytes.clone()).await?;
        let strict = !self.ids.chosen_key().is_empty();
        let key = if strict { self.ids.chosen_key().to_owned() } else { peek.key() };
        let (sender, content_type) = (sender(Dialect::Fhir, self.client), self.content_type.clone());
        let event_type = EventType::Named(peek.event_type());
        Ok(self.composed(Named { event_type, content_type, sender, key }, strict, false))
    }

    fn hl7(self) -> Result<Composed, Refused> {
        if !media::is_hl7_route(&self.content_type) {
            return Err(Problem::UNSUPPORTED.into());
        }
        let bytes = self.bytes.clone();
        let Some(msh) = Msh::read(&bytes) else {
            return Err(Refused::Fault(Fault::of_no_message(&bytes)));
        };
        // The same message over MLLP is the same transaction: same source, and MSH-10 takes precedence over
        // X-Request-ID.
        let strict = !self.ids.idempotency_key.is_empty();
        let number = envelope::key(&msh);
        let key = match (strict, number.is_empty()) {
            (true, _) => self.ids.idempotency_key.clone(),
            (false, false) => number,
            (false, true) => self.ids.request_id.clone(),
        };
        let content_type = match self.content_type.split_once("charset=") {
            Some((_, charset)) => format!("{}; charset={charset}", media::ER7),
            None => envelope::content_type(&msh).to_owned(),
        };
        let event_type = EventType::Named(envelope::event_type(&msh));
        let sender = envelope::sender_name(&msh);
        let not_production = matches!(msh.processing_id(), b"T" | b"D");
        Ok(self.composed(Named { event_type, content_type, sender, key }, strict, not_production))
    }

    fn composed(self, named: Named, strict: bool, not_production: bool) -> Composed {
        let Named { event_type, content_type, sender, key } = named;
        let submission = Submission {
            lane: self.lane,
            event_type,
            kind: Kind::Transaction,
            content_type,
            sender,
            key,
            shows_key: true,
            correlation_id: self.ids.correlation_id,
            trace_parent: self.ids.trace_parent,
            body: Body::new(self.bytes),
        };
        Composed { submission, strict, not_production }
    }
}

async fn peek(bytes: Bytes) -> Result<Peek, Refused> {
    let looked = if bytes.len() <= PARSED_AT_ONCE_BYTES {
        Peek::read(&bytes)
    } else {
        let looked = tokio::task::spawn_blocking(move || Peek::read(&bytes)).await;
        looked.map_err(|_| Refused::Problem(Problem::FAULT))?
    };
    looked.map_err(|reason| {
        Refused::Problem(match reason {
            NoMessage::NotFhir => Problem::NOT_FHIR,
            NoMessage::NotMessage => Problem::NOT_MESSAGE,
            NoMessage::NoHeader => Problem::NO_MESSAGE_HEADER,
        })
    })
}

/// The sending system's name: `http:{client}` or `fhir:{client}`.
pub(super) fn sender(dialect: Dialect, client: &str) -> String {
    let way = if dialect == Dialect::Fhir { "fhir" } else { "http" };
    format!("{way}:{client}")
}

/// Whether a sender's name has the form that [`sender`] makes: it chooses keys here.
pub(super) fn is_ours(sender: &str) -> bool {
    matches!(sender.split(':').next(), Some("http" | "fhir"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::control::store_for_tests::{Store, lane};
    use crate::ingest::Budget;
    use crate::ingest::carried_for_tests::assert_carried;
    use crate::ingest::http::access::{Access, AccessFiles};
    use crate::ingest::http::context::HttpDoorConfig;
    use pgw_core::transaction::{Gateway, Practice};
    use pgw_core::wire::attributes::Attributes;
    use pgw_link::clock::TrustedClock;
    use proptest::prelude::*;

    static SHARED: std::sync::OnceLock<Store> = std::sync::OnceLock::new();

    fn context(store: &Store) -> HttpContext {
        context_with(store, true)
    }

    fn context_with(store: &Store, bars: bool) -> HttpContext {
        let clock = TrustedClock::open(Path::new("/nonexistent"));
        let config = HttpDoorConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            lane: lane(),
            lanes: vec![lane()],
            body_limit_bytes: 1000,
            header_timeout: Duration::from_secs(1),
            body_timeout: Duration::from_secs(1),
            max_connections: 1,
            bars,
            allowed_addresses: Vec::new(),
            files: AccessFiles::default(),
        };
        let access = Arc::new(Access::reloading(&config.files, &clock).unwrap());
        let status = Arc::new(|| serde_json::Value::Null);
        let outbox = store.outbox.clone();
        HttpContext::new(config, 1, access, outbox, status, Arc::default(), Budget::new(1 << 20))
    }

    async fn composed(dialect: Dialect, content_type: &str, body: &str) -> Result<Composed, Refused> {
        let mut headers = HeaderMap::new();
        headers.insert(axum::http::header::CONTENT_TYPE, content_type.parse().unwrap());
        let store = Store::empty();
        compose(&context(&store), dialect, None, "lab", &headers, Bytes::from(body.to_owned())).await
    }

    #[tokio::test]
    async fn media_types_are_kept_as_they_came() {
        for content_type in [
            "application/hl7-v2+er7; charset=utf-8",
            "x-application/hl7-v2+er7",
            "application/fhir+json",
            "application/edifact",
            "text/plain",
        ] {
            let Ok(composed) = composed(Dialect::Plain, content_type, "x").await else { panic!("refused") };
            assert_eq!(composed.submission.content_type, content_type);
        }
    }

    fn bundle(identifier: &str) -> String {
        format!(
            r#"{{"resourceType":"Bundle","type":"message","identifier":{{"value":"{identifier}"}},
            "entry":[{{"resource":{{"resourceType":"MessageHeader","eventCoding":{{"code":"e"}}}}}}]}}"#
        )
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_sent_on_is_refused_by_its_name() {
        let store = Store::empty();
        let context = context_with(&store, false);
        let compose = async |dialect, content_type: &str, body: String| {
            let mut headers = HeaderMap::new();
            headers.insert(axum::http::header::CONTENT_TYPE, content_type.parse().unwrap());
            compose(&context, dialect, None, "lab", &headers, Bytes::from(body)).await
        };
        let longest = "v".repeat(253);
        let taken = compose(Dialect::Fhir, media::FHIR_JSON, bundle(&longest)).await;
        let Ok(taken) = taken else { panic!("refused") };
        assert_eq!(taken.submission.key, format!("|{longest}|e"), "whole");
        for bad in [format!("{longest}v"), "é".repeat(150), "v\u{fdd0}".into()] {
            let refused = compose(Dialect::Fhir, media::FHIR_JSON, bundle(&bad)).await.err();
            assert!(matches!(refused, Some(Refused::Problem(Problem::IDENTIFIER))), "{bad}");
        }
        let message = |name: &str, id: &str| format!("MSH|^~\\&|{name}|S|||||ORU^R01|{id}|P|2.4");
        for (body, fault) in [
            (message("LAB", &"7".repeat(257)), Fault::CONTROL_ID),
            (message("LAB", "7\t7"), Fault::CONTROL_ID),
            (message(&"L".repeat(1000), "7"), Fault::SENDER),
        ] {
            let refused = compose(Dialect::Hl7, "", body).await.err();
            assert!(matches!(refused, Some(Refused::Fault(found)) if found == fault), "{fault:?}");
        }
        let charset = format!("text/plain; charset={}", "c".repeat(256 - 20));
        let refused = compose(Dialect::Hl7, &charset, message("LAB", "7")).await.err();
        assert!(matches!(refused, Some(Refused::Problem(Problem::MEDIA_TYPE))), "it becomes longer");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..crate::seeds::kept() })]

        #[test]
        fn what_is_submitted_arrives_as_it_is(
            values in proptest::collection::vec("[ -~]{0,270}", 5),
            identifier in "[^\"\\\\\\x00-\\x1f]{0,100}",
            id in "[^|\r\n]{0,100}",
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _inside = runtime.enter();
            let store = SHARED.get_or_init(Store::empty);
            let names = ["idempotency-key", "x-request-id", "x-correlation-id", "ce-type", "traceparent"];
            let mut headers = HeaderMap::new();
            for (name, value) in names.into_iter().zip(&values) {
                if value.len() % 3 > 0 {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            for (dialect, content_type, body) in [
                (Dialect::Plain, "text/plain", "x".to_owned()),
                (Dialect::Fhir, media::FHIR_JSON, bundle(&identifier)),
                (Dialect::Hl7, "text/plain", format!("MSH|^~\\&|{identifier}|S|||||ORU^R01|{id}|P|2.4")),
            ] {
                headers.insert(axum::http::header::CONTENT_TYPE, content_type.parse().unwrap());
                let context = context_with(store, false);
                let body = Bytes::from(body);
                if let Ok(taken) = runtime.block_on(compose(&context, dialect, None, "lab", &headers, body)) {
                    let correlation = taken.submission.correlation_id.clone();
                    let attributes = assert_carried(taken.submission);
                    prop_assert_eq!(attributes.get("correlationid"), correlation);
                }
            }
        }
    }

    #[tokio::test]
    async fn a_type_of_the_sender_stays_and_any_other_is_named() {
        let store = Store::empty();
        let context = context_with(&store, false);
        let named = |name: &str| EventType::Named(name.to_owned());
        for (dialect, content_type, given, body, expected) in [
            (
                Dialect::Plain,
                "text/plain",
                "uk.nhs.nhais",
                "x".to_owned(),
                EventType::Given("uk.nhs.nhais".into()),
            ),
            (Dialect::Plain, "text/plain", "", "x".to_owned(), named("http.transaction")),
            (
                Dialect::Hl7,
                "text/plain",
                "",
                "MSH|^~\\&|A|B|||||ORU^R01|1".to_owned(),
                named("hl7v2.oru_r01"),
            ),
            (Dialect::Fhir, media::FHIR_JSON, "", bundle("v"), named("fhir.e")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(axum::http::header::CONTENT_TYPE, content_type.parse().unwrap());
            headers.insert("ce-type", given.parse().unwrap());
            let taken = compose(&context, dialect, None, "lab", &headers, Bytes::from(body)).await;
            let Ok(taken) = taken else { panic!("refused") };
            assert_eq!(taken.submission.event_type, expected);
        }
    }

    #[tokio::test]
    async fn a_patients_number_goes_with_the_body_alone() {
        let trace_parent = "00-a9434765919b43dd8448eb211c80319c-b7ad6b7169203331-01";
        let store = Store::empty();
        let context = context_with(&store, false);
        for (dialect, content_type, body) in [
            (Dialect::Plain, "text/plain; charset=9434765919", "9434765919".to_owned()),
            (
                Dialect::Fhir,
                "application/json; charset=9434765919",
                bundle("9434765919").replace("\"e\"", "\"943-476-5919\""),
            ),
            (
                Dialect::Hl7,
                "text/plain; charset=9434765919",
                "MSH|^~\\&|943 476 5919|9434765919|||||943_476_5919^A01|7".to_owned(),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(axum::http::header::CONTENT_TYPE, content_type.parse().unwrap());
            headers.insert("ce-type", "uk.nhs.943-476-5919".parse().unwrap());
            headers.insert("idempotency-key", "NHS 943 476 5919/1".parse().unwrap());
            headers.insert("x-correlation-id", "9434765919".parse().unwrap());
            headers.insert("traceparent", trace_parent.parse().unwrap());
            let taken =
                compose(&context, dialect, None, "9434765919", &headers, Bytes::from(body.clone())).await;
            let Ok(Composed { submission, .. }) = taken else { panic!("refused") };
            assert!(submission.shows_key);
            let given_sender = submission.sender.clone();
            let accepted = context.outbox.submit(submission).await.unwrap();
            assert!(accepted.withheld && !accepted.key_reused);
            let stored =
                context.outbox.read(&lane(), accepted.position, 1, usize::MAX).unwrap().remove(0).transaction;
            assert_eq!(
                (stored.body.as_bytes(), stored.key.as_str()),
                (body.as_bytes(), "NHS 943 476 5919/1")
            );
            let attributes = Attributes::of(&"B86022/gw1/clinical".parse().unwrap(), &stored);
            for name in ["type", "datacontenttype", "sender"] {
                let value = attributes.get(name);
                assert!(value.contains("withheld") && !value.contains("943"), "{dialect:?} {name}: {value}");
            }
            for name in ["senderkey", "correlationid"] {
                assert_eq!(attributes.get(name), "", "{dialect:?} {name}");
            }
            assert_eq!(attributes.get("traceparent"), trace_parent, "its digits are random");
            assert_eq!(stored.sender_as_given(), given_sender);
        }
        let alarms = context.outbox.alarms();
        assert_eq!(
            alarms.iter().map(|alarm| alarm.code).collect::<Vec<_>>(),
            ["envelope.nhs_number"; 3],
            "once for each sender"
        );
        assert!(
            alarms[0]
                .detail
                .starts_with("type, datacontenttype, sender, correlationid, senderkey of transaction")
        );
        assert!(!alarms[0].detail.contains("943"));
    }

    #[tokio::test]
    async fn messages_and_batches_are_told_apart_behind_a_byte_order_mark() {
        let taken =
            composed(Dialect::Hl7, "text/plain", "\u{feff}\r\nMSH|^~\\&|LAB|S|||||ORU^R01|7|P|2.4").await;
        let Ok(Composed { submission, .. }) = taken else { panic!("refused") };
        assert_eq!((submission.key.as_str(), submission.shows_key), ("7", true));
        assert!(submission.body.as_bytes().starts_with(b"\xef\xbb\xbf\r\nMSH"), "stored as it came");
        for (body, fault) in [("\u{feff}FHS|^~\\&", Fault::UNSUPPORTED), ("PID|1", Fault::NO_HEADER)] {
            let refused = composed(Dialect::Hl7, "", body).await;
            assert!(matches!(refused, Err(Refused::Fault(found)) if found == fault), "{body}");
        }
    }
}
