//! Alarms of the lanes' machines: a line in the log, and an event for the centre.

use std::time::Duration;

use pgw_core::delivery::{Alarm, HeldBecause};
use pgw_core::transaction::Sequence;
use pgw_core::wire::receipt::{Gap, GapCode};
use pgw_outbox::OutboxAlarm;
use tokio::time::Instant;

use super::Driver;
use crate::uplink::live::Live;
use crate::uplink::refusal::refusal;

/// The alarm about transactions that the hub could not verify is raised at most this often.
const UNVERIFIED_EVERY: Duration = Duration::from_secs(60);
/// What lasts is said again after this.
pub(super) const AGAIN: Duration = Duration::from_secs(3600);

impl Driver {
    /// Ends the connection if a lane cannot go on in its epoch: on the next one the hub says where its line ends, and the lane
    /// continues in another epoch from what both of them can prove.
    pub(super) fn begin_anew_if_unproven(&mut self, index: usize, live: &mut Live) {
        let Some(position) = self.lanes[index].take_unproven() else { return };
        let lane = &self.lanes[index].lane;
        tracing::error!(%lane, position, "A transaction has no chain value in its epoch, because a record before it and its digest are lost; the gateway asks the hub where a new epoch can begin");
        self.outbox.raise(OutboxAlarm {
            code: "damaged",
            detail: format!(
                "lane {lane}: position {position} cannot be sent in its epoch, because a record before it and its digest are lost; the gateway asks the hub where to begin a new epoch. Check the disk, and look for the lost record (practice-gateway verify, practice-gateway repair)"
            ),
        });
        live.lose("a lane cannot continue in its epoch");
    }

    /// Logs an alarm, and sends it as an event.
    pub(super) fn alarm(&mut self, index: usize, alarm: &Alarm) {
        let lane = self.lanes[index].lane.clone();
        let (level, code, detail) = match alarm {
            Alarm::Held(position, because) => {
                let reason = held_because(*because);
                self.link.now.held_because.clone_from(&reason);
                tracing::error!(%lane, position, reason, "A transaction cannot be sent; its lane is stalled");
                ("alarm", "held", format!("lane {lane} is stalled at position {position}: {reason}"))
            }
            Alarm::Released(position) => {
                tracing::info!(%lane, position, "A held transaction was sent; its lane continues");
                ("info", "released", format!("lane {lane} continues at position {position}"))
            }
            Alarm::Diverged { end, proven } => {
                let (epoch, through) = (end.epoch, end.through);
                tracing::error!(%lane, %epoch, through, proven, "The hub's line of a lane ends with what this gateway's history does not contain; a new epoch begins, at the second time in a day after an hour, or once `practice-gateway outbox release` says that a person has looked");
                self.outbox.note_diverged(&lane);
                self.link.now.diverged = format!("lane {lane} differs from the hub after position {proven}");
                (
                    "alarm",
                    "diverged",
                    format!(
                        "lane {lane}: the hub's line ends with {through} of epoch {epoch}, which this gateway's history does not contain: a new epoch begins after position {proven}, at the second time in a day after an hour, or once `practice-gateway outbox release` says that a person has looked"
                    ),
                )
            }
            Alarm::HubRestored { from, to } => {
                tracing::warn!(%lane, from, to, "The hub was restored from a backup; the gateway sends the difference again");
                (
                    "warning",
                    "hub.restored",
                    format!("lane {lane}: the gateway sends positions {from} to {to} again"),
                )
            }
            Alarm::TailLost { epoch, missing } => {
                tracing::error!(%lane, %epoch, missing, "This store lacks accepted transactions; look for them on the disk that the box had before");
                (
                    "alarm",
                    "tail.lost",
                    format!(
                        "lane {lane}: this store lacks {missing} transactions that this gateway had accepted: it is an older image, or its disk has lost them; look for them on the disk that the box had before (practice-gateway repair --from)"
                    ),
                )
            }
            Alarm::Missing(position) => {
                tracing::error!(%lane, position, "A transaction can no longer be read; its lane is stalled until an operator releases it");
                (
                    "alarm",
                    "hole",
                    format!("lane {lane} is stalled: position {position} can no longer be read"),
                )
            }
            Alarm::Refused { position, reason } => {
                tracing::warn!(%lane, position, reason = refusal(*reason), "The broker refused a transaction; the gateway sends it again");
                (
                    "warning",
                    "refused",
                    format!("lane {lane}: the broker refused position {position}: {}", refusal(*reason)),
                )
            }
        };
        self.announcements.event(level, code, "", detail);
    }

