//! What a person has ordered, carried out between the connection's own events.

use pgw_bundle::receipts::Line;
use pgw_core::delivery::Input;
use pgw_core::transaction::{Lane, Position};
use pgw_core::wire::signature;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};

use super::Driver;
use crate::uplink::orders::{Order, OrderError};
use crate::uplink::verifier::Inbound;

impl Driver {
    /// Does what a person has ordered, as far as it needs no link.
    pub(in crate::uplink) fn obey(&mut self, order: Order) {
        // Whoever asked may have gone: the order stands.
        match order {
            Order::Receipt(line, answer) => {
                let _ = answer.send(self.imported(line));
            }
            Order::RetryHead(lane, answer) => {
                let now = self.now();
                let numbering = self.outbox.numbering(&lane);
                let known = self.lanes.iter_mut().find(|work| work.lane == lane);
                let done = known
                    .map(|work| work.retry_head(numbering, now))
                    .ok_or_else(|| OrderError::UnknownLane(lane.clone()));
                let _ = answer.send(done);
            }
            Order::Resend(lane, range, told) => self.order_resend(&lane, range, told),
        }
    }

    /// Without a link: what the machines want of the outbox and of people.
    pub(in crate::uplink) fn act_alone(&mut self) {
        for index in 0..self.lanes.len() {
            self.act(index, None);
        }
    }

    /// Judged as if it had come from the broker.
    fn imported(&mut self, line: Line) -> Result<(Lane, Position), OrderError> {
        let properties = PublishProperties {
            user_properties: vec![(signature::PROPERTY.to_owned(), line.signature)],
            ..PublishProperties::default()
        };
        let publish = Publish::new(line.topic, QoS::AtLeastOnce, line.payload, Some(properties));
        match self.verifier.verify(&publish)? {
            Inbound::Receipt { lane, receipt, .. } => {
                let now = self.now();
                let work = &mut self.lanes[lane];
                work.look_at_tail(now);
                let position = work.machine.spoken_of(&receipt);
                work.handle(Input::Carried(receipt), now);
                Ok((work.lane.clone(), position))
            }
            _ => Err(OrderError::NotAReceipt),
        }
    }
}
