//! The steps from a request to `submit()`: client, body, header rules, key, barrier, answer.
//!
//! A refused body of a permitted client goes to quarantine; what strangers send is not read.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use pgw_core::transaction::{Lane, unix_millis_now};
use pgw_outbox::{Accepted, Refusal};

use crate::ingest::http::compose::{Composed, Refused, compose, sender};
use crate::ingest::http::context::{HttpContext, Peer};
use crate::ingest::http::intake;
use crate::ingest::http::intake::Received;
use crate::ingest::http::keys::KeyFingerprint;
use crate::ingest::http::outcome;
use crate::ingest::http::outcome::{Answer, Dialect, Problem};
use crate::ingest::mllp::ack::Stamp;
use crate::ingest::origin::Origin;
use crate::ingest::slip::AcceptanceSlip;
use crate::ingest::{Share, count, media};

/// When to retry: a full queue drains in milliseconds, a full disk does not.
const SOON_SECONDS: &str = "1";
const LATER_SECONDS: &str = "10";

/// Handles one request and returns its answer.
pub(super) async fn take(
    context: Arc<HttpContext>,
    dialect: Dialect,
    lane: Option<&str>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(client) = client(&context, &parts.extensions, &parts.headers) else {
        return unauthorized(dialect, body).await;
    };
    let address = parts.extensions.get::<Peer>().map(|peer| peer.address);
    let counters = &context.counters;
    let sender = Sender { context: &context, dialect, client: &client, address };
    if body.size_hint().exact().unwrap_or(0) > context.config.body_limit_bytes as u64
        && parts.headers.contains_key(EXPECT)
    {
        // It waits for our go-ahead before it sends: nothing of the body is here.
        count(&counters.received);
        count(&counters.refused);
        return closing(sender.answer(Problem::TOO_LARGE));
    }
    let mut share = context.budget.share();
    let bytes = match sender.receive(body, &mut share).await {
        Ok(bytes) => bytes,
        Err(response) => return closing(response),
    };
    count(&counters.received);
    if bytes.is_empty() {
        return sender.refuse(Problem::EMPTY.into(), bytes).await;
    }
    let composed = match compose(&context, dialect, lane, &client, &parts.headers, bytes.clone()).await {
        Ok(composed) => composed,
        Err(refused) => return sender.refuse(refused, bytes).await,
    };
    let lane = composed.submission.lane.clone();
    match store(&context, composed, share).await {
        Ok(Ok(accepted)) => answer_accepted(&context, dialect, lane, &accepted, &bytes),
        Ok(Err(refusal)) if refusal.is_temporary() => {
            tracing::debug!(%refusal, "Answered 'try later'; the sender keeps the message");
            let wait = if refusal == Refusal::Busy { SOON_SECONDS } else { LATER_SECONDS };
            later(&context, dialect, Problem::LATER, &bytes, wait)
        }
        Ok(Err(refusal)) => {
            tracing::error!(%refusal, "The outbox refuses transactions from the HTTP door");
            sender.refuse(Problem::of(&refusal).into(), bytes).await
        }
        Err(problem) => sender.refuse(problem.into(), bytes).await,
    }
}

/// Who sends, and the dialect of the answer.
struct Sender<'a> {
    context: &'a Arc<HttpContext>,
    dialect: Dialect,
    client: &'a str,
    address: Option<IpAddr>,
}

