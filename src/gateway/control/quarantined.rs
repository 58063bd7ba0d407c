//! A person's decisions about the quarantine: show, release, discard.
//!
//! A release is a submission like any other, with the key that its door would have given it; the entry is removed only
//! after the durable answer. A crash between the two leaves both. Repeating the release then repeats a stored
//! transaction, and stores nothing twice.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use pgw_core::transaction::{Body, Kind, Lane};
use pgw_core::wire::limits::Text;
use pgw_host::control::NotDone;
use pgw_outbox::{EventType, Outbox, OutboxAlarm, QuarantineEntry, ReadmitError, Refusal, Submission};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::control::Reply;
use crate::control::answers::SendReply;
use crate::control::context::{BUDGET_WAIT, ControlContext, RequestError};
use crate::ingest::mllp::codec::HEAD_BYTES;
use crate::ingest::mllp::envelope;
use crate::ingest::mllp::msh::Msh;
use crate::ingest::origin::Origin;
use crate::ingest::slip::AcceptanceSlip;
use crate::ingest::{Share, count, media};
use crate::listing;

/// Longest reason that is recorded.
const REASON_BYTES: usize = 200;

/// What the person who releases an entry says about it.
pub(super) struct Wanted {
    pub(super) lane: Option<Lane>,
    pub(super) event_type: Option<String>,
    pub(super) content_type: Option<String>,
}

fn refused(reason: impl Into<String>) -> Reply {
    Reply::Failed(NotDone::refused(reason))
}

impl From<RequestError> for Reply {
    fn from(error: RequestError) -> Self {
        Reply::Failed(error.into())
    }
}

