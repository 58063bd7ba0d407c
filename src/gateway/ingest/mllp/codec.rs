//! MLLP framing without I/O: bytes in, frames out (design section 8).
//!
//! A frame is `0B` message `1C 0D`. The decoder tolerates what real senders get wrong: a message without its last CR,
//! `1C` without `0D`, noise between frames, a second `0B MSH` in a frame that its sender had given up. A `1C` followed
//! by anything but CR, LF or `0B` belongs to the message: ending the frame there would store a part of a message and
//! acknowledge it as the whole. Memory is bounded by the frame limit; a larger frame is skipped to its end, and only
//! its first [`HEAD_BYTES`] are kept, so that it can be refused by name.

use std::collections::VecDeque;

use bytes::Bytes;
use pgw_core::delivery::Millis;
use pgw_core::transaction::Body;

use crate::ingest::hl7;
use crate::ingest::hl7::Beginning;

/// Start of a frame: VT.
const START: u8 = 0x0b;
/// End of a frame: FS, then CR.
const END: u8 = 0x1c;

/// How much of an oversized frame is kept: enough for any real MSH.
pub const HEAD_BYTES: usize = 4096;

/// How long to wait after a `1C` before the frame ends without the CR.
pub const LONE_END_MILLIS: Millis = 100;

/// Frames up to this size are copied to a buffer of their exact size; larger ones pass on their buffer.
const COPY_BYTES: usize = 64 * 1024;

/// Capacity that a connection keeps between frames.
const KEEP_CAPACITY: usize = 8 * 1024;

/// The output of the decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A complete message as sent, without its frame.
    Frame(Body),
    /// A frame larger than the limit, skipped to its end.
    TooLarge {
        /// Its first [`HEAD_BYTES`] bytes.
        head: Body,
        /// Its full size.
        bytes: u64,
    },
}

/// The sender stayed inside a frame for longer than allowed: the connection has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame did not end in time")]
pub struct FrameTimedOut;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Outside,
    Inside,
    /// After a `1C`: the next byte, the clock or the end of the connection decides what it was.
    Ended {
        at: Millis,
    },
}

/// Decodes one connection's bytes.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    timeout: Millis,
    state: Framing,
    since: Millis,
    frame: Vec<u8>,
    total: u64,
    noise: u64,
    abandoned: u64,
}

impl Decoder {
    /// A decoder that refuses frames over `limit` bytes and frames that take longer than `timeout`.
    #[must_use]
    pub fn new(limit: usize, timeout: Millis) -> Self {
        Self {
            limit,
            timeout,
            state: Framing::Outside,
            since: 0,
            frame: Vec::new(),
            total: 0,
            noise: 0,
            abandoned: 0,
        }
    }

    /// Takes what was read; appends complete frames to `events`.
    pub fn handle(&mut self, input: &[u8], now: Millis, events: &mut VecDeque<Event>) {
        let mut rest = input;
        while let Some(&first) = rest.first() {
            match self.state {
                Framing::Outside => {
                    let start = rest.iter().position(|b| *b == START);
                    let skipped = &rest[..start.unwrap_or(rest.len())];
                    // Careful senders put line ends between frames; they are not noise.
                    self.noise += skipped.iter().filter(|b| !matches!(b, b'\r' | b'\n')).count() as u64;
                    rest = &rest[skipped.len()..];
                    if start.is_some() {
                        rest = &rest[1..];
                        self.state = Framing::Inside;
                        self.since = now;
                    }
                }
                Framing::Inside => {
                    let end = rest.iter().position(|b| *b == END);
                    self.keep(&rest[..end.unwrap_or(rest.len())]);
                    rest = &rest[end.map_or(rest.len(), |at| at + 1)..];
                    if end.is_some() {
                        self.state = Framing::Ended { at: now };
                    }
                }
                Framing::Ended { .. } if matches!(first, b'\r' | b'\n') => {
                    rest = &rest[1..];
                    self.complete(events);
                }
                Framing::Ended { .. } if first == START => self.complete(events),
                Framing::Ended { .. } => {
                    self.keep(&[END]);
                    self.state = Framing::Inside;
                }
            }
        }
    }

