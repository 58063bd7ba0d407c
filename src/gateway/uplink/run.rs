//! The uplink's task: connection after connection, upstream after upstream, until the gateway stops.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::delivery::Nonce;
use pgw_core::transaction::{Lane, rfc3339, unix_millis_now};
use pgw_core::wire::receipt::nonce_text;
use pgw_core::wire::said::BootId;
use pgw_core::wire::signature::{SigningKey, Word};
use pgw_core::wire::to_json;
use pgw_core::wire::topic::{HUB_STATUS_FILTER, NOTICE, Root};
use pgw_link::backoff::{Backoff, random_bits};
use pgw_link::clock::TrustedClock;
use pgw_link::connect::{Plan, connect, will};
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::session::ConnectOptions;
use pgw_link::state_file::SessionCounter;
use pgw_outbox::Outbox;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::UplinkError;
use super::announcements::Announcements;
use super::command_gate::CommandGate;
use super::connection::Connection;
use super::driver::{Driver, Left};
use super::known_stores::KnownStores;
use super::lane::LaneWork;
use super::link::LinkReport;
use super::orders::Ordered;
use super::probe::Prober;
use super::reader::{Reader, ReaderAnswer};
use super::refusal::Ignored;
use super::renewal::Renewal;
use super::resend::Resends;
use super::settings::UplinkSettings;
use super::snapshot::{LinkSnapshot, Reports};
use super::speaker::Speaker;
use super::verifier::Verifier;

/// A clean end may take this long.
const FAREWELL: Duration = Duration::from_secs(2);
/// The alarm about another box is raised at most this often: two boxes end each other's connections for days.
const DUPLICATE_EVERY: Duration = Duration::from_secs(60);

/// What the daemon and people ask of the uplink.
pub struct Requests {
    /// True: stop.
    pub shutdown: watch::Receiver<bool>,
    /// Changes at SIGHUP: the certificate files are reread (they are also checked regularly).
    pub reload: watch::Receiver<u64>,
    /// A person's orders.
    pub orders: Ordered,
}

