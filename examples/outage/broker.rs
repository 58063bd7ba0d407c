//! A small MQTT 5 broker, **for this demonstration only**, so that the example needs no other program and compiles
//! quickly.
//!
//! It stores nothing on disk: a restart loses the retained messages and all waiting ones. It has no access rules: any
//! client with a certificate of the CA may do everything. Sessions end with their connections, there is no QoS 2, and
//! messages do not expire. For anything else use a real broker: the tests use Mosquitto, and the example uses yours
//! with `--broker`.
//!
//! The codec is rumqttc's, as in the gateway and the hub. [`router`] decides which client gets what; this file has the
//! sockets, TLS with client certificates, and one task for each connection. A client that sends something malformed
//! loses its connection and disturbs no other.

mod router;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnAckProperties, Connect, ConnectReturnCode, Disconnect, DisconnectReasonCode as Reason,
    LastWill, Packet, PingResp, Publish, PublishProperties, SubAck, Subscribe, UnsubAck, Unsubscribe,
    check as frame,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use router::{Client, RECEIVE_MAXIMUM, Router, SessionId, Signals};

const MAXIMUM_PACKET_BYTES: u32 = 25 << 20;
const CONNECTIONS: usize = 100;
const CHUNK_BYTES: usize = 64 * 1024;
/// For the TLS handshake, and again for CONNECT.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// For the last packets to a client.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// Starts the broker on a free port of the loopback. It runs until the process ends. All files are PEM.
pub(crate) fn start(ca: &Path, certificate: &Path, key: &Path) -> crate::Result<SocketAddr> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(certificate)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?;
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    tokio::spawn(listen(TcpListener::from_std(listener)?, TlsAcceptor::from(Arc::new(tls))));
    Ok(address)
}

async fn listen(listener: TcpListener, tls: TlsAcceptor) {
    let router = Arc::new(Mutex::new(Router::default()));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (router, tls) = (Arc::clone(&router), tls.clone());
        tokio::spawn(async move {
            let _place = place;
            welcome(socket, &tls, &router).await;
        });
    }
}

async fn welcome(socket: TcpStream, tls: &TlsAcceptor, router: &Mutex<Router>) {
    let _ = socket.set_nodelay(true);
    // rustls reads 4 KiB at a time; the buffer reduces the number of system calls.
    let socket = BufReader::with_capacity(CHUNK_BYTES, socket);
    if let Ok(Ok(stream)) = timeout(HANDSHAKE_LIMIT, tls.accept(socket)).await {
        serve(stream, router).await;
    }
}

/// Why a connection ends.
enum Ended {
    /// The client has sent DISCONNECT; its will is not published.
    Farewell,
    /// The stream has ended without DISCONNECT, or the client asks for its will.
    Broken,
    /// The broker disconnects the client, with a reason.
    Refused(Reason),
}

impl From<std::io::Error> for Ended {
    fn from(_: std::io::Error) -> Self {
        Self::Broken
    }
}

impl From<CodecError> for Ended {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::PayloadSizeLimitExceeded { .. } => Self::Refused(Reason::PacketTooLarge),
            _ => Self::Refused(Reason::MalformedPacket),
        }
    }
}

/// Ends the session even if the connection's task panics.
struct Session<'a> {
    router: &'a Mutex<Router>,
    id: SessionId,
}

impl Session<'_> {
    fn router(&self) -> MutexGuard<'_, Router> {
        lock(self.router)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.router().end(self.id, true);
    }
}

