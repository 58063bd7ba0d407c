//! A TCP proxy that breaks links in the ways in which real links break.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How the link behaves from now on, for open connections as well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Forwards everything.
    Pass,
    /// Half-open: nothing is forwarded or read any more, nothing is closed; what was written before `Pass` comes late.
    Stall,
    /// Reads and drops in this direction: the other end sees only silence.
    Swallow(Direction),
    /// At most this many bytes a second in each direction.
    Throttle(u64),
    /// Every byte is delayed by this much, in each direction; the rate stays.
    Delay(Duration),
    /// One chunk in this many is delayed this much, and with it what follows.
    Hiccups {
        /// One in this many.
        one_in: u64,
        /// The delay.
        late: Duration,
    },
    /// New connections are accepted and reset at once; open ones continue.
    Refuse,
}

/// As seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Client to broker.
    Up,
    /// Broker to client.
    Down,
}

#[derive(Clone, Copy)]
struct State {
    fault: Fault,
    target: SocketAddr,
    /// Connections accepted before this was raised are reset.
    cuts: u64,
}

/// The proxy has its own thread and runtime, so that a busy test cannot slow it down. Ends when dropped.
pub struct FaultProxy {
    port: u16,
    state: watch::Sender<State>,
    counters: Arc<Counters>,
    thread: Option<std::thread::JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

impl FaultProxy {
    /// In front of `target_port` on loopback.
    pub fn start(target_port: u16) -> Self {
        let (state, watched) = watch::channel(State {
            fault: Fault::Pass,
            target: SocketAddr::from(([127, 0, 0, 1], target_port)),
            cuts: 0,
        });
        let (stop, stopped) = watch::channel(false);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let counters = Arc::new(Counters::default());
        let shared = counters.clone();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(serve(listener, watched, stopped, shared));
        });
        Self { port, state, counters, thread: Some(thread), stop }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets the fault from now on.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// Resets every open connection (RST); new ones get the fault that is set.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    state: watch::Receiver<State>,
    mut stopped: watch::Receiver<bool>,
    counters: Arc<Counters>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let client = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let Ok((client, _)) = client else { continue };
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(carry(client, state.clone(), counters.clone()));
    }
}

async fn carry(client: TcpStream, mut state: watch::Receiver<State>, counters: Arc<Counters>) {
    let State { fault, target, cuts } = *state.borrow_and_update();
    let _ = client.set_nodelay(true);
    if fault == Fault::Refuse {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(broker) = TcpStream::connect(target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = broker.set_nodelay(true);
    let (client_read, client_write) = client.into_split();
    let (broker_read, broker_write) = broker.into_split();
    let up = pump(client_read, broker_write, Direction::Up, state.clone(), counters.clone());
    let down = pump(broker_read, client_write, Direction::Down, state.clone(), counters);
    // A clean end in one direction leaves the other open; a reset, or a cut, ends both.
    tokio::select! {
        _ = async { tokio::try_join!(up, down) } => {}
        _ = state.wait_for(|now| now.cuts != cuts) => {}
    }
}

/// The connection was reset, or is to be.
struct Reset;

/// The writing half: dropped without [`Writer::close`] it ends with an RST and not with a FIN.
struct Writer(Option<OwnedWriteHalf>);

impl Writer {
    async fn close(mut self) {
        if let Some(mut half) = self.0.take() {
            let _ = half.shutdown().await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            let _ = half.as_ref().set_zero_linger();
            half.forget();
        }
    }
}

/// One direction: a reader that timestamps what it reads, and a writer that forwards it when its time has come.
async fn pump(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    direction: Direction,
    state: watch::Receiver<State>,
    counters: Arc<Counters>,
) -> Result<(), Reset> {
    // Bounded, so that a throttled or stalled link pushes back on its sender as a real one does.
    let (queue, queued) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let writer = Writer(Some(to));
    tokio::try_join!(
        collect(from, queue, direction, state.clone(), counters),
        deliver(queued, writer, state)
    )?;
    Ok(())
}

async fn collect(
    mut from: OwnedReadHalf,
    queue: mpsc::Sender<(Instant, Vec<u8>)>,
    direction: Direction,
    mut state: watch::Receiver<State>,
    counters: Arc<Counters>,
) -> Result<(), Reset> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        state.wait_for(|now| now.fault != Fault::Stall).await.map_err(|_| Reset)?;
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = state.wait_for(|now| now.fault == Fault::Stall) => continue,
        };
        let length = read.map_err(|_| Reset)?;
        if length == 0 {
            return Ok(());
        }
        let counter = if direction == Direction::Up { &counters.up } else { &counters.down };
        counter.fetch_add(length as u64, Ordering::Relaxed);
        let fault = state.borrow().fault;
        let delay = match fault {
            Fault::Swallow(swallowed) if swallowed == direction => continue,
            Fault::Delay(delay) => delay,
            Fault::Hiccups { one_in, late } if counter.load(Ordering::Relaxed) % one_in == 0 => late,
            _ => Duration::ZERO,
        };
        queue.send((Instant::now() + delay, buffer[..length].to_vec())).await.map_err(|_| Reset)?;
    }
}

async fn deliver(
    mut queued: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: Writer,
    mut state: watch::Receiver<State>,
) -> Result<(), Reset> {
    while let Some((due, bytes)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        state.wait_for(|now| now.fault != Fault::Stall).await.map_err(|_| Reset)?;
        let fault = state.borrow().fault;
        let Some(half) = &mut to.0 else { return Err(Reset) };
        if let Fault::Throttle(bytes_per_second) = fault {
            for part in bytes.chunks(1_024) {
                let seconds = part.len() as f64 / bytes_per_second as f64;
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                half.write_all(part).await.map_err(|_| Reset)?;
            }
        } else {
            half.write_all(&bytes).await.map_err(|_| Reset)?;
        }
    }
    to.close().await;
    Ok(())
}
