//! From a host name to a subscribed session: look-up, socket, TLS, CONNECT, SUBSCRIBE, each with its own deadline.
//!
//! Gateway and hub both connect this way. A failed attempt leaves nothing behind but the addresses that were found:
//! the next one has a new socket and a new session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pgw_core::wire::topic::is_retained;
use pgw_host::config::Upstream;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Filter, LastWill, LastWillProperties, PublishProperties, RetainForwardRule, SubAck,
    SubscribeReasonCode,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;

use crate::failure::Failure;
use crate::phase::Phase;
use crate::session::{ConnectOptions, Outgoing, Session, SessionEvent};
use crate::transport::{self, Stream};

/// The shortest keep-alive that brokers handle well.
pub const LEAST_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Messages that may come before the SUBACK: a broker may send retained messages first.
const EARLY_BYTES: usize = 64 << 20;
/// The least that a message counts, bytes.
const LEAST_EARLY_BYTES: usize = 1024;

/// What a connection needs to know.
pub struct Plan<'a> {
    /// The broker; its certificate must be for this host.
    pub upstream: &'a Upstream,
    /// Addresses of the last successful look-up, updated here: they are used when the name server does not answer.
    pub known: &'a mut Vec<SocketAddr>,
    /// `None`: MQTT without TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// Client id, will and limits. The keep-alive is at least [`LEAST_KEEP_ALIVE`].
    pub options: ConnectOptions,
    /// Subscribed to with QoS 1. The broker must accept all of them.
    pub filters: Vec<String>,
    /// Deadline of each phase.
    pub phase_timeout: Duration,
    /// Bundles of packets that may wait for the session.
    pub queue: usize,
}

/// A will: retained, QoS 1, with the content type and the user properties (the signature) of a publish.
#[must_use]
pub fn will(topic: String, payload: Vec<u8>, properties: PublishProperties) -> LastWill {
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: properties.content_type,
        response_topic: None,
        correlation_data: None,
        user_properties: properties.user_properties,
    };
    LastWill::new(topic, payload, QoS::AtLeastOnce, true, Some(properties))
}

/// What the broker allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Unacknowledged publishes.
    pub inflight: u16,
    /// Whole packet, bytes.
    pub packet_bytes: Option<u64>,
}

/// A session that is subscribed. Its owner drives it with [`Session::next`], which sends what it takes from `handed`.
pub struct Connected {
    /// The session over its stream.
    pub session: Session<Box<dyn Stream>>,
    /// Where packets to be sent are put.
    pub queue: mpsc::Sender<Vec<Outgoing>>,
    /// The receiving end, for the session.
    pub handed: mpsc::Receiver<Vec<Outgoing>>,
    /// What the broker allows.
    pub allowed: Allowed,
    /// Messages that came before the SUBACK, in order.
    pub early: Vec<SessionEvent>,
}

/// Connects and subscribes. `phase` is called as each phase begins. Dropping the future at any moment closes the
/// socket.
///
/// # Errors
/// [`Failure`] names the phase.
pub async fn connect(plan: Plan<'_>, mut phase: impl FnMut(Phase)) -> Result<Connected, Failure> {
    let limit = plan.phase_timeout;
    phase(Phase::Dns);
    transport::resolve(plan.upstream, plan.known, limit).await?;
    phase(Phase::Tcp);
    let socket = transport::open(plan.known, limit).await?;
    let stream: Box<dyn Stream> = match plan.tls {
        Some(config) => {
            phase(Phase::Tls);
            transport::secure(socket, &plan.upstream.host, config, limit).await?
        }
        None => Box::new(socket),
    };

    phase(Phase::Mqtt);
    let mut options = plan.options;
    options.keep_alive = options.keep_alive.max(LEAST_KEEP_ALIVE);
    let wanted = options.inflight;
    let (session, connack) = match timeout(limit, Session::open(stream, options)).await {
        Ok(opened) => opened.map_err(|error| Failure::session(Phase::Mqtt, &error))?,
        Err(_) => return Err(Failure::timeout(Phase::Mqtt, limit.as_secs())),
    };

    phase(Phase::Subscribe);
    let (queue, handed) = mpsc::channel(plan.queue.max(1));
    let allowed = allowed(wanted, &connack);
    let mut connected = Connected { session, queue, handed, allowed, early: Vec::new() };
    match timeout(limit, subscribe(&mut connected, &plan.filters)).await {
        Ok(subscribed) => subscribed.map(|()| connected),
        Err(_) => Err(Failure::timeout(Phase::Subscribe, limit.as_secs())),
    }
}

fn allowed(wanted: u16, connack: &ConnAck) -> Allowed {
    match &connack.properties {
        None => Allowed { inflight: wanted, packet_bytes: None },
        Some(properties) => Allowed {
            inflight: properties.receive_max.unwrap_or(u16::MAX).min(wanted),
            packet_bytes: properties.max_packet_size.map(u64::from),
        },
    }
}

/// As MQTT 5 §3.8.3.1 has it.
fn wanted(filter: &String) -> Filter {
    let mut wanted = Filter::new(filter, QoS::AtLeastOnce);
    if !is_retained(filter) {
        wanted.retain_forward_rule = RetainForwardRule::Never;
    }
    wanted
}

