//! A transaction on the wire: CloudEvents 1.0, MQTT binding, binary mode (CloudEvents MQTT §3.1).
//!
//! The payload is the body as it came; Content Type is the transaction's; every attribute is a user
//! property, core ones and extensions alike, in lower case.

use uuid::Uuid;

use crate::chain::{ChainValue, Link};
use crate::transaction::{Epoch, Lane, Sequence, Transaction, rfc3339};
use crate::wire::WireError;

/// The envelope's attributes, as text where the chain is computed over the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// `id`: never changes.
    pub id: Uuid,
    /// `source`.
    pub source: String,
    /// `type`.
    pub event_type: String,
    /// `time`, RFC 3339.
    pub time: String,
    /// MQTT Content Type (`datacontenttype`).
    pub content_type: String,
    /// `lane`.
    pub lane: Lane,
    /// `epoch`.
    pub epoch: Epoch,
    /// `sequence`, decimal.
    pub sequence: Sequence,
    /// `round`, decimal: raised at each rewind.
    pub round: u64,
    /// `chain`: the value after this transaction.
    pub chain: ChainValue,
    /// `kind`.
    pub kind: String,
    /// `correlationid`; empty: left out.
    pub correlation_id: String,
    /// `clock`: `synced`, `holdover`, `untrusted`.
    pub clock: String,
    /// `testdata`: `true` only for our own probes and drills; left out otherwise.
    pub test_data: bool,
}

impl Envelope {
    /// The envelope of a stored transaction.
    #[must_use]
    pub fn new(
        lane: &Lane,
        epoch: Epoch,
        sequence: Sequence,
        chain: ChainValue,
        round: u64,
        transaction: &Transaction,
    ) -> Self {
        Self {
            id: transaction.id.0,
            source: transaction.source.clone(),
            event_type: transaction.event_type.clone(),
            time: rfc3339(transaction.time),
            content_type: transaction.content_type.clone(),
            lane: lane.clone(),
            epoch,
            sequence,
            round,
            chain,
            kind: transaction.kind.clone(),
            correlation_id: transaction.correlation_id.clone(),
            clock: transaction.clock.as_str().to_owned(),
            test_data: transaction.test_data,
        }
    }

    /// The user properties, in a fixed order.
    #[must_use]
    pub fn into_properties(self) -> Vec<(String, String)> {
        let mut properties = Vec::with_capacity(14);
        let mut put = |name: &str, value: String| properties.push((name.to_owned(), value));
        put("specversion", "1.0".to_owned());
        put("id", self.id.to_string());
        put("source", self.source);
        put("type", self.event_type);
        put("time", self.time);
        put("lane", self.lane.as_str().to_owned());
        put("epoch", self.epoch.to_string());
        put("sequence", self.sequence.to_string());
        put("round", self.round.to_string());
        put("chain", self.chain.to_string());
        put("kind", self.kind);
        put("clock", self.clock);
        if !self.correlation_id.is_empty() {
            put("correlationid", self.correlation_id);
        }
        if self.test_data {
            put("testdata", "true".to_owned());
        }
        properties
    }

    /// Reads the user properties and the Content Type of a publish.
    ///
    /// # Errors
    /// [`WireError`] names the property; unknown properties are ignored, as CloudEvents asks.
    pub fn from_properties(
        content_type: Option<String>,
        properties: Vec<(String, String)>,
    ) -> Result<Self, WireError> {
        let seen = Seen::of(properties);
        if need(seen.specversion, "specversion")? != "1.0" {
            return Err(WireError::Malformed("specversion"));
        }
        let sequence: Sequence = parse(seen.sequence, "sequence")?;
        if sequence == 0 {
            return Err(WireError::Malformed("sequence"));
        }
        Ok(Self {
            id: parse(seen.id, "id")?,
            source: need(seen.source, "source")?,
            event_type: need(seen.event_type, "type")?,
            time: need(seen.time, "time")?,
            content_type: need(content_type, "content type")?,
            lane: parse(seen.lane, "lane")?,
            epoch: Epoch(parse(seen.epoch, "epoch")?),
            sequence,
            round: parse(seen.round, "round")?,
            chain: parse(seen.chain, "chain")?,
            kind: need(seen.kind, "kind")?,
            clock: need(seen.clock, "clock")?,
            correlation_id: seen.correlation_id.unwrap_or_default(),
            test_data: seen.test_data.is_some_and(|v| v == "true"),
        })
    }

