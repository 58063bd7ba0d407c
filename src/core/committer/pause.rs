//! The pause after a failure, which is longer each time: of the whole store, or of one lane.

use super::{Action, Committer, Record};
use crate::delivery::Millis;
use crate::transaction::LaneName;
use crate::wire::receipt::GapCode;

/// The first pause, and the longest.
const LENGTHS: (Millis, Millis) = (500, 30_000);

/// Until when nothing is tried. The gateways keep everything that is dropped meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pause {
    retry_at: Millis,
    length: Millis,
    /// How many transactions were not taken.
    pub(super) dropped: u64,
}

impl Pause {
    /// The next one, after a failure at `now` with which `lost` transactions were not taken.
    pub(super) fn next(before: Option<Self>, now: Millis, lost: u64) -> Self {
        let (first, longest) = LENGTHS;
        let length = before.map_or(first, |pause| (pause.length * 2).min(longest));
        let dropped = before.map_or(0, |pause| pause.dropped) + lost;
        Self { retry_at: now + length, length, dropped }
    }

    /// It lasts still.
    pub(super) fn lasts(&self, now: Millis) -> bool {
        now < self.retry_at
    }

    /// How long it lasts still.
    pub(super) fn left(&self, now: Millis) -> Millis {
        self.retry_at.saturating_sub(now)
    }
}

impl<R: Record> Committer<R> {
    /// After how long the store is tried again for a lane; `None`: the committer does not wait for it.
    #[must_use]
    pub fn retries_in(&self, lane: &LaneName, now: Millis) -> Option<Millis> {
        let of_lane = self.lanes.get(lane).and_then(|state| state.pause);
        let pauses = self.failure.into_iter().chain(of_lane);
        pauses.filter(|pause| pause.lasts(now)).map(|pause| pause.left(now)).max()
    }

    /// The store has failed, or could not tell what it has of the lane, and is not tried again yet.
    pub(super) fn is_pausing(&self, lane: &LaneName, now: Millis) -> bool {
        let of_lane = self.lanes.get(lane).and_then(|state| state.pause);
        self.failure.into_iter().chain(of_lane).any(|pause| pause.lasts(now))
    }

    /// The store has failed, or could not tell what it has of the lane: the record is dropped unread.
    pub(super) fn drop_for_now(&mut self, record: &R, now: Millis, actions: &mut Vec<Action<R>>) {
        match self.failure.as_mut().filter(|pause| pause.lasts(now)) {
            Some(failure) => failure.dropped += 1,
            None => {
                let pause = self.lanes.get_mut(record.lane()).and_then(|state| state.pause.as_mut());
                if let Some(pause) = pause {
                    pause.dropped += 1;
                }
            }
        }
        self.later(record, actions);
    }

    /// Its gateway shows why nothing is confirmed.
    pub(super) fn later(&mut self, record: &R, actions: &mut Vec<Action<R>>) {
        let numbered = record.numbered();
        let Some(state) = self.lanes.get(record.lane()) else { return };
        let expected = if state.is_out_of_use() { 0 } else { state.expected(numbered.epoch) };
        self.gap(GapCode::Later, record.lane(), &numbered, expected, actions);
    }

    /// The store could not tell what it has of a lane: only that lane pauses.
    pub(super) fn cannot_say(&mut self, lane: &LaneName, now: Millis) {
        if let Some(state) = self.lanes.get_mut(lane) {
            state.pause = Some(Pause::next(state.pause, now, 1));
        }
    }

    /// The store has told what it has of a lane.
    pub(super) fn can_say(&mut self, lane: &LaneName, actions: &mut Vec<Action<R>>) {
        if let Some(pause) = self.lanes.get_mut(lane).and_then(|state| state.pause.take()) {
            actions.push(Action::Recovered { lane: Some(lane.clone()), dropped: pause.dropped });
        }
    }
}
