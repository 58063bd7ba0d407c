//! Matches PUBACKs to publishes: rumqttc reports packet identifiers only, so the order identifies the publish (design
//! section 6).

use std::collections::VecDeque;

use pgw_core::transaction::Position;
use pgw_core::wire::signature::Word;

/// What was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ticket {
    /// A transaction.
    Transaction {
        /// Index of its lane.
        lane: usize,
        /// Its position.
        position: Position,
    },
    /// A confirmed transaction that was requested again: its position.
    Resend(Position),
    /// Status, health, info, an event, a position question ...
    Control(Word),
}

impl Ticket {
    fn is_transaction(self) -> bool {
        !matches!(self, Ticket::Control(_))
    }
}

/// The publishes of one connection, oldest first. Dropped with its connection.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// Handed to rumqttc, not written yet.
    handed: VecDeque<Ticket>,
    written: VecDeque<Written>,
    transactions: usize,
}

/// Written with a packet identifier; the outcome is set only if it arrived out of order.
#[derive(Debug)]
struct Written {
    packet: u16,
    ticket: Ticket,
    outcome: Option<Result<(), u8>>,
}

/// The broker acknowledged what was never sent, or rumqttc wrote what was never handed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfStep;

impl InFlight {
    /// Handed over, in this order.
    pub(super) fn hand(&mut self, ticket: Ticket) {
        self.transactions += usize::from(ticket.is_transaction());
        self.handed.push_back(ticket);
    }

    /// rumqttc has written the oldest publish that was handed over, with this packet identifier.
    pub(super) fn written(&mut self, packet: u16) -> Result<(), OutOfStep> {
        let ticket = self.handed.pop_front().ok_or(OutOfStep)?;
        self.written.push_back(Written { packet, ticket, outcome: None });
        Ok(())
    }

    /// A PUBACK arrived. Returns the contiguous prefix of publishes that now have an outcome, in the order of sending.
    pub(super) fn acknowledged(
        &mut self,
        packet: u16,
        outcome: Result<(), u8>,
        mut settled: impl FnMut(Ticket, Result<(), u8>),
    ) -> Result<(), OutOfStep> {
        // Almost always in order, so the first comparison finds it.
        let entry = self
            .written
            .iter_mut()
            .find(|written| written.packet == packet && written.outcome.is_none())
            .ok_or(OutOfStep)?;
        entry.outcome = Some(outcome);
        while let Some(&Written { ticket, outcome: Some(outcome), .. }) = self.written.front() {
            self.written.pop_front();
            self.transactions -= usize::from(ticket.is_transaction());
            settled(ticket, outcome);
        }
        Ok(())
    }

    /// Publishes without an outcome.
    pub(super) fn outstanding(&self) -> usize {
        self.handed.len() + self.written.len()
    }

    /// Those of them that are transactions.
    pub(super) fn transactions(&self) -> usize {
        self.transactions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(position: Position) -> Ticket {
        Ticket::Transaction { lane: 0, position }
    }

    fn acknowledge(
        in_flight: &mut InFlight,
        packet: u16,
        outcome: Result<(), u8>,
    ) -> Vec<(Ticket, Result<(), u8>)> {
        let mut settled = Vec::new();
        in_flight.acknowledged(packet, outcome, |ticket, outcome| settled.push((ticket, outcome))).unwrap();
        settled
    }

    #[test]
    fn only_the_contiguous_prefix_is_settled_in_the_order_of_sending() {
        let mut in_flight = InFlight::default();
        in_flight.hand(Ticket::Control(Word::Status));
        for position in 1..=3 {
            in_flight.hand(transaction(position));
        }
        for packet in [7, 8, 1, 2] {
            in_flight.written(packet).unwrap();
        }
        assert_eq!(acknowledge(&mut in_flight, 1, Ok(())), []);
        assert_eq!(acknowledge(&mut in_flight, 8, Err(0x87)), []);
        assert_eq!((in_flight.outstanding(), in_flight.transactions()), (4, 3));
        assert_eq!(
            acknowledge(&mut in_flight, 7, Ok(())),
            [(Ticket::Control(Word::Status), Ok(())), (transaction(1), Err(0x87)), (transaction(2), Ok(()))]
        );
        assert_eq!((in_flight.outstanding(), in_flight.transactions()), (1, 1));
    }

    #[test]
    fn a_packet_identifier_that_comes_again_names_the_younger_one() {
        let mut in_flight = InFlight::default();
        for position in 1..=2 {
            in_flight.hand(transaction(position));
        }
        in_flight.written(1).unwrap();
        assert_eq!(acknowledge(&mut in_flight, 1, Ok(())), [(transaction(1), Ok(()))]);
        in_flight.written(1).unwrap();
        assert_eq!(acknowledge(&mut in_flight, 1, Ok(())), [(transaction(2), Ok(()))]);
    }

    #[test]
    fn what_was_never_sent_cannot_be_acknowledged() {
        let mut in_flight = InFlight::default();
        assert_eq!(in_flight.written(1), Err(OutOfStep));
        in_flight.hand(transaction(1));
        assert_eq!(in_flight.acknowledged(1, Ok(()), |_, _| ()), Err(OutOfStep));
        in_flight.written(1).unwrap();
        assert_eq!(in_flight.acknowledged(2, Ok(()), |_, _| ()), Err(OutOfStep));
    }
}
