//! How much junk is tolerated: from one connection, and in quarantine from one address. Pure.
//!
//! Junk is input that yields no message: noise between frames, and messages that are refused. Beyond its allowance a
//! connection is read more slowly, and TCP slows its sender down; nobody else waits for it. What an address sends
//! beyond its share of the quarantine is refused and counted like the rest, but not quarantined: a flood must not push
//! out what a person should see.

use core::net::IpAddr;
use std::collections::HashMap;

use pgw_core::delivery::Millis;

/// A refused message costs this much besides its bytes.
const REFUSED_BYTES: u64 = 8 * 1024;
/// The junk of one connection that costs no time, and how much more is allowed per second.
const JUNK: Rate = Rate { capacity: 1024 * 1024, per_second: 256 * 1024 };
/// Longest pause for one message or one read.
const PAUSE: Millis = 2_000;

/// A quarantine entry costs this much besides its bytes.
const ENTRY_BYTES: u64 = 256 * 1024;
/// One address: 128 small entries at once, then one a second; or one of 20 MB in 80 seconds.
const KEPT: Rate = Rate { capacity: 32 * 1024 * 1024, per_second: 256 * 1024 };
/// Addresses that are counted separately; the others share one quota.
const ADDRESSES: usize = 256;

/// The size of an allowance, and how fast it is refilled.
#[derive(Debug, Clone, Copy)]
struct Rate {
    capacity: u64,
    per_second: u64,
}

/// What is left of an allowance; below zero if more was spent.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: i64,
    at: Millis,
}

impl Bucket {
    fn full(rate: Rate, now: Millis) -> Self {
        Self { left: rate.capacity.cast_signed(), at: now }
    }

    fn refill(&mut self, rate: Rate, now: Millis) {
        let back = now.saturating_sub(self.at).saturating_mul(rate.per_second) / 1000;
        let capacity = rate.capacity.cast_signed();
        self.left = self.left.saturating_add(i64::try_from(back).unwrap_or(i64::MAX)).min(capacity);
        self.at = self.at.max(now);
    }

    fn is_full(&mut self, rate: Rate, now: Millis) -> bool {
        self.refill(rate, now);
        self.left == rate.capacity.cast_signed()
    }
}

/// Slows one connection down according to its junk.
#[derive(Debug)]
pub struct AbuseLimiter(Bucket);

impl AbuseLimiter {
    /// No junk yet.
    #[must_use]
    pub fn new(now: Millis) -> Self {
        Self(Bucket::full(JUNK, now))
    }

    /// This many bytes belonged to no message. Returns how long to wait before the next read.
    pub fn noise(&mut self, bytes: u64, now: Millis) -> Millis {
        self.0.refill(JUNK, now);
        let spent = i64::try_from(bytes).unwrap_or(i64::MAX);
        // What the longest pause would not refill is forgiven: one large message must not stop a sender for minutes.
        let most = JUNK.per_second * PAUSE / 1000;
        self.0.left = self.0.left.saturating_sub(spent).max(-most.cast_signed());
        let owed = u64::try_from(-self.0.left).unwrap_or(0);
        owed * 1000 / JUNK.per_second
    }

    /// A message of this many bytes was refused. Returns how long to wait before the next read.
    pub fn refused(&mut self, bytes: u64, now: Millis) -> Millis {
        self.noise(bytes.saturating_add(REFUSED_BYTES), now)
    }
}

/// Each address's share of the quarantine.
#[derive(Debug)]
pub struct QuarantineQuota {
    addresses: HashMap<IpAddr, Bucket>,
    others: Bucket,
}

impl QuarantineQuota {
    /// Nothing kept yet.
    #[must_use]
    pub fn new(now: Millis) -> Self {
        Self { addresses: HashMap::new(), others: Bucket::full(KEPT, now) }
    }

    /// Whether a refused message of this address may be quarantined; if so, it is counted.
    pub fn take(&mut self, address: IpAddr, bytes: u64, now: Millis) -> bool {
        let address = address.to_canonical();
        if !self.addresses.contains_key(&address) {
            if self.addresses.len() >= ADDRESSES {
                self.addresses.retain(|_, bucket| !bucket.is_full(KEPT, now));
            }
            if self.addresses.len() < ADDRESSES {
                self.addresses.insert(address, Bucket::full(KEPT, now));
            }
        }
        let bucket = self.addresses.get_mut(&address).unwrap_or(&mut self.others);
        bucket.refill(KEPT, now);
        // A full quota covers the largest possible body.
        let cost = bytes.saturating_add(ENTRY_BYTES).min(KEPT.capacity).cast_signed();
        let enough = bucket.left >= cost;
        if enough {
            bucket.left -= cost;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn junk_slows_its_own_connection_down() {
        let mut limiter = AbuseLimiter::new(0);
        assert_eq!(limiter.noise(1024 * 1024, 0), 0, "that much costs nothing");
        assert_eq!(limiter.noise(64 * 1024, 0), 250);
        assert_eq!(limiter.noise(0, 250), 0);
        assert_eq!(limiter.refused(24 * 1024, 250), 125);
        assert_eq!(limiter.refused(u64::MAX, 250), 2_000, "never longer");
        assert_eq!(limiter.noise(0, 3_000), 0);
        let (mut now, mut refused) = (10_000, 0);
        while now < 70_000 {
            now += limiter.refused(10, now).max(1);
            refused += 1;
        }
        assert!((1_900..2_300).contains(&refused), "about 32 a second and the first: {refused}");
    }

    #[test]
    fn an_address_fills_its_own_share_only() {
        let mut kept = QuarantineQuota::new(0);
        let burst = (0..1000).filter(|_| kept.take(address(1), 0, 0)).count();
        assert_eq!(burst, 128);
        assert!(kept.take(address(2), 20_000_000, 0));
        assert!(!kept.take(address(2), 20_000_000, 20_000));
        assert!(kept.take(address(2), 20_000_000, 30_000));
        assert!(!kept.take(address(2), 20_000_000, 100_000));
        let later = (0..60).filter(|second| kept.take(address(1), 0, 100 + second * 1000)).count();
        assert!((59..=60).contains(&later), "one a second: {later}");
        assert!(kept.take(address(3), u64::MAX, 0), "a full quota takes anything once");
        assert!(!kept.take("::ffff:0.0.0.3".parse().unwrap(), 0, 0), "the same address, written otherwise");
    }

    #[test]
    fn addresses_beyond_the_table_share_and_the_table_is_cleared() {
        let mut kept = QuarantineQuota::new(0);
        for n in 0..256 {
            assert!(kept.take(address(n), 0, 0));
        }
        let shared = (1000..2000).filter(|n| kept.take(address(*n), 0, 0)).count();
        assert_eq!((shared, kept.addresses.len()), (128, 256));
        assert!(kept.take(address(5000), 0, 200_000));
        assert_eq!(kept.addresses.len(), 1, "those that have sent nothing for long are forgotten");
    }
}
