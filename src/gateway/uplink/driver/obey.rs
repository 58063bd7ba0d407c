//! Carries out a person's orders, between the connection's own events.

use pgw_bundle::receipts::SignedReceipt;
use pgw_core::delivery::Input;
use pgw_core::transaction::{Lane, Position};
use pgw_core::wire::signature;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};

use super::Driver;
use crate::uplink::orders::{Order, OrderError};
use crate::uplink::verifier::Inbound;

impl Driver {
    /// Carries out a person's order, as far as it needs no link.
    pub(in crate::uplink) fn obey(&mut self, order: Order) {
        // The person may have gone: the order is carried out all the same.
        match order {
            Order::Receipt(signed, answer) => {
                let _ = answer.send(self.imported(signed));
            }
            Order::RetryHead(lane, answer) => {
                let now = self.now();
                let known = self.lanes.iter_mut().find(|work| work.lane == lane);
                let done = known
                    .map(|work| work.retry_head(now))
                    .ok_or_else(|| OrderError::UnknownLane(lane.clone()));
                let _ = answer.send(done);
            }
            Order::LayOut(lane, end, ours, answer) => {
                let now = self.now();
                match self.lanes.iter_mut().find(|work| work.lane == lane) {
                    Some(work) => work.lay_out(end, ours, answer, now),
                    None => drop(answer.send(Err(OrderError::UnknownLane(lane)))),
                }
            }
            Order::AcceptStore(hub, store, answer) => self.accept_store(hub, store, answer),
            Order::Resend(lane, range, progress) => self.order_resend(&lane, range, progress),
        }
    }

    /// Without a link: the machines' actions that concern the outbox and people.
    pub(in crate::uplink) fn act_alone(&mut self) {
        for index in 0..self.lanes.len() {
            self.act(index, None);
        }
    }

    /// Verified as if it had come from the broker.
    fn imported(&mut self, signed: SignedReceipt) -> Result<(Lane, Position), OrderError> {
        let properties = PublishProperties {
            user_properties: vec![(signature::PROPERTY.to_owned(), signed.signature)],
            ..PublishProperties::default()
        };
        let publish = Publish::new(signed.topic, QoS::AtLeastOnce, signed.payload, Some(properties));
        match self.verifier.verify(&publish)? {
            Inbound::Receipt { lane, receipt, .. } => {
                let now = self.now();
                let work = &mut self.lanes[lane];
                work.look_at_tail(now);
                let position = work.machine.claimed_by(&receipt);
                work.handle(Input::Imported(receipt), now);
                Ok((work.lane.clone(), position))
            }
            _ => Err(OrderError::NotAReceipt),
        }
    }
}
