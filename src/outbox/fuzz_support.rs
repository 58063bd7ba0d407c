//! Parses arbitrary bytes as the store would parse its files, for `fuzz/` alone: a bad disk or an intruder may have changed them.

use crate::guard::record::{Assembly, Header, parse_chunk, parse_key};

/// Parses bytes as a record, as a database key, and as a sequence of chunks; also the records that the chunks make. Returns
/// how many bytes of parts there were; `None` when a header differs after it was encoded again.
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
