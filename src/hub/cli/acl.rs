//! `practice-hub acl`: the broker's access rules, in Mosquitto's form.
//!
//! Mosquitto can put a user's name into a topic (`pattern ... %u`), but the name is a certificate's common name,
//! `{practice}.{gateway}`, and topics have `{practice}/{gateway}`: no pattern turns the dot into a slash. So the rules
//! for each gateway are generated from a list.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use clap::Args;
use pgw_core::transaction::{Gateway, Hub, Practice};
use pgw_core::wire::topic::{HUB_FILTERS, HUB_STATUS_FILTER, NOTICE, hub_status};
use pgw_host::exit::{Exit, fail};

use crate::gateways::{Gateways, ListedGateway};

/// Print the broker's access rules for this hub and its list of gateways.
#[derive(Debug, Clone, Args)]
pub struct Acl {
    /// Another hub that serves the same gateways; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub hub: Vec<Hub>,
}

/// Runs the command for the list in `file`.
pub fn run(own: &Hub, file: &Path, command: &Acl, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let gateways = match Gateways::load(file) {
        Ok(gateways) => gateways,
        Err(error) => return fail(err, &error, error.consequence()),
    };
    // The output usually replaces the rules in use: an empty list shuts out every gateway, so it must not pass unnoticed.
    if gateways.gateways.is_empty() {
        let _ =
            writeln!(err, "the list of gateways {} is empty: these rules admit only the hub", file.display());
    }
    let mut hubs = vec![own.clone()];
    hubs.extend(command.hub.iter().filter(|hub| *hub != own).cloned());
    if out.write_all(rules(&hubs, &gateways).as_bytes()).and_then(|()| out.flush()).is_err() {
        return Exit::Files;
    }
    Exit::Done
}

/// The rules file. A client without a rule may do nothing: Mosquitto refuses what no rule allows. A gateway whose key was
/// revoked gets none until it has another: its certificate may be in the thief's hands too.
pub(super) fn rules(hubs: &[Hub], gateways: &Gateways) -> String {
    let mut text = String::from("# Made by `practice-hub acl`. What no line allows is refused.\n");
    // Writing to a String cannot fail.
    for hub in hubs {
        let _ = write!(text, "\nuser {hub}\n");
        for filter in HUB_FILTERS {
            let _ = writeln!(text, "topic read {filter}");
        }
        for tail in [
            format!("receipt/{hub}/+"),
            format!("gap/{hub}/+"),
            "cmd".into(),
            "notice".into(),
            "probe/reply".into(),
        ] {
            let _ = writeln!(text, "topic write pgw/v1/+/+/{tail}");
        }
        let _ = writeln!(text, "topic write {}\ntopic write {NOTICE}", hub_status(hub));
    }
    for (name, listed) in gateways.gateways.iter().filter(|(_, listed)| !listed.is_revoked()) {
        write_gateway(&mut text, name, listed);
    }
    text
}

