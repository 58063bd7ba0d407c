//! Which outbox key has sealed what: so that an old key can be destroyed when nothing needs it, and never before.
//!
//! The present key changes only when a store is opened, so each key has sealed a range of positions in each lane and a range of
//! entries in quarantine. `FORMAT` tells where each range begins ([`KeyPeriod`]), durably before the first thing is
//! sealed with the key. Of what is kept only names and the segment table are read: a start does not read the backlog.

use std::collections::BTreeMap;

use pgw_core::transaction::{Lane, Position};
use serde::{Deserialize, Serialize};

/// From where on a key has sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyPeriod {
    /// The key.
    pub(crate) key_id: String,
    /// Its first entry in quarantine, if it has any.
    pub(crate) quarantine: u64,
    /// Its first position in each lane, if it has any there; a lane that is not named has none. Those of a store's
    /// first key begin at 1, whatever stands here.
    pub(crate) lanes: BTreeMap<Lane, Position>,
}

/// What needs an outbox key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key's id.
    pub id: String,
    /// Whether it was the present key when the store was opened last.
    pub present: bool,
    /// What can be read with this key only, one phrase each; empty: nothing that is kept needs it.
    pub needed_by: Vec<String>,
    /// Whether a store without this key is refused; of segments that were set aside it is said only.
    pub(crate) essential: bool,
}

/// What is kept, as far as keys go.
#[derive(Debug, Default)]
pub(crate) struct SealedRanges {
    /// Each lane with its first position that is kept.
    pub(crate) lanes: Vec<(Lane, Position)>,
    /// The entries in quarantine.
    pub(crate) quarantine: Vec<u64>,
    /// Segments that were set aside.
    pub(crate) aside: usize,
}

/// Each key of the store, in the order in which they came, with what needs it. Rather too much than too little.
pub(crate) fn uses(periods: &[KeyPeriod], kept: &SealedRanges) -> Vec<KeyUse> {
    let mut uses: Vec<KeyUse> = Vec::new();
    for (at, period) in periods.iter().enumerate() {
        let later = periods.get(at + 1..).unwrap_or_default();
        let mut needed_by = Vec::new();
        for (lane, first_kept) in &kept.lanes {
            let begins = if at == 0 { Some(1) } else { period.lanes.get(lane).copied() };
            let ends = later.iter().find_map(|later| later.lanes.get(lane)).map(|next| next - 1);
            let Some(first) = begins.map(|begins| begins.max(*first_kept)) else { continue };
            match ends {
                Some(last) if first <= last => {
                    needed_by.push(format!("positions {first} to {last} of lane {lane}"));
                }
                Some(_) => {}
                None => needed_by.push(format!("positions from {first} on of lane {lane}")),
            }
        }
        let first = if at == 0 { 0 } else { period.quarantine };
        let end = later.first().map_or(u64::MAX, |next| next.quarantine);
        let entries = kept.quarantine.iter().filter(|id| (first..end).contains(*id)).count();
        if entries > 0 {
            needed_by.push(format!("{entries} entries in quarantine"));
        }
        let present = later.is_empty();
        let essential = present || !needed_by.is_empty();
        match uses.iter_mut().find(|known| known.id == period.key_id) {
            Some(known) => {
                known.needed_by.append(&mut needed_by);
                known.present |= present;
                known.essential |= essential;
            }
            None => uses.push(KeyUse { id: period.key_id.clone(), present, needed_by, essential }),
        }
    }
    if kept.aside > 0 {
        for known in &mut uses {
            known.needed_by.push(format!("perhaps the {} damaged segments in aside/", kept.aside));
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(name: &str) -> Lane {
        Lane::new(name).unwrap()
    }

    fn period(key: &str, quarantine: u64, lanes: &[(&str, Position)]) -> KeyPeriod {
        let lanes = lanes.iter().map(|(name, first)| (lane(name), *first)).collect();
        KeyPeriod { key_id: key.into(), quarantine, lanes }
    }

    fn kept(first: Position, quarantine: &[u64]) -> SealedRanges {
        SealedRanges { lanes: vec![(lane("a"), first)], quarantine: quarantine.to_vec(), aside: 0 }
    }

    fn essential(periods: &[KeyPeriod], kept: &SealedRanges) -> Vec<String> {
        uses(periods, kept).into_iter().filter(|u| u.essential).map(|u| u.id).collect()
    }

    #[test]
    fn a_key_is_needed_until_the_last_that_it_sealed_is_gone() {
        let periods = [period("k1", 1, &[]), period("k2", 4, &[("a", 10)]), period("k3", 4, &[("a", 20)])];
        assert_eq!(essential(&periods, &kept(1, &[])), ["k1", "k2", "k3"]);
        assert_eq!(essential(&periods, &kept(9, &[])), ["k1", "k2", "k3"]);
        assert_eq!(essential(&periods, &kept(10, &[])), ["k2", "k3"]);
        assert_eq!(essential(&periods, &kept(20, &[])), ["k3"]);
        assert_eq!(essential(&periods, &kept(20, &[3])), ["k1", "k3"]);
        assert_eq!(essential(&periods, &kept(20, &[4])), ["k3"]);
        assert_eq!(essential(&periods, &SealedRanges::default()), ["k3"]);
        assert_eq!(
            uses(&periods, &kept(5, &[1, 2]))[0].needed_by,
            ["positions 5 to 9 of lane a", "2 entries in quarantine"]
        );
    }

    #[test]
    fn a_lane_that_a_later_key_does_not_name_needs_the_one_before() {
        let periods = [period("k1", 1, &[]), period("k2", 1, &[("b", 5)])];
        assert_eq!(essential(&periods, &kept(1_000, &[])), ["k1", "k2"]);
    }

    #[test]
    fn a_key_that_sealed_nothing_is_not_needed_and_one_may_come_back() {
        let periods = [
            period("k1", 1, &[]),
            period("k2", 1, &[("a", 10)]),
            period("k3", 1, &[("a", 10)]),
            period("k1", 1, &[("a", 15)]),
        ];
        assert_eq!(essential(&periods, &kept(1, &[])), ["k1", "k3"]);
        assert_eq!(essential(&periods, &kept(15, &[])), ["k1"]);
    }

    #[test]
    fn what_was_set_aside_is_said_and_keeps_no_store_shut() {
        let periods = [period("k1", 1, &[]), period("k2", 1, &[("a", 10)])];
        let uses = uses(&periods, &SealedRanges { aside: 2, ..kept(10, &[]) });
        assert!(!uses[0].essential && uses[0].needed_by.len() == 1, "{uses:?}");
    }
}
