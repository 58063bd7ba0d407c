//! The position questions: when the hubs are asked, and asked again.

use super::super::hubs::HubView;
use super::super::{Action, Millis};
use super::Delivery;

/// An unanswered position question is repeated after this, then after twice that, and so on.
pub(super) const ASK_AGAIN: Millis = 2_000;
/// At most this long between two questions.
pub(super) const ASK_SELDOM: Millis = 60_000;
/// A status message from the hub triggers the next position request earlier, but at least so long after the last one.
const ASK_SOON: Millis = 250;

impl Delivery {
    /// Asks every hub how far it has stored; nothing is sent until those that must answer have.
    pub(super) fn ask(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(link) = &mut self.link else { return };
        if self.hubs.is_empty() || self.forking.is_some() {
            return;
        }
        let counted = u64::from_be_bytes(std::array::from_fn(|i| link.nonce[8 + i])).wrapping_add(1);
        link.nonce[8..].copy_from_slice(&counted.to_be_bytes());
        link.asked = now;
        out.push(Action::AskPosition(link.nonce));
    }

    /// Something could be pruned: the hubs must say once more that they have it.
    pub(super) fn ask_again(&mut self, now: Millis, out: &mut Vec<Action>) {
        if self.hubs.is_empty() {
            self.confirm(Some(now), out);
            return;
        }
        let may = self.hubs_answered() && self.forking.is_none();
        let Some(link) = self.link.as_mut().filter(|_| may) else { return };
        if now < link.asked.saturating_add(link.ask_again) {
            return;
        }
        let answered = |hub: &HubView| hub.relied_on.is_some_and(|(asked, _)| asked == link.asked);
        let unanswered = !self.hubs.iter().all(answered);
        link.ask_again =
            if unanswered { link.ask_again.saturating_mul(2).min(ASK_SELDOM) } else { ASK_AGAIN };
        self.ask(now, out);
    }

    pub(super) fn doubt(&mut self, hub: usize, now: Millis, out: &mut Vec<Action>) {
        if let Some(hub) = self.hubs.get_mut(hub) {
            hub.reset_answer();
        }
        if let Some(link) = &mut self.link {
            link.ask_again = ASK_AGAIN;
        }
        self.ask(now, out);
    }

    /// Asks, unless a question is only just under way.
    pub(super) fn ask_soon(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(link) = &mut self.link else { return };
        let due = now.saturating_sub(link.asked) >= ASK_SOON;
        link.ask_again = if due { ASK_AGAIN } else { link.ask_again.min(ASK_SOON) };
        if due {
            self.ask(now, out);
        }
    }

    pub(super) fn everything_in_doubt(&mut self, now: Millis, out: &mut Vec<Action>) {
        for hub in &mut self.hubs {
            hub.reset_answer();
        }
        self.rewind();
        if let Some(link) = &mut self.link {
            link.ask_again = ASK_AGAIN;
        }
        self.ask(now, out);
    }
}
