//! How far a connection has come.

/// How far a connection has come; every failure names its phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Looking the upstream's name up.
    Dns,
    /// Opening the socket.
    Tcp,
    /// Handshake and certificates.
    Tls,
    /// CONNECT to CONNACK.
    Mqtt,
    /// SUBSCRIBE to SUBACK.
    Subscribe,
    /// Receipts can come.
    Live,
}

impl Phase {
    /// The word on the wire.
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
