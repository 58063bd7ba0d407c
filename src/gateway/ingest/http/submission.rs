//! The one way from a request to `submit()`: who, body, header rules, key, barrier, answer.
//!
//! A refused body of somebody who may send goes to quarantine; what strangers send is not read.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header::{CONNECTION, EXPECT, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use pgw_core::transaction::{Body, Lane, rfc3339, unix_millis_now};
use pgw_outbox::{Accepted, Refusal, Submission};

use crate::ingest::control::kept::Kept;
use crate::ingest::http::door::{Peer, Shared};
use crate::ingest::http::fhir::{NoMessage, Peek};
use crate::ingest::http::headers;
use crate::ingest::http::headers::Ids;
use crate::ingest::http::intake;
use crate::ingest::http::intake::Taken;
use crate::ingest::http::keys::Tag;
use crate::ingest::http::outcome;
use crate::ingest::http::outcome::{Answer, Problem, Receipt, Words};
use crate::ingest::mllp::ack::{Fault, Stamp};
use crate::ingest::mllp::envelope;
use crate::ingest::mllp::msh::Msh;
use crate::ingest::origin::Origin;
use crate::ingest::{Share, count};

/// A larger message is looked at on a thread of its own: other connections must not wait for it.
const LOOK_AT_ONCE_BYTES: usize = 64 * 1024;
/// When to come again: a full queue drains in milliseconds, a full disk does not.
const SOON_SECONDS: &str = "1";
const LATER_SECONDS: &str = "10";

/// Why a body is not submitted.
enum Refused {
    Problem(Problem),
    /// An HL7 message, in HL7's words.
    Fault(Fault),
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Refused::Problem(problem)
    }
}

/// A body on its way in.
struct Composed {
    submission: Submission,
    /// The sender chose the key: it stands for one content only.
    strict: bool,
    not_production: bool,
}

/// Takes one request in, and gives its answer.
pub(super) async fn take<K: Kept>(
    shared: Arc<Shared<K>>,
    words: Words,
    lane: Option<&str>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Some(client) = client(&shared, &parts.extensions, &parts.headers) else {
        return unauthorized(words, body).await;
    };
    let address = parts.extensions.get::<Peer>().map(|peer| peer.address);
    let counters = &shared.counters;
    let limit = shared.settings.body_limit_bytes;
    let announced = body.size_hint().exact().unwrap_or(0);
    if announced > limit as u64 && parts.headers.contains_key(EXPECT) {
        // It waits for our word before it sends: nothing of it is here.
        count(&counters.received);
        count(&counters.refused);
        return closing(respond(outcome::refused(words, Problem::TOO_LARGE, b"", stamp(&shared.next_id()))));
    }
    let mut share = shared.budget.share();
    let bytes = match intake::take(body, limit, shared.settings.body_timeout, &mut share).await {
        Taken::Whole(bytes) => bytes,
        Taken::TooLarge { head, bytes } => {
            count(&counters.received);
            tracing::warn!(bytes, limit_bytes = limit, "Refused an HTTP body that is too large");
            let refused = refuse(&shared, words, Problem::TOO_LARGE.into(), &client, address, head).await;
            return closing(refused);
        }
        Taken::TooSlow => {
            count(&counters.timeouts);
            return closing(respond(outcome::refused(
                words,
                Problem::TOO_SLOW,
                b"",
                stamp(&shared.next_id()),
            )));
        }
        Taken::Broken => {
            count(&counters.unfinished);
            return closing(respond(outcome::refused(words, Problem::BROKEN, b"", stamp(&shared.next_id()))));
        }
        Taken::NoMemory => {
            count(&counters.unavailable);
            tracing::warn!("Refused an HTTP body because too many large messages are under way");
            return closing(later(&shared, words, b"", SOON_SECONDS));
        }
    };
    count(&counters.received);
    if bytes.is_empty() {
        return refuse(&shared, words, Problem::EMPTY.into(), &client, address, bytes).await;
    }
    let composed = match compose(&shared, words, lane, &client, &parts.headers, bytes.clone()).await {
        Ok(composed) => composed,
        Err(refused) => return refuse(&shared, words, refused, &client, address, bytes).await,
    };
    let lane = composed.submission.lane.clone();
    match store(&shared, composed, share).await {
        Ok(Ok(accepted)) => answer_accepted(&shared, words, &lane, accepted, &bytes),
        Ok(Err(refusal)) if refusal.is_temporary() => {
            tracing::debug!(%refusal, "Left an HTTP message with its sender");
            let wait = if refusal == Refusal::Busy { SOON_SECONDS } else { LATER_SECONDS };
            later(&shared, words, &bytes, wait)
        }
        Ok(Err(refusal)) => {
            tracing::error!(%refusal, "The outbox refuses what the HTTP door brings");
            refuse(&shared, words, Problem::of(&refusal).into(), &client, address, bytes).await
        }
        Err(problem) => refuse(&shared, words, problem.into(), &client, address, bytes).await,
    }
}