    /// The hub does not know the gateway's key, or no longer accepts it: it answers nothing else.
    pub(super) fn key_refused(&mut self) {
        self.announcements.speaker.answered();
        let key = self.announcements.speaker.key_id();
        let reason = format!("the hub does not accept this gateway's signing key {key}");
        if self.link.now.refused == reason {
            return;
        }
        tracing::error!(%key, "The hub does not accept this gateway's signing key; central IT lists it with `practice-hub gateway key`");
        self.announcements.event("alarm", "key.refused", "", reason.clone());
        self.link.now.refused = reason;
    }

    /// The hub takes nothing of this lane now. It stands in health until the hub answers again.
    pub(super) fn later(&mut self, index: usize, gap: &Gap) {
        // It hears us.
        self.announcements.speaker.answered();
        let lane = self.lanes[index].lane.clone();
        let reason = match (gap.code, &gap.until) {
            (GapCode::Admit, _) => {
                format!(
                    "the hub takes nothing of lane {lane} until the centre admits it (practice-hub lane show)"
                )
            }
            (GapCode::Epochs, _) => format!(
                "lane {lane} has begun too many epochs in a day: the hub takes nothing of it until the centre admits the next (practice-hub lane show)"
            ),
            (_, Some(until)) => {
                format!("the hub's store fails: it takes nothing of lane {lane} before {until}")
            }
            (_, None) => format!("the hub's list does not have lane {lane} for this gateway"),
        };
        self.link.now.later.insert(lane.clone(), reason.clone());
        // While a store fails the hub still answers questions.
        if self.later_said.get(&lane).is_none_or(|at| at.elapsed() >= AGAIN) {
            self.later_said.insert(lane.clone(), Instant::now());
            tracing::warn!(%lane, reason, "The hub takes nothing of a lane now");
            self.announcements.event("warning", "hub.later", "", reason);
        }
    }

    /// The hub could not verify a transaction, as something between this gateway and the hub has changed it, or the two have
    /// different histories (which the hub's receipt then shows).
    pub(super) fn unverified(&mut self, index: usize, sequence: Sequence) {
        let lane = self.lanes[index].lane.clone();
        let often = self.unverified_said.is_some_and(|at| at.elapsed() < UNVERIFIED_EVERY);
        if often {
            return;
        }
        self.unverified_said = Some(Instant::now());
        tracing::error!(%lane, sequence, "The hub could not verify a transaction: it was changed on its way, was signed with another key, or does not follow from what the hub has; the gateway sends it again");
        let detail = format!(
            "lane {lane}: the hub could not verify sequence {sequence}: it was changed on its way, was signed with another key, or does not follow from what the hub has"
        );
        self.announcements.event("alarm", "unverified", "", detail);
    }
}

/// Why a record is held, for people.
fn held_because(because: HeldBecause) -> String {
    match because {
        HeldBecause::TooLarge { bytes, most } => {
            format!("its packet has {bytes} bytes, and the broker or the hub takes {most}")
        }
        HeldBecause::EndedConnections => "the connection ended three times when it was sent alone".to_owned(),
        HeldBecause::BeyondHub => "the hub says that it is beyond its limits, which a newer version of the hub may have raised; the gateway tries it again each hour, and when the hub has started again".to_owned(),
        HeldBecause::Unverified => "the hub could not verify it, though it was sent alone three times: it is changed on its way, or the hub has another key or history of this gateway".to_owned(),
    }
}
