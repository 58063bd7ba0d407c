//! The position questions: when the hub is asked, and asked again.

use super::super::{Action, Millis};
use super::Delivery;

/// An unanswered position question is repeated after this, then after twice that, and so on.
pub(super) const ASK_AGAIN: Millis = 2_000;
/// At most this long between two questions.
pub(super) const ASK_SELDOM: Millis = 60_000;
/// A status message from the hub triggers the next position request earlier, but at least so long after the last one.
const ASK_SOON: Millis = 250;

impl Delivery {
    /// Asks the hub where its line ends; what must be answered first is not sent before.
    pub(super) fn ask(&mut self, now: Millis, out: &mut Vec<Action>) {
        let may = self.hub.is_some() && self.beginning.is_none();
        let Some(link) = self.link.as_mut().filter(|_| may) else { return };
        let counted = u64::from_be_bytes(std::array::from_fn(|i| link.nonce[8 + i])).wrapping_add(1);
        link.nonce[8..].copy_from_slice(&counted.to_be_bytes());
        link.asked = now;
        link.asked_about = self.point;
        self.publish_position(out);
    }

    pub(super) fn publish_position(&self, out: &mut Vec<Action>) {
        let Some(link) = &self.link else { return };
        let present = self.numbering.present();
        out.push(Action::AskPosition {
            nonce: link.nonce,
            epoch: present.epoch,
            tail: present.number(self.tail),
            point: link.asked_about.map(|point| point.at),
        });
    }

    /// Something could be pruned: the hub must say once more that it has it.
    pub(super) fn ask_again(&mut self, now: Millis, out: &mut Vec<Action>) {
        let Some(hub) = &self.hub else {
            self.confirm(Some(now), out);
            return;
        };
        let may = hub.answered && self.beginning.is_none();
        let Some(link) = self.link.as_mut().filter(|_| may) else { return };
        if now < link.asked.saturating_add(link.ask_again) {
            return;
        }
        let answered = hub.relied_on == Some(link.asked);
        link.ask_again = if answered { ASK_AGAIN } else { link.ask_again.saturating_mul(2).min(ASK_SELDOM) };
        self.ask(now, out);
    }

    /// What the hub has said counts no more until it has answered. What is under way stays so.
    pub(super) fn doubt(&mut self, now: Millis, out: &mut Vec<Action>) {
        if let Some(hub) = &mut self.hub {
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

    /// The same, and everything under way is sent again.
    pub(super) fn everything_in_doubt(&mut self, now: Millis, out: &mut Vec<Action>) {
        self.rewind();
        self.doubt(now, out);
    }
}