impl Sender<'_> {
    /// The whole body, or the answer to one that did not arrive completely.
    async fn receive(&self, body: axum::body::Body, share: &mut Share) -> Result<Bytes, Response> {
        let (config, counters) = (&self.context.config, &self.context.counters);
        let limit = config.body_limit_bytes;
        match intake::take(body, limit, config.body_timeout, share).await {
            Received::Whole(bytes) => Ok(bytes),
            Received::TooLarge { head, bytes } => {
                count(&counters.received);
                tracing::warn!(bytes, limit_bytes = limit, "Refused an HTTP body that is too large");
                Err(self.refuse(Problem::TOO_LARGE.into(), head).await)
            }
            Received::TooSlow => {
                count(&counters.timeouts);
                Err(self.answer(Problem::TOO_SLOW))
            }
            Received::Broken => {
                count(&counters.unfinished);
                Err(self.answer(Problem::BROKEN))
            }
            Received::NoMemory => {
                count(&counters.unavailable);
                tracing::warn!("Refused an HTTP body because too many large messages are under way");
                Err(later(self.context, self.dialect, Problem::LATER, b"", SOON_SECONDS))
            }
        }
    }

    /// The answer to a body of which nothing was read.
    fn answer(&self, problem: Problem) -> Response {
        respond(outcome::refused(self.dialect, problem, b"", stamp(&self.context.next_id())))
    }

    /// Refuses a body because of its content: quarantines its bytes, then answers. A client goes on after a 4xx, so that it gets
    /// that only for what is in quarantine, if its bytes belong there.
    async fn refuse(&self, refused: Refused, bytes: Bytes) -> Response {
        let Self { context, dialect, .. } = *self;
        let reason = match &refused {
            Refused::Problem(problem) => problem.reason,
            Refused::Fault(fault) => fault.reason,
        };
        let is_to_be_kept = !reason.is_empty() && !bytes.is_empty();
        let is_kept = is_to_be_kept && self.keep(reason, bytes.clone()).await;
        // Of one that is too large its client alone has the whole.
        let is_too_large = matches!(&refused, Refused::Problem(problem) if *problem == Problem::TOO_LARGE);
        if is_to_be_kept && !is_kept && !is_too_large {
            count(&context.counters.unavailable);
            return later(context, dialect, Problem::NOT_KEPT, &bytes, LATER_SECONDS);
        }
        count(&context.counters.refused);
        let id = context.next_id();
        respond(match refused {
            Refused::Problem(problem) => outcome::refused(dialect, problem, &bytes, stamp(&id)),
            Refused::Fault(fault) => outcome::refused_hl7(fault, &bytes, stamp(&id)),
        })
    }

    /// Whether the bytes are in quarantine.
    async fn keep(&self, reason: &'static str, bytes: Bytes) -> bool {
        let Self { context, dialect, client, address } = *self;
        let outbox = context.outbox.clone();
        let mut origin = sender(dialect, client);
        if let Some(address) = address {
            origin = Origin::line("http", address, &origin);
        }
        let _slot = context.quarantine_slot.acquire().await;
        let kept = tokio::task::spawn_blocking(move || outbox.quarantine(reason, &origin, &bytes)).await;
        let is_kept = matches!(kept, Ok(Ok(_)));
        if !is_kept {
            count(&context.counters.quarantine_failed);
            tracing::warn!(reason, "Could not keep a refused HTTP body in quarantine");
        }
        is_kept
    }
}

/// Who sends; `None`: unknown here.
pub(super) fn client(
    context: &HttpContext,
    extensions: &axum::http::Extensions,
    headers: &HeaderMap,
) -> Option<String> {
    let peer = extensions.get::<Peer>()?;
    context.access().client(peer.certificate.as_deref(), headers)
}

pub(super) async fn unauthorized(dialect: Dialect, body: axum::body::Body) -> Response {
    intake::discard(body).await;
    let mut response = respond(outcome::refused(dialect, Problem::UNAUTHORIZED, b"", stamp("")));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    closing(response)
}

/// Submits on a task of its own: a sender that disconnects cannot cancel it.
async fn store(
    context: &Arc<HttpContext>,
    composed: Composed,
    share: Share,
) -> Result<Result<Accepted, Refusal>, Problem> {
    let Composed { submission, strict, not_production } = composed;
    let tag = strict.then(|| {
        KeyFingerprint::new(
            submission.lane.as_str(),
            &submission.sender,
            &submission.key,
            submission.body.as_bytes(),
        )
    });
    if let Some(tag) = tag
        && context.keys().begin(tag).is_err()
    {
        let bars = context.config.bars && media::format(&submission.content_type) == media::FHIR_FORMAT;
        return Err(if bars { Problem::CONFLICT } else { Problem::KEY_REUSED });
    }
    let owned = Arc::clone(context);
    let stored = tokio::spawn(async move {
        let _share = share;
        let stored = owned.outbox.submit(submission).await;
        if let Some(tag) = tag {
            owned.keys().ended(tag, stored.is_ok());
        }
        let counters = &owned.counters;
        match &stored {
            Ok(accepted) => {
                counters.count_accepted(accepted);
                if not_production {
                    count(&counters.not_production);
                }
            }
            Err(refusal) if refusal.is_temporary() => count(&counters.unavailable),
            // Counted where it is refused.
            Err(_) => {}
        }
        stored
    });
    stored.await.map_err(|_| Problem::FAULT)
}

