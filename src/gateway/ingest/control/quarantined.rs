//! What a person decides about the quarantine: look, release, discard.
//!
//! A release is a submission like any other, with the key that its door would have given it, and removes the entry
//! only after the durable answer. A crash between the two leaves both; the release that is repeated then is a
//! repetition of what is stored, and stores nothing twice.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use pgw_core::transaction::{Body, Lane};
use pgw_outbox::{OutboxAlarm, QuarantineEntry, Refusal, Submission};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::ingest::control::answers::Say;
use crate::ingest::control::kept::Kept;
use crate::ingest::control::server::{BUDGET_WAIT, Shared, is_media_type, is_name, kind};
use crate::ingest::control::{Receipt, Reply};
use crate::ingest::mllp::codec::HEAD_BYTES;
use crate::ingest::mllp::envelope;
use crate::ingest::mllp::msh::Msh;
use crate::ingest::origin::Origin;
use crate::ingest::{Share, count};

/// Longest reason that is noted.
const REASON_BYTES: usize = 200;

/// What the person who releases an entry says of it.
pub(super) struct Wanted {
    pub(super) lane: Option<Lane>,
    pub(super) event_type: Option<String>,
    pub(super) content_type: Option<String>,
}

fn unknown(id: u64) -> String {
    format!("there is no entry {id} in quarantine")
}

fn failed(reason: impl Into<String>) -> Reply {
    Reply::Failed { reason: reason.into() }
}

