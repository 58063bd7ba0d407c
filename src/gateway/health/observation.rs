//! What health has observed, all at one moment, and the terms for what it finds.

use std::time::Instant;

use pgw_core::transaction::{Clock, UnixMillis};
use pgw_outbox::{LaneCounts, Snapshot};

use crate::uplink::LinkSnapshot;

/// The state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayState {
    /// Transactions are accepted and confirmed.
    Ok,
    /// Accepting and storing, but the link is down or nothing is confirmed.
    Buffering,
    /// Accepting, but a person should check.
    Degraded,
    /// New transactions are refused.
    Refusing,
}

impl GatewayState {
    /// The word used on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            GatewayState::Ok => "ok",
            GatewayState::Buffering => "buffering",
            GatewayState::Degraded => "degraded",
            GatewayState::Refusing => "refusing",
        }
    }

    /// The same for monitors that read numbers only: 0 to 3.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// All that health reads, at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The outbox.
    pub outbox: &'a Snapshot,
    /// The link.
    pub link: &'a LinkSnapshot,
    /// Refused at the doors because of its content, since start.
    pub refused_total: u64,
    /// Folders that cannot be used now.
    pub folders_away: u64,
    /// How far the wall clock can be trusted.
    pub clock: Clock,
    /// Resident memory; 0 if it cannot be read.
    pub rss_bytes: u64,
    /// Monotonic now.
    pub now: Instant,
    /// Wall clock now.
    pub time: UnixMillis,
}

/// The importance of an event for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// For information.
    Info,
    /// Check it today.
    Warning,
    /// A person must act.
    Alarm,
}

impl Level {
    /// The word used on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Alarm => "alarm",
        }
    }
}

/// An event without id and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Its importance.
    pub level: Level,
    /// `link.down`, `store.low` ...
    pub code: &'static str,
    /// The link phase if there is one, otherwise empty.
    pub phase: &'static str,
    /// One sentence, no patient data.
    pub detail: String,
}

/// The sums over all lanes.
pub(super) fn sum(outbox: &Snapshot) -> LaneCounts {
    outbox.lanes.iter().fold(LaneCounts::default(), |mut sum, (_, lane)| {
        sum.accepted += lane.accepted;
        sum.confirmed += lane.confirmed;
        sum.waiting += lane.waiting;
        sum.damaged += lane.damaged;
        sum.waiting_bytes += lane.waiting_bytes;
        sum.oldest_time = match (sum.oldest_time, lane.oldest_time) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        sum
    })
}

/// Promise 8.
pub(super) fn adds_up(counts: &LaneCounts) -> bool {
    counts.accepted == counts.confirmed + counts.waiting + counts.damaged
}

/// Negative when it has ended.
pub(super) fn seconds_until(end: UnixMillis, now: UnixMillis) -> i64 {
    let distance = i64::try_from(end.abs_diff(now) / 1000).unwrap_or(i64::MAX);
    if end >= now { distance } else { -distance }
}
