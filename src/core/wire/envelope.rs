//! A transaction on the wire: CloudEvents 1.0, MQTT binding, binary mode (CloudEvents MQTT §3.1; design section 12.4).
//!
//! The payload is the body as it came; Content Type is the transaction's; every attribute is a user
//! property, core ones and extensions alike, in lower case.

use uuid::Uuid;

use crate::chain::{ChainValue, Digest, Through};
use crate::transaction::{Epoch, Kind, Lane, LaneName, Sequence, Transaction};
use crate::wire::attributes::{Attributes, NUMBERS, source};
use crate::wire::signature::{self, Signature, SigningKey};
use crate::wire::{WireError, sequence_text};

/// A transaction's attributes, and its number at this sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    attributes: Attributes,
    id: Uuid,
    /// `epoch`.
    pub epoch: Epoch,
    /// `sequence`, decimal, 20 digits, so that it orders as text.
    pub sequence: Sequence,
    /// `round`, decimal: raised at each rewind.
    pub round: u64,
    /// `delayed`, decimal: seconds from acceptance to this sending, by the gateway's running time; `None`: unknown. It is not
    /// covered by the chain and not stored.
    pub delayed: Option<u64>,
    /// `chain`: the value after this transaction.
    pub chain: ChainValue,
    /// `link`, with number 1 only: the end of the line where the epoch begins; `None`: an empty line.
    pub link: Option<Through>,
    /// `signature`: the gateway's, over this lane's chain at this number; `None`: missing or malformed, so that it proves
    /// nothing.
    pub signature: Option<Signature>,
}

impl Envelope {
    /// The envelope of a stored transaction.
    #[must_use]
    pub fn new(
        lane: &LaneName,
        epoch: Epoch,
        sequence: Sequence,
        chain: ChainValue,
        round: u64,
        transaction: &Transaction,
    ) -> Self {
        let attributes = Attributes::of(lane, transaction);
        let id = transaction.id.0;
        Self { attributes, id, epoch, sequence, round, delayed: None, chain, link: None, signature: None }
    }

    /// Names the end of the line where its epoch begins, if it has number 1.
    #[must_use]
    pub fn linked(mut self, link: Option<Through>) -> Self {
        self.link = link.filter(|_| self.sequence == 1);
        self
    }

    /// Says how many seconds ago it was accepted, if that is known.
    #[must_use]
    pub fn delayed_by(mut self, seconds: Option<u64>) -> Self {
        self.delayed = seconds;
        self
    }

    /// Signs this lane's chain at this number.
    #[must_use]
    pub fn signed(mut self, lane: &LaneName, key: &SigningKey) -> Self {
        self.signature = Some(key.sign_head(lane, self.epoch, self.sequence, self.chain));
        self
    }

    /// The Content Type and the user properties.
    #[must_use]
    pub fn into_properties(self) -> (String, Vec<(String, String)>) {
        let content_type = self.attributes.get("datacontenttype").to_owned();
        let mut properties = Vec::with_capacity(18);
        properties
            .extend(self.attributes.into_properties().filter(|(name, _)| name.as_str() != "datacontenttype"));
        let mut put = |name: &str, value: String| properties.push((name.to_owned(), value));
        put("epoch", self.epoch.to_string());
        put("sequence", sequence_text(self.sequence));
        put("round", self.round.to_string());
        if let Some(seconds) = self.delayed {
            put("delayed", seconds.to_string());
        }
        put("chain", self.chain.to_string());
        if let Some(link) = &self.link {
            put("link", link.to_string());
        }
        if let Some(signature) = &self.signature {
            put(signature::PROPERTY, signature.to_string());
        }
        (content_type, properties)
    }

    /// Reads the Content Type and the user properties of a publish.
    ///
    /// # Errors
    /// [`WireError`] names the property.
    pub fn from_properties(
        content_type: Option<String>,
        properties: Vec<(String, String)>,
    ) -> Result<Self, WireError> {
        let envelope = Self::of_any_length(content_type, properties)?;
        envelope.attributes.fits()?;
        Ok(envelope)
    }

