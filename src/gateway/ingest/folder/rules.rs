//! Which names are taken, what type a file has, and the key by which it is recognised. Pure.

use pgw_core::text::hex;
use pgw_outbox::EventType;
use ring::digest;

use crate::ingest::media;
use crate::ingest::mllp::envelope;
use crate::ingest::mllp::msh::Msh;

/// How a sender says that a file is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// By its name: it is written under another name (`.x`, `x.tmp`, `x.part`, `x.filepart`) and renamed when it is
    /// complete.
    Rename,
    /// By a second file: `x.dat` is complete when `x.ctl` exists.
    Ctl,
}

/// When a file was last written: seconds and nanoseconds since the Unix epoch, according to the file system.
pub type Modified = (i64, u32);

/// The type of a file, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nature {
    /// CloudEvents `type`; empty: derived from the media type and, for HL7 v2, the message's header.
    pub event_type: String,
    /// Media type.
    pub content_type: String,
}

/// Endings of names that are not finished yet.
const UNFINISHED: [&[u8]; 3] = [b".tmp", b".part", b".filepart"];
/// Files that desktops leave in folders.
const LITTER: [&[u8]; 2] = [b"thumbs.db", b"desktop.ini"];

/// Whether a file of this name may be taken.
#[must_use]
pub fn is_finished(take: Take, name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    if name.first() == Some(&b'.') {
        return false;
    }
    match take {
        Take::Rename => {
            !UNFINISHED.iter().any(|end| name.ends_with(end)) && !LITTER.contains(&name.as_slice())
        }
        Take::Ctl => name.len() > 4 && name.ends_with(b".dat"),
    }
}

/// The possible names of the second file of `x.dat`, the likeliest first.
#[must_use]
pub fn ctl_names(name: &[u8]) -> [Vec<u8>; 2] {
    let stem = &name[..name.len().saturating_sub(4)];
    let upper = name.ends_with(b".DAT");
    let named = |end: &[u8]| [stem, end].concat();
    if upper { [named(b".CTL"), named(b".ctl")] } else { [named(b".ctl"), named(b".CTL")] }
}

/// The possible names of the first file of `x.ctl`; `None`: this is not an `x.ctl`.
#[must_use]
pub fn dat_names(name: &[u8]) -> Option<[Vec<u8>; 2]> {
    let ctl = name.len() > 4 && name.to_ascii_lowercase().ends_with(b".ctl");
    let stem = &name[..name.len().saturating_sub(4)];
    ctl.then(|| [[stem, b".dat"].concat(), [stem, b".DAT"].concat()])
}

/// The key by which a file is recognised: a hash of its name and of the time when it was written.
///
/// The outbox compares the content as well. So the same file after a crash, or a copy of it that kept its time, is a
/// repetition. The same content under another name, or written again later under the same name, is another
/// transaction: storing it twice is visible and harmless, while taking it for a repetition by mistake would lose it.
/// The inode is not used, because a shared file system may invent it.
#[must_use]
pub fn key(name: &[u8], modified: Modified) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(name.len() as u64).to_be_bytes());
    context.update(name);
    context.update(&modified.0.to_be_bytes());
    context.update(&modified.1.to_be_bytes());
    hex(context.finish().as_ref())
}

/// SHA-256 of a file's content, as hexadecimal digits.
#[must_use]
pub fn sha256(content: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, content).as_ref())
}

/// The end of a name after its last dot, in lower case; empty if there is no dot.
#[must_use]
pub fn extension(name: &[u8]) -> String {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => String::from_utf8_lossy(&name[dot + 1..]).to_ascii_lowercase(),
        _ => String::new(),
    }
}