/// All entries.
pub(super) fn list(outbox: &Outbox, send: SendReply<'_>) -> Result<(), RequestError> {
    for entry in outbox.quarantined()? {
        if send(Reply::Quarantined(entry.into())) == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

/// One entry.
pub(super) fn show(outbox: &Outbox, id: u64, send: SendReply<'_>) -> Result<(), RequestError> {
    let entry = outbox.quarantined_entry(id)?.ok_or(RequestError::NoEntry(id))?;
    let _ = send(Reply::Quarantined(entry.into()));
    Ok(())
}

/// The bytes of one entry, for root and the daemon's user only, because they hold patient data. They stay within
/// `share`.
pub(super) async fn bytes(
    context: &Arc<ControlContext>,
    id: u64,
    user: u32,
    share: &mut Share,
) -> (Reply, Bytes) {
    if !may_see(user, rustix::process::geteuid().as_raw()) {
        let reason = String::from("only root and the daemon's own user may read quarantined bytes");
        return (Reply::NotPermitted { reason }, Bytes::new());
    }
    let found = match entry(context, id).await {
        Ok(entry) => read(context, &entry, share).await,
        Err(reply) => Err(reply),
    };
    match found {
        Ok(bytes) => {
            tracing::info!(entry = id, user, "Showed the bytes of a quarantine entry");
            (Reply::Bytes { body_bytes: bytes.len() as u64 }, bytes)
        }
        Err(reply) => (reply, Bytes::new()),
    }
}

fn may_see(user: u32, own: u32) -> bool {
    user == 0 || user == own
}

/// Submits an entry, and removes it from quarantine when it is on stable storage.
pub(super) async fn release(context: &Arc<ControlContext>, id: u64, wanted: Wanted, user: u32) -> Reply {
    let entry = match entry(context, id).await {
        Ok(entry) => entry,
        Err(reply) => return reply,
    };
    if let Some(reason) = not_releasable(&entry) {
        return refused(format!("entry {id} cannot be released: {reason}"));
    }
    let mut share = context.budget.share();
    if entry.is_written_off() {
        return readmit(context, &entry, &wanted, user, &mut share).await;
    }
    let bytes = match read(context, &entry, &mut share).await {
        Ok(bytes) => bytes,
        Err(reply) => return reply,
    };
    let Some(lane) = wanted.lane.clone().or_else(|| listing::lanes(&context.outbox).into_iter().next())
    else {
        return refused("there is no lane in the configuration");
    };
    let submission = match compose(&entry, lane.clone(), wanted, bytes) {
        Ok(submission) => submission,
        Err(error) => return error.into(),
    };
    count(&context.counters.received);
    let accepted = match context.outbox.submit(submission).await {
        Ok(accepted) => accepted,
        Err(refusal) => {
            context.counters.count_refused(&refusal);
            return refusal.into();
        }
    };
    context.counters.count_accepted(&accepted);
    released(context, &entry, AcceptanceSlip::new(lane, &accepted), user).await
}

/// Submits a written-off record under its old id.
async fn readmit(
    context: &Arc<ControlContext>,
    entry: &QuarantineEntry,
    wanted: &Wanted,
    user: u32,
    share: &mut Share,
) -> Reply {
    if wanted.lane.is_some() || wanted.event_type.is_some() || wanted.content_type.is_some() {
        return refused(
            "a written-off record returns as it was accepted: without --lane, --type and --content-type",
        );
    }
    // The sealed record, and the body in it.
    let size = usize::try_from(entry.bytes).unwrap_or(usize::MAX).saturating_mul(2);
    if timeout(BUDGET_WAIT, share.grow_to(size)).await.is_err() {
        return too_many();
    }
    let (outbox, id) = (context.outbox.clone(), entry.id);
    let found = match spawn_blocking(move || outbox.written_off(id)).await {
        Ok(Ok(found)) => Arc::new(found),
        Ok(Err(ReadmitError::Refused(refusal))) => return refusal.into(),
        Ok(Err(error @ ReadmitError::NotConfirmed)) => {
            return Reply::Refused { temporary: true, reason: error.to_string() };
        }
        Ok(Err(error)) => return refused(format!("entry {id} cannot be released: {error}")),
        Err(_) => return RequestError::Panicked("the entry could not be read").into(),
    };
    let accepted = match context.outbox.readmit(&found).await {
        Ok(accepted) => accepted,
        Err(refusal) => return refusal.into(),
    };
    let slip = AcceptanceSlip::new(found.lane().clone(), &accepted);
    let outbox = context.outbox.clone();
    if !matches!(spawn_blocking(move || outbox.note_returned(&found)).await, Ok(Ok(()))) {
        tracing::error!(entry = id, "Could not note that a written-off record is stored once more");
        return refused(format!(
            "it is stored as {}, and that could not be noted: release it again, it will not be stored twice",
            slip.id_text()
        ));
    }
    released(context, entry, slip, user).await
}

fn too_many() -> Reply {
    Reply::Refused { temporary: true, reason: String::from("too many large messages are under way") }
}

fn not_removed(slip: &AcceptanceSlip) -> Reply {
    refused(format!(
        "it is stored as {}, and could not be removed from quarantine: discard the entry",
        slip.id_text()
    ))
}

/// What was submitted is on stable storage: its entry goes.
async fn released(
    context: &Arc<ControlContext>,
    entry: &QuarantineEntry,
    slip: AcceptanceSlip,
    user: u32,
) -> Reply {
    let (outbox, id) = (context.outbox.clone(), entry.id);
    if !matches!(spawn_blocking(move || outbox.discard_quarantined(id)).await, Ok(Ok(_))) {
        tracing::error!(entry = id, "Stored a quarantine entry but could not delete it from quarantine");
        return not_removed(&slip);
    }
    let (transaction, lane, position) = (slip.id_text(), &slip.lane, slip.position);
    tracing::info!(entry = id, user, transaction, %lane, position, "Released an entry from quarantine");
    let detail = format!(
        "user {user} released entry {id} ({}, {} bytes) as {transaction}, position {position} of lane {lane}",
        entry.reason, entry.bytes
    );
    context.outbox.raise(OutboxAlarm { code: "quarantine.released", detail });
    Reply::Accepted(slip)
}

/// Removes an entry for good; the user and the reason go to the log and to the centre.
pub(super) async fn discard(context: &Arc<ControlContext>, id: u64, reason: String, user: u32) -> Reply {
    let reason = reason.trim().to_owned();
    if reason.is_empty() || reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
        return refused(format!("the reason must be 1 to {REASON_BYTES} bytes on one line"));
    }
    let entry = match entry(context, id).await {
        Ok(entry) => entry,
        Err(reply) => return reply,
    };
    let outbox = context.outbox.clone();
    match spawn_blocking(move || outbox.discard_quarantined(id)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return RequestError::NoEntry(id).into(),
        Ok(Err(error)) => return RequestError::from(error).into(),
        Err(_) => return RequestError::Panicked("the entry could not be removed").into(),
    }
    let QuarantineEntry { bytes, time, reason: was, .. } = entry;
    tracing::info!(
        entry = id,
        user,
        bytes,
        received = time,
        was,
        reason,
        "Discarded an entry of the quarantine"
    );
    let detail = format!("user {user} discarded entry {id} ({was}, {bytes} bytes): {reason}");
    context.outbox.raise(OutboxAlarm { code: "quarantine.discarded", detail });
    Reply::End {}
}

/// Why an entry must not become a transaction.
fn not_releasable(entry: &QuarantineEntry) -> Option<&'static str> {
    if entry.damaged {
        Some("its file is damaged")
    } else if entry.is_own_record() && !entry.is_written_off() {
        Some(
            "it is a damaged record of the store's own, not input: its sender has it, or it is stored already",
        )
    } else if entry.reason == "too large" && entry.bytes <= HEAD_BYTES as u64 {
        Some("only the beginning of it was kept; its sender has the whole")
    } else {
        None
    }
}

