//! How long senders wait for their answer.

use std::time::{Duration, Instant};

/// Answer times of the last minute, in six slices of ten seconds and buckets of an eighth of an octave.
pub(crate) struct Latency {
    slices: [[u32; BUCKETS]; SLICES],
    current: usize,
    turned: Instant,
}

const SLICES: usize = 6;
const BUCKETS: usize = 256;
const SLICE: Duration = Duration::from_secs(10);

impl Latency {
    pub(crate) fn new(now: Instant) -> Self {
        Self { slices: [[0; BUCKETS]; SLICES], current: 0, turned: now }
    }

    fn turn(&mut self, now: Instant) {
        for _ in 0..SLICES {
            if now.duration_since(self.turned) < SLICE {
                return;
            }
            self.turned += SLICE;
            self.current = (self.current + 1) % SLICES;
            self.slices[self.current] = [0; BUCKETS];
        }
        self.turned = now;
    }

    pub(crate) fn record(&mut self, now: Instant, took: Duration) {
        self.turn(now);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        self.slices[self.current][bucket(micros)] += 1;
    }

    pub(crate) fn p99(&mut self, now: Instant) -> f64 {
        self.turn(now);
        let sums: Vec<u64> =
            (0..BUCKETS).map(|b| self.slices.iter().map(|s| u64::from(s[b])).sum()).collect();
        let total: u64 = sums.iter().sum();
        let mut beyond = total / 100;
        for (bucket, count) in sums.iter().enumerate().rev() {
            if *count > beyond {
                return upper_micros(bucket) / 1e6;
            }
            beyond -= count;
        }
        0.0
    }
}

/// Eight buckets an octave.
fn bucket(micros: u64) -> usize {
    let octave = micros.ilog2();
    let eighth = if octave >= 3 { (micros >> (octave - 3)) & 7 } else { (micros << (3 - octave)) & 7 };
    (octave as usize * 8 + usize::try_from(eighth).unwrap_or(0)).min(BUCKETS - 1)
}

fn upper_micros(bucket: usize) -> f64 {
    let octave = i32::try_from(bucket / 8).unwrap_or(i32::MAX);
    2f64.powi(octave) * (1.0 + f64::from(u32::try_from(bucket % 8 + 1).unwrap_or(8)) / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_of_the_last_minute() {
        let start = Instant::now();
        let mut latency = Latency::new(start);
        assert!(latency.p99(start) < f64::EPSILON);
        for _ in 0..980 {
            latency.record(start, Duration::from_micros(100));
        }
        for _ in 0..20 {
            latency.record(start, Duration::from_millis(10));
        }
        let p99 = latency.p99(start + Duration::from_secs(30));
        assert!((0.010..0.0115).contains(&p99), "{p99}");
        assert!(latency.p99(start + Duration::from_secs(61)) < f64::EPSILON);
    }
}
