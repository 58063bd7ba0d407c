//! What is written beside a sender's files: a receipt, or a reason. JSON for programs that a person can read. Pure.

use pgw_core::transaction::{Lane, rfc3339};
use pgw_core::wire::SCHEMA;
use pgw_outbox::Accepted;
use serde::Serialize;

/// Longest name in any file system that matters, in bytes.
const NAME_BYTES: usize = 255;

/// The receipt of an accepted file. The same for each repetition, so that it can be written again after a crash.
///
/// It has no file name: where the file itself is not kept, nothing of a patient's may stay.
#[derive(Debug, Serialize)]
struct Receipt<'a> {
    schema: u32,
    /// `null`: delivered, confirmed and deleted long ago.
    id: Option<String>,
    lane: &'a Lane,
    position: u64,
    /// When it was accepted first, RFC 3339; `null` as above.
    time: Option<String>,
    sha256: &'a str,
    bytes: u64,
}

/// The receipt as text.
#[must_use]
pub fn receipt(lane: &Lane, accepted: &Accepted, sha256: &str, bytes: u64) -> Vec<u8> {
    let known = !accepted.id.0.is_nil();
    let id = known.then(|| accepted.id.to_string());
    let time = known.then(|| rfc3339(accepted.time));
    lines(&Receipt { schema: SCHEMA, id, lane, position: accepted.position, time, sha256, bytes })
}

/// Why a file is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing in it.
    Empty,
    /// Larger than the limit, in bytes.
    TooLarge(u64),
}

#[derive(Debug, Serialize)]
struct Words {
    schema: u32,
    code: &'static str,
    reason: String,
    action: &'static str,
    bytes: u64,
}

impl Reason {
    /// The reason as text.
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
        };
        lines(&Words { schema: SCHEMA, code: self.code(), reason, action, bytes })
    }

    /// The reason in one word.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::TooLarge(_) => "too_large",
        }
    }
}

fn lines(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// `prefix` + `name` + `suffix`; a name that would be too long loses its front, so that its end still says what it is.
#[must_use]
pub fn fitted(prefix: &str, name: &[u8], suffix: &str) -> Vec<u8> {
    let room = NAME_BYTES.saturating_sub(prefix.len() + suffix.len());
    let mut from = name.len().saturating_sub(room);
    if std::str::from_utf8(name).is_ok() {
        while name.get(from).is_some_and(|byte| byte & 0xc0 == 0x80) {
            from += 1;
        }
    }
    [prefix.as_bytes(), name.get(from..).unwrap_or_default(), suffix.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::transaction::TransactionId;
    use uuid::Uuid;

    fn accepted(id: Uuid) -> Accepted {
        Accepted { id: TransactionId(id), position: 42, time: 0, repeated: false, key_reused: false }
    }

    #[test]
    fn a_receipt_names_the_transaction_and_is_the_same_for_a_repetition() {
        let lane = Lane::new("clinical").unwrap();
        let first = accepted(Uuid::from_u128(7));
        let text = receipt(&lane, &first, "abc", 3);
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["id"], "00000000-0000-0000-0000-000000000007");
        assert_eq!((json["position"].as_u64(), json["bytes"].as_u64()), (Some(42), Some(3)));
        assert_eq!((&json["lane"], &json["sha256"]), (&"clinical".into(), &"abc".into()));
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
        let again = Accepted { repeated: true, ..first };
        assert_eq!(receipt(&lane, &again, "abc", 3), text);
        let gone: serde_json::Value =
            serde_json::from_slice(&receipt(&lane, &accepted(Uuid::nil()), "abc", 3)).unwrap();
        assert!(gone["id"].is_null() && gone["time"].is_null());
    }

    #[test]
    fn a_reason_says_what_why_and_what_to_do() {
        for (reason, code, says) in
            [(Reason::Empty, "empty", "is empty"), (Reason::TooLarge(10), "too_large", "limit of 10")]
        {
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
