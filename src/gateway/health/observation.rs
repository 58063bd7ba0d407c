//! What health observed at, all at one moment, and the words for what it finds.

use std::time::Instant;

use pgw_core::transaction::{Clock, UnixMillis};
use pgw_outbox::{LaneCounts, Snapshot};

use crate::uplink::LinkSnapshot;

/// The state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GatewayState {
    /// What comes in goes out and is confirmed.
    Ok,
    /// Accepting, and keeping it: the link is down or nothing is confirmed.
    Buffering,
    /// Accepting, and a person should look.
    Degraded,
    /// New work is refused.
    Refusing,
}

impl GatewayState {
    /// The word on the wire.
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
    /// Refused at the doors for what it was, since start.
    pub refused_total: u64,
    /// Folders that cannot be used now.
    pub folders_away: u64,
    /// How far the wall clock can be believed.
    pub clock: Clock,
    /// Resident memory; 0 where it cannot be read.
    pub rss_bytes: u64,
    /// Monotonic now.
    pub now: Instant,
    /// Wall clock now.
    pub time: UnixMillis,
}

/// How much a person should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Good to know.
    Info,
    /// Look at it today.
    Warning,
    /// A person must act.
    Alarm,
}

impl Level {
    /// The word on the wire.
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
    /// How much it matters.
    pub level: Level,
    /// `link.down`, `store.low` ...
    pub code: &'static str,
    /// Link phase where one is meant, else empty.
    pub phase: &'static str,
    /// One sentence, no patient data.
    pub detail: String,
}

/// All lanes together.
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

/// Negative when it is over.
pub(super) fn seconds_until(end: UnixMillis, now: UnixMillis) -> i64 {
    let distance = i64::try_from(end.abs_diff(now) / 1000).unwrap_or(i64::MAX);
    if end >= now { distance } else { -distance }
}
