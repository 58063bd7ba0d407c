//! By which key a bundle is signed: judged by the list of gateways as `import` judges it, part by part, without the store.

use pgw_bundle::bundle::Item;
use pgw_bundle::keys::Identity;
use pgw_core::transaction::{Epoch, LaneName, Sequence};
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::KeyId;

use super::gateways::{Gateways, KeyState, ListedGateway};
use super::import::{BundleFile, ImportError, is_full};

/// By which keys a lane of a bundle is signed.
#[derive(Debug, PartialEq, Eq)]
pub struct SignedLane {
    /// Its full name.
    pub lane: LaneName,
    /// The epochs and their keys, in order, and the last number that each has signed: it proves all before it.
    pub signed: Vec<(Epoch, KeyId, Sequence)>,
    /// Where the signed beginning ends, if not with the lane.
    pub unsigned: Option<Unsigned>,
}

/// The first transaction that no key signs which counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsigned {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its sequence.
    pub sequence: Sequence,
    /// Why it does not count.
    pub why: Why,
}

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// There is none.
    #[error("it has no signature")]
    NoSignature,
    /// The list does not have the gateway.
    #[error("the hub's list of gateways does not have this gateway")]
    NotListed,
    /// None of the gateway's keys made it.
    #[error("no key that the hub's list has for this gateway has signed it")]
    UnknownKey,
    /// A thief may have made it.
    #[error("key {0} has signed it, which is revoked")]
    Revoked(KeyId),
}

/// Reads a bundle to its end and judges the signatures of each lane; stores nothing. `read` is called now and then with the
/// number of transactions read.
///
/// # Errors
/// [`ImportError`].
pub fn read(
    file: &BundleFile,
    identity: &Identity,
    list: &Gateways,
    read: &mut dyn FnMut(u64),
) -> Result<Vec<SignedLane>, ImportError> {
    let mut reader = file.read(identity)?;
    let mut lanes: Vec<SignedLane> = Vec::new();
    let (mut part, mut bytes, mut transactions) = (Vec::new(), 0, 0);
    while let Some(item) = reader.next_item()? {
        let ends = matches!(item, Item::Foot(_));
        match item {
            Item::Head(head) => lanes.push(SignedLane::new(reader.owner().lane(&head.lane))),
            Item::Transaction(envelope, body) => {
                bytes += body.len();
                part.push(*envelope);
            }
            Item::Foot(_) => {}
        }
        if (ends || is_full(part.len(), bytes))
            && let Some(lane) = lanes.last_mut()
        {
            transactions += part.len() as u64;
            lane.add(&std::mem::take(&mut part), list);
            bytes = 0;
            read(transactions);
        }
    }
    Ok(lanes)
}

impl SignedLane {
    fn new(lane: LaneName) -> Self {
        Self { lane, signed: Vec::new(), unsigned: None }
    }

    /// A part of the lane, in order. What follows an unsigned transaction proves nothing: `import` does not take it.
    fn add(&mut self, part: &[Envelope], list: &Gateways) {
        let listed = list.get(&self.lane.practice, &self.lane.gateway);
        for run in part.chunk_by(|a, b| a.epoch == b.epoch) {
            if self.unsigned.is_some() {
                return;
            }
            let by = |envelope: &Envelope| signed_by(listed, &self.lane, envelope);
            let last = run.iter().enumerate().rev().find_map(|(place, of)| Some((place, by(of).ok()?)));
            let count = last.map_or(0, |(place, _)| place + 1);
            let why = run.get(count).map(|first| (first, by(first)));
            if let Some((place, key)) = last {
                self.through(run[place].epoch, key, run[place].sequence);
            }
            if let Some((first, Err(why))) = why {
                self.unsigned = Some(Unsigned { epoch: first.epoch, sequence: first.sequence, why });
            }
        }
    }

    fn through(&mut self, epoch: Epoch, key: KeyId, through: Sequence) {
        match self.signed.last_mut() {
            Some(last) if (last.0, last.1) == (epoch, key) => last.2 = through,
            _ => self.signed.push((epoch, key, through)),
        }
    }
}

fn signed_by(listed: Option<&ListedGateway>, lane: &LaneName, envelope: &Envelope) -> Result<KeyId, Why> {
    let signature = envelope.signature.as_ref().ok_or(Why::NoSignature)?;
    let listed = listed.ok_or(Why::NotListed)?;
    let Envelope { epoch, sequence, chain, .. } = *envelope;
    let mut keys = listed.keys.iter();
    let signer = keys.find(|listed| listed.key.verify_head(lane, epoch, sequence, chain, signature));
    let signer = signer.ok_or(Why::UnknownKey)?;
    let id = signer.key.id();
    if signer.state == KeyState::Revoked { Err(Why::Revoked(id)) } else { Ok(id) }
}

#[cfg(test)]
#[path = "bundle_signatures_tests.rs"]
mod tests;