fn compose(
    entry: &QuarantineEntry,
    lane: Lane,
    wanted: Wanted,
    bytes: Bytes,
) -> Result<Submission, RequestError> {
    let msh = Msh::read(&bytes);
    let from_header = || msh.as_ref().map(|msh| EventType::Named(envelope::event_type(msh)));
    let Some(event_type) = wanted.event_type.map(EventType::Given).or_else(from_header) else {
        return Err(RequestError::NoType);
    };
    let content_type = wanted
        .content_type
        .unwrap_or_else(|| msh.as_ref().map_or(media::OCTETS, |msh| envelope::content_type(msh)).to_owned());
    if !media::is_event_type(event_type.text()) || !media::is_media_type(&content_type) {
        return Err(RequestError::MalformedType);
    }
    let mut sender = Origin::read(&entry.source).source;
    // The line of an entry holds only the beginning of a name that is too long.
    if sender.is_empty() || Text::Sender.check(&sender).is_err() {
        sender = "quarantine".to_owned();
    }
    // The key that its door would use: if its sender has sent it again meanwhile, both are one transaction. A key for which the
    // door refuses it is left out: a person has decided that it is sent all the same.
    let key = msh.as_ref().map(envelope::key).filter(|key| Text::Key.check(key).is_ok()).unwrap_or_default();
    Ok(Submission {
        lane,
        kind: Kind::Transaction,
        event_type,
        content_type,
        sender,
        key,
        shows_key: true,
        correlation_id: String::new(),
        trace_parent: String::new(),
        body: Body::new(bytes),
    })
}

async fn entry(context: &Arc<ControlContext>, id: u64) -> Result<QuarantineEntry, Reply> {
    let outbox = context.outbox.clone();
    match spawn_blocking(move || outbox.quarantined_entry(id)).await {
        Ok(Ok(Some(entry))) => Ok(entry),
        Ok(Ok(None)) => Err(RequestError::NoEntry(id).into()),
        Ok(Err(error)) => Err(RequestError::from(error).into()),
        Err(_) => Err(RequestError::Panicked("the entry could not be read").into()),
    }
}

/// The bytes of an entry, within the memory that all doors share.
async fn read(
    context: &Arc<ControlContext>,
    entry: &QuarantineEntry,
    share: &mut Share,
) -> Result<Bytes, Reply> {
    let size = usize::try_from(entry.bytes).unwrap_or(usize::MAX);
    if timeout(BUDGET_WAIT, share.grow_to(size)).await.is_err() {
        return Err(too_many());
    }
    let (outbox, id) = (context.outbox.clone(), entry.id);
    match spawn_blocking(move || outbox.quarantined_bytes(id)).await {
        Ok(Ok(Some((_, bytes)))) => Ok(Bytes::from(bytes)),
        Ok(Ok(None)) => Err(RequestError::NoEntry(id).into()),
        Ok(Err(Refusal::Trouble(reason))) => Err(Reply::Failed(NotDone::later(reason))),
        Ok(Err(refusal)) => Err(RequestError::from(refusal).into()),
        Err(_) => Err(RequestError::Panicked("the entry could not be read").into()),
    }
}

#[cfg(test)]
#[path = "quarantined_tests.rs"]
mod tests;
