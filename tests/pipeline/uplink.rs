//! The uplink against a real Mosquitto over mutual TLS, with a scripted hub on the other side.

use std::time::{Duration, Instant};

use pgw_link::phase::Phase;

use crate::harness::{Certificates, Direction, Fault, FaultProxy, Mosquitto, MosquittoOptions, eventually};
use crate::uplink_kit::{Gateway, HubKit, body};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_arrives_in_order_once_and_is_confirmed() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=1_000).await;
    gateway.connect_to(broker.port());
    gateway.confirmed("clinical", 1_000).await;
    assert_eq!(hub.stored("clinical"), (1..=1_000).map(body).collect::<Vec<_>>());
    gateway.submit("clinical", 1_001..=1_010).await;
    gateway.confirmed("clinical", 1_010).await;
    assert_eq!(hub.stored("clinical").len(), 1_010);
    eventually("health hears of the receipts", SOON, || gateway.link().last_receipt).await;
    let link = gateway.link();
    assert!(link.up && link.phase == Phase::Live, "{link:?}");
    assert_eq!(hub.status_of_gateway().unwrap().status, "online");
    eventually("a probe has come back", SOON, || gateway.link().probe).await;
    gateway.stop().await;
    eventually("a clean stop says so", SOON, || {
        hub.status_of_gateway().filter(|status| status.status == "stopping")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_reordered_over_cuts_in_the_middle() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let proxy = FaultProxy::start(broker.port());
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=4_000).await;
    gateway.connect_to(proxy.port());
    for part in 1..=6 {
        let enough = part * 500;
        eventually("some of it is confirmed", SOON, || {
            (gateway.watermark("clinical") >= enough).then_some(())
        })
        .await;
        proxy.cut();
    }
    gateway.confirmed("clinical", 4_000).await;
    assert_eq!(hub.stored("clinical"), (1..=4_000).map(body).collect::<Vec<_>>());
    let session = gateway.link().session;
    assert!(session >= 7, "each connect is a session of its own: {session}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_costs_nothing_but_time() {
    let certificates = Certificates::new();
    let mut broker = Mosquitto::start(&certificates);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=3_000).await;
    gateway.connect_to(broker.port());
    eventually("a third is confirmed", SOON, || (gateway.watermark("clinical") >= 1_000).then_some(())).await;
    broker.restart();
    gateway.confirmed("clinical", 3_000).await;
    assert_eq!(hub.stored("clinical"), (1..=3_000).map(body).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_puback_stalls_no_longer_than_the_patience() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let proxy = FaultProxy::start(broker.port());
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.connect_to(proxy.port());
    gateway.submit("clinical", 1..=5).await;
    gateway.confirmed("clinical", 5).await;
    proxy.set(Fault::Swallow(Direction::Down));
    let before = proxy.accepted();
    let start = Instant::now();
    gateway.submit("clinical", 6..=10).await;
    eventually("the silent connection is left", SOON, || (proxy.accepted() > before).then_some(())).await;
    // The stall timeout of 5 s ends it; the keep-alive of 20 s would come far later.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    proxy.set(Fault::Pass);
    proxy.cut();
    gateway.confirmed("clinical", 10).await;
    assert_eq!(hub.stored("clinical"), (1..=10).map(body).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_transaction_waits_for_no_timer_when_the_link_is_back() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=100).await;
    gateway.connect_to(broker.port());
    let live = eventually("the link is up", SOON, || gateway.link().up.then(Instant::now)).await;
    eventually("the first has arrived", SOON, || (!hub.stored("clinical").is_empty()).then_some(())).await;
    // The shortest timer that could be involved is the receipt timeout of 2 s; benches/pipeline.rs has the figure.
    assert!(live.elapsed() < Duration::from_millis(1_500), "{:?}", live.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_share_the_connection_and_keep_their_own_order() {
    let certificates = Certificates::new();
    let options = MosquittoOptions { extra: "max_inflight_messages 20".into(), ..Default::default() };
    let broker = Mosquitto::start_with(&certificates, &options);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=300).await;
    gateway.submit("urgent", 1..=50).await;
    gateway.connect_to(broker.port());
    gateway.confirmed("urgent", 50).await;
    gateway.confirmed("clinical", 300).await;
    assert_eq!(hub.stored("clinical"), (1..=300).map(body).collect::<Vec<_>>());
    assert_eq!(hub.stored("urgent"), (1..=50).map(body).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_too_large_for_the_broker_is_held_and_named() {
    let certificates = Certificates::new();
    let options = MosquittoOptions { extra: "max_packet_size 20000".into(), ..Default::default() };
    let broker = Mosquitto::start_with(&certificates, &options);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=2).await;
    gateway.submit_body("clinical", vec![b'x'; 30_000]).await;
    gateway.submit("clinical", 4..=4).await;
    gateway.connect_to(broker.port());
    gateway.confirmed("clinical", 2).await;
    eventually("it is held", SOON, || (gateway.link().held == 1).then_some(())).await;
    assert!(gateway.link().up, "the connection is still up: the record was never sent");
    assert_eq!(hub.stored("clinical").len(), 2);
    eventually("an event names it", SOON, || {
        hub.events().iter().any(|event| event.code == "held").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_receipts_confirm_nothing() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let hub = HubKit::start(broker.plain_port()).await;
    let stranger = HubKit::start(broker.plain_port()).await;
    // The hub is silent; another one, with its own key, answers under its name.
    hub.silence();
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=5).await;
    gateway.connect_to(broker.port());
    eventually("the stranger has answered", SOON, || (stranger.answers() >= 1).then_some(())).await;
    eventually("the link is up", SOON, || gateway.link().up.then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(gateway.watermark("clinical"), 0);
    assert!(stranger.stored("clinical").is_empty(), "nothing is sent before the true hub has answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_hub_gets_the_difference_again() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.connect_to(broker.port());
    gateway.submit("clinical", 1..=200).await;
    gateway.confirmed("clinical", 200).await;
    hub.restore_to("clinical", 120);
    gateway.submit("clinical", 201..=201).await;
    eventually("all is there again", SOON, || (hub.stored("clinical").len() == 201).then_some(())).await;
    gateway.confirmed("clinical", 201).await;
    assert_eq!(hub.stored("clinical"), (1..=201).map(body).collect::<Vec<_>>());
    eventually("an event says so", SOON, || {
        hub.events().iter().any(|event| event.code == "hub.restored").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_without_a_hub_is_confirmed_by_the_broker() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let watcher = HubKit::start(broker.plain_port()).await;
    watcher.silence();
    let mut gateway = Gateway::new(&certificates, watcher.public_key());
    gateway.settings.hubs.clear();
    gateway.settings.delivery.confirm_on_puback = true;
    gateway.submit("clinical", 1..=500).await;
    gateway.connect_to(broker.port());
    gateway.confirmed("clinical", 500).await;
    eventually("they were published", SOON, || (watcher.seen("clinical") == 500).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_away_is_passed_over() {
    let certificates = Certificates::new();
    let (mut first, second) = (Mosquitto::start(&certificates), Mosquitto::start(&certificates));
    first.kill();
    let hub = HubKit::start(second.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.submit("clinical", 1..=5).await;
    gateway.connect_to_all(&[first.port(), second.port()]);
    gateway.confirmed("clinical", 5).await;
    assert!(gateway.link().upstream.ends_with(&second.port().to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_names_its_phase_and_its_reason() {
    let certificates = Certificates::new();
    let stranger = Certificates::new();
    let cases: Vec<(&str, Phase, &str)> = vec![
        ("no broker", Phase::Tcp, "refused the connection"),
        ("no name", Phase::Dns, "cannot be looked up"),
        ("unknown ca", Phase::Tls, "signed by an unknown CA"),
        ("expired server", Phase::Tls, "the broker's certificate has expired"),
        ("other name", Phase::Tls, "for another name"),
        ("expired client", Phase::Tls, "our certificate has expired"),
        ("foreign client", Phase::Tls, "does not know the CA that signed our certificate"),
        ("no files", Phase::Tls, "cannot read"),
        ("not authorised", Phase::Mqtt, "does not authorise"),
        ("no tls port", Phase::Tls, "is this a TLS port"),
        ("half open", Phase::Tls, "did not finish the TLS handshake"),
    ];
    for (case, phase, sentence) in cases {
        let mut options = MosquittoOptions::default();
        match case {
            "expired server" => options.server = Some(certificates.expired_server()),
            "other name" => options.server = Some(certificates.server_for(&["elsewhere"])),
            "not authorised" => options.extra = "allow_anonymous false".into(),
            _ => {}
        }
        let broker = Mosquitto::start_with(&certificates, &options);
        let proxy = FaultProxy::start(broker.port());
        let mut gateway = Gateway::new(&certificates, HubKit::any_key());
        let mut port = broker.port();
        let mut host = "localhost".to_owned();
        let tls = gateway.settings.tls.as_mut().unwrap();
        let mut broker = broker;
        match case {
            "no broker" => broker.kill(),
            "no name" => host = "no-such-host.invalid".into(),
            "unknown ca" => tls.ca = stranger.ca(),
            "expired client" => {
                let files = certificates.expired_client("B86022.gw1");
                (tls.certificate, tls.key) = (files.certificate, files.key);
            }
            "foreign client" => {
                let files = stranger.client("B86022.gw1");
                (tls.certificate, tls.key) = (files.certificate, files.key);
            }
            "no files" => tls.key = "/nowhere/key.pem".into(),
            "no tls port" => port = broker.plain_port(),
            "half open" => {
                proxy.set(Fault::Stall);
                port = proxy.port();
                gateway.settings.phase_timeout = Duration::from_secs(1);
            }
            "not authorised" => {
                // This broker's plain listener requires a name, and without TLS we have none.
                gateway.settings.tls = None;
                port = broker.plain_port();
            }
            _ => {}
        }
        gateway.connect_to_host(&host, port);
        expect_failure(&gateway, case, phase, sentence).await;
    }
}

async fn expect_failure(gateway: &Gateway, case: &str, phase: Phase, sentence: &str) {
    let seen = eventually(case, SOON, || {
        let link = gateway.link();
        (!link.failure.is_empty()).then_some(link)
    })
    .await;
    assert!(!seen.up, "{case}");
    assert!(seen.failure.contains(sentence), "{case}: {:?}", seen.failure);
    assert_eq!(seen.phase, phase, "{case}: {:?}", seen.failure);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_own_root_and_the_public_topics_are_all_that_the_acl_must_allow() {
    let certificates = Certificates::new();
    let acl = "topic readwrite #\n\nuser B86022.gw1\ntopic write pgw/v1/B86022/gw1/#\n\
               topic read pgw/v1/B86022/gw1/receipt/#\ntopic read pgw/v1/B86022/gw1/gap/#\n\
               topic read pgw/v1/B86022/gw1/cmd\ntopic read pgw/v1/B86022/gw1/notice\n\
               topic read pgw/v1/B86022/gw1/probe/reply\n\
               topic read pgw/v1/notice\ntopic read pgw/v1/hub/+/status\n";
    let options = MosquittoOptions { acl: Some(acl.into()), ..Default::default() };
    let broker = Mosquitto::start_with(&certificates, &options);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.connect_to(broker.port());
    gateway.submit("clinical", 1..=10).await;
    gateway.confirmed("clinical", 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_certificates_are_tried_before_they_replace_the_old() {
    let certificates = Certificates::new();
    let stranger = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.connect_to(broker.port());
    gateway.submit("clinical", 1..=1).await;
    gateway.confirmed("clinical", 1).await;
    let first = gateway.link().session;

    // One that the broker does not accept: the old one stays in use.
    gateway.replace_certificate(&stranger.client("B86022.gw1"));
    gateway.reload();
    eventually("the new ones were tried, the old ones are back", SOON, || {
        let link = gateway.link();
        (link.up && link.session >= first + 2).then_some(())
    })
    .await;
    gateway.submit("clinical", 2..=2).await;
    gateway.confirmed("clinical", 2).await;

    // A good one, with another end.
    let before = gateway.link();
    let end = time::OffsetDateTime::now_utc() + time::Duration::days(3);
    let good = certificates.signed("B86022.gw1", &[], rcgen::ExtendedKeyUsagePurpose::ClientAuth, Some(end));
    gateway.replace_certificate(&good);
    gateway.reload();
    let after = eventually("the new ones are in use", SOON, || {
        let link = gateway.link();
        (link.up && link.certificate_expires != before.certificate_expires).then_some(link)
    })
    .await;
    let expires = i64::try_from(after.certificate_expires.unwrap() / 1_000).unwrap();
    assert_eq!(expires, end.unix_timestamp());
    gateway.submit("clinical", 3..=3).await;
    gateway.confirmed("clinical", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_leaves_the_will_with_its_session() {
    let certificates = Certificates::new();
    let broker = Mosquitto::start(&certificates);
    let proxy = FaultProxy::start(broker.port());
    let hub = HubKit::start(broker.plain_port()).await;
    let mut gateway = Gateway::new(&certificates, hub.public_key());
    gateway.connect_to(proxy.port());
    let online = eventually("online", SOON, || hub.status_of_gateway().filter(|it| it.up == 1)).await;
    proxy.set(Fault::Refuse);
    proxy.cut();
    let will = eventually("the will", SOON, || hub.status_of_gateway().filter(|it| it.up == 0)).await;
    assert_eq!((will.session, will.reason.as_str()), (online.session, "connection lost (unconfirmed)"));
    proxy.set(Fault::Pass);
    let again = eventually("online again", SOON, || hub.status_of_gateway().filter(|it| it.up == 1)).await;
    assert!(again.session > online.session);
}
