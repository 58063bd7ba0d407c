//! A broker in wrong hands: the gateway connects to one Mosquitto and the hub to another, and what passes between the two
//! is up to the test. It may hold back, drop, alter, repeat and exchange whatever is published, in both directions; what it
//! cannot do is sign.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgw_core::wire::topic::HUB_FILTERS;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish, PublishProperties};
use rumqttc::v5::{Client, Connection, Event, MqttOptions};

use super::{Certificates, Mosquitto, eventually_blocking};

/// What gateways read.
const GATEWAY_FILTERS: [&str; 7] = [
    "pgw/v1/+/+/receipt/+/+",
    "pgw/v1/+/+/gap/+/+",
    "pgw/v1/+/+/cmd",
    "pgw/v1/+/+/notice",
    "pgw/v1/+/+/probe/reply",
    "pgw/v1/hub/+/status",
    "pgw/v1/notice",
];

/// The whole packet of a large body passes.
const LARGEST: u32 = 30 << 20;

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a gateway to the hub.
    Up,
    /// From the hub to a gateway.
    Down,
}

/// One message, with all that the other side can see of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    pub way: Way,
    pub topic: String,
    pub retain: bool,
    pub content_type: Option<String>,
    pub properties: Vec<(String, String)>,
    pub payload: Vec<u8>,
}

impl Post {
    fn of(way: Way, publish: &Publish) -> Self {
        let properties = publish.properties.clone().unwrap_or_default();
        Self {
            way,
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            retain: publish.retain,
            content_type: properties.content_type,
            properties: properties.user_properties,
            payload: publish.payload.to_vec(),
        }
    }

    /// What it is: `txn`, `position`, `receipt`, `gap`, `status` ...
    pub fn is(&self, kind: &str) -> bool {
        self.topic.split('/').nth(4) == Some(kind)
    }

    /// A user property; empty: it has none.
    pub fn get(&self, name: &str) -> &str {
        self.properties.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    /// Gives a user property another value.
    pub fn set(&mut self, name: &str, value: &str) {
        self.properties.retain(|(own, _)| own != name);
        self.properties.push((name.to_owned(), value.to_owned()));
    }

    /// A transaction's number; 0: it is none.
    pub fn sequence(&self) -> u64 {
        if self.is("txn") { self.get("sequence").parse().unwrap_or(0) } else { 0 }
    }

    /// The payload of what is no transaction.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.payload).unwrap_or_default()
    }
}

/// What goes on in the place of a message.
type Rule = Box<dyn FnMut(&Post) -> Vec<Post> + Send>;

struct Shared {
    rule: Rule,
    seen: Vec<Post>,
}

/// Both brokers, and who sits between them. Everything passes until the test says otherwise.
pub struct Adversary {
    shared: Arc<Mutex<Shared>>,
    over: Arc<AtomicBool>,
    /// To the hub's broker, and to the gateway's.
    up: Client,
    down: Client,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// The broker that gateways connect to.
    pub outer: Mosquitto,
    /// The hub's.
    pub inner: Mosquitto,
    pub certificates: Certificates,
}

impl Adversary {
    /// Starts both brokers, and takes its place.
    pub fn start() -> Self {
        let certificates = Certificates::new();
        let (outer, inner) = (Mosquitto::start(&certificates), Mosquitto::start(&certificates));
        let pass: Rule = Box::new(|post| vec![post.clone()]);
        let shared = Arc::new(Mutex::new(Shared { rule: pass, seen: Vec::new() }));
        let over = Arc::new(AtomicBool::new(false));
        let (down, at_outer) = client(outer.plain_port());
        let (up, at_inner) = client(inner.plain_port());
        let ready = Arc::new(Mutex::new(0));
        let listen = |way, connection, to: [&Client; 2], filters: &[&str]| {
            let relay = Relay {
                way,
                own: to[0].clone(),
                other: to[1].clone(),
                filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
                shared: shared.clone(),
                over: over.clone(),
                ready: ready.clone(),
            };
            std::thread::spawn(move || relay.run(connection))
        };
        let threads = vec![
            listen(Way::Up, at_outer, [&down, &up], &HUB_FILTERS),
            listen(Way::Down, at_inner, [&up, &down], &GATEWAY_FILTERS),
        ];
        eventually_blocking("the adversary to be in its place", Duration::from_secs(20), || {
            (*ready.lock().expect("no panic") == 2).then_some(())
        });
        Self { shared, over, up, down, threads, outer, inner, certificates }
    }

