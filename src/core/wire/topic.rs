//! Topics (design section 7): everything of a gateway is below `pgw/v1/{practice}/{gateway}/`.

use crate::transaction::{Gateway, Hub, Lane, Practice};
use crate::wire::WireError;
use crate::wire::signature::Word;

/// Central IT's notice for every surgery, retained.
pub const NOTICE: &str = "pgw/v1/notice";
/// Every hub's status, for gateways to read.
pub const HUB_STATUS_FILTER: &str = "pgw/v1/hub/+/status";

/// The topics below one gateway's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(String);

impl Root {
    /// `pgw/v1/{practice}/{gateway}/`.
    #[must_use]
    pub fn new(practice: &Practice, gateway: &Gateway) -> Self {
        Self(format!("pgw/v1/{practice}/{gateway}/"))
    }

    /// Transactions of a lane, up, QoS 1.
    #[must_use]
    pub fn transactions(&self, lane: &Lane) -> String {
        format!("{}txn/{lane}", self.0)
    }

    /// A hub's receipts for a lane, down, QoS 1, retained.
    #[must_use]
    pub fn receipt(&self, hub: &Hub, lane: &Lane) -> String {
        format!("{}receipt/{hub}/{lane}", self.0)
    }

    /// A hub's gap notices for a lane, down, QoS 1.
    #[must_use]
    pub fn gap(&self, hub: &Hub, lane: &Lane) -> String {
        format!("{}gap/{hub}/{lane}", self.0)
    }

    /// Position questions of a lane, up, QoS 1.
    #[must_use]
    pub fn position(&self, lane: &Lane) -> String {
        format!("{}position/{lane}", self.0)
    }

    /// One of `status`, `health`, `info`, `event`, `probe`, `probe/reply`, `cmd`, `cmd/result`, `notice`.
    #[must_use]
    pub fn plain(&self, name: &'static str) -> String {
        format!("{}{name}", self.0)
    }

    /// A gateway's subscriptions, apart from [`NOTICE`] and [`HUB_STATUS_FILTER`].
    #[must_use]
    pub fn gateway_filters(&self) -> Vec<String> {
        ["receipt/+/+", "gap/+/+", "cmd", "notice", "probe/reply"]
            .iter()
            .map(|tail| format!("{}{tail}", self.0))
            .collect()
    }
}

/// A hub's own status topic, retained, with will.
#[must_use]
pub fn hub_status(hub: &Hub) -> String {
    format!("pgw/v1/hub/{hub}/status")
}

/// A hub's subscriptions: the fleet's transactions, positions, status, health, info, events, probes and the results of
/// commands.
pub const HUB_FILTERS: [&str; 8] = [
    "pgw/v1/+/+/txn/+",
    "pgw/v1/+/+/position/+",
    "pgw/v1/+/+/status",
    "pgw/v1/+/+/health",
    "pgw/v1/+/+/info",
    "pgw/v1/+/+/event",
    "pgw/v1/+/+/probe",
    "pgw/v1/+/+/cmd/result",
];

/// Whether the protocol retains what is on a filter's topics. Nobody asks a broker for what somebody else has had it retain: a
/// gateway's retained transactions would come to every hub with every connection.
#[must_use]
pub fn is_retained(filter: &str) -> bool {
    let ends = ["/status", "/health", "/info", "/notice"];
    ends.iter().any(|end| filter.ends_with(end)) || filter.contains("/receipt/")
}

/// A parsed topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// Below a gateway's root.
    Gateway {
        /// Practice.
        practice: Practice,
        /// Gateway.
        gateway: Gateway,
        /// What it is for.
        kind: Kind,
    },
    /// `pgw/v1/hub/{hub}/status`.
    HubStatus(Hub),
    /// `pgw/v1/notice`.
    Notice,
}

/// The topics below a gateway's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `txn/{lane}`.
    Transaction(Lane),
    /// `position/{lane}`.
    Position(Lane),
    /// `receipt/{hub}/{lane}`.
    Receipt(Hub, Lane),
    /// `gap/{hub}/{lane}`.
    Gap(Hub, Lane),
    /// `status`.
    Status,
    /// `health`.
    Health,
    /// `info`.
    Info,
    /// `event`.
    Event,
    /// `probe`.
    Probe,
    /// `probe/reply`.
    ProbeReply,
    /// `cmd`.
    Command,
    /// `cmd/result`.
    CommandResult,
    /// `notice`.
    Notice,
}

impl Kind {
    /// What is said there; `None`: transactions, whose heads are signed instead.
    #[must_use]
    pub fn word(&self) -> Option<Word> {
        match self {
            Kind::Transaction(_) => None,
            Kind::Position(_) => Some(Word::Position),
            Kind::Receipt(..) => Some(Word::Receipt),
            Kind::Gap(..) => Some(Word::Gap),
            Kind::Status => Some(Word::Status),
            Kind::Health => Some(Word::Health),
            Kind::Info => Some(Word::Info),
            Kind::Event => Some(Word::Event),
            Kind::Probe => Some(Word::Probe),
            Kind::ProbeReply => Some(Word::Reply),
            Kind::Command => Some(Word::Command),
            Kind::CommandResult => Some(Word::Result),
            Kind::Notice => Some(Word::Notice),
        }
    }
}