    /// The same with attributes of any length: [`Attributes::fits`] says whether they are within the limits. What is beyond them
    /// is never stored, but its gateway can be told so.
    ///
    /// # Errors
    /// [`WireError`] names the property.
    pub fn of_any_length(
        content_type: Option<String>,
        properties: Vec<(String, String)>,
    ) -> Result<Self, WireError> {
        let mut numbers: [Option<String>; NUMBERS.len()] = Default::default();
        let mut attributes = Vec::with_capacity(properties.len());
        for (name, value) in properties {
            match NUMBERS.iter().position(|number| *number == name) {
                None => attributes.push((name, value)),
                Some(at) if numbers[at].is_some() => return Err(WireError::Twice(name)),
                Some(at) => numbers[at] = Some(value),
            }
        }
        let content_type = content_type.filter(|text| !text.is_empty());
        let content_type = content_type.ok_or(WireError::Missing("content type"))?;
        let attributes = Attributes::of_any_length(content_type, attributes)?;
        let [chain, delayed, epoch, link, round, sequence, signature] = numbers;
        let sequence: Sequence = parse(sequence, "sequence")?;
        if sequence == 0 {
            return Err(WireError::Malformed("sequence"));
        }
        Ok(Self {
            id: checked(&attributes)?,
            attributes,
            epoch: Epoch(parse(epoch, "epoch")?),
            sequence,
            round: parse(round, "round")?,
            delayed: delayed.and_then(|text| text.parse().ok()),
            chain: parse(chain, "chain")?,
            link: link.map(|text| parse(Some(text), "link")).transpose()?.filter(|_| sequence == 1),
            signature: signature.and_then(|text| text.parse().ok()),
        })
    }

    /// Its id, which is the same in every epoch.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Everything that is stored of it besides its number.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Whether it says that it is of this lane, in all of its attributes.
    #[must_use]
    pub fn is_of(&self, lane: &LaneName) -> bool {
        self.attributes.get("partitionkey") == lane.lane.as_str()
            && self.attributes.get("source") == source(lane)
    }

    /// Whether it is of this kind.
    #[must_use]
    pub fn is(&self, kind: Kind) -> bool {
        self.attributes.get("kind") == kind.as_str()
    }

    /// What the chain is computed over, apart from the number.
    #[must_use]
    pub fn digest(&self, body: &[u8]) -> Digest {
        self.attributes.digest(body)
    }
}

/// The id, where everything that must be there is there.
fn checked(attributes: &Attributes) -> Result<Uuid, WireError> {
    if attributes.get("specversion") != "1.0" {
        return Err(WireError::Malformed("specversion"));
    }
    for name in ["source", "type", "time", "partitionkey", "kind", "clock"] {
        if attributes.get(name).is_empty() {
            return Err(WireError::Missing(name));
        }
    }
    Lane::new(attributes.get("partitionkey")).map_err(|_| WireError::Malformed("partitionkey"))?;
    match attributes.get("id") {
        "" => Err(WireError::Missing("id")),
        // The digest covers the text, and a hub writes the id in its usual form.
        text => match text.parse::<Uuid>() {
            Ok(id) if id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text => Ok(id),
            _ => Err(WireError::Malformed("id")),
        },
    }
}

