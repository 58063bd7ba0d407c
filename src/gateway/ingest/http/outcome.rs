//! The answers to senders: the statuses, and the wording of each route. Pure.
//!
//! Only 408 and 503 mean "later". A failing store never gives a 500, because senders give up on that.

use pgw_core::wire::limits::{Text, TextError};
use pgw_outbox::Refusal;
use serde_json::{Value, json};

use crate::ingest::media;
use crate::ingest::mllp::ack::{AckOutcome, Fault, Stamp, acknowledgment};
use crate::ingest::mllp::msh::Msh;
use crate::ingest::slip::AcceptanceSlip;

/// The format of a route's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// JSON; problems after RFC 9457.
    Plain,
    /// A FHIR OperationOutcome with the codes of BaRS.
    Fhir,
    /// An HL7 v2 acknowledgment.
    Hl7,
}

/// Why a request was not accepted. The text never contains anything of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// FHIR `issue.code`.
    pub issue: &'static str,
    /// One sentence.
    pub text: &'static str,
    /// The reason in quarantine; empty: the body is not quarantined.
    pub reason: &'static str,
}

const fn problem(status: u16, issue: &'static str, text: &'static str, reason: &'static str) -> Problem {
    Problem { status, issue, text, reason }
}

impl Problem {
    /// An unknown client. Nothing is quarantined: strangers must not be able to fill the quarantine.
    pub const UNAUTHORIZED: Self =
        problem(401, "login", "A client certificate or a bearer token that is known here is needed", "");
    /// No such route.
    pub const NO_ROUTE: Self = problem(404, "not-found", "There is nothing at this path", "");
    /// No such method there.
    pub const METHOD: Self = problem(405, "not-supported", "This path does not take this method", "");
    /// Not in this outbox, or never was.
    pub const NO_TRANSACTION: Self = problem(404, "not-found", "No transaction of this id is kept here", "");
    /// Not an id.
    pub const BAD_ID: Self = problem(400, "value", "A transaction's id is a UUID", "");
    /// `lane` or `position` of a look-up is not valid.
    pub const BAD_HINT: Self = problem(
        400,
        "value",
        "Of the hints lane is the name of a lane, position a number from 1, each given once",
        "",
    );
    /// The lane is not in the configuration.
    pub const NO_LANE: Self = problem(
        404,
        "not-found",
        "There is no such lane in the configuration of this gateway",
        "unknown lane",
    );
    /// `X-Request-ID` is missing, and BaRS requires it.
    pub const NO_REQUEST_ID: Self = problem(400, "required", "X-Request-ID is required", "no X-Request-ID");
    /// `X-Correlation-ID` is missing, and BaRS requires it.
    pub const NO_CORRELATION_ID: Self =
        problem(400, "required", "X-Correlation-ID is required", "no X-Correlation-ID");
    /// It is not valid.
    pub const REQUEST_ID: Self = problem(
        400,
        "value",
        "X-Request-ID must be one UUID (or, where it is optional, one short text)",
        "bad X-Request-ID",
    );
    /// It is not valid.
    pub const CORRELATION_ID: Self = problem(
        400,
        "value",
        "X-Correlation-ID must be one UUID (or, where it is optional, one short text)",
        "bad X-Correlation-ID",
    );
    /// It is not valid.
    pub const IDEMPOTENCY_KEY: Self = problem(
        400,
        "value",
        "Idempotency-Key must be one text of at most 256 characters",
        "bad Idempotency-Key",
    );
    /// It is not valid.
    pub const EVENT_TYPE: Self =
        problem(400, "value", "Ce-Type has at most 256 letters, digits, and . - _ : /", "bad Ce-Type");
    /// It is not valid.
    pub const MEDIA_TYPE: Self = problem(
        400,
        "value",
        "Content-Type must be one media type of at most 256 characters",
        "bad Content-Type",
    );
    /// The message's own key cannot be carried.
    pub const IDENTIFIER: Self = problem(
        422,
        "value",
        "Bundle.identifier with the event must be one text of at most 256 bytes",
        "bad Bundle.identifier",
    );
    /// Another text of the envelope cannot be carried.
    pub const TEXT: Self = problem(
        422,
        "value",
        "The sender's name or traceparent is longer than can be sent on, or has control characters",
        "bad text",
    );
    /// This route does not accept it.
    pub const UNSUPPORTED: Self = problem(
        415,
        "not-supported",
        "This route does not take this Content-Type",
        "unsupported Content-Type",
    );
    /// Compressed.
    pub const ENCODED: Self =
        problem(415, "not-supported", "Send the body as it is, without Content-Encoding", "packed body");
    /// The body is empty.
    pub const EMPTY: Self = problem(400, "required", "The body is empty", "");
    /// Larger than the limit; its first bytes are quarantined.
    pub const TOO_LARGE: Self =
        problem(413, "too-long", "The body is larger than the limit of this gateway", "too large");
    /// Not FHIR in JSON.
    pub const NOT_FHIR: Self =
        problem(400, "structure", "The body is not a FHIR resource in JSON", "not FHIR JSON");
    /// Another FHIR resource.
    pub const NOT_MESSAGE: Self =
        problem(422, "invalid", "Only a Bundle of type message is taken here", "not a FHIR message");
    /// The message has no header at its beginning.
    pub const NO_MESSAGE_HEADER: Self =
        problem(422, "invalid", "The first entry of a message must be a MessageHeader", "no MessageHeader");
    /// The key was used for another content.
    pub const KEY_REUSED: Self =
        problem(422, "conflict", "This key was used before with another content", "key of another content");
    /// The same, in BaRS's terms.
    pub const CONFLICT: Self = problem(
        409,
        "conflict",
        "This request id was used before with another content",
        "key of another content",
    );
    /// BaRS requires an error for a repetition.
    pub const DUPLICATE: Self = problem(409, "duplicate", "This message was accepted before", "");
    /// The gateway stores and forwards, and cannot look anything up.
    pub const QUERY: Self =
        problem(501, "not-supported", "This gateway takes messages and answers no queries", "");
    /// The body did not arrive in time.
    pub const TOO_SLOW: Self = problem(408, "timeout", "The body did not come within the time limit", "");
    /// The body ended early or is not HTTP.
    pub const BROKEN: Self = problem(400, "structure", "The body ended before its end", "");
    /// Nothing can be stored now.
    pub const LATER: Self = problem(503, "transient", "Nothing can be stored now: send it again later", "");
    /// It is refused for what it is, and the quarantine cannot keep it now: a client that receives "never" would go on without it.
    pub const NOT_KEPT: Self = problem(503, "transient", Fault::NOT_KEPT.text, "");
    /// A bug in this program.
    pub const FAULT: Self = problem(500, "exception", "The gateway has made a mistake: it is in its log", "");

