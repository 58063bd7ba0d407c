//! What the hub has said, and what a receipt claims.

use super::{HubLimits, Millis};
use crate::chain::Through;
use crate::numbering::LostNumbers;
use crate::transaction::{Position, Sequence};

/// A point of the lane's line that the hub has confirmed, with the position that it is at here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    /// Everything through here is before it.
    pub position: Position,
    /// The point of the line.
    pub at: Through,
}

/// What a receipt claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    /// The end of the hub's line; `None`: it is empty.
    pub(super) end: Option<Through>,
    /// What else an answer says; `None`: it is no answer.
    pub(super) answer: Option<Answer>,
    /// Through which sequence of the end's epoch there is a backup.
    pub(super) backed_up_through: Option<Sequence>,
}

/// What only an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Answer {
    /// When it was asked for.
    pub(super) asked: Millis,
    /// It speaks of the store that pruning may rely on.
    pub(super) known_store: bool,
    /// The point that it was asked about, if the hub's line holds it.
    pub(super) held: Option<Point>,
    /// The hub has heard of more of the present epoch than this store has.
    pub(super) tail_lost: bool,
}

/// Where the end of the hub's line is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// At this number of the present epoch, with its own value; 0: where it begins.
    Present(Sequence),
    /// In, or where, an older epoch of this lane begins, at this position.
    Older(Position),
    /// Nowhere: another history, or one that this store has forgotten.
    Nowhere,
    /// That depends on the chain value there.
    LookUp(Through),
}

/// The lane's hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct HubView {
    /// Learnt from answers only: a retained receipt may be of any age.
    pub(super) incarnation: Option<u64>,
    pub(super) counter: u64,
    /// It has answered on this connection, in its present incarnation, and its line continues here.
    pub(super) answered: bool,
    /// What it takes, as its last answer on this connection says.
    pub(super) limits: HubLimits,
    /// What its line names and its store has lost for good, as its last answer says.
    pub(super) lost: Vec<LostNumbers>,
    /// When the answer was asked for on which pruning may rely.
    pub(super) relied_on: Option<Millis>,
    /// The claim whose chain value is being looked up, and the newest one, which waits for that.
    pub(super) looking: Option<Claim>,
    pub(super) waiting: Option<Claim>,
}

impl HubView {
    pub(super) fn new() -> Self {
        Self {
            incarnation: None,
            counter: 0,
            answered: false,
            limits: HubLimits::default(),
            lost: Vec::new(),
            relied_on: None,
            looking: None,
            waiting: None,
        }
    }

    /// The hub must answer before anything that it says counts again.
    pub(super) fn reset_answer(&mut self) {
        self.answered = false;
        self.limits = HubLimits::default();
        self.relied_on = None;
        self.looking = None;
        self.waiting = None;
    }
}
