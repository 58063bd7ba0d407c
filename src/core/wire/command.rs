//! `cmd` and `cmd/result` (design section 7): a hub's orders to a gateway, and their results.
//!
//! A command is signed like everything that a hub says ([`super::signature`]), names the `command_nonce` of the gateway's present
//! connection, has a number that rises within it, and expires by the gateway's own running time: it can be neither forged with
//! a broker account nor sent again later, whatever the clocks say. Each gets one result.

use serde::{Deserialize, Serialize};

use crate::transaction::{Epoch, Hub, Lane, Sequence};

/// `cmd`: payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// 1.
    pub schema: u32,
    /// UUIDv7: the result names it, and the same id is not obeyed twice.
    pub id: String,
    /// The hub that gives the order.
    pub hub: Hub,
    /// What makes the gateway obey it, once.
    #[serde(flatten)]
    pub address: CommandAddress,
    /// The order itself.
    #[serde(flatten)]
    pub order: Order,
}

/// Which connection of a gateway a command is for, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandAddress {
    /// The `command_nonce` of the gateway's present `status`: a command to another connection is refused.
    pub nonce: String,
    /// Above the number of every command before it with this nonce.
    pub number: u64,
    /// It is refused from so many seconds on after the gateway has published the nonce.
    pub expires_seconds: u64,
}

/// An order: `command` names it. This is the allow list; anything else is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Order {
    /// Confirmed transactions again, in order, with the same ids and numbers.
    Resend {
        /// The lane.
        lane: Lane,
        /// The epoch of the numbers.
        epoch: Epoch,
        /// The first.
        from: Sequence,
        /// The last.
        through: Sequence,
    },
    /// An order that this version does not know.
    #[serde(other)]
    Unknown,
}

/// `cmd/result`: payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// 1.
    pub schema: u32,
    /// The command's.
    pub id: String,
    /// `done` or `refused`.
    pub status: String,
    /// The same as a number: 1 done, 0 refused.
    pub done: u8,
    /// How many went out.
    pub transactions: u64,
    /// One sentence, no patient data.
    pub detail: String,
    /// How long ago the gateway published the nonce of its present connection.
    pub nonce_age_seconds: u64,
    /// RFC 3339.
    pub time: String,
}

impl CommandResult {
    /// A result now (`time` is given: this module has no clock); the nonce's age is filled in when it goes.
    #[must_use]
    pub fn new(id: String, outcome: Result<u64, String>, detail: String, time: String) -> Self {
        let done = u8::from(outcome.is_ok());
        let (status, transactions, detail) = match outcome {
            Ok(transactions) => ("done", transactions, detail),
            Err(reason) => ("refused", 0, reason),
        };
        Self {
            schema: super::SCHEMA,
            id,
            status: status.to_owned(),
            done,
            transactions,
            detail,
            nonce_age_seconds: 0,
            time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{from_json, to_json};

    #[test]
    fn a_command_is_flat_and_an_unknown_one_can_be_read() {
        let command = Command {
            schema: 1,
            id: "x".into(),
            hub: Hub::new("hub1").unwrap(),
            address: CommandAddress { nonce: "00ff".into(), number: 7, expires_seconds: 600 },
            order: Order::Resend {
                lane: Lane::new("clinical").unwrap(),
                epoch: Epoch(uuid::Uuid::nil()),
                from: 3,
                through: u64::MAX,
            },
        };
        let text = String::from_utf8(to_json(&command)).unwrap();
        assert_eq!(
            text,
            r#"{"schema":1,"id":"x","hub":"hub1","nonce":"00ff","number":7,"expires_seconds":600,"command":"resend","lane":"clinical","epoch":"00000000-0000-0000-0000-000000000000","from":3,"through":18446744073709551615}"#
        );
        assert_eq!(from_json::<Command>(text.as_bytes()), Ok(command.clone()));
        let strange = text.replace("resend", "reboot");
        assert_eq!(from_json(strange.as_bytes()), Ok(Command { order: Order::Unknown, ..command }));
    }
}
