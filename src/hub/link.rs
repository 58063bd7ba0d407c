//! One connection of the hub: how it is made, and what the hub publishes on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::transaction::Hub;
use pgw_core::wire::command::Command;
use pgw_core::wire::presence::Status;
use pgw_core::wire::receipt::{HubLimits, Receipt};
use pgw_core::wire::signature::{self, SigningKey, Word};
use pgw_core::wire::topic::{HUB_FILTERS, Root, hub_status};
use pgw_core::wire::{SCHEMA, to_json};
use pgw_host::config::Upstream;
use pgw_link::clock::TrustedClock;
use pgw_link::connect::{Connected, LEAST_KEEP_ALIVE, Plan, connect, will};
use pgw_link::failure::Failure;
use pgw_link::session::{ConnectOptions, Outgoing};
use pgw_link::tls::{Identity, TlsError, TlsFiles};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};

use super::HubSettings;
use super::answers::Answer;
use super::store::StoreIdentity;
use super::store_thread::now_text;

/// Most unacknowledged publishes of ours; further answers wait and coalesce.
const IN_FLIGHT: u16 = 16;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{0}")]
    Files(#[from] TlsError),
    #[error("{0}")]
    Connection(#[from] Failure),
    #[error("no connection within {0:?}")]
    NoConnection(Duration),
    #[error("no data was exchanged for {0:?}")]
    Silent(Duration),
    #[error("the store thread has ended")]
    NoStore,
    #[error("the session's task has panicked")]
    Panicked,
    #[error("the hub stops")]
    Stopping,
}

/// Makes the next connection: Clean Start, no session, a will of this session. Certificates are read for each
/// connection, so that renewed ones are used.
pub(super) async fn open(
    settings: &HubSettings,
    session: u64,
    signer: &AnswerSigner,
    clock: &Arc<TrustedClock>,
    known: &mut Vec<SocketAddr>,
) -> Result<Connected, Ended> {
    let identity = Identity::load(&TlsFiles {
        ca: settings.ca_file.clone(),
        certificate: settings.certificate_file.clone(),
        key: settings.key_file.clone(),
    })?;
    let tls = identity.client_config(clock.clone())?;
    let SignedPublish { topic, payload, properties, .. } =
        signer.status("offline", session, "connection lost (unconfirmed)");
    let options = ConnectOptions {
        client_id: settings.hub.as_str().to_owned(),
        will: will(topic, payload, properties),
        keep_alive: keep_alive(settings),
        inflight: IN_FLIGHT,
        receive_maximum: settings.receive_maximum,
        maximum_packet_bytes: settings.maximum_packet_bytes,
    };
    let limit = settings.connect_timeout.max(Duration::from_secs(1));
    let plan = Plan {
        upstream: &Upstream { host: settings.broker_host.clone(), port: settings.broker_port },
        known,
        tls: Some(tls),
        options,
        filters: HUB_FILTERS.map(str::to_owned).to_vec(),
        phase_timeout: limit,
        // Short: answers should wait in `answers`, where they coalesce.
        queue: 1,
    };
    // All phases through CONNACK share the limit; the SUBSCRIBE has as long again.
    match tokio::time::timeout(limit * 2, connect(plan, |_| {})).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(Ended::NoConnection(limit * 2)),
    }
}

pub(super) fn keep_alive(settings: &HubSettings) -> Duration {
    settings.keep_alive.max(LEAST_KEEP_ALIVE)
}

/// A publish that is ready to send, QoS 1.
#[derive(Debug)]
pub struct SignedPublish {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// Its properties, with the signature.
    pub properties: PublishProperties,
}

impl From<SignedPublish> for Outgoing {
    fn from(signed: SignedPublish) -> Self {
        let SignedPublish { topic, payload, retain, properties } = signed;
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload, Some(properties));
        publish.retain = retain;
        Outgoing::Publish(publish)
    }
}

/// Encodes answers, numbers receipts and signs them.
pub struct AnswerSigner {
    hub: Hub,
    store: StoreIdentity,
    packet_bytes: u64,
    incarnation: u64,
    counter: u64,
    key: SigningKey,
}

impl AnswerSigner {
    /// Starts a random incarnation.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn begin(settings: &HubSettings, store: StoreIdentity, key: SigningKey) -> std::io::Result<Self> {
        // 53 bits: every JSON reader keeps such a number exactly.
        let incarnation = u64::from_be_bytes(pgw_durable::random()?) >> 11;
        let (hub, packet_bytes) = (settings.hub.clone(), settings.maximum_packet_bytes.into());
        Ok(Self { hub, store, packet_bytes, incarnation, counter: 0, key })
    }

    /// The signed publish for an answer.
    pub fn sign(&mut self, answer: Answer) -> SignedPublish {
        match answer {
            Answer::Receipt { lane, end, holds_point, backed_up, tail_seen, lost, window, nonce } => {
                self.counter += 1;
                let receipt = Receipt {
                    schema: SCHEMA,
                    hub: self.hub.clone(),
                    incarnation: self.incarnation,
                    counter: self.counter,
                    end,
                    holds_point,
                    store: self.store.store,
                    succeeds: self.store.succeeds.clone(),
                    tail_seen,
                    lost,
                    backed_up_through: backed_up,
                    limits: HubLimits { packet_bytes: Some(self.packet_bytes), window },
                    nonce,
                    time: now_text(),
                };
                let topic = Root::new(&lane.practice, &lane.gateway).receipt(&self.hub, &lane.lane);
                self.signed(Word::Receipt, topic, to_json(&receipt), true)
            }
            Answer::Gap { lane, gap } => {
                let topic = Root::new(&lane.practice, &lane.gateway).gap(&self.hub, &lane.lane);
                self.signed(Word::Gap, topic, to_json(&gap), false)
            }
            Answer::Command { practice, gateway, id, address, order } => {
                let command = Command { schema: SCHEMA, id, hub: self.hub.clone(), address, order };
                self.signed(
                    Word::Command,
                    Root::new(&practice, &gateway).plain("cmd"),
                    to_json(&command),
                    false,
                )
            }
            Answer::Probe { practice, gateway, payload } => {
                let topic = Root::new(&practice, &gateway).plain("probe/reply");
                self.signed(Word::Reply, topic, payload.to_vec(), false)
            }
        }
    }

    /// Our own status, retained.
    #[must_use]
    pub fn status(&self, status: &str, session: u64, reason: &str) -> SignedPublish {
        let payload = to_json(&Status::new(status, session, reason, now_text()));
        self.signed(Word::Status, hub_status(&self.hub), payload, true)
    }

    fn signed(&self, word: Word, topic: String, payload: Vec<u8>, retain: bool) -> SignedPublish {
        let value = self.key.sign(word, &topic, &payload).to_string();
        let properties = PublishProperties {
            user_properties: vec![(signature::PROPERTY.to_owned(), value)],
            content_type: Some("application/json".to_owned()),
            ..PublishProperties::default()
        };
        SignedPublish { topic, payload, retain, properties }
    }
}
