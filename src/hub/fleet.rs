//! What each gateway last said about itself: kept in memory, and as `fleet.json` in the store's directory for
//! `practice-hub list`. It is only a view: losing it loses no transaction.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pgw_core::committer::MOST_LANES;
use pgw_core::transaction::{Epoch, Gateway, LaneName, Practice, Sequence, UnixMillis, unix_millis_now};
use pgw_core::wire::command::CommandAddress;
use pgw_core::wire::presence::{Event, Status};
use pgw_core::wire::said::{Origin, Said};
use pgw_core::wire::topic::Kind;
use pgw_core::wire::{WireError, from_json};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hearing::{Hearing, Worth};
use super::store::Through;
use super::waits::Waits;

/// Name of the file.
pub const FILE: &str = "fleet.json";
/// The file is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// A duplicate instance speaks for days: reported at most this often.
const DUPLICATE_EVERY_MILLIS: u64 = 60_000;
/// How long a command is valid, seconds.
const COMMAND_SECONDS: u64 = 600;
/// Interval of health messages of a gateway that has not said it, seconds.
const USUAL_INTERVAL_SECONDS: f64 = 60.0;
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
    /// Its broker says that its connection was lost, and nothing new has come since.
    #[serde(default)]
    pub connection_lost: bool,
    /// Which of its messages are new.
    #[serde(default)]
    hearing: Hearing,
    /// When an earlier start of it last went on speaking, which never happens with a single box.
    #[serde(default, rename = "twin")]
    pub duplicate: Option<UnixMillis>,
    /// The highest tail that it has named of its present epoch, by lane.
    #[serde(default)]
    tails: BTreeMap<String, (Epoch, Sequence)>,
    /// What a person should know of its lanes.
    #[serde(default)]
    pub lanes: BTreeMap<String, LaneView>,
    /// Since when its `status` has the present `command_nonce`, by the hub's clock.
    #[serde(default)]
    nonce_since: UnixMillis,
    /// Number of the last command to it.
    #[serde(default)]
    last_command: u64,
    /// How many of its messages were refused since the hub started.
    #[serde(default)]
    pub refused_total: u64,
}

/// What a person should know of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneView {
    /// Transactions that were kept beside it as late.
    #[serde(default)]
    pub late_total: u64,
    /// Transactions that were stored under an id that has another content.
    #[serde(default)]
    pub rivals_total: u64,
    /// What waits until the centre admits it.
    #[serde(default)]
    pub waits: Option<Waits>,
    /// The running hub cannot use its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_use: Option<OutOfUseLane>,
}

/// A lane whose files the running hub cannot use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfUseLane {
    /// Why, in one sentence.
    pub reason: String,
    /// Since when, by the hub's clock.
    pub since: UnixMillis,
}

impl GatewayView {
    /// After so many milliseconds without anything new it is offline: three of its health intervals.
    #[must_use]
    pub fn patience(&self) -> UnixMillis {
        let said = self.info.as_ref().and_then(|info| info["health_interval_seconds"].as_f64());
        let seconds = said.filter(|seconds| seconds.is_finite()).unwrap_or(USUAL_INTERVAL_SECONDS);
        Duration::try_from_secs_f64(3.0 * seconds).map_or(180_000, |all| all.as_millis() as UnixMillis)
    }

    /// In a few words: is it there?
    #[must_use]
    pub fn presence(&self, now: UnixMillis) -> &str {
        // Whoever reads the view from its file may see one that is as old as that.
        let patience = self.patience() + SAVE_INTERVAL.as_millis() as UnixMillis;
        let silent = self.last_seen.is_none_or(|seen| now.saturating_sub(seen) > patience);
        match &self.status {
            None => "unknown",
            Some(status) if status.up == 1 && silent => "offline",
            Some(status) if status.up == 1 && self.connection_lost => "connection lost (unconfirmed)",
            Some(status) => &status.status,
        }
    }

    fn is_duplicate(&mut self, who: &str, now: UnixMillis) {
        if self.duplicate.is_none_or(|last| now.saturating_sub(last) >= DUPLICATE_EVERY_MILLIS || last > now)
        {
            tracing::error!(
                gateway = who,
                "Two boxes have this gateway's identity: its store runs on two boxes, and their histories differ from now on; stop one of them"
            );
            self.duplicate = Some(now);
        }
    }