/// Who sends; `None`: nobody that is known here.
pub(super) fn client<K>(
    shared: &Shared<K>,
    extensions: &axum::http::Extensions,
    headers: &HeaderMap,
) -> Option<String> {
    let peer = extensions.get::<Peer>()?;
    shared.access().client(peer.certificate.as_deref(), headers)
}

pub(super) async fn unauthorized(words: Words, body: axum::body::Body) -> Response {
    intake::discard(body).await;
    let mut response = respond(outcome::refused(words, Problem::UNAUTHORIZED, b"", stamp("")));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    closing(response)
}

/// Reads what the headers and the front of the body say.
async fn compose<K: Kept>(
    shared: &Shared<K>,
    words: Words,
    lane: Option<&str>,
    client: &str,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<Composed, Refused> {
    let settings = &shared.settings;
    let lane = match lane.map(Lane::new) {
        None => settings.lane.clone(),
        Some(Ok(lane)) if settings.lanes.contains(&lane) => lane,
        Some(_) => return Err(Problem::NO_LANE.into()),
    };
    let ids = Ids::read(headers, words == Words::Fhir && settings.bars)?;
    let content_type = headers::content_type(headers)?.to_owned();
    let essence = headers::essence(&content_type);
    let submission =
        |event_type: String, kind: &str, content_type: String, source: String, key: String| Submission {
            lane,
            event_type,
            kind: kind.to_owned(),
            content_type,
            source,
            key,
            correlation_id: ids.correlation_id.clone(),
            test_data: false,
            body: Body::new(bytes.clone()),
        };
    match words {
        Words::Plain => {
            let content_type =
                if content_type.is_empty() { "application/octet-stream".to_owned() } else { content_type };
            let event_type = match headers::event_type(headers)? {
                "" => "http.transaction",
                given => given,
            };
            let key = ids.chosen_key().to_owned();
            let strict = !key.is_empty();
            let source = source(shared, words, client);
            let kind = headers::kind(&essence);
            let submission = submission(event_type.to_owned(), kind, content_type, source, key);
            Ok(Composed { submission, strict, not_production: false })
        }
        Words::Fhir => {
            if !matches!(essence.as_str(), "application/fhir+json" | "application/json") {
                return Err(Problem::UNSUPPORTED.into());
            }
            let peek = peek(bytes.clone()).await?;
            let strict = !ids.chosen_key().is_empty();
            let key = if strict { ids.chosen_key().to_owned() } else { peek.key() };
            let source = source(shared, words, client);
            let submission = submission(peek.event_type(), "fhir", content_type, source, key);
            Ok(Composed { submission, strict, not_production: false })
        }
        Words::Hl7 => {
            let taken = [
                "",
                "application/hl7-v2",
                "application/hl7-v2+er7",
                "x-application/hl7-v2+er7",
                "text/plain",
            ];
            if !taken.contains(&essence.as_str()) {
                return Err(Problem::UNSUPPORTED.into());
            }
            let Some(msh) = Msh::read(&bytes) else {
                let batch = bytes.starts_with(b"FHS") || bytes.starts_with(b"BHS");
                return Err(Refused::Fault(if batch { Fault::UNSUPPORTED } else { Fault::NO_HEADER }));
            };
            // The same message over MLLP is the same transaction: same source, and MSH-10 before X-Request-ID.
            let strict = !ids.idempotency_key.is_empty();
            let number = envelope::key(&msh);
            let key = match (strict, number.is_empty()) {
                (true, _) => ids.idempotency_key.clone(),
                (false, false) => number,
                (false, true) => ids.request_id.clone(),
            };
            let content_type = match content_type.split_once("charset=") {
                Some((_, charset)) => format!("application/hl7-v2+er7; charset={charset}"),
                None => envelope::content_type(&msh).to_owned(),
            };
            let not_production = matches!(msh.processing_id(), b"T" | b"D");
            let source = envelope::source(&settings.practice, &settings.gateway, &msh);
            let submission =
                submission(envelope::event_type(&msh), envelope::KIND, content_type, source, key);
            Ok(Composed { submission, strict, not_production })
        }
    }
}

async fn peek(bytes: Bytes) -> Result<Peek, Refused> {
    let looked = if bytes.len() <= LOOK_AT_ONCE_BYTES {
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

/// CloudEvents `source`: `urn:pgw:{practice}:{gateway}:{http or fhir}:{client}`.
fn source<K>(shared: &Shared<K>, words: Words, client: &str) -> String {
    let settings = &shared.settings;
    let way = if words == Words::Fhir { "fhir" } else { "http" };
    format!("urn:pgw:{}:{}:{way}:{client}", settings.practice, settings.gateway)
}

/// Whether a `source` is of a sender that chooses keys here: what [`source`] makes.
pub(super) fn is_ours(source: &str) -> bool {
    matches!(source.split(':').nth(4), Some("http" | "fhir"))
}

/// To the outbox, on a task of its own: a sender that goes away takes nothing back.
async fn store<K: Kept>(
    shared: &Arc<Shared<K>>,
    composed: Composed,
    share: Share,
) -> Result<Result<Accepted, Refusal>, Problem> {
    let Composed { submission, strict, not_production } = composed;
    let tag = strict.then(|| {
        Tag::new(submission.lane.as_str(), &submission.source, &submission.key, submission.body.as_bytes())
    });
    if let Some(tag) = tag
        && shared.keys().begin(tag).is_err()
    {
        let bars = submission.kind == "fhir" && shared.settings.bars;
        return Err(if bars { Problem::CONFLICT } else { Problem::KEY_REUSED });
    }
    let keeper = Arc::clone(shared);
    let stored = tokio::spawn(async move {
        let _share = share;
        let stored = keeper.kept.submit(submission).await;
        if let Some(tag) = tag {
            keeper.keys().ended(tag, stored.is_ok());
        }
        let counters = &keeper.counters;
        match &stored {
            Ok(accepted) => {
                count(&counters.accepted);
                if accepted.repeated {
                    count(&counters.repeated);
                }
                if accepted.key_reused {
                    count(&counters.key_reused);
                }
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

fn answer_accepted<K>(
    shared: &Shared<K>,
    words: Words,
    lane: &Lane,
    accepted: Accepted,
    message: &[u8],
) -> Response {
    let known = !accepted.id.0.is_nil();
    let receipt = Receipt {
        id: known.then(|| accepted.id.to_string()),
        lane: lane.to_string(),
        position: accepted.position,
        time: known.then(|| rfc3339(accepted.time)),
        repeated: accepted.repeated,
        key_reused: accepted.key_reused,
    };
    let id = shared.next_id();
    let duplicate = words == Words::Fhir && shared.settings.bars && accepted.repeated;
    let mut response = respond(if duplicate {
        outcome::refused(words, Problem::DUPLICATE, message, stamp(&id))
    } else {
        outcome::accepted(words, &receipt, message, stamp(&id))
    });
    if let Some(location) = receipt.location() {
        set(&mut response, LOCATION, &location);
    }
    response
}

/// Refuses a body for what it is: its bytes to quarantine, then the answer.
async fn refuse<K: Kept>(
    shared: &Arc<Shared<K>>,
    words: Words,
    refused: Refused,
    client: &str,
    address: Option<IpAddr>,
    bytes: Bytes,
) -> Response {
    count(&shared.counters.refused);
    let reason = match &refused {
        Refused::Problem(problem) => problem.reason,
        Refused::Fault(fault) => fault.reason,
    };
    if !reason.is_empty() && !bytes.is_empty() {
        let (kept, bytes, mut origin) = (shared.kept.clone(), bytes.clone(), source(shared, words, client));
        if let Some(address) = address {
            origin = Origin::line("http", address, &origin);
        }
        let _slot = shared.quarantine_slot.acquire().await;
        let kept = tokio::task::spawn_blocking(move || kept.quarantine(reason, &origin, &bytes)).await;
        if !matches!(kept, Ok(Ok(_))) {
            count(&shared.counters.quarantine_failed);
            tracing::warn!(reason, "Could not keep a refused HTTP body in quarantine");
        }
    }
    let id = shared.next_id();
    respond(match refused {
        Refused::Problem(problem) => outcome::refused(words, problem, &bytes, stamp(&id)),
        Refused::Fault(fault) => outcome::refused_hl7(fault, &bytes, stamp(&id)),
    })
}

fn later<K>(shared: &Shared<K>, words: Words, message: &[u8], seconds: &'static str) -> Response {
    let id = shared.next_id();
    let mut response = respond(outcome::refused(words, Problem::LATER, message, stamp(&id)));
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    response
}

fn stamp(control_id: &str) -> Stamp<'_> {
    Stamp { now: unix_millis_now(), control_id }
}

/// An answer as hyper sends it.
pub(super) fn respond(answer: Answer) -> Response {
    let mut response = Response::new(axum::body::Body::from(answer.body));
    let status = axum::http::StatusCode::from_u16(answer.status);
    *response.status_mut() = status.unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(answer.content_type);
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, content_type);
    response
}

/// The plain words of a problem.
pub(super) fn plain(problem: Problem) -> Response {
    respond(outcome::refused(Words::Plain, problem, b"", stamp("")))
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

/// A request for what is not here; its body is not wanted.
pub(super) async fn not_taken(words: Words, problem: Problem, request: Request) -> Response {
    intake::discard(request.into_body()).await;
    respond(outcome::refused(words, problem, b"", stamp("")))
}
