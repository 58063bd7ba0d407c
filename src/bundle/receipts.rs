//! The way back by file: the hub's receipts, one JSON object a line, signed as on the wire.

use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};

/// Longest line.
const LINE_BYTES: u64 = 32 * 1024;

/// A receipt as it would be published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedReceipt {
    /// Its topic.
    pub topic: String,
    /// Its payload: JSON, byte for byte as it was signed.
    pub payload: String,
    /// The user property `signature`.
    pub signature: String,
}

/// Writes a line.
///
/// # Errors
/// Those of the writer.
pub fn write(out: &mut impl Write, line: &SignedReceipt) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Reads all lines.
///
/// # Errors
/// Those of the reader; [`io::ErrorKind::InvalidData`] for a line that is not a receipt.
pub fn read(input: &mut impl BufRead) -> io::Result<Vec<SignedReceipt>> {
    let mut lines = Vec::new();
    loop {
        let mut text = Vec::new();
        input.by_ref().take(LINE_BYTES).read_until(b'\n', &mut text)?;
        if text.is_empty() {
            return Ok(lines);
        }
        lines.push(serde_json::from_slice(&text)?);
    }
}