fn answer_accepted(
    context: &HttpContext,
    dialect: Dialect,
    lane: Lane,
    accepted: &Accepted,
    message: &[u8],
) -> Response {
    let slip = AcceptanceSlip::new(lane, accepted);
    let id = context.next_id();
    let duplicate = dialect == Dialect::Fhir && context.config.bars && accepted.repeated;
    let mut response = respond(if duplicate {
        outcome::refused(dialect, Problem::DUPLICATE, message, stamp(&id))
    } else {
        outcome::accepted(dialect, &slip, message, stamp(&id))
    });
    if let Some(location) = outcome::location(&slip) {
        set(&mut response, LOCATION, &location);
    }
    response
}

fn later(
    context: &HttpContext,
    dialect: Dialect,
    problem: Problem,
    message: &[u8],
    seconds: &'static str,
) -> Response {
    let id = context.next_id();
    let mut response = respond(outcome::refused(dialect, problem, message, stamp(&id)));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    response
}

fn stamp(control_id: &str) -> Stamp<'_> {
    Stamp { now: unix_millis_now(), control_id }
}

/// An answer in hyper's type.
pub(super) fn respond(answer: Answer) -> Response {
    let mut response = Response::new(axum::body::Body::from(answer.body));
    let status = axum::http::StatusCode::from_u16(answer.status);
    *response.status_mut() = status.unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, content_type);
    response
}

