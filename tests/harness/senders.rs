//! Senders that behave like a surgery's systems: one message at a time, repeated until it is acknowledged.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// One message: MSH-10 is `{sender}-{number}`.
pub fn message(sender: usize, number: usize, filler: usize) -> Vec<u8> {
    format!(
        "MSH|^~\\&|LAB{sender}|TEST|PGW|B86022|20261122101500||ORU^R01|{sender}-{number}|T|2.3|||AL\r\
         PID|1|EX{sender}^^^TEST MRN^MRN\rOBX|1|NM|tt-0003-01^Creatinine||{number}|UMOLL\rNTE|1||{}\r",
        "x".repeat(filler)
    )
    .into_bytes()
}

/// Sends one frame and waits for its acknowledgment.
pub fn exchange(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0x0b];
    frame.extend_from_slice(message);
    frame.extend_from_slice(&[0x1c, 0x0d]);
    stream.write_all(&frame)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    while !answer.ends_with(&[0x1c, 0x0d]) {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(answer)
}

/// Connects as a sender does.
pub fn connect(door: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&door, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Whether an acknowledgment is positive.
pub fn positive(answer: &[u8]) -> bool {
    [&b"MSA|AA|"[..], b"MSA|CA|"].iter().any(|code| answer.windows(7).any(|w| w == *code))
}

/// Senders that work until they are stopped or have sent `limit` each.
pub struct Senders {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Vec<u8>>>>,
}

impl Senders {
    /// Starts `count` senders.
    pub fn start(door: SocketAddr, count: usize, limit: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count)
            .map(|sender| {
                let stop = stop.clone();
                std::thread::spawn(move || work(door, sender, limit, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    /// Stops them and returns what each was told is safe, in order. A message without an acknowledgment is repeated
    /// first, as a real sender would, unless the gateway stays away.
    pub fn stop(self) -> Vec<Vec<Vec<u8>>> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits until each has sent its limit.
    pub fn join(self) -> Vec<Vec<Vec<u8>>> {
        self.threads.into_iter().map(|t| t.join().expect("a sender")).collect()
    }
}

fn work(door: SocketAddr, sender: usize, limit: usize, stop: &AtomicBool) -> Vec<Vec<u8>> {
    let mut safe = Vec::new();
    let mut stream = None;
    for number in 1..=limit {
        let message = message(sender, number, (number * 37) % 900);
        let mut tries = 0;
        loop {
            if stop.load(Ordering::Relaxed) && (tries == 0 || tries > 500) {
                return safe;
            }
            if stream.is_none() {
                stream = connect(door).ok();
            }
            if let Some(open) = &mut stream {
                match exchange(open, &message) {
                    Ok(answer) if positive(&answer) => break,
                    Ok(answer) => panic!("refused: {}", String::from_utf8_lossy(&answer)),
                    Err(_) => stream = None,
                }
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(20)); // a sender's pause between attempts
        }
        safe.push(message);
    }
    safe
}
