//! Lanes whose files fail stop no other: nothing is stored in them or said of them, and the fleet's view shows them.

use std::collections::BTreeSet;

use pgw_core::committer::Record;
use pgw_core::text::chain;

use super::StoreThread;
use crate::store::{LaneName, StoreError};

/// A lane that is out of use is tried again after a minute.
pub(super) const OUT_OF_USE_MILLIS: u64 = 60_000;

impl StoreThread {
    /// Whether something may be said of a lane: not where its files cannot be used.
    pub(super) fn in_use(&mut self, lane: &LaneName) -> bool {
        let in_use = self.show_use(lane);
        if !in_use {
            self.refuse(lane.to_string(), "lane out of use");
        }
        in_use
    }

    /// Whether a lane can be used, as the fleet's view is to show it.
    fn show_use(&mut self, lane: &LaneName) -> bool {
        match self.store.check_lane(lane) {
            Ok(()) => {
                if self.out_of_use.remove(lane) {
                    self.fleet.out_of_use(lane, None);
                }
                true
            }
            Err(error) => {
                let reason = match error {
                    StoreError::OutOfUse { reason, .. } => reason,
                    other => chain(&other),
                };
                self.out_of_use.insert(lane.clone());
                self.fleet.out_of_use(lane, Some(reason));
                false
            }
        }
    }

    /// Shows which lanes of the group have failed with it.
    pub(super) fn name_failed_lanes(&mut self) {
        let of = self.committer.group().iter().map(Record::lane);
        let lanes: BTreeSet<_> = of.filter(|lane| self.store.is_out_of_use(lane)).cloned().collect();
        for lane in lanes {
            self.show_use(&lane);
        }
    }

    /// Also a lane of which nobody asks now is to be shown as usable again.
    pub(super) fn try_lanes_again(&mut self) {
        for lane in self.out_of_use.clone() {
            self.show_use(&lane);
        }
    }
}

/// The log says so; the committer waits with that lane only.
pub(super) fn cannot_say(lane: &LaneName, error: &StoreError) {
    tracing::error!(
        %lane,
        error = chain(error),
        "The store cannot tell what it has of a lane: nothing is stored in it until it can; the other lanes continue"
    );
}
