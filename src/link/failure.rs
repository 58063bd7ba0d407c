//! Why a connection could not be made, or ended: a phase, and a sentence for the person on call.

use std::error::Error;
use std::io;

use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError};
use tokio_rustls::rustls::{self, AlertDescription, CertificateError};

use crate::codec::Malformed;
use crate::phase::Phase;
use crate::session::SessionError;

/// What failed, and in which phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {sentence}", phase.as_str())]
pub struct Failure {
    /// The phase that failed; `Live`: an established connection was lost.
    pub phase: Phase,
    /// One plain sentence without secrets.
    pub sentence: String,
    /// Another client has connected under this client's name. Our own connections never overlap, so it is another box.
    pub duplicate_instance: bool,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(phase: Phase, sentence: impl Into<String>) -> Self {
        Self { phase, sentence: sentence.into(), duplicate_instance: false }
    }

    /// The phase timed out.
    pub fn timeout(phase: Phase, seconds: u64) -> Self {
        let what = match phase {
            Phase::Dns => "the name server did not answer",
            Phase::Tcp => {
                "the broker's port did not answer: is the link up, and does the firewall let this port through?"
            }
            Phase::Tls => "the broker did not finish the TLS handshake: is this a TLS port?",
            Phase::Mqtt => "the broker did not answer the MQTT CONNECT",
            Phase::Subscribe => "the broker did not answer the SUBSCRIBE",
            Phase::Live => "the broker fell silent",
        };
        Self::new(phase, format!("{what} (waited {seconds} s)"))
    }

    /// The socket could not be opened.
    pub fn tcp(error: &io::Error) -> Self {
        let sentence = match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "the broker's port refused the connection: is the broker running?".to_owned()
            }
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                "there is no route to the broker".to_owned()
            }
            io::ErrorKind::TimedOut => "the broker's port did not answer".to_owned(),
            _ => format!("the connection could not be opened: {error}"),
        };
        Self::new(Phase::Tcp, sentence)
    }

    /// The socket gave an error, or ended (`None`), in `phase`. A TLS error always counts as a failure of TLS: with
    /// TLS 1.3 the broker rejects our certificate only after our side of the handshake is done.
    pub fn stream(phase: Phase, error: Option<&io::Error>) -> Self {
        if let Some(tls) = error.and_then(rustls_error) {
            return Self::new(Phase::Tls, tls_sentence(tls));
        }
        let cause = match error {
            None => "the broker closed the connection".to_owned(),
            Some(error) if is_closed(error.kind()) => "the connection was reset".to_owned(),
            Some(error) => format!("the connection failed: {error}"),
        };
        let sentence = match phase {
            Phase::Tls => format!(
                "{cause} during the TLS handshake: is this a TLS port, and is our certificate known there?"
            ),
            Phase::Mqtt => format!("{cause} before it answered the MQTT CONNECT"),
            Phase::Subscribe => format!("{cause} before it answered the SUBSCRIBE"),
            _ => cause,
        };
        Self::new(phase, sentence)
    }

    /// The session has ended in `phase`.
    pub fn session(phase: Phase, error: &SessionError) -> Self {
        match error {
            SessionError::Malformed(malformed) => {
                let Malformed { packet, source } = malformed;
                Self::new(phase, format!("the broker sent a {packet} that is not MQTT 5: {source}"))
            }
            SessionError::Connection(error) => Self::connection(phase, error),
        }
    }

    fn connection(phase: Phase, error: &ConnectionError) -> Self {
        let stream = match error {
            ConnectionError::Io(error) => Some(error),
            _ => None,
        };
        let duplicate_instance = matches!(
            error,
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            })
        );
        let failure = Self::mqtt(phase, error).unwrap_or_else(|| Self::stream(phase, stream));
        Self { duplicate_instance, ..failure }
    }

    /// What rumqttc's state machine reports; `None`: the reason is the stream's.
    fn mqtt(phase: Phase, error: &ConnectionError) -> Option<Self> {
        let (phase, sentence) = match error {
            ConnectionError::ConnectionRefused(code) => (Phase::Mqtt, refusal(*code)),
            ConnectionError::NotConnAck(_) => {
                (Phase::Mqtt, "the broker answered the MQTT CONNECT with something else".to_owned())
            }
            ConnectionError::Timeout(_) => return Some(Self::timeout(Phase::Mqtt, 0)),
            ConnectionError::MqttState(state) => match state {
                StateError::ServerDisconnect { reason_code, reason_string } => {
                    (phase, disconnected(*reason_code, reason_string.as_deref()))
                }
                StateError::AwaitPingResp => (phase, "the broker did not answer a ping".to_owned()),
                StateError::ConnectionAborted | StateError::Io(_) => return None,
                StateError::Deserialization(inner) => match inner {
                    rumqttc::v5::mqttbytes::Error::Io(_) => return None,
                    other => (phase, format!("a packet cannot be written: {other}")),
                },
                other => (phase, format!("the MQTT connection failed: {other}")),
            },
            ConnectionError::Io(_) | ConnectionError::Tls(_) | ConnectionError::RequestsDone => return None,
        };
        Some(Self::new(phase, sentence))
    }
}