fn write_gateway(text: &mut String, (practice, gateway): &(Practice, Gateway), listed: &ListedGateway) {
    let root = format!("pgw/v1/{practice}/{gateway}");
    let _ = write!(text, "\nuser {practice}.{gateway}\n");
    for topic in ["txn", "position"] {
        if listed.lanes.is_empty() {
            let _ = writeln!(text, "topic write {root}/{topic}/+");
        }
        for lane in &listed.lanes {
            let _ = writeln!(text, "topic write {root}/{topic}/{lane}");
        }
    }
    for tail in ["status", "health", "info", "event", "probe", "cmd/result"] {
        let _ = writeln!(text, "topic write {root}/{tail}");
    }
    for tail in ["receipt/+/+", "gap/+/+", "cmd", "notice", "probe/reply"] {
        let _ = writeln!(text, "topic read {root}/{tail}");
    }
    let _ = writeln!(text, "topic read {NOTICE}\ntopic read {HUB_STATUS_FILTER}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateways::{KeyState, ListedKey, common_name};
    use pgw_core::transaction::Lane;
    use pgw_core::wire::topic::Root;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn listed(name: &str) -> Gateways {
        Gateways {
            gateways: [(common_name(name).unwrap(), ListedGateway::default())].into(),
            ..Gateways::default()
        }
    }

    fn made_of(gateways: &Gateways) -> String {
        rules(&[Hub::new("hub1").unwrap()], gateways)
    }

    fn made() -> String {
        let mut list = listed("B86022.gw1");
        list.gateways.extend(listed("B86023.gw-2").gateways);
        made_of(&list)
    }

    /// Whether the rules allow it, as Mosquitto reads them.
    fn allows(rules: &str, user: &str, access: &str, topic: &str) -> bool {
        let mut of = "";
        rules.lines().any(|line| {
            if let Some(name) = line.strip_prefix("user ") {
                of = name;
            }
            let Some(filter) = line.strip_prefix("topic ").and_then(|rule| rule.strip_prefix(access)) else {
                return false;
            };
            let (filter, topic) = (filter.trim().split('/'), topic.split('/'));
            of == user
                && filter.clone().count() == topic.clone().count()
                && filter.zip(topic).all(|(level, name)| level == "+" || level == name)
        })
    }

    #[test]
    fn a_gateway_may_what_it_needs_below_its_own_root_and_nothing_else() {
        let (rules, own) = (made(), "B86022.gw1");
        let root = Root::new(&Practice::new("B86022").unwrap(), &Gateway::new("gw1").unwrap());
        let lane = pgw_core::transaction::Lane::new("clinical").unwrap();
        let hub = Hub::new("hub1").unwrap();
        for topic in
            [root.transactions(&lane), root.position(&lane), root.plain("status"), root.plain("health")]
        {
            assert!(allows(&rules, own, "write", &topic), "{topic}");
            assert!(!allows(&rules, "B86023.gw-2", "write", &topic), "{topic}");
        }
        for topic in [
            root.receipt(&hub, &lane),
            root.gap(&hub, &lane),
            root.plain("cmd"),
            NOTICE.to_owned(),
            hub_status(&hub),
        ] {
            assert!(allows(&rules, own, "read", &topic), "{topic}");
            assert!(!allows(&rules, own, "write", &topic), "{topic}");
        }
        assert!(!allows(&rules, "B86023.gw-2", "read", &root.receipt(&hub, &lane)));
    }

    #[test]
    fn only_the_hub_may_confirm_command_and_notify() {
        let rules = made();
        for topic in ["receipt/hub1/clinical", "gap/hub1/clinical", "cmd", "notice", "probe/reply"] {
            let topic = format!("pgw/v1/B86022/gw1/{topic}");
            assert!(allows(&rules, "hub1", "write", &topic), "{topic}");
            assert!(!allows(&rules, "B86022.gw1", "write", &topic), "{topic}");
        }
        assert!(!allows(&rules, "hub1", "write", "pgw/v1/B86022/gw1/receipt/hub2/clinical"));
        assert!(!allows(&rules, "hub1", "write", "pgw/v1/B86022/gw1/txn/clinical"));
        assert!(allows(&rules, "hub1", "read", "pgw/v1/B86022/gw1/txn/clinical"));
    }

    #[test]
    fn every_gateway_filter_of_the_uplink_is_allowed() {
        let rules = made();
        let root = Root::new(&Practice::new("B86023").unwrap(), &Gateway::new("gw-2").unwrap());
        for filter in root.gateway_filters() {
            assert!(rules.contains(&format!("topic read {filter}\n")), "{filter}");
        }
        for filter in HUB_FILTERS {
            assert!(rules.contains(&format!("topic read {filter}\n")), "{filter}");
        }
    }

    #[test]
    fn a_gateway_with_listed_lanes_may_send_only_those() {
        let mut list = listed("B86022.gw1");
        let gateway = list.gateways.values_mut().next().unwrap();
        gateway.lanes = ["clinical", "letters"].map(|lane| Lane::new(lane).unwrap()).to_vec();
        let rules = made_of(&list);
        for topic in ["txn", "position"] {
            for (lane, may) in [("clinical", true), ("letters", true), ("other", false)] {
                let topic = format!("pgw/v1/B86022/gw1/{topic}/{lane}");
                assert_eq!(allows(&rules, "B86022.gw1", "write", &topic), may, "{topic}");
            }
        }
        assert!(allows(&rules, "B86022.gw1", "read", "pgw/v1/B86022/gw1/receipt/hub1/clinical"));
    }

    #[test]
    fn a_gateway_whose_key_was_revoked_has_no_rules_until_it_has_another() {
        let with = |states: &[KeyState]| {
            let mut list = listed("B86022.gw1");
            let key = |&state| ListedKey { key: KEY.parse().unwrap(), state, added: None };
            list.gateways.values_mut().next().unwrap().keys = states.iter().map(key).collect();
            made_of(&list).contains("user B86022.gw1\n")
        };
        use KeyState::{Revoked, Signing, Verifying};
        assert!(with(&[Signing]) && with(&[Revoked, Signing]) && with(&[]) && with(&[Verifying]));
        assert!(!with(&[Revoked]) && !with(&[Revoked, Revoked]) && !with(&[Verifying, Revoked]));
    }
}
