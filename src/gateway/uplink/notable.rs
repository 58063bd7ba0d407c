//! What people should know: alarms of the machines, refusals of the broker, the hub's coming and going.

use std::fmt::Display;
use std::time::Duration;

use pgw_core::delivery::Alarm;
use pgw_core::transaction::Hub;
use tokio::time::Instant;

use super::driver::Driver;

/// Warnings about what is not obeyed are logged at most this often.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// What came and was not obeyed: counted, and logged at a limited rate.
#[derive(Default)]
pub(super) struct Refused {
    total: u64,
    logged: Option<Instant>,
}

impl Driver {
    /// Logs an alarm, and sends it as an event.
    pub(super) fn alarm(&mut self, index: usize, alarm: &Alarm) {
        let lane = self.lanes[index].lane.clone();
        let (level, code, detail) = match alarm {
            Alarm::Held(position) => {
                tracing::error!(%lane, position, "A transaction cannot be sent, its lane stands");
                ("alarm", "held", format!("lane {lane} stands: the broker does not take position {position}"))
            }
            Alarm::Released(position) => {
                tracing::info!(%lane, position, "A held transaction goes on");
                ("info", "released", format!("lane {lane} goes on at position {position}"))
            }
            Alarm::Diverged { through, position } => {
                tracing::error!(%lane, position, through, "The hub has another history than this gateway, a new epoch begins");
                self.link.now.diverged = format!("lane {lane} differs from the hub at position {position}");
                (
                    "alarm",
                    "diverged",
                    format!(
                        "lane {lane}: the hub says {through}, which is not our history: a new epoch begins"
                    ),
                )
            }
            Alarm::HubRestored { from, to } => {
                tracing::warn!(%lane, from, to, "The hub was restored, what it has lost goes again");
                ("warning", "hub.restored", format!("lane {lane}: positions {from} to {to} go again"))
            }
            Alarm::Hole(position) => {
                tracing::error!(%lane, position, "A transaction is not to be had any more, its lane stands until it is released");
                (
                    "alarm",
                    "hole",
                    format!("lane {lane} stands: position {position} is not to be had any more"),
                )
            }
            Alarm::Refused { position, reason } => {
                tracing::warn!(%lane, position, reason = refusal(*reason), "The broker refused a transaction, it goes again");
                (
                    "warning",
                    "refused",
                    format!("lane {lane}: the broker refused position {position}: {}", refusal(*reason)),
                )
            }
        };
        self.own.event(level, code, "", detail);
    }
}

impl Refused {
    pub(super) fn count(&mut self, reason: &dyn Display) {
        self.total += 1;
        if self.logged.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            self.logged = Some(Instant::now());
            tracing::warn!(%reason, total = self.total, "A message from the broker was not obeyed");
        }
    }
}

/// Says so once for each change that the hub publishes.
pub(super) fn hub_status(hub: &Hub, online: bool) {
    if online {
        tracing::info!(%hub, "The hub is online");
    } else {
        tracing::info!(%hub, "The hub is offline");
    }
}

/// MQTT 5 §3.4.2.1 in words.
pub(super) fn refusal(code: u8) -> String {
    match code {
        0x10 => "nobody subscribes to it: is the hub running?".to_owned(),
        0x87 => "not authorised: does the broker's ACL know this gateway?".to_owned(),
        0x97 => "quota exceeded".to_owned(),
        0x90 => "topic not valid".to_owned(),
        0x99 => "payload not valid".to_owned(),
        _ => format!("reason code {code:#04x}"),
    }
}
