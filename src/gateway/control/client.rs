//! Requests of commands that need more than one request and the lines of its answer.

use std::io;

use pgw_host::control::{self, ClientError, NotDone};
use pgw_host::exit::{Exit, fail};

use crate::control::{Reply, Request};

/// A command's connection to the daemon.
pub type Client = control::Client<Request, Reply>;

/// Submits one body: `request` is a [`Request::Submit`] of its size. The reply is [`Reply::Accepted`] or
/// [`Reply::Refused`]. A submission that is not answered in time may still be stored; repeating it does no harm.
///
/// # Errors
/// [`ClientError`].
pub fn submit(client: &mut Client, request: &Request, body: &[u8]) -> Result<Reply, ClientError> {
    client.send(request)?;
    match client.reply()? {
        Reply::Send {} => {
            client.send_bytes(body)?;
            client.reply()
        }
        reply => Ok(reply),
    }
}

/// Asks for an entry's bytes, and copies them to `out`.
///
/// # Errors
/// [`ClientError`]; [`ClientError::Write`] if writing to `out` fails.
pub fn bytes(client: &mut Client, request: &Request, out: &mut dyn io::Write) -> Result<(), ClientError> {
    client.send(request)?;
    match client.reply()? {
        Reply::Bytes { body_bytes } => client.bytes(body_bytes, out),
        Reply::Refused { temporary: true, reason } => Err(ClientError::Failed(NotDone::later(reason))),
        Reply::Refused { temporary: false, reason } => Err(ClientError::Failed(NotDone::refused(reason))),
        _ => Err(ClientError::Broken(io::ErrorKind::InvalidData.into())),
    }
}

/// Writes the daemon's error and returns its exit code.
pub(crate) fn failed(err: &mut dyn io::Write, error: &ClientError) -> Exit {
    fail(err, error, error.consequence())
}