fn is_closed(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

/// The TLS error inside an I/O error, if there is one.
fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    let mut source: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = source {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        source = error.source();
    }
    None
}

/// What a TLS error means, for the person on call.
pub fn tls_sentence(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => certificate_sentence(why),
        rustls::Error::AlertReceived(alert) => alert_sentence(*alert),
        rustls::Error::InvalidMessage(_) => "the broker's port does not speak TLS".to_owned(),
        rustls::Error::PeerIncompatible(_) => {
            format!("no TLS version or cipher suite in common with the broker: {error}")
        }
        other => format!("the TLS connection failed: {other}"),
    }
}

fn certificate_sentence(why: &CertificateError) -> String {
    use CertificateError as C;
    match why {
        C::Expired | C::ExpiredContext { .. } => "the broker's certificate has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "the broker's certificate is not valid yet: is this box's clock right?".to_owned()
        }
        C::UnknownIssuer | C::BadSignature => {
            "the broker's certificate was signed by an unknown CA (see ca_file)".to_owned()
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "the broker's certificate is for another name than the one configured".to_owned()
        }
        C::Revoked => "the broker's certificate was revoked".to_owned(),
        other => format!("the broker's certificate is not acceptable: {other:?}"),
    }
}

fn alert_sentence(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let sentence = match alert {
        A::CertificateExpired => "the broker says that our certificate has expired",
        A::UnknownCA => "the broker does not know the CA that signed our certificate",
        A::CertificateRequired => "the broker wants a client certificate and got none",
        A::CertificateRevoked => "the broker says that our certificate was revoked",
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate | A::DecryptError => {
            "the broker refuses our certificate"
        }
        A::AccessDenied => "the broker denies us access",
        A::ProtocolVersion | A::HandshakeFailure | A::InsufficientSecurity => {
            "no TLS version or cipher suite in common with the broker"
        }
        A::UnrecognisedName => "the broker does not know the name that we asked for",
        _ => return format!("the broker ended TLS with the alert {alert:?}"),
    };
    sentence.to_owned()
}

fn refusal(code: ConnectReturnCode) -> String {
    use ConnectReturnCode as R;
    match code {
        R::NotAuthorized => {
            "the broker does not authorise this gateway: is its certificate's name known there?".to_owned()
        }
        R::BadUserNamePassword => "the broker refuses this gateway's name and password".to_owned(),
        R::ClientIdentifierNotValid => "the broker refuses this gateway's client identifier".to_owned(),
        R::Banned => "the broker has banned this gateway".to_owned(),
        R::ServerUnavailable | R::ServiceUnavailable | R::ServerBusy => {
            "the broker is not available now".to_owned()
        }
        R::QuotaExceeded | R::ConnectionRateExceeded => "the broker has too many connections now".to_owned(),
        R::UseAnotherServer | R::ServerMoved => "the broker redirects to another server".to_owned(),
        other => format!("the broker refuses the connection: {other:?}"),
    }
}

fn disconnected(code: DisconnectReasonCode, reason: Option<&str>) -> String {
    use DisconnectReasonCode as D;
    match code {
        D::SessionTakenOver => {
            "another client with this gateway's certificate has connected: is it installed twice?".to_owned()
        }
        D::ServerShuttingDown => "the broker is shutting down".to_owned(),
        D::NotAuthorized => "the broker does not authorise this gateway".to_owned(),
        D::KeepAliveTimeout => "the broker received nothing from this gateway for too long".to_owned(),
        other => match reason {
            Some(reason) => format!("the broker ended the connection: {other:?} ({})", limited(reason)),
            None => format!("the broker ended the connection: {other:?}"),
        },
    }
}

/// Text from outside, shortened and made safe for a log.
fn limited(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_session_that_was_taken_over_is_another_box() {
        let ended = |reason_code| {
            let state = StateError::ServerDisconnect { reason_code, reason_string: None };
            Failure::session(Phase::Live, &ConnectionError::MqttState(state).into())
        };
        let taken = ended(DisconnectReasonCode::SessionTakenOver);
        assert!(taken.duplicate_instance && taken.sentence.contains("installed twice"), "{taken}");
        assert!(!ended(DisconnectReasonCode::ServerShuttingDown).duplicate_instance);
        assert!(!Failure::stream(Phase::Live, None).duplicate_instance);
    }

    #[test]
    fn a_malformed_packet_is_named() {
        let source = rumqttc::v5::mqttbytes::Error::MalformedPacket;
        let failure = Failure::session(Phase::Live, &Malformed { packet: "SUBACK", source }.into());
        assert!(failure.sentence.starts_with("the broker sent a SUBACK that is not MQTT 5"), "{failure}");
    }
}
