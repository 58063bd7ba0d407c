//! One MQTT session: rumqttc's packets and protocol state over our own stream, read and written in large pieces.
//!
//! rumqttc's own event loop writes and flushes each packet separately, opens its sockets itself, and copies every
//! publish twice; at a replay's rate that takes most of the processor time at both ends. So we keep its state machine
//! and codec, and replace the loop: this one reads everything that has arrived before it answers anything, and sends
//! all answers in one write, as a TLS record of many packets.
//!
//! Cancelling a future interrupts nothing half-way: data that was read or is to be written lives in the session, not
//! in the future. A session is for one connection and cannot be used again after an error.

use std::collections::VecDeque;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, Filter, LastWill, Packet, PubAckReason, Publish,
    SubAck, Subscribe,
};
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS};
use rumqttc::v5::{ConnectionError, MqttState, Request, StateError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::codec::{Malformed, decode};

/// Bytes read before anything is answered, and bytes prepared before anything is written.
const CHUNK_BYTES: usize = 64 * 1024;
/// The read buffer is replaced when less than this is free in it.
const LEAST_FREE: usize = 16 * 1024;
/// Most events handed over at once: few enough that the window is refilled while the rest is in flight.
const MOST_EVENTS: usize = 256;

/// How a session starts: Clean Start, no session at the broker.
pub struct ConnectOptions {
    /// Unique at the broker: a second session with the same id ends the first.
    pub client_id: String,
    /// The will: what the broker publishes when the session breaks off.
    pub will: LastWill,
    /// After this long without traffic the peer counts as gone.
    pub keep_alive: Duration,
    /// Most unacknowledged publishes of ours, if the broker allows as many.
    pub inflight: u16,
    /// Most publishes that the broker may have in flight to us.
    pub receive_maximum: u16,
    /// Largest packet that is accepted, bytes.
    pub maximum_packet_bytes: u32,
}

/// A packet to be sent.
#[derive(Debug)]
pub enum Outgoing {
    /// QoS 1; the session assigns the packet identifier.
    Publish(Publish),
    /// The same, already encoded except for its packet identifier.
    Frame(Frame),
    /// QoS 1.
    Subscribe(Vec<Filter>),
    /// DISCONNECT; the broker closes.
    Disconnect,
}

/// A QoS 1 publish in its encoded form.
#[derive(Debug)]
pub struct Frame {
    bytes: BytesMut,
    /// Offset of its packet identifier.
    packet_at: usize,
}

impl Frame {
    /// Encodes a publish. `Err`: it is larger than MQTT allows.
    pub fn new(publish: &mut Publish) -> Result<Self, CodecError> {
        publish.pkid = 1;
        let mut bytes = BytesMut::with_capacity(publish.size());
        publish.write(&mut bytes)?;
        let length_bytes = bytes.iter().skip(1).take_while(|byte| **byte >= 128).count() + 1;
        Ok(Self { packet_at: 1 + length_bytes + 2 + publish.topic.len(), bytes })
    }

    /// Bytes of the whole packet.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The packet, decoded.
    pub fn bytes_mut(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    fn number(&mut self, packet: u16) {
        if let Some(there) = self.bytes.get_mut(self.packet_at..self.packet_at + 2) {
            there.copy_from_slice(&packet.to_be_bytes());
        }
    }
}

/// What happened on the connection.
#[derive(Debug)]
pub enum SessionEvent {
    /// The oldest publish handed over was given this packet identifier.
    Written(u16),
    /// A PUBACK; `Err`: its reason code.
    Acknowledged(u16, Result<(), u8>),
    /// A publish arrived; it has been acknowledged.
    Message(Box<Publish>),
    /// The answer to SUBSCRIBE.
    Subscribed(Box<SubAck>),
    /// Anything else from the broker.
    Other,
}

/// Why a session has ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker sent a packet that cannot be read: a protocol error.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The stream, or rumqttc's state machine.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl From<StateError> for SessionError {
    fn from(error: StateError) -> Self {
        Self::Connection(error.into())
    }
}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        Self::Connection(error.into())
    }
}

