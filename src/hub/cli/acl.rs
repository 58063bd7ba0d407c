//! `practice-hub acl`: the broker's access rules, in Mosquitto's form.
//!
//! Mosquitto can put a user's name into a topic (`pattern ... %u`), but the name is a certificate's common name,
//! `{practice}.{gateway}`, and topics have `{practice}/{gateway}`: no pattern turns the dot into a slash. So the rules
//! for each gateway are generated from a list.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use pgw_core::transaction::{Gateway, Hub, Practice};
use pgw_core::wire::topic::{HUB_FILTERS, HUB_STATUS_FILTER, NOTICE, hub_status};
use pgw_host::exit::Exit;

/// Print the broker's access rules for this hub and a list of gateways.
#[derive(Debug, Clone, Args)]
pub struct Acl {
    /// A file with one PRACTICE.GATEWAY per line, as in the certificates' common names; # begins a comment.
    #[arg(long, value_name = "FILE")]
    pub gateways: PathBuf,
    /// Another hub that serves the same gateways; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub hub: Vec<Hub>,
}

/// Runs the command.
pub fn run(own: &Hub, command: &Acl, out: &mut dyn Write, err: &mut dyn Write) -> Exit {
    let file = command.gateways.display();
    let text = match std::fs::read_to_string(&command.gateways) {
        Ok(text) => text,
        Err(error) => {
            let _ = writeln!(err, "cannot read {file}: {error}");
            return Exit::Files;
        }
    };
    let gateways = match gateways(&text) {
        Ok(gateways) => gateways,
        Err((line, problem)) => {
            let _ = writeln!(err, "{file}:{line}: {problem}");
            return Exit::Refused;
        }
    };
    let mut hubs = vec![own.clone()];
    hubs.extend(command.hub.iter().filter(|hub| *hub != own).cloned());
    if out.write_all(rules(&hubs, &gateways).as_bytes()).and_then(|()| out.flush()).is_err() {
        return Exit::Files;
    }
    Exit::Done
}

/// The list, each gateway once; or the first line that is wrong.
fn gateways(text: &str) -> Result<Vec<(Practice, Gateway)>, (usize, String)> {
    let mut list = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let name = line.split('#').next().unwrap_or_default().trim();
        if name.is_empty() {
            continue;
        }
        let at = |problem: String| (index + 1, problem);
        let (practice, gateway) = name
            .split_once('.')
            .ok_or_else(|| at(format!("{name:?} is not PRACTICE.GATEWAY, for example \"B86022.gw1\"")))?;
        let one = (
            Practice::new(practice).map_err(|error| at(error.to_string()))?,
            Gateway::new(gateway).map_err(|error| at(error.to_string()))?,
        );
        if list.contains(&one) {
            return Err(at(format!("{name} appears twice")));
        }
        list.push(one);
    }
    Ok(list)
}

/// The rules file. A client without a rule may do nothing: Mosquitto refuses what no rule allows.
fn rules(hubs: &[Hub], gateways: &[(Practice, Gateway)]) -> String {
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
    for (practice, gateway) in gateways {
        let root = format!("pgw/v1/{practice}/{gateway}");
        let _ = write!(text, "\nuser {practice}.{gateway}\n");
        for tail in ["txn/+", "position/+", "status", "health", "info", "event", "probe", "cmd/result"] {
            let _ = writeln!(text, "topic write {root}/{tail}");
        }
        for tail in ["receipt/+/+", "gap/+/+", "cmd", "notice", "probe/reply"] {
            let _ = writeln!(text, "topic read {root}/{tail}");
        }
        let _ = writeln!(text, "topic read {NOTICE}\ntopic read {HUB_STATUS_FILTER}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgw_core::wire::topic::Root;

    fn made() -> String {
        let list = gateways("# the district\nB86022.gw1\n\n B86023.gw-2  # the branch\n").unwrap();
        rules(&[Hub::new("hub1").unwrap()], &list)
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
    fn a_name_that_would_open_more_is_refused_with_its_line() {
        for (text, line) in
            [("B86022.gw1\n+.+\n", 2), ("B86022\n", 1), ("B86022.#\n", 1), ("B86022.gw1\nB86022.gw1\n", 2)]
        {
            assert_eq!(gateways(text).unwrap_err().0, line, "{text}");
        }
    }
}
