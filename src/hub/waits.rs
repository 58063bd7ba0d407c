//! What waits at a lane until the centre admits it (`practice-hub lane admit`).

use std::fmt;

use clap::ValueEnum;
use pgw_core::committer::Refusal;
use pgw_core::consequence::Consequence;
use pgw_core::transaction::{Epoch, Gateway, Lane, Practice, Sequence, UnixMillis, rfc3339};
use serde::{Deserialize, Serialize};

use super::store::LaneName;

/// Why the centre is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// It stands for transactions that were confirmed once and are deleted at the gateway, and that the hub lacks.
    Deleted,
    /// The hub's files lack a part of the lane, which this does not refill.
    Hole,
    /// The hub's files lack a part of the lane, and all of it is deleted at the gateway, as this says.
    Lost,
    /// Its gateway has begun too many epochs today.
    Epochs,
}

/// Its word on the command line.
impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

impl WaitReason {
    /// `None`: nobody is asked about such a refusal.
    #[must_use]
    pub fn of(refusal: Refusal) -> Option<Self> {
        match refusal {
            Refusal::Admit => Some(Self::Deleted),
            Refusal::Hole => Some(Self::Hole),
            Refusal::Epochs => Some(Self::Epochs),
            Refusal::TooManyLanes | Refusal::Link | Refusal::TooLarge | Refusal::Unsigned => None,
        }
    }
}

/// What waits at a lane: the first number that is not stored. Whatever its gateway sends after that waits with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waits {
    /// The epoch.
    pub epoch: Epoch,
    /// Its number.
    pub sequence: Sequence,
    /// Why.
    pub reason: WaitReason,
    /// For how many deleted transactions it stands; 0: for none, or it does not say.
    pub transactions: u64,
    /// Since when, by the hub's clock.
    pub since: UnixMillis,
}

/// What a person who has read why lanes wait lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The lane; `None`: every one that waits for this reason.
    pub lane: Option<LaneName>,
    /// Why it waits, as the person has read it.
    pub reason: WaitReason,
}

impl Waits {
    /// The command that admits it, as it was read.
    #[must_use]
    pub fn command(&self, lane: &LaneName) -> String {
        format!("practice-hub lane admit {lane} --as {}", self.reason)
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, sequence, reason, transactions, since } = self;
        write!(f, "epoch {epoch} waits at sequence {sequence} since {}: ", rfc3339(*since))?;
        match reason {
            WaitReason::Deleted => write!(
                f,
                "it stands for {transactions} transactions that the gateway has deleted after they were confirmed, and that the hub lacks: they are lost if no backup of the hub has them"
            ),
            WaitReason::Lost => write!(
                f,
                "the hub's files lack a part of the lane, and the gateway has deleted all of it after it was confirmed ({transactions} transactions, with what else it says is deleted): restore the files from a backup if there is one; admitted, that part counts as lost for good, and the lane continues with the files after it"
            ),
            WaitReason::Hole => f.write_str(
                "the hub's files lack a part of the lane, and the gateway sends something else than that part; admitted, the lane continues there with this epoch, and what the files have after that part is kept beside the lane as late",
            ),
            WaitReason::Epochs => {
                f.write_str("its gateway has begun too many epochs today, each for a fork: find out why first")
            }
        }
    }
}

/// A lane that the centre has admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmittedLane {
    /// The practice.
    pub practice: Practice,
    /// Its gateway.
    pub gateway: Gateway,
    /// The lane's name.
    pub lane: Lane,
    /// What waited there.
    #[serde(flatten)]
    pub waits: Waits,
    /// How many of the lane's files are set aside as late.
    pub set_aside: u64,
}

impl AdmittedLane {
    /// Its full name.
    #[must_use]
    pub fn name(&self) -> LaneName {
        LaneName { practice: self.practice.clone(), gateway: self.gateway.clone(), lane: self.lane.clone() }
    }
}

/// Why nothing, or not all, is admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// Nothing waits there.
    #[error("nothing waits to be admitted at {0}")]
    Nothing(LaneName),
    /// Nothing waits anywhere for this reason.
    #[error("no lane waits for this reason: `practice-hub list` says why lanes wait")]
    NothingAnywhere,
    /// It waits for something else, and what is admitted is something else then.
    #[error("{lane} is not admitted, as it does not wait for that now: {waits}")]
    Other {
        /// The lane.
        lane: LaneName,
        /// Why it waits.
        waits: Waits,
    },
    /// What waited is not what the gateway names now.
    #[error(
        "{0}: what waited there is not what its gateway sends now, or the gateway has not asked since the hub started: run this command again when `practice-hub list` shows that something waits"
    )]
    NotNamed(LaneName),
    /// The files could not be set aside.
    #[error("{lane} is not admitted: {reason}")]
    Store {
        /// The lane.
        lane: LaneName,
        /// The store's error.
        reason: String,
    },
}

impl NotAdmitted {
    /// How the command ends.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Nothing(_) | Self::NothingAnywhere | Self::Other { .. } => Consequence::Refuse,
            Self::NotNamed(_) => Consequence::Retry,
            Self::Store { .. } => Consequence::FILES,
        }
    }
}
