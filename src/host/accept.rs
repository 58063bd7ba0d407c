//! The accept loop of every listener. It never gives up, and it limits and tracks its clients.
//!
//! A failed `accept` (no file descriptors left, a peer that has already gone) is logged at a limited rate and retried.
//! A client that panics ends only its own connection. After a stop the loop drops the listener first, then gives
//! clients a deadline to end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At most one warning in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);
/// How long clients have to end after a stop: the door still answers what it is storing.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A source of connections.
pub trait Listener {
    /// A connection.
    type Stream;
    /// What is known about the peer before it sends anything.
    type Peer;

    /// The next connection. Cancelling this future loses nothing.
    ///
    /// # Errors
    /// Those of the system.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Peer)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self).await
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    type Peer = ();

    async fn accept(&self) -> io::Result<(UnixStream, ())> {
        UnixListener::accept(self).await.map(|(stream, _)| (stream, ()))
    }
}

/// What one listener does with its connections.
pub struct Accept<L> {
    /// The listener's name in the log.
    pub name: &'static str,
    /// The source of connections; dropped as soon as the loop has to stop.
    pub listener: L,
    /// Most clients at once; further connections wait in the kernel's queue.
    pub most_clients: usize,
}

impl<L: Listener> Accept<L> {
    /// Accepts connections until `stop` becomes true (or its sender is gone), and returns when their clients have ended,
    /// or a deadline later.
    ///
    /// `admit` gets the peer and the number of clients. If it returns a reason, the connection is closed without an
    /// answer. `client` runs the conversation with a peer that was admitted.
    pub async fn serve<A, C, F>(self, admit: A, client: C, stop: watch::Receiver<bool>)
    where
        A: FnMut(&L::Peer, usize) -> Result<(), &'static str>,
        C: FnMut(L::Stream, L::Peer) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        self.serve_until(admit, client, stop, STOP_DEADLINE).await;
    }

    async fn serve_until<A, C, F>(
        self,
        mut admit: A,
        mut client: C,
        mut stop: watch::Receiver<bool>,
        deadline: Duration,
    ) where
        A: FnMut(&L::Peer, usize) -> Result<(), &'static str>,
        C: FnMut(L::Stream, L::Peer) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { name, listener, most_clients } = self;
        let mut warnings = Warnings::default();
        let mut clients = JoinSet::new();
        loop {
            // Cancelling any of these loses nothing.
            let accepted = tokio::select! {
                () = stop_requested(&mut stop) => break,
                Some(ended) = clients.join_next(), if !clients.is_empty() => {
                    if ended.is_err() {
                        tracing::error!(listener = name, "A connection ended because of a bug in this program");
                    }
                    continue;
                }
                accepted = listener.accept(), if clients.len() < most_clients => accepted,
            };
            match accepted {
                Ok((stream, peer)) => match admit(&peer, clients.len()) {
                    Ok(()) => {
                        clients.spawn(client(stream, peer));
                    }
                    // The address is not logged: a sender's host may name a person.
                    Err(reason) => warnings.limited(|| {
                        tracing::warn!(listener = name, reason, "Refused a connection");
                    }),
                },
                Err(error) => {
                    warnings.limited(|| {
                        tracing::warn!(listener = name, %error, "Could not accept a connection");
                    });
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let all_ended = async { while clients.join_next().await.is_some() {} };
        if timeout(deadline, all_ended).await.is_err() {
            let open = clients.len();
            tracing::warn!(listener = name, open, "Closed connections that did not end in time");
        }
        // Dropped when this returns, so that the count of open connections is right.
        clients.shutdown().await;
    }
}

/// Returns when the loop has to stop.
pub async fn stop_requested(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender was dropped, which is also a reason to stop.
    drop(stop.wait_for(|stop| *stop).await);
}

/// Warnings at a limited rate.
#[derive(Default)]
struct Warnings {
    last: Option<Instant>,
}

impl Warnings {
    fn limited(&mut self, warn: impl FnOnce()) {
        if self.last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            self.last = Some(Instant::now());
            warn();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Connections by number, and failures between them.
    struct Script(Arc<Mutex<VecDeque<io::Result<u32>>>>);

    impl Listener for Script {
        type Stream = u32;
        type Peer = u32;

        async fn accept(&self) -> io::Result<(u32, u32)> {
            let next = self.0.lock().unwrap().pop_front();
            match next {
                Some(next) => next.map(|number| (number, number)),
                None => std::future::pending().await,
            }
        }
    }

    fn script(steps: impl IntoIterator<Item = io::Result<u32>>) -> Accept<Script> {
        let steps = Arc::new(Mutex::new(steps.into_iter().collect()));
        Accept { name: "test", listener: Script(steps), most_clients: 2 }
    }

    #[tokio::test]
    async fn it_continues_after_failures_refusals_and_panics() {
        let (stop, stopped) = watch::channel(false);
        let failed = || Err(io::ErrorKind::OutOfMemory.into());
        let accept = script([failed(), Ok(1), Ok(2), failed(), Ok(3)]);
        let (served, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (peers, clients) = (Arc::clone(&seen), Arc::clone(&served));
        let serving = tokio::spawn(accept.serve(
            move |peer, open| {
                peers.lock().unwrap().push((*peer, open));
                if *peer == 2 { Err("it is two") } else { Ok(()) }
            },
            move |number, _| {
                let clients = Arc::clone(&clients);
                async move {
                    clients.lock().unwrap().push(number);
                    assert_ne!(number, 1, "a client that panics");
                }
            },
            stopped,
        ));
        while served.lock().unwrap().len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
        stop.send(true).unwrap();
        serving.await.unwrap();
        assert_eq!(*served.lock().unwrap(), [1, 3]);
        let seen: Vec<u32> = seen.lock().unwrap().iter().map(|(peer, _)| *peer).collect();
        assert_eq!(seen, [1, 2, 3]);
    }

    #[tokio::test]
    async fn clients_are_bounded_and_cut_at_the_deadline() {
        struct Open(Arc<AtomicUsize>);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let (stop, stopped) = watch::channel(false);
        let accept = script((0..5).map(Ok));
        let left = Arc::clone(&accept.listener.0);
        let open = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&open);
        let client = move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            let open = Open(Arc::clone(&counted));
            async move {
                let _open = open;
                std::future::pending().await
            }
        };
        let deadline = Duration::from_millis(200);
        let serving = tokio::spawn(accept.serve_until(|_, _| Ok(()), client, stopped, deadline));
        while open.load(Ordering::SeqCst) < 2 {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(Duration::from_millis(100)).await;
        assert_eq!((open.load(Ordering::SeqCst), left.lock().unwrap().len()), (2, 3), "no more than two");
        let began = Instant::now();
        stop.send(true).unwrap();
        serving.await.unwrap();
        assert!(began.elapsed() >= deadline && open.load(Ordering::SeqCst) == 0);
    }
}
