//! Where one transaction is now.
//!
//! The outbox has no index of ids; ids are made in the order of acceptance (UUIDv7), so that a few records found by
//! halving are read, whatever the backlog. A clock that was set back between two acceptances can hide a transaction
//! from the search, never from the lane and position that its `Location` names.

use pgw_core::transaction::{Lane, Position, TransactionId};
use pgw_outbox::{ReadError, Stored};
use serde_json::{Value, json};

use crate::ingest::control::kept::Kept;
use crate::ingest::control::{Entry, State};
use crate::ingest::http::outcome::Problem;

/// Records looked at on both sides of where the id should be: neighbours share a millisecond.
const AROUND: u64 = 32;
/// Records passed over where one cannot be read.
const GAP: u64 = 256;

/// What a `Location` says besides the id.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) lane: Option<Lane>,
    pub(super) position: Option<Position>,
}

impl Hint {
    /// From a query.
    ///
    /// # Errors
    /// [`Problem::BAD_HINT`]: who sends a hint that is none has made a mistake that a search of everything would hide.
    pub(super) fn read(query: &str) -> Result<Self, Problem> {
        let mut hint = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let repeated = match name {
                "lane" => hint.lane.replace(Lane::new(value).map_err(|_| Problem::BAD_HINT)?).is_some(),
                "position" => hint.position.replace(position(value).ok_or(Problem::BAD_HINT)?).is_some(),
                _ => false,
            };
            if repeated {
                return Err(Problem::BAD_HINT);
            }
        }
        Ok(hint)
    }
}

/// Digits alone: no sign, which a query would have to encode.
fn position(text: &str) -> Option<Position> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
        .filter(|position| *position > 0)
}

/// Finds it. Blocking.
///
/// # Errors
/// The store cannot be read now.
pub(super) fn find<K: Kept>(kept: &K, id: TransactionId, hint: &Hint) -> Result<Option<Entry>, String> {
    for lane in kept.lanes() {
        if hint.lane.as_ref().is_some_and(|wanted| *wanted != lane) {
            continue;
        }
        let (first, tail) = (kept.first_retained(&lane).unwrap_or(1), kept.tail(&lane));
        if let Some(position) = hint.position.filter(|position| (first..=tail).contains(position))
            && let Some(stored) = read(kept, &lane, position)?
            && stored.transaction.id == id
        {
            return Ok(Some(entry(kept, lane, &stored)));
        }
        let (mut low, mut high) = (first, tail + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match next_readable(kept, &lane, middle, high)? {
                Some(stored) if stored.transaction.id < id => low = stored.position + 1,
                _ => high = middle,
            }
        }
        let (from, through) = (low.saturating_sub(AROUND).max(first), (low + AROUND).min(tail));
        for position in from..=through {
            if let Some(stored) = read(kept, &lane, position)?
                && stored.transaction.id == id
            {
                return Ok(Some(entry(kept, lane, &stored)));
            }
        }
    }
    Ok(None)
}

fn entry<K: Kept>(kept: &K, lane: Lane, stored: &Stored) -> Entry {
    let confirmed = kept.mark(&lane).map_or(0, |mark| mark.position);
    Entry::stored(lane, stored, confirmed)
}

fn next_readable<K: Kept>(
    kept: &K,
    lane: &Lane,
    from: Position,
    end: Position,
) -> Result<Option<Stored>, String> {
    for position in from..end.min(from + GAP) {
        if let Some(stored) = read(kept, lane, position)? {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

fn read<K: Kept>(kept: &K, lane: &Lane, position: Position) -> Result<Option<Stored>, String> {
    match kept.read(lane, position, 1, 0) {
        Ok(records) => Ok(records.into_iter().next().filter(|stored| stored.position == position)),
        Err(ReadError::Gone { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The answer. `forwarded`: it was published and is not confirmed yet; known only where there is one lane.
pub(super) fn document(entry: &Entry, confirmed: Position, status: &Value) -> Value {
    let one_lane = status["lanes"].as_array().is_some_and(|lanes| lanes.len() == 1);
    let sent = confirmed.saturating_add(status["in_flight"].as_u64().unwrap_or(0));
    let mut document = json!(entry);
    if entry.state == State::Waiting && one_lane && entry.position <= sent {
        document["state"] = json!("forwarded");
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::control::server::tests::Shelf;

    fn id(number: u128) -> TransactionId {
        TransactionId(uuid::Uuid::from_u128(number))
    }

    fn position(shelf: &Shelf, number: u128, hint: &Hint) -> Option<Position> {
        find(shelf, id(number), hint).unwrap().map(|entry| entry.position)
    }

    #[test]
    fn every_one_is_found_with_and_without_a_hint() {
        for count in [0, 1, 2, 3, 100, 1000] {
            let shelf = Shelf::with(count);
            for number in 1..=count {
                assert_eq!(position(&shelf, number.into(), &Hint::default()), Some(number));
                let hint = Hint::read(&format!("lane=clinical&position={number}")).unwrap();
                assert_eq!(position(&shelf, number.into(), &hint), Some(number));
                let wrong = Hint { position: Some(number + 1), ..Hint::default() };
                assert_eq!(
                    position(&shelf, number.into(), &wrong),
                    Some(number),
                    "a wrong hint does no harm"
                );
            }
            assert_eq!(position(&shelf, 0, &Hint::default()), None);
            assert_eq!(position(&shelf, u128::from(count) + 1, &Hint::read("position=1").unwrap()), None);
            assert_eq!(position(&shelf, 1, &Hint::read("lane=other").unwrap()), None);
        }
    }

    #[test]
    fn what_is_no_hint_is_said() {
        for none in ["", "x", "x=1&y", "lanes=/"] {
            assert_eq!(Hint::read(none), Ok(Hint::default()), "{none}");
        }
        assert_eq!(Hint::read("position=18446744073709551615").unwrap().position, Some(u64::MAX));
        for wrong in [
            "lane=/",
            "lane=",
            "lane",
            "lane=a&lane=b",
            "position",
            "position=",
            "position=0",
            "position=-1",
            "position=+1",
            "position=false",
            "position=18446744073709551616",
            "position=1&position=1",
        ] {
            assert_eq!(Hint::read(wrong), Err(Problem::BAD_HINT), "{wrong}");
        }
    }

    #[test]
    fn forwarded_is_said_only_where_it_is_known() {
        let shelf = Shelf::with(3);
        let entry = find(&shelf, id(2), &Hint::default()).unwrap().unwrap();
        let state = |confirmed, status: Value| document(&entry, confirmed, &status)["state"].clone();
        assert_eq!(state(0, json!({"in_flight": 2, "lanes": [{}]})), "forwarded");
        assert_eq!(state(0, json!({"in_flight": 1, "lanes": [{}]})), "waiting");
        assert_eq!(state(0, json!({"in_flight": 2, "lanes": [{}, {}]})), "waiting");
        assert_eq!(state(0, json!({})), "waiting");
    }
}
