//! The acknowledgment of a message: whether there is one, and its bytes (design section 8).
//!
//! If `MSH-15` and `MSH-16` are both empty this is original mode (`AA`/`AE`/`AR`); otherwise `MSH-15` decides about an
//! accept acknowledgment (`CA`/`CE`/`CR`). A sender that sets `MSH-16` alone waits for an answer on this connection,
//! and ours is the only one: it gets the `A` codes under the condition of `MSH-16`.
//!
//! Whatever the header contains, the answer is one valid frame of less than [`MAX_BYTES`] bytes.

use std::io::Write as _;

use pgw_core::transaction::UnixMillis;
use pgw_core::wire::limits::{Text, TextError};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::ingest::hl7::Beginning;
use crate::ingest::mllp::codec;
use crate::ingest::mllp::msh::{Msh, Separators};

/// Every framed acknowledgment is smaller than this, so that it fits one TCP segment.
pub const MAX_BYTES: usize = 1_400;

/// MSA-3 of a positive answer: a reader must see that it is not the final receiver's answer.
const STORED_TEXT: &str = "Stored for forwarding";

/// Longest echo of each of MSH-3 to MSH-6; HL7 2.5 allows 180.
const NAME_BYTES: usize = 180;
/// Longest echo of MSH-10; HL7 2.7 allows 199.
const CONTROL_ID_BYTES: usize = 199;

/// Error or reject: the second letter of a refusing code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `AE`, `CE`: the message is not accepted, and not kept whole. Many senders repeat it for ever, and nothing behind it.
    Error,
    /// `AR`, `CR`: it will never be accepted as it is, and is kept in quarantine; or nothing can be accepted now.
    Reject,
}

/// Why a message is refused, in the terms of HL7 table 0357.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Error or reject.
    pub class: Class,
    /// The field of MSH that is wrong, for ERR; 0: none in particular.
    pub field: u8,
    /// HL7 table 0357.
    pub code: u16,
    /// The table's text for that code.
    pub meaning: &'static str,
    /// Our sentence, for MSA-3 and ERR-8; it contains nothing of the message. Short, so that it fits the answer.
    pub text: &'static str,
    /// The reason in quarantine and in counters.
    pub reason: &'static str,
}

impl Fault {
    /// It does not begin with MSH.
    pub const NO_HEADER: Self = Self {
        class: Class::Reject,
        field: 0,
        code: 100,
        meaning: "Segment sequence error",
        text: "The message does not begin with an MSH segment",
        reason: "no MSH",
    };
    /// Larger than the limit.
    pub const TOO_LARGE: Self = Self {
        class: Class::Error,
        field: 0,
        code: 207,
        meaning: "Application internal error",
        text: "The message is larger than the limit of this gateway",
        reason: "too large",
    };
    /// MSH-3 and MSH-4 are not on the list.
    pub const SENDER_NOT_ALLOWED: Self = Self {
        class: Class::Reject,
        field: 0,
        code: 204,
        meaning: "Unknown key identifier",
        text: "This sending application and facility is not allowed here",
        reason: "sender not allowed",
    };
    /// MSH-10 cannot be carried as it is.
    pub const CONTROL_ID: Self = Self {
        class: Class::Reject,
        field: 10,
        code: 102,
        meaning: "Data type error",
        text: "MSH-10 is longer than 256 bytes, or holds characters that cannot be sent on",
        reason: "bad MSH-10",
    };
    /// MSH-3 or MSH-4 cannot be carried as it is.
    pub const SENDER: Self = Self {
        class: Class::Reject,
        field: 3,
        code: 102,
        meaning: "Data type error",
        text: "MSH-3 and MSH-4 are longer than can be sent on",
        reason: "long MSH-3 or MSH-4",
    };

    /// The refusal of a message of whose envelope this text cannot be carried.
    #[must_use]
    pub fn of_text(error: TextError) -> Self {
        match error.text() {
            Text::Key => Self::CONTROL_ID,
            Text::Sender => Self::SENDER,
            Text::EventType | Text::ContentType | Text::CorrelationId | Text::TraceParent => Self::REFUSED,
        }
    }

    /// A batch (FHS, BHS); single messages are expected.
    pub const UNSUPPORTED: Self = Self {
        class: Class::Reject,
        field: 0,
        code: 200,
        meaning: "Unsupported message type",
        text: "Batches are not supported, send single messages",
        reason: "unsupported",
    };

    /// The refusal for input in which [`Msh::read`] finds no header.
    #[must_use]
    pub fn of_no_message(input: &[u8]) -> Self {
        if Beginning::of(input) == Beginning::Batch { Self::UNSUPPORTED } else { Self::NO_HEADER }
    }