    /// The HTTP answer to the outbox's refusal.
    #[must_use]
    pub fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Full(_) | Refusal::Busy | Refusal::Trouble(_) | Refusal::Stopping => Self::LATER,
            Refusal::TooLarge { .. } => Self::TOO_LARGE,
            Refusal::UnknownLane(_) => Self::NO_LANE,
            Refusal::Text(error) => Self::of_text(*error),
        }
    }

    /// The answer to a request of whose envelope this text cannot be carried; the headers are checked before.
    #[must_use]
    pub fn of_text(error: TextError) -> Self {
        match error.text() {
            Text::EventType => Self::EVENT_TYPE,
            Text::ContentType => Self::MEDIA_TYPE,
            Text::Key => Self::IDENTIFIER,
            Text::CorrelationId => Self::CORRELATION_ID,
            Text::Sender | Text::TraceParent => Self::TEXT,
        }
    }

    /// The BaRS code: `https://fhir.nhs.uk/CodeSystem/http-error-codes`, with the gateway as the receiver.
    #[must_use]
    pub fn bars_code(self) -> &'static str {
        match self.status {
            400 => "REC_BAD_REQUEST",
            401 => "REC_UNAUTHORIZED",
            404 => "REC_NOT_FOUND",
            405 => "REC_METHOD_NOT_ALLOWED",
            408 => "REC_TIMEOUT",
            409 => "REC_CONFLICT",
            413 => "REC_PAYLOAD_TOO_LARGE",
            415 => "REC_UNSUPPORTED_MEDIA_TYPE",
            422 => "REC_UNPROCESSABLE_ENTITY",
            501 => "REC_NOT_IMPLEMENTED",
            503 => "REC_UNAVAILABLE",
            _ => "REC_SERVER_ERROR",
        }
    }

    /// Whether the same may be accepted later.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        matches!(self.status, 408 | 503)
    }

    /// As an HL7 fault, for the acknowledgment.
    fn fault(self) -> Fault {
        let like = match self.status {
            413 => Fault::TOO_LARGE,
            503 if self == Self::NOT_KEPT => Fault::NOT_KEPT,
            503 => Fault::UNAVAILABLE,
            _ => Fault::REFUSED,
        };
        Fault { text: self.text, reason: self.reason, ..like }
    }
}

