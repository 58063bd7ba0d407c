//! The uplink's task: connection after connection, upstream after upstream, until the gateway stops.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::delivery::Nonce;
use pgw_core::transaction::{rfc3339, unix_millis_now};
use pgw_core::wire::presence::Status;
use pgw_core::wire::to_json;
use pgw_core::wire::topic::{HUB_STATUS_FILTER, NOTICE, Root};
use pgw_link::backoff::Backoff;
use pgw_link::clock::TrustedClock;
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::state_file;
use pgw_outbox::Outbox;
use ring::rand::{SecureRandom as _, SystemRandom};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::LastWill;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::UplinkError;
use super::connection::{Connection, Plan};
use super::driver::{Driver, Left};
use super::inbound::Ears;
use super::lane::LaneWork;
use super::link::LinkReport;
use super::notable::Refused;
use super::orders::Ordered;
use super::own::OwnMessages;
use super::probe::Prober;
use super::reader::Reader;
use super::renewal::Renewal;
use super::resend::Resends;
use super::settings::Settings;
use crate::health::{LinkSnapshot, Reports};

/// A clean end may take this long.
const FAREWELL: Duration = Duration::from_secs(2);
/// That another box is at work is said at most this often: two of them end each other's connections for days.
const TWIN_EVERY: Duration = Duration::from_secs(60);

/// Runs the uplink until `shutdown` says true. Links may fail as they like: only what no connection can mend is
/// an error.
///
/// `reload` is raised at SIGHUP: the certificate files are read again (they are looked at now and then anyway).
///
/// # Errors
/// [`UplinkError`]: a lane that the outbox does not know, no threads, no randomness.
pub async fn run(
    settings: Settings,
    outbox: Outbox,
    link: watch::Sender<LinkSnapshot>,
    reports: Reports,
    mut shutdown: watch::Receiver<bool>,
    reload: watch::Receiver<u64>,
    orders: Ordered,
) -> Result<(), UplinkError> {
    if settings.upstreams.is_empty() {
        return Err(UplinkError::NoUpstream);
    }
    let root = Root::new(&settings.practice, &settings.gateway);
    let clock = TrustedClock::open(&settings.state_directory);
    let (answers_sender, answers) = mpsc::unbounded_channel();
    let (panicked_sender, mut panicked) = mpsc::unbounded_channel();
    let mut lanes = Vec::with_capacity(settings.lanes.len());
    for (index, lane) in settings.lanes.iter().enumerate() {
        let topic = root.transactions(lane);
        let reader = Reader::start(
            outbox.clone(),
            lane.clone(),
            index,
            topic,
            answers_sender.clone(),
            panicked_sender.clone(),
        )
        .map_err(UplinkError::Thread)?;
        lanes.push(
            LaneWork::new(lane.clone(), root.position(lane), settings.delivery.clone(), &outbox, reader)
                .map_err(|_| UplinkError::UnknownLane(lane.clone()))?,
        );
    }
    let tails = Arc::new(Notify::new());
    let mut bells = JoinSet::new();
    for lane in &lanes {
        let (mut tail, tails) = (lane.tail(), tails.clone());
        bells.spawn(async move {
            while tail.changed().await.is_ok() {
                tails.notify_one();
            }
        });
    }
    let mut driver = Driver {
        outbox,
        lanes,
        answers,
        tails,
        orders,
        ears: Ears {
            practice: settings.practice.clone(),
            gateway: settings.gateway.clone(),
            lanes: settings.lanes.clone(),
            hubs: settings.hubs.clone(),
        },
        own: OwnMessages::new(root.clone()),
        root,
        reports,
        link: LinkReport::new(link),
        clock: clock.clone(),
        backoff: Backoff::new(settings.reconnect),
        started: Instant::now(),
        keep_alive: settings.keep_alive,
        refused: Refused::default(),
        probe: Prober::default(),
        resends: Resends::default(),
    };
    driver.link.begin(driver.confirmed_sum());
    let mut uplink = Uplink {
        renewal: Renewal::new(settings.tls.clone(), clock, reload),
        known: vec![Vec::new(); settings.upstreams.len()],
        said: vec![String::new(); settings.upstreams.len()],
        twin_said: None,
        settings,
        driver,
        upstream: 0,
        session: 0,
    };
    tokio::select! {
        done = uplink.work(&mut shutdown) => done,
        Some(lane) = panicked.recv() => Err(UplinkError::Reader(lane)),
    }
}

