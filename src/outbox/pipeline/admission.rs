//! Admission: is there room for one more? Pure; the maintenance thread measures the disk and passes the figures in.
//!
//! A lane is refused below the floor of free disk and beyond the store's limit, and admitted again only when there is an
//! eighth of the floor (a sixteenth of the limit) to spare, so that the answer does not change with every
//! message. Urgent lanes are admitted down to half the floor and a twentieth beyond the limit. sled cannot
//! even open with nothing free, and deleting needs space too: the rest of the floor is for that.

/// A measurement of the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    /// Free for this process.
    pub(crate) free_bytes: u64,
    /// Size of the file system.
    pub(crate) total_bytes: u64,
    /// Size of the store.
    pub(crate) store_bytes: u64,
}

/// The configured limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpaceLimits {
    /// Most bytes for the whole store.
    pub(crate) limit_bytes: u64,
    /// Free bytes that must stay, whatever the size of the file system.
    pub(crate) min_free_bytes: u64,
    /// Free part of the file system that must stay, in percent; the larger of both counts.
    pub(crate) min_free_percent: u8,
}

/// Why there is no room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    /// Nobody has measured yet.
    #[error("the disk was not measured yet")]
    NotMeasured,
    /// The disk is nearly full.
    #[error("{free_bytes} bytes are free on the disk, fewer than the {floor_bytes} that must stay")]
    Low { free_bytes: u64, floor_bytes: u64 },
    /// The store has reached its limit.
    #[error("the store has {store_bytes} bytes, its limit is {limit_bytes}")]
    Limit { store_bytes: u64, limit_bytes: u64 },
}

/// Whether ordinary and urgent lanes are admitted.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: SpaceLimits,
    space: Option<DiskSpace>,
    ordinary: Gate,
    urgent: Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Low,
    Limit,
}

struct Edge {
    floor_bytes: u64,
    limit_bytes: u64,
}

impl Admission {
    /// Refuses until the disk was measured.
    pub(crate) fn new(limits: SpaceLimits) -> Self {
        Self { limits, space: None, ordinary: Gate::Open, urgent: Gate::Open }
    }

    /// Takes a measurement. Returns whether admission of ordinary or urgent lanes has changed.
    pub(crate) fn handle(&mut self, space: DiskSpace) -> bool {
        let before = (self.ordinary, self.urgent);
        let floor_bytes = self.floor_bytes(space.total_bytes);
        let limit_bytes = self.limits.limit_bytes;
        self.ordinary = self.ordinary.after(space, &Edge { floor_bytes, limit_bytes });
        let urgent =
            Edge { floor_bytes: floor_bytes / 2, limit_bytes: limit_bytes.saturating_add(limit_bytes / 20) };
        self.urgent = self.urgent.after(space, &urgent);
        self.space = Some(space);
        before != (self.ordinary, self.urgent)
    }

    /// Whether a transaction may come in; if not, the reason for the log and for health.
    pub(crate) fn admit(&self, urgent: bool) -> Result<(), NoRoom> {
        let Some(space) = self.space else { return Err(NoRoom::NotMeasured) };
        // Whatever the margins, an urgent lane is admitted whenever an ordinary one is.
        match if urgent && self.ordinary != Gate::Open { self.urgent } else { self.ordinary } {
            Gate::Open => Ok(()),
            Gate::Low => {
                let floor_bytes = self.floor_bytes(space.total_bytes);
                Err(NoRoom::Low { free_bytes: space.free_bytes, floor_bytes })
            }
            Gate::Limit => {
                let limit_bytes = self.limits.limit_bytes;
                Err(NoRoom::Limit { store_bytes: space.store_bytes, limit_bytes })
            }
        }
    }

    fn floor_bytes(&self, total_bytes: u64) -> u64 {
        let part = u128::from(total_bytes) * u128::from(self.limits.min_free_percent) / 100;
        self.limits.min_free_bytes.max(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

impl Gate {
    fn after(self, space: DiskSpace, edge: &Edge) -> Self {
        let (mut floor, mut limit) = (edge.floor_bytes, edge.limit_bytes);
        match self {
            Gate::Open => {}
            Gate::Low => floor = floor.saturating_add(floor / 8),
            Gate::Limit => limit -= limit / 16,
        }
        if space.free_bytes < floor {
            Gate::Low
        } else if space.store_bytes > limit {
            Gate::Limit
        } else {
            Gate::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: SpaceLimits = SpaceLimits { limit_bytes: 1600, min_free_bytes: 800, min_free_percent: 10 };

    fn space(free_bytes: u64, store_bytes: u64) -> DiskSpace {
        DiskSpace { free_bytes, total_bytes: 4000, store_bytes }
    }

    fn admits(admission: &Admission) -> (bool, bool) {
        (admission.admit(false).is_ok(), admission.admit(true).is_ok())
    }

    #[test]
    fn it_refuses_before_it_has_seen_the_disk() {
        assert_eq!(admits(&Admission::new(LIMITS)), (false, false));
    }

    #[test]
    fn free_space_closes_and_opens_with_a_margin_and_later_for_urgent_lanes() {
        let mut admission = Admission::new(LIMITS);
        let steps = [
            (800, true, true),
            (799, false, true),
            (899, false, true),
            (900, true, true),
            (400, false, true),
            (399, false, false),
            (449, false, false),
            (450, false, true),
            (900, true, true),
        ];
        for (free, ordinary, urgent) in steps {
            admission.handle(space(free, 0));
            assert_eq!(admits(&admission), (ordinary, urgent), "{free}");
        }
    }

    #[test]
    fn the_limit_closes_and_opens_with_a_margin_and_later_for_urgent_lanes() {
        let mut admission = Admission::new(LIMITS);
        let steps = [
            (1600, true, true),
            (1601, false, true),
            (1501, false, true),
            (1500, true, true),
            (1680, false, true),
            (1681, false, false),
            (1576, false, false),
            (1575, false, true),
        ];
        for (store, ordinary, urgent) in steps {
            admission.handle(space(4000, store));
            assert_eq!(admits(&admission), (ordinary, urgent), "{store}");
        }
    }

    #[test]
    fn the_larger_floor_counts() {
        let mut admission = Admission::new(LIMITS);
        admission.handle(DiskSpace { free_bytes: 999, total_bytes: 10_000, store_bytes: 0 });
        assert_eq!(admits(&admission), (false, true));
        assert!(admission.admit(false).unwrap_err().to_string().contains("1000"));
        admission.handle(DiskSpace { free_bytes: 1125, total_bytes: 10_000, store_bytes: 0 });
        assert_eq!(admits(&admission), (true, true));
    }

    #[test]
    fn handle_tells_a_change() {
        let mut admission = Admission::new(LIMITS);
        assert!(!admission.handle(space(800, 0)));
        assert!(admission.handle(space(700, 0)));
        assert!(!admission.handle(space(700, 0)));
        assert!(admission.handle(space(300, 0)));
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        /// Whatever the disk does: below the floor no ordinary lane is admitted, and urgent lanes are never worse off.
        #[test]
        fn never_below_the_floor(steps in proptest::collection::vec((0u64..5000, 0u64..3000), 1..50)) {
            let mut admission = Admission::new(LIMITS);
            for (free, store) in steps {
                admission.handle(space(free, store));
                let (ordinary, urgent) = admits(&admission);
                prop_assert!(!(ordinary && (free < 800 || store > 1600)));
                prop_assert!(!(urgent && (free < 400 || store > 1680)));
                prop_assert!(urgent || !ordinary);
                prop_assert!(ordinary || free < 900 || store > 1500, "refused without need");
            }
        }
    }
}
