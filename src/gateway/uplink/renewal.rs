//! Certificates are reread on SIGHUP and when their files change. New ones replace the old only after a connection
//! with them has worked (design section 10).

use std::sync::Arc;

use pgw_core::text::chain;
use pgw_core::transaction::UnixMillis;
use pgw_link::clock::TrustedClock;
use pgw_link::failure::Failure;
use pgw_link::phase::Phase;
use pgw_link::tls::{Identity, TlsError, TlsFiles};
use pgw_link::watched::{FILES_INTERVAL, Stamp};
use tokio::sync::watch;
use tokio_rustls::rustls::ClientConfig;

/// The certificates in use, and new ones to be tried.
pub(super) struct Renewal {
    files: Option<TlsFiles>,
    clock: Arc<TrustedClock>,
    reload: watch::Receiver<u64>,
    current: Option<Loaded>,
    candidate: Option<Loaded>,
    /// The stamp of the files when they were last read.
    seen: Option<Stamp>,
}

struct Loaded {
    config: Arc<ClientConfig>,
    not_after: UnixMillis,
}

impl Renewal {
    pub(super) fn new(
        files: Option<TlsFiles>,
        clock: Arc<TrustedClock>,
        reload: watch::Receiver<u64>,
    ) -> Self {
        Self { files, clock, reload, current: None, candidate: None, seen: None }
    }

    /// The certificates for the next connection; `None`: no TLS. Unusable files fail the attempt only if there are no
    /// older ones.
    pub(super) async fn config(&mut self) -> Result<Option<Arc<ClientConfig>>, Failure> {
        let Some(files) = self.files.clone() else { return Ok(None) };
        let read = self.refresh(&files).await;
        match (&self.candidate, &self.current, read) {
            (Some(loaded), ..) | (None, Some(loaded), _) => Ok(Some(loaded.config.clone())),
            (None, None, Err(error)) => Err(Failure::new(Phase::Tls, chain(&error))),
            (None, None, Ok(())) => Err(Failure::new(Phase::Tls, "there are no certificates")),
        }
    }

    /// Reads the files if they have changed, or if the daemon got SIGHUP.
    async fn refresh(&mut self, files: &TlsFiles) -> Result<(), TlsError> {
        let reload = self.reload.has_changed().unwrap_or(false);
        self.reload.mark_unchanged();
        let (paths, clock) = (files.clone(), self.clock.clone());
        let seen = self.seen.clone().filter(|_| !reload && self.current.is_some());
        let read = tokio::task::spawn_blocking(move || {
            let stamp = paths.stamp();
            if seen.as_ref() == Some(&stamp) {
                return None;
            }
            let loaded = Identity::load(&paths).and_then(|identity| {
                let config = identity.client_config(clock)?;
                Ok(Loaded { config, not_after: identity.facts().not_after })
            });
            Some((stamp, loaded))
        });
        // A panic while reading is retried the next time.
        let Ok(Some((stamp, loaded))) = read.await else { return Ok(()) };
        self.seen = Some(stamp);
        match loaded {
            Ok(loaded) => {
                self.candidate = Some(loaded);
                Ok(())
            }
            Err(error) => {
                if self.current.is_some() {
                    tracing::error!(
                        reason = chain(&error),
                        "The new certificates cannot be used; the old ones stay in use"
                    );
                }
                Err(error)
            }
        }
    }

    /// An attempt has failed. True: the new certificates were at fault, and the old ones are used at once.
    pub(super) fn failed(&mut self, failure: &Failure) -> bool {
        if !matches!(failure.phase, Phase::Tls | Phase::Mqtt | Phase::Subscribe) {
            return false;
        }
        let tried = self.candidate.take().is_some();
        if tried && self.current.is_some() {
            tracing::error!(
                phase = failure.phase.as_str(),
                reason = failure.sentence,
                "The new certificates do not connect; the old ones stay in use"
            );
            return true;
        }
        // The old ones do not connect either: let the files be tried again.
        self.seen = None;
        false
    }

    /// The connection is live. Returns the end of the certificate in use.
    pub(super) fn succeeded(&mut self) -> Option<UnixMillis> {
        if let Some(loaded) = self.candidate.take() {
            if self.current.is_some() {
                tracing::info!("New certificates are in use");
            }
            self.current = Some(loaded);
        }
        self.current.as_ref().map(|loaded| loaded.not_after)
    }

    /// Returns when new certificates have been read and should be tried.
    pub(super) async fn wanted(&mut self) {
        let Some(files) = self.files.clone() else { return std::future::pending().await };
        loop {
            let reload = tokio::select! {
                changed = self.reload.changed() => changed.is_ok(),
                () = tokio::time::sleep(FILES_INTERVAL) => false,
            };
            if reload {
                self.seen = None;
            }
            let _ = self.refresh(&files).await;
            if self.candidate.is_some() {
                return;
            }
            if self.reload.has_changed().is_err() {
                // The sender is gone: only the files can change now.
                tokio::time::sleep(FILES_INTERVAL).await;
            }
        }
    }
}
