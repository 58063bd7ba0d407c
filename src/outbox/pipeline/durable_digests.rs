//! Makes the entries of a lane's digest tables durable before the tail checkpoint names their records.

use pgw_core::transaction::Position;

use crate::pipeline::lane::SharedLane;
use crate::state::digest_table;

/// How far the digests of a lane are durable.
#[derive(Debug)]
pub(crate) struct DurableDigests {
    through: Position,
    /// The table whose name was synced last.
    named: Option<Position>,
    fails: bool,
}

impl DurableDigests {
    /// Of a lane whose tail checkpoint names this position.
    pub(crate) fn through(position: Position) -> Self {
        Self { through: position, named: None, fails: false }
    }

    /// Syncs the tables of the segments that have grown since. A failure holds no checkpoint back: a lost tail that nobody
    /// notices is worse than one whose digests are unknown.
    pub(crate) fn sync(&mut self, lane: &SharedLane, tail: Position) {
        if tail <= self.through {
            return;
        }
        let mut bases: Vec<Position> = Vec::new();
        for span in lane.state().segments.values().rev() {
            bases.push(span.base);
            if span.base <= self.through + 1 {
                break;
            }
        }
        for base in bases.into_iter().rev() {
            if let Err(error) = digest_table::sync(&lane.directory, base, self.named == Some(base)) {
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!(lane = %lane.name, base, %error, "A digest table could not be synced; the gateway retries");
                }
                return;
            }
            self.named = Some(base);
        }
        self.through = tail;
        self.fails = false;
    }
}
