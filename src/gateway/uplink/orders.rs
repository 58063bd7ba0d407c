//! What a person orders: it reaches the driver beside the connection's own events, link or no link.

use pgw_bundle::receipts::Line;
use pgw_core::delivery::Input;
use pgw_core::transaction::{Lane, Position};
use pgw_core::wire::signature;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Publish, PublishProperties};
use tokio::sync::{mpsc, oneshot, watch};

use super::driver::Driver;
use super::inbound::Heard;
use super::resend::Again;

/// Orders that wait for the driver; more are refused.
const MOST: usize = 64;

/// One order.
#[derive(Debug)]
pub(super) enum Order {
    /// A receipt that came by file: its lane and the position that it speaks of, or why it is not believed.
    Receipt(Line, oneshot::Sender<Result<(Lane, Position), String>>),
    /// What stopped the lane may have gone: a void was made, or a person wants the held head tried again.
    Again(Lane, oneshot::Sender<Result<(), String>>),
    /// Confirmed transactions once more: the first and the last position.
    Resend(Lane, (Position, Position), watch::Sender<Again>),
}

/// The handle for those who order.
#[derive(Debug, Clone)]
pub struct Orders(mpsc::Sender<Order>);

/// The driver's end.
#[derive(Debug)]
pub struct Ordered(pub(super) mpsc::Receiver<Order>);

/// Both ends.
#[must_use]
pub fn orders() -> (Orders, Ordered) {
    let (sender, receiver) = mpsc::channel(MOST);
    (Orders(sender), Ordered(receiver))
}

impl Orders {
    /// Hands over a receipt that came by file.
    ///
    /// # Errors
    /// One sentence: it is not of a configured hub, or not for this gateway, or the gateway stops.
    pub async fn receipt(&self, line: Line) -> Result<(Lane, Position), String> {
        self.ask(|answer| Order::Receipt(line, answer)).await
    }

    /// Has the lane's head tried again.
    ///
    /// # Errors
    /// One sentence: there is no such lane, or the gateway stops.
    pub async fn again(&self, lane: Lane) -> Result<(), String> {
        self.ask(|answer| Order::Again(lane, answer)).await
    }

    /// Has confirmed transactions sent again; what becomes of it can be watched.
    ///
    /// # Errors
    /// One sentence: the gateway stops.
    pub async fn resend(
        &self,
        lane: Lane,
        range: (Position, Position),
    ) -> Result<watch::Receiver<Again>, String> {
        let (told, tells) = watch::channel(Again::default());
        let order = Order::Resend(lane, range, told);
        self.0.send(order).await.map_err(|_| "the uplink has ended".to_owned())?;
        Ok(tells)
    }

    async fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Order,
    ) -> Result<T, String> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| "the uplink has ended".to_owned();
        self.0.send(order(answer)).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))?
    }
}

impl Driver {
    /// Does what a person has ordered, as far as it needs no link.
    pub(super) fn obey(&mut self, order: Order) {
        // Whoever asked may have gone: the order stands.
        match order {
            Order::Receipt(line, answer) => {
                let heard = self.carried(line);
                let _ = answer.send(heard);
            }
            Order::Again(lane, answer) => {
                let now = self.now();
                let numbering = self.outbox.numbering(&lane);
                let known = self.lanes.iter_mut().find(|work| work.lane == lane);
                let done = known
                    .map(|work| work.again(numbering, now))
                    .ok_or_else(|| format!("there is no lane {lane}"));
                let _ = answer.send(done);
            }
            Order::Resend(lane, range, told) => self.again(&lane, range, told),
        }
    }

    /// Without a link: what the machines want of the outbox and of people.
    pub(super) fn act_alone(&mut self) {
        for index in 0..self.lanes.len() {
            self.act(index, None);
        }
    }

    /// Judged as if it had come from the broker.
    fn carried(&mut self, line: Line) -> Result<(Lane, Position), String> {
        let properties = PublishProperties {
            user_properties: vec![(signature::PROPERTY.to_owned(), line.signature)],
            ..PublishProperties::default()
        };
        let publish = Publish::new(line.topic, QoS::AtLeastOnce, line.payload, Some(properties));
        match self.ears.hear(&publish) {
            Ok(Heard::Receipt { lane, receipt, .. }) => {
                let now = self.now();
                let work = &mut self.lanes[lane];
                work.look_at_tail(now);
                let position = work.machine.spoken_of(&receipt);
                work.handle(Input::Carried(receipt), now);
                Ok((work.lane.clone(), position))
            }
            Ok(_) => Err("it is no receipt".to_owned()),
            Err(unheard) => Err(unheard.to_string()),
        }
    }
}