struct Uplink {
    settings: Settings,
    driver: Driver,
    renewal: Renewal,
    /// Addresses of each upstream, from its last successful look-up.
    known: Vec<Vec<SocketAddr>>,
    /// The one to be tried next.
    upstream: usize,
    /// What was last logged of each upstream.
    said: Vec<String>,
    twin_said: Option<Instant>,
    /// The last session used, should the file fail.
    session: u64,
}

impl Uplink {
    async fn work(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<(), UplinkError> {
        let mut at_once = false;
        while !stopping(shutdown) {
            if !at_once {
                let delay = Duration::from_millis(self.driver.backoff.delay(random()?));
                tracing::debug!(delay_seconds = delay.as_secs_f32(), "Waiting before the next connection");
                let none = mpsc::unbounded_channel().1;
                let Some(()) = meanwhile(&mut self.driver, none, "", sleep(delay), shutdown).await else {
                    break;
                };
            }
            at_once = false;
            self.next_session().await;
            let Some(opened) = self.open(shutdown).await else { break };
            let connection = match opened {
                Ok(connection) => connection,
                Err(failure) => {
                    at_once = self.renewal.failed(&failure);
                    self.note_down(&failure);
                    self.upstream = (self.upstream + 1) % self.settings.upstreams.len();
                    continue;
                }
            };
            self.begin();
            let nonce = nonce()?;
            let asked = async {
                tokio::select! {
                    _ = shutdown.wait_for(|stop| *stop) => {}
                    () = self.renewal.wanted() => {}
                }
            };
            match self.driver.live(connection, nonce, asked).await {
                Left::Asked(connection) => {
                    self.farewell(connection, stopping(shutdown)).await;
                    at_once = true;
                }
                Left::Lost(failure) => {
                    self.note_down(&failure);
                    // The first one in the list is the one that the site prefers.
                    self.upstream = 0;
                }
            }
        }
        Ok(())
    }

    /// One attempt. `None`: the gateway stops.
    async fn open(&mut self, shutdown: &mut watch::Receiver<bool>) -> Option<Result<Connection, Failure>> {
        let upstream = &self.settings.upstreams[self.upstream];
        let name = upstream.to_string();
        let (phases, told) = mpsc::unbounded_channel();
        let session = self.session;
        let (settings, renewal, known) = (&self.settings, &mut self.renewal, &mut self.known[self.upstream]);
        let attempt = async {
            let will = Status::new("offline", session, "connection lost", rfc3339(unix_millis_now()));
            let root = Root::new(&settings.practice, &settings.gateway);
            let mut filters = root.gateway_filters();
            filters.extend([NOTICE.to_owned(), HUB_STATUS_FILTER.to_owned()]);
            let plan = Plan {
                upstream,
                known,
                tls: renewal.config().await?,
                client_id: format!("{}.{}", settings.practice, settings.gateway),
                will: LastWill::new(root.plain("status"), to_json(&will), QoS::AtLeastOnce, true, None),
                filters,
                keep_alive: settings.keep_alive,
                phase_timeout: settings.phase_timeout,
                inflight: settings.inflight,
                max_incoming_packet_bytes: settings.max_incoming_packet_bytes,
            };
            Connection::open(plan, |phase| {
                let _ = phases.send(phase);
            })
            .await
        };
        meanwhile(&mut self.driver, told, &name, attempt, shutdown).await
    }

    /// The connection is live: who we are comes first.
    fn begin(&mut self) {
        let session = self.session;
        tracing::info!(upstream = %self.settings.upstreams[self.upstream], session, "The link is up");
        self.driver.backoff.connected();
        self.said.iter_mut().for_each(String::clear);
        let mut info = self.settings.info.clone();
        if let Some(expires) = self.renewal.succeeded() {
            self.driver.link.now.certificate_expires = Some(expires);
            info.certificate_expires = rfc3339(expires);
        }
        info.time = rfc3339(unix_millis_now());
        self.driver.own.reset();
        self.driver.own.say_status("online", session, "connected");
        let topic = self.driver.root.plain("info");
        self.driver.own.say("info", topic, true, to_json(&info));
    }

    /// Down is said once, and again only when the reason changes: attempts repeat for weeks.
    fn note_down(&mut self, failure: &Failure) {
        let (link, said) = (&mut self.driver.link, &mut self.said[self.upstream]);
        if *said != failure.sentence {
            said.clone_from(&failure.sentence);
            let upstream = &self.settings.upstreams[self.upstream];
            let (phase, reason) = (failure.phase.as_str(), failure.sentence.as_str());
            tracing::warn!(phase, reason, %upstream, "The link is down");
        }
        link.down(failure);
        if failure.twin && self.twin_said.is_none_or(|at| at.elapsed() >= TWIN_EVERY) {
            self.twin_said = Some(Instant::now());
            tracing::error!("Another box has connected as this gateway");
            let detail = "another box has connected as this gateway, which ended this one's connection: is the store on two boxes?";
            self.driver.own.event("alarm", "twin", "", detail.to_owned());
        }
    }

    async fn next_session(&mut self) {
        let directory = self.settings.state_directory.clone();
        let least = self.session + 1;
        let next = tokio::task::spawn_blocking(move || {
            state_file::next_session(&directory, least, unix_millis_now() / 1_000)
        });
        self.session = match next.await {
            Ok(Ok(session)) => session,
            Ok(Err(error)) => {
                tracing::error!(%error, "The session counter cannot be kept, a late will may override our status");
                least
            }
            Err(_) => least,
        };
        self.driver.link.now.session = self.session;
    }

    /// A clean end: the broker is told, so that the will stays unsaid.
    async fn farewell(&mut self, mut connection: Connection, stop: bool) {
        if stop {
            let status = Status::new("stopping", self.session, "stopped", rfc3339(unix_millis_now()));
            connection.publish(&self.driver.root.plain("status"), true, to_json(&status).into());
        }
        connection.close(FAREWELL).await;
        let reason = if stop { "the gateway is stopping" } else { "the certificates are being replaced" };
        self.driver.link.down(&Failure::new(Phase::Live, reason));
    }
}

/// Waits for something while there is no connection; events are taken and bounded meanwhile. `None`: stop.
async fn meanwhile<T>(
    driver: &mut Driver,
    mut phases: mpsc::UnboundedReceiver<Phase>,
    upstream: &str,
    what: impl Future<Output = T>,
    shutdown: &mut watch::Receiver<bool>,
) -> Option<T> {
    let mut what = std::pin::pin!(what);
    loop {
        driver.act_alone();
        tokio::select! {
            done = &mut what => return Some(done),
            _ = shutdown.wait_for(|stop| *stop) => return None,
            Some(phase) = phases.recv() => driver.link.phase(phase, upstream),
            Some(event) = driver.reports.events.recv() => driver.own.push_event(event),
            Some((lane, answer)) = driver.answers.recv() => driver.answer(lane, answer),
            Some(order) = driver.orders.0.recv() => driver.obey(order),
        }
    }
}

/// The daemon says so, or is gone.
fn stopping(shutdown: &watch::Receiver<bool>) -> bool {
    *shutdown.borrow() || shutdown.has_changed().is_err()
}

fn random() -> Result<u64, UplinkError> {
    nonce().map(|bytes| u64::from_ne_bytes(std::array::from_fn(|index| bytes[index])))
}

fn nonce() -> Result<Nonce, UplinkError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| UplinkError::Randomness)?;
    Ok(bytes)
}