    /// Records a message that is new, or a will.
    fn record(&mut self, who: &str, kind: &Kind, payload: &[u8]) -> Result<(), WireError> {
        match kind {
            Kind::Status => {
                let status: Status = from_json(payload)?;
                if self.status.as_ref().map(|before| before.up) != Some(status.up) {
                    tracing::info!(gateway = who, status = status.status, "A gateway changed its status");
                }
                if self.status.as_ref().is_none_or(|before| before.command_nonce != status.command_nonce) {
                    self.nonce_since = unix_millis_now();
                }
                self.status = Some(status);
            }
            Kind::Health => self.health = Some(from_json(payload)?),
            Kind::Info => self.info = Some(from_json(payload)?),
            Kind::Event => {
                let event: Event = from_json(payload)?;
                let Event { level, code, detail, .. } = &event;
                tracing::info!(gateway = who, level, code, detail, "A gateway reports an event");
                self.event = Some(event);
            }
            _ => {}
        }
        Ok(())
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
        let mut gateways = read(directory);
        for view in gateways.values_mut().flat_map(|view| view.lanes.values_mut()) {
            // The store says it anew.
            view.out_of_use = None;
        }
        Self { path: directory.join(FILE), gateways, ..Self::default() }
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

    /// A verified message of this gateway has arrived, on this topic below its root.
    pub fn hear(
        &mut self,
        practice: &Practice,
        gateway: &Gateway,
        topic: &str,
        origin: Origin,
        retained: bool,
    ) -> Worth {
        let (now, who) = (unix_millis_now(), name(practice, gateway));
        // Without room in the view the gateway is not shown; its questions are answered all the same.
        let Some(view) = self.view(&who) else { return Worth::New };
        let worth = view.hearing.take(origin, topic, retained, now, view.patience());
        match worth {
            Worth::New => {
                if !retained {
                    view.last_seen = Some(now);
                    view.connection_lost = false;
                }
            }
            Worth::Duplicate => view.is_duplicate(&who, now),
            Worth::Earlier | Worth::Repeated => {}
        }
        self.changed = true;
        worth
    }

    /// What makes a gateway that is online obey the next command.
    pub fn next_command(&mut self, practice: &Practice, gateway: &Gateway) -> Option<CommandAddress> {
        let now = unix_millis_now();
        let view = self.gateways.get_mut(&name(practice, gateway))?;
        let status = view.status.as_ref().filter(|status| status.up == 1 && !view.connection_lost)?;
        let nonce = status.command_nonce.clone();
        // Above every earlier one, also if this view was lost.
        view.last_command = now.max(view.last_command + 1);
        self.changed = true;
        let age = now.saturating_sub(view.nonce_since) / 1_000;
        Some(CommandAddress { nonce, number: view.last_command, expires_seconds: age + COMMAND_SECONDS })
    }

    /// A gateway says how old its nonce is: this hub may have heard of it late.
    pub fn nonce_is_old(&mut self, practice: &Practice, gateway: &Gateway, age_seconds: u64) {
        if let Some(view) = self.gateways.get_mut(&name(practice, gateway)) {
            let since = unix_millis_now().saturating_sub(age_seconds.saturating_mul(1_000));
            view.nonce_since = view.nonce_since.min(since);
            self.changed = true;
        }
    }

    /// A verified position has named the tail of a lane.
    pub fn note_tail(&mut self, lane: &LaneName, epoch: Epoch, tail: Sequence) {
        let Some(view) = self.view(&name(&lane.practice, &lane.gateway)) else { return };
        if view.tails.len() >= MOST_LANES && !view.tails.contains_key(lane.lane.as_str()) {
            return;
        }
        let waits = view.lanes.get(lane.lane.as_str()).and_then(|view| view.waits);
        let known = view.tails.get(lane.lane.as_str()).filter(|(of, _)| *of == epoch);
        if known.is_none_or(|(_, known)| *known < tail) {
            view.tails.insert(lane.lane.as_str().to_owned(), (epoch, tail));
            self.changed = true;
        }
        if waits.is_some_and(|waits| waits.epoch != epoch) {
            // Its gateway is in another epoch by now.
            self.waits_no_more(lane);
        }
    }

    fn lane(&mut self, lane: &LaneName) -> Option<&mut LaneView> {
        let view = self.view(&name(&lane.practice, &lane.gateway))?;
        if view.lanes.len() >= MOST_LANES && !view.lanes.contains_key(lane.lane.as_str()) {
            return None;
        }
        Some(view.lanes.entry(lane.lane.as_str().to_owned()).or_default())
    }

    /// So many more transactions are kept beside a lane.
    pub fn late(&mut self, lane: &LaneName, new: u64) {
        if new > 0
            && let Some(view) = self.lane(lane)
        {
            view.late_total += new;
            self.changed = true;
        }
    }

    /// A rival is stored in a lane.
    pub fn rival(&mut self, lane: &LaneName) {
        if let Some(view) = self.lane(lane) {
            view.rivals_total += 1;
            self.changed = true;
        }
    }

    /// The files of a lane cannot be used, for this reason; `None`: they can.
    pub fn out_of_use(&mut self, lane: &LaneName, reason: Option<String>) {
        let Some(view) = self.lane(lane) else { return };
        let before = view.out_of_use.take();
        if reason == before.as_ref().map(|before| before.reason.clone()) {
            view.out_of_use = before;
            return;
        }
        let since = before.map_or_else(unix_millis_now, |before| before.since);
        view.out_of_use = reason.map(|reason| OutOfUseLane { reason, since });
        self.changed = true;
    }

    /// Something waits at a lane until the centre admits it. True: that is new.
    pub fn waits(&mut self, lane: &LaneName, waits: Waits) -> bool {
        let Some(view) = self.lane(lane) else { return true };
        let same = |known: &Waits| Waits { since: waits.since, ..*known } == waits;
        if view.waits.as_ref().is_some_and(same) {
            return false;
        }
        view.waits = Some(waits);
        self.changed = true;
        true
    }

    /// Nothing waits at a lane any more.
    pub fn waits_no_more(&mut self, lane: &LaneName) {
        let view = self.gateways.get_mut(&name(&lane.practice, &lane.gateway));
        if let Some(view) = view.and_then(|view| view.lanes.get_mut(lane.lane.as_str())) {
            self.changed |= view.waits.take().is_some();
        }
    }

    /// A lane ends here now: what waited before that waits no more.
    pub fn is_at(&mut self, lane: &LaneName, end: &Through) {
        let view = self.gateways.get(&name(&lane.practice, &lane.gateway));
        let waits = view.and_then(|view| view.lanes.get(lane.lane.as_str())).and_then(|lane| lane.waits);
        if waits.is_some_and(|waits| waits.epoch == end.epoch && waits.sequence <= end.through) {
            self.waits_no_more(lane);
        }
    }

    /// What waits at each lane until the centre admits it.
    #[must_use]
    pub fn waiting(&self) -> Vec<(LaneName, Waits)> {
        waiting(&self.gateways)
    }

    /// The highest tail of an epoch that positions have named.
    #[must_use]
    pub fn tail_seen(&self, lane: &LaneName, epoch: Epoch) -> Option<Sequence> {
        let view = self.gateways.get(&name(&lane.practice, &lane.gateway))?;
        view.tails.get(lane.lane.as_str()).filter(|(of, _)| *of == epoch).map(|(_, tail)| *tail)
    }

    /// Records a verified message in which a gateway speaks about itself.
    ///
    /// # Errors
    /// [`WireError`]: it cannot be read.
    pub fn record(
        &mut self,
        practice: &Practice,
        gateway: &Gateway,
        kind: &Kind,
        payload: &[u8],
        retained: bool,
    ) -> Result<(), WireError> {
        let Some(word) = kind.word() else { return Ok(()) };
        let Said { content: (), origin } = Said::from_json(payload)?;
        let is_new = self.hear(practice, gateway, word.as_str(), origin, retained) == Worth::New;
        let who = name(practice, gateway);
        let Some(view) = self.view(&who) else { return Ok(()) };
        if is_new {
            return view.record(&who, kind, payload);
        }
        // A will was signed before everything else of its connection.
        if *kind == Kind::Status && !retained && view.hearing.is_present(origin.boot) {
            let status: Status = from_json(payload)?;
            let present = view.status.as_ref().is_some_and(|online| online.session == status.session);
            view.connection_lost |= status.up == 0 && present;
        }
        Ok(())
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

/// What waits at each lane of these gateways.
#[must_use]
pub fn waiting(gateways: &BTreeMap<String, GatewayView>) -> Vec<(LaneName, Waits)> {
    let named = |(gateway, lane, view): (&str, &str, &LaneView)| {
        Some((format!("{gateway}/{lane}").parse().ok()?, view.waits?))
    };
    lanes(gateways).filter_map(named).collect()
}

/// The lanes of these gateways of which a person should know something: gateway, lane, what.
pub fn lanes(gateways: &BTreeMap<String, GatewayView>) -> impl Iterator<Item = (&str, &str, &LaneView)> {
    gateways.iter().flat_map(|(gateway, view)| {
        view.lanes.iter().map(move |(lane, of)| (gateway.as_str(), lane.as_str(), of))
    })
}

fn name(practice: &Practice, gateway: &Gateway) -> String {
    format!("{practice}/{gateway}")
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
    use pgw_core::wire::said::BootId;
    use pgw_core::wire::signature::KeyId;
    use pgw_core::wire::to_json;

    use super::*;

    struct Box {
        boot: u8,
        session: u64,
        count: u64,
    }

    impl Box {
        fn payload(&mut self, word: &str) -> Vec<u8> {
            self.count += 1;
            let origin = Origin { boot: BootId([self.boot; 8]), count: self.count, key: KeyId([0; 8]) };
            origin.end(to_json(&Status::new(word, self.session, "", "t".to_owned())))
        }
    }

    fn take(fleet: &mut Fleet, payload: &[u8], retained: bool) -> String {
        let (practice, gateway) = (Practice::new("B86022").unwrap(), Gateway::new("gw1").unwrap());
        fleet.record(&practice, &gateway, &Kind::Status, payload, retained).unwrap();
        fleet.gateways["B86022/gw1"].presence(unix_millis_now()).to_owned()
    }

    #[test]
    fn a_gateway_that_names_lane_after_lane_fills_nothing() {
        let mut fleet = Fleet::default();
        let lane = |number: usize| format!("B86022/gw1/lane{number}").parse().unwrap();
        let epoch = Epoch(uuid::Uuid::nil());
        for number in 0..MOST_LANES + 5 {
            fleet.note_tail(&lane(number), epoch, 7);
        }
        fleet.note_tail(&lane(1), epoch, 9);
        assert_eq!(fleet.gateways["B86022/gw1"].tails.len(), MOST_LANES);
        assert_eq!(fleet.tail_seen(&lane(1), epoch), Some(9), "those that are there still count");
    }

    #[test]
    fn a_will_is_unconfirmed_until_something_new_comes() {
        let (mut fleet, mut own) = (Fleet::default(), Box { boot: 1, session: 5, count: 0 });
        let (will, online) = (own.payload("offline"), own.payload("online"));
        assert_eq!(take(&mut fleet, &online, false), "online");
        assert_eq!(take(&mut fleet, &will, false), "connection lost (unconfirmed)");
        assert_eq!(take(&mut fleet, &online, true), "connection lost (unconfirmed)", "the broker repeats it");
        own.session = 6;
        assert_eq!(take(&mut fleet, &own.payload("online"), false), "online");
        assert_eq!(take(&mut fleet, &will, false), "online", "a late will of an earlier connection");
        assert_eq!(take(&mut fleet, &own.payload("stopping"), false), "stopping");
    }

    #[test]
    fn a_box_that_was_restored_from_an_image_is_online() {
        let (mut fleet, mut own) = (Fleet::default(), Box { boot: 1, session: 90, count: 7 });
        let before = own.payload("online");
        take(&mut fleet, &before, false);
        let mut restored = Box { boot: 2, session: 40, count: 0 };
        assert_eq!(take(&mut fleet, &restored.payload("offline"), false), "offline");
        assert_eq!(take(&mut fleet, &restored.payload("online"), false), "online");
        // What was recorded of it before shows nothing.
        assert_eq!(take(&mut fleet, &before, false), "online");
        assert_eq!(fleet.gateways["B86022/gw1"].status.as_ref().map(|status| status.session), Some(40));
    }

    #[test]
    fn a_gateway_of_which_nothing_new_comes_is_offline() {
        let (mut fleet, mut own) = (Fleet::default(), Box { boot: 1, session: 5, count: 0 });
        take(&mut fleet, &own.payload("online"), false);
        let view = fleet.gateways.get_mut("B86022/gw1").unwrap();
        let (seen, patience) = (view.last_seen.unwrap(), view.patience());
        assert_eq!((view.presence(seen + patience + 5_000), patience), ("online", 180_000));
        assert_eq!(view.presence(seen + patience + 5_001), "offline");
        view.info = Some(serde_json::json!({"health_interval_seconds": 0.5}));
        assert_eq!(view.presence(seen + 6_500), "online", "the file with the view is up to five seconds old");
        assert_eq!(view.presence(seen + 6_501), "offline");
    }
}
