//! The hub's control socket: the commands talk to the running hub there. Whoever may open it may command.
//!
//! | request | answer |
//! |---|---|
//! | `import` | `send`; then the bundle's bytes; `progress` ..., `lane` and `receipt` for each lane, `imported` or `not_imported` |
//! | `resend` | `progress` ..., `resent` or `not_resent` |
//! | `backup_begin` | `backup_begun` |
//! | `backup_done` | `backup_done` |
//!
//! Any of them may also be answered by `failed`.
//!
//! - [`server`]: what the running hub does

pub mod server;

use pgw_bundle::receipts;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_host::control;
use pgw_host::control::ClientError;
use serde::{Deserialize, Serialize};

use super::import::ImportedLane;

/// The commands' connection to the running hub.
pub type Client = control::Client<Request, Reply>;

/// Most bytes of a bundle that go over the socket at once.
pub const PIECE_BYTES: usize = 64 * 1024;

/// What the running hub is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Store a bundle; after [`Reply::Send`] so many bytes follow.
    Import {
        /// Size of the bundle's file.
        bytes: u64,
        /// The signed receipts of its lanes are wanted too.
        receipts: bool,
    },
    /// Ask a gateway to send stored transactions again.
    Resend {
        /// The practice.
        practice: Practice,
        /// Its gateway.
        gateway: Gateway,
        /// Name of the lane.
        lane: Lane,
        /// Epoch of the sequences; without it the lane's last one.
        epoch: Option<Epoch>,
        /// The first sequence.
        from: Sequence,
        /// The last one.
        through: Sequence,
    },
    /// Record how far each lane is, before the store is copied.
    BackupBegin {},
    /// The copy is complete.
    BackupDone {},
}

/// What the running hub answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Send the bytes.
    Send {},
    /// It is at it.
    Progress {
        /// So many are read, stored or kept.
        transactions: u64,
    },
    /// What became of a lane of the bundle, as far as it came.
    Lane(ImportedLane),
    /// The receipt of a lane of the bundle.
    Receipt(receipts::SignedReceipt),
    /// All of the bundle is stored.
    Imported {},
    /// The bundle is not stored, or not all of it.
    NotImported {
        /// Why, in one sentence.
        reason: String,
        /// The same file may be imported later.
        later: bool,
    },
    /// The gateway has sent them again.
    Resent {
        /// So many went out, says the gateway.
        sent: u64,
        /// So many are kept here.
        kept: u64,
        /// What else the gateway says.
        detail: String,
    },
    /// It has not, or not all.
    NotResent {
        /// Why, in one sentence.
        reason: String,
        /// So many had arrived before and are kept.
        kept: u64,
    },
    /// It is recorded.
    BackupBegun {
        /// How many lanes there are.
        lanes: u64,
    },
    /// Receipts say so from now on.
    BackupDone {
        /// False: none had begun, and nothing has changed.
        begun: bool,
    },
    /// The hub could not do it.
    Failed {
        /// Why, in one sentence.
        reason: String,
    },
}

impl control::Reply for Reply {
    fn failed(reason: String) -> Self {
        Self::Failed { reason }
    }

    fn is_last(&self) -> bool {
        !matches!(self, Self::Send {} | Self::Progress { .. } | Self::Lane(_) | Self::Receipt(_))
    }

    fn checked(self) -> Result<Self, ClientError> {
        match self {
            Self::Failed { reason } => Err(ClientError::Failed(reason)),
            other => Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_read_as_it_was_written() {
        for request in [
            Request::Import { bytes: 7, receipts: true },
            Request::Resend {
                practice: Practice::new("B86022").unwrap(),
                gateway: Gateway::new("gw1").unwrap(),
                lane: Lane::new("clinical").unwrap(),
                epoch: None,
                from: 1,
                through: 2,
            },
            Request::BackupBegin {},
        ] {
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request, "{line}");
        }
        let line = receipts::SignedReceipt { topic: "t".into(), payload: "{}".into(), signature: "s".into() };
        for reply in [
            Reply::Receipt(line),
            Reply::NotImported { reason: "x".into(), later: true },
            Reply::BackupDone { begun: false },
        ] {
            let line = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply, "{line}");
        }
        assert!(serde_json::from_str::<Request>(r#"{"command":"backup_done","force":true}"#).is_err());
    }
}
