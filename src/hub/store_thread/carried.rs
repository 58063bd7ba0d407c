//! Bundles that were carried to the hub, and the end that is carried back.

use bytes::Bytes;
use pgw_core::committer::{Refusal, Way};
use pgw_core::wire::envelope::Envelope;
use tokio::sync::watch;

use super::centre::pruned;
use super::usable::cannot_say;
use super::{Asked, StoreThread};
use crate::answers::Answer;
use crate::imported::{NotTaken, Part, Tally};
use crate::resend::{CopiesProgress, ResendError, ResendRequest};
use crate::store::{Entry, LaneName, StoreError};

impl StoreThread {
    /// Takes a part of a bundle: stores what the broker brought before, then this part. It is on stable storage when
    /// this returns.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn import(&mut self, part: Part) -> Result<Tally, NotTaken> {
        let Part { lane, transactions } = part;
        if !self.finish() || !self.in_use(&lane) {
            return Err(NotTaken::StoreFailed(lane));
        }
        let entry = |(envelope, body)| Entry::new(lane.clone(), envelope, body);
        let now = self.now();
        let mut asked = Asked {
            store: &mut *self.store,
            speakers: &self.speakers,
            late: &self.late,
            resends: &self.resends,
            error: None,
        };
        let mut actions = Vec::new();
        let entries = transactions.iter().cloned().map(entry);
        let taken = self.committer.import(&lane, entries, now, &mut asked, &mut actions);
        if let Some((lane, error)) = asked.error {
            cannot_say(&lane, &error);
        }
        for action in actions {
            self.carry_out(action, Way::Hand);
        }
        let (mut tally, wrong) = taken?;
        // Nothing but this part is in the group.
        let failed_lanes = self.failed_lanes;
        if !self.finish() || self.failed_lanes > failed_lanes {
            return Err(NotTaken::StoreFailed(lane));
        }
        tally.end = self.store.watermarks_of(&lane).last().copied();
        let Some(wrong) = wrong else { return Ok(tally) };
        let waiting = match wrong {
            NotTaken::Admit { epoch, sequence, deleted: true, .. } => Some((Refusal::Admit, epoch, sequence)),
            NotTaken::Admit { epoch, sequence, .. } => Some((Refusal::Epochs, epoch, sequence)),
            NotTaken::Hole { epoch, sequence, .. } => Some((Refusal::Hole, epoch, sequence)),
            _ => None,
        };
        if let Some((why, epoch, sequence)) = waiting {
            let at =
                |(envelope, _): &&(Envelope, Bytes)| (envelope.epoch, envelope.sequence) == (epoch, sequence);
            let entry = transactions.iter().find(at).and_then(|(envelope, body)| pruned(envelope, body));
            self.waits(&lane, why, (epoch, sequence), entry);
        }
        Err(wrong)
    }

    /// Asks a gateway for transactions again, unless the store knows better.
    pub(super) fn resend(&mut self, request: ResendRequest, progress: watch::Sender<CopiesProgress>) {
        if let Err(error) = self.may_ask_for(&request) {
            progress.send_replace(CopiesProgress { kept: 0, ended: Some(Err(error)) });
            return;
        }
        let stored = self.store.watermarks_of(&request.lane);
        let address = self.fleet.next_command(&request.lane.practice, &request.lane.gateway);
        self.resends.ask(request, &stored, address, &self.answers, progress);
    }

    fn may_ask_for(&mut self, request: &ResendRequest) -> Result<(), ResendError> {
        let ResendRequest { lane, epoch, from, through } = request;
        let failed = |error: StoreError| ResendError::Store(error.to_string());
        self.store.check_lane(lane).map_err(failed)?;
        let last = self.store.watermarks_of(lane).last().map(|end| end.epoch);
        let Some(epoch) = epoch.or(last) else { return Ok(()) };
        for sequence in [*from, *through] {
            if self.store.is_archived(lane, epoch, sequence).map_err(failed)? {
                return Err(ResendError::Archived { lane: lane.clone(), epoch, sequence });
            }
        }
        Ok(())
    }

    /// Where a lane ends on stable storage, as a receipt that answers nothing.
    ///
    /// A person carries it to the gateway, so it must be asked for after what was imported.
    pub fn end_of(&mut self, lane: LaneName) -> Option<Answer> {
        self.finish();
        if !self.in_use(&lane) {
            return None;
        }
        let end = self.store.watermarks_of(&lane).last().copied();
        let (holds_point, backed_up, tail_seen, window, nonce) = (None, None, None, None, None);
        let lost = Vec::new();
        Some(Answer::Receipt { lane, end, holds_point, backed_up, tail_seen, lost, window, nonce })
    }
}
