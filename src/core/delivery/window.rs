//! The records under way, beyond the watermark, and how many more may follow.

use std::collections::VecDeque;

use super::{Limits, Millis};
use crate::chain::ChainValue;
use crate::transaction::Sequence;

/// Bytes under way on a link whose rate is not known yet (section 6: 16-64 KiB, a ping must not wait behind it).
const UNMEASURED_BYTES: u64 = 64 * 1024;
/// Bytes under way that even the slowest link gets.
const LEAST_BYTES: u64 = 16 * 1024;
/// A measurement of the rate is taken over at least this long, pauses not counted,
const MEASURE: Millis = 100;
/// or over this many bytes: a link that takes them sooner is fast.
const MEASURE_BYTES: u64 = 1024 * 1024;
/// A link may have what it carries in this time under way.
const FILL: Millis = 1_000;

/// The facts of a sent record that a receipt is checked with, without reading it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    bytes: u64,
    chain: ChainValue,
}

/// The go-back-N window. A rewind keeps what is known of the records: a receipt for them may come before they
/// are sent again, and then needs no read from disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Window {
    /// Records after `confirmed`, in order; at least through `next - 1`.
    known: VecDeque<Sent>,
    confirmed: Sequence,
    next: Sequence,
    /// Bytes of the numbers between `confirmed` and `next`.
    bytes: u64,
    /// Messages allowed now.
    size: u32,
    most: u32,
    most_bytes: u64,
    /// Records confirmed since the window grew last: a window's worth is a round trip.
    clean: u32,
    rate: Rate,
}

/// Bytes that the broker takes in a second, measured while it was kept busy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Rate {
    /// When the measurement began; every pause moves it later.
    since: Millis,
    /// When the broker last took something: a pause may have begun then.
    last: Millis,
    taken: u64,
    bytes_per_second: Option<u64>,
}

impl Window {
    pub(super) fn new(limits: &Limits, confirmed: Sequence) -> Self {
        let most = limits.window.max(1);
        Self {
            known: VecDeque::new(),
            confirmed,
            next: confirmed.saturating_add(1),
            bytes: 0,
            size: most,
            most,
            most_bytes: limits.window_bytes,
            clean: 0,
            rate: Rate::default(),
        }
    }

    /// The next number to send.
    pub(super) fn next(&self) -> Sequence {
        self.next
    }

    pub(super) fn in_flight(&self) -> u32 {
        u32::try_from(self.next - 1 - self.confirmed).unwrap_or(u32::MAX)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How many more bytes may be sent now.
    pub(super) fn free_bytes(&self) -> u64 {
        self.byte_limit().saturating_sub(self.bytes)
    }

    /// Whether a record of this size may be sent now. A single one always may, however large.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        self.in_flight() == 0 || bytes <= self.free_bytes()
    }

    fn byte_limit(&self) -> u64 {
        let wanted = match self.rate.bytes_per_second {
            None => UNMEASURED_BYTES,
            Some(rate) => (rate.saturating_mul(FILL) / 1_000).max(LEAST_BYTES),
        };
        wanted.min(self.most_bytes)
    }

