//! `practice-hub gateway list`.

use std::io::Write;
use std::path::Path;

use pgw_core::transaction::{Lane, rfc3339};
use pgw_core::wire::signature::PublicKey;
use pgw_host::exit::Exit;
use serde_json::{Value, json};

use crate::gateways::{Gateways, KeyState, ListedGateway, ListedKey};
use crate::report::aligned;

/// Prints the list, for people or as JSON.
pub(super) fn print(file: &Path, list: &Gateways, as_json: bool, out: &mut dyn Write) -> Exit {
    let text = if as_json { format!("{}\n", object(file, list)) } else { table(list) };
    match out.write_all(text.as_bytes()) {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Files,
    }
}

fn table(list: &Gateways) -> String {
    let mut table = vec![
        ["GATEWAY", "NAME", "DISTRICT", "LANES", "QUOTA", "WINDOW", "SIGNS WITH", "OTHER KEYS"]
            .map(str::to_owned),
    ];
    for ((practice, gateway), listed) in &list.gateways {
        table.push([
            format!("{practice}.{gateway}"),
            or_dash(&listed.display_name),
            or_dash(&listed.district),
            lanes(listed),
            quota(listed),
            window(listed),
            listed.signing().map_or("none".to_owned(), |key| key.id().to_string()),
            others(listed),
        ]);
    }
    let mut text = if list.gateways.is_empty() { String::new() } else { aligned(&table) };
    text.push_str(&format!("serial {}, {}", list.serial, list.count()));
    match list.without_signing_key().count() {
        0 => text.push('\n'),
        without => text.push_str(&format!(", {without} without a signing key\n")),
    }
    text
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

fn lanes(listed: &ListedGateway) -> String {
    if listed.lanes.is_empty() {
        "any".to_owned()
    } else {
        listed.lanes.iter().map(Lane::as_str).collect::<Vec<_>>().join(",")
    }
}

fn quota(listed: &ListedGateway) -> String {
    listed.quota_bytes_per_day.map_or("default".to_owned(), |bytes| format!("{bytes} bytes/day"))
}

fn window(listed: &ListedGateway) -> String {
    match listed.window {
        None => "its own".to_owned(),
        Some(0) => "0 (it waits)".to_owned(),
        Some(window) => window.to_string(),
    }
}

fn others(listed: &ListedGateway) -> String {
    let others = listed.keys.iter().filter(|key| key.state != KeyState::Signing);
    let words: Vec<String> = others.map(|key| format!("{} {}", key.key.id(), key.state.as_str())).collect();
    or_dash(&words.join(", "))
}

/// What people read of a gateway besides its keys.
pub(super) fn one_line(listed: &ListedGateway) -> String {
    format!(
        "name {}, district {}, lanes {}, quota {}, window {}",
        or_dash(&listed.display_name),
        or_dash(&listed.district),
        lanes(listed),
        quota(listed),
        window(listed)
    )
}

fn object(file: &Path, list: &Gateways) -> Value {
    let key = |listed: &ListedKey| {
        json!({
            "id": listed.key.id(),
            "public_key": listed.key,
            "state": listed.state.as_str(),
            "added": listed.added.map(rfc3339),
        })
    };
    let gateways: Vec<Value> = list
        .gateways
        .iter()
        .map(|((practice, gateway), listed)| {
            json!({
                "gateway": format!("{practice}.{gateway}"),
                "display_name": listed.display_name,
                "district": listed.district,
                "lanes": listed.lanes,
                "quota_bytes_per_day": listed.quota_bytes_per_day,
                "window": listed.window,
                "signing_key": listed.signing().map(PublicKey::id),
                "keys": listed.keys.iter().map(key).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "file": file, "serial": list.serial, "gateways": gateways })
}
