//! Media types and what follows from them: one table for all doors. Pure.
//!
//! | media type | format | what its `type` is called if the sender gives none |
//! |---|---|---|
//! | `application/hl7-v2*`, `x-application/hl7-v2*` | `hl7v2` | from the message's header |
//! | `application/fhir+*` | `fhir` | the door's |
//! | `application/edifact` | `edifact` | `edifact.interchange` from a folder, otherwise the door's |
//! | any other | `opaque` | the door's |

use pgw_core::wire::limits::Text;

/// Format of HL7 v2.
pub const HL7_FORMAT: &str = "hl7v2";
/// Format of FHIR.
pub const FHIR_FORMAT: &str = "fhir";
/// Format of EDIFACT.
pub const EDIFACT_FORMAT: &str = "edifact";
/// Format of unknown types.
pub const OPAQUE_FORMAT: &str = "opaque";

/// HL7 v2 in its usual encoding; the charset may follow as a parameter.
pub const ER7: &str = "application/hl7-v2+er7";
/// FHIR in JSON.
pub const FHIR_JSON: &str = "application/fhir+json";
/// Unknown content.
pub const OCTETS: &str = "application/octet-stream";

/// A media type, whether a suffix may follow it, and its format; the first match decides.
const TABLE: [(&str, bool, &str); 4] = [
    ("application/hl7-v2", true, HL7_FORMAT),
    ("x-application/hl7-v2", true, HL7_FORMAT),
    ("application/fhir+", true, FHIR_FORMAT),
    ("application/edifact", false, EDIFACT_FORMAT),
];

/// What the HL7 route of the HTTP door accepts besides HL7 v2 of [`TABLE`]; a body without a media type counts as HL7 v2.
const HL7_ROUTE: [&str; 2] = ["", "text/plain"];
/// The encodings of HL7 v2 that the route can read: the usual one, named or not.
const HL7_ENCODINGS: [&str; 2] = ["", "+er7"];

/// What the FHIR route of the HTTP door accepts.
const FHIR_ROUTE: [&str; 2] = [FHIR_JSON, "application/json"];

/// Whether a text is one media type, with or without parameters.
#[must_use]
pub fn is_media_type(text: &str) -> bool {
    let (name, _) = text.split_once(';').unwrap_or((text, ""));
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
    };
    Text::ContentType.check(text).is_ok()
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        && name.trim().split_once('/').is_some_and(|(kind, rest)| token(kind) && token(rest))
}

/// Whether a text can be a CloudEvents `type`: letters, digits, and `. _ - : /`.
#[must_use]
pub fn is_event_type(text: &str) -> bool {
    !text.is_empty()
        && Text::EventType.check(text).is_ok()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b))
}

/// The media type alone, in lower case, without parameters.
#[must_use]
pub fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Format of a media type, whatever its case and parameters.
#[must_use]
pub fn format(content_type: &str) -> &'static str {
    let name = essence(content_type);
    let fits = |(start, open, _): &&(&str, bool, &str)| {
        name.strip_prefix(start).is_some_and(|rest| *open || rest.is_empty())
    };
    TABLE.iter().find(fits).map_or(OPAQUE_FORMAT, |(_, _, format)| format)
}

/// Whether the HL7 route accepts it.
#[must_use]
pub fn is_hl7_route(content_type: &str) -> bool {
    let name = essence(content_type);
    let mut hl7 = TABLE.iter().filter(|(.., kind)| *kind == HL7_FORMAT);
    let is_hl7 =
        hl7.any(|(start, ..)| name.strip_prefix(start).is_some_and(|rest| HL7_ENCODINGS.contains(&rest)));
    is_hl7 || HL7_ROUTE.contains(&name.as_str())
}

/// Whether the FHIR route accepts it.
#[must_use]
pub fn is_fhir_route(content_type: &str) -> bool {
    FHIR_ROUTE.contains(&essence(content_type).as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [(&str, &str); 10] = [
        ("application/edifact", "edifact"),
        ("application/edifact2", "opaque"),
        ("application/hl7-v2", "hl7v2"),
        ("Application/HL7-v2+ER7; charset=utf-8", "hl7v2"),
        ("x-application/hl7-v2+er7", "hl7v2"),
        ("x-application/hl7-v2", "hl7v2"),
        ("application/fhir+json; fhirVersion=4.0", "fhir"),
        ("Application/FHIR+xml", "fhir"),
        ("text/plain", "opaque"),
        ("", "opaque"),
    ];

    #[test]
    fn formats_follow_from_media_types() {
        for (media_type, expected) in FORMATS {
            assert_eq!(format(media_type), expected, "{media_type}");
        }
    }

    #[test]
    fn what_is_no_media_type() {
        for bad in ["", "text", "/", "/x", "a/", "text/", "a b/c", "text/\"x", "a/b\n", "a/\u{e9}"] {
            assert!(!is_media_type(bad), "{bad:?}");
        }
        assert!(!is_media_type(&format!("a/{}", "b".repeat(255))));
        assert!(is_media_type("Text/Plain; charset=x") && is_media_type(OCTETS));
        assert_eq!(essence("Text/Plain ; charset=x"), "text/plain");
    }

    #[test]
    fn what_is_no_event_type() {
        for bad in ["", "a type", "t\n", "t\u{e9}", &"t".repeat(257)] {
            assert!(!is_event_type(bad), "{bad:?}");
        }
        assert!(is_event_type("hl7v2.oru_r01") && is_event_type("urn:nhs/x-1"));
    }

    #[test]
    fn the_hl7_route_takes_every_name_that_is_hl7_v2_at_the_other_doors() {
        for (start, _, kind) in TABLE {
            for encoding in HL7_ENCODINGS {
                let name = format!("{start}{encoding}");
                assert_eq!(is_hl7_route(&name), kind == HL7_FORMAT, "{name}");
            }
        }
        assert_eq!(format(ER7), HL7_FORMAT);
    }

    #[test]
    fn routes_take_their_own() {
        assert!(is_hl7_route("") && is_hl7_route("X-Application/HL7-v2+er7; charset=x"));
        assert!(!is_hl7_route("application/json") && !is_hl7_route("application/hl7-v2+xml"));
        assert!(is_fhir_route("application/json; charset=utf-8") && !is_fhir_route("application/fhir+xml"));
    }
}