    /// The outbox refuses it for good.
    pub const REFUSED: Self = Self {
        class: Class::Reject,
        field: 0,
        code: 207,
        meaning: "Application internal error",
        text: "The gateway is not configured to take this message",
        reason: "refused by the outbox",
    };
    /// It cannot be stored now; used only if the site prefers an answer to a closed connection.
    pub const UNAVAILABLE: Self = Self {
        class: Class::Reject,
        field: 0,
        code: 207,
        meaning: "Application internal error",
        text: "The gateway cannot store messages now, try again later",
        reason: "unavailable",
    };
    /// It is refused for what it is, and the quarantine cannot keep it now. Never [`Class::Reject`]: its sender must not go on
    /// without it.
    pub const NOT_KEPT: Self = Self {
        class: Class::Error,
        field: 0,
        code: 207,
        meaning: "Application internal error",
        text: "The gateway refuses this message and cannot keep it now, try again later",
        reason: "not kept",
    };
}

/// The result for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckOutcome {
    /// It is behind the barrier.
    Stored,
    /// It is not stored, and will not be.
    Refused(Fault),
}

/// An acknowledgment's own header fields.
#[derive(Debug, Clone, Copy)]
pub struct Stamp<'a> {
    /// MSH-7.
    pub now: UnixMillis,
    /// MSH-10: unique, at most 20 characters, no delimiters.
    pub control_id: &'a str,
}

/// The framed acknowledgment; `None` if the sender wants none for this outcome. `msh` is `None` if the message has no
/// header; that is always answered.
#[must_use]
pub fn acknowledgment(msh: Option<&Msh<'_>>, outcome: AckOutcome, stamp: Stamp<'_>) -> Option<Vec<u8>> {
    let code = code(msh, outcome)?;
    let given = msh.map_or(Separators::USUAL, Msh::separators);
    let separators = if usable(given) { given } else { Separators::USUAL };
    let echo = |number: usize, most: usize| echo(msh.map_or(&[][..], |m| m.field(number)), most, separators);
    let version = match echo(12, 16) {
        version if version.is_empty() => b"2.3".to_vec(),
        version => version,
    };

    let mut line = SegmentText { out: Vec::with_capacity(256), field: separators.field };
    line.out.extend_from_slice(b"MSH");
    line.field(&[separators.component, separators.repetition, separators.escape, separators.subcomponent]);
    for number in [5, 6, 3, 4] {
        line.field(&echo(number, NAME_BYTES));
    }
    line.field(date_time(stamp.now).as_bytes());
    line.field(b"");
    line.field(&message_type(msh, &version, separators));
    line.field(stamp.control_id.as_bytes());
    line.field(&echo(11, 3));
    line.field(&version);
    let charset = echo(18, 40);
    if !charset.is_empty() {
        for _ in 13..18 {
            line.field(b"");
        }
        line.field(&charset);
    }
    line.end();

    line.out.extend_from_slice(b"MSA");
    line.field(code);
    line.field(&echo_control_id(msh, separators));
    match outcome {
        AckOutcome::Stored => line.field(STORED_TEXT.as_bytes()),
        AckOutcome::Refused(fault) => line.field(fault.text.as_bytes()),
    }
    line.end();
    if let AckOutcome::Refused(fault) = outcome {
        error_segment(&mut line, fault, &version, separators);
    }
    let mut framed = Vec::new();
    codec::encode(&line.out, &mut framed);
    Some(framed)
}

