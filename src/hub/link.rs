//! One connection of the hub: its options, and what is published on it.

use std::sync::Arc;

use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, PublishProperties};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};

use super::Settings;
use super::answers::Answer;
use super::desk::now_text;
use crate::transaction::Hub;
use crate::uplink::tls::{Identity, TlsError};
use crate::uplink::{TlsFiles, TrustedClock};
use crate::wire::presence::Status;
use crate::wire::receipt::{Receipt, Stored};
use crate::wire::signature::{self, SigningKey};
use crate::wire::topic::{Root, hub_status};
use crate::wire::{SCHEMA, to_json};

/// Most of our own publishes that are not acknowledged: what waits behind them coalesces.
const IN_FLIGHT: u16 = 16;

/// The options of the next connection: Clean Start, no session, a will of this session.
///
/// # Errors
/// [`TlsError`]: the files cannot be read now, or do not fit.
pub fn options(
    settings: &Settings,
    session: u64,
    clock: &Arc<TrustedClock>,
) -> Result<MqttOptions, TlsError> {
    // Read at each connect, so that renewed certificates are taken.
    let identity = Identity::load(&TlsFiles {
        ca: settings.ca_file.clone(),
        certificate: settings.certificate_file.clone(),
        key: settings.key_file.clone(),
    })?;
    let tls = identity.client_config(clock.clone())?;
    let mut options =
        MqttOptions::new(settings.hub.as_str(), settings.broker_host.as_str(), settings.broker_port);
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    // rumqttc panics below 5 s.
    options.set_keep_alive(settings.keep_alive.max(std::time::Duration::from_secs(5)));
    options.set_connection_timeout(settings.connect_timeout.as_secs().max(1));
    options.set_clean_start(true);
    options.set_receive_maximum(Some(settings.receive_maximum.max(1)));
    options.set_max_packet_size(Some(settings.maximum_packet_bytes));
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
    let will = to_json(&Status::new("offline", session, "connection lost", now_text()));
    options.set_last_will(LastWill::new(hub_status(&settings.hub), will, QoS::AtLeastOnce, true, None));
    Ok(options)
}

/// A publish that is ready to go out, QoS 1.
#[derive(Debug)]
pub struct Outgoing {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Retained.
    pub retain: bool,
    /// With the signature.
    pub properties: PublishProperties,
}

/// Gives answers their form, numbers receipts and signs.
pub struct Speaker {
    hub: Hub,
    incarnation: u64,
    counter: u64,
    key: SigningKey,
}

impl Speaker {
    /// `incarnation` is random at each start.
    #[must_use]
    pub fn new(hub: Hub, incarnation: u64, key: SigningKey) -> Self {
        Self { hub, incarnation, counter: 0, key }
    }

    /// The publish for an answer.
    pub fn say(&mut self, answer: Answer) -> Outgoing {
        match answer {
            Answer::Receipt { lane, marks, nonce } => {
                self.counter += 1;
                let receipt = Receipt {
                    schema: SCHEMA,
                    hub: self.hub.clone(),
                    incarnation: self.incarnation,
                    counter: self.counter,
                    epochs: marks
                        .iter()
                        .map(|mark| Stored { epoch: mark.epoch, through: mark.through, chain: mark.chain })
                        .collect(),
                    backed_up_through: None,
                    nonce,
                    time: now_text(),
                };
                let topic = Root::new(&lane.practice, &lane.gateway).receipt(&self.hub, &lane.lane);
                self.signed(topic, to_json(&receipt), true)
            }
            Answer::Gap { lane, gap } => {
                let topic = Root::new(&lane.practice, &lane.gateway).gap(&self.hub, &lane.lane);
                self.signed(topic, to_json(&gap), false)
            }
            Answer::Probe { practice, gateway, payload } => {
                self.signed(Root::new(&practice, &gateway).plain("probe/reply"), payload.to_vec(), false)
            }
        }
    }

    /// Our own status, retained.
    #[must_use]
    pub fn status(&self, status: &str, session: u64, reason: &str) -> Outgoing {
        let payload = to_json(&Status::new(status, session, reason, now_text()));
        self.signed(hub_status(&self.hub), payload, true)
    }

    fn signed(&self, topic: String, payload: Vec<u8>, retain: bool) -> Outgoing {
        let value = self.key.sign(&topic, &payload);
        let properties = PublishProperties {
            user_properties: vec![(signature::PROPERTY.to_owned(), value)],
            content_type: Some("application/json".to_owned()),
            ..PublishProperties::default()
        };
        Outgoing { topic, payload, retain, properties }
    }
}
