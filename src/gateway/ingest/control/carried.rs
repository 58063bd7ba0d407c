//! Hand-carry through the control socket: a bundle goes out in pieces, receipts come in by file.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_bundle::bundle::Writer;
use pgw_bundle::keys::Recipient;
use pgw_bundle::receipts;
use pgw_bundle::seal::Encryptor;
use pgw_core::transaction::{Gateway, Lane, Position, Practice};
use pgw_outbox::Released;

use crate::export;
use crate::export::ExportError;
use crate::ingest::control::answers::{Say, chosen};
use crate::ingest::control::kept::Kept;
use crate::ingest::control::server::{Settings, Shared};
use crate::ingest::control::{PIECE_BYTES, Reply};
use crate::uplink::Orders;

/// How long a receipt may take until the mark has moved.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Cuts what is written to it into pieces for the client.
struct Pieces<'a, 'b> {
    say: &'a std::cell::RefCell<Say<'b>>,
    held: Vec<u8>,
}

impl Pieces<'_, '_> {
    fn send(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let base64 = BASE64.encode(&self.held);
        self.held.clear();
        match (self.say.borrow_mut())(Reply::Piece { base64 }) {
            std::ops::ControlFlow::Continue(()) => Ok(()),
            std::ops::ControlFlow::Break(()) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Write for Pieces<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES - self.held.len());
        self.held.extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.held.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the bundle in pieces, then what it holds.
pub(super) fn export<K: Kept>(
    kept: &K,
    (practice, gateway): (&Practice, &Gateway),
    recipients: &[Recipient],
    lane: Option<&Lane>,
    from: Option<Position>,
    say: Say<'_>,
) -> Result<(), String> {
    if recipients.is_empty() {
        return Err(
            "no [[hub]] in the configuration has a recipient: `practice-hub init` prints it".to_owned()
        );
    }
    let lanes = chosen(kept, lane)?;
    let say = std::cell::RefCell::new(say);
    let sentence = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let write = || -> Result<_, ExportError> {
        let pieces = Pieces { say: &say, held: Vec::with_capacity(PIECE_BYTES) };
        let sealing = Encryptor::new(pieces, recipients).map_err(io::Error::other)?;
        let mut writer = Writer::new(sealing, export::owner(practice, gateway))?;
        let exported = export::export(kept, &lanes, from, &mut writer, &mut |lane, position, tail| {
            (say.borrow_mut())(Reply::Progress { lane: lane.clone(), position, tail })
        })?;
        writer.finish()?.finish()?.send()?;
        Ok(exported)
    };
    let exported = write().map_err(|error| sentence(&error))?;
    for lane in exported {
        let (first, last) = lane.positions;
        let reply = Reply::Exported {
            lane: lane.lane,
            count: lane.count,
            first,
            last,
            stopped_before: lane.stopped_before,
        };
        if (say.borrow_mut())(reply).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// The same from a store that no daemon has open.
pub(crate) fn export_from_stopped<K: Kept>(
    kept: &K,
    settings: &Settings,
    lane: Option<&Lane>,
    from: Option<Position>,
    say: Say<'_>,
) -> Result<(), String> {
    export(kept, (&settings.practice, &settings.gateway), &settings.recipients, lane, from, say)
}

/// Hands a receipt to the uplink, and waits until it has done what it can.
pub(super) async fn receipt<K: Kept>(kept: &K, orders: Option<&Orders>, line: receipts::Line) -> Reply {
    let failed = |reason: String| Reply::Failed { reason };
    let Some(orders) = orders else { return failed("there is no uplink".to_owned()) };
    let (lane, position) = match orders.receipt(line).await {
        Ok(heard) => heard,
        Err(error) => return failed(error.to_string()),
    };
    let confirmed = || kept.mark(&lane).map_or(0, |mark| mark.position);
    let wait = async {
        while confirmed() < position {
            tokio::time::sleep(LOOK).await;
        }
    };
    // One that confirms nothing new, or is not to be believed yet, is no error.
    let _ = tokio::time::timeout(PATIENCE, wait).await;
    let confirmed = confirmed();
    Reply::Heard { lane, confirmed }
}

/// Releases lost positions, and has the lane looked at again.
pub(super) async fn void<K: Kept>(
    shared: Arc<Shared<K>>,
    lane: Lane,
    range: (Position, Position),
    reason: String,
    act: bool,
) -> Reply {
    let (of, asked) = (lane.clone(), Arc::clone(&shared));
    let done = tokio::task::spawn_blocking(move || asked.kept.void(&of, range, &reason, act)).await;
    let Released { from, through, previous, chain } = match done {
        Ok(Ok(released)) => released,
        Ok(Err(reason)) => return Reply::Failed { reason },
        Err(_) => return Reply::Failed { reason: "the void could not be made".to_owned() },
    };
    if let (true, Some(orders)) = (act, &shared.orders) {
        // It is durable; an uplink that has ended finds it when it starts again.
        let _ = orders.retry_head(lane.clone()).await;
    }
    Reply::Released { lane, from, through, previous, chain }
}

/// Has a head that stands tried again.
pub(super) async fn again(orders: Option<&Orders>, lane: Lane) -> Reply {
    let done = match orders {
        Some(orders) => orders.retry_head(lane).await.map_err(|error| error.to_string()),
        None => Err("there is no uplink".to_owned()),
    };
    done.map_or_else(|reason| Reply::Failed { reason }, |()| Reply::End {})
}
