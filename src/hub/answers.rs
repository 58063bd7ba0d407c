//! What the hub has to publish, coalesced: the store thread puts it in, the connection takes it out.
//!
//! The store thread must never wait for the connection, nor the connection for the store thread, because each already
//! waits for the other's work. So this is a map behind a lock that is held only briefly, and not a channel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pgw_core::committer::Statement;
use pgw_core::numbering::LostNumbers;
use pgw_core::transaction::{Gateway, Practice, Sequence};
use pgw_core::wire::command::{CommandAddress, Order};
use pgw_core::wire::receipt::Gap;
use tokio::sync::Notify;

use super::store::{LaneName, Through};

/// Most gap notices that wait; older ones are dropped, and their gateways send again without them.
const MOST_GAPS: usize = 1_024;
/// Most probes that wait for an answer; older ones are dropped, and their gateways probe again.
const MOST_PROBES: usize = 256;

/// One thing to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The lane's receipt.
    Receipt {
        /// The lane that it is for.
        lane: LaneName,
        /// The end of its line on stable storage; `None`: it is empty.
        end: Option<Through>,
        /// Whether the line holds the point that the question named; `None`: it answers none, or that named none.
        holds_point: Option<bool>,
        /// Through which sequence of the end's epoch there is a backup.
        backed_up: Option<Sequence>,
        /// The highest tail that the gateway has named of the end's epoch.
        tail_seen: Option<Sequence>,
        /// Numbers that the line names and the store has lost for good.
        lost: Vec<LostNumbers>,
        /// Most transactions that the gateway may have under way; `None`: as it likes.
        window: Option<u32>,
        /// The nonce of the position question that it answers.
        nonce: Option<String>,
    },
    /// A gap notice.
    Gap {
        /// The lane with the gap.
        lane: LaneName,
        /// The first number that is missing.
        gap: Gap,
    },
    /// The answer to a probe.
    Probe {
        /// The practice that asked.
        practice: Practice,
        /// The gateway that asked.
        gateway: Gateway,
        /// The probe's payload.
        payload: Bytes,
    },
    /// A command to a gateway.
    Command {
        /// The gateway's practice.
        practice: Practice,
        /// Its gateway.
        gateway: Gateway,
        /// The command's id.
        id: String,
        /// What makes the gateway obey it.
        address: CommandAddress,
        /// What to do.
        order: Order,
    },
}

/// What a receipt says besides the committer's statement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// The highest tail that the gateway has named of the end's epoch.
    pub tail_seen: Option<Sequence>,
    /// Numbers that the line names and the store has lost for good.
    pub lost: Vec<LostNumbers>,
    /// Most transactions that it may have under way.
    pub window: Option<u32>,
}

#[derive(Default)]
struct Waiting {
    receipts: BTreeMap<LaneName, (Statement, Beside)>,
    order: VecDeque<LaneName>,
    gaps: VecDeque<(LaneName, Gap)>,
    probes: VecDeque<(Practice, Gateway, Bytes)>,
    commands: VecDeque<Answer>,
}

/// A handle; clones share the waiting answers.
#[derive(Clone, Default)]
pub struct Answers {
    waiting: Arc<Mutex<Waiting>>,
    changed: Arc<Notify>,
}

impl Answers {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A newer receipt of a lane replaces a waiting one, and keeps its nonce.
    pub fn receipt(&self, lane: &LaneName, statement: Statement, beside: Beside) {
        let mut waiting = self.lock();
        let before = waiting.receipts.remove(lane).map(|(before, _)| before);
        if before.is_none() {
            waiting.order.push_back(lane.clone());
        }
        waiting.receipts.insert(lane.clone(), (statement.instead_of(before), beside));
        drop(waiting);
        self.changed.notify_one();
    }

    /// A newer notice of a lane replaces a waiting one with the same code.
    pub fn gap(&self, lane: &LaneName, gap: Gap) {
        let mut waiting = self.lock();
        waiting.gaps.retain(|(of, old)| of != lane || old.code != gap.code);
        if waiting.gaps.len() >= MOST_GAPS {
            waiting.gaps.pop_front();
        }
        waiting.gaps.push_back((lane.clone(), gap));
        drop(waiting);
        self.changed.notify_one();
    }

    /// Answers a probe.
    pub fn probe(&self, practice: Practice, gateway: Gateway, payload: Bytes) {
        let mut waiting = self.lock();
        if waiting.probes.len() >= MOST_PROBES {
            waiting.probes.pop_front();
        }
        waiting.probes.push_back((practice, gateway, payload));
        drop(waiting);
        self.changed.notify_one();
    }