/// A connected session. Dropping it closes the stream.
pub struct Session<S> {
    stream: S,
    state: MqttState,
    inflight: u16,
    incoming: BytesMut,
    outgoing: BytesMut,
    unflushed: bool,
    maximum_incoming: u32,
    maximum_outgoing: Option<u32>,
    keep_alive: Duration,
    ping: Pin<Box<Sleep>>,
    /// Handed over, without a packet identifier yet.
    waiting: VecDeque<Outgoing>,
    /// Its packet identifier is still in use by another publish: the broker acknowledges out of order.
    collided: Option<Outgoing>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Sends CONNECT and reads the broker's CONNACK. The caller limits the time.
    pub async fn open(stream: S, options: ConnectOptions) -> Result<(Self, ConnAck), SessionError> {
        let ConnectOptions { client_id, will, keep_alive, inflight, receive_maximum, maximum_packet_bytes } =
            options;
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(0);
        properties.receive_maximum = Some(receive_maximum.max(1));
        properties.max_packet_size = Some(maximum_packet_bytes);
        let connect = Connect {
            keep_alive: u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX),
            client_id,
            clean_start: true,
            properties: Some(properties),
        };
        let mut session = Self {
            stream,
            state: MqttState::new(inflight.max(1), false),
            inflight: inflight.max(1),
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            unflushed: false,
            maximum_incoming: maximum_packet_bytes,
            maximum_outgoing: None,
            keep_alive,
            ping: Box::pin(tokio::time::sleep(keep_alive)),
            waiting: VecDeque::new(),
            collided: None,
        };
        session.write(&Packet::Connect(connect, Some(will), None))?;
        if let Err(error) = session.write_all().await {
            // The broker may have sent a reason before it closed.
            let read = session.stream.read_buf(&mut session.incoming).await;
            return Err(read.err().unwrap_or(error).into());
        }
        let packet = loop {
            if let Some(packet) = decode(&mut session.incoming, session.maximum_incoming)? {
                break packet;
            }
            if session.stream.read_buf(&mut session.incoming).await? == 0 {
                return Err(StateError::ConnectionAborted.into());
            }
        };
        let connack = match packet {
            Packet::ConnAck(connack) if connack.code == ConnectReturnCode::Success => connack,
            Packet::ConnAck(connack) => return Err(ConnectionError::ConnectionRefused(connack.code).into()),
            other => return Err(ConnectionError::NotConnAck(Box::new(other)).into()),
        };
        session.state.handle_incoming_packet(Packet::ConnAck(connack.clone()))?;
        if let Some(properties) = &connack.properties {
            session.inflight = session.inflight.min(properties.receive_max.unwrap_or(u16::MAX));
            session.maximum_outgoing = properties.max_packet_size;
            if let Some(seconds) = properties.server_keep_alive.filter(|seconds| *seconds > 0) {
                session.keep_alive = Duration::from_secs(seconds.into());
            }
        }
        session.rest();
        Ok((session, connack))
    }

    /// Works until something has happened, which is then in `events`, even if this returns an error: it happened
    /// before the error.
    pub async fn next(
        &mut self,
        queue: &mut mpsc::Receiver<Vec<Outgoing>>,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), SessionError> {
        poll_fn(|context| self.poll(context, queue, events)).await
    }

    fn poll(
        &mut self,
        context: &mut Context<'_>,
        queue: &mut mpsc::Receiver<Vec<Outgoing>>,
        events: &mut Vec<SessionEvent>,
    ) -> Poll<Result<(), SessionError>> {
        if self.ping.as_mut().poll(context).is_ready() {
            // rumqttc pings whatever else is in flight; the last ping must have been answered.
            self.request(Request::PingReq)?;
            self.rest();
            // Registers its waker for the new deadline.
            let _ = self.ping.as_mut().poll(context);
        }
        loop {
            let read = self.poll_read(context, events)?;
            let handed = self.poll_queue(context, queue, events)?;
            let written = self.poll_write(context)?;
            if events.len() >= MOST_EVENTS {
                return Poll::Ready(Ok(()));
            }
            if !(read || handed || written) {
                break;
            }
        }
        if events.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Reads what is available, up to a chunk; returns whether there may be more.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        events: &mut Vec<SessionEvent>,
    ) -> Result<bool, SessionError> {
        let mut count = 0;
        let mut more = true;
        let mut ended = None;
        while count < CHUNK_BYTES {
            if self.incoming.capacity() - self.incoming.len() < LEAST_FREE {
                self.incoming.reserve(CHUNK_BYTES);
            }
            match pin!(self.stream.read_buf(&mut self.incoming)).poll(context) {
                Poll::Ready(Ok(0)) => ended = Some(StateError::ConnectionAborted.into()),
                Poll::Ready(Ok(read)) => {
                    count += read;
                    continue;
                }
                Poll::Ready(Err(error)) => ended = Some(error.into()),
                Poll::Pending => more = false,
            }
            break;
        }
        // Packets that came before the end are processed: they may hold the reason.
        while let Some(packet) = decode(&mut self.incoming, self.maximum_incoming)? {
            self.take(packet, events)?;
        }
        ended.map_or(Ok(more), Err)
    }

    /// Takes what was handed over, as far as the broker's limit and the buffer allow; returns whether it took
    /// anything.
    fn poll_queue(
        &mut self,
        context: &mut Context<'_>,
        queue: &mut mpsc::Receiver<Vec<Outgoing>>,
        events: &mut Vec<SessionEvent>,
    ) -> Result<bool, SessionError> {
        let mut took = false;
        while self.outgoing.len() < CHUNK_BYTES
            && self.state.inflight() < self.inflight
            && self.collided.is_none()
        {
            if let Some(item) = self.waiting.pop_front() {
                self.hand(item, events)?;
                took = true;
                continue;
            }
            match queue.poll_recv(context) {
                Poll::Ready(Some(more)) => self.waiting.extend(more),
                Poll::Ready(None) => return Err(ConnectionError::RequestsDone.into()),
                Poll::Pending => break,
            }
        }
        Ok(took)
    }

    /// Writes what is ready; returns whether it wrote anything.
    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let mut wrote = false;
        while !self.outgoing.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.outgoing) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.outgoing.advance(count);
                    (wrote, self.unflushed) = (true, true);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if self.unflushed && Pin::new(&mut self.stream).poll_flush(context)?.is_ready() {
            self.unflushed = false;
        }
        Ok(wrote)
    }

    async fn write_all(&mut self) -> io::Result<()> {
        self.stream.write_all_buf(&mut self.outgoing).await?;
        self.stream.flush().await
    }

    fn rest(&mut self) {
        self.ping.as_mut().reset(Instant::now() + self.keep_alive);
    }

    /// A packet arrived.
    fn take(&mut self, packet: Packet, events: &mut Vec<SessionEvent>) -> Result<(), SessionError> {
        let (reply, event) = match packet {
            Packet::Publish(publish) => {
                if publish.topic.is_empty() {
                    // A topic alias, and we allow none.
                    return Err(StateError::WrongPacket.into());
                }
                // The state copies what it is given, so it gets only what it needs.
                let stub = Publish { pkid: publish.pkid, qos: publish.qos, ..Publish::default() };
                let reply = self.state.handle_incoming_packet(Packet::Publish(stub))?;
                (reply, SessionEvent::Message(Box::new(publish)))
            }
            Packet::PubAck(ack) => {
                let event = SessionEvent::Acknowledged(ack.pkid, reason(ack.reason));
                (self.state.handle_incoming_packet(Packet::PubAck(ack))?, event)
            }
            Packet::SubAck(ack) => {
                let event = SessionEvent::Subscribed(Box::new(ack.clone()));
                (self.state.handle_incoming_packet(Packet::SubAck(ack))?, event)
            }
            other => (self.state.handle_incoming_packet(other)?, SessionEvent::Other),
        };
        self.state.events.clear();
        events.push(event);
        match reply {
            // The broker has acknowledged the publish that used this identifier.
            Some(Packet::Publish(stub)) => match self.collided.take() {
                Some(item) => self.write_numbered(item, stub.pkid, events)?,
                None => return Err(StateError::InvalidState.into()),
            },
            Some(reply) => self.write(&reply)?,
            None => {}
        }
        Ok(())
    }

    fn hand(&mut self, item: Outgoing, events: &mut Vec<SessionEvent>) -> Result<(), SessionError> {
        match item {
            Outgoing::Publish(_) | Outgoing::Frame(_) => {
                // The state keeps a copy for resending in a resumed session, which we never do: so it copies only a
                // stub.
                let stub = Publish { qos: QoS::AtLeastOnce, ..Publish::default() };
                let numbered = self.state.handle_outgoing_packet(Request::Publish(stub))?;
                self.state.events.clear();
                match numbered {
                    Some(Packet::Publish(stub)) => self.write_numbered(item, stub.pkid, events),
                    _ => {
                        self.collided = Some(item);
                        Ok(())
                    }
                }
            }
            Outgoing::Subscribe(filters) => {
                self.request(Request::Subscribe(Subscribe::new_many(filters, None)))
            }
            Outgoing::Disconnect => self.request(Request::Disconnect),
        }
    }

    fn request(&mut self, request: Request) -> Result<(), SessionError> {
        let packet = self.state.handle_outgoing_packet(request)?;
        self.state.events.clear();
        packet.map_or(Ok(()), |packet| self.write(&packet))
    }

    fn write_numbered(
        &mut self,
        item: Outgoing,
        packet: u16,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), SessionError> {
        match item {
            Outgoing::Publish(mut publish) => {
                publish.pkid = packet;
                self.write(&Packet::Publish(publish))?;
            }
            Outgoing::Frame(mut frame) => {
                frame.number(packet);
                self.outgoing.extend_from_slice(&frame.bytes);
            }
            Outgoing::Subscribe(_) | Outgoing::Disconnect => return Err(StateError::InvalidState.into()),
        }
        events.push(SessionEvent::Written(packet));
        Ok(())
    }

    fn write(&mut self, packet: &Packet) -> Result<(), SessionError> {
        packet.write(&mut self.outgoing, self.maximum_outgoing).map_err(StateError::from)?;
        Ok(())
    }
}