impl Topic {
    /// What is said there; `None`: transactions, whose heads are signed instead.
    #[must_use]
    pub fn word(&self) -> Option<Word> {
        match self {
            Topic::Gateway { kind, .. } => kind.word(),
            Topic::HubStatus(_) => Some(Word::Status),
            Topic::Notice => Some(Word::Notice),
        }
    }

    /// Parses a topic.
    ///
    /// # Errors
    /// [`WireError::Topic`] for anything that is not ours.
    pub fn parse(topic: &str) -> Result<Self, WireError> {
        let rest = topic.strip_prefix("pgw/v1/").ok_or(WireError::Topic)?;
        if rest == "notice" {
            return Ok(Topic::Notice);
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let lane = |name: &str| Lane::new(name).map_err(|_| WireError::Topic);
        let hub = |name: &str| Hub::new(name).map_err(|_| WireError::Topic);
        if let ["hub", name, "status"] = parts[..] {
            return Ok(Topic::HubStatus(hub(name)?));
        }
        let [practice, gateway, ref tail @ ..] = parts[..] else {
            return Err(WireError::Topic);
        };
        let kind = match tail {
            ["txn", name] => Kind::Transaction(lane(name)?),
            ["position", name] => Kind::Position(lane(name)?),
            ["receipt", from, name] => Kind::Receipt(hub(from)?, lane(name)?),
            ["gap", from, name] => Kind::Gap(hub(from)?, lane(name)?),
            ["status"] => Kind::Status,
            ["health"] => Kind::Health,
            ["info"] => Kind::Info,
            ["event"] => Kind::Event,
            ["probe"] => Kind::Probe,
            ["probe", "reply"] => Kind::ProbeReply,
            ["cmd"] => Kind::Command,
            ["cmd", "result"] => Kind::CommandResult,
            ["notice"] => Kind::Notice,
            _ => return Err(WireError::Topic),
        };
        Ok(Topic::Gateway {
            practice: Practice::new(practice).map_err(|_| WireError::Topic)?,
            gateway: Gateway::new(gateway).map_err(|_| WireError::Topic)?,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let (practice, gateway) = (Practice::new("B86022").unwrap(), Gateway::new("gw1").unwrap());
        let (lane, hub) = (Lane::new("clinical").unwrap(), Hub::new("hub1").unwrap());
        let root = Root::new(&practice, &gateway);
        for (text, kind) in [
            (root.transactions(&lane), Kind::Transaction(lane.clone())),
            (root.position(&lane), Kind::Position(lane.clone())),
            (root.receipt(&hub, &lane), Kind::Receipt(hub.clone(), lane.clone())),
            (root.gap(&hub, &lane), Kind::Gap(hub.clone(), lane.clone())),
            (root.plain("status"), Kind::Status),
            (root.plain("probe/reply"), Kind::ProbeReply),
            (root.plain("cmd"), Kind::Command),
            (root.plain("cmd/result"), Kind::CommandResult),
        ] {
            let expected = Topic::Gateway { practice: practice.clone(), gateway: gateway.clone(), kind };
            assert_eq!(Topic::parse(&text), Ok(expected));
        }
        assert_eq!(Topic::parse(&hub_status(&hub)), Ok(Topic::HubStatus(hub)));
        assert_eq!(Topic::parse(NOTICE), Ok(Topic::Notice));
    }

    #[test]
    fn what_the_protocol_does_not_retain_is_not_asked_for() {
        let root = Root::new(&Practice::new("B86022").unwrap(), &Gateway::new("gw1").unwrap());
        let mut all = root.gateway_filters();
        all.extend(HUB_FILTERS.iter().chain(&[NOTICE, HUB_STATUS_FILTER]).map(|filter| (*filter).to_owned()));
        let retained: Vec<_> = all.iter().filter(|filter| is_retained(filter)).map(String::as_str).collect();
        let expected = [
            "pgw/v1/B86022/gw1/receipt/+/+",
            "pgw/v1/B86022/gw1/notice",
            "pgw/v1/+/+/status",
            "pgw/v1/+/+/health",
            "pgw/v1/+/+/info",
            NOTICE,
            HUB_STATUS_FILTER,
        ];
        assert_eq!(retained, expected);
    }

    #[test]
    fn foreign_topics_are_refused() {
        for bad in [
            "",
            "pgw/v1/",
            "pgw/v2/B86022/gw1/status",
            "pgw/v1/b/gw1/status",
            "pgw/v1/B86022/gw1/txn/A",
            "pgw/v1/B86022/gw1/txn/a/b",
        ] {
            assert_eq!(Topic::parse(bad), Err(WireError::Topic), "{bad}");
        }
    }
}
