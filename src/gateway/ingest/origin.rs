//! Where refused input came from, as one line in the sealed head of its quarantine entry. Pure.
//!
//! `{door} {address or -} {source}`. A line of another form is only a source, from which the door follows.

use core::net::IpAddr;

/// Door, peer and sender of refused input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `mllp`, `http`, `folder`; `store` for records that the outbox itself has set aside.
    pub door: String,
    /// The peer's address, if the door has peers.
    pub address: Option<IpAddr>,
    /// The sender; for the store's own records the lane.
    pub source: String,
}

impl Origin {
    /// The line for a peer of a door.
    #[must_use]
    pub fn line(door: &str, address: IpAddr, source: &str) -> String {
        format!("{door} {} {source}", address.to_canonical())
    }

    /// Reads a line.
    #[must_use]
    pub fn read(line: &str) -> Self {
        let mut words = line.splitn(3, ' ');
        if let (Some(door), Some(address), Some(source)) = (words.next(), words.next(), words.next()) {
            let address = address.parse().ok();
            return Self { door: door.to_owned(), address, source: source.to_owned() };
        }
        // The name of a sender begins with its way in; the name of a lane has no colon.
        let door = match line.split_once(':') {
            Some(("hl7v2", _)) => "mllp",
            Some(("fhir", _)) => "http",
            Some((way, _)) => way,
            None => "store",
        };
        Self { door: door.to_owned(), address: None, source: line.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let source = "hl7v2:LAB%7CSURG";
        let line = Origin::line("mllp", "::ffff:192.168.7.4".parse().unwrap(), source);
        assert_eq!(line, format!("mllp 192.168.7.4 {source}"));
        let address = Some("192.168.7.4".parse().unwrap());
        assert_eq!(Origin::read(&line), Origin { door: "mllp".into(), address, source: source.into() });
    }

    #[test]
    fn a_source_alone_tells_its_door() {
        for (line, door) in [
            ("hl7v2:LAB%7CSURG", "mllp"),
            ("fhir:lab", "http"),
            ("http:lab", "http"),
            ("folder:scans", "folder"),
            ("clinical", "store"),
            ("", "store"),
        ] {
            let origin = Origin::read(line);
            assert_eq!((origin.door.as_str(), origin.address, origin.source.as_str()), (door, None, line));
        }
    }
}
