//! What a bad disk or an intruder could put into the store's files, read as the store reads it: for `fuzz/` alone.

use crate::guard::record::{Assembly, Header, parse_chunk, parse_key};

/// Reads bytes as a record, as a database key, and as a row of chunks; the records that the chunks make are read, too. Returns
/// how many bytes of parts there were; `None` when a header says something else after it was written again.
#[must_use]
pub fn record(bytes: &[u8]) -> Option<usize> {
    let _ = parse_key(bytes);
    if let Ok((header, sealed)) = Header::parse(bytes) {
        let again = [&header.encode()[..], sealed].concat();
        let (again, _) = Header::parse(&again).ok()?;
        if again.encode() != header.encode() {
            return None;
        }
    }
    let (mut rest, mut parts) = (bytes, 0);
    let mut assembly: Option<Assembly> = None;
    while let Some(chunk) = parse_chunk(rest) {
        rest = rest.get(chunk.length()..).unwrap_or_default();
        parts += chunk.part.len();
        let goes_on = assembly.as_mut().is_some_and(|begun| begun.add(&chunk).is_ok());
        if !goes_on {
            assembly = Assembly::begin(&chunk).ok();
        }
        if assembly.as_ref().is_some_and(Assembly::is_whole)
            && let Some(Ok(whole)) = assembly.take().map(Assembly::finish)
        {
            let _ = Header::parse(&whole);
        }
    }
    Some(parts)
}