/// MQTT 5 §3.4.2.1: anything but 0 is not delivered, "no matching subscribers" included.
fn reason(reason: PubAckReason) -> Result<(), u8> {
    match reason {
        PubAckReason::Success => Ok(()),
        PubAckReason::NoMatchingSubscribers => Err(0x10),
        PubAckReason::UnspecifiedError => Err(0x80),
        PubAckReason::ImplementationSpecificError => Err(0x83),
        PubAckReason::NotAuthorized => Err(0x87),
        PubAckReason::TopicNameInvalid => Err(0x90),
        PubAckReason::PacketIdentifierInUse => Err(0x91),
        PubAckReason::QuotaExceeded => Err(0x97),
        PubAckReason::PayloadFormatInvalid => Err(0x99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::v5::{DisconnectReasonCode, PingResp, PubAck, PublishProperties};
    use tokio::io::DuplexStream;

    /// The broker's side, packet by packet.
    struct Broker {
        stream: DuplexStream,
        read: BytesMut,
    }

    impl Broker {
        async fn receive(&mut self) -> Packet {
            loop {
                match Packet::read(&mut self.read, None) {
                    Ok(packet) => return packet,
                    Err(CodecError::InsufficientBytes(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0, "the session has closed");
            }
        }

        async fn publish(&mut self) -> (u16, String) {
            let Packet::Publish(publish) = self.receive().await else { panic!("no publish") };
            let properties = publish.properties.unwrap().user_properties;
            assert_eq!(properties.len(), 1);
            assert_eq!(publish.payload, format!("body {}", properties[0].1));
            (publish.pkid, properties[0].1.clone())
        }

        async fn say(&mut self, packets: &[Packet]) {
            let mut bytes = BytesMut::new();
            for packet in packets {
                packet.write(&mut bytes, None).unwrap();
            }
            self.stream.write_all(&bytes).await.unwrap();
        }
    }

    fn acknowledge(packet: u16) -> Packet {
        Packet::PubAck(PubAck::new(packet, None))
    }

    fn publish(name: u32) -> Publish {
        let user_properties = vec![("name".to_owned(), name.to_string())];
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        Publish::new("topic", QoS::AtLeastOnce, format!("body {name}"), Some(properties))
    }

    fn item(name: u32) -> Outgoing {
        let mut publish = publish(name);
        if name.is_multiple_of(2) {
            Outgoing::Publish(publish)
        } else {
            Outgoing::Frame(Frame::new(&mut publish).unwrap())
        }
    }

    async fn open(inflight: u16, keep_alive: Duration) -> (Session<DuplexStream>, Broker) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let mut broker = Broker { stream: theirs, read: BytesMut::new() };
        let options = ConnectOptions {
            client_id: "B86022.gw1".into(),
            will: LastWill::new("will", "gone", QoS::AtLeastOnce, true, None),
            keep_alive,
            inflight,
            receive_maximum: 9,
            maximum_packet_bytes: 1 << 20,
        };
        let answer = async {
            let Packet::Connect(connect, will, _) = broker.receive().await else { panic!("no CONNECT") };
            let properties = connect.properties.unwrap();
            assert!(connect.clean_start && will.is_some());
            assert_eq!((properties.session_expiry_interval, properties.receive_maximum), (Some(0), Some(9)));
            let code = ConnectReturnCode::Success;
            broker.say(&[Packet::ConnAck(ConnAck { session_present: false, code, properties: None })]).await;
        };
        let (session, ()) = tokio::join!(Session::open(ours, options), answer);
        (session.unwrap().0, broker)
    }

    /// The session's task, and the events from it.
    fn run(
        mut session: Session<DuplexStream>,
    ) -> (
        mpsc::Sender<Vec<Outgoing>>,
        mpsc::UnboundedReceiver<SessionEvent>,
        tokio::task::JoinHandle<SessionError>,
    ) {
        let (queue, mut handed) = mpsc::channel(64);
        let (sender, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut batch = Vec::new();
            loop {
                let ended = session.next(&mut handed, &mut batch).await;
                batch.drain(..).for_each(|event| drop(sender.send(event)));
                if let Err(error) = ended {
                    return error;
                }
            }
        });
        (queue, events, task)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_publish_that_waits_for_its_identifier_is_sent_whole_after_the_acknowledgment() {
        let (session, mut broker) = open(4, LONG).await;
        let (queue, mut events, _task) = run(session);
        queue.send((1..=9).map(item).collect()).await.unwrap();
        let mut sent = Vec::new();
        for _ in 0..4 {
            sent.push(broker.publish().await);
        }
        assert_eq!(sent, [(1, "1".into()), (2, "2".into()), (3, "3".into()), (4, "4".into())]);
        // The second is acknowledged first: the fifth needs the first's identifier, and waits for it.
        broker.say(&[acknowledge(2)]).await;
        broker.say(&[acknowledge(1)]).await;
        assert_eq!(broker.publish().await, (1, "5".into()), "with body and properties");
        assert_eq!(broker.publish().await, (2, "6".into()));
        let mut heard = Vec::new();
        while heard.len() < 8 {
            heard.push(match events.recv().await.unwrap() {
                SessionEvent::Written(packet) => i32::from(packet),
                SessionEvent::Acknowledged(packet, Ok(())) => -i32::from(packet),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(heard, [1, 2, 3, 4, -2, -1, 1, 2]);
    }

    #[tokio::test]
    async fn no_more_is_under_way_than_the_broker_allows_and_a_stream_is_acknowledged_whole() {
        let (session, mut broker) = open(3, LONG).await;
        let (queue, mut events, _task) = run(session);
        queue.send((1..=7).map(item).collect()).await.unwrap();
        for name in ["1", "2", "3"] {
            assert_eq!(broker.publish().await.1, name);
        }
        // Many at once, with acknowledgments among them that free identifiers.
        let mut packets: Vec<Packet> = (100..150)
            .map(|name| {
                let mut publish = publish(name);
                publish.pkid = u16::try_from(name).unwrap();
                Packet::Publish(publish)
            })
            .collect();
        packets.insert(20, acknowledge(1));
        broker.say(&packets).await;
        let mut next = 100;
        let mut sent = 3;
        while next < 150 || sent < 4 {
            match broker.receive().await {
                Packet::PubAck(ack) => {
                    assert_eq!(u32::from(ack.pkid), next);
                    next += 1;
                }
                Packet::Publish(_) => sent += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sent, 4, "one acknowledgment allows one more");
        let mut arrived = 0;
        while arrived < 50 {
            if let SessionEvent::Message(publish) = events.recv().await.unwrap() {
                let name = format!("{}", 100 + arrived);
                assert_eq!(publish.properties.unwrap().user_properties[0].1, name);
                assert_eq!(publish.payload, format!("body {name}"));
                arrived += 1;
            }
        }
    }

    #[tokio::test]
    async fn a_ping_that_is_not_answered_ends_it_and_what_was_said_last_is_processed() {
        let (session, mut broker) = open(3, Duration::from_secs(1)).await;
        let (_parcels, mut events, task) = run(session);
        assert!(matches!(broker.receive().await, Packet::PingReq(_)));
        broker.say(&[Packet::PingResp(PingResp)]).await;
        assert!(matches!(events.recv().await, Some(SessionEvent::Other)));
        assert!(matches!(broker.receive().await, Packet::PingReq(_)));
        assert!(matches!(
            task.await.unwrap(),
            SessionError::Connection(ConnectionError::MqttState(StateError::AwaitPingResp))
        ));

        let (session, mut broker) = open(3, LONG).await;
        let (_parcels, _notes, task) = run(session);
        // DISCONNECT, "server shutting down", no properties: rumqttc leaves the reason out when it writes one.
        broker.stream.write_all(&[0xE0, 2, 0x8B, 0]).await.unwrap();
        drop(broker);
        assert!(matches!(
            task.await.unwrap(),
            SessionError::Connection(ConnectionError::MqttState(StateError::ServerDisconnect { .. }))
        ));
    }

    #[tokio::test]
    async fn a_disconnect_without_properties_and_a_malformed_packet_end_the_session_by_name() {
        for (bytes, reason) in [
            (&[0xE0, 0][..], DisconnectReasonCode::NormalDisconnection),
            (&[0xE0, 1, 0x8E], DisconnectReasonCode::SessionTakenOver),
        ] {
            let (session, mut broker) = open(3, LONG).await;
            let (_queue, _events, task) = run(session);
            broker.stream.write_all(bytes).await.unwrap();
            match task.await.unwrap() {
                SessionError::Connection(ConnectionError::MqttState(StateError::ServerDisconnect {
                    reason_code,
                    ..
                })) => assert_eq!(reason_code, reason),
                other => panic!("{other:?}"),
            }
        }
        let (session, mut broker) = open(3, LONG).await;
        let (_queue, mut events, task) = run(session);
        // A SUBACK whose properties are longer than the packet: it must not vanish while the session waits for more.
        let cut_short = [0x90, 4, 0, 1, 9, 0x1F];
        broker.say(&[Packet::PingResp(PingResp)]).await;
        broker.stream.write_all(&cut_short).await.unwrap();
        let ended = task.await.unwrap();
        assert!(
            matches!(&ended, SessionError::Malformed(malformed) if malformed.packet == "SUBACK"),
            "{ended:?}"
        );
        assert!(matches!(events.recv().await, Some(SessionEvent::Other)), "what came before it counts");
    }
}