/// An answer, ready to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body's media type.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

const PROBLEM_JSON: &str = "application/problem+json";

fn json_answer(status: u16, content_type: &'static str, body: &Value) -> Answer {
    Answer { status, content_type, body: pgw_core::wire::to_json(body) }
}

/// The answer to a refused request. An HL7 sender whose message has a header gets an acknowledgment.
#[must_use]
pub fn refused(dialect: Dialect, problem: Problem, message: &[u8], stamp: Stamp<'_>) -> Answer {
    match dialect {
        Dialect::Plain => plain_problem(problem),
        Dialect::Fhir => {
            let code = problem.bars_code();
            let issue = json!({
                "severity": "error",
                "code": problem.issue,
                "details": { "coding": [{
                    "system": "https://fhir.nhs.uk/CodeSystem/http-error-codes",
                    "code": code,
                    "display": format!("{} - {code}", problem.status),
                }] },
                "diagnostics": problem.text,
            });
            json_answer(
                problem.status,
                media::FHIR_JSON,
                &json!({ "resourceType": "OperationOutcome", "issue": [issue] }),
            )
        }
        Dialect::Hl7 => match Msh::read(message) {
            Some(msh) => negative(problem.status, &msh, problem.fault(), stamp),
            None => plain_problem(problem),
        },
    }
}

fn plain_problem(problem: Problem) -> Answer {
    let body = json!({
        "type": "about:blank",
        "title": problem.text,
        "status": problem.status,
        "code": problem.issue,
    });
    json_answer(problem.status, PROBLEM_JSON, &body)
}

/// The answer to an HL7 message that is refused because of its content.
#[must_use]
pub fn refused_hl7(fault: Fault, message: &[u8], stamp: Stamp<'_>) -> Answer {
    match Msh::read(message) {
        Some(msh) => negative(400, &msh, fault, stamp),
        // Without a header there is nothing to acknowledge, but these senders read only acknowledgments.
        None => acknowledged(400, None, AckOutcome::Refused(fault), stamp),
    }
}

fn negative(status: u16, msh: &Msh<'_>, fault: Fault, stamp: Stamp<'_>) -> Answer {
    acknowledged(status, Some(msh), AckOutcome::Refused(fault), stamp)
}

fn acknowledged(status: u16, msh: Option<&Msh<'_>>, outcome: AckOutcome, stamp: Stamp<'_>) -> Answer {
    let framed = acknowledgment(msh, outcome, stamp).unwrap_or_default();
    // Without MLLP's frame: 0B ... 1C 0D.
    let body = framed.get(1..framed.len().saturating_sub(2)).unwrap_or_default().to_vec();
    Answer { status, content_type: media::ER7, body }
}

/// Where an accepted transaction can be looked up. Lane and position are hints that save the search.
#[must_use]
pub fn location(slip: &AcceptanceSlip) -> Option<String> {
    let id = slip.id.as_ref()?;
    Some(format!("/v1/transactions/{id}?lane={}&position={}", slip.lane, slip.position))
}

