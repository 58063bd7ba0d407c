//! Which of a hub's commands are obeyed: those for the present connection, in order, once, and in time (design section 12.3).

use std::collections::VecDeque;

use pgw_core::delivery::Millis;
use pgw_core::wire::command::CommandAddress;

/// Commands that are remembered, so that a repeated one is obeyed once.
const REMEMBERED: usize = 64;

/// The gate of one connection.
#[derive(Debug, Default)]
pub(super) struct CommandGate {
    nonce: String,
    /// When the nonce was published, of a monotonic clock.
    published: Millis,
    /// The highest number so far.
    number: u64,
    /// Ids of commands that have a result, or will have one.
    answered: VecDeque<String>,
}

/// Why a command is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotObeyed {
    /// It names another nonce.
    #[error("the command is for another connection of this gateway")]
    OtherConnection,
    /// It came after a later one.
    #[error("the command's number {number} is not above {last}, which came before it")]
    Earlier {
        /// Its number.
        number: u64,
        /// The highest before it.
        last: u64,
    },
    /// Too late.
    #[error("the command has expired: it is valid for {valid} s after this connection began, {age} s ago")]
    Expired {
        /// For how long it was valid, seconds.
        valid: u64,
        /// How long ago the nonce was published, seconds.
        age: u64,
    },
}

impl CommandGate {
    /// A new connection: commands for the one before are not obeyed any more.
    pub(super) fn open(&mut self, nonce: String, now: Millis) {
        let answered = std::mem::take(&mut self.answered);
        *self = Self { nonce, published: now, number: 0, answered };
    }

    /// The nonce, to be published.
    pub(super) fn nonce(&self) -> &str {
        &self.nonce
    }

    /// How long ago the nonce was published, seconds.
    pub(super) fn age(&self, now: Millis) -> u64 {
        now.saturating_sub(self.published) / 1_000
    }

    /// `None`: it has its result already.
    pub(super) fn judge(
        &mut self,
        id: &str,
        address: &CommandAddress,
        now: Millis,
    ) -> Option<Result<(), NotObeyed>> {
        if self.answered.iter().any(|answered| answered == id) {
            return None;
        }
        if self.answered.len() == REMEMBERED {
            self.answered.pop_front();
        }
        self.answered.push_back(id.to_owned());
        let CommandAddress { nonce, number, expires_seconds } = address;
        if self.nonce.is_empty() || *nonce != self.nonce {
            return Some(Err(NotObeyed::OtherConnection));
        }
        if *number <= self.number {
            return Some(Err(NotObeyed::Earlier { number: *number, last: self.number }));
        }
        let age = self.age(now);
        if age >= *expires_seconds {
            return Some(Err(NotObeyed::Expired { valid: *expires_seconds, age }));
        }
        self.number = *number;
        Some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_counts_once_in_order_in_time_and_on_its_connection() {
        let mut gate = CommandGate::default();
        let to = |nonce: &str, number, expires_seconds| CommandAddress {
            nonce: nonce.into(),
            number,
            expires_seconds,
        };
        assert_eq!(gate.judge("0", &to("", 1, 9), 0), Some(Err(NotObeyed::OtherConnection)), "none is open");
        gate.open("a".into(), 5_000);
        assert_eq!(gate.judge("1", &to("a", 7, 60), 64_999), Some(Ok(())));
        assert_eq!(gate.judge("1", &to("a", 7, 60), 64_999), None, "repeated");
        assert_eq!(
            gate.judge("2", &to("a", 7, 90), 64_999),
            Some(Err(NotObeyed::Earlier { number: 7, last: 7 }))
        );
        assert_eq!(
            gate.judge("3", &to("a", 8, 60), 65_000),
            Some(Err(NotObeyed::Expired { valid: 60, age: 60 }))
        );
        assert_eq!(
            gate.judge("4", &to("a", 8, 61), 65_000),
            Some(Ok(())),
            "what has expired raises no number"
        );
        gate.open("b".into(), 70_000);
        assert_eq!(gate.judge("5", &to("a", 9, 99), 70_000), Some(Err(NotObeyed::OtherConnection)));
        assert_eq!(gate.judge("1", &to("b", 1, 99), 70_000), None, "repeated on another connection");
        assert_eq!(gate.judge("6", &to("b", 1, 99), 70_000), Some(Ok(())), "numbers begin again");
    }
}
