//! Alarms of the lanes' machines: a line in the log, and an event for the centre.

use pgw_core::delivery::Alarm;

use super::Driver;
use crate::uplink::refusal::refusal;

impl Driver {
    /// Logs an alarm, and sends it as an event.
    pub(super) fn alarm(&mut self, index: usize, alarm: &Alarm) {
        let lane = self.lanes[index].lane.clone();
        let (level, code, detail) = match alarm {
            Alarm::Held(position) => {
                tracing::error!(%lane, position, "A transaction cannot be sent; its lane is stalled");
                (
                    "alarm",
                    "held",
                    format!("lane {lane} is stalled: the broker does not accept position {position}"),
                )
            }
            Alarm::Released(position) => {
                tracing::info!(%lane, position, "A held transaction was sent; its lane continues");
                ("info", "released", format!("lane {lane} continues at position {position}"))
            }
            Alarm::Diverged { through, position } => {
                tracing::error!(%lane, position, through, "The hub and this gateway have different histories; a new epoch begins");
                self.link.now.diverged = format!("lane {lane} differs from the hub at position {position}");
                (
                    "alarm",
                    "diverged",
                    format!(
                        "lane {lane}: the hub has stored through {through}, which this gateway's history does not contain: a new epoch begins"
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
}
