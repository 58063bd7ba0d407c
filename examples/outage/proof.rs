//! The proof: compares what was acknowledged with what the hub has stored, read from its files by code that shares
//! nothing with the hub but the chain.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine as _;
use pgw_core::chain::{ChainValue, Digest, Through};
use pgw_core::transaction::{Epoch, LaneName};

/// The result of the proof; every figure but the first two must be zero.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    /// Messages whose sender got a positive acknowledgment.
    pub(crate) accepted: usize,
    /// Transactions in the hub's store.
    pub(crate) delivered: usize,
    /// Acknowledged and not in the store.
    pub(crate) lost: usize,
    /// In the store more often than acknowledged, or an id twice.
    pub(crate) repeated: usize,
    /// Not in the order of acceptance, or a sequence is missing.
    pub(crate) out_of_order: usize,
    /// Whether every chain value was recomputed and found equal.
    pub(crate) chain_ok: bool,
}

impl Proof {
    /// Compares. `acknowledged` holds, for each sender, the bodies in the order of their acknowledgments.
    pub(crate) fn of(
        store: &Path,
        acknowledged: &[Vec<Vec<u8>>],
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut proof = Self { chain_ok: true, ..Self::default() };
        proof.accepted = acknowledged.iter().map(Vec::len).sum();
        let mut arrived: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        let mut stored: HashMap<String, serde_json::Value> = HashMap::new();
        // Where each lane's line ends.
        let mut ends: HashMap<String, Through> = HashMap::new();
        for file in files(store)? {
            for line in std::fs::read_to_string(&file)?.lines() {
                let event: serde_json::Value = serde_json::from_str(line)?;
                // A line without an id holds the hub's watermarks; one without data names, in a new epoch, a
                // transaction that is already stored.
                let Some(id) = event["id"].as_str() else { continue };
                let is_new = event["data_base64"].is_string();
                let content = if is_new { &event } else { stored.get(id).unwrap_or(&event) };
                let data = content["data_base64"].as_str().unwrap_or_default();
                let body = base64::engine::general_purpose::STANDARD.decode(data)?;
                let text = |key: &str| event[key].as_str().unwrap_or_default();
                let epoch = Epoch(text("epoch").parse()?);
                let sequence =
                    event["sequence"].as_u64().or_else(|| text("sequence").parse().ok()).unwrap_or(0);
                let lane = lane(content)?;
                let end = ends.get(&lane.to_string());
                let (before, previous) = match end.filter(|end| end.epoch == epoch) {
                    Some(end) => (end.through, end.chain),
                    // An epoch begins where the line ends.
                    None => (0, ChainValue::first(&lane, epoch, end)),
                };
                if sequence != before + 1 {
                    proof.out_of_order += 1;
                }
                let chain = previous.next(sequence, digest(content, &body));
                proof.chain_ok &= chain.to_string() == text("chain");
                ends.insert(lane.to_string(), Through { epoch, through: sequence, chain });
                if !is_new {
                    continue;
                }
                arrived.entry(body).or_default().push(proof.delivered);
                proof.delivered += 1;
                if stored.insert(id.to_owned(), event).is_some() {
                    proof.repeated += 1;
                }
            }
        }
        for places in arrived.values_mut() {
            places.reverse(); // so that pop() gives the first arrival
        }
        for sender in acknowledged {
            let mut before = None;
            for body in sender {
                match arrived.get_mut(body).and_then(Vec::pop) {
                    None => proof.lost += 1,
                    place if place < before => proof.out_of_order += 1,
                    place => before = place,
                }
            }
        }
        proof.repeated += arrived.values().map(Vec::len).sum::<usize>();
        Ok(proof)
    }

    /// One line of JSON for programs.
    pub(crate) fn json(&self) -> String {
        format!(
            r#"{{"accepted":{},"delivered":{},"lost":{},"repeated":{},"out_of_order":{},"chain_ok":{}}}"#,
            self.accepted, self.delivered, self.lost, self.repeated, self.out_of_order, self.chain_ok
        )
    }
}

/// The lane that an event's `source` names.
fn lane(event: &serde_json::Value) -> Result<LaneName, Box<dyn std::error::Error>> {
    let source = event["source"].as_str().unwrap_or_default();
    Ok(source.strip_prefix("/pgw/").unwrap_or(source).parse()?)
}

/// Over everything that the hub stores of a transaction besides its number.
fn digest(event: &serde_json::Value, body: &[u8]) -> Digest {
    const NUMBERS: [&str; 5] = ["chain", "data_base64", "epoch", "link", "sequence"];
    let members = event.as_object().into_iter().flatten();
    let mut attributes: Vec<(&str, &str)> = members
        .filter(|(name, _)| !NUMBERS.contains(&name.as_str()))
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()))
        .collect();
    attributes.sort_unstable();
    Digest::of(attributes, body)
}

/// What does not continue the lane's line is kept beside it and counts for nothing.
fn is_beside_its_lane(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains(".late"))
}

fn files(directory: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|e| e == "ndjson") && !is_beside_its_lane(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
