//! For tests: whether what a door submits can be delivered. Its envelope goes through the gateway's packet and the hub's parser.

use pgw_core::chain::ChainValue;
use pgw_core::transaction::{Clock, Epoch, LaneName, Transaction, TransactionId};
use pgw_core::wire::attributes::Attributes;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::limits::ENVELOPE_BYTES;
use pgw_link::session::Frame;
use pgw_outbox::{Submission, TypeAffixes};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use uuid::Uuid;

/// What the hub's parser reads of a submission that a door lets in: it must be what was submitted, byte for byte.
///
/// # Panics
/// If it is not.
pub(crate) fn assert_carried(submission: Submission) -> Attributes {
    submission.check_texts().expect("a door that lets it in has checked it");
    let lane: LaneName = format!("B86022/gw1/{}", submission.lane).parse().unwrap();
    let transaction = Transaction {
        id: TransactionId(Uuid::max()),
        time: 253_402_300_799_999,
        event_type: TypeAffixes::default().whole(submission.event_type),
        kind: submission.kind,
        content_type: submission.content_type,
        sender: submission.sender,
        given_sender: None,
        key: submission.key,
        shows_key: submission.shows_key,
        correlation_id: submission.correlation_id,
        trace_parent: submission.trace_parent,
        clock: Clock::Untrusted,
        body: submission.body,
    };
    let sent =
        Envelope::new(&lane, Epoch(Uuid::max()), u64::MAX, ChainValue([9; 32]), u64::MAX, &transaction)
            .delayed_by(Some(u64::MAX));
    let (content_type, user_properties) = sent.clone().into_properties();
    let properties =
        PublishProperties { content_type: Some(content_type), user_properties, ..Default::default() };
    let mut publish = Publish {
        qos: QoS::AtLeastOnce,
        topic: format!("pgw/v1/B86022/gw1/txn/{}", lane.lane).into(),
        payload: transaction.body.to_bytes(),
        properties: Some(properties),
        ..Publish::default()
    };
    let mut frame = Frame::new(&mut publish).unwrap();
    assert!(frame.size() as u64 - transaction.body.len() as u64 <= ENVELOPE_BYTES);
    let Ok(Packet::Publish(publish)) = Packet::read(frame.bytes_mut(), None) else { panic!("no publish") };
    assert_eq!(publish.payload, transaction.body.to_bytes());
    let properties = publish.properties.unwrap();
    let read = Envelope::from_properties(properties.content_type, properties.user_properties);
    assert_eq!(read.as_ref(), Ok(&sent), "the hub reads something else");
    assert!(sent.is_of(&lane));
    sent.attributes().clone()
}
