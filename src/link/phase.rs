//! The phases of a connection.

/// How far a connection has got; every failure names its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Looking up the upstream's name.
    Dns,
    /// Opening the socket.
    Tcp,
    /// Handshake and certificates.
    Tls,
    /// CONNECT to CONNACK.
    Mqtt,
    /// SUBSCRIBE to SUBACK.
    Subscribe,
    /// Subscribed: receipts can arrive.
    Live,
}

impl Phase {
    /// The word used on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Dns => "dns",
            Phase::Tcp => "tcp",
            Phase::Tls => "tls",
            Phase::Mqtt => "mqtt",
            Phase::Subscribe => "subscribe",
            Phase::Live => "live",
        }
    }
}
