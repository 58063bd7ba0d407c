//! The first segment of an HL7 v2 message, and nothing else of it.
//!
//! The gateway reads the header to acknowledge and to name a message; the rest stays opaque, in any charset. It
//! tolerates what [`crate::ingest::hl7`] skips, LF or CRLF for CR, a short MSH-2, and missing fields.

use crate::ingest::hl7::Beginning;

/// The delimiters of a message, from MSH-1 and MSH-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Separators {
    /// MSH-1, usually `|`.
    pub field: u8,
    /// Usually `^`.
    pub component: u8,
    /// Usually `~`.
    pub repetition: u8,
    /// Usually `\`.
    pub escape: u8,
    /// Usually `&`.
    pub subcomponent: u8,
}

impl Separators {
    /// The usual delimiters.
    pub const USUAL: Self =
        Self { field: b'|', component: b'^', repetition: b'~', escape: b'\\', subcomponent: b'&' };
}

/// Fields are kept up to MSH-18, the last that matters here.
const FIELDS: usize = 19;

/// A header, borrowed from its message. No `Debug`: a faulty sender may put anything into a header.
#[derive(Clone)]
pub struct Msh<'a> {
    separators: Separators,
    fields: [&'a [u8]; FIELDS],
}

impl<'a> Msh<'a> {
    /// Reads the header; `None` if the message does not begin with one.
    #[must_use]
    pub fn read(message: &'a [u8]) -> Option<Self> {
        let Beginning::Message(start) = Beginning::of(message) else { return None };
        let after_name = message.get(start + 3..)?;
        let field = *after_name.first()?;
        let rest = &after_name[1..];
        let segment = rest.split(|b| matches!(b, b'\r' | b'\n')).next().unwrap_or_default();
        let mut fields = [&[][..]; FIELDS];
        for (slot, value) in fields.iter_mut().skip(2).zip(segment.split(|b| *b == field)) {
            *slot = value;
        }
        Some(Self { separators: separators(field, fields[2]), fields })
    }

    /// The message's delimiters.
    #[must_use]
    pub fn separators(&self) -> Separators {
        self.separators
    }

    /// MSH-`number` as sent; empty if missing, and for numbers that are not read (1, and over 18).
    #[must_use]
    pub fn field(&self, number: usize) -> &'a [u8] {
        self.fields.get(number).copied().unwrap_or_default()
    }

    /// Component `number` (from 1) of the first repetition of MSH-`field`.
    #[must_use]
    pub fn component(&self, field: usize, number: usize) -> &'a [u8] {
        let first = self.field(field).split(|b| *b == self.separators.repetition).next().unwrap_or_default();
        first
            .split(|b| *b == self.separators.component)
            .nth(number.saturating_sub(1))
            .unwrap_or_default()
            .trim_ascii()
    }

    /// MSH-10, the sender's own number of the message.
    #[must_use]
    pub fn control_id(&self) -> &'a [u8] {
        self.field(10).trim_ascii()
    }

    /// MSH-11: `P`, `T`, `D`; recorded, never acted upon.
    #[must_use]
    pub fn processing_id(&self) -> &'a [u8] {
        self.component(11, 1)
    }
}

/// Missing, repeated or unprintable characters of MSH-2 are replaced by the usual ones.
fn separators(field: u8, given: &[u8]) -> Separators {
    let usual = Separators::USUAL;
    let pick = |index: usize, otherwise: u8| match given.get(index) {
        Some(b) if b.is_ascii_punctuation() => *b,
        _ => otherwise,
    };
    Separators {
        field,
        component: pick(0, usual.component),
        repetition: pick(1, usual.repetition),
        escape: pick(2, usual.escape),
        subcomponent: pick(3, usual.subcomponent),
    }
}

/// Bytes of an unknown charset as text: UTF-8 if valid, otherwise each byte as its Latin-1 character.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &[u8] =
        b"MSH|^~\\&|LAB|SURG^B86022|APP|FAC|20200501140643||ORU^R01^ORU_R01|42|T|2.3|||AL|NE|44|8859/1\rPID|1\r";

    #[test]
    fn fields_are_numbered_as_in_the_standard() {
        let msh = Msh::read(SAMPLE).unwrap();
        assert_eq!(msh.separators(), Separators::USUAL);
        let expected: [&[u8]; 18] = [
            b"",
            b"^~\\&",
            b"LAB",
            b"SURG^B86022",
            b"APP",
            b"FAC",
            b"20200501140643",
            b"",
            b"ORU^R01^ORU_R01",
            b"42",
            b"T",
            b"2.3",
            b"",
            b"",
            b"AL",
            b"NE",
            b"44",
            b"8859/1",
        ];
        for (number, expected) in (1..).zip(expected) {
            assert_eq!(msh.field(number), expected, "MSH-{number}");
        }
        assert_eq!(msh.component(9, 2), b"R01");
        assert_eq!(msh.component(4, 2), b"B86022");
        assert_eq!(msh.component(9, 4), b"");
        assert_eq!(msh.field(19), b"");
    }

    #[test]
    fn other_separators_are_taken_from_the_header() {
        let msh = Msh::read(b"MSH#*~\\&#LAB#SURG*X#####ADT*A01#7#P").unwrap();
        assert_eq!(msh.component(9, 2), b"A01");
        assert_eq!(msh.control_id(), b"7");
        assert_eq!(msh.separators().component, b'*');
    }

    #[test]
    fn line_ends_and_a_byte_order_mark_are_tolerated_for_reading() {
        for message in
            [&b"\r\nMSH|^~\\&|A|B\nPID|1"[..], b"\xef\xbb\xbfMSH|^~\\&|A|B\r\nPID", b"MSH|^~\\&|A|B"]
        {
            assert_eq!(Msh::read(message).unwrap().field(4), b"B");
        }
    }

    #[test]
    fn short_and_missing_headers() {
        assert_eq!(Msh::read(b"MSH|").unwrap().control_id(), b"");
        for bad in [&b""[..], b"MSH", b"MSHA^~", b"PID|1", b"FHS|^~\\&|", b"msh|", b"MSH\r"] {
            assert!(Msh::read(bad).is_none());
        }
    }

    #[test]
    fn latin_1_becomes_text() {
        assert_eq!(text(b"M\xfcller"), "Müller");
        assert_eq!(text("Müller".as_bytes()), "Müller");
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn anything_can_be_read(message in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut message = message;
            for prefix in [&b""[..], b"MSH|", b"MSH|^~\\&|"] {
                message.splice(0..0, prefix.iter().copied());
                if let Some(msh) = Msh::read(&message) {
                    for number in 0..25 {
                        prop_assert!(!msh.field(number).contains(&b'\r'));
                        prop_assert!(!msh.component(number, 2).contains(&msh.separators().component));
                    }
                }
            }
        }
    }
}
