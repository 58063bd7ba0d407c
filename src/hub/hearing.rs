//! Which of a gateway's messages are new: a broker can repeat what was said earlier, and an image of a box counts again from
//! where it was taken (design section 12.3). Pure, but for the times that it is given.

use std::collections::{BTreeMap, VecDeque};

use pgw_core::transaction::UnixMillis;
use pgw_core::wire::said::{BootId, Origin};
use serde::{Deserialize, Serialize};

/// Most earlier starts that are remembered.
const MOST_EARLIER: usize = 64;
/// Most topics whose counts are remembered: those of the most lanes, and a few more.
const MOST_TOPICS: usize = 128;

/// What a gateway has said so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hearing {
    /// The newest start.
    present: Option<Start>,
    /// Earlier starts, the newest first.
    earlier: VecDeque<EarlierStart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Start {
    boot: BootId,
    /// When it was last heard, retained messages not counted.
    heard: UnixMillis,
    /// The last count on each topic: retained messages of one topic come after later ones of another, and a broker keeps no
    /// order between topics.
    counts: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EarlierStart {
    boot: BootId,
    /// The highest count of any kind.
    count: u64,
    /// When a later start was first heard.
    ended: UnixMillis,
}

/// What a message is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    /// It is new, and comes from the newest start.
    New,
    /// It is new, but a later start was heard before it: it shows nothing as alive.
    Earlier,
    /// The same, so long after that start should have ended that two machines must have one identity.
    Duplicate,
    /// It was said before.
    Repeated,
}

impl Worth {
    /// It was not said before: a question is answered, whichever start asks.
    #[must_use]
    pub fn is_fresh(self) -> bool {
        self != Self::Repeated
    }
}

impl Hearing {
    /// Takes a message that was verified. `topic` is its topic below the gateway's root; `patience`: for how long messages of an
    /// earlier start may still arrive, and after which a start that is not heard has ended.
    pub fn take(
        &mut self,
        origin: Origin,
        topic: &str,
        retained: bool,
        now: UnixMillis,
        patience: UnixMillis,
    ) -> Worth {
        let Origin { boot, count, .. } = origin;
        if let Some(present) = self.present.as_mut().filter(|present| present.boot == boot) {
            if present.counts.get(topic).is_some_and(|last| count <= *last) {
                return Worth::Repeated;
            }
            if present.counts.len() >= MOST_TOPICS && !present.counts.contains_key(topic) {
                present.counts.pop_first();
            }
            present.counts.insert(topic.to_owned(), count);
            if !retained {
                present.heard = now;
            }
            return Worth::New;
        }
        // It may be weeks old: only a start that speaks takes another's place.
        if retained && self.present.is_some() {
            return Worth::Repeated;
        }
        let silent = self.present.as_ref().is_none_or(|present| now.saturating_sub(present.heard) > patience);
        if let Some(earlier) = self.earlier.iter_mut().find(|earlier| earlier.boot == boot) {
            if count <= earlier.count {
                return Worth::Repeated;
            }
            earlier.count = count;
            if !silent {
                let late = now.saturating_sub(earlier.ended) > patience;
                return if late { Worth::Duplicate } else { Worth::Earlier };
            }
            // The other one was a repetition that this hub did not recognise, or its machine has ended.
            self.earlier.retain(|earlier| earlier.boot != boot);
        }
        self.begin(boot, topic, count, now);
        Worth::New
    }

    /// Another start speaks.
    fn begin(&mut self, boot: BootId, topic: &str, count: u64, now: UnixMillis) {
        if let Some(Start { boot, counts, .. }) = self.present.take() {
            let count = counts.into_values().max().unwrap_or_default();
            self.earlier.push_front(EarlierStart { boot, count, ended: now });
            self.earlier.truncate(MOST_EARLIER);
        }
        let counts = BTreeMap::from([(topic.to_owned(), count)]);
        self.present = Some(Start { boot, heard: now, counts });
    }

    /// Whether this is the start that speaks now.
    #[must_use]
    pub fn is_present(&self, boot: BootId) -> bool {
        self.present.as_ref().is_some_and(|present| present.boot == boot)
    }
}

#[cfg(test)]
mod tests {
    use pgw_core::wire::signature::KeyId;

    use super::*;

    fn say(hearing: &mut Hearing, boot: u8, topic: &str, count: u64, now: UnixMillis) -> Worth {
        hearing.take(Origin { boot: BootId([boot; 8]), count, key: KeyId([0; 8]) }, topic, false, now, 180)
    }

    #[test]
    fn what_was_said_before_is_a_repetition_and_each_topic_counts_alone() {
        let mut hearing = Hearing::default();
        assert_eq!(say(&mut hearing, 1, "health", 5, 0), Worth::New);
        assert_eq!(say(&mut hearing, 1, "health", 5, 0), Worth::Repeated);
        assert_eq!(say(&mut hearing, 1, "health", 4, 0), Worth::Repeated);
        assert_eq!(say(&mut hearing, 1, "status", 2, 0), Worth::New, "retained, and sent earlier");
        assert_eq!(say(&mut hearing, 1, "health", 6, 0), Worth::New);
    }

    #[test]
    fn an_earlier_start_shows_nothing_and_one_that_continues_is_a_duplicate() {
        let mut hearing = Hearing::default();
        say(&mut hearing, 1, "health", 5, 0);
        say(&mut hearing, 1, "status", 9, 0);
        assert_eq!(say(&mut hearing, 2, "status", 1, 100), Worth::New);
        assert_eq!(say(&mut hearing, 1, "health", 10, 200), Worth::Earlier, "it was under way");
        assert_eq!(say(&mut hearing, 1, "health", 10, 400), Worth::Repeated, "by a broker");
        assert_eq!(say(&mut hearing, 1, "health", 9, 400), Worth::Repeated);
        assert_eq!(say(&mut hearing, 2, "status", 2, 400), Worth::New);
        assert_eq!(say(&mut hearing, 1, "health", 11, 400), Worth::Duplicate);
        assert!(hearing.is_present(BootId([2; 8])) && !hearing.is_present(BootId([1; 8])));
    }

    #[test]
    fn a_box_that_restarts_often_is_no_duplicate() {
        let mut hearing = Hearing::default();
        for boot in 0..200 {
            assert_eq!(say(&mut hearing, boot, "status", 1, u64::from(boot)), Worth::New);
        }
        assert_eq!(hearing.earlier.len(), MOST_EARLIER);
    }

    #[test]
    fn what_a_broker_has_kept_or_repeats_shuts_out_no_start_that_speaks() {
        let mut hearing = Hearing::default();
        say(&mut hearing, 2, "status", 3, 0);
        // Kept by the broker, of a start that this hub does not know.
        let kept = Origin { boot: BootId([1; 8]), count: 90, key: KeyId([0; 8]) };
        assert_eq!(hearing.take(kept, "health", true, 10, 180), Worth::Repeated);
        assert_eq!(say(&mut hearing, 2, "health", 4, 20), Worth::New);
        // Repeated by it, as if it were said now.
        assert_eq!(hearing.take(kept, "health", false, 100, 180), Worth::New);
        assert_eq!(say(&mut hearing, 2, "health", 5, 160), Worth::Earlier);
        assert_eq!(say(&mut hearing, 2, "health", 6, 281), Worth::New, "the other one says nothing more");
        assert!(hearing.is_present(BootId([2; 8])));
    }
}
