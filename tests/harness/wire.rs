//! What the broker carries, seen by a client of its own: that repetitions went over the wire and were stored once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{Client, Event, MqttOptions};

/// A subscriber to every transaction. Its thread ends when it is dropped.
pub struct Wire {
    seen: Arc<Mutex<HashMap<Vec<u8>, usize>>>,
    client: Client,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Wire {
    /// On a broker's listener without TLS.
    pub fn watch(plain_port: u16) -> Self {
        let mut options = MqttOptions::new("wire-watch", "127.0.0.1", plain_port);
        options.set_keep_alive(Duration::from_secs(30));
        let (client, mut connection) = Client::new(options, 16);
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (shared, subscriber, ended) = (seen.clone(), client.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let _ = subscriber.try_subscribe("pgw/v1/+/+/txn/+", QoS::AtLeastOnce);
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let mut seen = shared.lock().expect("no panic");
                        *seen.entry(publish.payload.to_vec()).or_default() += 1;
                    }
                    Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return,
                    Ok(_) => {}
                    Err(_) if ended.load(Ordering::Relaxed) => return,
                    Err(_) => std::thread::sleep(Duration::from_millis(50)), // the broker is away
                }
            }
        });
        Self { seen, client, over, thread: Some(thread) }
    }

    /// Bodies that went over the wire more than once.
    pub fn repeated(&self) -> usize {
        self.seen.lock().expect("no panic").values().filter(|times| **times > 1).count()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.client.try_disconnect();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
