//! Decodes one packet from the bytes received so far: rumqttc's decoder, given only complete packets.
//!
//! rumqttc says "more bytes are needed" even of a complete packet whose properties are cut short, and by then it has
//! removed the packet from the buffer: a caller that waits for the rest loses the packet without an error. So the
//! fixed header is checked first, and an error from the decoder then concerns that packet. It also refuses the
//! shortest forms of DISCONNECT, in which the properties or the reason are left out (MQTT 5 §3.14.2).

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{Disconnect, DisconnectReasonCode, Packet, check};

/// A packet that the MQTT 5 codec cannot read; the connection cannot continue after it.
#[derive(Debug, thiserror::Error)]
#[error("malformed {packet}")]
pub struct Malformed {
    /// The packet's type, as named by MQTT.
    pub packet: &'static str,
    /// rumqttc's error.
    #[source]
    pub source: CodecError,
}

/// Takes one packet out of `incoming`. `None`: the packet is not complete yet; space for the rest is reserved.
///
/// # Errors
/// [`Malformed`]: the packet is too large, or complete and not MQTT 5.
pub fn decode(incoming: &mut BytesMut, maximum_bytes: u32) -> Result<Option<Packet>, Malformed> {
    let packet = incoming.first().map_or("packet", |byte| packet_type(*byte));
    let malformed = |source| Malformed { packet, source };
    let length = match check(incoming.iter(), Some(maximum_bytes)) {
        Ok(header) => header.frame_length(),
        Err(CodecError::InsufficientBytes(missing)) => {
            incoming.reserve(missing);
            return Ok(None);
        }
        Err(error) => return Err(malformed(error)),
    };
    let mut bytes = incoming.split_to(length);
    if let [0xE0, 0] | [0xE0, 1, _] = bytes[..] {
        let normal = Ok(DisconnectReasonCode::NormalDisconnection);
        let code = bytes.get(2).map_or(normal, |byte| DisconnectReasonCode::try_from(*byte));
        return Ok(Some(Packet::Disconnect(Disconnect::new(code.map_err(malformed)?))));
    }
    Packet::read(&mut bytes, None).map(Some).map_err(malformed)
}

/// MQTT 5 §2.1.2.
fn packet_type(byte: u8) -> &'static str {
    const NAMES: [&str; 16] = [
        "packet of the reserved type 0",
        "CONNECT",
        "CONNACK",
        "PUBLISH",
        "PUBACK",
        "PUBREC",
        "PUBREL",
        "PUBCOMP",
        "SUBSCRIBE",
        "SUBACK",
        "UNSUBSCRIBE",
        "UNSUBACK",
        "PINGREQ",
        "PINGRESP",
        "DISCONNECT",
        "AUTH",
    ];
    NAMES[usize::from(byte >> 4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 1024;

    fn read(bytes: &[u8]) -> Result<Option<Packet>, Malformed> {
        decode(&mut BytesMut::from(bytes), MOST)
    }

    #[test]
    fn a_disconnect_may_leave_out_its_properties_and_its_reason() {
        for (bytes, code) in [
            (&[0xE0, 0][..], DisconnectReasonCode::NormalDisconnection),
            (&[0xE0, 1, 0x8B], DisconnectReasonCode::ServerShuttingDown),
            (&[0xE0, 2, 0x8E, 0], DisconnectReasonCode::SessionTakenOver),
        ] {
            let Ok(Some(Packet::Disconnect(packet))) = read(bytes) else { panic!("{bytes:?}") };
            assert_eq!(packet.reason_code, code);
        }
        assert_eq!(read(&[0xE0, 1, 0x03]).unwrap_err().packet, "DISCONNECT");
    }

    #[test]
    fn a_complete_packet_whose_inside_is_cut_short_is_malformed_and_an_incomplete_one_waits() {
        // DISCONNECT, CONNACK, SUBACK and PUBLISH whose properties claim to be longer than the packet.
        for (bytes, name) in [
            (&[0xE0, 3, 0x8B, 5, 0x1F][..], "DISCONNECT"),
            (&[0x20, 4, 0, 0, 9, 0x21], "CONNACK"),
            (&[0x90, 4, 0, 1, 9, 0x1F], "SUBACK"),
            (&[0x32, 6, 0, 1, b't', 0, 1, 9], "PUBLISH"),
            (&[0x40, 1, 0], "PUBACK"),
        ] {
            let malformed = read(bytes).unwrap_err();
            assert_eq!(malformed.packet, name, "{malformed:?}");
            for cut in 0..bytes.len() {
                let mut incoming = BytesMut::from(&bytes[..cut]);
                assert!(
                    matches!(decode(&mut incoming, MOST), Ok(None)),
                    "{name} of which {cut} bytes have come"
                );
                assert_eq!(incoming, bytes[..cut], "what has come stays for the next time");
            }
        }
        assert_eq!(read(&[0xF0, 1, 0]).unwrap_err().packet, "AUTH");
        assert_eq!(read(&[0x00, 0]).unwrap_err().packet, "packet of the reserved type 0");
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_has_come() {
        let malformed = read(&[0x30, 0xFF, 0x7F]).unwrap_err();
        assert_eq!(malformed.packet, "PUBLISH");
        assert!(matches!(malformed.source, CodecError::PayloadSizeLimitExceeded { .. }), "{malformed:?}");
    }

    #[test]
    fn packets_are_taken_one_after_another() {
        let mut incoming = BytesMut::from(&[0xD0, 0, 0xE0, 0, 0x40][..]);
        assert!(matches!(decode(&mut incoming, MOST), Ok(Some(Packet::PingResp(_)))));
        assert!(matches!(decode(&mut incoming, MOST), Ok(Some(Packet::Disconnect(_)))));
        assert!(matches!(decode(&mut incoming, MOST), Ok(None)));
        assert_eq!(incoming.len(), 1);
    }
}