    /// From now on this decides what passes.
    pub fn rule(&self, rule: impl FnMut(&Post) -> Vec<Post> + Send + 'static) {
        self.shared.lock().expect("no panic").rule = Box::new(rule);
    }

    /// Everything passes again.
    pub fn pass(&self) {
        self.rule(|post| vec![post.clone()]);
    }

    /// Everything passes but what `held` names.
    pub fn hold(&self, mut held: impl FnMut(&Post) -> bool + Send + 'static) {
        self.rule(move |post| if held(post) { vec![] } else { vec![post.clone()] });
    }

    /// What has been published so far and `wanted` names, in order, whether it was passed or not.
    pub fn seen(&self, wanted: impl Fn(&Post) -> bool) -> Vec<Post> {
        let shared = self.shared.lock().expect("no panic");
        shared.seen.iter().filter(|post| wanted(post)).cloned().collect()
    }

    /// Waits until something that `wanted` names has been published.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Post) -> bool) -> Post {
        eventually_blocking(what, Duration::from_secs(60), || self.seen(&wanted).pop())
    }

    /// Publishes it on its way, whatever the rule says.
    pub fn send(&self, post: &Post) {
        let to = if post.way == Way::Up { &self.up } else { &self.down };
        assert!(publish(to, post), "the adversary's own connection has ended");
    }
}

impl Drop for Adversary {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.up.try_disconnect();
        let _ = self.down.try_disconnect();
        // A connection that is away does not hear it: it ends with its broker.
        self.outer.kill();
        self.inner.kill();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn client(port: u16) -> (Client, Connection) {
    let mut options = MqttOptions::new("adversary", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(Some(LARGEST));
    Client::new(options, 10_000)
}

/// Whether it could be handed over.
fn publish(to: &Client, post: &Post) -> bool {
    let properties = PublishProperties {
        content_type: post.content_type.clone(),
        user_properties: post.properties.clone(),
        ..PublishProperties::default()
    };
    let payload = post.payload.clone();
    to.publish_with_properties(&post.topic, QoS::AtLeastOnce, post.retain, payload, properties).is_ok()
}

/// One direction.
struct Relay {
    way: Way,
    own: Client,
    other: Client,
    filters: Vec<String>,
    shared: Arc<Mutex<Shared>>,
    over: Arc<AtomicBool>,
    ready: Arc<Mutex<usize>>,
}

impl Relay {
    fn run(self, mut connection: Connection) {
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    // As published: what is retained stays so on the other side.
                    let filter = |path: &String| Filter {
                        preserve_retain: true,
                        ..Filter::new(path.as_str(), QoS::AtLeastOnce)
                    };
                    let _ = self.own.try_subscribe_many(self.filters.iter().map(filter));
                }
                Ok(Event::Incoming(Packet::SubAck(_))) => *self.ready.lock().expect("no panic") += 1,
                Ok(Event::Incoming(Packet::Publish(arrived))) => self.relay(&arrived),
                Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                Ok(_) => {}
                Err(_) if self.over.load(Ordering::Relaxed) => return,
                Err(_) => std::thread::sleep(Duration::from_millis(50)), // its broker is away
            }
        }
    }

    fn relay(&self, arrived: &Publish) {
        let post = Post::of(self.way, arrived);
        let passed = {
            let mut shared = self.shared.lock().expect("no panic");
            shared.seen.push(post.clone());
            (shared.rule)(&post)
        };
        for post in passed {
            // At the end of a test the other connection may be gone already.
            publish(&self.other, &post);
        }
    }
}
