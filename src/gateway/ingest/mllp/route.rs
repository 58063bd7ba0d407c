//! Which lane a message goes to, by its kind (MSH-9). Pure.

use std::str::FromStr;

use pgw_core::transaction::Lane;

use crate::ingest::mllp::msh::Msh;

/// A kind of message: all messages of a code (`ADT`), or one event of it (`ORU^R01`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageKind {
    code: String,
    event: Option<String>,
}

/// Text that is not a [`MessageKind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message code, with its event if only that is meant: \"ADT\", \"ORU^R01\"")]
pub struct NotAMessageKind;

impl FromStr for MessageKind {
    type Err = NotAMessageKind;

    fn from_str(text: &str) -> Result<Self, NotAMessageKind> {
        let (code, event) = match text.split_once('^') {
            Some((code, event)) => (code, Some(event)),
            None => (text, None),
        };
        let is_word = |word: &str| {
            (1..=16).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if is_word(code) && event.is_none_or(is_word) {
            Ok(Self { code: code.to_ascii_uppercase(), event: event.map(str::to_ascii_uppercase) })
        } else {
            Err(NotAMessageKind)
        }
    }
}

/// One kind and its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which messages.
    pub message: MessageKind,
    /// Their lane.
    pub lane: Lane,
}

/// The lane of the first matching route, or `otherwise`.
#[must_use]
pub fn lane<'a>(routes: &'a [Route], otherwise: &'a Lane, msh: &Msh<'_>) -> &'a Lane {
    let fits = |route: &&Route| {
        let MessageKind { code, event } = &route.message;
        msh.component(9, 1).eq_ignore_ascii_case(code.as_bytes())
            && event.as_ref().is_none_or(|event| msh.component(9, 2).eq_ignore_ascii_case(event.as_bytes()))
    };
    routes.iter().find(fits).map_or(otherwise, |route| &route.lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(message: &str, lane: &str) -> Route {
        Route { message: message.parse().unwrap(), lane: Lane::new(lane).unwrap() }
    }

    #[test]
    fn the_first_that_fits_decides() {
        let routes = [route("ORU^R01", "results"), route("ORU", "reports"), route("adt", "demographics")];
        let otherwise = Lane::new("clinical").unwrap();
        let lane_of = |kind: &str| {
            let message = format!("MSH|^~\\&|A|B|||1||{kind}|1|P|2.3");
            lane(&routes, &otherwise, &Msh::read(message.as_bytes()).unwrap()).as_str().to_owned()
        };
        for (kind, expected) in [
            ("ORU^R01^ORU_R01", "results"),
            ("ORU^R30", "reports"),
            ("oru^r01", "results"),
            ("ADT^A08", "demographics"),
            ("ADT", "demographics"),
            ("ADTX^A08", "clinical"),
            ("SIU^S12", "clinical"),
            ("", "clinical"),
        ] {
            assert_eq!(lane_of(kind), expected, "{kind}");
        }
    }

    #[test]
    fn what_is_no_kind() {
        for bad in ["", "^R01", "ORU^", "ORU^R01^ORU_R01", "O RU", "*", "ORU|R01"] {
            assert_eq!(bad.parse::<MessageKind>(), Err(NotAMessageKind), "{bad}");
        }
    }
}