fn lock(router: &Mutex<Router>) -> MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection from CONNECT to its end.
async fn serve(stream: impl AsyncRead + AsyncWrite, router: &Mutex<Router>) {
    let (mut from, mut to) = tokio::io::split(stream);
    let (mut incoming, mut outgoing) = (BytesMut::new(), BytesMut::new());
    let first = timeout(HANDSHAKE_LIMIT, read(&mut from, &mut incoming)).await;
    let Ok(Ok(Packet::Connect(connect, will, _))) = first else {
        return; // MQTT 5 §3.1: nothing but CONNECT comes first
    };
    let keep_alive = Duration::from_millis(u64::from(connect.keep_alive) * 1500);
    let Some((session, signals)) = admit(connect, will, router, &mut outgoing) else { return };
    // Both at once: a client may read only after it has written, or the other way round.
    let Err(ended) = tokio::select! {
        ended = receive(&mut from, &mut incoming, &session, keep_alive) => ended,
        ended = tell(&mut to, &mut outgoing, &session, &signals) => ended,
        () = signals.evicted.notified() => Err(Ended::Refused(Reason::SessionTakenOver)),
    };
    session.router().end(session.id, !matches!(ended, Ended::Farewell));
    if let Ended::Refused(reason) = ended {
        outgoing.extend_from_slice(&[0xE0, 2, reason as u8, 0]); // the codec gives it a wrong length
    }
    let last_words = async {
        to.write_all_buf(&mut outgoing).await?;
        to.shutdown().await
    };
    let _ = timeout(FAREWELL_LIMIT, last_words).await;
}

/// Starts the session and writes CONNACK. `None`: the client has a will that this broker could not publish.
fn admit<'a>(
    connect: Connect,
    will: Option<LastWill>,
    router: &'a Mutex<Router>,
    outgoing: &mut BytesMut,
) -> Option<(Session<'a>, Arc<Signals>)> {
    let mut will = will.map(from_will);
    if let Some(will) = &mut will {
        router::check(will).ok()?;
    }
    let asked = connect.properties.unwrap_or_default();
    let mut limits = our_limits();
    let mut state = lock(router);
    let mut name = connect.client_id;
    if name.is_empty() {
        name = state.new_name();
        limits.assigned_client_identifier = Some(name.clone());
    }
    let answer =
        ConnAck { session_present: false, code: ConnectReturnCode::Success, properties: Some(limits) };
    answer.write(outgoing).ok()?;
    let (id, signals) = state.connect(Client {
        name,
        will,
        receive_maximum: asked.receive_maximum.unwrap_or(u16::MAX).max(1),
        maximum_packet: asked.max_packet_size.map_or(usize::MAX, |bytes| bytes as usize),
    });
    Some((Session { router, id }, signals))
}

/// A will is published like any other message.
fn from_will(will: LastWill) -> Publish {
    let LastWill { topic, message, qos, retain, properties } = will;
    let properties = properties.map(|will| PublishProperties {
        payload_format_indicator: will.payload_format_indicator,
        message_expiry_interval: will.message_expiry_interval,
        response_topic: will.response_topic,
        correlation_data: will.correlation_data,
        user_properties: will.user_properties,
        content_type: will.content_type,
        ..PublishProperties::default()
    });
    Publish { topic, payload: message, qos, retain, properties, ..Publish::default() }
}