    /// When [`Decoder::tick`] is due if nothing is read before; `None`: never.
    #[must_use]
    pub fn deadline(&self) -> Option<Millis> {
        match self.state {
            Framing::Outside => None,
            Framing::Inside => Some(self.since.saturating_add(self.timeout)),
            Framing::Ended { at } => Some(at.saturating_add(LONE_END_MILLIS)),
        }
    }

    /// Time has passed with nothing to read.
    ///
    /// # Errors
    /// [`FrameTimedOut`].
    pub fn tick(&mut self, now: Millis, events: &mut VecDeque<Event>) -> Result<(), FrameTimedOut> {
        match (self.state, self.deadline()) {
            (Framing::Ended { .. }, Some(deadline)) if now >= deadline => self.complete(events),
            (Framing::Inside, Some(deadline)) if now >= deadline => return Err(FrameTimedOut),
            _ => {}
        }
        Ok(())
    }

    /// We deliberately read nothing for a while: the sender's time inside its frame starts again.
    pub fn resumed(&mut self, now: Millis) {
        self.since = now;
        if let Framing::Ended { at } = &mut self.state {
            *at = now;
        }
    }

    /// The connection has ended. Returns whether a frame was unfinished; it was never acknowledged.
    pub fn finish(&mut self, events: &mut VecDeque<Event>) -> bool {
        match self.state {
            Framing::Outside => false,
            Framing::Inside => {
                self.reset();
                true
            }
            Framing::Ended { .. } => {
                self.complete(events);
                false
            }
        }
    }

    /// Bytes of memory held for the frame under way.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.frame.capacity()
    }

    /// Bytes skipped between frames since the last call.
    pub fn take_noise(&mut self) -> u64 {
        std::mem::take(&mut self.noise)
    }

    /// Frames since the last call that their sender began again with a second `0B MSH`.
    pub fn take_abandoned(&mut self) -> u64 {
        std::mem::take(&mut self.abandoned)
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if self.total <= self.limit as u64 {
            if self.frame.capacity() - self.frame.len() < bytes.len() {
                // Grows by half and never past the limit: what is held is what was requested from the budget.
                let more = (self.frame.len() / 2).min(self.limit - self.frame.len()).max(bytes.len());
                self.frame.reserve_exact(more);
            }
            self.frame.extend_from_slice(bytes);
            return;
        }
        let wanted = HEAD_BYTES.saturating_sub(self.frame.len()).min(bytes.len());
        self.frame.extend_from_slice(&bytes[..wanted]);
        self.frame.truncate(HEAD_BYTES);
        self.frame.shrink_to(HEAD_BYTES);
    }

    fn complete(&mut self, events: &mut VecDeque<Event>) {
        let total = self.total;
        if total > self.limit as u64 {
            events.push_back(Event::TooLarge { head: Body::new(self.take_frame()), bytes: total });
        } else {
            if let Some(again) = restart(&self.frame) {
                self.frame.drain(..=again);
                self.abandoned += 1;
            }
            events.push_back(Event::Frame(Body::new(self.take_frame())));
        }
        self.reset();
    }

    fn take_frame(&mut self) -> Bytes {
        if self.frame.len() <= COPY_BYTES {
            Bytes::copy_from_slice(&self.frame)
        } else {
            Bytes::from(std::mem::take(&mut self.frame))
        }
    }

    fn reset(&mut self) {
        self.state = Framing::Outside;
        self.total = 0;
        self.frame.clear();
        self.frame.shrink_to(KEEP_CAPACITY);
    }
}

/// Where a frame was begun again, if it was: the last start byte followed by a message or a batch. One pass is enough:
/// if only skippable bytes lie before a start that was checked, the result is the same.
fn restart(frame: &[u8]) -> Option<usize> {
    let mut checked = frame.len();
    while let Some(at) = frame[..checked].iter().rposition(|byte| *byte == START) {
        let (after, between) = (&frame[at + 1..], &frame[at + 1..checked]);
        let same = checked < frame.len() && between.iter().all(|byte| hl7::may_precede(*byte));
        if !same && Beginning::of(after) != Beginning::Other {
            return Some(at);
        }
        checked = at;
    }
    None
}

