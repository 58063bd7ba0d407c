//! What the committer asks of the store, and of the list of gateways.

use pgw_core::chain::{ChainValue, Digest};
use pgw_core::committer::{Content, Lookup, Way};
use pgw_core::transaction::{Epoch, Sequence, TransactionId};
use pgw_core::wire::signature::KeyId;

use crate::resend::ResendRequests;
use crate::speakers::Speakers;
use crate::store::{Entry, LaneName, Store, StoreError, Through};

/// The store as the committer sees it; an error is kept for the log.
pub(super) struct Asked<'a> {
    pub(super) store: &'a mut dyn Store,
    pub(super) speakers: &'a Speakers,
    /// What is to be kept beside its lane, and is not yet.
    pub(super) late: &'a [Entry],
    pub(super) resends: &'a ResendRequests,
    pub(super) error: Option<(LaneName, StoreError)>,
}

impl Asked<'_> {
    fn said<T>(&mut self, lane: &LaneName, answer: Result<T, StoreError>) -> Option<T> {
        answer.map_err(|error| self.error = Some((lane.clone(), error))).ok()
    }
}

impl Lookup<Entry> for Asked<'_> {
    fn watermarks_of(&self, lane: &LaneName) -> Option<Vec<Through>> {
        (!self.store.is_out_of_use(lane)).then(|| self.store.watermarks_of(lane))
    }

    fn hole(&self, lane: &LaneName) -> Option<Vec<Through>> {
        self.store.hole(lane)
    }

    fn content(&mut self, lane: &LaneName, id: TransactionId, digest: Digest) -> Option<Content> {
        let content = self.store.content(lane, id, digest);
        self.said(lane, content)
    }

    fn value_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Option<Option<ChainValue>> {
        let value = self.store.value_at(lane, epoch, sequence);
        self.said(lane, value)
    }

    fn late_at(&mut self, lane: &LaneName, epoch: Epoch, sequence: Sequence) -> Vec<ChainValue> {
        let values = self.store.late_at(lane, epoch, sequence);
        // Without them a late transaction is only refused; its gateway keeps it.
        let mut values = self.said(lane, values).unwrap_or_default();
        let same = |entry: &&Entry| {
            entry.lane == *lane && entry.envelope.epoch == epoch && entry.envelope.sequence == sequence
        };
        values.extend(self.late.iter().filter(same).map(|entry| entry.envelope.chain));
        values.extend(self.resends.signed_at(lane, epoch, sequence));
        values
    }

    fn signed_by(&mut self, entry: &Entry, chain: ChainValue, way: Way) -> Option<KeyId> {
        self.speakers.signed_by(entry, chain, way)
    }
}