/// CloudEvents `type` of a file.
#[must_use]
pub fn event_type(nature: &Nature, content: &[u8]) -> EventType {
    if !nature.event_type.is_empty() {
        return EventType::Given(nature.event_type.clone());
    }
    EventType::Named(match media::format(&nature.content_type) {
        media::HL7_FORMAT => match Msh::read(content) {
            Some(msh) => envelope::event_type(&msh),
            None => String::from("hl7v2.unknown"),
        },
        media::EDIFACT_FORMAT => String::from("edifact.interchange"),
        _ => String::from("folder.transaction"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_names_are_left_alone() {
        for name in ["a.hl7", "A", "a.tmp.hl7", "tmp", "a b\n.x", "a.dat", "a.ctl", "x.receipt.json"] {
            assert!(is_finished(Take::Rename, name.as_bytes()), "{name}");
        }
        for name in [".a.hl7", "a.tmp", "a.TMP", "a.part", "a.hl7.filepart", "Thumbs.db", "desktop.ini", "."]
        {
            assert!(!is_finished(Take::Rename, name.as_bytes()), "{name}");
        }
        assert!(is_finished(Take::Rename, b"\xff\xfe"), "names need not be text");
    }

    #[test]
    fn a_dat_and_its_ctl_belong_together() {
        assert!(is_finished(Take::Ctl, b"x.dat") && is_finished(Take::Ctl, b"X.DAT"));
        for name in [&b".dat"[..], b"x.ctl", b"x", b"dat", b".x.dat", b"x.dat.tmp"] {
            assert!(!is_finished(Take::Ctl, name));
        }
        assert_eq!(ctl_names(b"X.DAT"), [b"X.CTL".to_vec(), b"X.ctl".to_vec()]);
        assert_eq!(ctl_names(b"x.y.dat")[0], b"x.y.ctl");
        assert!(dat_names(b"x.ctl").unwrap().contains(&b"x.dat".to_vec()));
        assert!(dat_names(b"X.CTL").unwrap().contains(&b"X.DAT".to_vec()));
        assert_eq!(dat_names(b"x.dat"), None);
        assert_eq!(dat_names(b".ctl"), None);
    }

    #[test]
    fn every_part_of_a_key_counts_and_none_can_be_read_from_it() {
        let key_of = |name: &str, modified| key(name.as_bytes(), modified);
        let one = key_of("SMITH_John_9434765919.hl7", (7, 9));
        assert_eq!(one, key_of("SMITH_John_9434765919.hl7", (7, 9)));
        for other in [
            key_of("SMITH_John_9434765919.hl8", (7, 9)),
            key_of("SMITH_John_9434765919.hl7", (8, 9)),
            key_of("SMITH_John_9434765919.hl7", (7, 8)),
        ] {
            assert_ne!(one, other);
        }
        assert!(one.len() == 64 && one.bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn types_come_from_the_media_type_and_the_header() {
        let of = |event_type: &str, content_type: &str, content: &[u8]| {
            let nature = Nature { event_type: event_type.into(), content_type: content_type.into() };
            super::event_type(&nature, content)
        };
        let named = |name: &str| EventType::Named(name.to_owned());
        let message = b"MSH|^~\\&|LAB|S|||||ORU^R01|1|P|2.4";
        let hl7 = "application/hl7-v2+er7";
        assert_eq!(of("", hl7, message), named("hl7v2.oru_r01"));
        assert_eq!(of("", hl7, b"?"), named("hl7v2.unknown"));
        assert_eq!(of("", "x-application/hl7-v2+er7", message), named("hl7v2.oru_r01"));
        let after_a_mark = [&b"\xef\xbb\xbf\r\n"[..], message].concat();
        assert_eq!(of("", hl7, &after_a_mark), named("hl7v2.oru_r01"));
        assert_eq!(of("lab.result", hl7, message), EventType::Given("lab.result".into()));
        assert_eq!(of("", "application/edifact", b"UNB"), named("edifact.interchange"));
        assert_eq!(of("", "application/pdf", b"%PDF"), named("folder.transaction"));
    }

    #[test]
    fn extensions() {
        for (name, wanted) in [("a.HL7", "hl7"), ("a.b.edi", "edi"), ("a", ""), (".hl7", ""), ("a.", "")] {
            assert_eq!(extension(name.as_bytes()), wanted, "{name}");
        }
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