/// Appends `message` in its frame.
pub fn encode(message: &[u8], out: &mut Vec<u8>) {
    out.reserve(message.len() + 3);
    out.push(START);
    out.extend_from_slice(message);
    out.extend_from_slice(&[END, b'\r']);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(text: &[u8]) -> Event {
        Event::Frame(Body::new(text.to_vec()))
    }

    fn decode(limit: usize, chunks: &[&[u8]]) -> (Vec<Event>, Decoder) {
        let mut decoder = Decoder::new(limit, 30_000);
        let mut events = VecDeque::new();
        for chunk in chunks {
            decoder.handle(chunk, 0, &mut events);
        }
        (events.into(), decoder)
    }

    #[test]
    fn plain_and_pipelined_frames() {
        let (events, _) = decode(100, &[b"\x0bMSH|a\r\x1c\r\x0bMSH|b\x1c\r"]);
        assert_eq!(events, [frame(b"MSH|a\r"), frame(b"MSH|b")]);
    }

    #[test]
    fn noise_is_counted_and_line_ends_are_not() {
        let (events, mut decoder) = decode(100, &[b"GET / \r\n\x0bMSH|a\x1c\r\n\x0bMSH|b\x1c\rxx"]);
        assert_eq!(events, [frame(b"MSH|a"), frame(b"MSH|b")]);
        assert_eq!(decoder.take_noise(), 8);
        assert_eq!(decoder.take_noise(), 0);
    }

    #[test]
    fn an_end_without_cr_ends_by_the_next_start_the_clock_or_the_end_of_the_connection() {
        let (events, mut decoder) = decode(100, &[b"\x0bMSH|a\x1c\x0bMSH|b\x1c"]);
        assert_eq!(events, [frame(b"MSH|a")]);
        assert_eq!(decoder.deadline(), Some(LONE_END_MILLIS));
        let mut events = VecDeque::new();
        decoder.tick(LONE_END_MILLIS - 1, &mut events).unwrap();
        assert!(events.is_empty());
        decoder.tick(LONE_END_MILLIS, &mut events).unwrap();
        assert_eq!(events, [frame(b"MSH|b")]);
        // The CR that comes late is neither noise nor a frame.
        decoder.handle(b"\r\x0bMSH|c\x1c", 200, &mut events);
        assert!(!decoder.finish(&mut events));
        assert_eq!(events, [frame(b"MSH|b"), frame(b"MSH|c")]);
        assert_eq!(decoder.take_noise(), 0);
    }

    #[test]
    fn an_end_byte_within_the_message_does_not_cut_it_off() {
        let (events, _) = decode(100, &[b"\x0bMSH|a\x1c", b"more\x1c\r"]);
        assert_eq!(events, [frame(b"MSH|a\x1cmore")]);
    }

    #[test]
    fn a_frame_begun_again_counts_from_its_second_start() {
        let (events, mut decoder) =
            decode(100, &[b"\x0bMSH|half\x0bMSH|whole\x1c\r\x0bMSH|tab\x0bbed\x1c\r"]);
        assert_eq!(events, [frame(b"MSH|whole"), frame(b"MSH|tab\x0bbed")]);
        assert_eq!(decoder.take_abandoned(), 1);
        let (events, mut decoder) =
            decode(100, &[b"\x0bMSH|half\x0b\r\nMSH|whole\x1c\r\x0bMSH|half\x0bFHS|all\x1c\r"]);
        assert_eq!(events, [frame(b"\r\nMSH|whole"), frame(b"FHS|all")]);
        assert_eq!(decoder.take_abandoned(), 2);
    }

    #[test]
    fn many_starts_in_one_frame_take_one_pass() {
        let junk = [START, b' ', START, 0xef, b'x'].repeat(400_000);
        let (events, decoder) = decode(4_000_000, &[&[START], &junk, b"\x1c\r"]);
        assert_eq!((events.len(), decoder.abandoned), (1, 0));
        let starts = vec![START; 1_000_000];
        let (events, decoder) = decode(4_000_000, &[&starts, b"MSH|a\x1c\r"]);
        assert_eq!((events, decoder.abandoned), (vec![frame(b"MSH|a")], 1));
    }

    #[test]
    fn too_large_is_skipped_without_being_held() {
        let mut decoder = Decoder::new(10_000, 30_000);
        let mut events = VecDeque::new();
        decoder.handle(b"\x0bMSH|", 0, &mut events);
        for _ in 0..1000 {
            decoder.handle(&[b'x'; 1000], 0, &mut events);
            assert!(decoder.held_bytes() <= 20_000, "{}", decoder.held_bytes());
        }
        decoder.handle(b"\x1c\r\x0bMSH|next\x1c\r", 0, &mut events);
        let Some(Event::TooLarge { head, bytes }) = events.pop_front() else { panic!("not refused") };
        assert_eq!((head.len(), bytes), (HEAD_BYTES, 1_000_004));
        assert!(head.as_bytes().starts_with(b"MSH|x"));
        assert_eq!(events.pop_front(), Some(frame(b"MSH|next")));
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        let (events, _) = decode(5, &[b"\x0b12345\x1c\r\x0b123456\x1c\r"]);
        assert_eq!(events, [frame(b"12345"), Event::TooLarge { head: Body::new(&b"123456"[..]), bytes: 6 }]);
    }

    #[test]
    fn a_slow_frame_times_out_and_an_idle_connection_does_not() {
        let mut decoder = Decoder::new(100, 30_000);
        let mut events = VecDeque::new();
        assert_eq!(decoder.deadline(), None);
        assert_eq!(decoder.tick(u64::MAX, &mut events), Ok(()));
        decoder.handle(b"\x0bMSH|", 1_000, &mut events);
        decoder.handle(b"a", 30_000, &mut events);
        assert_eq!(decoder.tick(30_999, &mut events), Ok(()));
        assert_eq!(decoder.tick(31_000, &mut events), Err(FrameTimedOut));
        decoder.resumed(31_000);
        assert_eq!(decoder.tick(31_000, &mut events), Ok(()), "our own pause is not the sender's fault");
        assert!(decoder.finish(&mut events));
        assert!(events.is_empty());
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(
            prop_oneof![
                3 => proptest::sample::select(vec![START, END, b'\r', b'\n', b'M', b'S', b'H', b'|']),
                1 => any::<u8>(),
            ],
            0..400,
        )
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn any_chunking_gives_the_same_frames(
            input in bytes(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
            limit in 1usize..64,
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let chunks: Vec<_> = cuts.windows(2).map(|w| &input[w[0]..w[1]]).collect();
            let (whole, mut a) = decode(limit, &[&input]);
            let (chunked, mut b) = decode(limit, &chunks);
            prop_assert_eq!(&whole, &chunked);
            prop_assert_eq!((a.take_noise(), a.take_abandoned()), (b.take_noise(), b.take_abandoned()));
            let (mut last_a, mut last_b) = (VecDeque::new(), VecDeque::new());
            prop_assert_eq!(a.finish(&mut last_a), b.finish(&mut last_b));
            prop_assert_eq!(last_a, last_b);
            for event in whole {
                if let Event::Frame(body) = event {
                    prop_assert!(body.len() <= limit);
                }
            }
        }

        #[test]
        fn what_was_encoded_comes_back(messages in proptest::collection::vec("MSH[a-zA-Z|^\r]{0,200}", 0..8)) {
            let mut wire = Vec::new();
            for message in &messages {
                encode(message.as_bytes(), &mut wire);
            }
            let (events, mut decoder) = decode(1000, &[&wire]);
            let expected: Vec<_> = messages.iter().map(|m| frame(m.as_bytes())).collect();
            prop_assert_eq!(events, expected);
            prop_assert_eq!(decoder.take_noise(), 0);
        }
    }
}
