//! Which outbox key has sealed what, so that an operator can destroy an old key once nothing needs it, and not before.
//!
//! The present key changes only when a store is opened, so each key has sealed a range of positions in each lane and a range of
//! entries in quarantine. `FORMAT` says where each range begins ([`KeyPeriod`]), durably before the key seals
//! anything. Only file names and the segment tables are read for this: a start does not read the backlog.

use std::collections::BTreeMap;

use pgw_core::transaction::{Lane, Position};
use serde::{Deserialize, Serialize};

/// Where a key's ranges begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyPeriod {
    /// The key.
    pub(crate) key_id: String,
    /// Its first entry in quarantine, if it has any.
    pub(crate) quarantine: u64,
    /// Its first position in each lane; a lane without one is not named. The first key's ranges begin at 1, whatever
    /// is here.
    pub(crate) lanes: BTreeMap<Lane, Position>,
}

/// What needs an outbox key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key's id.
    pub id: String,
    /// Whether it was the present key when the store was opened last.
    pub present: bool,
    /// What only this key can read, one phrase each; empty: nothing in the store needs it.
    pub needed_by: Vec<String>,
    /// Whether a store without this key is refused; segments that were set aside are only reported.
    pub(crate) essential: bool,
}

/// What the keys of a store have sealed.
#[derive(Debug, Default)]
pub(crate) struct SealedRanges {
    /// Each lane with its first position that is ranges.
    pub(crate) lanes: Vec<(Lane, Position)>,
    /// The entries in quarantine.
    pub(crate) quarantine: Vec<u64>,
    /// Segments that were set aside.
    pub(crate) aside: usize,
}

/// Each key of the store, in the order in which they came, with what needs it; in doubt, too much.
pub(crate) fn uses(periods: &[KeyPeriod], ranges: &SealedRanges) -> Vec<KeyUse> {
    let mut uses: Vec<KeyUse> = Vec::new();
    for (at, period) in periods.iter().enumerate() {
        let later = periods.get(at + 1..).unwrap_or_default();
        let mut needed_by = Vec::new();
        for (lane, first_kept) in &ranges.lanes {
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
        let entries = ranges.quarantine.iter().filter(|id| (first..end).contains(*id)).count();
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
    if ranges.aside > 0 {
        for known in &mut uses {
            known.needed_by.push(format!("perhaps the {} damaged segments in aside/", ranges.aside));
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

    fn sealed(first: Position, quarantine: &[u64]) -> SealedRanges {
        SealedRanges { lanes: vec![(lane("a"), first)], quarantine: quarantine.to_vec(), aside: 0 }
    }

    fn essential(periods: &[KeyPeriod], ranges: &SealedRanges) -> Vec<String> {
        uses(periods, ranges).into_iter().filter(|u| u.essential).map(|u| u.id).collect()
    }

    #[test]
    fn a_key_is_needed_until_the_last_that_it_sealed_is_gone() {
        let periods = [period("k1", 1, &[]), period("k2", 4, &[("a", 10)]), period("k3", 4, &[("a", 20)])];
        assert_eq!(essential(&periods, &sealed(1, &[])), ["k1", "k2", "k3"]);
        assert_eq!(essential(&periods, &sealed(9, &[])), ["k1", "k2", "k3"]);
        assert_eq!(essential(&periods, &sealed(10, &[])), ["k2", "k3"]);
        assert_eq!(essential(&periods, &sealed(20, &[])), ["k3"]);
        assert_eq!(essential(&periods, &sealed(20, &[3])), ["k1", "k3"]);
        assert_eq!(essential(&periods, &sealed(20, &[4])), ["k3"]);
        assert_eq!(essential(&periods, &SealedRanges::default()), ["k3"]);
        assert_eq!(
            uses(&periods, &sealed(5, &[1, 2]))[0].needed_by,
            ["positions 5 to 9 of lane a", "2 entries in quarantine"]
        );
    }

    #[test]
    fn a_lane_that_a_later_key_does_not_name_needs_the_one_before() {
        let periods = [period("k1", 1, &[]), period("k2", 1, &[("b", 5)])];
        assert_eq!(essential(&periods, &sealed(1_000, &[])), ["k1", "k2"]);
    }

    #[test]
    fn a_key_that_sealed_nothing_is_not_needed_and_one_may_come_back() {
        let periods = [
            period("k1", 1, &[]),
            period("k2", 1, &[("a", 10)]),
            period("k3", 1, &[("a", 10)]),
            period("k1", 1, &[("a", 15)]),
        ];
        assert_eq!(essential(&periods, &sealed(1, &[])), ["k1", "k3"]);
        assert_eq!(essential(&periods, &sealed(15, &[])), ["k1"]);
    }

    #[test]
    fn what_was_set_aside_is_said_and_keeps_no_store_shut() {
        let periods = [period("k1", 1, &[]), period("k2", 1, &[("a", 10)])];
        let uses = uses(&periods, &SealedRanges { aside: 2, ..sealed(10, &[]) });
        assert!(!uses[0].essential && uses[0].needed_by.len() == 1, "{uses:?}");
    }
}