/// MSA-1, or `None` for no answer.
fn code(msh: Option<&Msh<'_>>, outcome: AckOutcome) -> Option<&'static [u8]> {
    let accept = msh.map_or(&[][..], |m| m.component(15, 1));
    let application = msh.map_or(&[][..], |m| m.component(16, 1));
    let (condition, enhanced) = if accept.is_empty() { (application, false) } else { (accept, true) };
    let is = |word: &[u8]| condition.eq_ignore_ascii_case(word);
    // Unknown values get an answer: a sender that gets none repeats for ever.
    let wanted = match outcome {
        AckOutcome::Stored => !(is(b"NE") || is(b"ER")),
        AckOutcome::Refused(_) => !(is(b"NE") || is(b"SU")),
    };
    wanted.then_some(match (enhanced, outcome) {
        (false, AckOutcome::Stored) => b"AA",
        (true, AckOutcome::Stored) => b"CA",
        (false, AckOutcome::Refused(Fault { class: Class::Error, .. })) => b"AE",
        (false, AckOutcome::Refused(Fault { class: Class::Reject, .. })) => b"AR",
        (true, AckOutcome::Refused(Fault { class: Class::Error, .. })) => b"CE",
        (true, AckOutcome::Refused(Fault { class: Class::Reject, .. })) => b"CR",
    })
}

/// `ACK`, and from version 2.3.1 on the trigger event and structure.
fn message_type(msh: Option<&Msh<'_>>, version: &[u8], separators: Separators) -> Vec<u8> {
    let trigger: Vec<u8> = msh
        .map_or(&[][..], |m| m.component(9, 2))
        .iter()
        .copied()
        .filter(u8::is_ascii_alphanumeric)
        .take(8)
        .collect();
    let mut kind = b"ACK".to_vec();
    if !trigger.is_empty() && version > b"2.3".as_slice() {
        kind.push(separators.component);
        kind.extend_from_slice(&trigger);
        kind.push(separators.component);
        kind.extend_from_slice(b"ACK");
    }
    kind
}

/// ERR as in version 2.5, or the single field of earlier versions.
fn error_segment(line: &mut SegmentText, fault: Fault, version: &[u8], separators: Separators) {
    let code = fault.code.to_string();
    line.out.extend_from_slice(b"ERR");
    let field = if fault.field == 0 { String::new() } else { fault.field.to_string() };
    if version >= b"2.5".as_slice() {
        line.field(b"");
        let mut location = Vec::new();
        if fault.field != 0 {
            location.extend_from_slice(b"MSH");
            for part in ["1", &field] {
                location.push(separators.component);
                location.extend_from_slice(part.as_bytes());
            }
        }
        line.field(&location);
        let mut coded = code.into_bytes();
        for part in [fault.meaning, "HL70357"] {
            coded.push(separators.component);
            coded.extend_from_slice(part.as_bytes());
        }
        line.field(&coded);
        line.field(b"E");
        for _ in 0..3 {
            line.field(b"");
        }
        line.field(fault.text.as_bytes());
    } else {
        let mut location = b"MSH".to_vec();
        location.extend([separators.component; 2]);
        location.extend_from_slice(field.as_bytes());
        location.push(separators.component);
        location.extend_from_slice(code.as_bytes());
        for part in [fault.meaning, "HL70357"] {
            location.push(separators.subcomponent);
            location.extend_from_slice(part.as_bytes());
        }
        line.field(&location);
    }
    line.end();
}

/// MSH-10 as echoed.
fn echo_control_id(msh: Option<&Msh<'_>>, separators: Separators) -> Vec<u8> {
    echo(msh.map_or(&[][..], Msh::control_id), CONTROL_ID_BYTES, separators)
}

/// A field of the sender's header, made safe and short: no control characters, no field separator, not cut within a
/// character or an escape sequence.
fn echo(value: &[u8], most: usize, separators: Separators) -> Vec<u8> {
    let mut kept: Vec<u8> = value
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_control() && *b != separators.field)
        .take(most + 1)
        .collect();
    if kept.len() <= most {
        return kept;
    }
    let mut cut = most;
    while cut > most.saturating_sub(3) && kept.get(cut).is_some_and(|b| b & 0xc0 == 0x80) {
        cut -= 1;
    }
    kept.truncate(cut);
    if kept.iter().filter(|b| **b == separators.escape).count() % 2 == 1
        && let Some(opened) = kept.iter().rposition(|b| *b == separators.escape)
    {
        kept.truncate(opened);
    }
    kept
}

/// Whether an answer can be written with these delimiters: all different, and none occurs in our own text.
fn usable(s: Separators) -> bool {
    let all = [s.field, s.component, s.repetition, s.escape, s.subcomponent];
    (0..all.len()).all(|at| !all[..at].contains(&all[at]) && !b"+-.,_".contains(&all[at]))
}

/// HL7 `TS` in UTC with its offset.
fn date_time(now: UnixMillis) -> String {
    let seconds = i64::try_from(now / 1000).unwrap_or(0);
    OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(format_description!("[year][month][day][hour][minute][second]+0000"))
        .unwrap_or_default()
}

struct SegmentText {
    out: Vec<u8>,
    field: u8,
}

impl SegmentText {
    fn field(&mut self, value: &[u8]) {
        self.out.push(self.field);
        self.out.extend_from_slice(value);
    }

    fn end(&mut self) {
        self.out.push(b'\r');
    }
}

/// Gives each acknowledgment its own MSH-10: the start in tenths of a second, the door's port and a count, all
/// hexadecimal. The count wraps after 268 million.
#[derive(Debug)]
pub struct ControlIds {
    started: UnixMillis,
    port: u16,
    next: std::sync::atomic::AtomicU32,
}

