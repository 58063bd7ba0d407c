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
            later(&context, dialect, &bytes, wait)
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
                Err(later(self.context, self.dialect, b"", SOON_SECONDS))
            }
        }
    }

    /// The answer to a body of which nothing was read.
    fn answer(&self, problem: Problem) -> Response {
        respond(outcome::refused(self.dialect, problem, b"", stamp(&self.context.next_id())))
    }

    /// Refuses a body because of its content: quarantines its bytes, then answers.
    async fn refuse(&self, refused: Refused, bytes: Bytes) -> Response {
        let Self { context, dialect, client, address } = *self;
        count(&context.counters.refused);
        let reason = match &refused {
            Refused::Problem(problem) => problem.reason,
            Refused::Fault(fault) => fault.reason,
        };
        if !reason.is_empty() && !bytes.is_empty() {
            let (outbox, bytes) = (context.outbox.clone(), bytes.clone());
            let mut origin = sender(dialect, client);
            if let Some(address) = address {
                origin = Origin::line("http", address, &origin);
            }
            let _slot = context.quarantine_slot.acquire().await;
            let kept = tokio::task::spawn_blocking(move || outbox.quarantine(reason, &origin, &bytes)).await;
            if !matches!(kept, Ok(Ok(_))) {
                count(&context.counters.quarantine_failed);
                tracing::warn!(reason, "Could not keep a refused HTTP body in quarantine");
            }
        }
        let id = context.next_id();
        respond(match refused {
            Refused::Problem(problem) => outcome::refused(dialect, problem, &bytes, stamp(&id)),
            Refused::Fault(fault) => outcome::refused_hl7(fault, &bytes, stamp(&id)),
        })
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

fn later(context: &HttpContext, dialect: Dialect, message: &[u8], seconds: &'static str) -> Response {
    let id = context.next_id();
    let mut response = respond(outcome::refused(dialect, Problem::LATER, message, stamp(&id)));
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
