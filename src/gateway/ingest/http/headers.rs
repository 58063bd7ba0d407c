//! What the headers of a request say, and what they must not. Pure.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use pgw_core::wire::limits::Text;
use uuid::Uuid;

use crate::ingest::http::outcome::Problem;
use crate::ingest::media;

/// Identifies this request; a repetition keeps it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Identifies the conversation that this request belongs to.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// W3C Trace Context.
pub const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// The sender's own key of the transaction; it takes precedence over every other.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// CloudEvents `type`, as its HTTP binding writes it.
pub const EVENT_TYPE: HeaderName = HeaderName::from_static("ce-type");

/// The ids of a request, checked.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// `Idempotency-Key`; empty if there is none.
    pub idempotency_key: String,
    /// `X-Request-ID`; empty if there is none.
    pub request_id: String,
    /// `X-Correlation-ID`; empty if there is none.
    pub correlation_id: String,
    /// `traceparent`; empty if there is none, or none of the W3C form.
    pub trace_parent: String,
}

impl Ids {
    /// Reads them. With `required` (the BaRS rule) both `X-Request-ID` and `X-Correlation-ID` must be UUIDs.
    ///
    /// # Errors
    /// The [`Problem`] that names the header.
    pub fn read(headers: &HeaderMap, required: bool) -> Result<Self, Problem> {
        let word = |name: &HeaderName, text: Text, wrong: Problem| match one(headers, name) {
            // This refuses a tab as well: it counts as text in a header, but nobody means one inside an id.
            Ok(value) if text.check(value).is_ok() => Ok(value.to_owned()),
            _ => Err(wrong),
        };
        let ids = Self {
            idempotency_key: word(&IDEMPOTENCY_KEY, Text::Key, Problem::IDEMPOTENCY_KEY)?,
            request_id: word(&REQUEST_ID, Text::Key, Problem::REQUEST_ID)?,
            correlation_id: word(&CORRELATION_ID, Text::CorrelationId, Problem::CORRELATION_ID)?,
            // As its specification asks, one that is malformed counts as none.
            trace_parent: one(headers, &TRACE_PARENT)
                .ok()
                .filter(|text| is_trace_parent(text))
                .unwrap_or_default()
                .to_owned(),
        };
        if required {
            for (id, missing, wrong) in [
                (&ids.request_id, Problem::NO_REQUEST_ID, Problem::REQUEST_ID),
                (&ids.correlation_id, Problem::NO_CORRELATION_ID, Problem::CORRELATION_ID),
            ] {
                if id.is_empty() {
                    return Err(missing);
                }
                if Uuid::try_parse(id).is_err() {
                    return Err(wrong);
                }
            }
        }
        Ok(ids)
    }

    /// The key that the sender chose: the first one present. Empty: none.
    #[must_use]
    pub fn chosen_key(&self) -> &str {
        if self.idempotency_key.is_empty() { &self.request_id } else { &self.idempotency_key }
    }
}

/// Whether a text is a trace parent (W3C Trace Context, section 3.2): `{version}-{trace}-{parent}-{flags}`, lower-case
/// hexadecimal, neither id all zeros.
fn is_trace_parent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return false };
    let is_hex = |part: &str, digits| {
        part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part, digits| is_hex(part, digits) && part.bytes().any(|byte| byte != b'0');
    is_hex(version, 2) && version != "ff" && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2)
}

/// The only value of a header as text, trimmed; empty if there is none. Two values are as wrong as bytes that are not
/// text.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(""),
        (Some(value), None) => value.to_str().map(str::trim).map_err(|_| ()),
        _ => Err(()),
    }
}

/// `Content-Type` as sent; empty if there is none.
///
/// # Errors
/// [`Problem::MEDIA_TYPE`] if it is not a media type, [`Problem::ENCODED`] for a compressed body: the stored bytes
/// would not be those that the receiver expects.
pub fn content_type(headers: &HeaderMap) -> Result<&str, Problem> {
    if let Ok(encoding) = one(headers, &axum::http::header::CONTENT_ENCODING)
        && (encoding.is_empty() || encoding.eq_ignore_ascii_case("identity"))
    {
        let given = one(headers, &axum::http::header::CONTENT_TYPE).map_err(|()| Problem::MEDIA_TYPE)?;
        return if given.is_empty() || media::is_media_type(given) {
            Ok(given)
        } else {
            Err(Problem::MEDIA_TYPE)
        };
    }
    Err(Problem::ENCODED)
}

/// `Ce-Type`; empty if there is none.
///
/// # Errors
/// [`Problem::EVENT_TYPE`].
pub fn event_type(headers: &HeaderMap) -> Result<&str, Problem> {
    let given = one(headers, &EVENT_TYPE).map_err(|()| Problem::EVENT_TYPE)?;
    if given.is_empty() || media::is_event_type(given) { Ok(given) } else { Err(Problem::EVENT_TYPE) }
}

/// The bearer token of `Authorization`, if there is one.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = one(headers, &axum::http::header::AUTHORIZATION).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Copies the ids of a request to its answer, always, whatever the answer is.
pub fn echo(given: &[(HeaderName, HeaderValue)], answer: &mut HeaderMap) {
    for (name, value) in given {
        answer.insert(name.clone(), value.clone());
    }
}