    /// What the chain is computed over.
    #[must_use]
    pub fn link<'a>(&'a self, body: &'a [u8]) -> Link<'a> {
        Link {
            epoch: self.epoch,
            lane: self.lane.as_str(),
            sequence: self.sequence,
            id: self.id,
            event_type: &self.event_type,
            content_type: &self.content_type,
            time: &self.time,
            body,
        }
    }
}

/// The user properties of an envelope; others are ignored.
#[derive(Default)]
struct Seen {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    event_type: Option<String>,
    time: Option<String>,
    lane: Option<String>,
    epoch: Option<String>,
    sequence: Option<String>,
    round: Option<String>,
    chain: Option<String>,
    kind: Option<String>,
    clock: Option<String>,
    correlation_id: Option<String>,
    test_data: Option<String>,
}

impl Seen {
    /// If a name comes twice, the last value counts.
    fn of(properties: Vec<(String, String)>) -> Self {
        let mut seen = Self::default();
        for (name, value) in properties {
            let slot = match name.as_str() {
                "specversion" => &mut seen.specversion,
                "id" => &mut seen.id,
                "source" => &mut seen.source,
                "type" => &mut seen.event_type,
                "time" => &mut seen.time,
                "lane" => &mut seen.lane,
                "epoch" => &mut seen.epoch,
                "sequence" => &mut seen.sequence,
                "round" => &mut seen.round,
                "chain" => &mut seen.chain,
                "kind" => &mut seen.kind,
                "clock" => &mut seen.clock,
                "correlationid" => &mut seen.correlation_id,
                "testdata" => &mut seen.test_data,
                _ => continue,
            };
            *slot = Some(value);
        }
        seen
    }
}

fn need(value: Option<String>, name: &'static str) -> Result<String, WireError> {
    value.ok_or(WireError::Missing(name))
}

fn parse<T: std::str::FromStr>(value: Option<String>, name: &'static str) -> Result<T, WireError> {
    need(value, name)?.parse().map_err(|_| WireError::Malformed(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            id: Uuid::from_u128(1),
            source: "urn:pgw:B86022:gw1:hl7v2:LAB".into(),
            event_type: "hl7v2.oru_r01".into(),
            time: "2026-11-22T22:12:10.123Z".into(),
            content_type: "application/hl7-v2+er7".into(),
            lane: Lane::new("clinical").unwrap(),
            epoch: Epoch(Uuid::from_u128(2)),
            sequence: 7,
            round: 3,
            chain: ChainValue([9; 32]),
            kind: "hl7v2".into(),
            correlation_id: "c".into(),
            clock: "synced".into(),
            test_data: true,
        }
    }

    #[test]
    fn properties_go_there_and_back() {
        let envelope = envelope();
        let content_type = Some(envelope.content_type.clone());
        assert_eq!(Envelope::from_properties(content_type, envelope.clone().into_properties()), Ok(envelope));
    }

    #[test]
    fn each_missing_property_is_named() {
        let all = envelope().into_properties();
        for (name, _) in &all {
            let less: Vec<_> = all.iter().filter(|(n, _)| n != name).cloned().collect();
            let read = Envelope::from_properties(Some("x".into()), less);
            if ["correlationid", "testdata"].contains(&name.as_str()) {
                assert!(read.is_ok(), "{name}");
            } else {
                assert!(matches!(read, Err(WireError::Missing(missing)) if missing == name), "{name}");
            }
        }
    }
}
