//! What each gateway last said about itself: kept in memory, and as `fleet.json` in the store's directory for
//! `practice-hub list`. It is only a view: losing it loses no transaction.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgw_core::transaction::{Gateway, Practice, UnixMillis, unix_millis_now};
use pgw_core::wire::from_json;
use pgw_core::wire::presence::{Event, Status};
use pgw_core::wire::topic::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the file.
pub const FILE: &str = "fleet.json";
/// The file is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// Two boxes with one store end each other's connections for days: reported at most this often.
const DUPLICATE_EVERY_MILLIS: u64 = 60_000;
/// Most gateways in the view.
const MOST_GATEWAYS: usize = 20_000;

/// The last known state of one gateway.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GatewayView {
    /// When the last message of it arrived that was not retained, by the hub's clock.
    pub last_seen: Option<UnixMillis>,
    /// Its `status`.
    pub status: Option<Status>,
    /// Its `health`, as received.
    pub health: Option<Value>,
    /// Its `info`, as received.
    pub info: Option<Value>,
    /// Its last `event`.
    pub event: Option<Event>,
    /// Session and time of its last `online`.
    #[serde(default)]
    pub online: Option<(u64, String)>,
    /// When its session number last went back, which never happens with a single box.
    #[serde(default, rename = "twin")]
    pub duplicate: Option<UnixMillis>,
    /// How many of its messages were refused since the hub started.
    #[serde(default)]
    pub refused_total: u64,
}

impl GatewayView {
    /// The gateway says that it is online. A box counts its sessions durably and uses each number at most once: a
    /// number that goes back, or comes twice, belongs to a copy or to an older image.
    fn came_online(&mut self, who: &str, status: &Status) {
        let back = self.online.as_ref().is_some_and(|(session, time)| {
            status.session < *session || (status.session == *session && status.time != *time)
        });
        self.online = Some((status.session, status.time.clone()));
        if !back {
            return;
        }
        let now = unix_millis_now();
        if self.duplicate.is_none_or(|last| now.saturating_sub(last) >= DUPLICATE_EVERY_MILLIS || last > now)
        {
            tracing::error!(
                gateway = who,
                session = status.session,
                "A gateway's session went back: its store runs on two boxes, or an older image of it was restored"
            );
            self.duplicate = Some(now);
        }
    }
}

/// All gateways.
#[derive(Debug, Default)]
pub struct Fleet {
    path: PathBuf,
    gateways: BTreeMap<String, GatewayView>,
    changed: bool,
    saved: Option<Instant>,
}

impl Fleet {
    /// Starts from the file, if it can be read.
    #[must_use]
    pub fn open(directory: &Path) -> Self {
        Self { path: directory.join(FILE), gateways: read(directory), ..Self::default() }
    }

    fn view(&mut self, name: &str) -> Option<&mut GatewayView> {
        if !self.gateways.contains_key(name) {
            if self.gateways.len() >= MOST_GATEWAYS {
                return None;
            }
            self.gateways.insert(name.to_owned(), GatewayView::default());
        }
        self.gateways.get_mut(name)
    }

    /// A message of this gateway arrived.
    pub fn seen(&mut self, practice: &Practice, gateway: &Gateway, retained: bool) {
        if retained {
            return;
        }
        let now = unix_millis_now();
        if let Some(view) = self.view(&name(practice, gateway)) {
            view.last_seen = Some(now);
            self.changed = true;
        }
    }

    /// The session of a gateway that is online.
    #[must_use]
    pub fn session(&self, practice: &Practice, gateway: &Gateway) -> Option<u64> {
        let status = self.gateways.get(&name(practice, gateway))?.status.as_ref()?;
        (status.up == 1).then_some(status.session)
    }

