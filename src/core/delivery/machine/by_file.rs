//! Where a bundle begins after the end of the hub's line that a file names (design section 12.2, "A bundle continues the line").
//!
//! The file is signed, but of any age. So it lays out an epoch only: it moves no watermark and prunes nothing, and an answer on
//! a link counts more.

use super::super::hub::Place;
use super::super::{Action, Layout};
use super::Delivery;
use crate::chain::{ChainValue, Through};
use crate::transaction::Position;

impl Delivery {
    /// Where a bundle may begin if the hub's line ends there. `ours`: this lane's own chain value at that number, if it has one.
    /// `set_aside`: nothing but bundles ever leaves this store, so the hub's line may have grown without it, and whoever exports says
    /// after which position the bundle begins. `None`: the end is not this lane's own, or the lane knows better, because the hub
    /// has answered on a link.
    #[must_use]
    pub fn layout(
        &self,
        end: Option<Through>,
        ours: Option<ChainValue>,
        set_aside: Option<Position>,
    ) -> Option<Layout> {
        let hub_answers = self.link.is_some() && self.answered();
        if self.hub.is_none() || hub_answers || self.beginning.is_some() {
            return None;
        }
        if let Some(after) = set_aside {
            return Some(Layout::Begins(after.min(self.tail)));
        }
        let place = match self.place(end) {
            Place::LookUp(end) => self.place_with(end, ours),
            place => place,
        };
        let present = self.numbering.present();
        match place {
            Place::Present(number) => {
                let after = present.positions(number).1;
                let goes_on = self.next_gone(after).is_none_or(|gone| gone.kind.is_none());
                Some(if goes_on { Layout::Continues(after) } else { Layout::Begins(after) })
            }
            Place::Older(position) => Some(Layout::Begins(position.min(self.tail))),
            Place::Nowhere | Place::LookUp(_) if end.is_none() => Some(Layout::Begins(0)),
            Place::Nowhere | Place::LookUp(_) => None,
        }
    }

    pub(super) fn lay_out(
        &mut self,
        end: Option<Through>,
        ours: Option<ChainValue>,
        set_aside: Option<Position>,
        out: &mut Vec<Action>,
    ) {
        if let Some(Layout::Begins(after)) = self.layout(end, ours, set_aside) {
            // Of a store that was set aside, what it has confirmed once is taken to be there.
            let confirmed = set_aside.and(self.point).map(|point| point.at);
            self.begin(after, end, self.epochs_of(end.into_iter().chain(confirmed)), out);
        }
    }
}
