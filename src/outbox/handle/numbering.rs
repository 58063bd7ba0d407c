//! A lane's epochs, and the positions that cannot be sent any more.

use std::time::Duration;

use pgw_core::chain::Through;
use pgw_core::numbering::{Gone, Numbering, without};
use pgw_core::transaction::{Epoch, Lane, Position};

use super::Outbox;
use crate::errors::Refusal;
use crate::types::ReleasedRange;

impl Outbox {
    /// Whether the hub has the content of a position: it is confirmed, and no entry stands for it there.
    #[must_use]
    pub fn is_at_hub(&self, lane: &Lane, position: Position) -> bool {
        self.lane(lane).is_some_and(|lane| lane.state().is_confirmed_content(position))
    }

    /// What an operator has written off, in the order of the writing off.
    #[must_use]
    pub fn released(&self, lane: &Lane) -> Vec<ReleasedRange> {
        self.lane(lane).map_or_else(Vec::new, |lane| {
            let state = lane.state();
            state.voids.ranges().iter().map(crate::void::VoidRange::shown).collect()
        })
    }

    /// Notes that the hub's line ends where this lane has never been. Never blocks: another thread writes it within a second or two.
    pub fn note_diverged(&self, lane: &Lane) {
        if let Some(lane) = self.lane(lane) {
            lane.state().diverged = true;
        }
    }

    /// How long before this start that was last noted, in running time: the time in which the gateway did not run does not count.
    #[must_use]
    pub fn since_diverged(&self, lane: &Lane) -> Option<Duration> {
        self.lane(lane)?.state().since_diverged
    }

    /// All positions that cannot be read any more, with what goes out in their place, in order.
    #[must_use]
    pub fn gone(&self, lane: &Lane) -> Vec<Gone> {
        self.lane(lane).map_or_else(Vec::new, |lane| lane.state().gone())
    }

    /// How positions map to epochs and sequences.
    #[must_use]
    pub fn numbering(&self, lane: &Lane) -> Option<Numbering> {
        Some(self.lane(lane)?.state().numbering.clone())
    }

    /// Positions after `after` get a new epoch, where the hub's line ends with `link` and is known to lead through the
    /// epochs `follows` of this lane, with an entry for each of `gone`. It costs one small file, however much is waiting. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`] when it could not be written; nothing has changed then.
    pub fn new_epoch(
        &self,
        lane: &Lane,
        after: Position,
        link: Option<Through>,
        follows: Vec<Epoch>,
        gone: &[Gone],
    ) -> Result<Numbering, Refusal> {
        let epoch = Epoch(uuid::Uuid::now_v7());
        let shared = self.lane(lane).ok_or_else(|| Refusal::UnknownLane(lane.clone()))?;
        let voids = shared.state().voids.clone();
        let numbering = self.renumber(lane, |present| {
            // What has become an entry since it was asked for stays that one.
            let gone = without(gone, &present.entries_after(after), after);
            let made = gone.iter().filter_map(|gone| voids.entry(present, gone)).collect();
            present.begun(epoch, link, follows, after, made)
        })?;
        tracing::info!(%lane, after, %epoch, "The lane continues in a new epoch");
        self.shared().raise("epoch.new", format!("lane {lane} has a new epoch after position {after}"));
        Ok(numbering)
    }

    /// The hub has confirmed these positions, first to last, and has lost them for good: a repetition of what is in them is new,
    /// unless this store still has it. It replaces what was said before; more of them are an alarm. Blocking.
    pub fn lost_at_hub(&self, lane: &Lane, lost: &[(Position, Position)]) {
        let Some(shared) = self.lane(lane) else { return };
        let more = self.shared().lost_at_hub(shared, lost);
        if let (Some((from, _)), Some((_, through)), 1..) = (lost.first(), lost.last(), more) {
            tracing::error!(%lane, more, from, through, "The hub has lost transactions for good that it had confirmed");
            self.shared().raise(
                "hub.lost",
                format!(
                    "lane {lane}: the hub has lost {more} transactions for good that it had confirmed, of positions {from} to {through}: what this gateway still has of them it sends again; look for the rest in the hub's backups, or have the senders send it again"
                ),
            );
        }
    }

    /// Saves a lane's epochs, synced. Blocking.
    ///
    /// # Errors
    /// [`Refusal::Trouble`] when they could not be written; nothing has changed then.
    pub fn save_numbering(&self, lane: &Lane, numbering: &Numbering) -> Result<(), Refusal> {
        self.renumber(lane, |_| numbering.clone()).map(drop)
    }

    fn renumber(
        &self,
        lane: &Lane,
        change: impl FnOnce(&Numbering) -> Numbering,
    ) -> Result<Numbering, Refusal> {
        let shared = self.lane(lane).ok_or_else(|| Refusal::UnknownLane(lane.clone()))?;
        self.shared().renumber(shared, change).map_err(|error| {
            Refusal::Trouble(format!("the epochs of lane {lane} could not be written: {error}"))
        })
    }
}