/// What CONNACK says about this broker.
fn our_limits() -> ConnAckProperties {
    ConnAckProperties {
        session_expiry_interval: Some(0),
        receive_max: Some(RECEIVE_MAXIMUM),
        max_qos: Some(1),
        retain_available: None,
        max_packet_size: Some(MAXIMUM_PACKET_BYTES),
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: Some(0),
        shared_subscription_available: Some(0),
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

/// Handles what the client sends; never waits for another client.
async fn receive(
    from: &mut (impl AsyncRead + Unpin),
    incoming: &mut BytesMut,
    session: &Session<'_>,
    keep_alive: Duration,
) -> Result<Infallible, Ended> {
    let limit = if keep_alive.is_zero() { Duration::MAX } else { keep_alive };
    loop {
        let packet = timeout(limit, read(from, incoming))
            .await
            .map_err(|_| Ended::Refused(Reason::KeepAliveTimeout))??;
        handle(packet, &mut session.router(), session.id)?;
    }
}

/// Writes what the router has for the client.
async fn tell(
    to: &mut (impl AsyncWrite + Unpin),
    outgoing: &mut BytesMut,
    session: &Session<'_>,
    signals: &Signals,
) -> Result<Infallible, Ended> {
    loop {
        to.write_all_buf(outgoing).await?;
        to.flush().await?;
        let packets = session.router().take(session.id);
        if packets.is_empty() {
            signals.work.notified().await;
        }
        for packet in packets {
            packet.write(outgoing, None)?;
        }
    }
}

fn handle(packet: Packet, router: &mut Router, id: SessionId) -> Result<(), Ended> {
    let done = match packet {
        Packet::Publish(message) => router.publish(id, message),
        Packet::PubAck(ack) => {
            router.acknowledged(id, ack.pkid);
            Ok(())
        }
        Packet::Subscribe(subscribe) if subscribe.properties.as_ref().is_some_and(|p| p.id.is_some()) => {
            Err(Reason::SubscriptionIdentifiersNotSupported)
        }
        Packet::Subscribe(Subscribe { pkid, filters, .. }) => {
            let return_codes = filters.into_iter().map(|filter| router.subscribe(id, filter)).collect();
            router.reply(id, Packet::SubAck(SubAck { pkid, return_codes, properties: None }))
        }
        Packet::Unsubscribe(Unsubscribe { pkid, filters, .. }) => {
            let reasons = filters.iter().map(|filter| router.unsubscribe(id, filter)).collect();
            router.reply(id, Packet::UnsubAck(UnsubAck { pkid, reasons, properties: None }))
        }
        Packet::PingReq(_) => router.reply(id, Packet::PingResp(PingResp)),
        Packet::Disconnect(Disconnect { reason_code: Reason::NormalDisconnection, .. }) => {
            return Err(Ended::Farewell);
        }
        Packet::Disconnect(_) => return Err(Ended::Broken),
        _ => Err(Reason::ProtocolError),
    };
    done.map_err(Ended::Refused)
}

/// Reads one packet.
async fn read(from: &mut (impl AsyncRead + Unpin), incoming: &mut BytesMut) -> Result<Packet, Ended> {
    loop {
        if let Some(packet) = decode(incoming)? {
            return Ok(packet);
        }
        incoming.reserve(CHUNK_BYTES);
        if from.read_buf(incoming).await? == 0 {
            return Err(Ended::Broken);
        }
    }
}

/// Takes one packet out of the bytes, if all of it is there.
fn decode(incoming: &mut BytesMut) -> Result<Option<Packet>, CodecError> {
    let length = match frame(incoming.iter(), Some(MAXIMUM_PACKET_BYTES)) {
        Ok(header) => header.frame_length(),
        Err(CodecError::InsufficientBytes(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = incoming.split_to(length);
    // DISCONNECT may leave out its properties and its reason, which the codec does not know.
    if let [0xE0, 0] | [0xE0, 1, _] = bytes[..] {
        let reason = bytes.get(2).map_or(Ok(Reason::NormalDisconnection), |byte| Reason::try_from(*byte))?;
        return Ok(Some(Packet::Disconnect(Disconnect::new(reason))));
    }
    // The packet is complete: if the codec still needs more bytes, it is malformed.
    Packet::read(&mut bytes, None).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, PingReq, PubAck, SubscribeReasonCode};
    use tokio::io::DuplexStream;

    /// A client, packet by packet.
    struct Peer {
        stream: DuplexStream,
        incoming: BytesMut,
    }

    impl Peer {
        /// A connection that has sent nothing yet.
        fn new(router: &Arc<Mutex<Router>>) -> Self {
            let (ours, theirs) = tokio::io::duplex(4096);
            let router = Arc::clone(router);
            tokio::spawn(async move { serve(theirs, &router).await });
            Self { stream: ours, incoming: BytesMut::new() }
        }

        async fn connect(router: &Arc<Mutex<Router>>, name: &str) -> Self {
            let mut peer = Self::new(router);
            let will = LastWill::new("will", name.to_owned(), QoS::AtLeastOnce, false, None);
            peer.say(&connect(name, 60, Some(will))).await;
            let Some(Packet::ConnAck(ack)) = peer.receive().await else { panic!("no CONNACK") };
            assert_eq!((ack.code, ack.session_present), (ConnectReturnCode::Success, false));
            let limits = ack.properties.unwrap();
            assert_eq!(
                (limits.receive_max, limits.session_expiry_interval),
                (Some(RECEIVE_MAXIMUM), Some(0))
            );
            peer
        }

        async fn say(&mut self, packet: &Packet) {
            let mut bytes = BytesMut::new();
            packet.write(&mut bytes, None).unwrap();
            self.raw(&bytes).await;
        }

        async fn raw(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.unwrap();
        }

        /// `None`: the broker has closed.
        async fn receive(&mut self) -> Option<Packet> {
            read(&mut self.stream, &mut self.incoming).await.ok()
        }

        async fn ends_with(&mut self, reason: Reason) {
            let last = self.receive().await;
            assert_eq!(last, Some(Packet::Disconnect(Disconnect::new(reason))));
            assert_eq!(self.receive().await, None);
        }

        async fn subscribe(&mut self, path: &str) {
            let mut subscribe = Subscribe::new(Filter::new(path, QoS::AtLeastOnce), None);
            subscribe.pkid = 3;
            self.say(&Packet::Subscribe(subscribe)).await;
            let return_codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce)];
            let ack = SubAck { pkid: 3, return_codes, properties: None };
            assert_eq!(self.receive().await, Some(Packet::SubAck(ack)));
        }

        async fn body(&mut self) -> String {
            let Some(Packet::Publish(message)) = self.receive().await else { panic!("no message") };
            self.say(&Packet::PubAck(PubAck::new(message.pkid, None))).await;
            String::from_utf8(message.payload.to_vec()).unwrap()
        }

        /// It is still served.
        async fn is_alive(&mut self) {
            self.say(&Packet::PingReq(PingReq)).await;
            assert_eq!(self.receive().await, Some(Packet::PingResp(PingResp)));
        }
    }

    fn connect(name: &str, keep_alive: u16, will: Option<LastWill>) -> Packet {
        let properties = Some(ConnectProperties { receive_maximum: Some(5), ..ConnectProperties::new() });
        let connect = Connect { keep_alive, client_id: name.to_owned(), clean_start: true, properties };
        Packet::Connect(connect, will, None)
    }

    fn message(number: u16) -> Packet {
        let mut message = Publish::new("a/b", QoS::AtLeastOnce, number.to_string(), None);
        message.pkid = number;
        Packet::Publish(message)
    }

    #[tokio::test]
    async fn a_message_goes_from_one_client_to_the_other_and_is_acknowledged() {
        let router = Arc::default();
        let mut subscriber = Peer::connect(&router, "subscriber").await;
        subscriber.subscribe("a/+").await;
        let mut publisher = Peer::connect(&router, "publisher").await;
        for number in 1..=20 {
            publisher.say(&message(number)).await;
            assert_eq!(publisher.receive().await, Some(Packet::PubAck(PubAck::new(number, None))));
        }
        for number in 1..=20 {
            assert_eq!(subscriber.body().await, number.to_string());
        }
        let unsubscribe = Unsubscribe { pkid: 4, ..Unsubscribe::new("a/+", None) };
        subscriber.say(&Packet::Unsubscribe(unsubscribe)).await;
        assert!(matches!(subscriber.receive().await, Some(Packet::UnsubAck(ack)) if ack.pkid == 4));
        publisher.say(&message(21)).await;
        subscriber.is_alive().await;
    }

    #[tokio::test]
    async fn malformed_bytes_end_their_own_connection_and_no_other() {
        let router = Arc::default();
        let mut watcher = Peer::connect(&router, "watcher").await;
        watcher.subscribe("will").await;
        let broken: [(&[u8], Reason); 6] = [
            (&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1], Reason::MalformedPacket), // a length of five bytes
            (&[0x30, 0x80, 0x80, 0x80, 0x0D], Reason::PacketTooLarge),
            (&[0x30, 3, 0, 9, b'a'], Reason::MalformedPacket), // a topic beyond the end
            (&[0x32, 5, 0, 1, b'a', 0, 1], Reason::MalformedPacket), // no properties
            (&[0xF0, 2, 0, 0], Reason::MalformedPacket),
            (&[0x36, 6, 0, 1, b'a', 0, 1, 0], Reason::MalformedPacket), // QoS 3
        ];
        for (bytes, reason) in broken {
            let mut peer = Peer::connect(&router, "bad").await;
            peer.raw(bytes).await;
            peer.ends_with(reason).await;
            assert_eq!(watcher.body().await, "bad", "its will");
        }
        let mut peer = Peer::connect(&router, "bad").await;
        peer.say(&connect("bad", 60, None)).await; // once more on the same connection
        peer.ends_with(Reason::ProtocolError).await;
        assert_eq!(watcher.body().await, "bad");
        let mut peer = Peer::new(&router);
        peer.say(&Packet::PingReq(PingReq)).await; // before CONNECT
        assert_eq!(peer.receive().await, None);
        watcher.is_alive().await;
    }

    #[tokio::test]
    async fn a_will_follows_an_abnormal_end_only() {
        let router = Arc::default();
        let mut watcher = Peer::connect(&router, "watcher").await;
        watcher.subscribe("will").await;
        // All three forms of DISCONNECT: without reason, without properties, complete.
        for farewell in [&[0xE0, 0][..], &[0xE0, 1, 0], &[0xE0, 2, 0, 0]] {
            let mut peer = Peer::connect(&router, "polite").await;
            peer.raw(farewell).await;
            assert_eq!(peer.receive().await, None);
        }
        let mut peer = Peer::connect(&router, "asks for it").await;
        peer.raw(&[0xE0, 1, 4]).await;
        assert_eq!(watcher.body().await, "asks for it");
        drop(Peer::connect(&router, "gone").await);
        assert_eq!(watcher.body().await, "gone");
        let mut old = Peer::connect(&router, "twice").await;
        let mut new = Peer::connect(&router, "twice").await;
        old.ends_with(Reason::SessionTakenOver).await;
        assert_eq!(watcher.body().await, "twice");
        new.is_alive().await;
        watcher.is_alive().await;
    }

    #[tokio::test]
    async fn who_is_silent_for_longer_than_the_keep_alive_is_disconnected() {
        let router = Arc::default();
        let mut peer = Peer::new(&router);
        peer.say(&connect("silent", 1, None)).await;
        assert!(matches!(peer.receive().await, Some(Packet::ConnAck(_))));
        tokio::time::sleep(Duration::from_secs(1)).await;
        peer.is_alive().await;
        let start = std::time::Instant::now();
        peer.ends_with(Reason::KeepAliveTimeout).await;
        assert!(
            start.elapsed() > Duration::from_millis(1400),
            "one and a half times 1 s, from the last packet"
        );
    }

    #[tokio::test]
    async fn a_will_that_cannot_be_published_is_refused_and_a_client_without_name_gets_one() {
        let router = Arc::default();
        let mut peer = Peer::new(&router);
        let will = LastWill::new("will", "x", QoS::ExactlyOnce, false, None);
        peer.say(&connect("ambitious", 60, Some(will))).await;
        assert_eq!(peer.receive().await, None);
        let mut peer = Peer::new(&router);
        peer.say(&connect("", 60, None)).await;
        let Some(Packet::ConnAck(ack)) = peer.receive().await else { panic!("no CONNACK") };
        assert!(ack.properties.unwrap().assigned_client_identifier.is_some());
    }
}
