//! What the commands may do to the list of gateways. Each change keeps the list's invariants, or is refused whole.

use pgw_core::transaction::{Gateway, Practice, UnixMillis};
use pgw_core::wire::signature::{KeyId, PublicKey};

use super::{Gateways, KeyState, ListedGateway, ListedKey};

/// A change that the list does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No such gateway.
    #[error("{0}.{1} is not in the list: `practice-hub gateway add {0}.{1} --public-key KEY` adds it")]
    NotListed(Practice, Gateway),
    /// The gateway is there already.
    #[error(
        "{0}.{1} is in the list already: `practice-hub gateway key` gives it another key, `practice-hub gateway set` \
         changes the rest"
    )]
    Listed(Practice, Gateway),
    /// Two boxes with one key would be one box to the hub.
    #[error("key {0} belongs to {1}.{2}: every gateway needs a key of its own")]
    KeyOfAnother(KeyId, Practice, Gateway),
    /// A stolen key stays stolen.
    #[error("key {0} of {1}.{2} is revoked and cannot be used again: create a new key on the box")]
    KeyRevoked(KeyId, Practice, Gateway),
    /// No such key.
    #[error("{1}.{2} has no key {0}: `practice-hub gateway list` shows its keys")]
    NoKey(KeyId, Practice, Gateway),
}

/// What became of a key that was to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotated {
    /// It signed already: nothing has changed.
    Already,
    /// It signs from now on; the former signing key, if there was one, only verifies.
    From(Option<KeyId>),
}

/// What became of a key that was to be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// It was revoked already: nothing has changed.
    Already,
    /// It only verified; the gateway still has its signing key, if it had one.
    Verifying,
    /// It was the signing key: the gateway has none now.
    Signing,
}

impl Gateways {
    /// Adds a gateway with its first key.
    ///
    /// # Errors
    /// [`ChangeError::Listed`], [`ChangeError::KeyOfAnother`].
    pub fn add(
        &mut self,
        name: &(Practice, Gateway),
        gateway: ListedGateway,
        key: PublicKey,
        now: UnixMillis,
    ) -> Result<(), ChangeError> {
        if self.gateways.contains_key(name) {
            return Err(ChangeError::Listed(name.0.clone(), name.1.clone()));
        }
        self.not_of_another(name, &key)?;
        let keys = vec![ListedKey { key, state: KeyState::Signing, added: Some(now) }];
        self.gateways.insert(name.clone(), ListedGateway { keys, ..gateway });
        Ok(())
    }

    /// The gateway, to change what people read of it, its lanes and its quota.
    ///
    /// # Errors
    /// [`ChangeError::NotListed`].
    pub fn listed_mut(&mut self, name: &(Practice, Gateway)) -> Result<&mut ListedGateway, ChangeError> {
        self.gateways.get_mut(name).ok_or_else(|| ChangeError::NotListed(name.0.clone(), name.1.clone()))
    }

    /// The key signs from now on; what the former signing key has signed still verifies.
    ///
    /// # Errors
    /// [`ChangeError::NotListed`], [`ChangeError::KeyOfAnother`], [`ChangeError::KeyRevoked`].
    pub fn rotate(
        &mut self,
        name: &(Practice, Gateway),
        key: PublicKey,
        now: UnixMillis,
    ) -> Result<Rotated, ChangeError> {
        self.not_of_another(name, &key)?;
        let gateway = self.listed_mut(name)?;
        match gateway.key(key.id()).map(|listed| listed.state) {
            Some(KeyState::Signing) => return Ok(Rotated::Already),
            Some(KeyState::Revoked) => {
                return Err(ChangeError::KeyRevoked(key.id(), name.0.clone(), name.1.clone()));
            }
            Some(KeyState::Verifying) | None => {}
        }
        let former = gateway.signing().map(PublicKey::id);
        for listed in gateway.keys.iter_mut().filter(|listed| listed.state == KeyState::Signing) {
            listed.state = KeyState::Verifying;
        }
        match gateway.keys.iter_mut().find(|listed| listed.key == key) {
            Some(listed) => listed.state = KeyState::Signing,
            None => gateway.keys.push(ListedKey { key, state: KeyState::Signing, added: Some(now) }),
        }
        Ok(Rotated::From(former))
    }

    /// Revokes a key, for good.
    ///
    /// # Errors
    /// [`ChangeError::NotListed`], [`ChangeError::NoKey`].
    pub fn revoke(&mut self, name: &(Practice, Gateway), id: KeyId) -> Result<Revoked, ChangeError> {
        let keys = &mut self.listed_mut(name)?.keys;
        let Some(listed) = keys.iter_mut().find(|listed| listed.key.id() == id) else {
            return Err(ChangeError::NoKey(id, name.0.clone(), name.1.clone()));
        };
        match std::mem::replace(&mut listed.state, KeyState::Revoked) {
            KeyState::Revoked => Ok(Revoked::Already),
            KeyState::Verifying => Ok(Revoked::Verifying),
            KeyState::Signing => Ok(Revoked::Signing),
        }
    }

    /// Removes a gateway with its keys.
    ///
    /// # Errors
    /// [`ChangeError::NotListed`].
    pub fn remove(&mut self, name: &(Practice, Gateway)) -> Result<ListedGateway, ChangeError> {
        self.gateways.remove(name).ok_or_else(|| ChangeError::NotListed(name.0.clone(), name.1.clone()))
    }

    fn not_of_another(&self, name: &(Practice, Gateway), key: &PublicKey) -> Result<(), ChangeError> {
        match self.owner(key).filter(|owner| *owner != name) {
            None => Ok(()),
            Some((practice, gateway)) => {
                Err(ChangeError::KeyOfAnother(key.id(), practice.clone(), gateway.clone()))
            }
        }
    }
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
