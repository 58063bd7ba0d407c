//! The routes. [`ROUTES`] is what `docs/openapi.yaml` must say, and a test compares the two.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use pgw_core::transaction::TransactionId;
use pgw_outbox::ReadError;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::ingest::http::context::HttpContext;
use crate::ingest::http::lookup;
use crate::ingest::http::lookup::Hint;
use crate::ingest::http::outcome::{Answer, Dialect, Problem};
use crate::ingest::http::submission::{client, plain, respond, take, unauthorized};
use crate::ingest::http::{headers, metrics};
use crate::listing;

/// Every method and path that does something.
pub const ROUTES: [(&str, &str); 9] = [
    ("post", "/v1/transactions"),
    ("post", "/v1/transactions/{name}"),
    ("get", "/v1/transactions/{name}"),
    ("post", "/fhir/$process-message"),
    ("get", "/fhir/{query}"),
    ("post", "/hl7"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
];

type DoorState = State<Arc<HttpContext>>;

/// All routes of one door.
pub(super) fn router(context: Arc<HttpContext>) -> Router {
    Router::new()
        .route("/v1/transactions", post(plain_transaction))
        .route("/v1/transactions/{name}", post(transaction_in_lane).get(look_up))
        .route("/fhir/$process-message", post(fhir))
        // Some clients encode the dollar sign.
        .route("/fhir/%24process-message", post(fhir))
        .route("/hl7", post(hl7))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .fallback(nothing_here)
        .method_not_allowed_fallback(async || plain(Problem::METHOD))
        .layer(from_fn(echo))
        .with_state(context)
}

/// Every answer carries the request's ids.
async fn echo(request: Request, next: Next) -> Response {
    let given = headers::to_echo(request.headers());
    let mut response = next.run(request).await;
    headers::echo(&given, response.headers_mut());
    response
}

async fn plain_transaction(State(context): DoorState, request: Request) -> Response {
    take(context, Dialect::Plain, None, request).await
}

async fn transaction_in_lane(
    State(context): DoorState,
    Path(lane): Path<String>,
    request: Request,
) -> Response {
    take(context, Dialect::Plain, Some(&lane), request).await
}

async fn fhir(State(context): DoorState, request: Request) -> Response {
    take(context, Dialect::Fhir, None, request).await
}

async fn hl7(State(context): DoorState, request: Request) -> Response {
    take(context, Dialect::Hl7, None, request).await
}

async fn look_up(State(context): DoorState, Path(id): Path<String>, request: Request) -> Response {
    if client(&context, request.extensions(), request.headers()).is_none() {
        return unauthorized(Dialect::Plain, request.into_body()).await;
    }
    let Ok(id) = Uuid::try_parse(&id) else { return plain(Problem::BAD_ID) };
    let hint = match Hint::read(request.uri().query().unwrap_or_default()) {
        Ok(hint) => hint,
        Err(problem) => return plain(problem),
    };
    let found = tokio::task::spawn_blocking(move || {
        let found = lookup::find(&context.outbox, TransactionId(id), &hint)?;
        Ok::<_, ReadError>(found.map(|entry| {
            let confirmed = listing::confirmed(&context.outbox, &entry.lane);
            lookup::document(&entry, confirmed, &(context.status)())
        }))
    });
    match found.await {
        Ok(Ok(Some(document))) => document_response(StatusCode::OK, &document),
        Ok(Ok(None)) => plain(Problem::NO_TRANSACTION),
        Ok(Err(error)) => {
            tracing::debug!(%error, "Could not look a transaction up");
            plain(Problem::LATER)
        }
        Err(_) => plain(Problem::FAULT),
    }
}

fn document_response(status: StatusCode, document: &Value) -> Response {
    let body = pgw_core::wire::to_json(document);
    let mut response = respond(Answer { status: status.as_u16(), content_type: "application/json", body });
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn status(context: Arc<HttpContext>) -> Value {
    // The source may read the disk.
    tokio::task::spawn_blocking(move || (context.status)()).await.unwrap_or_default()
}

/// The process runs and can answer; a supervisor would restart it otherwise.
async fn alive(State(context): DoorState) -> Response {
    let status = status(context).await;
    match status.is_object() {
        true => {
            document_response(StatusCode::OK, &json!({ "status": "alive", "version": status["version"] }))
        }
        false => plain(Problem::LATER),
    }
}

/// Whether new transactions are accepted now; the state of the link does not matter for that.
async fn ready(State(context): DoorState) -> Response {
    let status = status(context).await;
    let refusing = status["state"] == "refusing" || !status.is_object();
    let code = if refusing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let document = json!({
        "status": if refusing { "refusing" } else { "ready" },
        "state": status["state"],
        "state_reason": status["state_reason"],
    });
    document_response(code, &document)
}

async fn numbers(State(context): DoorState, request: Request) -> Response {
    if client(&context, request.extensions(), request.headers()).is_none() {
        return unauthorized(Dialect::Plain, request.into_body()).await;
    }
    let doors = context.counters.counts();
    let text = metrics::render(&status(context).await, &doors);
    let mut response = Response::new(text.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    response
}

/// A FHIR query gets the answer that queries are not supported; everything else gets "not found".
async fn nothing_here(State(context): DoorState, request: Request) -> Response {
    let is_fhir = request.uri().path().starts_with("/fhir/");
    let dialect = if is_fhir { Dialect::Fhir } else { Dialect::Plain };
    if client(&context, request.extensions(), request.headers()).is_none() {
        return unauthorized(dialect, request.into_body()).await;
    }
    super::submission::not_taken(dialect, if is_fhir { Problem::QUERY } else { Problem::NO_ROUTE }, request)
        .await
}
