//! Finds where a transaction is now.
//!
//! The outbox has no index of ids. Ids are made in the order of acceptance (UUIDv7), so a binary search finds them
//! with a few reads, whatever the backlog. A clock that was set back between two acceptances can hide a transaction
//! from the search, but never from the lane and position in its `Location`.

use pgw_core::transaction::{Lane, Position, TransactionId};
use pgw_outbox::{Outbox, ReadError, Stored};
use serde_json::{Value, json};

use crate::ingest::http::outcome::Problem;
use crate::listing;
use crate::listing::{ListedTransaction, TransactionState};

/// Records read on both sides of where the id should be: neighbours share a millisecond.
const AROUND: u64 = 32;
/// Records skipped if one cannot be read.
const GAP: u64 = 256;

/// What a `Location` holds besides the id.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) lane: Option<Lane>,
    pub(super) position: Option<Position>,
}

impl Hint {
    /// From a query.
    ///
    /// # Errors
    /// [`Problem::BAD_HINT`]: a wrong hint is a client's mistake that a full search would hide.
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

/// Digits only: no sign, which a query would have to encode.
fn position(text: &str) -> Option<Position> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
        .filter(|position| *position > 0)
}

/// Finds the transaction. Blocking.
///
/// # Errors
/// The store cannot be read now.
pub(super) fn find(
    outbox: &Outbox,
    id: TransactionId,
    hint: &Hint,
) -> Result<Option<ListedTransaction>, ReadError> {
    for lane in listing::lanes(outbox) {
        if hint.lane.as_ref().is_some_and(|wanted| *wanted != lane) {
            continue;
        }
        let (first, tail) = (outbox.first_retained(&lane).unwrap_or(1), listing::tail(outbox, &lane));
        if let Some(position) = hint.position.filter(|position| (first..=tail).contains(position))
            && let Some(stored) = read(outbox, &lane, position)?
            && stored.transaction.id == id
        {
            return Ok(entry(outbox, lane, &stored));
        }
        let (mut low, mut high) = (first, tail + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match next_readable(outbox, &lane, middle, high)? {
                Some(stored) if stored.transaction.id < id => low = stored.position + 1,
                _ => high = middle,
            }
        }
        let (from, through) = (low.saturating_sub(AROUND).max(first), (low + AROUND).min(tail));
        for position in from..=through {
            if let Some(stored) = read(outbox, &lane, position)?
                && stored.transaction.id == id
            {
                return Ok(entry(outbox, lane, &stored));
            }
        }
    }
    Ok(None)
}

fn entry(outbox: &Outbox, lane: Lane, stored: &Stored) -> Option<ListedTransaction> {
    let (numbering, confirmed) = (outbox.numbering(&lane)?, listing::confirmed(outbox, &lane));
    Some(ListedTransaction::stored(lane, stored, &numbering, confirmed))
}

fn next_readable(
    outbox: &Outbox,
    lane: &Lane,
    from: Position,
    end: Position,
) -> Result<Option<Stored>, ReadError> {
    for position in from..end.min(from + GAP) {
        if let Some(stored) = read(outbox, lane, position)? {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

fn read(outbox: &Outbox, lane: &Lane, position: Position) -> Result<Option<Stored>, ReadError> {
    match outbox.read(lane, position, 1, 0) {
        Ok(records) => Ok(records.into_iter().next().filter(|stored| stored.position == position)),
        Err(ReadError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The answer. `forwarded`: published and not confirmed yet; known only if there is one lane.
pub(super) fn document(entry: &ListedTransaction, confirmed: Position, status: &Value) -> Value {
    let one_lane = status["lanes"].as_array().is_some_and(|lanes| lanes.len() == 1);
    let sent = confirmed.saturating_add(status["in_flight"].as_u64().unwrap_or(0));
    let mut document = json!(entry);
    if entry.state == TransactionState::Waiting && one_lane && entry.position <= sent {
        document["state"] = json!("forwarded");
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::store_for_tests::Store;

    fn position(store: &Store, id: TransactionId, hint: &Hint) -> Option<Position> {
        find(&store.outbox, id, hint).unwrap().map(|entry| entry.position)
    }

    #[test]
    fn every_one_is_found_with_and_without_a_hint() {
        for count in [0, 1, 2, 3, 100, 1000] {
            let store = Store::with(count);
            for number in 1..=count {
                let id = store.record(number).transaction.id;
                assert_eq!(position(&store, id, &Hint::default()), Some(number));
                let hint = Hint::read(&format!("lane=clinical&position={number}")).unwrap();
                assert_eq!(position(&store, id, &hint), Some(number));
                let wrong = Hint { position: Some(number + 1), ..Hint::default() };
                assert_eq!(position(&store, id, &wrong), Some(number), "a wrong hint does no harm");
            }
            let [none, last] = [uuid::Uuid::nil(), uuid::Uuid::max()].map(TransactionId);
            assert_eq!(position(&store, none, &Hint::default()), None);
            assert_eq!(position(&store, last, &Hint::read("position=1").unwrap()), None);
            if count > 0 {
                let first = store.record(1).transaction.id;
                assert_eq!(position(&store, first, &Hint::read("lane=other").unwrap()), None);
            }
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
        let store = Store::with(3);
        let id = store.record(2).transaction.id;
        let entry = find(&store.outbox, id, &Hint::default()).unwrap().unwrap();
        let state = |confirmed, status: Value| document(&entry, confirmed, &status)["state"].clone();
        assert_eq!(state(0, json!({"in_flight": 2, "lanes": [{}]})), "forwarded");
        assert_eq!(state(0, json!({"in_flight": 1, "lanes": [{}]})), "waiting");
        assert_eq!(state(0, json!({"in_flight": 2, "lanes": [{}, {}]})), "waiting");
        assert_eq!(state(0, json!({})), "waiting");
    }
}