    /// Records what a gateway says about itself; `false`: it cannot be read.
    pub fn record(
        &mut self,
        practice: &Practice,
        gateway: &Gateway,
        kind: &Kind,
        payload: &[u8],
        retained: bool,
    ) -> bool {
        // Deleting a retained message sends an empty one.
        if payload.is_empty() {
            return true;
        }
        let who = name(practice, gateway);
        let Some(view) = self.view(&who) else { return false };
        let understood = match kind {
            Kind::Status => match from_json::<Status>(payload) {
                // A late will of an older session means nothing.
                Ok(status) => {
                    if status.up == 1 && !retained {
                        view.came_online(&who, &status);
                    }
                    if view.status.as_ref().is_none_or(|before| status.session >= before.session) {
                        let was = view.status.as_ref().map(|before| before.up);
                        if was != Some(status.up) {
                            tracing::info!(
                                gateway = who,
                                status = status.status,
                                "A gateway changed its status"
                            );
                        }
                        view.status = Some(status);
                    }
                    true
                }
                Err(_) => false,
            },
            Kind::Health => store(&mut view.health, payload),
            Kind::Info => store(&mut view.info, payload),
            Kind::Event => match from_json::<Event>(payload) {
                Ok(event) => {
                    tracing::info!(
                        gateway = who,
                        level = event.level,
                        code = event.code,
                        detail = event.detail,
                        "A gateway reports an event"
                    );
                    view.event = Some(event);
                    true
                }
                Err(_) => false,
            },
            _ => false,
        };
        if understood {
            self.changed = true;
            self.seen(practice, gateway, retained);
        }
        understood
    }

    /// A message was refused; `who` begins with practice and gateway.
    pub fn refused(&mut self, who: &str) {
        let mut parts = who.splitn(3, '/');
        let (Some(practice), Some(gateway)) = (parts.next(), parts.next()) else { return };
        if let Some(view) = self.gateways.get_mut(&format!("{practice}/{gateway}")) {
            view.refused_total += 1;
            self.changed = true;
        }
    }

    /// Writes the file if something changed, at once or at most every few seconds.
    pub fn save(&mut self, now: bool) {
        let due = now || self.saved.is_none_or(|at| at.elapsed() >= SAVE_INTERVAL);
        if !self.changed || !due || self.path.as_os_str().is_empty() {
            return;
        }
        self.saved = Some(Instant::now());
        match write(&self.path, &self.gateways) {
            Ok(()) => self.changed = false,
            Err(error) => tracing::warn!(error = %error, "The fleet view could not be written"),
        }
    }
}

fn name(practice: &Practice, gateway: &Gateway) -> String {
    format!("{practice}/{gateway}")
}

fn store(slot: &mut Option<Value>, payload: &[u8]) -> bool {
    match from_json::<Value>(payload) {
        Ok(value) => {
            *slot = Some(value);
            true
        }
        Err(_) => false,
    }
}

/// The view as last written; empty if there is none.
#[must_use]
pub fn read(directory: &Path) -> BTreeMap<String, GatewayView> {
    let bytes = fs::read(directory.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn write(path: &Path, gateways: &BTreeMap<String, GatewayView>) -> std::io::Result<()> {
    pgw_durable::replace(path, pgw_durable::PRIVATE, &serde_json::to_vec(gateways)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::wire::to_json;

    fn record(fleet: &mut Fleet, session: u64, time: &str, word: &str, retained: bool) -> bool {
        let (practice, gateway) = (Practice::new("B86022").unwrap(), Gateway::new("gw1").unwrap());
        let status = Status::new(word, session, "", time.to_owned());
        assert!(fleet.record(&practice, &gateway, &Kind::Status, &to_json(&status), retained));
        fleet.gateways["B86022/gw1"].duplicate.is_some()
    }

    #[test]
    fn a_session_that_comes_back_is_that_of_a_second_box() {
        let mut fleet = Fleet::default();
        // One box, its wills, a repetition, a retained message, and a late will.
        assert!(!record(&mut fleet, 4, "a", "online", true));
        assert!(!record(&mut fleet, 5, "b", "online", false));
        assert!(!record(&mut fleet, 5, "b", "online", false));
        assert!(!record(&mut fleet, 5, "a", "offline", false));
        assert!(!record(&mut fleet, 6, "c", "online", false));
        assert!(!record(&mut fleet, 5, "a", "offline", false));
        assert!(!record(&mut fleet, 5, "b", "online", true));
        // A copy of the box, which counts on from where it was copied.
        assert!(record(&mut fleet, 6, "d", "online", false));
        fleet.gateways.get_mut("B86022/gw1").unwrap().duplicate = None;
        assert!(!record(&mut fleet, 7, "e", "online", false));
        assert!(record(&mut fleet, 3, "f", "online", false));
    }
}