impl ControlIds {
    /// The ids of the door on `port` that started at `started`.
    #[must_use]
    pub fn new(started: UnixMillis, port: u16) -> Self {
        Self { started, port, next: std::sync::atomic::AtomicU32::new(0) }
    }

    /// The next id: 20 characters, the most that the oldest versions allow.
    #[must_use]
    pub fn next(&self) -> String {
        let count = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut id = Vec::with_capacity(20);
        // Writing to a Vec cannot fail.
        let started = (self.started / 100) & 0xf_ffff_ffff;
        let _ = write!(id, "{started:09x}{:04x}{:07x}", self.port, count & 0xfff_ffff);
        String::from_utf8(id).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::mllp::codec::{Decoder, Event};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const STAMP: Stamp<'static> = Stamp { now: 1_795_385_530_123, control_id: "G1" };

    fn answer(header: &str, outcome: AckOutcome) -> Option<String> {
        let message = header.as_bytes();
        let framed = acknowledgment(Msh::read(message).as_ref(), outcome, STAMP)?;
        Some(String::from_utf8(unframe(&framed)).unwrap().replace('\r', "\n"))
    }

    fn unframe(framed: &[u8]) -> Vec<u8> {
        let mut events = VecDeque::new();
        Decoder::new(MAX_BYTES, 1).handle(framed, 0, &mut events);
        match (events.pop_front(), events.pop_front()) {
            (Some(Event::Frame(body)), None) => body.as_bytes().to_vec(),
            other => panic!("not one frame: {other:?}"),
        }
    }

    fn header(version: &str, accept: &str, application: &str) -> String {
        format!(
            "MSH|^~\\&|LAB|SURG|APP|FAC|20200501140643||ORU^R01|42|T|{version}|||{accept}|{application}|44|ASCII\rPID"
        )
    }

    #[test]
    fn positive_answers_in_full() {
        assert_eq!(
            answer(&header("2.4", "", ""), AckOutcome::Stored).unwrap(),
            "MSH|^~\\&|APP|FAC|LAB|SURG|20261122221210+0000||ACK^R01^ACK|G1|T|2.4||||||ASCII\n\
             MSA|AA|42|Stored for forwarding\n"
        );
        assert_eq!(
            answer("MSH|^~\\&|LAB|SURG|APP|FAC|1||ORU^R01|42||2.3|||AL", AckOutcome::Stored).unwrap(),
            "MSH|^~\\&|APP|FAC|LAB|SURG|20261122221210+0000||ACK|G1||2.3\nMSA|CA|42|Stored for forwarding\n"
        );
    }

    #[test]
    fn refusals_in_full() {
        assert_eq!(
            answer(&header("2.5.1", "", ""), AckOutcome::Refused(Fault::TOO_LARGE)).unwrap(),
            "MSH|^~\\&|APP|FAC|LAB|SURG|20261122221210+0000||ACK^R01^ACK|G1|T|2.5.1||||||ASCII\n\
             MSA|AE|42|The message is larger than the limit of this gateway\n\
             ERR|||207^Application internal error^HL70357|E||||The message is larger than the limit of this gateway\n"
        );
        assert_eq!(
            answer("no header", AckOutcome::Refused(Fault::NO_HEADER)).unwrap(),
            "MSH|^~\\&|||||20261122221210+0000||ACK|G1||2.3\n\
             MSA|AR||The message does not begin with an MSH segment\n\
             ERR|MSH^^^100&Segment sequence error&HL70357\n"
        );
    }

    #[test]
    fn msh_15_and_16_decide() {
        let code = |accept: &str, application: &str, outcome| {
            answer(&header("2.4", accept, application), outcome)
                .map(|text| text.split_once("MSA|").unwrap().1[..2].to_owned())
        };
        let reject = AckOutcome::Refused(Fault::SENDER_NOT_ALLOWED);
        let error = AckOutcome::Refused(Fault::TOO_LARGE);
        for (accept, application, stored, rejected, failed) in [
            ("", "", Some("AA"), Some("AR"), Some("AE")),
            ("AL", "", Some("CA"), Some("CR"), Some("CE")),
            ("AL", "NE", Some("CA"), Some("CR"), Some("CE")),
            ("al", "AL", Some("CA"), Some("CR"), Some("CE")),
            ("SU", "", Some("CA"), None, None),
            ("ER", "AL", None, Some("CR"), Some("CE")),
            ("NE", "AL", None, None, None),
            ("", "AL", Some("AA"), Some("AR"), Some("AE")),
            ("", "NE", None, None, None),
            ("", "ER", None, Some("AR"), Some("AE")),
            ("??", "", Some("CA"), Some("CR"), Some("CE")),
        ] {
            let name = format!("MSH-15 {accept:?} MSH-16 {application:?}");
            assert_eq!(code(accept, application, AckOutcome::Stored).as_deref(), stored, "{name}");
            assert_eq!(code(accept, application, reject).as_deref(), rejected, "{name}");
            assert_eq!(code(accept, application, error).as_deref(), failed, "{name}");
        }
    }

    #[test]
    fn the_senders_separators_are_used_unless_they_clash() {
        let text = answer("MSH#*~\\&#LAB#SU*RG#APP#FAC###ORU*R01#4|2##2.5", AckOutcome::Stored).unwrap();
        assert_eq!(
            text,
            "MSH#*~\\&#APP#FAC#LAB#SU*RG#20261122221210+0000##ACK*R01*ACK#G1##2.5\n\
             MSA#AA#4|2#Stored for forwarding\n"
        );
        let text = answer("MSH#****#LAB#SURG######4|2", AckOutcome::Stored).unwrap();
        assert!(text.starts_with("MSH|^~\\&|||LAB|SURG|"), "{text}");
        assert!(text.contains("MSA|AA|42|"), "{text}");
    }

    #[test]
    fn a_separator_that_our_own_fields_contain_is_not_used() {
        for separator in ['+', '.', ','] {
            let message = "MSH+^~\\&+LAB+SURG++++++42++2".replace('+', &separator.to_string());
            let text = answer(&message, AckOutcome::Refused(Fault::UNAVAILABLE)).unwrap();
            assert!(text.starts_with("MSH|^~\\&|||LAB|SURG|20261122221210+0000||"), "{text}");
        }
    }

    #[test]
    fn echoes_are_cut_at_whole_characters_and_escapes() {
        let usual = Separators::USUAL;
        assert_eq!(echo("aé".as_bytes(), 2, usual), b"a");
        assert_eq!(echo(b"ab\\T\\", 4, usual), b"ab");
        assert_eq!(echo(b"ab\\T\\", 5, usual), b"ab\\T\\");
        assert_eq!(echo(b"a\x0b\x1cb", 5, usual), b"ab");
    }

    #[test]
    fn control_ids_differ_and_fit() {
        let ids = ControlIds::new(1_795_385_530_123, 2575);
        assert_eq!((ids.next(), ids.next()), ("42e2217450a0f0000000".into(), "42e2217450a0f0000001".into()));
        assert_ne!(ids.next(), ControlIds::new(1_795_385_530_123, 2576).next());
        assert_eq!(ControlIds::new(u64::MAX, u16::MAX).next().len(), 20);
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let field = prop_oneof![
            4 => "[A-Z0-9^&\\\\]{0,12}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
            1 => (any::<u8>(), 0usize..3000).prop_map(|(byte, count)| vec![byte; count]),
        ];
        (any::<u8>(), proptest::collection::vec(field, 0..22)).prop_map(|(separator, fields)| {
            let mut message = b"MSH".to_vec();
            let separator = if separator.is_ascii_punctuation() { separator } else { b'|' };
            for field in fields {
                message.push(separator);
                message.extend(field);
            }
            message
        })
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn every_answer_is_one_small_frame_with_msh_and_msa(message in hostile(), kind in 0usize..4) {
            let msh = Msh::read(&message);
            let outcome = [
                AckOutcome::Stored,
                AckOutcome::Refused(Fault::UNSUPPORTED),
                AckOutcome::Refused(Fault::UNAVAILABLE),
                AckOutcome::Refused(Fault::SENDER_NOT_ALLOWED),
            ][kind];
            if let Some(framed) = acknowledgment(msh.as_ref(), outcome, STAMP) {
                prop_assert!(framed.len() < MAX_BYTES, "{} bytes", framed.len());
                let body = unframe(&framed);
                let ack = Msh::read(&body);
                prop_assert!(ack.is_some());
                let segments: Vec<_> = body.split(|b| *b == b'\r').map(|s| &s[..s.len().min(3)]).collect();
                let expected: &[&[u8]] = match outcome {
                    AckOutcome::Stored => &[b"MSH", b"MSA", b""],
                    AckOutcome::Refused(_) => &[b"MSH", b"MSA", b"ERR", b""],
                };
                prop_assert_eq!(segments, expected);
                prop_assert_eq!(ack.unwrap().control_id(), b"G1");
            }
        }
    }
}
