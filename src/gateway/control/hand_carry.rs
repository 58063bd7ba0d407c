//! Hand-carry through the control socket: a bundle is sent in pieces.

use std::collections::BTreeMap;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgw_bundle::bundle::Writer;
use pgw_bundle::receipts::SignedReceipt;
use pgw_bundle::seal::Encryptor;
use pgw_core::transaction::{Lane, Position};
use pgw_outbox::Outbox;

use crate::control::answers::{SendReply, chosen};
use crate::control::context::{ControlConfig, RequestError};
use crate::control::{PIECE_BYTES, Reply};
use crate::export;
use crate::export::ExportError;
use crate::keys;
use crate::layout::{self, LayoutError, SetAside};
use crate::uplink::{OrderError, Orders};

/// Cuts the bytes written to it into pieces for the client.
struct Pieces<'a, 'b> {
    send: &'a std::cell::RefCell<SendReply<'b>>,
    held: Vec<u8>,
}

impl Pieces<'_, '_> {
    fn send(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let base64 = BASE64.encode(&self.held);
        self.held.clear();
        match (self.send.borrow_mut())(Reply::Piece { base64 }) {
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

/// What is exported.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Only this lane.
    pub(crate) lane: Option<Lane>,
    /// From this position; otherwise the oldest waiting one.
    pub(crate) from: Option<Position>,
    /// Where the hub's line of a lane ends, as a file says.
    pub(crate) ends: Vec<SignedReceipt>,
}

/// Whose store it is.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// The daemon's.
    Running(Option<&'a Orders>),
    /// The daemon's, which is not running.
    Stopped,
    /// One that no daemon will open again.
    SetAside,
}

/// Writes the bundle in pieces, then what it holds. Blocking. Also used for a store that no daemon has open.
pub(crate) fn export(
    outbox: &Outbox,
    config: &ControlConfig,
    source: Source<'_>,
    wanted: &Wanted,
    send: SendReply<'_>,
) -> Result<(), RequestError> {
    if config.recipients.is_empty() {
        return Err(RequestError::NoRecipient);
    }
    let lanes = chosen(outbox, wanted.lane.as_ref())?;
    let key = keys::signing_key(&config.signing_key_file)?;
    let (orders, set_aside) = match source {
        Source::Running(None) if !wanted.ends.is_empty() => {
            return Err(LayoutError::from(OrderError::NoUplink).into());
        }
        Source::Running(orders) => (orders, None),
        Source::Stopped => (None, None),
        Source::SetAside => (None, Some(SetAside { from: wanted.from })),
    };
    let mut begins = BTreeMap::new();
    for end in layout::verified(outbox, &lanes, &config.lane_hubs, &wanted.ends)? {
        let after = layout::after(outbox, orders, &end, set_aside)?;
        begins.insert(end.0, after + 1);
    }
    let from = |lane: Lane| {
        let from = begins.get(&lane).copied().or(wanted.from);
        (lane, from)
    };
    let lanes: Vec<_> = lanes.into_iter().map(from).collect();
    let send = std::cell::RefCell::new(send);
    let write = || -> Result<_, ExportError> {
        let pieces = Pieces { send: &send, held: Vec::with_capacity(PIECE_BYTES) };
        let encryptor = Encryptor::new(pieces, &config.recipients).map_err(io::Error::other)?;
        let mut writer = Writer::new(encryptor, export::owner(&config.practice, &config.gateway))?;
        let exported = export::export(outbox, &key, &lanes, &mut writer, &mut |lane, position, tail| {
            (send.borrow_mut())(Reply::Progress { lane: lane.clone(), position, tail })
        })?;
        writer.finish()?.finish()?.send()?;
        Ok(exported)
    };
    let exported = write()?;
    for lane in exported {
        let (first, last) = lane.positions;
        let reply = Reply::Exported {
            lane: lane.lane,
            count: lane.count,
            first,
            last,
            stopped_before: lane.stopped_before,
        };
        if (send.borrow_mut())(reply).is_break() {
            return Ok(());
        }
    }
    Ok(())
}