/// All entries.
pub(super) fn list<K: Kept>(kept: &K, say: Say<'_>) -> Result<(), String> {
    for entry in kept.quarantined().map_err(|error| error.to_string())? {
        if say(Reply::Quarantined(entry.into())) == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

/// One entry.
pub(super) fn show<K: Kept>(kept: &K, id: u64, say: Say<'_>) -> Result<(), String> {
    let entry = kept.quarantined_entry(id).map_err(|error| error.to_string())?.ok_or_else(|| unknown(id))?;
    let _ = say(Reply::Quarantined(entry.into()));
    Ok(())
}

/// The bytes of one entry, for root and the daemon's user: they are a patient's. They stay within `share`.
pub(super) async fn bytes<K: Kept>(
    shared: &Arc<Shared<K>>,
    id: u64,
    user: u32,
    share: &mut Share,
) -> (Reply, Bytes) {
    if !may_see(user, rustix::process::geteuid().as_raw()) {
        let reason = String::from("only root and the daemon's own user may see what is in quarantine");
        return (Reply::NotPermitted { reason }, Bytes::new());
    }
    let found = match entry(shared, id).await {
        Ok(entry) => read(shared, &entry, share).await,
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
pub(super) async fn release<K: Kept>(shared: &Arc<Shared<K>>, id: u64, wanted: Wanted, user: u32) -> Reply {
    let entry = match entry(shared, id).await {
        Ok(entry) => entry,
        Err(reply) => return reply,
    };
    if let Some(reason) = not_releasable(&entry) {
        return failed(format!("entry {id} cannot be released: {reason}"));
    }
    let mut share = shared.budget.share();
    let bytes = match read(shared, &entry, &mut share).await {
        Ok(bytes) => bytes,
        Err(reply) => return reply,
    };
    let Some(lane) = wanted.lane.clone().or_else(|| shared.kept.lanes().into_iter().next()) else {
        return failed("there is no lane");
    };
    let submission = match compose(shared, &entry, lane.clone(), wanted, bytes) {
        Ok(submission) => submission,
        Err(reason) => return failed(reason),
    };
    count(&shared.counters.received);
    let accepted = match shared.kept.submit(submission).await {
        Ok(accepted) => accepted,
        Err(refusal) => {
            let counters = &shared.counters;
            count(if refusal.is_temporary() { &counters.unavailable } else { &counters.refused });
            return refusal.into();
        }
    };
    shared.counters.count_accepted(&accepted);
    let receipt = Receipt::new(lane, accepted);
    let kept = shared.kept.clone();
    if !matches!(spawn_blocking(move || kept.discard_quarantined(id)).await, Ok(Ok(_))) {
        tracing::error!(entry = id, "Stored a quarantine entry, and could not remove it from quarantine");
        return failed(format!(
            "it is stored as {}, and could not be removed from quarantine: release it again, it will not be stored twice",
            receipt.id
        ));
    }
    let (transaction, lane, position) = (receipt.id, &receipt.lane, receipt.position);
    tracing::info!(entry = id, user, %transaction, %lane, position, "Released an entry from quarantine");
    let detail = format!(
        "user {user} released entry {id} ({}, {} bytes) as {transaction}, position {position} of lane {lane}",
        entry.reason, entry.bytes
    );
    shared.kept.note(OutboxAlarm { code: "quarantine.released", detail });
    Reply::Accepted(receipt)
}

/// Removes an entry for good; who and why go to the log and to the centre.
pub(super) async fn discard<K: Kept>(shared: &Arc<Shared<K>>, id: u64, reason: String, user: u32) -> Reply {
    let reason = reason.trim().to_owned();
    if reason.is_empty() || reason.len() > REASON_BYTES || reason.chars().any(char::is_control) {
        return failed(format!("a reason is one line of at most {REASON_BYTES} bytes"));
    }
    let entry = match entry(shared, id).await {
        Ok(entry) => entry,
        Err(reply) => return reply,
    };
    let kept = shared.kept.clone();
    match spawn_blocking(move || kept.discard_quarantined(id)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return failed(unknown(id)),
        Ok(Err(error)) => return failed(error.to_string()),
        Err(_) => return failed("the entry could not be removed"),
    }
    let QuarantineEntry { bytes, time, reason: was, .. } = entry;
    tracing::info!(entry = id, user, bytes, came = time, was, reason, "Discarded an entry of the quarantine");
    let detail = format!("user {user} discarded entry {id} ({was}, {bytes} bytes): {reason}");
    shared.kept.note(OutboxAlarm { code: "quarantine.discarded", detail });
    Reply::End {}
}

/// Why an entry must not become a transaction.
fn not_releasable(entry: &QuarantineEntry) -> Option<&'static str> {
    if entry.damaged {
        Some("its file is damaged")
    } else if entry.is_own_record() {
        Some(
            "it is a damaged record of the store's own, not input: its sender has it, or it is stored already",
        )
    } else if entry.reason == "too large" && entry.bytes <= HEAD_BYTES as u64 {
        Some("only the beginning of it was kept; its sender has the whole")
    } else {
        None
    }
}

fn compose<K: Kept>(
    shared: &Shared<K>,
    entry: &QuarantineEntry,
    lane: Lane,
    wanted: Wanted,
    bytes: Bytes,
) -> Result<Submission, String> {
    let msh = Msh::read(&bytes);
    let Some(event_type) = wanted.event_type.or_else(|| msh.as_ref().map(envelope::event_type)) else {
        return Err(String::from("it has no MSH that says what it is: give a --type"));
    };
    let content_type = wanted.content_type.unwrap_or_else(|| {
        msh.as_ref().map_or("application/octet-stream", |msh| envelope::content_type(msh)).to_owned()
    });
    if !is_name(&event_type) || !is_media_type(&content_type) {
        return Err(String::from("the type or the content type is not one"));
    }
    let mut source = Origin::read(&entry.source).source;
    if source.is_empty() {
        source = format!("urn:pgw:{}:{}:quarantine", shared.settings.practice, shared.settings.gateway);
    }
    // The key of its door, so that it is one transaction with what its sender may have sent again meanwhile.
    let key = msh.as_ref().map(envelope::key).unwrap_or_default();
    Ok(Submission {
        lane,
        kind: kind(&content_type).to_owned(),
        event_type,
        content_type,
        source,
        key,
        correlation_id: String::new(),
        test_data: false,
        body: Body::new(bytes),
    })
}

async fn entry<K: Kept>(shared: &Arc<Shared<K>>, id: u64) -> Result<QuarantineEntry, Reply> {
    let kept = shared.kept.clone();
    match spawn_blocking(move || kept.quarantined_entry(id)).await {
        Ok(Ok(Some(entry))) => Ok(entry),
        Ok(Ok(None)) => Err(failed(unknown(id))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the entry could not be read")),
    }
}

/// The bytes of an entry, within the memory that all doors share.
async fn read<K: Kept>(
    shared: &Arc<Shared<K>>,
    entry: &QuarantineEntry,
    share: &mut Share,
) -> Result<Bytes, Reply> {
    let size = usize::try_from(entry.bytes).unwrap_or(usize::MAX);
    if timeout(BUDGET_WAIT, share.grow_to(size)).await.is_err() {
        let reason = String::from("too many large messages are under way");
        return Err(Reply::Refused { temporary: true, reason });
    }
    let (kept, id) = (shared.kept.clone(), entry.id);
    match spawn_blocking(move || kept.quarantined_bytes(id)).await {
        Ok(Ok(Some(bytes))) => Ok(Bytes::from(bytes)),
        Ok(Ok(None)) => Err(failed(unknown(id))),
        Ok(Err(Refusal::Trouble(reason))) => Err(failed(reason)),
        Ok(Err(refusal)) => Err(failed(refusal.to_string())),
        Err(_) => Err(failed("the entry could not be read")),
    }
}

#[cfg(test)]
#[path = "quarantined_tests.rs"]
mod tests;