    fn index(&self, sequence: Sequence) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.confirmed)?.checked_sub(1)?).ok()
    }

    /// Chain value of a record after the watermark, if it was sent since the watermark was there.
    pub(super) fn chain(&self, sequence: Sequence) -> Option<ChainValue> {
        self.known.get(self.index(sequence)?).map(|sent| sent.chain)
    }

    /// The record at `next` was sent.
    pub(super) fn push(&mut self, bytes: u64, chain: ChainValue) {
        let sent = Sent { bytes, chain };
        match self.index(self.next).and_then(|i| self.known.get_mut(i)) {
            Some(known) => *known = sent,
            None => self.known.push_back(sent),
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.next += 1;
    }

    /// The watermark moves forward to `sequence`, which may be beyond the last sent record.
    pub(super) fn confirm(&mut self, sequence: Sequence) {
        while self.confirmed < sequence {
            self.confirmed += 1;
            match self.known.pop_front() {
                Some(sent) if self.confirmed < self.next => {
                    self.bytes = self.bytes.saturating_sub(sent.bytes)
                }
                Some(_) => {}
                None => self.confirmed = sequence,
            }
            self.clean = self.clean.saturating_add(1);
        }
        self.next = self.next.max(self.confirmed.saturating_add(1));
        if self.clean >= self.size && self.size < self.most {
            self.size += 1;
            self.clean = 0;
        }
        self.clean = self.clean.min(self.size);
    }

    /// Everything after the watermark will be sent again.
    pub(super) fn rewind(&mut self) {
        self.next = self.confirmed.saturating_add(1);
        self.bytes = 0;
        self.clean = 0;
    }

    /// The watermark or the numbering has changed: what was known no longer holds.
    pub(super) fn reset(&mut self, confirmed: Sequence) {
        self.known.clear();
        self.confirmed = confirmed;
        self.rewind();
    }

    /// Messages were lost on the way: send fewer at a time.
    pub(super) fn halve(&mut self) {
        self.size = (self.size / 2).max(1);
        self.clean = 0;
    }

    /// Traffic begins on a quiet link: the pause before it does not count. On a fast link every burst ends in one, and
    /// a measurement that restarted each time would never finish.
    pub(super) fn busy(&mut self, now: Millis) {
        self.rate.since = self.rate.since.saturating_add(now.saturating_sub(self.rate.last));
        self.rate.last = now;
    }

    /// The broker has taken a record.
    pub(super) fn taken(&mut self, sequence: Sequence, now: Millis) {
        let bytes = self.index(sequence).and_then(|i| self.known.get(i)).map_or(0, |sent| sent.bytes);
        let rate = &mut self.rate;
        rate.taken = rate.taken.saturating_add(bytes);
        rate.last = now;
        let took = now.saturating_sub(rate.since);
        if (took >= MEASURE || rate.taken >= MEASURE_BYTES) && rate.taken > 0 {
            let measured = rate.taken.saturating_mul(1_000) / took.max(1);
            let before = rate.bytes_per_second.unwrap_or(measured);
            rate.bytes_per_second = Some((before / 2).saturating_add(measured / 2).max(1));
            (rate.since, rate.taken) = (now, 0);
        }
    }

    /// How long the broker may take for the bytes under way, from the measured rate; `None`: not measured.
    pub(super) fn patience(&self) -> Option<Millis> {
        let rate = self.rate.bytes_per_second?;
        Some(self.bytes.saturating_mul(4_000) / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(window: u32, window_bytes: u64) -> Limits {
        Limits { window, window_bytes, receipt_timeout: 1, stall_timeout: 1, confirm_on_puback: false }
    }

    const CHAIN: ChainValue = ChainValue([7; 32]);

    #[test]
    fn bytes_are_those_between_watermark_and_next() {
        let mut window = Window::new(&limits(8, 1_000), 10);
        for bytes in [100, 200, 300] {
            window.push(bytes, CHAIN);
        }
        assert_eq!((window.in_flight(), window.bytes(), window.next()), (3, 600, 14));
        window.confirm(11);
        assert_eq!((window.in_flight(), window.bytes()), (2, 500));
        window.rewind();
        assert_eq!((window.in_flight(), window.bytes(), window.next()), (0, 0, 12));
        assert_eq!(window.chain(13), Some(CHAIN), "a rewind forgets no chain value");
        window.push(200, CHAIN);
        window.confirm(13);
        assert_eq!((window.in_flight(), window.bytes(), window.next()), (0, 0, 14));
        window.confirm(99);
        assert_eq!((window.in_flight(), window.next(), window.chain(99)), (0, 100, None));
    }

    #[test]
    fn a_gap_halves_and_a_clean_round_trip_adds_one() {
        let mut window = Window::new(&limits(8, 1_000), 0);
        window.halve();
        assert_eq!(window.size(), 4);
        for sequence in 1..=4 {
            window.push(1, CHAIN);
            window.confirm(sequence);
        }
        assert_eq!(window.size(), 5);
        for sequence in 5..=100 {
            window.push(1, CHAIN);
            window.confirm(sequence);
        }
        assert_eq!(window.size(), 8, "never beyond the limit");
        for _ in 0..9 {
            window.halve();
        }
        assert_eq!(window.size(), 1, "never none");
    }

    #[test]
    fn a_slow_link_gets_few_bytes_and_a_long_patience() {
        let mut window = Window::new(&limits(1_000, 10_000_000), 0);
        assert_eq!(window.free_bytes(), UNMEASURED_BYTES);
        window.busy(0);
        window.push(8_000, CHAIN);
        window.taken(1, 1_000);
        assert_eq!(window.free_bytes(), LEAST_BYTES - 8_000);
        assert_eq!(window.patience(), Some(4_000), "four times 8,000 bytes at 8,000 a second");
        let mut fast = Window::new(&limits(1_000, 1_000_000), 0);
        fast.push(900_000, CHAIN);
        fast.taken(1, 100);
        assert_eq!(fast.free_bytes(), 100_000, "the configured limit holds");
    }

    #[test]
    fn a_fast_link_is_measured_although_every_burst_ends_in_a_pause() {
        let mut window = Window::new(&limits(1_000, 10_000_000), 0);
        let mut now = 0;
        for burst in 0..20 {
            // 40 records of 1,500 bytes in 2 ms, then 50 ms of nothing.
            window.busy(now);
            for _ in 0..40 {
                window.push(1_500, CHAIN);
            }
            now += 2;
            for sequence in burst * 40 + 1..=burst * 40 + 40 {
                window.taken(sequence, now);
            }
            window.confirm(burst * 40 + 40);
            now += 50;
        }
        // 30 MB a second while it was busy: a second's worth may be under way, up to the configured limit.
        assert_eq!(window.free_bytes(), 10_000_000);
    }

    #[test]
    fn a_record_larger_than_the_window_goes_alone() {
        let mut window = Window::new(&limits(8, 1_000), 0);
        assert!(window.fits(5_000));
        window.push(5_000, CHAIN);
        assert!(!window.fits(1));
        window.confirm(1);
        assert!(window.fits(1));
    }
}
