//! The hub's list of gateways: which there are, and the keys with which each signs (design section 12.3). It is no part of
//! the store, and is not restored with it.
//!
//! - [`file`](mod@file): the list as a file that commands and people edit
//! - [`change`]: what the commands may do to it
//! - [`current`]: the list that the running hub uses, read again on request
//!
//! Invariants of every list, however it was made: each gateway has at most one signing key, and no two gateways have
//! the same key.

pub mod change;
pub mod current;
pub mod file;

use std::collections::BTreeMap;

use pgw_core::transaction::{Gateway, Lane, Practice, UnixMillis};
use pgw_core::wire::signature::{KeyId, PublicKey};

/// Most characters of a display name or district.
const TEXT_CHARACTERS: usize = 100;

/// The list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gateways {
    /// Raised by one at every change.
    pub serial: u64,
    /// Each gateway once.
    pub gateways: BTreeMap<(Practice, Gateway), ListedGateway>,
}

/// A gateway of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListedGateway {
    /// The surgery's name, for people.
    pub display_name: String,
    /// For people: gateways are counted by district.
    pub district: String,
    /// The lanes that it may have; empty: any.
    pub lanes: Vec<Lane>,
    /// How much it may bring in a day, bytes; `None`: the hub's default.
    pub quota_bytes_per_day: Option<u64>,
    /// How many transactions of each lane it may have under way; 0: it waits; `None`: as many as it is configured to.
    pub window: Option<u32>,
    /// Its keys, in the order in which they were added.
    pub keys: Vec<ListedKey>,
}

/// A key of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedKey {
    /// The key.
    pub key: PublicKey,
    /// What counts of it.
    pub state: KeyState,
    /// When it was added by a command, for people.
    pub added: Option<UnixMillis>,
}

/// What counts of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// It may sign now. A gateway has at most one such key.
    Signing,
    /// It no longer signs: what the store and bundles have of it still verifies.
    Verifying,
    /// It was stolen: nothing that arrives counts.
    Revoked,
}

impl KeyState {
    /// Its word in the list and in what is printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signing => "signing",
            Self::Verifying => "verifying",
            Self::Revoked => "revoked",
        }
    }
}

/// Reads `PRACTICE.GATEWAY`, the common name of a gateway's certificate.
///
/// # Errors
/// What is wrong with it, in one sentence.
pub fn common_name(text: &str) -> Result<(Practice, Gateway), String> {
    let (practice, gateway) = text.split_once('.').ok_or(
        "it must be PRACTICE.GATEWAY, the common name of the gateway's certificate, for example \"B86022.gw1\"",
    )?;
    Ok((
        Practice::new(practice).map_err(|error| error.to_string())?,
        Gateway::new(gateway).map_err(|error| error.to_string())?,
    ))
}

/// Checks a display name or a district, which are printed in tables.
///
/// # Errors
/// What it must be.
pub fn label(text: &str) -> Result<String, &'static str> {
    if text.chars().count() <= TEXT_CHARACTERS && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("it must be at most 100 characters on one line")
    }
}

impl Gateways {
    /// A gateway, if it is listed.
    #[must_use]
    pub fn get(&self, practice: &Practice, gateway: &Gateway) -> Option<&ListedGateway> {
        self.gateways.get(&(practice.clone(), gateway.clone()))
    }

    /// The gateway that has this key, in whatever state.
    #[must_use]
    pub fn owner(&self, key: &PublicKey) -> Option<&(Practice, Gateway)> {
        let has = |gateway: &ListedGateway| gateway.keys.iter().any(|listed| listed.key == *key);
        self.gateways.iter().find(|(_, gateway)| has(gateway)).map(|(name, _)| name)
    }

    /// How many gateways there are, as it is printed.
    #[must_use]
    pub fn count(&self) -> String {
        match self.gateways.len() {
            1 => "1 gateway".to_owned(),
            count => format!("{count} gateways"),
        }
    }

    /// The gateways of which the hub accepts nothing, because none of their keys may sign.
    pub fn without_signing_key(&self) -> impl Iterator<Item = &(Practice, Gateway)> {
        self.gateways.iter().filter(|(_, gateway)| gateway.signing().is_none()).map(|(name, _)| name)
    }
}

impl ListedGateway {
    /// The key that may sign now.
    #[must_use]
    pub fn signing(&self) -> Option<&PublicKey> {
        let signs = |key: &&ListedKey| key.state == KeyState::Signing;
        self.keys.iter().find(signs).map(|listed| &listed.key)
    }

    /// No key signs and one is revoked: whoever has its certificate now may be a thief.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.signing().is_none() && self.keys.iter().any(|listed| listed.state == KeyState::Revoked)
    }

    /// A key by its short name.
    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<&ListedKey> {
        self.keys.iter().find(|listed| listed.key.id() == id)
    }
}
