//! The link between the surgery and the centre: a TCP proxy that can be cut.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A link that can be cut and restored.
pub(crate) struct Link {
    /// Where the gateway connects to.
    pub(crate) address: SocketAddr,
    up: watch::Sender<bool>,
}

impl Link {
    /// Listens on a free port of the loopback and forwards everything to `broker`.
    pub(crate) async fn start(broker: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (up, state) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let mut state = state.clone();
                let broker = broker.clone();
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return; // the connection is dropped: from here a dead link looks like that
                    }
                    let Ok(mut far) = TcpStream::connect(&broker).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        Ok(Self { address, up })
    }

    /// Cuts every connection and refuses new ones.
    pub(crate) fn cut(&self) {
        self.up.send_replace(false);
    }

    /// Lets connections through again.
    pub(crate) fn restore(&self) {
        self.up.send_replace(true);
    }
}