/// What [`echo`] needs from a request.
#[must_use]
pub fn to_echo(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    [REQUEST_ID, CORRELATION_ID]
        .into_iter()
        .filter_map(|name| headers.get(&name).map(|value| (name, value.clone())))
        .filter(|(_, value)| value.len() <= Text::Key.most_bytes().max(Text::CorrelationId.most_bytes()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "01939b1e-0000-7000-8000-000000000001";

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_first_key_that_is_there_is_the_key() {
        let all = [("idempotency-key", "k"), ("x-request-id", "r"), ("x-correlation-id", "c")];
        let ids = Ids::read(&map(&all), false).ok().unwrap();
        assert_eq!((ids.chosen_key(), ids.correlation_id.as_str()), ("k", "c"));
        assert_eq!(Ids::read(&map(&all[1..]), false).ok().unwrap().chosen_key(), "r");
        assert_eq!(Ids::read(&map(&all[2..]), false).ok().unwrap().chosen_key(), "");
    }

    #[test]
    fn bars_wants_both_ids_and_wants_uuids() {
        let read = |pairs: &[(&'static str, &str)]| Ids::read(&map(pairs), true).err();
        assert_eq!(read(&[("x-request-id", ID), ("x-correlation-id", ID)]), None);
        assert_eq!(read(&[("x-correlation-id", ID)]), Some(Problem::NO_REQUEST_ID));
        assert_eq!(read(&[("x-request-id", ID)]), Some(Problem::NO_CORRELATION_ID));
        assert_eq!(read(&[("x-request-id", "1"), ("x-correlation-id", ID)]), Some(Problem::REQUEST_ID));
        assert_eq!(read(&[("x-request-id", ID), ("x-correlation-id", "1")]), Some(Problem::CORRELATION_ID));
    }

    #[test]
    fn two_of_one_a_tab_or_too_long_is_wrong() {
        let mut twice = map(&[("x-request-id", "a")]);
        twice.append(REQUEST_ID, HeaderValue::from_static("b"));
        assert_eq!(Ids::read(&twice, false).err(), Some(Problem::REQUEST_ID));
        for name in ["x-request-id", "x-correlation-id", "idempotency-key"] {
            assert!(Ids::read(&map(&[(name, "a\tb")]), false).is_err(), "{name}");
            assert!(Ids::read(&map(&[(name, "a b")]), false).is_ok(), "{name}");
        }
        let long = "k".repeat(257);
        assert_eq!(
            Ids::read(&map(&[("idempotency-key", &long)]), false).err(),
            Some(Problem::IDEMPOTENCY_KEY)
        );
    }

    #[test]
    fn a_trace_parent_has_its_form_or_counts_as_none() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = |text: &str| Ids::read(&map(&[("traceparent", text)]), false).ok().unwrap().trace_parent;
        assert_eq!(read(GOOD), GOOD);
        for bad in [
            "1",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-01"),
            &GOOD.replacen("00", "ff", 1),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(read(bad), "", "{bad}");
        }
    }

    #[test]
    fn media_types() {
        let of = |value: &str| content_type(&map(&[("content-type", value)])).map(str::to_owned);
        assert_eq!(of("Text/Plain; charset=x"), Ok("Text/Plain; charset=x".to_owned()));
        for bad in ["text", "/", "text/", "a b/c", "text/\"x"] {
            assert_eq!(of(bad), Err(Problem::MEDIA_TYPE), "{bad}");
        }
        assert_eq!(content_type(&HeaderMap::new()), Ok(""));
        let packed = map(&[("content-encoding", "gzip"), ("content-type", "a/b")]);
        assert_eq!(content_type(&packed), Err(Problem::ENCODED));
        assert!(content_type(&map(&[("content-encoding", "identity")])).is_ok());
    }

    #[test]
    fn bearer_tokens() {
        assert_eq!(bearer(&map(&[("authorization", "Bearer  abc ")])), Some("abc"));
        assert_eq!(bearer(&map(&[("authorization", "bearer abc")])), Some("abc"));
        for none in ["Basic abc", "Bearer", "abc"] {
            assert_eq!(bearer(&map(&[("authorization", none)])), None, "{none}");
        }
    }

    /// What a header can hold at all, mostly; otherwise anything.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "[ -~]{0,400}".prop_map(String::into_bytes),
            2 => "[ -~\t\u{e4}\u{fffe}]{0,40}".prop_map(String::into_bytes),
            1 => proptest::collection::vec(any::<u8>(), 0..40),
        ]
    }

    proptest! {
        #![proptest_config(crate::seeds::kept())]

        #[test]
        fn whatever_the_headers_hold_what_is_taken_is_short_and_harmless(
            values in proptest::collection::vec(value(), 6)
        ) {
            let mut headers = HeaderMap::new();
            let names = [
                REQUEST_ID, CORRELATION_ID, IDEMPOTENCY_KEY, EVENT_TYPE,
                axum::http::header::CONTENT_TYPE, axum::http::header::AUTHORIZATION,
            ];
            for (name, value) in names.into_iter().zip(&values) {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.insert(name, value);
                }
            }
            if let Ok(ids) = Ids::read(&headers, false) {
                let printable = |id: &str| id.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
                prop_assert!(Text::Key.check(ids.chosen_key()).is_ok() && printable(ids.chosen_key()));
                prop_assert!(printable(&ids.correlation_id));
            }
            if let Ok(given) = content_type(&headers) {
                prop_assert!(Text::ContentType.check(given).is_ok() && given.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
                prop_assert!(media::format(given).len() < 10);
            }
            if let Ok(given) = event_type(&headers) {
                prop_assert!(!given.contains([' ', '\n', '"']));
            }
            let _ = bearer(&headers);
            prop_assert!(to_echo(&headers).len() <= 2);
        }
    }
}
