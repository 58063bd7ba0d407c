//! The hub's control socket, over which commands talk to the running hub. Anyone who can open it may give commands.
//!
//! | request | answer |
//! |---|---|
//! | `import` | `send`; then the bundle's bytes; `progress` ..., `lane`, `receipt` and `end` for each lane, `imported`, `kept` or `not_imported` |
//! | `resend` | `progress` ..., `resent` or `not_resent` |
//! | `backup_begin` | `backup_progress` ..., `backup_begun` |
//! | `backup_done` | `backup_done` |
//! | `lane_admit` | `admitted` |
//! | `take_remains` | `remains_taken` |
//! | `reload` | `reloaded` |
//!
//! Any of them may also be answered by `failed`.
//!
//! - [`server`]: what the running hub does

pub mod server;

use std::path::PathBuf;

use pgw_bundle::receipts;
use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence};
use pgw_host::control;
use pgw_host::control::{ClientError, NotDone};
use serde::{Deserialize, Serialize};

use super::backup::BegunBackup;
use super::import::ImportedLane;
use super::waits::{AdmittedLane, WaitReason};

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
        /// Also sign the receipts of its lanes.
        receipts: bool,
        /// If it is not signed, keep it beside its lanes.
        unsigned: bool,
    },
    /// Ask a gateway to send stored transactions again.
    Resend {
        /// The practice.
        practice: Practice,
        /// Its gateway.
        gateway: Gateway,
        /// The lane's name.
        lane: Lane,
        /// Epoch of the sequences; the lane's last one if left out.
        epoch: Option<Epoch>,
        /// The first sequence.
        from: Sequence,
        /// The last one.
        through: Sequence,
    },
    /// Make a directory of links of the store's files, with a manifest.
    BackupBegin {
        /// The directory, absolute; left out: a new one below the store's.
        directory: Option<PathBuf>,
    },
    /// The copy is complete.
    BackupDone {
        /// The digest of its manifest.
        digest: String,
    },
    /// Admit what waits at a lane.
    LaneAdmit {
        /// PRACTICE/GATEWAY/LANE; left out: every lane that waits for this reason.
        lane: Option<String>,
        /// Why it waits, as the person has read it.
        reason: WaitReason,
    },
    /// Put what remains of an archived file of a lane in its place.
    TakeRemains {
        /// The practice.
        practice: Practice,
        /// Its gateway.
        gateway: Gateway,
        /// The lane's name.
        lane: Lane,
        /// The file's number.
        file: u32,
    },
    /// Read the list of gateways again.
    Reload {},
}

/// What the running hub answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Send the bytes of the bundle.
    Send {},
    /// How far the work has come.
    Progress {
        /// This many transactions are read, stored or kept.
        transactions: u64,
    },
    /// The result for a lane of the bundle, as far as it was imported.
    Lane(ImportedLane),
    /// The receipt of a lane of the bundle.
    Receipt(receipts::SignedReceipt),
    /// Where a lane of the bundle ends here, which does not continue it.
    End {
        /// The lane's name.
        lane: Lane,
        /// The hub's receipt.
        end: receipts::SignedReceipt,
    },
    /// All of the bundle is stored.
    Imported {},
    /// It is not signed, and is kept beside its lanes; nothing of it is in a lane.
    Kept {
        /// False: it lay there already.
        new: bool,
        /// What is not signed, in one sentence.
        reason: String,
    },
    /// The bundle is not stored, or not completely.
    NotImported {
        /// Why, in one sentence.
        reason: String,
        /// How the command ends.
        consequence: Consequence,
    },
    /// The gateway has sent them again.
    Resent {
        /// How many were sent, according to the gateway.
        sent: u64,
        /// How many are kept here.
        kept: u64,
        /// The gateway's remark.
        detail: String,
    },
    /// The gateway has not sent them, or not all.
    NotResent {
        /// Why, in one sentence.
        reason: String,
        /// How many had arrived before and are kept.
        kept: u64,
    },
    /// How far the files are read for the manifest.
    BackupProgress {
        /// Bytes.
        bytes: u64,
    },
    /// What is to be copied.
    BackupBegun(BegunBackup),
    /// The backup counts.
    BackupDone {
        /// Directories of links that were not removed, because something else is in them.
        kept: Vec<PathBuf>,
    },
    /// The centre has admitted what waited.
    Admitted {
        /// At each of these lanes.
        lanes: Vec<AdmittedLane>,
    },
    /// What remains of the file is in its place.
    RemainsTaken {},
    /// The list of gateways is read.
    Reloaded {
        /// Its serial.
        serial: u64,
        /// How many gateways it has.
        gateways: u64,
    },
    /// The hub failed to do it.
    Failed(NotDone),
}

impl control::Reply for Reply {
    fn failed(failed: NotDone) -> Self {
        Self::Failed(failed)
    }

    fn is_last(&self) -> bool {
        !matches!(
            self,
            Self::Send {}
                | Self::Progress { .. }
                | Self::BackupProgress { .. }
                | Self::Lane(_)
                | Self::Receipt(_)
                | Self::End { .. }
        )
    }

    fn checked(self) -> Result<Self, ClientError> {
        match self {
            Self::Failed(failed) => Err(ClientError::Failed(failed)),
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
            Request::Import { bytes: 7, receipts: true, unsigned: true },
            Request::Resend {
                practice: Practice::new("B86022").unwrap(),
                gateway: Gateway::new("gw1").unwrap(),
                lane: Lane::new("clinical").unwrap(),
                epoch: None,
                from: 1,
                through: 2,
            },
            Request::BackupBegin { directory: None },
            Request::BackupDone { digest: "0".into() },
            Request::LaneAdmit { lane: None, reason: WaitReason::Epochs },
            Request::LaneAdmit { lane: Some("B86022/gw1/clinical".into()), reason: WaitReason::Lost },
            Request::TakeRemains {
                practice: Practice::new("B86022").unwrap(),
                gateway: Gateway::new("gw1").unwrap(),
                lane: Lane::new("clinical").unwrap(),
                file: 3,
            },
            Request::Reload {},
        ] {
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request, "{line}");
        }
        let line = receipts::SignedReceipt { topic: "t".into(), payload: "{}".into(), signature: "s".into() };
        for reply in [
            Reply::Receipt(line.clone()),
            Reply::End { lane: Lane::new("clinical").unwrap(), end: line },
            Reply::NotImported { reason: "x".into(), consequence: Consequence::Retry },
            Reply::Kept { new: true, reason: "x".into() },
            Reply::BackupDone { kept: vec!["/x".into()] },
            Reply::RemainsTaken {},
            Reply::Reloaded { serial: 3, gateways: 2 },
        ] {
            let line = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply, "{line}");
        }
        assert!(
            serde_json::from_str::<Request>(r#"{"command":"backup_done","digest":"0","force":true}"#)
                .is_err()
        );
    }
}