/// Runs the uplink until it shall stop. A failing link is not an error; only what no connection can fix is.
///
/// `key` signs everything that the gateway says.
///
/// # Errors
/// [`UplinkError`]: a lane that the outbox does not know, no threads, no randomness.
pub async fn run(
    settings: UplinkSettings,
    key: Arc<SigningKey>,
    outbox: Outbox,
    link: watch::Sender<LinkSnapshot>,
    reports: Reports,
    Requests { mut shutdown, reload, orders }: Requests,
) -> Result<(), UplinkError> {
    if settings.upstreams.is_empty() {
        return Err(UplinkError::NoUpstream);
    }
    let root = Root::new(&settings.practice, &settings.gateway);
    let clock = TrustedClock::open(&settings.state_directory);
    let (answers_sender, answers) = mpsc::unbounded_channel();
    let (panicked_sender, mut panicked) = mpsc::unbounded_channel();
    let boot = BootId(pgw_durable::random().map_err(UplinkError::Randomness)?);
    let lanes = lanes(&settings, &root, &key, &outbox, &answers_sender, &panicked_sender)?;
    let tails = Arc::new(Notify::new());
    // Dropped with this function, and with it the tasks.
    let _bells = bells(&lanes, &tails);
    let mut driver = Driver {
        outbox,
        lanes,
        answers,
        tails,
        orders,
        verifier: Verifier {
            practice: settings.practice.clone(),
            gateway: settings.gateway.clone(),
            lanes: settings.lanes.clone(),
            hubs: settings.hubs.clone(),
            lane_hubs: settings.lane_hubs.clone(),
        },
        announcements: Announcements::new(root.clone(), Speaker::new(key, boot)),
        root,
        reports,
        link: LinkReport::new(link),
        clock: clock.clone(),
        backoff: Backoff::new(settings.reconnect),
        started: Instant::now(),
        keep_alive: settings.keep_alive,
        ignored: Ignored::default(),
        probe: Prober::default(),
        resends: Resends::default(),
        stores: KnownStores::open(&settings.state_directory),
        gate: CommandGate::default(),
        later_said: BTreeMap::new(),
        strange_said: None,
        unverified_said: None,
    };
    driver.link.begin(driver.confirmed_sum());
    let mut uplink = Uplink {
        renewal: Renewal::new(settings.tls.clone(), clock, reload),
        known: vec![Vec::new(); settings.upstreams.len()],
        logged: vec![String::new(); settings.upstreams.len()],
        duplicate_said: None,
        counter: SessionCounter::new(&settings.state_directory),
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

/// A machine and a reader thread for each lane.
fn lanes(
    settings: &UplinkSettings,
    root: &Root,
    key: &Arc<SigningKey>,
    outbox: &Outbox,
    answers: &mpsc::UnboundedSender<(usize, ReaderAnswer)>,
    panicked: &mpsc::UnboundedSender<Lane>,
) -> Result<Vec<LaneWork>, UplinkError> {
    let make = |(index, lane): (usize, &Lane)| {
        let topic = root.transactions(lane);
        let (key, answers, panicked) = (key.clone(), answers.clone(), panicked.clone());
        let reader = Reader::start(outbox.clone(), lane.clone(), index, topic, key, answers, panicked)
            .map_err(UplinkError::Thread)?;
        LaneWork::new(lane.clone(), root.position(lane), settings.delivery.clone(), outbox, reader)
            .map_err(|_| UplinkError::UnknownLane(lane.clone()))
    };
    settings.lanes.iter().enumerate().map(make).collect()
}

/// One task per lane, which wakes the driver when its tail grows.
fn bells(lanes: &[LaneWork], tails: &Arc<Notify>) -> JoinSet<()> {
    let mut bells = JoinSet::new();
    for lane in lanes {
        let (mut tail, tails) = (lane.tail(), tails.clone());
        bells.spawn(async move {
            while tail.changed().await.is_ok() {
                tails.notify_one();
            }
        });
    }
    bells
}

struct Uplink {
    settings: UplinkSettings,
    driver: Driver,
    renewal: Renewal,
    /// Addresses of each upstream, from its last successful look-up.
    known: Vec<Vec<SocketAddr>>,
    /// The upstream to try next.
    upstream: usize,
    /// What was last logged about each upstream.
    logged: Vec<String>,
    /// When the alarm about another box was last raised.
    duplicate_said: Option<Instant>,
    counter: SessionCounter,
    /// The current session.
    session: u64,
}

impl Uplink {
    async fn work(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<(), UplinkError> {
        let mut at_once = false;
        while !stopping(shutdown) {
            if !at_once {
                let delay = Duration::from_millis(self.driver.backoff.delay(random_bits()));
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
            let nonce = nonce()?;
            self.begin(nonce_text(&self::nonce()?));
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
                    // The first one in the list is the site's preferred one.
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
        let (phases, reached) = mpsc::unbounded_channel();
        let session = self.session;
        let (settings, renewal, known) = (&self.settings, &mut self.renewal, &mut self.known[self.upstream]);
        let reason = "connection lost (unconfirmed)";
        let (status_topic, spoken) = self.driver.announcements.status_now("offline", session, reason);
        let attempt = async {
            let root = Root::new(&settings.practice, &settings.gateway);
            let mut filters = root.gateway_filters();
            filters.extend([NOTICE.to_owned(), HUB_STATUS_FILTER.to_owned()]);
            let options = ConnectOptions {
                client_id: format!("{}.{}", settings.practice, settings.gateway),
                will: will(status_topic, spoken.payload.to_vec(), spoken.properties()),
                keep_alive: settings.keep_alive,
                inflight: settings.inflight,
                receive_maximum: settings.inflight,
                maximum_packet_bytes: settings.max_incoming_packet_bytes,
            };
            let plan = Plan {
                upstream,
                known,
                tls: renewal.config().await?,
                options,
                filters,
                phase_timeout: settings.phase_timeout,
                // Bundles are limited by what may be in flight, so that handing over never waits.
                queue: usize::from(settings.inflight) + 64,
            };
            let connected = connect(plan, |phase| {
                let _ = phases.send(phase);
            });
            connected.await.map(Connection::start)
        };
        meanwhile(&mut self.driver, reached, &name, attempt, shutdown).await
    }

    /// The connection is live: the gateway identifies itself first.
    fn begin(&mut self, command_nonce: String) {
        let session = self.session;
        tracing::info!(upstream = %self.settings.upstreams[self.upstream], session, "The link is up");
        self.driver.backoff.connected();
        self.logged.iter_mut().for_each(String::clear);
        let mut info = self.settings.info.clone();
        if let Some(expires) = self.renewal.succeeded() {
            self.driver.link.now.certificate_expires = Some(expires);
            info.certificate_expires = rfc3339(expires);
        }
        info.time = rfc3339(unix_millis_now());
        self.driver.announcements.reset();
        self.driver.link.now.later.clear();
        let now = self.driver.now();
        self.driver.gate.open(command_nonce, now);
        self.driver.announcements.enqueue_online(session, self.driver.gate.nonce());
        let topic = self.driver.root.plain("info");
        self.driver.announcements.enqueue(Word::Info, topic, true, to_json(&info));
    }

    /// A lost link is logged once, and again only when the reason changes: attempts repeat for weeks.
    fn note_down(&mut self, failure: &Failure) {
        let (link, logged) = (&mut self.driver.link, &mut self.logged[self.upstream]);
        if *logged != failure.sentence {
            logged.clone_from(&failure.sentence);
            let upstream = &self.settings.upstreams[self.upstream];
            let (phase, reason) = (failure.phase.as_str(), failure.sentence.as_str());
            tracing::warn!(phase, reason, %upstream, "The link is down");
        }
        link.down(failure);
        if failure.duplicate_instance && self.duplicate_said.is_none_or(|at| at.elapsed() >= DUPLICATE_EVERY)
        {
            self.duplicate_said = Some(Instant::now());
            tracing::error!("Another box has connected as this gateway");
            let detail = "another box connected as this gateway and ended this one's connection: does the store run on two boxes?";
            self.driver.announcements.event("alarm", "twin", "", detail.to_owned());
        }
    }

    async fn next_session(&mut self) {
        self.session = self.counter.next(self.driver.clock.trusted_seconds()).await;
        self.driver.link.now.session = self.session;
    }

    /// A clean end: DISCONNECT, so that the broker does not publish the will.
    async fn farewell(&mut self, mut connection: Connection, stop: bool) {
        if stop {
            let announcements = &mut self.driver.announcements;
            let (topic, spoken) = announcements.status_now("stopping", self.session, "stopped");
            connection.publish(&topic, true, spoken);
        }
        connection.close(FAREWELL).await;
        let reason = if stop { "the gateway is stopping" } else { "the certificates are being replaced" };
        self.driver.link.down(&Failure::new(Phase::Live, reason));
    }
}

/// Waits for something while there is no connection; events are taken and kept within bounds meanwhile. `None`: stop.
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
            Some(event) = driver.reports.events.recv() => driver.announcements.push_event(event),
            Some((lane, answer)) = driver.answers.recv() => driver.answer(lane, answer),
            Some(order) = driver.orders.0.recv() => driver.obey(order),
        }
    }
}

/// Returns when the daemon says stop, or is gone.
fn stopping(shutdown: &watch::Receiver<bool>) -> bool {
    *shutdown.borrow() || shutdown.has_changed().is_err()
}

fn nonce() -> Result<Nonce, UplinkError> {
    pgw_durable::random().map_err(UplinkError::Randomness)
}
