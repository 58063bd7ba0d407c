//! What the broker carries, observed by separate clients: which repetitions were sent but stored once, whether every
//! health message adds up, and which events were published.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::Value;

/// A subscriber on a broker's listener without TLS. Its thread ends when it is dropped.
struct Subscriber {
    client: Client,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Subscriber {
    fn start(
        plain_port: u16,
        id: &str,
        filters: &'static [&'static str],
        mut hears: impl FnMut(&str, &[u8]) + Send + 'static,
    ) -> Self {
        let mut options = MqttOptions::new(id, "127.0.0.1", plain_port);
        options.set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 16);
        let over = Arc::new(AtomicBool::new(false));
        let (subscriber, ended) = (client.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for filter in filters {
                            let _ = subscriber.try_subscribe(*filter, QoS::AtLeastOnce);
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        hears(&String::from_utf8_lossy(&publish.topic), &publish.payload);
                    }
                    Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                    Ok(_) => {}
                    Err(_) if ended.load(Ordering::Relaxed) => return,
                    Err(_) => std::thread::sleep(Duration::from_millis(50)), // the broker is away
                }
            }
        });
        Self { client, over, thread: Some(thread) }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.client.try_disconnect();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A subscriber to every transaction, and to what the gateways say of themselves.
pub struct Wire {
    seen: Arc<Mutex<HashMap<Vec<u8>, usize>>>,
    command_nonce: Arc<Mutex<String>>,
    _subscriber: Subscriber,
}

impl Wire {
    /// On a broker's listener without TLS.
    pub fn watch(plain_port: u16) -> Self {
        let seen: Arc<Mutex<HashMap<Vec<u8>, usize>>> = Arc::default();
        let command_nonce: Arc<Mutex<String>> = Arc::default();
        let (shared, nonce) = (seen.clone(), command_nonce.clone());
        let hears = move |topic: &str, payload: &[u8]| {
            if topic.ends_with("/status") {
                let status: Value = serde_json::from_slice(payload).unwrap_or_default();
                *nonce.lock().expect("no panic") =
                    status["command_nonce"].as_str().unwrap_or_default().to_owned();
            } else {
                *shared.lock().expect("no panic").entry(payload.to_vec()).or_default() += 1;
            }
        };
        let filters = &["pgw/v1/+/+/txn/+", "pgw/v1/+/+/status"];
        let subscriber = Subscriber::start(plain_port, "wire-watch", filters, hears);
        Self { seen, command_nonce, _subscriber: subscriber }
    }

    /// What commands to the gateway that is online must name.
    pub fn command_nonce(&self) -> String {
        super::eventually_blocking("the gateway to be online", Duration::from_secs(20), || {
            Some(self.command_nonce.lock().expect("no panic").clone()).filter(|nonce| !nonce.is_empty())
        })
    }

    /// Bodies that were sent more than once.
    pub fn repeated(&self) -> usize {
        self.seen.lock().expect("no panic").values().filter(|times| **times > 1).count()
    }
}

/// A subscriber to every health message and event: the numbers must add up in each of them.
pub struct Books {
    kept: Arc<Mutex<Kept>>,
    _subscriber: Subscriber,
}

#[derive(Default)]
struct Kept {
    health: usize,
    /// Messages that do not add up, or are not health messages.
    wrong: Vec<String>,
    events: Vec<Value>,
}

impl Books {
    /// On a broker's listener without TLS.
    pub fn watch(plain_port: u16) -> Self {
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let shared = kept.clone();
        let hears = move |topic: &str, payload: &[u8]| {
            let mut kept = shared.lock().expect("no panic");
            let value = serde_json::from_slice(payload).unwrap_or(Value::Null);
            if topic.ends_with("/event") {
                kept.events.push(value);
                return;
            }
            kept.health += 1;
            let number = |key: &str| value[key].as_u64();
            let sum = || Some(number("confirmed_total")? + number("waiting")? + number("damaged")?);
            if number("accepted_total").is_none() || number("accepted_total") != sum() {
                kept.wrong.push(String::from_utf8_lossy(payload).into_owned());
            }
        };
        let filters = &["pgw/v1/+/+/health", "pgw/v1/+/+/event"];
        let subscriber = Subscriber::start(plain_port, "books-watch", filters, hears);
        Self { kept, _subscriber: subscriber }
    }

    /// The number of health messages; asserts that all of them add up.
    pub fn balance(&self) -> usize {
        let kept = self.kept.lock().expect("no panic");
        assert!(
            kept.wrong.is_empty(),
            "{} of {} health messages do not add up, the first: {}",
            kept.wrong.len(),
            kept.health,
            kept.wrong[0]
        );
        kept.health
    }

    /// The details of the events with this code, in order of arrival.
    pub fn events(&self, code: &str) -> Vec<String> {
        let kept = self.kept.lock().expect("no panic");
        let of_code = kept.events.iter().filter(|event| event["code"] == code);
        of_code.map(|event| event["detail"].as_str().unwrap_or_default().to_owned()).collect()
    }
}