fn parse<T: std::str::FromStr>(value: Option<String>, name: &'static str) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(name))?.parse().map_err(|_| WireError::Malformed(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::{Body, Clock, TransactionId};

    fn lane() -> LaneName {
        "B86022/gw1/clinical".parse().unwrap()
    }

    fn envelope() -> Envelope {
        let transaction = Transaction {
            id: TransactionId(Uuid::from_u128(1)),
            time: 1_795_385_530_123,
            event_type: "hl7v2.oru_r01".into(),
            kind: Kind::Transaction,
            content_type: "application/hl7-v2+er7".into(),
            sender: "LAB".into(),
            given_sender: None,
            key: "7".into(),
            shows_key: true,
            correlation_id: "c".into(),
            trace_parent: String::new(),
            clock: Clock::Synced,
            body: Body::new(Vec::new()),
        };
        Envelope::new(&lane(), Epoch(Uuid::from_u128(2)), 7, ChainValue([9; 32]), 3, &transaction)
    }

    #[test]
    fn properties_go_there_and_back() {
        let (content_type, properties) = envelope().into_properties();
        assert_eq!(Envelope::from_properties(Some(content_type), properties), Ok(envelope()));
        assert!(envelope().is_of(&lane()) && envelope().is(Kind::Transaction));
        assert!(!envelope().is_of(&"B86022/gw1/letters".parse().unwrap()));
        assert!(!envelope().is_of(&"B86022/gw2/clinical".parse().unwrap()));
    }

    #[test]
    fn the_delay_is_of_one_sending_and_no_part_of_the_content() {
        let plain = envelope();
        let late = envelope().delayed_by(Some(86_400));
        assert_eq!(late.digest(b"b"), plain.digest(b"b"));
        let (content_type, mut properties) = late.clone().into_properties();
        assert!(properties.contains(&("delayed".into(), "86400".into())));
        let read = Envelope::from_properties(Some(content_type.clone()), properties.clone()).unwrap();
        assert_eq!((read.digest(b"b"), read.attributes().get("delayed")), (plain.digest(b"b"), ""));
        assert_eq!(read, late);
        // Nothing depends on it.
        properties
            .iter_mut()
            .filter(|(name, _)| name == "delayed")
            .for_each(|(_, value)| *value = "x".into());
        assert_eq!(Envelope::from_properties(Some(content_type), properties), Ok(plain));
    }

    #[test]
    fn sequences_order_as_text_and_are_read_leniently() {
        let texts = [1, 9, 10, 1_000_000, u64::MAX].map(sequence_text);
        assert!(texts.is_sorted() && texts.iter().all(|text| text.len() == 20));
        let (content_type, mut properties) = envelope().into_properties();
        for (name, value) in &mut properties {
            if name == "sequence" {
                *value = "7".into();
            }
        }
        assert_eq!(Envelope::from_properties(Some(content_type), properties), Ok(envelope()));
    }

    #[test]
    fn an_id_has_one_form_and_a_content_type_is_there() {
        let (content_type, properties) = envelope().into_properties();
        for other in ["00000000-0000-0000-0000-00000000000A", "0000000000000000000000000000000a", "{}", "1"] {
            let mut properties = properties.clone();
            properties.iter_mut().filter(|(name, _)| name == "id").for_each(|(_, id)| *id = other.into());
            let read = Envelope::from_properties(Some(content_type.clone()), properties);
            assert_eq!(read, Err(WireError::Malformed("id")), "{other}");
        }
        for none in [None, Some(String::new())] {
            let read = Envelope::from_properties(none, properties.clone());
            assert_eq!(read, Err(WireError::Missing("content type")));
        }
    }

    #[test]
    fn each_missing_property_is_named_and_each_that_comes_twice() {
        let (_, all) = envelope().into_properties();
        let optional = ["correlationid", "sender", "senderkey"];
        for (name, _) in &all {
            let less: Vec<_> = all.iter().filter(|(n, _)| n != name).cloned().collect();
            let read = Envelope::from_properties(Some("x".into()), less);
            match name.as_str() {
                "specversion" => assert_eq!(read, Err(WireError::Malformed("specversion"))),
                name if optional.contains(&name) => assert!(read.is_ok(), "{name}"),
                name => {
                    assert!(matches!(read, Err(WireError::Missing(missing)) if missing == name), "{name}")
                }
            }
            let twice: Vec<_> = all.iter().chain(all.iter().filter(|(n, _)| n == name)).cloned().collect();
            let read = Envelope::from_properties(Some("x".into()), twice);
            assert_eq!(read, Err(WireError::Twice(name.clone())));
        }
    }
}