async fn subscribe(connected: &mut Connected, filters: &[String]) -> Result<(), Failure> {
    let ended = || Failure::stream(Phase::Subscribe, None);
    let wanted = filters.iter().map(wanted).collect();
    connected.queue.send(vec![Outgoing::Subscribe(wanted)]).await.map_err(|_| ended())?;
    let (mut events, mut early_bytes) = (Vec::new(), 0_usize);
    loop {
        let worked = connected.session.next(&mut connected.handed, &mut events).await;
        let mut answer = None;
        for event in events.drain(..) {
            match event {
                SessionEvent::Subscribed(suback) if answer.is_none() => answer = Some(suback),
                SessionEvent::Message(publish) => {
                    early_bytes += publish.payload.len().max(LEAST_EARLY_BYTES);
                    connected.early.push(SessionEvent::Message(publish));
                }
                SessionEvent::Other => {}
                other => connected.early.push(other),
            }
        }
        if let Some(suback) = answer {
            accepted(filters, &suback)?;
            return worked.map_err(|error| Failure::session(Phase::Live, &error));
        }
        worked.map_err(|error| Failure::session(Phase::Subscribe, &error))?;
        if early_bytes > EARLY_BYTES {
            return Err(Failure::new(
                Phase::Subscribe,
                "the broker sends messages, and does not answer the SUBSCRIBE",
            ));
        }
    }
}

/// Whether the broker accepted all filters.
fn accepted(filters: &[String], suback: &SubAck) -> Result<(), Failure> {
    if suback.return_codes.len() != filters.len() {
        return Err(Failure::new(Phase::Subscribe, "the broker answered another SUBSCRIBE than ours"));
    }
    let refused = filters
        .iter()
        .zip(&suback.return_codes)
        .find(|(_, code)| !matches!(code, SubscribeReasonCode::Success(_)));
    match refused {
        None => Ok(()),
        Some((filter, code)) => Err(Failure::new(
            Phase::Subscribe,
            format!(
                "the broker refuses the subscription to {filter}: {code:?}: does its ACL know this client?"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, LastWill, Packet, Publish};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use crate::codec::decode;

    /// A broker that takes one connection and answers SUBSCRIBE with these packets.
    async fn attempt(answer: Vec<Packet>) -> (Result<Connected, Failure>, Vec<Phase>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let broker = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut incoming = BytesMut::new();
            loop {
                let answers = match decode(&mut incoming, 4096).unwrap() {
                    Some(Packet::Connect(connect, ..)) => {
                        assert_eq!(connect.keep_alive, 5, "the least that brokers take well");
                        let code = ConnectReturnCode::Success;
                        vec![Packet::ConnAck(ConnAck { session_present: false, code, properties: None })]
                    }
                    Some(Packet::Subscribe(subscribe)) => {
                        let rules: Vec<_> =
                            subscribe.filters.iter().map(|filter| &filter.retain_forward_rule).collect();
                        let expected = [&RetainForwardRule::OnEverySubscribe, &RetainForwardRule::Never];
                        assert_eq!(rules, expected, "what the broker retains comes only where it is wanted");
                        answer.clone()
                    }
                    Some(_) => vec![],
                    None if stream.read_buf(&mut incoming).await.unwrap() == 0 => return,
                    None => continue,
                };
                let mut bytes = BytesMut::new();
                for packet in answers {
                    packet.write(&mut bytes, None).unwrap();
                }
                stream.write_all(&bytes).await.unwrap();
            }
        });
        let mut phases = Vec::new();
        let plan = Plan {
            upstream: &upstream,
            known: &mut Vec::new(),
            tls: None,
            options: ConnectOptions {
                client_id: "B86022.gw1".into(),
                will: LastWill::new("will", "gone", QoS::AtLeastOnce, true, None),
                keep_alive: Duration::from_secs(1),
                inflight: 7,
                receive_maximum: 9,
                maximum_packet_bytes: 1 << 20,
            },
            filters: vec!["a/status".into(), "b/#".into()],
            phase_timeout: Duration::from_millis(500),
            queue: 1,
        };
        let connected = connect(plan, |phase| phases.push(phase)).await;
        broker.abort();
        (connected, phases)
    }

    fn suback(second: SubscribeReasonCode) -> Packet {
        let return_codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce), second];
        Packet::SubAck(SubAck { pkid: 1, return_codes, properties: None })
    }

    #[tokio::test]
    async fn what_the_broker_retains_may_come_before_its_suback() {
        let retained = Packet::Publish(Publish::new("a/status", QoS::AtMostOnce, "up", None));
        let good = suback(SubscribeReasonCode::Success(QoS::AtLeastOnce));
        let (connected, phases) = attempt(vec![retained, good]).await;
        let Ok(connected) = connected else { panic!("not subscribed") };
        assert_eq!(phases, [Phase::Dns, Phase::Tcp, Phase::Mqtt, Phase::Subscribe]);
        assert_eq!(connected.allowed, Allowed { inflight: 7, packet_bytes: None });
        assert!(
            matches!(&connected.early[..], [SessionEvent::Message(publish)] if publish.topic == "a/status")
        );
    }

    #[tokio::test]
    async fn a_subscription_that_is_refused_or_not_answered_is_a_failure_of_its_phase() {
        let (refused, _) = attempt(vec![suback(SubscribeReasonCode::NotAuthorized)]).await;
        let failure = refused.err().expect("refused");
        assert_eq!(failure.phase, Phase::Subscribe);
        assert!(failure.sentence.contains("b/#") && failure.sentence.contains("NotAuthorized"), "{failure}");
        let (silent, _) = attempt(vec![]).await;
        assert_eq!(silent.err().expect("silent"), Failure::timeout(Phase::Subscribe, 0));
    }
}