    /// Sends a command to a gateway.
    pub fn command(
        &self,
        practice: &Practice,
        gateway: &Gateway,
        id: String,
        address: CommandAddress,
        order: Order,
    ) {
        let (practice, gateway) = (practice.clone(), gateway.clone());
        self.lock().commands.push_back(Answer::Command { practice, gateway, id, address, order });
        self.changed.notify_one();
    }

    /// Takes the next answer, if any: receipts first, because gateways' windows wait for them.
    #[must_use]
    pub fn take(&self) -> Option<Answer> {
        let mut waiting = self.lock();
        if let Some(lane) = waiting.order.pop_front() {
            let (statement, Beside { tail_seen, lost, window }) = waiting.receipts.remove(&lane)?;
            let Statement { end, holds_point, backed_up_through, nonce } = statement;
            let backed_up = backed_up_through;
            return Some(Answer::Receipt {
                lane,
                end,
                holds_point,
                backed_up,
                tail_seen,
                lost,
                window,
                nonce,
            });
        }
        if let Some((lane, gap)) = waiting.gaps.pop_front() {
            return Some(Answer::Gap { lane, gap });
        }
        if let Some(command) = waiting.commands.pop_front() {
            return Some(command);
        }
        let (practice, gateway, payload) = waiting.probes.pop_front()?;
        Some(Answer::Probe { practice, gateway, payload })
    }

    /// Returns when something was added since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::chain::ChainValue;
    use pgw_core::transaction::{Epoch, Lane};
    use pgw_core::wire::receipt::GapCode;

    fn lane(name: &str) -> LaneName {
        LaneName {
            practice: Practice::new("B86022").unwrap(),
            gateway: Gateway::new("gw1").unwrap(),
            lane: Lane::new(name).unwrap(),
        }
    }

    fn end(through: u64) -> Option<Through> {
        Some(Through { epoch: Epoch(uuid::Uuid::nil()), through, chain: ChainValue([0; 32]) })
    }

    #[test]
    fn receipts_coalesce_and_keep_the_nonce_and_their_turn() {
        let answers = Answers::default();
        let statement = |through, backed_up_through, nonce: Option<&str>| Statement {
            end: end(through),
            holds_point: nonce.map(|_| true),
            backed_up_through,
            nonce: nonce.map(str::to_owned),
        };
        let lost = vec![LostNumbers {
            epoch: Epoch(uuid::Uuid::nil()),
            from: 1,
            through: 2,
            newest: Epoch(uuid::Uuid::max()),
        }];
        let beside = Beside { tail_seen: Some(9), lost: lost.clone(), window: Some(4) };
        answers.receipt(&lane("b"), statement(1, None, Some("n")), Beside::default());
        answers.receipt(&lane("a"), statement(5, None, None), Beside::default());
        answers.receipt(&lane("b"), statement(2, Some(1), None), beside);
        let first = Answer::Receipt {
            lane: lane("b"),
            end: end(2),
            holds_point: Some(true),
            backed_up: Some(1),
            tail_seen: Some(9),
            lost,
            window: Some(4),
            nonce: Some("n".into()),
        };
        assert_eq!(answers.take(), Some(first));
        let second = Answer::Receipt {
            lane: lane("a"),
            end: end(5),
            holds_point: None,
            backed_up: None,
            tail_seen: None,
            lost: Vec::new(),
            window: None,
            nonce: None,
        };
        assert_eq!(answers.take(), Some(second));
        assert_eq!(answers.take(), None);
    }

    #[test]
    fn a_notice_replaces_one_of_its_lane_and_code_and_they_are_bounded() {
        let answers = Answers::default();
        let gap = |code, expected| Gap::new(code, Epoch(uuid::Uuid::nil()), expected, 1);
        answers.gap(&lane("a"), gap(GapCode::Unverified, 4));
        answers.gap(&lane("a"), gap(GapCode::Missing, 4));
        answers.gap(&lane("a"), gap(GapCode::Missing, 5));
        for (code, expected) in [(GapCode::Unverified, 4), (GapCode::Missing, 5)] {
            let gap = gap(code, expected);
            assert_eq!(answers.take(), Some(Answer::Gap { lane: lane("a"), gap }));
        }
        for n in 0..MOST_GAPS + 10 {
            answers.gap(&lane(&format!("l{n}")), gap(GapCode::Key, 0));
        }
        assert_eq!(std::iter::from_fn(|| answers.take()).count(), MOST_GAPS);
    }

    #[test]
    fn probes_are_bounded() {
        let answers = Answers::default();
        for n in 0..MOST_PROBES + 10 {
            let (practice, gateway) = (lane("a").practice, lane("a").gateway);
            answers.probe(practice, gateway, Bytes::from(n.to_string()));
        }
        let first = answers.take();
        assert!(matches!(first, Some(Answer::Probe { payload, .. }) if payload == "10"));
    }
}
