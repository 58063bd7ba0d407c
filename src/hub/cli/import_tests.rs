//! A bundle that does not continue its lane, and the commands that a person gives then.

use std::path::{Path, PathBuf};

use pgw_bundle::bundle::{Foot, Head, Owner, Writer};
use pgw_bundle::end;
use pgw_bundle::seal::Encryptor;
use pgw_core::chain::{ChainValue, Through};
use pgw_core::transaction::{Body, Clock, Epoch, Kind, LaneName, Transaction, TransactionId};
use pgw_core::wire::SCHEMA;
use pgw_core::wire::envelope::Envelope;
use pgw_core::wire::signature::SigningKey;
use pgw_host::exit::Exit;
use pgw_host::secret;
use uuid::Uuid;

use crate::cli::run;
use crate::config::HubConfig;
use crate::keys;

struct Centre {
    directory: tempfile::TempDir,
    config: PathBuf,
    key: SigningKey,
    lane: LaneName,
}

impl Centre {
    /// A hub that has never run, with one gateway in its list.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("hub.toml");
        let text = "hub = \"hub1\"\nstore_directory = \"store\"\nsigning_key_file = \"signing.key\"\n\
            carry_key_file = \"carry.key\"\ngateways_file = \"gateways.toml\"\n[control]\nsocket = \"socket\"\n[uplink]\n\
            upstreams = [\"localhost:8883\"]\nca_file = \"ca\"\ncertificate_file = \"c\"\nkey_file = \"k\"\n";
        std::fs::write(&config, text).unwrap();
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let centre = Self { directory, config, key, lane: "B86022/gw1/clinical".parse().unwrap() };
        assert_eq!(centre.run(&["init"]).0, Exit::Done);
        let public = centre.key.public().to_string();
        assert_eq!(centre.run(&["gateway", "add", "B86022.gw1", "--public-key", &public]).0, Exit::Done);
        centre
    }

    fn run(&self, words: &[&str]) -> (Exit, String) {
        let config = self.config.to_string_lossy().into_owned();
        let all = ["practice-hub"].into_iter().chain(words.iter().copied()).chain(["--config", &config]);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = run(all.map(Into::into), &mut out, &mut err);
        (exit, String::from_utf8_lossy(&[out, err].concat()).into_owned())
    }

    /// A bundle with numbers 1 to `last` of an epoch that begins there; where it ends.
    fn bundle(&self, name: &str, epoch: u128, link: Option<Through>, last: u64) -> (PathBuf, Through) {
        let settings = HubConfig::load(&self.config).unwrap().settings;
        let recipient = keys::carry_key(&settings.carry_key_file).unwrap().recipient();
        let path = self.directory.path().join(name);
        let (lane, epoch) = (&self.lane, Epoch(Uuid::from_u128(epoch)));
        let owner = Owner {
            schema: SCHEMA,
            practice: lane.practice.clone(),
            gateway: lane.gateway.clone(),
            time: "2026-01-01T00:00:00Z".into(),
            version: "1".into(),
        };
        let sealed = Encryptor::new(std::fs::File::create(&path).unwrap(), &[recipient]).unwrap();
        let mut out = Writer::new(sealed, owner).unwrap();
        let mut chain = ChainValue::first(lane, epoch, link.as_ref());
        let before = chain;
        out.head(Head { lane: lane.lane.clone(), epoch, first: 1, position: 1, before, link }).unwrap();
        for sequence in 1..=last {
            let id = epoch.0.as_u128() << 32 | u128::from(sequence);
            let transaction = Transaction {
                id: TransactionId(Uuid::from_u128(id)),
                time: 1,
                event_type: "x".into(),
                kind: Kind::Transaction,
                content_type: "text/plain".into(),
                sender: "test".into(),
                given_sender: None,
                key: String::new(),
                shows_key: false,
                correlation_id: String::new(),
                trace_parent: String::new(),
                clock: Clock::Untrusted,
                body: Body::new(b"body".to_vec()),
            };
            chain = chain.next(sequence, transaction.digest(lane));
            let envelope = Envelope::new(lane, epoch, sequence, chain, 0, &transaction).linked(link);
            out.transaction(envelope.signed(lane, &self.key), transaction.body.as_bytes()).unwrap();
        }
        let lane = lane.lane.clone();
        out.foot(Foot { lane, count: last, epoch, last, chain, stopped_before: None }).unwrap();
        out.finish().unwrap().finish().unwrap();
        (path, Through { epoch, through: last, chain })
    }

    fn import(&self, bundle: &Path) -> (Exit, String) {
        self.run(&["import", &bundle.to_string_lossy()])
    }
}

#[test]
fn a_bundle_that_does_not_continue_its_lane_brings_the_hubs_end_back() {
    let centre = Centre::new();
    let (first, here) = centre.bundle("first.age", 1, None, 3);
    assert_eq!(centre.import(&first).0, Exit::Done);
    let (elsewhere, _) = centre.bundle("elsewhere.age", 2, None, 2);
    let (exit, text) = centre.import(&elsewhere);
    assert_eq!(exit, Exit::Refused, "{text}");
    assert!(text.contains("2 beside the lane") && text.contains("export --end"), "{text}");
    let file = centre.directory.path().join("elsewhere.age.clinical.end.json");
    let signed = end::read(&mut std::fs::File::open(file).unwrap()).unwrap();
    let settings = HubConfig::load(&centre.config).unwrap().settings;
    let hub_key = secret::signing_key(&settings.signing_key_file).unwrap().public();
    let receipt = end::verify(&signed, &settings.hub, &centre.lane, &[hub_key]).unwrap();
    assert_eq!((receipt.end, receipt.nonce), (Some(here), None));
    // The next one begins there.
    let (next, there) = centre.bundle("next.age", 3, receipt.end, 2);
    assert_eq!(centre.import(&next).0, Exit::Done);
    let (exit, text) = centre.run(&["lane", "show", "B86022/gw1/clinical"]);
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(
        text.contains("5 transactions\n") && text.contains("  2 transactions of another history"),
        "{text}"
    );
    let (exit, text) = centre.run(&["verify"]);
    assert!(exit == Exit::Done && text.contains(&format!("epoch {} through 2", there.epoch)), "{text}");
    assert!(text.contains("late: 2 transactions"), "{text}");
    let (exit, text) = centre.run(&["lane", "admit", "--all", "--as", "epochs"]);
    assert!(exit == Exit::Unreachable && text.contains("the hub is not running"), "{text}");
    assert_eq!(centre.run(&["lane", "admit", "--as", "epochs"]).0, Exit::Usage);
    assert_eq!(centre.run(&["lane", "admit", "--all"]).0, Exit::Usage);
}