/// A problem as plain text.
pub(super) fn plain(problem: Problem) -> Response {
    respond(outcome::refused(Dialect::Plain, problem, b"", stamp("")))
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Bytes of a body that was not read to its end may follow: no further request on this connection.
fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A request for an unknown path; its body is not read.
pub(super) async fn not_taken(dialect: Dialect, problem: Problem, request: Request) -> Response {
    intake::discard(request.into_body()).await;
    respond(outcome::refused(dialect, problem, b"", stamp("")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::{Store, lane};
    use crate::ingest::Budget;
    use crate::ingest::http::access::{Access, AccessFiles};
    use crate::ingest::http::context::HttpDoorConfig;
    use crate::ingest::http::door::remember;
    use pgw_core::transaction::{Body, Gateway, Kind, Practice};
    use pgw_link::clock::TrustedClock;
    use pgw_outbox::{EventType, Submission};

    fn context_of(store: &Store) -> HttpContext {
        let clock = TrustedClock::open(std::path::Path::new("/nonexistent"));
        let config = HttpDoorConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            lane: lane(),
            lanes: vec![lane()],
            body_limit_bytes: 1000,
            header_timeout: std::time::Duration::from_secs(1),
            body_timeout: std::time::Duration::from_secs(1),
            max_connections: 1,
            bars: false,
            allowed_addresses: Vec::new(),
            files: AccessFiles::default(),
        };
        let access = Arc::new(Access::reloading(&config.files, &clock).unwrap());
        let status = Arc::new(|| serde_json::Value::Null);
        let outbox = store.outbox.clone();
        HttpContext::new(config, 1, access, outbox, status, Arc::default(), Budget::new(1 << 20))
    }

    fn bundle(identifier: &str) -> String {
        format!(
            r#"{{"resourceType":"Bundle","type":"message","identifier":{{"value":"{identifier}"}},
            "entry":[{{"resource":{{"resourceType":"MessageHeader","eventCoding":{{"code":"e"}}}}}}]}}"#
        )
    }

    /// Its dialect, and the lane in its path.
    type Route<'a> = (Dialect, Option<&'a str>);
    type Headers<'a> = &'a [(&'a str, &'a str)];

    /// The answer to a body at a route of a door with this store.
    async fn answered(
        context: &Arc<HttpContext>,
        (dialect, lane): Route<'_>,
        headers: Headers<'_>,
        body: &str,
    ) -> Response {
        let mut request = Request::new(axum::body::Body::from(body.to_owned()));
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        request.extensions_mut().insert(Peer { address: [127, 0, 0, 1].into(), certificate: None });
        take(Arc::clone(context), dialect, lane, request).await
    }

    #[tokio::test]
    async fn what_the_quarantine_cannot_keep_is_not_refused_for_good() {
        let fhir = ("content-type", "application/fhir+json");
        let (hl7, plain) = ((Dialect::Hl7, None), (Dialect::Plain, None));
        let identifier = bundle(&"v".repeat(300));
        let rows: [(Route<'_>, Headers<'_>, &str, u16); 9] = [
            (plain, &[("x-request-id", "a\tb")], "x", 400),
            (plain, &[("content-type", "text")], "x", 400),
            (plain, &[("content-encoding", "gzip")], "x", 415),
            ((Dialect::Plain, Some("nowhere")), &[], "x", 404),
            ((Dialect::Fhir, None), &[fhir], "no JSON", 400),
            ((Dialect::Fhir, None), &[fhir], &identifier, 422),
            ((Dialect::Fhir, None), &[("content-type", "text/csv")], "x", 415),
            (hl7, &[], "MSH|^~\\&|LAB|S|||||ORU^R01|7\t7|P|2.4", 400),
            (hl7, &[], "PID|1", 400),
        ];
        let stores = [Store::empty(), Store::without_quarantine()];
        let [has_room, has_none] = stores.each_ref().map(|store| Arc::new(context_of(store)));
        for (at, (route, headers, body, status)) in rows.into_iter().enumerate() {
            let answer = answered(&has_room, route, headers, body).await;
            assert_eq!(answer.status(), status, "{at}");
            assert_eq!(has_room.outbox.snapshot().quarantined, at as u64 + 1, "{at}: it belongs there");
            let answer = answered(&has_none, route, headers, body).await;
            assert_eq!(answer.status(), 503, "{at}: its sender would go on without it");
            assert_eq!(answer.headers()[RETRY_AFTER], LATER_SECONDS, "{at}");
        }
        let counts = has_none.counters.counts();
        assert_eq!((counts.refused, counts.unavailable, counts.quarantine_failed), (0, 9, 9));
        let key = [("idempotency-key", "k")];
        assert_eq!(answered(&has_none, plain, &key, "one").await.status(), 202);
        assert_eq!(answered(&has_none, plain, &key, "another").await.status(), 503, "a key that was used");
        // What does not belong in quarantine, or not as a whole, is its sender's as before.
        assert_eq!(answered(&has_none, plain, &[], "").await.status(), 400);
        assert_eq!(answered(&has_none, plain, &[], &"x".repeat(1001)).await.status(), 413);
    }

    #[tokio::test]
    async fn a_key_is_one_senders_even_if_only_a_withheld_number_tells_two_apart() {
        let store = Store::empty();
        let mut context = Arc::new(context_of(&store));
        // 0: stored; otherwise the status.
        let send = async |context: &Arc<HttpContext>, client: &str, body: &'static str| {
            let submission = Submission {
                lane: lane(),
                event_type: EventType::Given("t".into()),
                kind: Kind::Transaction,
                content_type: "text/plain".into(),
                sender: sender(Dialect::Plain, client),
                key: "k".into(),
                shows_key: true,
                correlation_id: String::new(),
                trace_parent: String::new(),
                body: Body::new(body.as_bytes()),
            };
            let composed = Composed { submission, strict: true, not_production: false };
            match super::store(context, composed, context.budget.share()).await {
                Ok(stored) => {
                    assert!(stored.unwrap().withheld);
                    0
                }
                Err(problem) => problem.status,
            }
        };
        assert_eq!(send(&context, "9434765919", "one").await, 0);
        assert_eq!(send(&context, "4010232137", "another").await, 0);
        for _ in 0..2 {
            assert_eq!(send(&context, "9434765919", "third").await, 422);
            assert_eq!(send(&context, "9434765919", "one").await, 0, "a repetition");
            // After a restart the store says which keys were used, by whom.
            context = Arc::new(context_of(&store));
            let remembering = Arc::clone(&context);
            tokio::task::spawn_blocking(move || remember(&remembering)).await.unwrap();
        }
        assert_eq!(send(&context, "9876543210", "third").await, 0);
    }
}