/// The answer to an accepted request: 202, or 200 with the acknowledgment if HL7 over HTTP requires it.
#[must_use]
pub fn accepted(dialect: Dialect, slip: &AcceptanceSlip, message: &[u8], stamp: Stamp<'_>) -> Answer {
    match dialect {
        Dialect::Plain => {
            Answer { status: 202, content_type: "application/json", body: pgw_core::wire::to_json(slip) }
        }
        Dialect::Fhir => {
            let issue = json!({
                "severity": "information",
                "code": "informational",
                "diagnostics": format!("Stored for forwarding: {} in lane {}", slip.position, slip.lane),
            });
            json_answer(
                202,
                media::FHIR_JSON,
                &json!({ "resourceType": "OperationOutcome", "issue": [issue] }),
            )
        }
        Dialect::Hl7 => acknowledged(200, Msh::read(message).as_ref(), AckOutcome::Stored, stamp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::mllp::ack::Class;
    use pgw_core::transaction::{Lane, TransactionId};
    use proptest::prelude::*;

    const STAMP: Stamp<'static> = Stamp { now: 1_795_385_530_123, control_id: "G1" };

    const ALL: [Problem; 30] = [
        Problem::UNAUTHORIZED,
        Problem::NO_ROUTE,
        Problem::METHOD,
        Problem::NO_TRANSACTION,
        Problem::BAD_ID,
        Problem::BAD_HINT,
        Problem::NO_LANE,
        Problem::NO_REQUEST_ID,
        Problem::NO_CORRELATION_ID,
        Problem::REQUEST_ID,
        Problem::CORRELATION_ID,
        Problem::IDEMPOTENCY_KEY,
        Problem::EVENT_TYPE,
        Problem::MEDIA_TYPE,
        Problem::IDENTIFIER,
        Problem::TEXT,
        Problem::UNSUPPORTED,
        Problem::ENCODED,
        Problem::EMPTY,
        Problem::TOO_LARGE,
        Problem::NOT_FHIR,
        Problem::NOT_MESSAGE,
        Problem::NO_MESSAGE_HEADER,
        Problem::KEY_REUSED,
        Problem::CONFLICT,
        Problem::DUPLICATE,
        Problem::QUERY,
        Problem::TOO_SLOW,
        Problem::LATER,
        Problem::NOT_KEPT,
    ];

    #[test]
    fn a_failing_store_is_never_a_fault_and_always_later() {
        for refusal in
            [Refusal::Full("x".into()), Refusal::Busy, Refusal::Trouble("x".into()), Refusal::Stopping]
        {
            assert!(refusal.is_temporary());
            assert_eq!(Problem::of(&refusal), Problem::LATER);
        }
        assert_eq!(Problem::of(&Refusal::TooLarge { bytes: 2, limit: 1 }).status, 413);
        let lane = Lane::new("x").unwrap();
        assert_eq!(Problem::of(&Refusal::UnknownLane(lane)).status, 404);
        for problem in ALL {
            assert_eq!(problem.is_temporary(), [408, 503].contains(&problem.status), "{problem:?}");
            // What may be sent again is not quarantined: the sender has it.
            assert!(!problem.is_temporary() || problem.reason.is_empty(), "{problem:?}");
            assert_ne!(problem.bars_code(), "REC_SERVER_ERROR", "{problem:?}");
        }
    }

    #[test]
    fn bars_gets_its_codes() {
        let answer = refused(Dialect::Fhir, Problem::DUPLICATE, b"", STAMP);
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status, answer.content_type), (409, "application/fhir+json"));
        assert_eq!(body["resourceType"], "OperationOutcome");
        assert_eq!(body["issue"][0]["code"], "duplicate");
        assert_eq!(body["issue"][0]["details"]["coding"][0]["code"], "REC_CONFLICT");
        assert_eq!(body["issue"][0]["details"]["coding"][0]["display"], "409 - REC_CONFLICT");
    }

    #[test]
    fn hl7_gets_its_acknowledgment_without_a_frame() {
        let message = b"MSH|^~\\&|LAB|SURG|||1||ORU^R01|42|P|2.4\rPID|1";
        let slip = AcceptanceSlip {
            id: None,
            lane: Lane::new("clinical").unwrap(),
            position: 1,
            time: None,
            repeated: false,
            key_reused: false,
        };
        let text = |answer: &Answer| String::from_utf8(answer.body.clone()).unwrap();
        let yes = accepted(Dialect::Hl7, &slip, message, STAMP);
        assert_eq!((yes.status, yes.content_type), (200, "application/hl7-v2+er7"));
        assert!(text(&yes).starts_with("MSH|") && text(&yes).contains("MSA|AA|42|"), "{}", text(&yes));
        let no = refused_hl7(Fault::NO_HEADER, b"FOO", STAMP);
        assert!(no.status == 400 && text(&no).contains("MSA|AR|"), "{}", text(&no));
        let large = refused(Dialect::Hl7, Problem::TOO_LARGE, message, STAMP);
        assert!(large.status == 413 && text(&large).contains("MSA|AE|42|"), "{}", text(&large));
        let later = refused(Dialect::Hl7, Problem::LATER, message, STAMP);
        assert!(later.status == 503 && text(&later).contains("MSA|AR|42|"), "{}", text(&later));
        let not_kept = refused(Dialect::Hl7, Problem::NOT_KEPT, message, STAMP);
        assert!(not_kept.status == 503 && text(&not_kept).contains("MSA|AE|42|"), "{}", text(&not_kept));
        assert_eq!(refused(Dialect::Hl7, Problem::UNAUTHORIZED, b"", STAMP).content_type, PROBLEM_JSON);
        // A sender that wants no acknowledgment gets an empty one, because HTTP answers every request.
        let none = accepted(Dialect::Hl7, &slip, b"MSH|^~\\&|||||||A|1||2.4|||NE", STAMP);
        assert!(none.status == 200 && none.body.is_empty());
    }

    #[test]
    fn a_text_that_can_never_be_sent_on_is_kept_and_nobody_is_told_to_repeat_it() {
        let texts = [
            Text::EventType,
            Text::ContentType,
            Text::Sender,
            Text::Key,
            Text::CorrelationId,
            Text::TraceParent,
        ];
        for text in texts {
            for error in [TextError::TooLong { text, bytes: 1000 }, TextError::Character(text)] {
                let problem = Problem::of_text(error);
                // Clients repeat 408, 425 and 429 by themselves, and everything from 500 on.
                assert!(matches!(problem.status, 400 | 422) && !problem.reason.is_empty(), "{error}");
                let fault = Fault::of_text(error);
                assert!(fault.class == Class::Reject && !fault.reason.is_empty(), "{error}");
                let answer = refused_hl7(fault, b"MSH|^~\\&|LAB|SURG|||1||ORU^R01|42|P|2.4", STAMP);
                let text = String::from_utf8(answer.body).unwrap();
                assert!(answer.status == 400 && text.contains("MSA|AR|42|"), "{text}");
            }
        }
    }

    #[test]
    fn only_what_is_there_has_a_place() {
        let mut slip = AcceptanceSlip {
            id: Some(TransactionId(uuid::Uuid::from_u128(7))),
            lane: Lane::new("l").unwrap(),
            position: 7,
            time: None,
            repeated: true,
            key_reused: false,
        };
        assert_eq!(
            location(&slip).unwrap(),
            "/v1/transactions/00000000-0000-0000-0000-000000000007?lane=l&position=7"
        );
        slip.id = None;
        assert_eq!(location(&slip), None);
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn no_answer_carries_content(message in "[A-Z]{30}", index in 0..ALL.len(), dialect in 0usize..3) {
            let dialect = [Dialect::Plain, Dialect::Fhir, Dialect::Hl7][dialect];
            let message = format!("MSH|^~\\&|A|B|||1||ORU^R01|1|P|2.4\rPID|{message}");
            let answer = refused(dialect, ALL[index], message.as_bytes(), STAMP);
            prop_assert_eq!(answer.status, ALL[index].status);
            prop_assert!(!String::from_utf8(answer.body).unwrap().contains(&message[45..]));
        }
    }
}
