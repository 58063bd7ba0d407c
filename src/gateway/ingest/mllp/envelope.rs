//! From an HL7 header to a transaction's envelope: type, content type, source and key.
//!
//! Nothing of MSH-3, MSH-4 and MSH-10 is cut: [`pgw_outbox::Submission::check_texts`] finds what is too long, and the doors refuse it.

use pgw_core::transaction::{Body, Kind, Lane};
use pgw_outbox::{EventType, Submission};

use crate::ingest::media;
use crate::ingest::mllp::msh::{Msh, text};

/// The submission of a message to a lane.
#[must_use]
pub fn submission(msh: &Msh<'_>, lane: Lane, body: Body) -> Submission {
    Submission {
        lane,
        event_type: EventType::Named(event_type(msh)),
        kind: Kind::Transaction,
        content_type: content_type(msh).to_owned(),
        sender: sender_name(msh),
        key: key(msh),
        shows_key: true,
        correlation_id: String::new(),
        trace_parent: String::new(),
        body,
    }
}

/// What its CloudEvents `type` is called: `hl7v2.oru_r01` from MSH-9.1 and MSH-9.2.
#[must_use]
pub fn event_type(msh: &Msh<'_>) -> String {
    let mut name = String::with_capacity(16);
    name.push_str("hl7v2.");
    push_word(&mut name, msh.component(9, 1));
    if name.len() == "hl7v2.".len() {
        name.push_str("unknown");
    }
    let end = name.len();
    name.push('_');
    push_word(&mut name, msh.component(9, 2));
    if name.len() == end + 1 {
        name.truncate(end);
    }
    name
}

fn push_word(name: &mut String, word: &[u8]) {
    let letters = word.iter().filter(|b| b.is_ascii_alphanumeric() || **b == b'_').take(16);
    name.extend(letters.map(|b| char::from(b.to_ascii_lowercase())));
}

/// Media type, with the charset if MSH-18 names one that media types know.
#[must_use]
pub fn content_type(msh: &Msh<'_>) -> &'static str {
    macro_rules! with {
        ($charset:literal) => {
            concat!("application/hl7-v2+er7; charset=", $charset)
        };
    }
    let given = msh.component(18, 1).to_ascii_uppercase();
    match given.as_slice() {
        b"ASCII" | b"US-ASCII" => with!("us-ascii"),
        b"8859/1" | b"ISO-8859-1" | b"ISO8859-1" => with!("iso-8859-1"),
        b"8859/2" => with!("iso-8859-2"),
        b"8859/3" => with!("iso-8859-3"),
        b"8859/4" => with!("iso-8859-4"),
        b"8859/5" => with!("iso-8859-5"),
        b"8859/6" => with!("iso-8859-6"),
        b"8859/7" => with!("iso-8859-7"),
        b"8859/8" => with!("iso-8859-8"),
        b"8859/9" => with!("iso-8859-9"),
        b"8859/15" | b"ISO-8859-15" => with!("iso-8859-15"),
        b"UNICODE UTF-8" | b"UTF-8" | b"UTF8" => with!("utf-8"),
        b"WINDOWS-1252" | b"CP1252" => with!("windows-1252"),
        b"BIG-5" => with!("big5"),
        b"GB 18030-2000" => with!("gb18030"),
        _ => media::ER7,
    }
}

/// The sending system's name: `hl7v2:{MSH-3}|{MSH-4}`, percent-encoded.
#[must_use]
pub fn sender_name(msh: &Msh<'_>) -> String {
    let mut name = String::from("hl7v2:");
    push_encoded(&mut name, msh.field(3));
    name.push_str("%7C");
    push_encoded(&mut name, msh.field(4));
    name
}

fn push_encoded(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes.trim_ascii() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// The sender's key: MSH-10; empty if there is none.
#[must_use]
pub fn key(msh: &Msh<'_>) -> String {
    text(msh.control_id())
}

/// How MSH-3 and MSH-4 are written in a list of allowed senders: `LAB|SURG`.
#[must_use]
pub fn sender(msh: &Msh<'_>) -> String {
    format!("{}|{}", text(msh.field(3).trim_ascii()), text(msh.field(4).trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::carried_for_tests::assert_carried;
    use proptest::prelude::*;

    #[test]
    fn a_usual_header() {
        let msh = Msh::read(b"MSH|^~\\&|LAB 1|SURG^B86022|||||ORU^R01^ORU_R01| 42 |T|2.4||||||UNICODE UTF-8")
            .unwrap();
        assert_eq!(event_type(&msh), "hl7v2.oru_r01");
        assert_eq!(content_type(&msh), "application/hl7-v2+er7; charset=utf-8");
        assert_eq!(sender_name(&msh), "hl7v2:LAB%201%7CSURG%5EB86022");
        assert_eq!(key(&msh), "42");
        assert_eq!(sender(&msh), "LAB 1|SURG^B86022");
    }

    #[test]
    fn missing_and_odd_parts() {
        let read = |message| Msh::read(message).unwrap();
        assert_eq!(event_type(&read(b"MSH|^~\\&")), "hl7v2.unknown");
        assert_eq!(event_type(&read(b"MSH|^~\\&|||||||ACK")), "hl7v2.ack");
        assert_eq!(event_type(&read(b"MSH|^~\\&|||||||O-R U^#")), "hl7v2.oru");
        assert_eq!(event_type(&read(b"MSH|^~\\&|||||||^A01")), "hl7v2.unknown_a01");
        assert_eq!(content_type(&read(b"MSH|^~\\&")), "application/hl7-v2+er7");
        assert_eq!(
            content_type(&read(b"MSH|^~\\&||||||||||||||||8859/1~ISO IR87")),
            "application/hl7-v2+er7; charset=iso-8859-1"
        );
        assert_eq!(key(&read(b"MSH|^~\\&||||||||M\xfcller")), "Müller");
    }

    #[test]
    fn nothing_of_a_senders_names_is_cut() {
        let name = "N".repeat(300);
        let message = format!("MSH|^~\\&|{name}|S|||||ORU^R01|{name}|P|2.4");
        let msh = Msh::read(message.as_bytes()).unwrap();
        assert_eq!((sender_name(&msh), key(&msh)), (format!("hl7v2:{name}%7CS"), name));
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn what_is_submitted_arrives_as_it_is(
            fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..280), 5),
            text in "\\PC{0,90}",
        ) {
            let [application, facility, kind, id, charset] = &fields[..] else { unreachable!() };
            for id in [&id[..id.len() / 8], id, text.as_bytes(), "\u{fffe}".as_bytes(), b"\x96"] {
                let parts = [
                    &b"MSH|^~\\&"[..], application, facility, b"", b"", b"", b"", kind, id, b"P", b"2.4", b"", b"", b"", b"", b"",
                    charset,
                ];
                let message = parts.join(&b"|"[..]);
                let msh = Msh::read(&message).unwrap();
                let submission = submission(&msh, Lane::new("clinical").unwrap(), Body::new(message.clone()));
                if submission.check_texts().is_ok() {
                    assert_carried(submission);
                }
            }
        }

        #[test]
        fn names_are_always_harmless(fields in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut message = b"MSH|^~\\&|".to_vec();
            message.extend(fields.join(&b"|"[..]));
            let msh = Msh::read(&message).unwrap();
            let event_type = event_type(&msh);
            prop_assert!(event_type.len() <= 40);
            prop_assert!(
                event_type.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.')
            );
            let sender = sender_name(&msh);
            prop_assert!(sender.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:%".contains(&b)));
            prop_assert!(key(&msh).len() <= 2 * msh.control_id().len());
        }
    }
}
