//! The documents written beside a sender's files: an acceptance slip, or a reason. JSON that a person can read. Pure.

use pgw_core::transaction::{Lane, Position, TransactionId};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::limits::TextError;
use serde::Serialize;

use crate::ingest::slip::AcceptanceSlip;

/// Longest name in any file system that matters, in bytes.
const NAME_BYTES: usize = 255;

/// The acceptance slip of a file. It is the same for each repetition, so that it can be written again after a crash.
///
/// It holds no file name: if the file itself is not kept, no patient data may stay.
#[derive(Debug, Serialize)]
struct SlipDocument<'a> {
    schema: u32,
    /// `null`: delivered, confirmed and deleted long ago.
    id: Option<TransactionId>,
    lane: &'a Lane,
    position: Position,
    /// When it was accepted first, RFC 3339; `null` as above.
    time: &'a Option<String>,
    sha256: &'a str,
    bytes: u64,
}

/// The acceptance slip as text.
#[must_use]
pub fn slip(slip: &AcceptanceSlip, sha256: &str, bytes: u64) -> Vec<u8> {
    let AcceptanceSlip { id, lane, position, time, .. } = slip;
    lines(&SlipDocument { schema: SCHEMA, id: *id, lane, position: *position, time, sha256, bytes })
}

/// Why a file is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is empty.
    Empty,
    /// Larger than the limit, in bytes.
    TooLarge(u64),
    /// Its envelope has a text that the wire cannot carry.
    Text(TextError),
}

#[derive(Debug, Serialize)]
struct ReasonDocument {
    schema: u32,
    code: &'static str,
    reason: String,
    action: &'static str,
    bytes: u64,
}

impl Reason {
    /// The document as text.
    #[must_use]
    pub fn text(self, bytes: u64) -> Vec<u8> {
        let (reason, action) = match self {
            Reason::Empty => (
                String::from("the file is empty"),
                "look why the sending system left it; it holds nothing that could be sent",
            ),
            Reason::TooLarge(limit) => (
                format!("the file has {bytes} bytes, more than the limit of {limit}"),
                "it was not sent: have the limit raised (folder.file_limit_bytes), then move it back into the folder",
            ),
            Reason::Text(error) => (
                error.to_string(),
                "it was not sent: have the folder's settings corrected (folder.type, folder.content_type), then move it back into the folder",
            ),
        };
        lines(&ReasonDocument { schema: SCHEMA, code: self.code(), reason, action, bytes })
    }

    /// The reason as one word.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::TooLarge(_) => "too_large",
            Reason::Text(_) => "text",
        }
    }
}

fn lines(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// `prefix` + `name` + `suffix`; a name that is too long loses its beginning, so that its end still shows the type.
#[must_use]
pub fn fitted(prefix: &str, name: &[u8], suffix: &str) -> Vec<u8> {
    let space = NAME_BYTES.saturating_sub(prefix.len() + suffix.len());
    let mut from = name.len().saturating_sub(space);
    if std::str::from_utf8(name).is_ok() {
        while name.get(from).is_some_and(|byte| byte & 0xc0 == 0x80) {
            from += 1;
        }
    }
    [prefix.as_bytes(), name.get(from..).unwrap_or_default(), suffix.as_bytes()].concat()
}

/// Prefixes for a name that is taken: none, the number, then the number and a counter.
pub(super) fn prefixes(number: &str) -> impl Iterator<Item = String> {
    let more = (2..100).map(move |count| format!("{number}-{count}-"));
    [String::new(), format!("{number}-")].into_iter().chain(more)
}

/// The same after the number of a slip, which is already part of the name.
pub(super) fn suffix(prefix: &str, number: u64) -> String {
    let rest = prefix.trim_start_matches(&format!("{number}-")).trim_end_matches('-');
    match (prefix.is_empty(), rest.is_empty()) {
        (true, _) => String::new(),
        (false, true) => String::from("-1"),
        (false, false) => format!("-{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::wire::limits::Text;
    use pgw_outbox::Accepted;
    use uuid::Uuid;

    fn accepted(id: Uuid) -> Accepted {
        Accepted {
            id: TransactionId(id),
            position: 42,
            time: 0,
            repeated: false,
            key_reused: false,
            withheld: false,
        }
    }

    #[test]
    fn a_slip_names_the_transaction_and_is_the_same_for_a_repetition() {
        let lane = Lane::new("clinical").unwrap();
        let first = accepted(Uuid::from_u128(7));
        let document = |accepted: &Accepted| slip(&AcceptanceSlip::new(lane.clone(), accepted), "abc", 3);
        let text = document(&first);
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["id"], "00000000-0000-0000-0000-000000000007");
        assert_eq!((json["position"].as_u64(), json["bytes"].as_u64()), (Some(42), Some(3)));
        assert_eq!((&json["lane"], &json["sha256"]), (&"clinical".into(), &"abc".into()));
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
        let again = Accepted { repeated: true, ..first };
        assert_eq!(document(&again), text);
        let gone: serde_json::Value = serde_json::from_slice(&document(&accepted(Uuid::nil()))).unwrap();
        assert!(gone["id"].is_null() && gone["time"].is_null());
    }

    #[test]
    fn a_reason_says_what_why_and_what_to_do() {
        for (reason, code, says) in [
            (Reason::Empty, "empty", "is empty"),
            (Reason::TooLarge(10), "too_large", "limit of 10"),
            (Reason::Text(TextError::Character(Text::EventType)), "text", "the type holds"),
        ] {
            let json: serde_json::Value = serde_json::from_slice(&reason.text(11)).unwrap();
            assert_eq!(json["code"], code);
            assert!(json["reason"].as_str().unwrap().contains(says), "{json}");
            assert!(json["action"].as_str().unwrap().len() > 20, "{json}");
        }
    }

    #[test]
    fn names_that_would_be_too_long_lose_their_front() {
        assert_eq!(fitted("7-", b"a.hl7", ".receipt.json"), b"7-a.hl7.receipt.json");
        let long = [vec![b'a'; 250], b".hl7".to_vec()].concat();
        let name = fitted("", &long, ".receipt.json");
        assert!(name.len() == 255 && name.ends_with(b"a.hl7.receipt.json"));
        let umlauts = "ü".repeat(127);
        let name = fitted("", umlauts.as_bytes(), ".x");
        assert!(std::str::from_utf8(&name).is_ok() && name.len() <= 255);
        let raw = fitted("", &[0xff; 255], ".x");
        assert_eq!(raw.len(), 255);
    }
}
