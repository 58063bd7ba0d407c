//! A lane whose store has lost a part in the middle: what refills that part, and what would be another history (design
//! section 12.8).

use crate::chain::Through;

/// What the next number of a lane with a hole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// A part of what is missing.
    Fills,
    /// Nothing is missing any more: what comes now is judged again by the line that the store has then.
    Beyond,
    /// Of another history: with it the line would never reach what the store still has.
    Other,
}

/// Compares a number that continues a line with what is missing after that line. `line` and `until` say where each epoch ends,
/// in the order of the line: before the hole, with what is staged, and where the store's line goes on.
#[must_use]
pub fn refill(line: &[Through], until: &[Through], next: &Through) -> Refill {
    if line == until {
        return Refill::Beyond;
    }
    let Some(place) = until.iter().position(|end| end.epoch == next.epoch) else { return Refill::Other };
    let fits = line.get(..place) == until.get(..place)
        && (next.through < until[place].through || *next == until[place]);
    if fits { Refill::Fills } else { Refill::Other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::ChainValue;
    use crate::transaction::Epoch;
    use uuid::Uuid;

    #[test]
    fn only_what_leads_to_the_other_side_fills() {
        let at = |epoch, through, chain| Through {
            epoch: Epoch(Uuid::from_u128(epoch)),
            through,
            chain: ChainValue([chain; 32]),
        };
        let until = [at(1, 5, 5), at(2, 3, 8)];
        for (line, next, expected) in [
            (vec![], at(1, 1, 1), Refill::Fills),
            (vec![at(1, 4, 4)], at(1, 5, 5), Refill::Fills),
            (vec![at(1, 4, 4)], at(1, 5, 9), Refill::Other),
            (vec![at(1, 5, 5)], at(1, 6, 6), Refill::Other),
            (vec![at(1, 4, 4)], at(2, 1, 6), Refill::Other),
            (vec![at(1, 5, 5)], at(2, 1, 6), Refill::Fills),
            (vec![at(1, 5, 5), at(2, 2, 7)], at(2, 3, 8), Refill::Fills),
            (vec![at(1, 5, 5), at(2, 2, 7)], at(2, 3, 9), Refill::Other),
            (vec![at(1, 5, 5)], at(3, 1, 6), Refill::Other),
            (until.to_vec(), at(2, 4, 9), Refill::Beyond),
            (until.to_vec(), at(3, 1, 9), Refill::Beyond),
        ] {
            assert_eq!(refill(&line, &until, &next), expected, "{line:?} {next:?}");
        }
    }
}
