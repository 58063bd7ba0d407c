//! What every message of a gateway carries besides its content: which start of the program says it, and in which order
//! (design section 12.3).

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::text::{from_hex, hex};
use crate::wire::signature::KeyId;
use crate::wire::{WireError, from_json};

/// Random at each start of a gateway; 16 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(pub [u8; 8]);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for BootId {
    type Error = WireError;
    fn try_from(text: String) -> Result<Self, WireError> {
        from_hex(&text).map(Self).ok_or(WireError::Malformed("boot"))
    }
}

impl From<BootId> for String {
    fn from(boot: BootId) -> String {
        boot.to_string()
    }
}

/// Most bytes that [`Origin::end`] adds to a payload.
pub const MOST_ORIGIN_BYTES: usize = 96;

/// Who says something, in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The start of the program that says it.
    pub boot: BootId,
    /// Rises with every message of this start.
    pub count: u64,
    /// The key that has signed it.
    pub key: KeyId,
}

impl Origin {
    /// A flat JSON payload with the origin at its end. The payload has at least one key.
    #[must_use]
    pub fn end(self, mut payload: Vec<u8>) -> Vec<u8> {
        let Self { boot, count, key } = self;
        payload.pop();
        payload.extend_from_slice(format!(r#","boot":"{boot}","count":{count},"key":"{key}"}}"#).as_bytes());
        payload
    }
}

/// A gateway's message: `content`, flat, with its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said<T> {
    /// What it says.
    #[serde(flatten)]
    pub content: T,
    /// Who says it, in which order.
    #[serde(flatten)]
    pub origin: Origin,
}

impl<T: DeserializeOwned> Said<T> {
    /// Reads a payload and checks its schema.
    ///
    /// # Errors
    /// [`WireError::Json`] or [`WireError::Schema`].
    pub fn from_json(payload: &[u8]) -> Result<Self, WireError> {
        from_json(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::presence::Probe;
    use crate::wire::{SCHEMA, to_json};

    #[test]
    fn what_is_said_is_read_with_its_origin() {
        let probe = Probe { schema: SCHEMA, id: "i".into(), time: "t".into() };
        let boot = BootId([0, 1, 2, 3, 4, 5, 6, 255]);
        let origin = Origin { boot, count: u64::MAX, key: KeyId([9; 8]) };
        let plain = to_json(&probe);
        let payload = origin.end(plain.clone());
        assert_eq!(Said::from_json(&payload), Ok(Said { content: probe, origin }));
        assert!(payload.len() <= plain.len() + MOST_ORIGIN_BYTES);
        assert!(Said::<Probe>::from_json(&plain).is_err());
    }
}
